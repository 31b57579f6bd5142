// SPDX-License-Identifier: Apache-2.0
// OutOfReachDevice: a host device that says that its memory is out of the host's reach, as a GPU
// does.
#pragma once

#include <functional>
#include <utility>

#include "tests/support/wrapped_device.hpp"

namespace kvbm::testing {

/// Ownership: borrows the inner device.
/// Threads: as the inner device; the public members are set before the first call.
class OutOfReachDevice final : public WrappedDevice {
 public:
  explicit OutOfReachDevice(Device& inner, bool copies_pageable_host = true)
      : WrappedDevice(inner), copies_pageable_host_(copies_pageable_host) {}

  /// Told about each copy; its error is the copy's.
  std::function<Status(const StridedCopyBatch&)> on_copy = [](const StridedCopyBatch&) {
    return Status();
  };

  [[nodiscard]] DeviceInfo info() const override {
    DeviceInfo info = inner().info();
    info.capabilities.host_accessible = false;
    info.capabilities.copies_pageable_host = copies_pageable_host_;
    return info;
  }
  Status copy(StreamRef stream, StridedCopyBatch batch) override {
    KVBM_TRY(on_copy(batch));
    return inner().copy(stream, std::move(batch));
  }

 private:
  const bool copies_pageable_host_;
};

}  // namespace kvbm::testing
