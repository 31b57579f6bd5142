// SPDX-License-Identifier: Apache-2.0
// Every EventSink of this room, and the lossy one when it loses nothing, keeps the contract.
#include "kvbm/events/event_sink.hpp"

#include <optional>
#include <vector>

#include "kvbm/events/counting_sink.hpp"
#include "kvbm/events/recording_sink.hpp"

#include "tests/contract/event_sink_contract.hpp"
#include "tests/support/lossy_event_sink.hpp"

namespace kvbm::testing {
namespace {

class NullHarness {
 public:
  EventSink& sink() { return sink_; }
  std::optional<EventTally> tally() { return std::nullopt; }
  std::optional<std::vector<KvEvent>> events() { return std::nullopt; }

 private:
  NullSink sink_;
};

class CountingHarness {
 public:
  EventSink& sink() { return sink_; }
  std::optional<EventTally> tally() { return sink_.tally(); }
  std::optional<std::vector<KvEvent>> events() { return std::nullopt; }

 private:
  CountingSink sink_;
};

template <size_t kCapacity>
class RecordingHarness {
 public:
  EventSink& sink() { return sink_; }
  std::optional<EventTally> tally() { return sink_.tally(); }
  std::optional<std::vector<KvEvent>> events() { return sink_.events(); }

 private:
  RecordingSink sink_{kCapacity == 0 ? std::optional<size_t>() : kCapacity};
};

class LossyHarness {
 public:
  EventSink& sink() { return sink_; }
  std::optional<EventTally> tally() { return recording_.tally(); }
  std::optional<std::vector<KvEvent>> events() { return recording_.events(); }

 private:
  RecordingSink recording_;
  LossyEventSink sink_{recording_, 0, 1};
};

using Harnesses = ::testing::Types<NullHarness, CountingHarness, RecordingHarness<10000>,
                                   RecordingHarness<0>, LossyHarness>;
INSTANTIATE_TYPED_TEST_SUITE_P(Events, EventSinkContract, Harnesses);

TEST(LossyEventSink, LosesWholeBatchesAndCountsTheirEvents) {
  RecordingSink kept;
  LossyEventSink lossy(kept, 0.5, 1);
  for (uint64_t batch = 0; batch < 100; ++batch) lossy.publish(sample_events(batch * 3, 3));
  EXPECT_GT(lossy.dropped(), 90U);
  EXPECT_LT(lossy.dropped(), 210U);
  EXPECT_EQ(lossy.dropped() + kept.size(), 300U);
  EXPECT_EQ(kept.size() % 3, 0U);
}

}  // namespace
}  // namespace kvbm::testing
