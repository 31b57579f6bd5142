// SPDX-License-Identifier: Apache-2.0
#include "kvbm/events/kv_event.hpp"

#include <sstream>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/allocation_meter.hpp"

namespace kvbm {
namespace {

std::string text_of(const KvEvent& event) {
  std::ostringstream out;
  out << event;
  return out.str();
}

TEST(KvEvent, AllocatesNothingWithoutMetadata) {
  std::vector<KvEvent> events;
  events.reserve(100);
  const testing::AllocationMeter meter;
  for (uint64_t i = 0; i < 100; ++i) {
    KvEvent event;
    event.block_id = i;
    events.push_back(event);
  }
  const KvEvent copy = events.back();
  EXPECT_EQ(meter.count(), 0U);
  EXPECT_EQ(copy.block_id, 99U);
}

TEST(KvEvent, ReadsAsOneLine) {
  KvEvent event;
  event.block_id = 5;
  event.worker_id = WorkerId(2);
  event.timestamp = WallTime(std::chrono::nanoseconds(77));
  EXPECT_EQ(text_of(event), "created " + to_string(event.key) + " in G1, block 5, worker 2, 77 ns");
  event.type = KvEventType::kMigrated;
  event.tier = TierId::kG2;
  event.metadata["model"] = "m";
  EXPECT_EQ(text_of(event), "migrated " + to_string(event.key) +
                                " in G2 from G1, block 5, worker 2, 77 ns, model=m");
}

TEST(KvEvent, EveryTypeHasAName) {
  EXPECT_EQ(to_string(KvEventType::kCreated), "created");
  EXPECT_EQ(to_string(KvEventType::kDeleted), "deleted");
  EXPECT_EQ(to_string(KvEventType::kMigrated), "migrated");
  EXPECT_EQ(to_string(static_cast<KvEventType>(3)), "unknown");
}

TEST(KvEvent, EventsAreEqualWhenAllFieldsAre) {
  const KvEvent event;
  KvEvent other = event;
  EXPECT_EQ(event, other);
  other.metadata["a"] = "b";
  EXPECT_NE(event, other);
  other = event;
  other.from_tier = TierId::kG4;
  EXPECT_NE(event, other);
  other = event;
  other.key.group = GroupId(1);
  EXPECT_NE(event, other);
}

}  // namespace
}  // namespace kvbm
