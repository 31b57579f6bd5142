// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/kv_block_layout.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace kvbm {
namespace {

constexpr BlockAxis kLayer = BlockAxis::kLayer;
constexpr BlockAxis kOuter = BlockAxis::kOuter;
constexpr BlockAxis kHead = BlockAxis::kHead;
constexpr BlockAxis kPage = BlockAxis::kPage;

const std::vector<KvBlockLayout>& named() {
  static const std::vector<KvBlockLayout> all{
      KvBlockLayout::kUniversalTP, KvBlockLayout::kUniversalPP, KvBlockLayout::kOperationalHND,
      KvBlockLayout::kOperationalNHD};
  return all;
}

TEST(KvBlockLayout, NamedFormatsHaveTheirOrder) {
  EXPECT_EQ(KvBlockLayout::kUniversalTP.order(), (BlockAxisOrder{kHead, kLayer, kOuter, kPage}));
  EXPECT_EQ(KvBlockLayout::kUniversalPP.order(), (BlockAxisOrder{kLayer, kHead, kOuter, kPage}));
  EXPECT_EQ(KvBlockLayout::kOperationalHND.order(), (BlockAxisOrder{kLayer, kOuter, kHead, kPage}));
  EXPECT_EQ(KvBlockLayout::kOperationalNHD.order(), (BlockAxisOrder{kLayer, kOuter, kPage, kHead}));
  EXPECT_THROW(static_cast<void>(KvBlockLayout::kUnknown.order()), ContractViolation);
  EXPECT_EQ(KvBlockLayout(), KvBlockLayout::kUnknown);
}

TEST(KvBlockLayout, ACustomFormatIsAnyPermutationAndNothingElse) {
  BlockAxisOrder order{kLayer, kOuter, kHead, kPage};
  int permutations = 0;
  do {
    const Result<KvBlockLayout> custom = KvBlockLayout::custom(order);
    ASSERT_TRUE(custom);
    EXPECT_EQ(custom->order(), order);
    EXPECT_EQ(custom->name(), KvBlockLayout::Name::kCustom);
    ++permutations;
  } while (std::ranges::next_permutation(order).found);
  EXPECT_EQ(permutations, 24);

  const Result<KvBlockLayout> twice = KvBlockLayout::custom({kLayer, kHead, kHead, kPage});
  ASSERT_FALSE(twice);
  EXPECT_EQ(twice.error().code(), ErrorCode::kInvalidArgument);
  EXPECT_NE(twice.error().message().find("the axis head twice"), std::string::npos);
  EXPECT_FALSE(KvBlockLayout::custom({kLayer, kOuter, kHead, static_cast<BlockAxis>(4)}));
}

TEST(KvBlockLayout, OnlyAnotherOrderRequiresATransform) {
  for (const KvBlockLayout& a : named()) {
    for (const KvBlockLayout& b : named()) EXPECT_EQ(a.requires_transform(b), a != b);
    EXPECT_TRUE(a.requires_transform(KvBlockLayout::kUnknown));
    EXPECT_TRUE(KvBlockLayout::kUnknown.requires_transform(a));
    const KvBlockLayout same = KvBlockLayout::custom(a.order()).value();
    EXPECT_NE(same, a);
    EXPECT_FALSE(same.requires_transform(a));
  }
  EXPECT_FALSE(KvBlockLayout::kUnknown.requires_transform(KvBlockLayout()));
  // Its axes are the first enumerator four times, were it looked at.
  EXPECT_TRUE(KvBlockLayout::kUnknown.requires_transform(
      KvBlockLayout::custom({kPage, kHead, kOuter, kLayer}).value()));
}

TEST(KvBlockLayout, OperationalAndUniversalAreOrdersNotNames) {
  for (const KvBlockLayout& format : named()) {
    const bool operational =
        format == KvBlockLayout::kOperationalHND || format == KvBlockLayout::kOperationalNHD;
    for (const KvBlockLayout& same : {format, KvBlockLayout::custom(format.order()).value()}) {
      EXPECT_EQ(same.is_operational(), operational) << to_string(same);
      EXPECT_EQ(same.is_universal(), !operational) << to_string(same);
    }
  }
  EXPECT_FALSE(KvBlockLayout::kUnknown.is_operational());
  EXPECT_FALSE(KvBlockLayout::kUnknown.is_universal());
  const KvBlockLayout other = KvBlockLayout::custom({kPage, kLayer, kOuter, kHead}).value();
  EXPECT_FALSE(other.is_operational());
  EXPECT_FALSE(other.is_universal());
}

TEST(KvBlockLayout, HasATextForPeople) {
  EXPECT_EQ(to_string(KvBlockLayout::kUnknown), "unknown");
  EXPECT_EQ(to_string(KvBlockLayout::kUniversalTP), "universal_tp");
  EXPECT_EQ(to_string(KvBlockLayout::kUniversalPP), "universal_pp");
  EXPECT_EQ(to_string(KvBlockLayout::kOperationalHND), "operational_hnd");
  EXPECT_EQ(to_string(KvBlockLayout::kOperationalNHD), "operational_nhd");
  EXPECT_EQ(to_string(KvBlockLayout::custom({kPage, kLayer, kOuter, kHead}).value()),
            "custom(page, layer, outer, head)");
}

}  // namespace
}  // namespace kvbm
