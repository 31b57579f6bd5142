// SPDX-License-Identifier: Apache-2.0
#include "kvbm/blocks/internal/eviction_policy.hpp"

namespace kvbm::internal {
namespace {

/// A list in order of ticks: they only grow, so a block always joins at the end.
class LruPolicy final : public EvictionPolicy {
 public:
  explicit LruPolicy(uint32_t num_blocks) : links_(size_t{num_blocks} + 1), end_(num_blocks) {
    links_[end_] = {end_, end_};
  }

  void insert(uint32_t block, uint64_t /*tick*/, bool /*has_child*/) override { append(block); }
  void erase(uint32_t block) override { unlink(block); }
  void touch(uint32_t block, uint64_t /*tick*/) override {
    unlink(block);
    append(block);
  }
  [[nodiscard]] uint32_t victim() const override { return links_[end_].next; }

  void prefetch(uint32_t block) const noexcept override { __builtin_prefetch(&links_[block], 1); }
  void order(const ChainView& /*chains*/, size_t limit, std::vector<uint32_t>& out) const override {
    for (uint32_t block = links_[end_].next; block != end_ && limit > 0;
         block = links_[block].next, --limit) {
      out.push_back(block);
    }
  }
  [[nodiscard]] size_t memory_bytes() const override { return links_.capacity() * sizeof(Link); }

 private:
  struct Link {
    uint32_t previous = 0;
    uint32_t next = 0;
  };

  void append(uint32_t block) {
    const uint32_t last = links_[end_].previous;
    links_[block] = {last, end_};
    links_[last].next = block;
    links_[end_].previous = block;
  }
  void unlink(uint32_t block) {
    const Link link = links_[block];
    links_[link.previous].next = link.next;
    links_[link.next].previous = link.previous;
  }

  std::vector<Link> links_;  // one a block, and the ring's beginning and end
  uint32_t end_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_lru_policy(uint32_t num_blocks) {
  return std::make_unique<LruPolicy>(num_blocks);
}

}  // namespace kvbm::internal
