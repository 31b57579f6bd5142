// SPDX-License-Identifier: Apache-2.0
// FaultyDevice: a device whose copies fail now and then, as a seed says.
#pragma once

#include <atomic>
#include <cstdint>
#include <string_view>
#include <utility>

#include "kvbm/base/mutex.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/device/device.hpp"

namespace kvbm::testing {

struct DeviceFaults {
  uint64_t seed = 1;
  double copy_fails =
      0;  ///< the chance that a copy moves nothing and fails as kDevice, in stream order
  double copy_refused = 0;  ///< the chance that the call itself fails as kExhausted
};

/// Everything else is the inner device's.
/// Ownership: borrows the inner device.
/// Threads: as the inner device.
class FaultyDevice final : public Device {
 public:
  FaultyDevice(Device& inner, DeviceFaults faults)
      : inner_(inner), faults_(faults), random_(faults.seed) {}

  [[nodiscard]] uint64_t num_faults() const noexcept { return num_faults_; }

  [[nodiscard]] DeviceInfo info() const override { return inner_.info(); }
  [[nodiscard]] Result<StreamRef> create_stream(std::string_view name) override {
    return inner_.create_stream(name);
  }
  Status destroy_stream(StreamRef stream) override { return inner_.destroy_stream(stream); }
  [[nodiscard]] Result<DeviceMemory> allocate(uint64_t size_bytes, uint64_t alignment) override {
    return inner_.allocate(size_bytes, alignment);
  }
  Status copy(StreamRef stream, StridedCopyBatch batch) override {
    if (happens(faults_.copy_refused)) {
      return make_error(ErrorCode::kExhausted, "injected: the device takes no copy now");
    }
    if (happens(faults_.copy_fails)) {
      KVBM_TRY(planned_bytes(batch));
      return inner_.launch(stream, []() -> Status {
        return make_error(ErrorCode::kDevice, "injected: the copy failed");
      });
    }
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
  bool happens(double chance) {
    const MutexLock lock(mutex_);
    if (!random_.chance(chance)) return false;
    ++num_faults_;
    return true;
  }

  Device& inner_;
  const DeviceFaults faults_;
  Mutex mutex_{LockRank::kDevice, "tests.faulty_device"};
  Random random_ KVBM_GUARDED_BY(mutex_);
  std::atomic<uint64_t> num_faults_{0};
};

}  // namespace kvbm::testing
