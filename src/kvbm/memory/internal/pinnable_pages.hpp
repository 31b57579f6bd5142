// SPDX-License-Identifier: Apache-2.0
// PinnablePages: the pages that pinned memory is made of.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "kvbm/base/result.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/device/host_pages.hpp"

namespace kvbm::internal {

inline constexpr uint64_t kHugePageBytes = 2 * kMiB;

/// `size_bytes` of huge pages that the administrator set aside, not touched yet; null if there are
/// not as many, or if the kernel cannot touch them without a risk (before Linux 5.14).
[[nodiscard]] std::byte* map_reserved_huge_pages(uint64_t size_bytes) noexcept;

/// Reserved huge pages where the machine has enough, plain ones where it has not or where this
/// process is not to have them. Unmapped on destruction.
///
/// A reservation counts the pages of the machine alone. The limit of a cgroup and the nodes of a
/// cpuset are looked at when a page is touched, and SIGBUS ends whoever goes beyond. So they are
/// touched by a call that fails instead.
/// Ownership: move-only. Threads: touch() by several, of different parts; moved before that.
class PinnablePages {
 public:
  /// `map_reserved`: another one in tests. Errors: kExhausted (no address space).
  [[nodiscard]] static Result<PinnablePages> map(
      uint64_t size_bytes, std::byte* (*map_reserved)(uint64_t) = map_reserved_huge_pages);
  PinnablePages(PinnablePages&& other) noexcept;
  PinnablePages(const PinnablePages&) = delete;
  PinnablePages& operator=(const PinnablePages&) = delete;
  PinnablePages& operator=(PinnablePages&&) = delete;
  ~PinnablePages();

  /// Asks for the pages on a node, or elsewhere if it is full. Whether the kernel agreed. Requires:
  /// before touch().
  [[nodiscard]] bool prefer_node(uint32_t node);
  /// Makes [first, end) present. Requires: `first` is a multiple of kHugePageBytes, `end` is too or
  /// is the end of all. Errors: kExhausted.
  [[nodiscard]] Status touch(uint64_t first, uint64_t end);

  /// Lets the machine have the pages from `first` on, as far as the kernel takes them; they read as
  /// zero. Requires: `first` is a multiple of kHugePageBytes, and nobody touches or uses them.
  void give_back(uint64_t first) noexcept;

  [[nodiscard]] std::byte* data() const noexcept {
    return reserved_ != nullptr ? reserved_ : plain_.data();
  }
  /// Whether all pages so far are reserved ones.
  [[nodiscard]] bool are_reserved() const noexcept { return reserved_ != nullptr && !some_plain_; }

 private:
  PinnablePages() = default;

  HostPages plain_;
  std::byte* reserved_ = nullptr;
  uint64_t reserved_bytes_ = 0;
  uint64_t size_bytes_ = 0;
  std::optional<uint32_t> node_;
  std::atomic<bool> some_plain_{false};  // of what was to be reserved
};

}  // namespace kvbm::internal
