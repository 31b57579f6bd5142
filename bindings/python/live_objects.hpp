// SPDX-License-Identifier: Apache-2.0
// LiveObjects: what this process has not let go of, for tests.
#pragma once

#include <atomic>
#include <cstdint>

namespace kvbm {

/// How many objects of a kind are alive in this process: what a test compares with 0.
struct LiveObjects {
  std::atomic<int64_t> managers{0};
  std::atomic<int64_t> blocks{0};
  std::atomic<int64_t> tensors{0};
  std::atomic<int64_t> hits{0};
  std::atomic<int64_t> onboardings{0};
  std::atomic<int64_t> workers{0};
  std::atomic<int64_t> leaders{0};
  std::atomic<int64_t> layouts{0};
  std::atomic<int64_t> transfer_managers{0};
  std::atomic<int64_t> notifications{0};
};
[[nodiscard]] LiveObjects& live_objects() noexcept;

/// Counts as alive while it lives. Threads: any thread.
class Alive {
 public:
  explicit Alive(std::atomic<int64_t>& count) noexcept : count_(&count) { ++*count_; }
  Alive(Alive&& other) noexcept : Alive(*other.count_) {}
  Alive& operator=(Alive&&) = delete;
  ~Alive() { --*count_; }

 private:
  std::atomic<int64_t>* count_;
};

}  // namespace kvbm
