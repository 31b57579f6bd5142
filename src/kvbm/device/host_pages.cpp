// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/host_pages.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <limits>

#include "kvbm/base/text.hpp"
#include "kvbm/base/units.hpp"

namespace kvbm {

namespace {

constexpr uint64_t kHugePageBytes = 2 * kMiB;

uint64_t round_up(uint64_t value, uint64_t multiple) {
  return (value + multiple - 1) & ~(multiple - 1);
}

}  // namespace

uint64_t HostPages::page_bytes() noexcept {
  static const auto bytes = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  return bytes;
}

Result<HostPages> HostPages::map(const HostPagesOptions& options) {
  if (options.size_bytes == 0) {
    return make_error(ErrorCode::kInvalidArgument, "asked to map no byte of host memory");
  }
  if (!std::has_single_bit(options.alignment)) {
    return make_error(
        ErrorCode::kInvalidArgument,
        format_text("alignment {} of host memory is not a power of two", options.alignment));
  }
  const uint64_t page = page_bytes();
  uint64_t alignment = std::max(options.alignment, page);
  if (options.huge_pages == HugePages::kAdvise) alignment = std::max(alignment, kHugePageBytes);
  const auto exhausted = [&options](int error_number) {
    return make_error(
        Error(ErrorCode::kExhausted,
              format_text("no room for {} of host memory", format_size(options.size_bytes)),
              NativeDomain::kErrno, error_number));
  };
  constexpr uint64_t kMost = std::numeric_limits<int64_t>::max();
  if (options.size_bytes > kMost - page || alignment > kMost - options.size_bytes - page) {
    return exhausted(ENOMEM);
  }

  // Map enough for any start, then give back what lies before and after.
  const uint64_t size = round_up(options.size_bytes, page);
  const uint64_t slack = alignment - page;
  void* const mapped =
      ::mmap(nullptr, size + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return exhausted(errno);
  auto* const first = static_cast<std::byte*>(mapped);
  const auto address = reinterpret_cast<uintptr_t>(mapped);
  const uint64_t before = round_up(address, alignment) - address;
  std::byte* const data = first + before;
  if (before > 0) ::munmap(first, before);
  if (slack > before) ::munmap(data + size, slack - before);

  if (options.huge_pages == HugePages::kAdvise) {
    static_cast<void>(
        ::madvise(data, size, MADV_HUGEPAGE));  // advice: refused is as good as not given
  }
  return HostPages(data, options.size_bytes);
}

HostPages& HostPages::operator=(HostPages&& other) noexcept {
  if (this != &other) {
    unmap(data_, size_bytes_);
    data_ = std::exchange(other.data_, nullptr);
    size_bytes_ = std::exchange(other.size_bytes_, 0);
  }
  return *this;
}

HostPages::~HostPages() { unmap(data_, size_bytes_); }

std::byte* HostPages::release() noexcept {
  size_bytes_ = 0;
  return std::exchange(data_, nullptr);
}

void HostPages::unmap(std::byte* data, uint64_t size_bytes) noexcept {
  if (data != nullptr) ::munmap(data, round_up(size_bytes, page_bytes()));
}

}  // namespace kvbm
