// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/text.hpp"

#include <limits>

#include <gtest/gtest.h>

#include "kvbm/base/error.hpp"

namespace kvbm {
namespace {

TEST(FormatText, FillsInEveryKindOfValue) {
  const std::string owned = "owned";
  const char* const pointer = "pointer";
  EXPECT_EQ(format_text("{} {} {} {}", true, 'c', -7, 8U), "true c -7 8");
  EXPECT_EQ(format_text("{} {} {}", owned, pointer, std::string_view("view")),
            "owned pointer view");
  EXPECT_EQ(format_text("{} {} {}", BlockId(9), SequenceHash(0xF0), HexText{1}),
            "9 00000000000000f0 0000000000000001");
  EXPECT_EQ(format_text("{} {}", TierId::kG2, ErrorCode::kIo), "G2 io");
  EXPECT_EQ(format_text("{} {}", 0.1, 1e300), "0.1 1e+300");
  EXPECT_EQ(format_text("{} {}", std::numeric_limits<int64_t>::min(),
                        std::numeric_limits<uint64_t>::max()),
            "-9223372036854775808 18446744073709551615");
  EXPECT_EQ(format_text("{}", uint8_t{65}), "65");
}

TEST(FormatText, DoubledBracesAreBraces) {
  EXPECT_EQ(format_text("{{}} {}{{{}}}", 1, 2), "{} 1{2}");
  EXPECT_EQ(format_text(""), "");
  EXPECT_EQ(format_text("plain"), "plain");
}

TEST(FormatText, BracesInValuesStayAsTheyAre) {
  EXPECT_EQ(format_text("<{}>", std::string("{}{{")), "<{}{{>");
}

}  // namespace
}  // namespace kvbm
