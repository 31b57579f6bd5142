// SPDX-License-Identifier: Apache-2.0
#include "apps/kvbench/kvbench_options.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvbm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// The options of a command line, or the error's words.
struct Parsed {
  explicit Parsed(std::vector<std::string> words) {
    CLI::App app("", "kvbench");
    add_kvbench_options(app, options);
    std::reverse(words.begin(), words.end());
    try {
      app.parse(words);
    } catch (const CLI::ParseError& failure) {
      error = failure.what();
    }
  }

  KvbenchOptions options;
  std::string error;
};

TEST(KvbenchOptions, WithoutOptionsItIsTheGridOfTheReferenceOnLlama70B) {
  const Parsed parsed({});
  EXPECT_EQ(parsed.error, "");
  EXPECT_EQ(parsed.options.shape, BenchShape());
  EXPECT_EQ(parsed.options.warmup, 10u);
  EXPECT_EQ(parsed.options.iters, 100u);
  EXPECT_THAT(parsed.options.num_blocks, ElementsAre(1, 2, 4, 8, 16, 32, 64, 128, 256));
  EXPECT_THAT(parsed.options.tokens_per_block, ElementsAre(16, 32, 64));
  EXPECT_EQ(parsed.options.cells().size(), 3u * 9 * 2 * 3);
  EXPECT_EQ(parsed.options.backends.size(), 5u);
}

/// As the reference's README calls it, each way of writing a list.
TEST(KvbenchOptions, ListsHaveCommasOrAreGivenAgain) {
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"--num-blocks=1,128", "--tokens-per-block=16,64", "--backend",
                                 "vectorized,batched", "--direction", "h2d"},
        std::vector<std::string>{"--num-blocks", "1", "--num-blocks", "128", "--tokens-per-block",
                                 "16,64", "--backend=vectorized", "--backend=batched",
                                 "--direction=h2d"}}) {
    const Parsed parsed(words);
    EXPECT_EQ(parsed.error, "");
    EXPECT_THAT(parsed.options.num_blocks, ElementsAre(1, 128));
    EXPECT_THAT(parsed.options.tokens_per_block, ElementsAre(16, 64));
    EXPECT_THAT(parsed.options.backends,
                ElementsAre(CopyBackend::kVectorized, CopyBackend::kBatched));
    EXPECT_THAT(parsed.options.directions, ElementsAre(CopyDirection::kH2d));
  }
}

TEST(KvbenchOptions, TestsGoByTokensBlocksPatternDirection) {
  const Parsed parsed({"--num-blocks=1,2", "--tokens-per-block=16,32", "--direction=h2d,d2h",
                       "--pattern=fc_to_lw,universal_to_nhd"});
  ASSERT_EQ(parsed.error, "");
  const std::vector<BenchCell> cells = parsed.options.cells();
  ASSERT_EQ(cells.size(), 16u);
  EXPECT_EQ(cells[1], (BenchCell{16, 1, CopyPattern::kFcToLw, CopyDirection::kD2h}));
  EXPECT_EQ(cells[2], (BenchCell{16, 1, CopyPattern::kUniversalToNhd, CopyDirection::kH2d}));
  EXPECT_EQ(cells[4], (BenchCell{16, 2, CopyPattern::kFcToLw, CopyDirection::kH2d}));
  EXPECT_EQ(cells[8], (BenchCell{32, 1, CopyPattern::kFcToLw, CopyDirection::kH2d}));
}

TEST(KvbenchOptions, WhatMakesNoSenseIsRefusedByName) {
  const std::pair<std::vector<std::string>, std::string> wrong[] = {
      {{"--backend", "vectorised"}, "'vectorised' is none of vectorized,batched"},
      {{"--pattern", "fc"}, "--pattern"},
      {{"--direction", "h2h"}, "'h2h' is none of h2d,d2h,d2d"},
      {{"--direction", "h2d,h2d"}, "'h2d' is there twice"},
      {{"--num-blocks", "0"}, "'0' is no number from 1"},
      {{"--num-blocks", "1,x"}, "'x' is no number"},
      {{"--num-blocks", "9999999"}, "'9999999' is no number from 1 to 1048576"},
      {{"--tokens-per-block", "-1"}, "'-1' is no number"},
      {{"--iters", "0"}, "--iters"},
      {{"--dtype-width", "3"}, "--dtype-width"},
      {{"--layers", "65536"}, "--layers"},
      {{"--kvtc"}, "--kvtc"},
  };
  for (const auto& [words, message] : wrong) {
    EXPECT_THAT(Parsed(words).error, HasSubstr(message)) << words.front();
  }
}

}  // namespace
}  // namespace kvbm
