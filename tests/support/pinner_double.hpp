// SPDX-License-Identifier: Apache-2.0
// PinnerDouble: a HostPinner without a device, which keeps a list of what is pinned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <future>
#include <limits>
#include <optional>
#include <vector>

#include "kvbm/base/mutex.hpp"
#include "kvbm/memory/host_pinner.hpp"

namespace kvbm::testing {

/// Threads: any thread; the public members are set before the first call.
class PinnerDouble final : public HostPinner {
 public:
  struct Slice {
    std::byte* data;
    uint64_t size_bytes;
    friend bool operator==(const Slice&, const Slice&) = default;
  };

  Status pin(std::byte* data, uint64_t size_bytes) override {
    {
      const MutexLock lock(mutex_);
      if (pinned_.size() != refuse_from) {
        pinned_.push_back({data, size_bytes});
        return {};
      }
    }
    if (refuse_after.valid()) refuse_after.wait();
    return make_error(ErrorCode::kDevice, "refused by the test");
  }
  void unpin(std::byte* data, uint64_t size_bytes) noexcept override {
    const MutexLock lock(mutex_);
    std::erase(pinned_, Slice{data, size_bytes});
  }
  [[nodiscard]] std::optional<uint32_t> numa_node() const override { return node; }

  [[nodiscard]] std::vector<Slice> pinned() const {
    const MutexLock lock(mutex_);
    return pinned_;
  }

  size_t refuse_from = std::numeric_limits<size_t>::max();  ///< this many slices are pinned already
  std::shared_future<void> refuse_after;  ///< not before this is ready; none: at once
  std::optional<uint32_t> node = std::nullopt;

 private:
  mutable Mutex mutex_{LockRank::kDevice, "tests.pinner"};
  std::vector<Slice> pinned_ KVBM_GUARDED_BY(mutex_);
};

}  // namespace kvbm::testing
