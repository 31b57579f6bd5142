// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/internal/nearest_name.hpp"

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"

namespace kvbm::internal {
namespace {

TEST(EditDistance, CountsLettersPutInTakenOutReplacedAndSwapped) {
  EXPECT_EQ(edit_distance("", ""), 0U);
  EXPECT_EQ(edit_distance("abc", "abc"), 0U);
  EXPECT_EQ(edit_distance("", "abc"), 3U);
  EXPECT_EQ(edit_distance("abc", ""), 3U);
  EXPECT_EQ(edit_distance("abc", "abxc"), 1U);
  EXPECT_EQ(edit_distance("abc", "ac"), 1U);
  EXPECT_EQ(edit_distance("abc", "axc"), 1U);
  EXPECT_EQ(edit_distance("abcd", "acbd"), 1U);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3U);
}

TEST(NearestName, IsTheOneThatNeedsTheFewestChanges) {
  constexpr std::string_view kNames[] = {"block_size", "num_blocks", "num_layers"};
  EXPECT_EQ(nearest_name("blok_size", kNames), "block_size");
  EXPECT_EQ(nearest_name("num_layer", kNames), "num_layers");
  EXPECT_EQ(nearest_name("BLOCK-SIZE", kNames), "block_size");
  EXPECT_EQ(nearest_name("numblocks", kNames), "num_blocks");
}

TEST(NearestName, HyphensCountAsUnderscores) {
  constexpr std::string_view kNames[] = {"abc", "a_b_c"};
  EXPECT_EQ(nearest_name("a-b-c", kNames), "a_b_c");
}

TEST(NearestName, OfSeveralIsTheFirst) {
  constexpr std::string_view kNames[] = {"ab", "ac"};
  EXPECT_EQ(nearest_name("ad", kNames), "ab");
}

TEST(NearestName, OfNoNamesIsABrokenContract) {
  EXPECT_THROW((void)nearest_name("a", {}), ContractViolation);
}

TEST(ShownText, ShowsTextsShortAndWithoutControlCharacters) {
  EXPECT_EQ(shown_text("a b"), "\"a b\"");
  EXPECT_EQ(shown_text("a\nb\x7F"), "\"a?b?\"");
  EXPECT_EQ(shown_text(std::string(80, 'x')), '"' + std::string(80, 'x') + '"');
  EXPECT_EQ(shown_text(std::string(81, 'x')), '"' + std::string(80, 'x') + "…\"");
  // 79 letters and a two-byte one, which is not cut in half.
  EXPECT_EQ(shown_text(std::string(79, 'x') + "é!"), '"' + std::string(79, 'x') + "…\"");
}

}  // namespace
}  // namespace kvbm::internal
