// SPDX-License-Identifier: Apache-2.0
// HostPages: anonymous pages of the host, owned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "kvbm/base/result.hpp"

namespace kvbm {

enum class HugePages : uint8_t {
  kDefault,  ///< as the system does by itself
  kAdvise,   ///< ask for transparent huge pages; without them the memory is the same, only slower
};

struct HostPagesOptions {
  uint64_t size_bytes = 0;
  uint64_t alignment = 1;  ///< a power of two; never less than a page in effect
  HugePages huge_pages = HugePages::kDefault;
};

/// Reads as zero; a page takes memory when it is first touched.
/// Ownership: move-only; unmapped on destruction.
/// Threads: one thread at a time.
class HostPages {
 public:
  /// Owns nothing.
  HostPages() noexcept = default;
  HostPages(HostPages&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_bytes_(std::exchange(other.size_bytes_, 0)) {}
  HostPages& operator=(HostPages&& other) noexcept;
  HostPages(const HostPages&) = delete;
  HostPages& operator=(const HostPages&) = delete;
  ~HostPages();

  /// Errors: kInvalidArgument (no byte; `alignment` not a power of two), kExhausted (no address
  /// space or no memory, with errno).
  [[nodiscard]] static Result<HostPages> map(const HostPagesOptions& options);

  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] uint64_t size_bytes() const noexcept { return size_bytes_; }

  /// Gives up ownership; unmap(data, size_bytes) is then the caller's.
  [[nodiscard]] std::byte* release() noexcept;
  static void unmap(std::byte* data, uint64_t size_bytes) noexcept;

  [[nodiscard]] static uint64_t page_bytes() noexcept;

 private:
  HostPages(std::byte* data, uint64_t size_bytes) noexcept : data_(data), size_bytes_(size_bytes) {}

  std::byte* data_ = nullptr;
  uint64_t size_bytes_ = 0;
};

}  // namespace kvbm
