// SPDX-License-Identifier: Apache-2.0
// ByteWriter and ByteReader: little-endian bytes for wire messages and disk headers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvbm/base/result.hpp"

namespace kvbm {

/// Appends to a buffer that it owns.
/// Threads: one thread at a time.
class ByteWriter {
 public:
  ByteWriter() = default;
  explicit ByteWriter(size_t reserve_bytes) { buffer_.reserve(reserve_bytes); }

  void u8(uint8_t value);
  void u16(uint16_t value);
  void u32(uint32_t value);
  void u64(uint64_t value);
  void i64(int64_t value) { u64(static_cast<uint64_t>(value)); }
  void f64(double value);
  /// The bytes as they are, no length.
  void bytes(std::span<const std::byte> values);
  void zeros(size_t count);

  /// A u32 count, for ByteReader::count. Contract: fits 32 bits.
  void count(size_t value);
  /// A u32 length, then the bytes.
  void string(std::string_view text);
  /// A u32 count, then the values.
  void u32_array(std::span<const uint32_t> values);
  void u64_array(std::span<const uint64_t> values);

  /// Overwrites what was written at `offset`: for lengths and checksums known later.
  /// Contract: inside what is written.
  void patch_u32(size_t offset, uint32_t value);
  void patch_u64(size_t offset, uint64_t value);

  [[nodiscard]] size_t size() const noexcept { return buffer_.size(); }
  [[nodiscard]] std::span<const std::byte> view() const noexcept { return buffer_; }
  [[nodiscard]] std::vector<std::byte> take() && { return std::move(buffer_); }

 private:
  std::vector<std::byte> buffer_;
};

/// Reads bytes that may be hostile. The first failure is latched: every read after it gives zero or
/// nothing, so a message is read straight through and checked once at the end with finish(). A
/// count is checked against the bytes that are left before anything is allocated. Ownership:
/// borrows the input; so do the spans and texts it returns. Errors: kCorrupt, with the offset.
/// Threads: one thread at a time.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> input) noexcept : input_(input) {}

  [[nodiscard]] uint8_t u8();
  [[nodiscard]] uint16_t u16();
  [[nodiscard]] uint32_t u32();
  [[nodiscard]] uint64_t u64();
  [[nodiscard]] int64_t i64() { return static_cast<int64_t>(u64()); }
  [[nodiscard]] double f64();
  [[nodiscard]] std::span<const std::byte> bytes(size_t count);
  void skip(size_t count) { static_cast<void>(bytes(count)); }

  /// A u32 count of elements that take at least `min_element_bytes` each (at least 1); fails if the
  /// rest of the input cannot hold them.
  [[nodiscard]] size_t count(size_t min_element_bytes);
  /// A u32 length, then the bytes.
  [[nodiscard]] std::string_view string();
  /// A u32 count, then the values.
  [[nodiscard]] std::vector<uint32_t> u32_array();
  [[nodiscard]] std::vector<uint64_t> u64_array();

  /// For the caller's own checks (a bad version, an unknown kind): latches unless something failed
  /// before.
  void fail(std::string_view reason);

  [[nodiscard]] bool ok() const noexcept { return !error_.has_value(); }
  [[nodiscard]] size_t offset() const noexcept { return offset_; }
  [[nodiscard]] size_t remaining() const noexcept { return input_.size() - offset_; }

  /// The first failure.
  [[nodiscard]] Status status() const;
  /// The first failure; bytes that are left over are one.
  [[nodiscard]] Status finish();

 private:
  std::span<const std::byte> input_;
  size_t offset_ = 0;
  std::optional<Error> error_;
};

}  // namespace kvbm
