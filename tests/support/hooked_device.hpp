// SPDX-License-Identifier: Apache-2.0
// HookedDevice: a device whose copies a test can hold back, fail or refuse one by one.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <utility>

#include "tests/support/wrapped_device.hpp"

namespace kvbm::testing {

/// Everything else is the inner device's.
/// Ownership: borrows the inner device. Threads: as the inner device; the hooks are set while
/// nothing runs.
class HookedDevice final : public WrappedDevice {
 public:
  using WrappedDevice::WrappedDevice;

  /// Called before each copy with its number, from 0 since the hook was set; an error refuses the
  /// copy. It may make the stream wait.
  using BeforeCopy = std::function<Status(StreamRef, size_t)>;
  void hook(BeforeCopy before_copy) {
    before_copy_ = std::move(before_copy);
    num_copies_ = 0;
  }
  /// Called with each event that a stream is made to wait for.
  void hook_waits(std::function<void(const Event&)> on_wait) { on_wait_ = std::move(on_wait); }
  [[nodiscard]] size_t num_copies() const noexcept { return num_copies_; }
  [[nodiscard]] size_t num_waits() const noexcept { return num_waits_; }

  Status copy(StreamRef stream, StridedCopyBatch batch) override {
    const size_t number = num_copies_++;
    if (before_copy_) KVBM_TRY(before_copy_(stream, number));
    return inner().copy(stream, std::move(batch));
  }
  Status wait(StreamRef stream, const Event& event) override {
    ++num_waits_;
    if (on_wait_) on_wait_(event);
    return inner().wait(stream, event);
  }

 private:
  BeforeCopy before_copy_;
  std::function<void(const Event&)> on_wait_;
  std::atomic<size_t> num_copies_{0};
  std::atomic<size_t> num_waits_{0};
};

}  // namespace kvbm::testing
