// SPDX-License-Identifier: Apache-2.0
// WrappedDevice: passes everything on; doubles override what they change.
#pragma once

#include <optional>
#include <string_view>
#include <utility>

#include "kvbm/device/device.hpp"

namespace kvbm::testing {

/// Ownership: borrows the inner device.
/// Threads: as the inner device.
class WrappedDevice : public Device {
 public:
  explicit WrappedDevice(Device& inner) : inner_(inner) {}

  [[nodiscard]] DeviceInfo info() const override { return inner_.info(); }
  [[nodiscard]] Result<StreamRef> create_stream(std::string_view name) override {
    return inner_.create_stream(name);
  }
  Status destroy_stream(StreamRef stream) override { return inner_.destroy_stream(stream); }
  [[nodiscard]] Result<DeviceMemory> allocate(uint64_t size_bytes, uint64_t alignment) override {
    return inner_.allocate(size_bytes, alignment);
  }
  Status copy(StreamRef stream, StridedCopyBatch batch) override {
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

 protected:
  [[nodiscard]] Device& inner() const noexcept { return inner_; }

 private:
  Device& inner_;
};

}  // namespace kvbm::testing
