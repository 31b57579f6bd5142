// SPDX-License-Identifier: Apache-2.0
// XXH3 hashes, and the checksum of stored bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

namespace kvbm {

/// Source: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
[[nodiscard]] uint64_t xxh3_64(std::span<const std::byte> bytes, uint64_t seed = 0) noexcept;

struct Hash128 {
  uint64_t low = 0;
  uint64_t high = 0;
  friend bool operator==(const Hash128&, const Hash128&) = default;
};

[[nodiscard]] Hash128 xxh3_128(std::span<const std::byte> bytes, uint64_t seed = 0) noexcept;

/// xxh3_64 of bytes that come in pieces.
/// Threads: one thread at a time.
class Xxh3Stream {
 public:
  explicit Xxh3Stream(uint64_t seed = 0);
  Xxh3Stream(Xxh3Stream&&) noexcept;
  Xxh3Stream& operator=(Xxh3Stream&&) noexcept;
  ~Xxh3Stream();

  void update(std::span<const std::byte> bytes) noexcept;
  /// The hash of what came so far; more may follow.
  [[nodiscard]] uint64_t digest() const noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// The seed of checksums, so that a block of zeros or a plain content hash is never taken for one.
inline constexpr uint64_t kChecksumSeed = 0x6b76'626d'2d73'756d;

/// The checksum that stored and sent bytes carry: xxh3_64 with kChecksumSeed.
[[nodiscard]] inline uint64_t checksum(std::span<const std::byte> bytes) noexcept {
  return xxh3_64(bytes, kChecksumSeed);
}

/// The bytes of a text.
[[nodiscard]] inline std::span<const std::byte> bytes_of(std::string_view text) noexcept {
  return std::as_bytes(std::span(text.data(), text.size()));
}

}  // namespace kvbm
