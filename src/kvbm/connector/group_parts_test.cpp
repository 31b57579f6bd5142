// SPDX-License-Identifier: Apache-2.0
#include "kvbm/connector/group_parts.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/error_code.hpp"

namespace kvbm {
namespace {

using testing::code_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

TEST(GroupParts, GroupsOfOneSizeAreTheirOwnParts) {
  const auto split = split_groups(
      {{{.block_tokens = 16}, {.block_tokens = 16, .retention = Retention::last_window(3)}}});
  ASSERT_TRUE(split) << split.error();
  EXPECT_EQ(split->position_tokens, 16U);
  EXPECT_EQ(split->identity_tokens, 16U);
  EXPECT_THAT(split->parts,
              ElementsAre(GroupPart{.spec = {GroupId(0)}, .group = 0},
                          GroupPart{.spec = {GroupId(1), Retention::last_window(3)}, .group = 1}));
  EXPECT_THAT(split->specs(),
              ElementsAre(GroupSpec{GroupId(0)}, GroupSpec{GroupId(1), Retention::last_window(3)}));
}

TEST(GroupParts, AGroupOfSmallerBlocksIsAsManyPartsAsFit) {
  const auto split = split_groups({{{.block_tokens = 8}, {.block_tokens = 32}}});
  ASSERT_TRUE(split) << split.error();
  EXPECT_EQ(split->position_tokens, 32U);
  EXPECT_EQ(split->identity_tokens, 8U);
  ASSERT_THAT(split->parts, SizeIs(5));
  for (uint16_t i = 0; i < 4; ++i) {
    EXPECT_EQ(split->parts[i],
              (GroupPart{.spec = {GroupId(i)}, .group = 0, .first = i, .stride = 4}));
  }
  EXPECT_EQ(split->parts[4], (GroupPart{.spec = {GroupId(4)}, .group = 1}));
  EXPECT_EQ(split->parts[2].block_at(0), 2U);
  EXPECT_EQ(split->parts[2].block_at(3), 14U);
}

TEST(GroupParts, AWindowIsSharedOutFromTheEnd) {
  const auto windows = [](uint32_t window_blocks) {
    const auto split =
        split_groups({{{.block_tokens = 4, .retention = Retention::last_window(window_blocks)},
                       {.block_tokens = 16}}});
    std::vector<std::pair<uint32_t, uint32_t>> found;  // first block, window
    for (const GroupPart& part : split->parts) {
      if (part.group == 0) found.emplace_back(part.first, part.spec.retention.window_blocks());
    }
    return found;
  };
  using Found = std::pair<uint32_t, uint32_t>;
  EXPECT_THAT(windows(1), ElementsAre(Found(3, 1)));  // the others are never reached
  EXPECT_THAT(windows(3), ElementsAre(Found(1, 1), Found(2, 1), Found(3, 1)));
  EXPECT_THAT(windows(6), ElementsAre(Found(0, 1), Found(1, 1), Found(2, 2), Found(3, 2)));
}

/// Every block that a window of the group reaches from the end of a position, and no other, is one
/// that a part needs.
TEST(GroupParts, WhatPartsNeedIsWhatTheGroupNeeds) {
  for (uint32_t stride = 1; stride <= 5; ++stride) {
    for (uint32_t window = 1; window <= 12; ++window) {
      const auto split =
          split_groups({{{.block_tokens = 2, .retention = Retention::last_window(window)},
                         {.block_tokens = 2 * stride}}});
      for (uint32_t length = 1; length <= 8; ++length) {  // in positions
        std::vector<bool> needed(size_t{length} * stride);
        for (const GroupPart& part : split->parts) {
          if (part.group != 0) continue;
          for (uint32_t i = part.spec.retention.first_needed(length); i < length; ++i) {
            needed[part.block_at(i)] = true;
          }
        }
        const uint32_t first = Retention::last_window(window).first_needed(length * stride);
        for (uint32_t block = 0; block < length * stride; ++block) {
          EXPECT_EQ(needed[block], block >= first)
              << "block " << block << " of " << length << " positions of " << stride << ", window "
              << window;
        }
      }
    }
  }
}

TEST(GroupParts, SizesThatDoNotDivideEachOtherAreRefused) {
  const auto refused =
      split_groups({{{.block_tokens = 48}, {.block_tokens = 16}, {.block_tokens = 32}}});
  EXPECT_EQ(code_of(refused), ErrorCode::kUnsupported);
  EXPECT_THAT(refused.error().message(), HasSubstr("blocks of 32 and of 48 tokens"));
}

TEST(GroupParts, WhatMakesNoSenseIsRefused) {
  EXPECT_EQ(code_of(split_groups({})), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(split_groups({{{.block_tokens = 4}, {.block_tokens = 0}}})),
            ErrorCode::kInvalidArgument);
  EXPECT_TRUE(split_groups({{{.block_tokens = 1}, {.block_tokens = 1023}}}));
  const auto many = split_groups({{{.block_tokens = 1}, {.block_tokens = 1024}}});
  EXPECT_EQ(code_of(many), ErrorCode::kUnsupported);
  EXPECT_THAT(many.error().message(), HasSubstr("more than 1024 parts"));
}

}  // namespace
}  // namespace kvbm
