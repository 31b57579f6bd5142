// SPDX-License-Identifier: Apache-2.0
#include "kvbm/events/recording_sink.hpp"

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"

#include "tests/contract/event_sink_contract.hpp"
#include "tests/support/allocation_meter.hpp"

namespace kvbm {
namespace {

using testing::sample_event;
using testing::sample_events;
using testing::tally_of;

TEST(RecordingSink, AFullOneKeepsTheNewestAndCountsTheRest) {
  RecordingSink sink(10);
  sink.publish(sample_events(0, 8));
  EXPECT_EQ(sink.dropped(), 0U);
  sink.publish(sample_events(8, 17));
  EXPECT_EQ(sink.size(), 10U);
  EXPECT_EQ(sink.dropped(), 15U);
  EXPECT_EQ(sink.events(), sample_events(15, 10));
}

TEST(RecordingSink, ABatchAboveTheCapacityLeavesItsEnd) {
  RecordingSink sink(3);
  sink.publish(sample_events(0, 100));
  EXPECT_EQ(sink.events(), sample_events(97, 3));
  EXPECT_EQ(sink.dropped(), 97U);
}

TEST(RecordingSink, WithoutACapacityNothingIsDropped) {
  RecordingSink sink(std::nullopt);
  sink.publish(sample_events(0, RecordingSink::kDefaultCapacity + 1));
  EXPECT_EQ(sink.size(), RecordingSink::kDefaultCapacity + 1);
  EXPECT_EQ(sink.dropped(), 0U);
}

TEST(RecordingSink, TheDefaultCapacityIsABound) {
  RecordingSink sink;
  sink.publish(sample_events(0, RecordingSink::kDefaultCapacity + 1));
  EXPECT_EQ(sink.size(), RecordingSink::kDefaultCapacity);
  EXPECT_EQ(sink.dropped(), 1U);
}

TEST(RecordingSink, TakeGivesAllAndGoesOnFromEmpty) {
  RecordingSink sink(4);
  sink.publish(sample_events(0, 6));
  EXPECT_EQ(sink.take(), sample_events(2, 4));
  EXPECT_EQ(sink.size(), 0U);
  EXPECT_TRUE(sink.take().empty());
  sink.publish(sample_events(6, 3));
  EXPECT_EQ(sink.events(), sample_events(6, 3));
  sink.publish(sample_events(9, 2));
  EXPECT_EQ(sink.take(), sample_events(7, 4));
  EXPECT_EQ(sink.dropped(), 3U);
}

TEST(RecordingSink, AFilterSelectsByTypeAndByTier) {
  RecordingSink sink;
  sink.publish(sample_events(0, 24));
  EXPECT_EQ(sink.events({.type = KvEventType::kDeleted}).size(), 8U);
  EXPECT_EQ(sink.events({.tier = TierId::kG3}).size(), 6U);
  const std::vector<KvEvent> both =
      sink.events({.type = KvEventType::kDeleted, .tier = TierId::kG3});
  EXPECT_EQ(both, (std::vector<KvEvent>{sample_event(10), sample_event(22)}));
}

TEST(RecordingSink, TheTallyAlsoCountsWhatWasDroppedOrTaken) {
  RecordingSink sink(2);
  sink.publish(sample_events(0, 12));
  (void)sink.take();
  sink.publish(sample_events(12, 1));
  EXPECT_EQ(sink.tally(), tally_of(sample_events(0, 13)));
}

TEST(RecordingSink, AFullOneAllocatesNothingForPlainEvents) {
  RecordingSink sink(64);
  const std::vector<KvEvent> events(64);
  sink.publish(events);
  const testing::AllocationMeter meter;
  for (int i = 0; i < 100; ++i) sink.publish(events);
  EXPECT_EQ(meter.count(), 0U);
}

TEST(RecordingSink, ACapacityOfZeroIsABrokenContract) {
  EXPECT_THROW(RecordingSink(0), ContractViolation);
}

}  // namespace
}  // namespace kvbm
