// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/group_config.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"

namespace kvbm {
namespace {

using ::testing::HasSubstr;

GroupConfig full(std::string name, uint32_t num_layers) {
  GroupConfig group;
  group.name = std::move(name);
  group.num_layers = num_layers;
  return group;
}

GroupConfig window(std::string name, uint32_t num_layers, uint32_t num_blocks) {
  GroupConfig group = full(std::move(name), num_layers);
  group.retention = Retention::last_window(num_blocks);
  return group;
}

std::string error_of(std::string_view spec) {
  const auto groups = parse_groups(spec);
  if (groups) return "no error";
  EXPECT_EQ(groups.error().code(), ErrorCode::kInvalidArgument);
  return groups.error().message();
}

std::string error_of(const GroupConfig& group) {
  const Status status = check_groups({&group, 1});
  return status ? "no error" : status.error().message();
}

TEST(GroupSpec, ListsGroupsWithTheirLayersAndWindows) {
  EXPECT_EQ(parse_groups("full:layers=4;window:layers=2,blocks=8"),
            (std::vector{full("full", 4), window("window", 2, 8)}));
}

TEST(GroupSpec, AnEmptyOneHasNoGroups) {
  EXPECT_EQ(parse_groups(""), std::vector<GroupConfig>{});
  EXPECT_EQ(parse_groups("  \t"), std::vector<GroupConfig>{});
}

TEST(GroupSpec, SpacesAroundWordsDoNotMatter) {
  EXPECT_EQ(parse_groups(" full : layers = 4 ; window:\tlayers=2 , blocks=8 "),
            parse_groups("full:layers=4;window:layers=2,blocks=8"));
}

TEST(GroupSpec, OptionsComeInAnyOrder) {
  EXPECT_EQ(parse_groups("window:blocks=8,name=w,layers=2"), (std::vector{window("w", 2, 8)}));
}

TEST(GroupSpec, AGroupMayOverrideTheShapeOfItsBlocks) {
  GroupConfig group = full("mla", 3);
  group.outer_dim = 1;
  group.num_heads = 1;
  group.head_dim = 576;
  group.dtype_width_bytes = 1;
  EXPECT_EQ(parse_groups(
                "full:name=mla,layers=3,outer_dim=1,num_heads=1,head_dim=576,dtype_width_bytes=1"),
            std::vector{group});
}

TEST(GroupSpec, AGroupWithoutANameHasThatOfItsKind) {
  EXPECT_EQ(
      parse_groups("full:layers=1;full:layers=2;window:layers=3,blocks=1;full:layers=4"),
      (std::vector{full("full", 1), full("full_2", 2), window("window", 3, 1), full("full_3", 4)}));
  // Also where another group took it.
  EXPECT_EQ(parse_groups("full:layers=1,name=window;window:layers=2,blocks=1"),
            (std::vector{full("window", 1), window("window_2", 2, 1)}));
}

TEST(GroupSpec, MistakesAreReportedWhereTheyBegin) {
  EXPECT_EQ(error_of("ful:layers=4"),
            "character 1: there is no kind of group \"ful\": say full or window");
  EXPECT_EQ(error_of("full:layers=4;"), "character 15: a group is expected: full or window");
  EXPECT_EQ(error_of(";full:layers=4"), "character 1: a group is expected: full or window");
  EXPECT_EQ(error_of("full:layers=4; windw:layers=2"),
            "character 16: there is no kind of group \"windw\": say full or window");
  EXPECT_EQ(error_of("full:layers=4 window:layers=2"), "character 15: a ; or the end is expected");
  EXPECT_EQ(error_of("full:"), "character 6: an option is expected, such as layers=4");
  EXPECT_EQ(error_of("full:layers=4,"), "character 15: an option is expected, such as layers=4");
  EXPECT_EQ(error_of("full:layer=4"),
            "character 6: a group has no option \"layer\"; the nearest is layers");
  EXPECT_EQ(error_of("full:layers=4,heads=8"),
            "character 15: a group has no option \"heads\"; the nearest is num_heads");
  EXPECT_EQ(error_of("full:layers"), "character 12: a = is expected after layers");
  EXPECT_EQ(error_of("full:layers="), "character 13: a value is expected after layers=");
  EXPECT_EQ(error_of("full:layers=4,layers=5"), "character 15: this group has layers already");
  EXPECT_EQ(error_of("full:layers=4,blocks=5"),
            "character 15: a full group keeps all blocks; blocks=N is for a window");
  EXPECT_EQ(error_of("full:layers=4,name=a;full:layers=1,name=a"),
            "character 41: there is a group \"a\" already");
}

TEST(GroupSpec, WhatIsRequiredIsAskedForWhereTheGroupBegins) {
  EXPECT_EQ(error_of("full"), "character 1: this group needs layers=N");
  EXPECT_EQ(error_of("full:layers=4;window:blocks=8"), "character 15: this group needs layers=N");
  EXPECT_EQ(error_of("full:layers=4;window:layers=8"), "character 15: this window needs blocks=N");
}

TEST(GroupSpec, NumbersOutOfTheirRangeAreRefused) {
  for (const std::string_view layers : {"0", "65536", "4294967296", "four", "-1", "4x"}) {
    EXPECT_EQ(error_of("full:layers=" + std::string(layers)),
              "character 13: allowed is an integer from 1 to 65535");
  }
  EXPECT_EQ(error_of("full:layers=65535"), "no error");
  for (const std::string_view blocks : {"0", "2147483649", "x"}) {
    EXPECT_EQ(error_of("window:layers=1,blocks=" + std::string(blocks)),
              "character 24: allowed is an integer from 1 to 2147483648");
  }
  EXPECT_EQ(error_of("window:layers=1,blocks=2147483648"), "no error");
  EXPECT_EQ(error_of("full:layers=1,outer_dim=3"),
            "character 25: allowed is an integer from 1 to 2");
  EXPECT_EQ(error_of("full:layers=1,num_heads=0"),
            "character 25: allowed is an integer from 1 to 8192");
  EXPECT_EQ(error_of("full:layers=1,head_dim=x"),
            "character 24: allowed is an integer from 1 to 65536");
  EXPECT_EQ(error_of("full:layers=1,dtype_width_bytes=3"), "character 33: allowed is 1, 2, 4 or 8");
}

TEST(GroupSpec, TooManyGroupsAreRefusedWhereTheyBeginToBe) {
  std::string spec = "full:layers=1";
  for (size_t i = 1; i < kMaxGroups; ++i) spec += ";full:layers=1";
  EXPECT_EQ(parse_groups(spec).value().size(), kMaxGroups);
  EXPECT_EQ(error_of(spec + ";full:layers=1"), "character 3585: there are more than 256 groups");
}

TEST(GroupSpec, WhatIsWrittenReadsBackToTheSameGroups) {
  for (const std::string_view spec :
       {"", "full:name=a,layers=4", "window:name=w-1,layers=2,blocks=8,head_dim=64,outer_dim=1",
        "full:layers=1;full:layers=2,num_heads=2,dtype_width_bytes=4"}) {
    const std::vector<GroupConfig> groups = parse_groups(spec).value();
    EXPECT_EQ(parse_groups(format_groups(groups)), groups) << spec;
  }
}

TEST(CheckGroups, FindsWhatNoSpecCouldSay) {
  EXPECT_EQ(error_of(full("a", 4)), "no error");
  EXPECT_THAT(error_of(full("", 4)), HasSubstr("group \"\": a name has letters"));
  EXPECT_THAT(error_of(full("a b", 4)), HasSubstr("group \"a b\": a name has letters"));
  EXPECT_EQ(error_of(full("a", 0)),
            "group \"a\": num_layers = 0: allowed is an integer from 1 to 65535");
  GroupConfig group = full("a", 1);
  group.head_dim = 0;
  EXPECT_EQ(error_of(group), "group \"a\": head_dim = 0: allowed is an integer from 1 to 65536");
  const std::vector twice = {full("a", 1), full("a", 1)};
  EXPECT_EQ(check_groups(twice).error().message(), "group \"a\": another group has that name");
  const std::vector many(kMaxGroups + 1, full("a", 1));
  EXPECT_EQ(check_groups(many).error().message(), "257 groups are more than 256");
}

}  // namespace
}  // namespace kvbm
