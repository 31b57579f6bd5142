// SPDX-License-Identifier: Apache-2.0
// ProcessBound: what has threads or locks and must not be touched in a forked child.
#pragma once

#include <unistd.h>

#include <memory>
#include <utility>

namespace kvbm {

/// Owns a T of the process that made it. A child of a fork has the bytes and neither the threads
/// nor a sound state of the locks: there the T is left alone, and never destroyed.
/// Threads: as T.
template <class T>
class ProcessBound {
 public:
  ProcessBound() = default;
  explicit ProcessBound(std::unique_ptr<T> value) : value_(std::move(value)), process_(getpid()) {}
  ProcessBound(ProcessBound&&) noexcept = default;
  ProcessBound& operator=(ProcessBound&& other) noexcept {
    ProcessBound(std::move(other)).swap(*this);
    return *this;
  }
  ~ProcessBound() {
    if (value_ && !is_here()) (void)value_.release();
  }

  /// Requires: is_here().
  void reset() noexcept { value_.reset(); }
  [[nodiscard]] bool has_value() const noexcept { return value_ != nullptr; }
  [[nodiscard]] bool is_here() const noexcept { return process_ == getpid(); }
  [[nodiscard]] pid_t process() const noexcept { return process_; }
  [[nodiscard]] T& operator*() const noexcept { return *value_; }
  [[nodiscard]] T* operator->() const noexcept { return value_.get(); }

 private:
  void swap(ProcessBound& other) noexcept {
    std::swap(value_, other.value_);
    std::swap(process_, other.process_);
  }

  std::unique_ptr<T> value_;
  pid_t process_ = 0;
};

}  // namespace kvbm
