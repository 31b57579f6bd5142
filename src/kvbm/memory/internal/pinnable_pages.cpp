// SPDX-License-Identifier: Apache-2.0
#include "kvbm/memory/internal/pinnable_pages.hpp"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <utility>
#include <vector>

#include "kvbm/base/text.hpp"

namespace kvbm::internal {
namespace {

constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE of <linux/mman.h>
constexpr int kPages = MAP_PRIVATE | MAP_ANONYMOUS;
constexpr int kHugePages = MAP_HUGETLB | (21 << MAP_HUGE_SHIFT);  // 2^21 bytes each

uint64_t round_up(uint64_t value, uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// By system call: a library for one call would be one more thing to install.
bool bind_to(std::byte* data, uint64_t size_bytes, uint32_t node) {
  constexpr int kPreferred = 1;  // MPOL_PREFERRED of <linux/mempolicy.h>
  constexpr uint32_t kBits = std::numeric_limits<unsigned long>::digits;
  std::vector<unsigned long> mask(node / kBits + 1);
  mask[node / kBits] = 1UL << (node % kBits);
  // The kernel looks at one bit less than it is told.
  const unsigned long bits = mask.size() * kBits + 1;
  return ::syscall(SYS_mbind, data, size_bytes, kPreferred, mask.data(), bits, 0) == 0;
}

}  // namespace

std::byte* map_reserved_huge_pages(uint64_t size_bytes) noexcept {
  void* const mapped =
      ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, kPages | kHugePages, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  // Of no bytes: whether the kernel knows the advice.
  if (::madvise(mapped, 0, kPopulateWrite) == 0) return static_cast<std::byte*>(mapped);
  ::munmap(mapped, size_bytes);
  return nullptr;
}

Result<PinnablePages> PinnablePages::map(uint64_t size_bytes,
                                         std::byte* (*map_reserved)(uint64_t)) {
  PinnablePages pages;
  pages.size_bytes_ = size_bytes;
  pages.reserved_bytes_ = round_up(size_bytes, kHugePageBytes);
  pages.reserved_ = map_reserved(pages.reserved_bytes_);
  if (pages.reserved_ != nullptr) return pages;
  KVBM_ASSIGN_OR_RETURN(pages.plain_, HostPages::map({.size_bytes = size_bytes,
                                                      .alignment = kHugePageBytes,
                                                      .huge_pages = HugePages::kAdvise}));
  return pages;
}

PinnablePages::PinnablePages(PinnablePages&& other) noexcept
    : plain_(std::move(other.plain_)),
      reserved_(std::exchange(other.reserved_, nullptr)),
      reserved_bytes_(other.reserved_bytes_),
      size_bytes_(other.size_bytes_),
      node_(other.node_),
      some_plain_(other.some_plain_.load()) {}

PinnablePages::~PinnablePages() {
  if (reserved_ != nullptr) ::munmap(reserved_, reserved_bytes_);
}

bool PinnablePages::prefer_node(uint32_t node) {
  if (!bind_to(data(), size_bytes_, node)) return false;
  node_ = node;
  return true;
}

Status PinnablePages::touch(uint64_t first, uint64_t end) {
  std::byte* const part = data() + first;
  if (reserved_ != nullptr) {
    const uint64_t size = round_up(end, kHugePageBytes) - first;
    if (::madvise(part, size, kPopulateWrite) == 0) return {};
    // Plain pages in their place.
    some_plain_ = true;
    if (::mmap(part, size, PROT_READ | PROT_WRITE, kPages | MAP_FIXED, -1, 0) == MAP_FAILED) {
      return make_error(
          Error(ErrorCode::kExhausted,
                format_text("no pages for {} of host memory", format_size(size_bytes_)),
                NativeDomain::kErrno, errno));
    }
    // Wishes: refused is as good as not uttered.
    static_cast<void>(::madvise(part, size, MADV_HUGEPAGE));
    if (node_) static_cast<void>(bind_to(part, size, *node_));
  }
  static const uint64_t page = HostPages::page_bytes();
  for (uint64_t at = first; at < end; at += page) {
    *static_cast<volatile std::byte*>(data() + at) = std::byte{0};
  }
  return {};
}

void PinnablePages::give_back(uint64_t first) noexcept {
  const uint64_t end =
      reserved_ != nullptr ? reserved_bytes_ : round_up(size_bytes_, HostPages::page_bytes());
  // A kernel before 5.18 keeps reserved pages.
  if (first < end) static_cast<void>(::madvise(data() + first, end - first, MADV_DONTNEED));
}

}  // namespace kvbm::internal
