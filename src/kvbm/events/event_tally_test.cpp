// SPDX-License-Identifier: Apache-2.0
#include "kvbm/events/event_tally.hpp"

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"

namespace kvbm {
namespace {

KvEvent event(KvEventType type, TierId tier, TierId from_tier = TierId::kG1) {
  KvEvent event;
  event.type = type;
  event.tier = tier;
  event.from_tier = from_tier;
  return event;
}

TEST(EventTally, CountsEachTypeInTheTierItHappenedIn) {
  EventTally tally;
  tally.add(event(KvEventType::kCreated, TierId::kG1));
  tally.add(event(KvEventType::kMigrated, TierId::kG2, TierId::kG1));
  tally.add(event(KvEventType::kMigrated, TierId::kG3, TierId::kG2));
  tally.add(event(KvEventType::kDeleted, TierId::kG2));
  EXPECT_EQ(tally.of(TierId::kG1), (TierTally{.created = 1, .deleted = 0, .migrated = 0}));
  EXPECT_EQ(tally.of(TierId::kG2), (TierTally{.created = 0, .deleted = 1, .migrated = 1}));
  EXPECT_EQ(tally.of(TierId::kG3), (TierTally{.created = 0, .deleted = 0, .migrated = 1}));
  EXPECT_EQ(tally.of(TierId::kG4), TierTally{});
  EXPECT_EQ(tally.total(), (TierTally{.created = 1, .deleted = 1, .migrated = 2}));
}

TEST(EventTally, CreatedAndMigratedWithoutDeletedIsResident) {
  EventTally tally;
  const std::vector<KvEvent> events = {event(KvEventType::kCreated, TierId::kG2),
                                       event(KvEventType::kCreated, TierId::kG2),
                                       event(KvEventType::kMigrated, TierId::kG2, TierId::kG3),
                                       event(KvEventType::kDeleted, TierId::kG2)};
  tally.add(events);
  EXPECT_EQ(tally.of(TierId::kG2).resident(), 2);
  // A migration does not say that the block left where it came from.
  EXPECT_EQ(tally.of(TierId::kG3).resident(), 0);
}

TEST(EventTally, MoreDeletedThanSeenIsNegative) {
  EventTally tally;
  tally.add(event(KvEventType::kDeleted, TierId::kG1));
  EXPECT_EQ(tally.of(TierId::kG1).resident(), -1);
}

TEST(EventTally, AnUnknownTierCountsNowhereAndCannotBeAsked) {
  EventTally tally;
  tally.add(event(KvEventType::kCreated, static_cast<TierId>(4)));
  tally.add(event(static_cast<KvEventType>(3), TierId::kG1));
  EXPECT_EQ(tally, EventTally{});
  EXPECT_THROW((void)tally.of(static_cast<TierId>(4)), ContractViolation);
}

}  // namespace
}  // namespace kvbm
