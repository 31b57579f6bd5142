// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/result.hpp"

#include <cerrno>
#include <map>
#include <memory>

#include <gtest/gtest.h>

namespace kvbm {
namespace {

Result<int> half(int number) {
  if (number % 2 != 0) return make_error(ErrorCode::kInvalidArgument, "odd");
  return number / 2;
}

Result<std::unique_ptr<int>> boxed(int number) {
  KVBM_ASSIGN_OR_RETURN(const int result, half(number));
  return std::make_unique<int>(result);
}

Status check_quarter(int number, int& steps) {
  int result = 0;
  KVBM_ASSIGN_OR_RETURN(result, half(number));
  ++steps;
  KVBM_TRY(half(result));
  ++steps;
  return {};
}

TEST(Result, CarriesAValueOrAnError) {
  EXPECT_EQ(half(8).value(), 4);
  ASSERT_FALSE(half(3));
  EXPECT_EQ(half(3).error(), Error(ErrorCode::kInvalidArgument, "odd"));
}

TEST(Result, AssignOrReturnMovesTheValueOut) {
  EXPECT_EQ(**boxed(8), 4);
  EXPECT_EQ(boxed(7).error().message(), "odd");
}

TEST(Result, TryReturnsAtTheFirstError) {
  int steps = 0;
  EXPECT_TRUE(check_quarter(8, steps));
  EXPECT_EQ(steps, 2);
  steps = 0;
  EXPECT_EQ(check_quarter(6, steps).error().message(), "odd");
  EXPECT_EQ(steps, 1);
  steps = 0;
  EXPECT_FALSE(check_quarter(5, steps));
  EXPECT_EQ(steps, 0);
}

TEST(Result, MacrosTakeExpressionsWithCommas) {
  const auto pick = [](std::map<int, int> map) -> Result<int> { return map.at(1); };
  const auto run = [&]() -> Result<int> {
    KVBM_TRY(pick(std::map<int, int>{{1, 2}, {3, 4}}));
    KVBM_ASSIGN_OR_RETURN(const int got, pick(std::map<int, int>{{1, 2}, {3, 4}}));
    return got;
  };
  EXPECT_EQ(run().value(), 2);
}

TEST(Result, ErrnoErrorBecomesTheErrorSide) {
  const auto open = []() -> Result<int> { return errno_error("cannot open", ENOENT); };
  EXPECT_EQ(open().error().code(), ErrorCode::kNotFound);
  EXPECT_EQ(open().error().native_domain(), NativeDomain::kErrno);
}

}  // namespace
}  // namespace kvbm
