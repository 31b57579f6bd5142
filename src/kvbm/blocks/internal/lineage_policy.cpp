// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <queue>
#include <unordered_map>

#include "kvbm/blocks/internal/eviction_policy.hpp"
#include "kvbm/blocks/internal/tick_heap.hpp"

namespace kvbm::internal {
namespace {

/// Leaves in a heap by tick; idle blocks with a child in a list, which most blocks join at the end
/// and leave again without the heap ever seeing them.
class LineagePolicy final : public EvictionPolicy {
 public:
  explicit LineagePolicy(uint32_t num_blocks)
      : entries_(size_t{num_blocks} + 1),
        end_(num_blocks),
        leaves_(num_blocks, Moved{entries_.data()}) {
    entries_[end_] = {0, end_, end_};
  }

  void insert(uint32_t block, uint64_t tick, bool has_child) override {
    entries_[block].tick = tick;
    add(block, has_child);
  }

  void erase(uint32_t block) override {
    remove(block);
    entries_[block].next = kAbsent;
  }

  void touch(uint32_t block, uint64_t tick) override {
    Entry& entry = entries_[block];
    entry.tick = tick;
    if (entry.next == kInHeap) {
      leaves_.change_tick(entry.previous, tick);
    } else {
      unlink(block);
      append(block);
    }
  }

  void set_has_child(uint32_t block, bool has_child) override {
    remove(block);
    add(block, has_child);
  }

  [[nodiscard]] uint32_t victim() const override {
    return leaves_.empty() ? entries_[end_].next : leaves_.top().block;
  }

  void prefetch(uint32_t block) const noexcept override { __builtin_prefetch(&entries_[block], 1); }
  void order(const ChainView& chains, size_t limit, std::vector<uint32_t>& out) const override {
    const auto later = [](const Heap::Item& a, const Heap::Item& b) { return a.tick > b.tick; };
    std::priority_queue<Heap::Item, std::vector<Heap::Item>, decltype(later)> leaves(
        later, {leaves_.items().begin(), leaves_.items().end()});
    // Children that are left of blocks that lost some; 0 for a block that is a leaf or gone.
    std::unordered_map<uint32_t, uint32_t> num_children;
    uint32_t interior = entries_[end_].next;
    while (limit > 0) {
      uint32_t block = kNone;
      if (!leaves.empty()) {
        block = leaves.top().block;
        leaves.pop();
      } else {
        while (interior != end_) {
          const auto known = num_children.find(interior);
          if (known == num_children.end() || known->second > 0) break;
          interior = entries_[interior].next;
        }
        if (interior == end_) return;
        block = interior;
        num_children[block] = 0;
        interior = entries_[interior].next;
      }
      out.push_back(block);
      --limit;
      const uint32_t parent = chains.parent_of(block);
      if (parent == kNone) continue;
      const uint32_t next = entries_[parent].next;
      if (next == kAbsent || next == kInHeap) continue;  // held (a leaf has no child that could go)
      const auto [left, first_time] = num_children.try_emplace(parent, 0);
      if (first_time) {
        left->second = chains.num_children(parent);
      } else if (left->second == 0) {
        continue;  // gone before its children
      }
      if (--left->second == 0) leaves.push({entries_[parent].tick, parent});
    }
  }

  [[nodiscard]] size_t memory_bytes() const override {
    return entries_.capacity() * sizeof(Entry) + leaves_.memory_bytes();
  }

 private:
  // Values of Entry::next that are no block.
  static constexpr uint32_t kAbsent = kNone;
  static constexpr uint32_t kInHeap = kNone - 1;

  struct Entry {
    uint64_t tick = 0;
    uint32_t previous = 0;    // in the heap: the position there
    uint32_t next = kAbsent;  // in the heap: kInHeap; not idle: kAbsent
  };
  struct Moved {
    Entry* entries;
    void operator()(uint32_t block, uint32_t position) const { entries[block].previous = position; }
  };
  using Heap = TickHeap<Moved>;

  void add(uint32_t block, bool has_child) {
    if (has_child) {
      append(block);
    } else {
      entries_[block].next = kInHeap;
      leaves_.push({entries_[block].tick, block});
    }
  }
  void remove(uint32_t block) {
    if (entries_[block].next == kInHeap) {
      leaves_.erase(entries_[block].previous);
    } else {
      unlink(block);
    }
  }
  void append(uint32_t block) {
    const uint32_t last = entries_[end_].previous;
    entries_[block].previous = last;
    entries_[block].next = end_;
    entries_[last].next = block;
    entries_[end_].previous = block;
  }
  void unlink(uint32_t block) {
    const Entry& entry = entries_[block];
    entries_[entry.previous].next = entry.next;
    entries_[entry.next].previous = entry.previous;
  }

  std::vector<Entry> entries_;  // one a block, and the list's beginning and end
  uint32_t end_;
  Heap leaves_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_lineage_policy(uint32_t num_blocks) {
  return std::make_unique<LineagePolicy>(num_blocks);
}

}  // namespace kvbm::internal
