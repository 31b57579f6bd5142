// SPDX-License-Identifier: Apache-2.0
#include "kvbm/connector/connector_step.hpp"

#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvbm {
namespace {

using ::testing::HasSubstr;

ConnectorStep some_step() {
  ConnectorStep step;
  step.plan.step = StepId(7);
  CopyOp load;
  load.op = OpId(3);
  load.src = {TierId::kG2, GroupId(1)};
  load.dst = {TierId::kG1, GroupId(1)};
  load.from = {BlockId(4), BlockId(5)};
  load.to = {BlockId(8), BlockId(9)};
  load.after = {Gate::step_end(StepId(6))};
  step.plan.loads.push_back(std::move(load));
  step.plan.fences = {OpId(1)};
  step.ended_loads.push_back({.request = "cmpl-1", .failed = {BlockId(11), BlockId(12)}});
  step.ended_loads.push_back({.request = "", .failed = {}});
  return step;
}

TEST(ConnectorStep, ReadsBackToItself) {
  for (const ConnectorStep& step : {some_step(), ConnectorStep{}}) {
    const auto decoded = decode_connector_step(encode(step));
    ASSERT_TRUE(decoded) << decoded.error();
    EXPECT_EQ(*decoded, step);
  }
}

TEST(ConnectorStep, CutShortOrAlteredItIsRefused) {
  const std::vector<std::byte> bytes = encode(some_step());
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(decode_connector_step(std::span(bytes).first(size))) << size;
  }
  for (size_t i = 0; i < bytes.size(); ++i) {
    std::vector<std::byte> altered = bytes;
    altered[i] ^= std::byte{0x10};
    EXPECT_FALSE(decode_connector_step(altered)) << i;
  }
  std::vector<std::byte> longer = bytes;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(decode_connector_step(longer));
}

TEST(ConnectorStep, AnotherVersionIsNamed) {
  std::vector<std::byte> bytes = encode(some_step());
  bytes[12] = std::byte{9};
  const auto decoded = decode_connector_step(bytes);
  ASSERT_FALSE(decoded);
  EXPECT_EQ(decoded.error().code(), ErrorCode::kUnsupported);
  EXPECT_THAT(decoded.error().message(), HasSubstr("version 9"));
}

}  // namespace
}  // namespace kvbm
