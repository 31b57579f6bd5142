// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/ready_plan.hpp"

#include <algorithm>
#include <utility>

namespace kvbm::internal {

PlanCache::Plan PlanCache::find(const PlanKey& key) {
  const auto found = plans_.find(key);
  if (found == plans_.end()) return nullptr;
  found->second.last_use = ++num_uses_;
  return found->second.plan;
}

PlanCache::Plan PlanCache::keep(const PlanKey& key, Plan plan, uint64_t generation) {
  if (generation != generation_) return nullptr;
  Plan last;
  if (plans_.size() == most_ && !plans_.contains(key)) {
    const auto oldest = std::ranges::min_element(
        plans_, {}, [](const auto& entry) { return entry.second.last_use; });
    last = std::move(oldest->second.plan);
    plans_.erase(oldest);
  }
  plans_.insert_or_assign(key, Entry{.plan = std::move(plan), .last_use = ++num_uses_});
  return last;
}

template <class Goes>
std::vector<PlanCache::Plan> PlanCache::forget_if(Goes&& goes) {
  ++generation_;
  std::vector<Plan> gone;
  gone.reserve(plans_.size());
  std::erase_if(plans_, [&](auto& entry) {
    if (!goes(entry.first)) return false;
    gone.push_back(std::move(entry.second.plan));
    return true;
  });
  return gone;
}

std::vector<PlanCache::Plan> PlanCache::forget(LayoutHandle handle) {
  return forget_if([&](const PlanKey& key) { return key.src == handle || key.dst == handle; });
}

std::vector<PlanCache::Plan> PlanCache::forget(WorkerId worker) {
  return forget_if(
      [&](const PlanKey& key) { return key.src.worker == worker || key.dst.worker == worker; });
}

size_t PlanCache::Hash::operator()(const PlanKey& key) const noexcept {
  // Formats and heads seldom tell plans of one pair of layouts apart.
  const uint64_t layers =
      key.layers ? uint64_t{key.layers->first.value()} << 32 | key.layers->count : UINT64_MAX;
  uint64_t hash = 0;
  for (const uint64_t part :
       {key.src.low(), key.src.high(), key.dst.low(), key.dst.high(), layers}) {
    // 2^64 / the golden ratio: the high bits of the product depend on all of `part`.
    hash = (hash ^ part) * 0x9e37'79b9'7f4a'7c15;
    hash ^= hash >> 32;
  }
  return hash;
}

}  // namespace kvbm::internal
