// SPDX-License-Identifier: Apache-2.0
#include "kvbm/memory/memory_region.hpp"

#include <limits>

#include "kvbm/base/text.hpp"

namespace kvbm {

namespace {

constexpr uint64_t kLastFileOffset = std::numeric_limits<int64_t>::max();

}  // namespace

std::string_view to_string(StorageKind kind) noexcept {
  switch (kind) {
    case StorageKind::kSystem:
      return "system";
    case StorageKind::kPinned:
      return "pinned";
    case StorageKind::kDevice:
      return "device";
    case StorageKind::kFile:
      return "file";
    case StorageKind::kRemote:
      return "remote";
  }
  return "unknown";
}

MemoryRegion MemoryRegion::of_bytes(StorageKind kind, std::byte* base, uint64_t size_bytes) {
  KVBM_CONTRACT(kind != StorageKind::kFile && kind != StorageKind::kRemote,
                "a region of a file or of another worker has no address here");
  KVBM_CONTRACT(base != nullptr || size_bytes == 0, "a region needs a base address");
  KVBM_CONTRACT(
      size_bytes <= std::numeric_limits<uintptr_t>::max() - reinterpret_cast<uintptr_t>(base),
      "a region ends beyond the address space");
  MemoryRegion region;
  region.kind_ = kind;
  region.base_ = base;
  region.size_bytes_ = size_bytes;
  return region;
}

MemoryRegion MemoryRegion::of_file(FileRef file, uint64_t offset, uint64_t size_bytes) {
  KVBM_CONTRACT(file.fd >= 0, "a region of a file needs an open file");
  KVBM_CONTRACT(offset <= kLastFileOffset && size_bytes <= kLastFileOffset - offset,
                "a region of a file ends beyond 63 bits");
  MemoryRegion region;
  region.kind_ = StorageKind::kFile;
  region.file_ = file;
  region.file_offset_ = offset;
  region.size_bytes_ = size_bytes;
  return region;
}

MemoryRegion MemoryRegion::of_remote(uint64_t address, uint64_t size_bytes) {
  KVBM_CONTRACT(size_bytes <= std::numeric_limits<uint64_t>::max() - address,
                "a region of another worker ends beyond the address space");
  MemoryRegion region;
  region.kind_ = StorageKind::kRemote;
  region.remote_address_ = address;
  region.size_bytes_ = size_bytes;
  return region;
}

MemoryRegion MemoryRegion::of(const DeviceMemory& memory) {
  return of_bytes(StorageKind::kDevice, memory.data(), memory.size_bytes());
}

std::byte* MemoryRegion::base() const {
  KVBM_CONTRACT(!is_file() && !is_remote(),
                format_text("a region of {} memory has no address here", kind_));
  return base_;
}

FileRef MemoryRegion::file() const {
  KVBM_CONTRACT(is_file(), format_text("a region of {} memory is in no file", kind_));
  return file_;
}

uint64_t MemoryRegion::file_offset() const {
  KVBM_CONTRACT(is_file(), format_text("a region of {} memory is in no file", kind_));
  return file_offset_;
}

uint64_t MemoryRegion::remote_address() const {
  KVBM_CONTRACT(is_remote(), format_text("a region of {} memory is here", kind_));
  return remote_address_;
}

MemoryRegion MemoryRegion::slice(uint64_t offset, uint64_t size_bytes) const {
  KVBM_CONTRACT(
      offset <= size_bytes_ && size_bytes <= size_bytes_ - offset,
      format_text("a slice of {} bytes at {} of a region of {}", size_bytes, offset, size_bytes_));
  MemoryRegion part = *this;
  if (is_file()) {
    part.file_offset_ += offset;
  } else if (is_remote()) {
    part.remote_address_ += offset;
  } else if (base_ != nullptr) {
    part.base_ += offset;
  }
  part.size_bytes_ = size_bytes;
  return part;
}

}  // namespace kvbm
