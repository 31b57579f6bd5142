// SPDX-License-Identifier: Apache-2.0
// EvictionPolicy: the idle blocks of one pool, in the order in which they go. One source file a
// policy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "kvbm/blocks/eviction_policy.hpp"
#include "kvbm/blocks/retention.hpp"

namespace kvbm::internal {

/// No block, no node.
inline constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();

/// What a policy may ask about the chains of its pool.
class ChainView {
 public:
  virtual ~ChainView() = default;
  /// The block of the direct parent in the same tier, or kNone.
  [[nodiscard]] virtual uint32_t parent_of(uint32_t block) const = 0;
  /// Direct children in the same tier.
  [[nodiscard]] virtual uint32_t num_children(uint32_t block) const = 0;
};

/// Blocks are numbers below the `num_blocks` given at creation, ticks only grow. Nothing here
/// allocates after creation, except order().
/// Threads: one thread at a time.
class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;

  /// A block became findable (it is held, so not idle yet).
  virtual void on_registered(uint32_t /*block*/, uint64_t /*tick*/) {}
  /// A block became idle. `has_child`: it has a direct child in the same tier.
  virtual void insert(uint32_t block, uint64_t tick, bool has_child) = 0;
  /// An idle block is held again, or gone.
  virtual void erase(uint32_t block) = 0;
  /// An idle block was used without being held.
  virtual void touch(uint32_t block, uint64_t tick) = 0;
  /// An idle block got its first child in the same tier, or lost its last.
  virtual void set_has_child(uint32_t /*block*/, bool /*has_child*/) {}
  /// The next block to go; it stays in. Requires: there is an idle block.
  [[nodiscard]] virtual uint32_t victim() const = 0;
  /// The caller is about to insert or erase this block.
  virtual void prefetch(uint32_t block) const noexcept = 0;
  /// Appends the next `limit` victims to `out`, as if each were erased and gone.
  virtual void order(const ChainView& chains, size_t limit, std::vector<uint32_t>& out) const = 0;
  /// Written so far.
  [[nodiscard]] virtual size_t memory_bytes() const = 0;
};

[[nodiscard]] std::unique_ptr<EvictionPolicy> make_lineage_policy(uint32_t num_blocks);
[[nodiscard]] std::unique_ptr<EvictionPolicy> make_lru_policy(uint32_t num_blocks);
[[nodiscard]] std::unique_ptr<EvictionPolicy> make_fifo_policy(uint32_t num_blocks);

/// The policy of a pool: kLineage is leaf-first only where a chain is needed from its root.
[[nodiscard]] std::unique_ptr<EvictionPolicy> make_policy(PolicyKind kind, Retention retention,
                                                          uint32_t num_blocks);

}  // namespace kvbm::internal
