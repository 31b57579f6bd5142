// SPDX-License-Identifier: Apache-2.0
#include "kvbm/events/event_tally.hpp"

#include "kvbm/base/contract.hpp"

namespace kvbm {

void EventTally::add(const KvEvent& event) noexcept {
  const auto index = static_cast<size_t>(event.tier);
  if (index >= tiers_.size()) return;
  TierTally& tier = tiers_[index];
  switch (event.type) {
    case KvEventType::kCreated:
      ++tier.created;
      break;
    case KvEventType::kDeleted:
      ++tier.deleted;
      break;
    case KvEventType::kMigrated:
      ++tier.migrated;
      break;
  }
}

const TierTally& EventTally::of(TierId tier) const {
  const auto index = static_cast<size_t>(tier);
  KVBM_CONTRACT(index < tiers_.size(), "there are four tiers");
  return tiers_[index];
}

TierTally EventTally::total() const noexcept {
  TierTally sum;
  for (const TierTally& tier : tiers_) {
    sum.created += tier.created;
    sum.deleted += tier.deleted;
    sum.migrated += tier.migrated;
  }
  return sum;
}

}  // namespace kvbm
