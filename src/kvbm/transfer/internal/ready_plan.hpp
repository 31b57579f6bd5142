// SPDX-License-Identifier: Apache-2.0
// ReadyPlan: what of a transfer is the same whatever its blocks are; PlanCache keeps those made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "kvbm/base/ids.hpp"
#include "kvbm/device/strided_copy.hpp"
#include "kvbm/layout/kv_block_layout.hpp"
#include "kvbm/layout/layout_config.hpp"
#include "kvbm/layout/layout_view.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/transfer/layout_handle.hpp"
#include "kvbm/transfer/transfer_plan.hpp"
#include "kvbm/transfer/transfer_strategy.hpp"

namespace kvbm::internal {

/// A request that nothing is wrong with, but for its blocks and what comes with each call.
/// Ownership: keeps the layouts. Threads: immutable.
struct ReadyPlan {
  std::shared_ptr<const PhysicalLayout> src;
  std::shared_ptr<const PhysicalLayout> dst;
  TransferEnd src_end;
  TransferEnd dst_end;
  LayoutView from;  ///< of src
  LayoutView to;    ///< of dst
  TransferPlan plan;
  TransferStrategy strategy;
  PieceList pieces = {};  ///< with addresses; of a strategy that is one copy
};

/// What a ready plan follows from, beside what a manager never changes.
struct PlanKey {
  LayoutHandle src;
  LayoutHandle dst;
  std::optional<LayerRange> layers = std::nullopt;
  std::optional<KvBlockLayout> src_format = std::nullopt;
  std::optional<KvBlockLayout> dst_format = std::nullopt;
  std::optional<HeadRange> src_heads = std::nullopt;
  std::optional<HeadRange> dst_heads = std::nullopt;

  friend bool operator==(const PlanKey&, const PlanKey&) = default;
};

/// The plans used last. What a change makes wrong is forgotten with it, under the same lock; a plan
/// that was begun before and is ready after it, is not kept.
/// Threads: one thread at a time.
class PlanCache {
 public:
  using Plan = std::shared_ptr<const ReadyPlan>;

  explicit PlanCache(size_t most) : most_(most) {}

  /// Null if it is not there.
  [[nodiscard]] Plan find(const PlanKey& key);

  /// Changes whenever something was forgotten: to be read before what a plan follows from is.
  [[nodiscard]] uint64_t generation() const noexcept { return generation_; }

  // What falls out is given to the caller, to be released without a lock: a plan may be the last
  // to keep a layout.

  /// Keeps a plan that was begun at `generation`; the one that was not used for the longest time
  /// makes room.
  [[nodiscard]] Plan keep(const PlanKey& key, Plan plan, uint64_t generation);
  /// All that have the layout on a side.
  [[nodiscard]] std::vector<Plan> forget(LayoutHandle handle);
  /// All that have a layout of the worker on a side.
  [[nodiscard]] std::vector<Plan> forget(WorkerId worker);

 private:
  struct Hash {
    [[nodiscard]] size_t operator()(const PlanKey& key) const noexcept;
  };
  struct Entry {
    Plan plan;
    uint64_t last_use = 0;
  };

  template <class Goes>
  [[nodiscard]] std::vector<Plan> forget_if(Goes&& goes);

  const size_t most_;
  uint64_t generation_ = 0;
  uint64_t num_uses_ = 0;
  std::unordered_map<PlanKey, Entry, Hash> plans_;
};

}  // namespace kvbm::internal
