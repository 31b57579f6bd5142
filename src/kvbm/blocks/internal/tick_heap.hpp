// SPDX-License-Identifier: Apache-2.0
// TickHeap: blocks by tick, smallest first, with removal from anywhere.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace kvbm::internal {

/// A heap with four children a node: shallow, and the children of one lie in one cache line or two.
/// `Moved(block, position)` tells the owner where each block is, which it gives back to change one.
template <class Moved>
class TickHeap {
 public:
  struct Item {
    uint64_t tick;
    uint32_t block;
  };

  TickHeap(size_t capacity, Moved moved) : moved_(std::move(moved)) { items_.reserve(capacity); }

  [[nodiscard]] bool empty() const noexcept { return items_.empty(); }
  [[nodiscard]] size_t size() const noexcept { return items_.size(); }
  [[nodiscard]] const Item& top() const noexcept { return items_.front(); }
  [[nodiscard]] std::span<const Item> items() const noexcept { return items_; }
  /// Written so far.
  [[nodiscard]] size_t memory_bytes() const noexcept { return most_ * sizeof(Item); }

  void push(Item item) {
    items_.push_back(item);
    most_ = std::max(most_, items_.size());
    sift_up(items_.size() - 1, item);
  }

  void erase(uint32_t position) {
    const Item last = items_.back();
    items_.pop_back();
    if (position < items_.size()) place(position, last);
  }

  void change_tick(uint32_t position, uint64_t tick) {
    place(position, Item{tick, items_[position].block});
  }

 private:
  static constexpr size_t kArity = 4;

  /// Puts `item` into the hole at `hole` and moves it to where it belongs.
  void place(size_t hole, Item item) {
    if (hole > 0 && item.tick < items_[(hole - 1) / kArity].tick) {
      sift_up(hole, item);
    } else {
      sift_down(hole, item);
    }
  }

  void sift_up(size_t hole, Item item) {
    while (hole > 0) {
      const size_t parent = (hole - 1) / kArity;
      if (items_[parent].tick <= item.tick) break;
      put(hole, items_[parent]);
      hole = parent;
    }
    put(hole, item);
  }

  void sift_down(size_t hole, Item item) {
    for (;;) {
      const size_t first = hole * kArity + 1;
      if (first >= items_.size()) break;
      const size_t end = std::min(first + kArity, items_.size());
      size_t least = first;
      for (size_t child = first + 1; child < end; ++child) {
        if (items_[child].tick < items_[least].tick) least = child;
      }
      if (items_[least].tick >= item.tick) break;
      put(hole, items_[least]);
      hole = least;
    }
    put(hole, item);
  }

  void put(size_t position, Item item) {
    items_[position] = item;
    moved_(item.block, static_cast<uint32_t>(position));
  }

  std::vector<Item> items_;
  size_t most_ = 0;  // items at any time
  Moved moved_;
};

}  // namespace kvbm::internal
