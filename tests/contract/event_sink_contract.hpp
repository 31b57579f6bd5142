// SPDX-License-Identifier: Apache-2.0
// EventSinkContract: what every EventSink does, as one typed suite.
#pragma once

#include <cstdint>
#include <latch>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/clock.hpp"
#include "kvbm/events/event_sink.hpp"
#include "kvbm/events/event_tally.hpp"

namespace kvbm::testing {

/// An event whose fields all follow from `n`.
inline KvEvent sample_event(uint64_t n) {
  KvEvent event;
  event.type = static_cast<KvEventType>(n % 3);
  event.block_id = n;
  event.worker_id = WorkerId(n / 1000);
  event.timestamp = WallTime(Duration(static_cast<int64_t>(n)));
  event.key.identity = Identity::from_hashes(SequenceHash(n), BlockHash(n), SequenceHash(0), n);
  event.tier = static_cast<TierId>(n % kNumTiers);
  event.from_tier = static_cast<TierId>((n + 1) % kNumTiers);
  if (n % 7 == 0) event.metadata["n"] = std::to_string(n);
  return event;
}

inline std::vector<KvEvent> sample_events(uint64_t first, uint64_t count) {
  std::vector<KvEvent> events;
  for (uint64_t n = first; n < first + count; ++n) events.push_back(sample_event(n));
  return events;
}

inline EventTally tally_of(std::span<const KvEvent> events) {
  EventTally tally;
  tally.add(events);
  return tally;
}

/// A harness is default constructible, has room for 10,000 events, and has
///   EventSink& sink();
///   std::optional<EventTally> tally();                   // what came through; nothing: it does
///   not say std::optional<std::vector<KvEvent>> events();        // the same, in order
template <class Harness>
class EventSinkContract : public ::testing::Test {
 protected:
  [[nodiscard]] EventSink& sink() { return harness_.sink(); }

  void expect_saw(std::span<const KvEvent> events) {
    if (const auto tally = harness_.tally()) {
      EXPECT_EQ(*tally, tally_of(events));
    }
    if (const auto seen = harness_.events()) {
      EXPECT_EQ(*seen, std::vector<KvEvent>(events.begin(), events.end()));
    }
  }

  Harness harness_;
};

TYPED_TEST_SUITE_P(EventSinkContract);

TYPED_TEST_P(EventSinkContract, EventsArriveInTheOrderInWhichTheyArePublished) {
  const std::vector<KvEvent> events = sample_events(0, 100);
  this->sink().publish(std::span(events).first(1));
  this->sink().publish(std::span(events).subspan(1, 60));
  this->sink().publish(std::span(events).subspan(61));
  this->expect_saw(events);
}

TYPED_TEST_P(EventSinkContract, AnEmptyBatchIsNothing) {
  this->sink().publish({});
  this->expect_saw({});
}

TYPED_TEST_P(EventSinkContract, TheEventsAreTheCallersAgainAfterwards) {
  const std::vector<KvEvent> events = sample_events(7, 20);
  {
    std::vector<KvEvent> passed = events;
    this->sink().publish(passed);
    for (KvEvent& event : passed) event = sample_event(1);
  }
  this->expect_saw(events);
}

TYPED_TEST_P(EventSinkContract, ManyThreadsPublishAndNothingIsLostOrTornApart) {
  constexpr uint64_t kThreads = 4;
  constexpr uint64_t kBatches = 5;
  constexpr uint64_t kBatch = 500;
  // Threads seldom meet on a busy machine: several rounds, each with a sink of its own.
  for (int round = 0; round < 10; ++round) {
    TypeParam harness;
    std::latch all_are_there(kThreads);
    std::vector<std::thread> threads;
    for (uint64_t thread = 0; thread < kThreads; ++thread) {
      threads.emplace_back([&harness, &all_are_there, thread] {
        std::vector<std::vector<KvEvent>> batches;
        for (uint64_t batch = 0; batch < kBatches; ++batch) {
          batches.push_back(sample_events((thread * kBatches + batch) * kBatch, kBatch));
        }
        all_are_there.arrive_and_wait();
        for (const std::vector<KvEvent>& batch : batches) harness.sink().publish(batch);
      });
    }
    for (std::thread& thread : threads) thread.join();

    if (const auto tally = harness.tally()) {
      ASSERT_EQ(*tally, tally_of(sample_events(0, kThreads * kBatches * kBatch)));
    }
    const auto seen = harness.events();
    if (!seen) continue;
    ASSERT_EQ(seen->size(), kThreads * kBatches * kBatch);
    std::vector<uint64_t> next(kThreads, 0);
    for (size_t i = 0; i < seen->size(); i += kBatch) {
      const uint64_t first = seen->at(i).block_id;
      const uint64_t thread = first / (kBatches * kBatch);
      ASSERT_EQ(first, (thread * kBatches + next.at(thread)++) * kBatch);
      for (uint64_t j = 0; j < kBatch; ++j) ASSERT_EQ(seen->at(i + j), sample_event(first + j));
    }
  }
}

REGISTER_TYPED_TEST_SUITE_P(EventSinkContract, EventsArriveInTheOrderInWhichTheyArePublished,
                            AnEmptyBatchIsNothing, TheEventsAreTheCallersAgainAfterwards,
                            ManyThreadsPublishAndNothingIsLostOrTornApart);

}  // namespace kvbm::testing
