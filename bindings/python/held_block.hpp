// SPDX-License-Identifier: Apache-2.0
// A block manager as Python's objects share it, and a block of it that one of them holds.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "kvbm/events/recording_sink.hpp"
#include "kvbm/runtime/block_manager.hpp"

#include "bindings/python/errors.hpp"
#include "bindings/python/live_objects.hpp"
#include "bindings/python/process_bound.hpp"
#include "bindings/python/waiting.hpp"

namespace kvbm {

/// A manager that several Python objects and tensors keep alive. Calls from several threads take
/// turns; a call that waits lets others in between its slices.
/// Threads: any thread; use() and until() with the GIL, which they let go of.
class SharedManager {
 public:
  /// `events`: what the manager publishes to; null: nothing.
  SharedManager(std::unique_ptr<BlockManager> manager, nanobind::dlpack::dtype dtype,
                std::unique_ptr<RecordingSink> events)
      : dtype_(dtype), events_(std::move(events)), manager_(std::move(manager)) {}
  SharedManager(const SharedManager&) = delete;
  SharedManager& operator=(const SharedManager&) = delete;

  /// Raises kvbm.UnsupportedError in a forked child.
  void check_process() const;
  /// A call that does not wait for copies.
  template <class Call>
  auto use(Call&& call) {
    check_process();
    const nanobind::gil_scoped_release released;
    ++num_callers_;
    const std::scoped_lock turn(turn_);
    --num_callers_;
    take_forgotten();
    return call(*manager_);
  }
  /// Calls `step(manager, slice_end)` until it returns true; see wait_in_slices.
  template <class Step>
  [[nodiscard]] bool until(TimePoint deadline, Step&& step) {
    check_process();
    return wait_in_slices(deadline, [&](TimePoint slice_end) {
      // Who comes back at once would take the turn before those who wait for it are awake.
      while (num_callers_ > 0 && now() < slice_end) std::this_thread::yield();
      const std::unique_lock turn(turn_, slice_end);
      if (!turn.owns_lock()) return false;
      take_forgotten();
      return step(*manager_, slice_end);
    });
  }
  /// For what does not change: configuration and layouts.
  [[nodiscard]] const BlockManager& fixed() const noexcept { return *manager_; }
  /// Null if none are kept.
  [[nodiscard]] RecordingSink* events() const noexcept { return events_.get(); }
  [[nodiscard]] bool is_here() const noexcept { return manager_.is_here(); }
  [[nodiscard]] nanobind::dlpack::dtype dtype() const noexcept { return dtype_; }

  /// Takes effect with the next call. Threads: any thread.
  void forget(OnboardingId id) {
    const std::scoped_lock lock(forgotten_mutex_);
    forgotten_.push_back(id);
  }

 private:
  void take_forgotten() {
    std::vector<OnboardingId> ids;
    {
      const std::scoped_lock lock(forgotten_mutex_);
      ids.swap(forgotten_);
    }
    for (const OnboardingId id : ids) manager_->forget_onboard(id);
  }

  const Alive alive_{live_objects().managers};
  const nanobind::dlpack::dtype dtype_;
  std::atomic<uint32_t> num_callers_{0};  // that wait for their turn in use()
  std::timed_mutex turn_;  // not a Mutex: it is waited for with a deadline, and held over calls
  std::mutex forgotten_mutex_;
  std::vector<OnboardingId> forgotten_;
  const std::unique_ptr<RecordingSink> events_;
  ProcessBound<BlockManager> manager_;
};

/// A block that Python's objects and tensors share. Dropped last, it goes back to its manager.
/// Threads: as the comments at its members say.
struct HeldBlock {
  using Guard = std::variant<MutableBlock, ImmutableBlock>;

  HeldBlock(std::shared_ptr<SharedManager> the_manager, Guard the_guard, uint32_t the_group)
      : manager(std::move(the_manager)),
        group(the_group),
        is_mutable(std::holds_alternative<MutableBlock>(the_guard)),
        block(std::visit([](const auto& held) { return held.block_id(); }, the_guard)),
        guard(std::make_unique<Guard>(std::move(the_guard))) {}

  const Alive alive{live_objects().blocks};
  const std::shared_ptr<SharedManager> manager;
  const uint32_t group;
  const bool is_mutable;
  const BlockId block;
  /// Whoever can still write through a tensor. Threads: any thread.
  std::atomic<uint32_t> num_writers{0};
  bool may_be_written = false;  // copies that read the slot before have ended; with the GIL
  ProcessBound<Guard> guard;    // with the GIL, until it is destroyed
};

}  // namespace kvbm
