// SPDX-License-Identifier: Apache-2.0
// HiddenDevice: a host device in the part of a GPU: the host cannot address its memory, and it
// copies pinned memory alone.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "kvbm/base/mutex.hpp"
#include "kvbm/device/device.hpp"

#include "tests/support/pinner_double.hpp"
#include "tests/support/wrapped_device.hpp"

namespace kvbm::testing {

/// Gives out addresses that nothing may be read or written at: who follows one on the host ends the
/// test. Operations find the bytes behind them.
/// Ownership: borrows the inner device, which outlives its memory.
/// Threads: any thread.
class HiddenDevice final : public WrappedDevice {
 public:
  explicit HiddenDevice(Device& inner, int32_t ordinal = 0)
      : WrappedDevice(inner), ordinal_(ordinal) {}

  /// The same device for another owner.
  [[nodiscard]] std::unique_ptr<HiddenDevice> share() const {
    return std::unique_ptr<HiddenDevice>(new HiddenDevice(*this));
  }

  [[nodiscard]] const std::shared_ptr<PinnerDouble>& pinner() const noexcept { return pinner_; }

  /// The bytes behind an address that allocate() gave.
  [[nodiscard]] std::byte* behind(const std::byte* address) const { return memory_->find(address); }

  [[nodiscard]] DeviceInfo info() const override {
    DeviceInfo info = inner().info();
    info.name = "hidden";
    info.kind = DeviceKind::kCuda;
    info.ordinal = ordinal_;
    info.capabilities.host_accessible = false;
    info.capabilities.copies_pageable_host = false;
    return info;
  }
  [[nodiscard]] Result<DeviceMemory> allocate(uint64_t size_bytes, uint64_t alignment) override {
    KVBM_ASSIGN_OR_RETURN(DeviceMemory bytes, inner().allocate(size_bytes, alignment));
    return memory_->hide(std::move(bytes), memory_);
  }
  Status copy(StreamRef stream, StridedCopyBatch batch) override {
    std::vector<StridedPiece> pieces(batch.pieces.begin(), batch.pieces.end());
    for (StridedPiece& piece : pieces) {
      if (piece.bytes == 0 || piece.src == nullptr || piece.dst == nullptr) continue;
      KVBM_ASSIGN_OR_RETURN(piece.src, reach(piece.src));
      KVBM_ASSIGN_OR_RETURN(piece.dst, reach(piece.dst));
    }
    batch.pieces = std::move(pieces);
    return inner().copy(stream, std::move(batch));
  }
  Status pattern(StreamRef stream, PatternBatch batch) override {
    for (PatternPiece& piece : batch.pieces) {
      if (piece.bytes == 0 || piece.data == nullptr) continue;
      KVBM_ASSIGN_OR_RETURN(piece.data, reach(piece.data));
    }
    return inner().pattern(stream, std::move(batch));
  }
  Status checksum(StreamRef stream, ChecksumBatch batch) override {
    for (ChecksumPiece& piece : batch.pieces) {
      if (piece.bytes == 0 || piece.data == nullptr) continue;
      KVBM_ASSIGN_OR_RETURN(piece.data, reach(piece.data));
    }
    return inner().checksum(stream, std::move(batch));
  }

 private:
  class Memory final : public DeviceAllocator {
   public:
    [[nodiscard]] DeviceMemory hide(DeviceMemory bytes, std::shared_ptr<DeviceAllocator> self) {
      // As aligned as what is behind it.
      const uint64_t size = bytes.size_bytes();
      const uint64_t span = 2 * kMostAlignment + size;
      void* const start = ::mmap(nullptr, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (start == MAP_FAILED) throw std::bad_alloc();
      const auto floor = reinterpret_cast<uintptr_t>(start) & ~(kMostAlignment - 1);
      const auto within = reinterpret_cast<uintptr_t>(bytes.data()) & (kMostAlignment - 1);
      auto* const shown = reinterpret_cast<std::byte*>(floor + kMostAlignment + within);
      const MutexLock lock(mutex_);
      hidden_.emplace(shown, Hidden{std::move(bytes), start, span});
      return {shown, size, std::move(self)};
    }
    void free(std::byte* data, uint64_t /*size_bytes*/) noexcept override {
      const MutexLock lock(mutex_);
      const auto found = hidden_.find(data);
      ::munmap(found->second.start, found->second.span);
      hidden_.erase(found);
    }
    /// Null if the address is none of the device.
    [[nodiscard]] std::byte* find(const std::byte* address) {
      const MutexLock lock(mutex_);
      const auto after = hidden_.upper_bound(const_cast<std::byte*>(address));
      if (after == hidden_.begin()) return nullptr;
      const auto& [shown, hidden] = *std::prev(after);
      const auto offset = static_cast<uint64_t>(address - shown);
      return offset < hidden.bytes.size_bytes() ? hidden.bytes.data() + offset : nullptr;
    }

   private:
    static constexpr uint64_t kMostAlignment = uint64_t{1} << 21;
    struct Hidden {
      DeviceMemory bytes;
      void* start;
      uint64_t span;
    };
    Mutex mutex_{LockRank::kDevice, "tests.hidden_device", 2};
    std::map<std::byte*, Hidden> hidden_ KVBM_GUARDED_BY(mutex_);
  };

  HiddenDevice(const HiddenDevice& other)
      : WrappedDevice(other.inner()),
        ordinal_(other.ordinal_),
        pinner_(other.pinner_),
        memory_(other.memory_) {}

  [[nodiscard]] Result<std::byte*> reach(const std::byte* address) const {
    if (std::byte* const bytes = memory_->find(address)) return bytes;
    for (const PinnerDouble::Slice& slice : pinner_->pinned()) {
      if (address >= slice.data && address < slice.data + slice.size_bytes) {
        return const_cast<std::byte*>(address);
      }
    }
    return make_error(ErrorCode::kInvalidArgument,
                      "the address is neither the device's nor pinned host memory");
  }

  const int32_t ordinal_;
  const std::shared_ptr<PinnerDouble> pinner_ = std::make_shared<PinnerDouble>();
  const std::shared_ptr<Memory> memory_ = std::make_shared<Memory>();
};

}  // namespace kvbm::testing
