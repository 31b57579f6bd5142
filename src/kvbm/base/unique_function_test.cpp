// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/unique_function.hpp"

#include <array>
#include <memory>
#include <string>

#include <gtest/gtest.h>

namespace kvbm {
namespace {

struct Small {
  std::array<char, 64> bytes;
};
struct Large {
  std::array<char, 65> bytes;
};
struct ThrowingMove {
  ThrowingMove() = default;
  ThrowingMove(ThrowingMove&&) noexcept(false) {}
};
using Function = UniqueFunction<int(int)>;
static_assert(Function::held_inline<Small>());
static_assert(!Function::held_inline<Large>());
static_assert(!Function::held_inline<ThrowingMove>());
static_assert(!std::is_copy_constructible_v<Function>);
static_assert(std::is_nothrow_move_constructible_v<Function>);
static_assert(!std::is_constructible_v<Function, void (*)(std::string)>);

TEST(UniqueFunction, CallsWhatItHolds) {
  Function function = [](int x) { return x + 1; };
  EXPECT_TRUE(function);
  EXPECT_EQ(function(41), 42);
  EXPECT_EQ(function(1), 2);
  UniqueFunction<void(std::string)> sink = [](const std::string& text) { return text.size(); };
  sink("a result may be dropped");
}

TEST(UniqueFunction, EmptyOnesMustNotBeCalled) {
  Function function;
  EXPECT_FALSE(function);
  EXPECT_THROW(function(1), ContractViolation);
}

TEST(UniqueFunction, TakesMoveOnlyCaptures) {
  Function function = [box = std::make_unique<int>(40)](int x) { return *box + x; };
  Function moved = std::move(function);
  EXPECT_FALSE(function);  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(moved(2), 42);
}

TEST(UniqueFunction, MovesInlineAndLargeCallablesAndDestroysEachOnce) {
  const auto counter = std::make_shared<int>(0);
  std::array<uint64_t, 32> large{};
  large[31] = 5;
  {
    Function inline_one = [counter](int x) { return x; };
    Function large_one = [counter, large](int x) { return static_cast<int>(large[31]) + x; };
    EXPECT_EQ(counter.use_count(), 3);
    Function a = std::move(inline_one);
    Function b = std::move(large_one);
    EXPECT_EQ(counter.use_count(), 3);
    EXPECT_EQ(a(1) + b(1), 7);
    a = std::move(b);
    EXPECT_EQ(counter.use_count(), 2);
    EXPECT_EQ(a(1), 6);
    a.reset();
    EXPECT_EQ(counter.use_count(), 1);
    EXPECT_FALSE(a);
  }
  EXPECT_EQ(counter.use_count(), 1);
}

TEST(UniqueFunction, ForwardsReferencesAndMoveOnlyArguments) {
  UniqueFunction<void(int&, std::unique_ptr<int>)> function =
      [](int& out, std::unique_ptr<int> in) { out = *in; };
  int out = 0;
  function(out, std::make_unique<int>(9));
  EXPECT_EQ(out, 9);
}

}  // namespace
}  // namespace kvbm
