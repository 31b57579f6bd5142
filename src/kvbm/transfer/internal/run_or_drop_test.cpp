// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/run_or_drop.hpp"

#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/unique_function.hpp"

namespace kvbm::internal {
namespace {

TEST(RunOrDrop, SaysOnceWhetherItRanOrWasDropped) {
  std::vector<TaskEnd> ends;
  const auto note = [&ends](TaskEnd end) { ends.push_back(end); };
  {
    RunOrDrop task(note);
    task();
    task();
  }
  EXPECT_EQ(ends, std::vector<TaskEnd>{TaskEnd::kRun});
  ends.clear();
  {
    UniqueFunction<void()> held = RunOrDrop(note);
    UniqueFunction<void()> moved = std::move(held);
  }
  EXPECT_EQ(ends, std::vector<TaskEnd>{TaskEnd::kDropped});
}

}  // namespace
}  // namespace kvbm::internal
