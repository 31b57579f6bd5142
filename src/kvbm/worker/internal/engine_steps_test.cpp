// SPDX-License-Identifier: Apache-2.0
#include "kvbm/worker/internal/engine_steps.hpp"

#include <optional>

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"

namespace kvbm::internal {
namespace {

/// An event that is told from others by its outcome.
Event named(std::string name) {
  return Event::ready(make_error(ErrorCode::kInternal, std::move(name)));
}

/// The names of a point's events; "-": it is still to come.
std::string names_of(const std::optional<EngineSteps::Point>& point) {
  if (!point) return "-";
  std::string names;
  for (const Event& event : *point) names += event.status().error().message();
  return names;
}

class EngineStepsTest : public ::testing::Test {
 protected:
  void run_step(uint64_t id) {
    steps_.begin(StepId(id));
    steps_.end(named(std::to_string(id) + ' '));
  }
  [[nodiscard]] std::string end_of(uint64_t step) const {
    return names_of(steps_.find(step, std::nullopt));
  }
  [[nodiscard]] std::string layer_of(uint64_t step, uint16_t layer) const {
    return names_of(steps_.find(step, LayerId(layer)));
  }

  EngineSteps steps_;
};

TEST_F(EngineStepsTest, AStepEndsWithAllThatWasRecordedInIt) {
  EXPECT_EQ(end_of(0), "") << "before the first step there is nothing to wait for";
  EXPECT_EQ(end_of(1), "-");
  EXPECT_EQ(names_of(steps_.begin(StepId(1))), "");
  EXPECT_EQ(steps_.current(), StepId(1));
  EXPECT_EQ(names_of(steps_.record(named("a"))), "a");
  EXPECT_EQ(end_of(1), "-");
  EXPECT_EQ(names_of(steps_.end(named("b"))), "ab");
  EXPECT_EQ(end_of(1), "ab");
  EXPECT_EQ(names_of(steps_.begin(StepId(2))), "ab") << "the end of the step before";
  EXPECT_EQ(end_of(2), "-");
}

TEST_F(EngineStepsTest, ALayerIsWrittenWhereItWasRecordedElseAtTheEnd) {
  steps_.begin(StepId(1));
  EXPECT_EQ(names_of(steps_.record_layer(LayerId(3), named("a"))), "a");
  EXPECT_EQ(names_of(steps_.record_layer(LayerId(1), named("b"))), "ab");
  EXPECT_EQ(layer_of(1, 3), "a");
  EXPECT_EQ(layer_of(1, 1), "ab");
  EXPECT_EQ(layer_of(1, 2), "-");
  steps_.record_layer(LayerId(3), named("c"));
  EXPECT_EQ(layer_of(1, 3), "abc") << "written again";
  steps_.end(named("d"));
  EXPECT_EQ(layer_of(1, 1), "ab");
  EXPECT_EQ(layer_of(1, 2), "abcd");
}

TEST_F(EngineStepsTest, OfAStepThatWasLeftOutALaterEndWillDo) {
  run_step(2);
  run_step(5);
  EXPECT_EQ(end_of(1), "2 ");
  EXPECT_EQ(end_of(3), "5 ");
  EXPECT_EQ(layer_of(4, 0), "5 ");
  steps_.begin(StepId(9));
  EXPECT_EQ(end_of(7), "5 ") << "the last end there is";
  EXPECT_EQ(end_of(10), "-");
}

TEST_F(EngineStepsTest, BeforeTheFirstStepNothingHasToEnd) {
  steps_.begin(StepId(4));
  EXPECT_EQ(end_of(2), "");
}

TEST_F(EngineStepsTest, HowAnOldStepEndedIsForgotten) {
  for (uint64_t id = 1; id <= EngineSteps::kRemembered; ++id) run_step(id);
  EXPECT_FALSE(steps_.is_forgotten(1));
  run_step(EngineSteps::kRemembered + 1);
  EXPECT_TRUE(steps_.is_forgotten(1));
  EXPECT_FALSE(steps_.is_forgotten(0));
  EXPECT_FALSE(steps_.is_forgotten(2));
  EXPECT_EQ(end_of(1), "2 ") << "for the order";
}

TEST_F(EngineStepsTest, StepsBeginUpwardsOneAtATime) {
  EXPECT_THROW((void)steps_.current(), ContractViolation);
  EXPECT_THROW(steps_.end(Event()), ContractViolation);
  steps_.begin(StepId(3));
  EXPECT_THROW(steps_.begin(StepId(4)), ContractViolation);
  steps_.end(Event());
  EXPECT_THROW(steps_.record(Event()), ContractViolation);
  EXPECT_THROW(steps_.begin(StepId(3)), ContractViolation);
  steps_.begin(StepId(4));
}

}  // namespace
}  // namespace kvbm::internal
