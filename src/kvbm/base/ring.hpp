// SPDX-License-Identifier: Apache-2.0
// Ring: a queue that keeps its memory.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace kvbm {

/// First in, first out; grows, never shrinks, so a queue of steady length allocates nothing.
/// Requires: T is default constructible; front() and pop() of one that is not empty.
/// Threads: one thread at a time.
template <class T>
class Ring {
 public:
  [[nodiscard]] bool empty() const noexcept { return count_ == 0; }
  [[nodiscard]] size_t size() const noexcept { return count_; }
  [[nodiscard]] T& front() noexcept { return slots_[first_]; }
  /// The i-th oldest.
  [[nodiscard]] T& operator[](size_t i) noexcept { return slots_[(first_ + i) % slots_.size()]; }

  /// So many more need no memory afterwards, until they are there.
  void make_room(size_t more) {
    while (slots_.size() - count_ < more) grow();
  }
  /// Where there is no memory for one more, `value` is untouched.
  void push(T&& value) {
    make_room(1);
    slots_[(first_ + count_) % slots_.size()] = std::move(value);
    ++count_;
  }
  [[nodiscard]] T pop() {
    T value = std::exchange(slots_[first_], T());
    first_ = (first_ + 1) % slots_.size();
    --count_;
    return value;
  }

 private:
  void grow() {
    std::vector<T> larger(slots_.empty() ? 8 : 2 * slots_.size());
    for (size_t i = 0; i < count_; ++i) larger[i] = std::move((*this)[i]);
    slots_.swap(larger);
    first_ = 0;
  }

  std::vector<T> slots_;
  size_t first_ = 0;
  size_t count_ = 0;
};

}  // namespace kvbm
