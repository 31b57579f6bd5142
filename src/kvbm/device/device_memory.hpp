// SPDX-License-Identifier: Apache-2.0
// DeviceMemory: memory of a device, owned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

namespace kvbm {

/// Where DeviceMemory goes back to. Devices implement it; it may outlive its device.
/// Threads: any thread.
class DeviceAllocator {
 public:
  virtual ~DeviceAllocator() = default;
  DeviceAllocator(const DeviceAllocator&) = delete;
  DeviceAllocator& operator=(const DeviceAllocator&) = delete;

  virtual void free(std::byte* data, uint64_t size_bytes) noexcept = 0;

 protected:
  DeviceAllocator() = default;
};

/// Ownership: move-only; freed on destruction, at once. The holder waits first for the events of
/// whatever may still touch it.
/// Threads: one thread at a time.
class DeviceMemory {
 public:
  /// Owns nothing.
  DeviceMemory() noexcept = default;
  DeviceMemory(std::byte* data, uint64_t size_bytes,
               std::shared_ptr<DeviceAllocator> allocator) noexcept
      : data_(data), size_bytes_(size_bytes), allocator_(std::move(allocator)) {}
  DeviceMemory(DeviceMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_bytes_(std::exchange(other.size_bytes_, 0)),
        allocator_(std::move(other.allocator_)) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    if (this != &other) {
      reset();
      data_ = std::exchange(other.data_, nullptr);
      size_bytes_ = std::exchange(other.size_bytes_, 0);
      allocator_ = std::move(other.allocator_);
    }
    return *this;
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() { reset(); }

  /// An address of the device; the host follows it only if DeviceInfo says host_accessible.
  [[nodiscard]] std::byte* data() const noexcept { return data_; }
  [[nodiscard]] uint64_t size_bytes() const noexcept { return size_bytes_; }
  [[nodiscard]] explicit operator bool() const noexcept { return data_ != nullptr; }

  /// Frees now.
  void reset() noexcept {
    if (std::byte* data = std::exchange(data_, nullptr)) {
      allocator_->free(data, std::exchange(size_bytes_, 0));
    }
    allocator_.reset();
  }

 private:
  std::byte* data_ = nullptr;
  uint64_t size_bytes_ = 0;
  std::shared_ptr<DeviceAllocator> allocator_;
};

}  // namespace kvbm
