// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/contract.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvbm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(Contract, DoesNothingWhileItHolds) {
  int messages = 0;
  const auto message = [&messages] {
    ++messages;
    return "unused";
  };
  EXPECT_NO_THROW(KVBM_CONTRACT(1 + 1 == 2, message()));
  EXPECT_EQ(messages, 0);
}

TEST(Contract, ThrowsWithMessageConditionAndPlace) {
  const int index = 7;
  try {
    KVBM_CONTRACT(index < 5, "index " + std::to_string(index) + " of 5");
    FAIL() << "nothing was thrown";
  } catch (const ContractViolation& violation) {
    EXPECT_THAT(violation.what(),
                AllOf(HasSubstr("index 7 of 5"), HasSubstr("index < 5"),
                      HasSubstr(" at kvbm/base/contract_test.cpp:"), Not(HasSubstr("/src/"))));
  }
}

}  // namespace
}  // namespace kvbm
