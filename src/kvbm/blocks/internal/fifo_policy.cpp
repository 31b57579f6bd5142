// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "kvbm/blocks/internal/eviction_policy.hpp"
#include "kvbm/blocks/internal/tick_heap.hpp"

namespace kvbm::internal {
namespace {

/// Idle blocks by the tick of their registration. Blocks become idle in any order, hence the heap.
class FifoPolicy final : public EvictionPolicy {
 public:
  explicit FifoPolicy(uint32_t num_blocks)
      : registered_(num_blocks),
        positions_(num_blocks),
        heap_(num_blocks, Moved{positions_.data()}) {}

  void on_registered(uint32_t block, uint64_t tick) override { registered_[block] = tick; }
  void insert(uint32_t block, uint64_t /*tick*/, bool /*has_child*/) override {
    heap_.push({registered_[block], block});
  }
  void erase(uint32_t block) override { heap_.erase(positions_[block]); }
  void touch(uint32_t /*block*/, uint64_t /*tick*/) override {}
  [[nodiscard]] uint32_t victim() const override { return heap_.top().block; }

  void prefetch(uint32_t block) const noexcept override {
    __builtin_prefetch(&positions_[block], 1);
  }
  void order(const ChainView& /*chains*/, size_t limit, std::vector<uint32_t>& out) const override {
    std::vector<Heap::Item> items(heap_.items().begin(), heap_.items().end());
    const size_t count = std::min(limit, items.size());
    std::partial_sort(items.begin(), items.begin() + static_cast<std::ptrdiff_t>(count),
                      items.end(),
                      [](const Heap::Item& a, const Heap::Item& b) { return a.tick < b.tick; });
    for (size_t i = 0; i < count; ++i) out.push_back(items[i].block);
  }
  [[nodiscard]] size_t memory_bytes() const override {
    return registered_.capacity() * sizeof(uint64_t) + positions_.capacity() * sizeof(uint32_t) +
           heap_.memory_bytes();
  }

 private:
  struct Moved {
    uint32_t* positions;
    void operator()(uint32_t block, uint32_t position) const { positions[block] = position; }
  };
  using Heap = TickHeap<Moved>;

  std::vector<uint64_t> registered_;
  std::vector<uint32_t> positions_;  // of idle blocks, in the heap
  Heap heap_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_fifo_policy(uint32_t num_blocks) {
  return std::make_unique<FifoPolicy>(num_blocks);
}

}  // namespace kvbm::internal
