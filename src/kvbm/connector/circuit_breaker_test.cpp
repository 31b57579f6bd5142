// SPDX-License-Identifier: Apache-2.0
#include "kvbm/connector/circuit_breaker.hpp"

#include <gtest/gtest.h>

namespace kvbm {
namespace {

using std::chrono::seconds;

const TimePoint kStart = TimePoint() + seconds(1000);

TEST(CircuitBreaker, OpensAfterFailuresInARowAlone) {
  CircuitBreaker breaker({.max_failures = 3, .pause = seconds(10)});
  EXPECT_FALSE(breaker.failed(kStart));
  EXPECT_FALSE(breaker.failed(kStart));
  breaker.succeeded();
  EXPECT_FALSE(breaker.failed(kStart));
  EXPECT_FALSE(breaker.failed(kStart));
  EXPECT_TRUE(breaker.allows(kStart));
  EXPECT_TRUE(breaker.failed(kStart));
  EXPECT_TRUE(breaker.is_open());
  EXPECT_FALSE(breaker.allows(kStart));
}

TEST(CircuitBreaker, TriesAgainAfterThePauseAndTheOutcomeDecides) {
  CircuitBreaker breaker({.max_failures = 2, .pause = seconds(10)});
  breaker.failed(kStart);
  EXPECT_TRUE(breaker.failed(kStart));
  EXPECT_FALSE(breaker.allows(kStart + seconds(9)));
  EXPECT_TRUE(breaker.allows(kStart + seconds(10)));
  EXPECT_TRUE(breaker.failed(kStart + seconds(11)));
  EXPECT_FALSE(breaker.allows(kStart + seconds(20)));
  EXPECT_TRUE(breaker.allows(kStart + seconds(21)));
  breaker.succeeded();
  EXPECT_FALSE(breaker.is_open());
  EXPECT_FALSE(breaker.failed(kStart + seconds(22)));
  EXPECT_TRUE(breaker.allows(kStart + seconds(22)));
}

TEST(CircuitBreaker, LateFailuresDoNotLengthenThePause) {
  CircuitBreaker breaker({.max_failures = 1, .pause = seconds(10)});
  EXPECT_TRUE(breaker.failed(kStart));
  EXPECT_FALSE(breaker.failed(kStart + seconds(5)));
  EXPECT_TRUE(breaker.allows(kStart + seconds(10)));
}

}  // namespace
}  // namespace kvbm
