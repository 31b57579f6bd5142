// SPDX-License-Identifier: Apache-2.0
// RunOrDrop: a task that notices when it is destroyed instead of run.
#pragma once

#include <optional>
#include <utility>

namespace kvbm::internal {

enum class TaskEnd { kRun, kDropped };

/// Calls `end(TaskEnd)` exactly once. `F` is nothrow movable and must not throw when it is dropped.
/// Threads: one thread at a time.
template <class F>
class RunOrDrop {
 public:
  explicit RunOrDrop(F end) : end_(std::move(end)) {}
  RunOrDrop(RunOrDrop&& other) noexcept : end_(std::move(other.end_)) { other.end_.reset(); }
  RunOrDrop& operator=(RunOrDrop&&) = delete;
  RunOrDrop(const RunOrDrop&) = delete;
  RunOrDrop& operator=(const RunOrDrop&) = delete;
  ~RunOrDrop() { call(TaskEnd::kDropped); }

  void operator()() { call(TaskEnd::kRun); }

 private:
  void call(TaskEnd how) {
    if (!end_) return;
    F end = std::move(*end_);
    end_.reset();
    end(how);
  }

  std::optional<F> end_;
};

}  // namespace kvbm::internal
