// SPDX-License-Identifier: Apache-2.0
// EventTally: how many events of each type each tier had.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "kvbm/events/kv_event.hpp"

namespace kvbm {

struct TierTally {
  uint64_t created = 0;
  uint64_t deleted = 0;
  uint64_t migrated = 0;  ///< into the tier

  /// The blocks that can be found in the tier, if the tally saw every event since it was empty.
  [[nodiscard]] int64_t resident() const noexcept {
    return static_cast<int64_t>(created + migrated - deleted);
  }
  friend bool operator==(const TierTally&, const TierTally&) = default;
};

/// A value; one thread at a time.
class EventTally {
 public:
  /// An event of no known tier or type counts nowhere.
  void add(const KvEvent& event) noexcept;
  void add(std::span<const KvEvent> events) noexcept {
    for (const KvEvent& event : events) add(event);
  }

  /// Contract: a known tier.
  [[nodiscard]] const TierTally& of(TierId tier) const;
  /// All tiers together.
  [[nodiscard]] TierTally total() const noexcept;

  friend bool operator==(const EventTally&, const EventTally&) = default;

 private:
  std::array<TierTally, kNumTiers> tiers_;
};

}  // namespace kvbm
