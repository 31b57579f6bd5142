// SPDX-License-Identifier: Apache-2.0
// MemoryRegion: a range of bytes somewhere: in memory, in a file or with another worker.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kvbm/base/contract.hpp"
#include "kvbm/device/device_memory.hpp"
#include "kvbm/memory/file.hpp"

namespace kvbm {

enum class StorageKind : uint8_t {
  kSystem,  ///< pageable host memory
  kPinned,  ///< host memory that a device reaches by itself
  kDevice,  ///< memory of a device
  kFile,    ///< bytes of an open file; has no address
  kRemote,  ///< memory of another worker; has an address that means nothing here
};

/// "system", "pinned", "device", "file", "remote".
[[nodiscard]] std::string_view to_string(StorageKind kind) noexcept;

/// Ownership: none; the owner of the bytes outlives it.
/// Threads: a value.
class MemoryRegion {
 public:
  /// Empty.
  MemoryRegion() noexcept = default;

  /// Bytes with an address. Contract: `kind` is neither kFile nor kRemote; a region that is not
  /// empty has a base.
  [[nodiscard]] static MemoryRegion of_bytes(StorageKind kind, std::byte* base,
                                             uint64_t size_bytes);
  /// Bytes of a file. Contract: the file is open, the end fits 63 bits.
  [[nodiscard]] static MemoryRegion of_file(FileRef file, uint64_t offset, uint64_t size_bytes);
  /// Bytes of another worker, at an address of its process. Contract: the end fits 64 bits.
  [[nodiscard]] static MemoryRegion of_remote(uint64_t address, uint64_t size_bytes);
  /// All of a device's allocation.
  [[nodiscard]] static MemoryRegion of(const DeviceMemory& memory);

  [[nodiscard]] StorageKind kind() const noexcept { return kind_; }
  [[nodiscard]] uint64_t size_bytes() const noexcept { return size_bytes_; }
  [[nodiscard]] bool is_file() const noexcept { return kind_ == StorageKind::kFile; }
  [[nodiscard]] bool is_remote() const noexcept { return kind_ == StorageKind::kRemote; }

  /// The address of the first byte. Contract: neither a file nor remote.
  [[nodiscard]] std::byte* base() const;
  /// Contract: a file.
  [[nodiscard]] FileRef file() const;
  [[nodiscard]] uint64_t file_offset() const;
  /// A number, so that nothing here is read or written by it. Contract: remote.
  [[nodiscard]] uint64_t remote_address() const;

  /// The `size_bytes` bytes from `offset` on. Contract: inside the region.
  [[nodiscard]] MemoryRegion slice(uint64_t offset, uint64_t size_bytes) const;

  friend bool operator==(const MemoryRegion&, const MemoryRegion&) = default;

 private:
  StorageKind kind_ = StorageKind::kSystem;
  std::byte* base_ = nullptr;
  FileRef file_;
  uint64_t file_offset_ = 0;
  uint64_t remote_address_ = 0;
  uint64_t size_bytes_ = 0;
};

}  // namespace kvbm
