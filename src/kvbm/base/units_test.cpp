// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/units.hpp"

#include <chrono>
#include <limits>

#include <gtest/gtest.h>

namespace kvbm {
namespace {

using namespace std::chrono_literals;

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

TEST(ParseSize, ReadsNumbersWithUnits) {
  EXPECT_EQ(parse_size("0").value(), 0U);
  EXPECT_EQ(parse_size("512").value(), 512U);
  EXPECT_EQ(parse_size("7B").value(), 7U);
  EXPECT_EQ(parse_size("64KiB").value(), 64 * kKiB);
  EXPECT_EQ(parse_size("4 GiB").value(), 4_GiB);
  EXPECT_EQ(parse_size("2  TiB").value(), 2_TiB);
  EXPECT_EQ(parse_size("3kB").value(), 3000U);
  EXPECT_EQ(parse_size("3KB").value(), 3000U);
  EXPECT_EQ(parse_size("2MB").value(), 2'000'000U);
  EXPECT_EQ(parse_size("2TB").value(), 2'000'000'000'000U);
  EXPECT_EQ(parse_size("2MiB").value(), 2_MiB);
  EXPECT_EQ(parse_size("1.5 GB").value(), 1'500'000'000U);
  EXPECT_EQ(parse_size("0.5MiB").value(), 512_KiB);
  EXPECT_EQ(parse_size("18446744073709551615").value(), kMax);
}

TEST(ParseSize, DropsAPartOfAByte) {
  EXPECT_EQ(parse_size("0.3 GiB").value(), 322'122'547U);
  EXPECT_EQ(parse_size("1.999 B").value(), 1U);
}

TEST(ParseSize, RefusesWhatItCannotMean) {
  for (const char* text : {"",
                           " 4GiB",
                           "4GiB ",
                           "-1",
                           "+1",
                           "-0",
                           "GiB",
                           ".5GiB",
                           "5.",
                           "5.GiB",
                           "1e9",
                           "4K",
                           "4G",
                           "4g",
                           "4gib",
                           "4Gb",
                           "4 GiB!",
                           "0x10",
                           "1_000",
                           "1,5GB",
                           "4\tGiB",
                           "1.0000000001 GiB",
                           "nan",
                           "16777216TiB",
                           "18446744073709551616",
                           "18446744073709551615KiB",
                           "99999999999999999999999",
                           "18446744073709551615.9KiB",
                           "4GiB4GiB"}) {
    const Result<uint64_t> size = parse_size(text);
    ASSERT_FALSE(size) << text << " gave " << *size;
    EXPECT_EQ(size.error().code(), ErrorCode::kInvalidArgument) << text;
    EXPECT_NE(size.error().message().find(text), std::string::npos) << size.error().message();
  }
  EXPECT_EQ(parse_size("16777215.999999999TiB").value(), kMax - 1099);
}

TEST(FormatSize, ShowsTheLargestUnitThatFits) {
  EXPECT_EQ(format_size(0), "0 B");
  EXPECT_EQ(format_size(1023), "1023 B");
  EXPECT_EQ(format_size(64_KiB), "64 KiB");
  EXPECT_EQ(format_size(1_GiB + 512_MiB), "1.50 GiB");
  EXPECT_EQ(format_size(1_MiB + 1), "1.00 MiB");
  EXPECT_EQ(format_size(1_MiB + 52_KiB), "1.05 MiB");
  EXPECT_EQ(format_size(1_GiB - 1), "1023.99 MiB");
  EXPECT_EQ(format_size(3_TiB), "3 TiB");
  EXPECT_EQ(format_size(kMax), "16777215.99 TiB");
}

TEST(FormatSize, ExactTextsReadBack) {
  for (const uint64_t size : {uint64_t{0}, uint64_t{77}, 3_KiB, 1023_MiB, 12_GiB, 9_TiB}) {
    EXPECT_EQ(parse_size(format_size(size)).value(), size);
  }
}

TEST(FormatDuration, PicksTheUnit) {
  EXPECT_EQ(format_duration(0ns), "0 ns");
  EXPECT_EQ(format_duration(850ns), "850 ns");
  EXPECT_EQ(format_duration(12'345ns), "12.3 us");
  EXPECT_EQ(format_duration(1500us), "1.50 ms");
  EXPECT_EQ(format_duration(999'999us), "999 ms");
  EXPECT_EQ(format_duration(2050ms), "2.05 s");
  EXPECT_EQ(format_duration(125s), "2 min 05 s");
  EXPECT_EQ(format_duration(3h + 7min + 59s), "3 h 07 min");
  EXPECT_EQ(format_duration(50h), "2 d 02 h");
  EXPECT_EQ(format_duration(-1500us), "-1.50 ms");
  EXPECT_EQ(format_duration(std::chrono::nanoseconds::min()), "-106751 d 23 h");
}

TEST(FormatCount, ShowsThreeDigits) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(1000), "1.00 k");
  EXPECT_EQ(format_count(12'345), "12.3 k");
  EXPECT_EQ(format_count(999'999), "999 k");
  EXPECT_EQ(format_count(4'560'000), "4.56 M");
  EXPECT_EQ(format_count(7'890'000'000), "7.89 G");
  EXPECT_EQ(format_count(kMax), "18446 P");
}

}  // namespace
}  // namespace kvbm
