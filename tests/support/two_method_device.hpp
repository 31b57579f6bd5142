// SPDX-License-Identifier: Apache-2.0
// TwoMethodDevice: a host device that says it copies by kernels too, and through a ring if asked.
#pragma once

#include <atomic>
#include <cstdint>
#include <string_view>
#include <utility>

#include "kvbm/device/block_image.hpp"
#include "kvbm/device/device.hpp"

namespace kvbm::testing {

/// The host device, with other methods that are the first.
class TwoMethodDevice final : public Device {
 public:
  explicit TwoMethodDevice(Device& inner, uint64_t its_ring_block_bytes = 0)
      : ring_block_bytes(its_ring_block_bytes), inner_(inner) {}

  std::atomic<int> engine_copies = 0;
  std::atomic<int> kernel_copies = 0;
  std::atomic<int> ring_copies = 0;
  std::atomic<uint32_t> last_max_ctas = 0;
  std::atomic<uint64_t> last_pace = 0;
  uint64_t largest_allocation = UINT64_MAX;  ///< beyond it there is no memory
  uint64_t ring_block_bytes;                 ///< 0: there is no ring

  [[nodiscard]] DeviceInfo info() const override {
    DeviceInfo info = inner_.info();
    info.capabilities.kernel_copies = true;
    info.capabilities.ring_copies = ring_block_bytes > 0;
    info.capabilities.ring_block_bytes = ring_block_bytes;
    return info;
  }
  [[nodiscard]] Result<StreamRef> create_stream(std::string_view name) override {
    return inner_.create_stream(name);
  }
  Status destroy_stream(StreamRef stream) override { return inner_.destroy_stream(stream); }
  [[nodiscard]] Result<DeviceMemory> allocate(uint64_t size_bytes, uint64_t alignment) override {
    if (size_bytes > largest_allocation) return make_error(ErrorCode::kExhausted, "full");
    return inner_.allocate(size_bytes, alignment);
  }
  Status copy(StreamRef stream, StridedCopyBatch batch) override {
    if (batch.method == CopyMethod::kRing) {
      const auto is_taken = [&](CopySide side) {
        const auto image = find_image(batch.pieces, side);
        return image && image->bytes <= ring_block_bytes;
      };
      if (!is_taken(CopySide::kSource) && !is_taken(CopySide::kDestination)) {
        return make_error(ErrorCode::kInvalidArgument, "nothing for a ring");
      }
      ++ring_copies;
    } else {
      ++(batch.method == CopyMethod::kKernel ? kernel_copies : engine_copies);
    }
    last_max_ctas = std::exchange(batch.max_ctas, 0);
    last_pace = std::exchange(batch.max_bytes_per_second, 0);
    batch.method = CopyMethod::kEngine;
    return inner_.copy(stream, std::move(batch));
  }
  Status pattern(StreamRef stream, PatternBatch batch) override {
    return inner_.pattern(stream, std::move(batch));
  }
  Status checksum(StreamRef stream, ChecksumBatch batch) override {
    return inner_.checksum(stream, std::move(batch));
  }
  Status launch(StreamRef stream, StreamTask task) override {
    return inner_.launch(stream, std::move(task));
  }
  [[nodiscard]] Event record(StreamRef stream) override { return inner_.record(stream); }
  Status wait(StreamRef stream, const Event& event) override { return inner_.wait(stream, event); }
  [[nodiscard]] Executor& executor() const noexcept override { return inner_.executor(); }

 private:
  Device& inner_;
};

}  // namespace kvbm::testing
