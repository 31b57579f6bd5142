// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/report.hpp"

#include <algorithm>
#include <chrono>
#include <sstream>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "kvbm/base/contract.hpp"

namespace kvbm {
namespace {

using std::chrono::milliseconds;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr TextStyle kUtf8{TextStyle::Letters::kUtf8, TextStyle::Colours::kOff};
constexpr TextStyle kColoured{TextStyle::Letters::kAscii, TextStyle::Colours::kOn};

ReplayReport example() {
  ReplayReport report;
  report.trace = "sample.jsonl";
  report.options.g2_blocks = 12'345;
  report.options.limit = 30;
  report.requests = 30;
  report.accesses = 1'000;
  report.hits = {200, 100, 50};
  report.misses = 650;
  report.verified_blocks = 350;
  report.evictions = {7, 8, 9};
  report.disk_writes_blocks = 11;
  report.drained_blocks = 12;
  report.onboarded_blocks = 13;
  report.stored_blocks = 14;
  report.dropped_stores = 15;
  report.failed_loads = 1'016;
  report.first_failed_load = "out of luck";
  report.moved = {{TierId::kG1, TierId::kG2, 14, 3'000'000'000, milliseconds(1'500)},
                  {TierId::kG3, TierId::kG1, 2, 0, milliseconds(0)}};
  report.events.g2 = {.created = 1, .migrated = 20, .deleted = 3, .resident = 18};
  report.wall_time = milliseconds(500);
  report.peak_rss_bytes = 123;
  report.configured_bytes = 456;
  report.timeline = {{500, {100, 0, 0}}, {1'000, {200, 100, 50}}};
  report.metrics_text = "not shown";
  return report;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// Characters, not bytes.
size_t width_of(const std::string& line) {
  return static_cast<size_t>(
      std::count_if(line.begin(), line.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

TEST(ReplayReport, SharesAreOfAllAccesses) {
  const PerTier<double> share = example().hit_share();
  EXPECT_DOUBLE_EQ(share.g1, 0.2);
  EXPECT_DOUBLE_EQ(share.g2, 0.1);
  EXPECT_DOUBLE_EQ(share.g3, 0.05);
  EXPECT_DOUBLE_EQ(example().accesses_per_second(), 2'000);
}

TEST(ReplayReport, DividesByNothingWithoutAccessesOrTime) {
  const ReplayReport empty;
  EXPECT_EQ(empty.hit_share(), (PerTier<double>{}));
  EXPECT_EQ(empty.accesses_per_second(), 0.0);
  EXPECT_EQ(MovedBlocks{}.gb_per_second(), 0.0);
  EXPECT_THAT(report_json(empty), Not(HasSubstr("nan")));
  EXPECT_THAT(report_table(empty), Not(HasSubstr("nan")));
}

TEST(ReportJson, HoldsEveryNumber) {
  const auto json = nlohmann::json::parse(report_json(example()));
  EXPECT_EQ(json["format"], "kvbm-replay-report");
  EXPECT_EQ(json["version"], kReportVersion);
  EXPECT_EQ(json["trace"], "sample.jsonl");
  EXPECT_EQ(json["options"]["g1_blocks"], 4096);
  EXPECT_EQ(json["options"]["g2_blocks"], 12'345);
  EXPECT_EQ(json["options"]["groups"], "full");
  EXPECT_EQ(json["options"]["policy"], "lineage");
  EXPECT_EQ(json["options"]["bytes"], "verified");
  EXPECT_EQ(json["options"]["overlap"], "off");
  EXPECT_EQ(json["options"]["limit"], 30);
  EXPECT_EQ(json["requests"], 30);
  EXPECT_EQ(json["accesses"], 1'000);
  EXPECT_DOUBLE_EQ(json["hit_share"]["total"], 0.35);
  EXPECT_DOUBLE_EQ(json["hit_share"]["g3"], 0.05);
  EXPECT_EQ(json["hits"], (nlohmann::json{{"total", 350}, {"g1", 200}, {"g2", 100}, {"g3", 50}}));
  EXPECT_EQ(json["misses"], 650);
  EXPECT_EQ(json["verified_blocks"], 350);
  EXPECT_EQ(json["mismatches"], 0);
  EXPECT_EQ(json["first_mismatch"], nullptr);
  EXPECT_EQ(json["evictions"], (nlohmann::json{{"total", 24}, {"g1", 7}, {"g2", 8}, {"g3", 9}}));
  EXPECT_EQ(json["disk_writes_blocks"], 11);
  EXPECT_EQ(json["drained_blocks"], 12);
  EXPECT_EQ(json["onboarded_blocks"], 13);
  EXPECT_EQ(json["stored_blocks"], 14);
  EXPECT_EQ(json["dropped_stores"], 15);
  EXPECT_EQ(json["failed_loads"], 1'016);
  EXPECT_EQ(json["moved"][0], (nlohmann::json{{"route", "g1_to_g2"},
                                              {"blocks", 14},
                                              {"bytes", 3'000'000'000},
                                              {"busy_seconds", 1.5},
                                              {"gb_per_second", 2.0}}));
  EXPECT_EQ(json["moved"][1]["gb_per_second"], 0.0);
  EXPECT_EQ(json["events"]["g2"],
            (nlohmann::json{{"created", 1}, {"migrated", 20}, {"deleted", 3}, {"resident", 18}}));
  EXPECT_EQ(json["wall_seconds"], 0.5);
  EXPECT_EQ(json["accesses_per_second"], 2'000.0);
  EXPECT_EQ(json["peak_rss_bytes"], 123);
  EXPECT_EQ(json["configured_bytes"], 456);
  EXPECT_EQ(json["timeline"][1],
            (nlohmann::json{{"accesses", 1'000}, {"g1", 200}, {"g2", 100}, {"g3", 50}}));
}

TEST(ReportJson, HasTheRingOfAGpuAlone) {
  ReplayReport report = example();
  EXPECT_EQ(nlohmann::json::parse(report_json(report))["options"]["cuda_ring_size"], nullptr);
  report.options.device = "cuda:1";
  report.options.cuda_ring_size = 0;
  EXPECT_EQ(nlohmann::json::parse(report_json(report))["options"]["cuda_ring_size"], 0);
}

TEST(ReportJson, NamesTheFirstMismatch) {
  ReplayReport report = example();
  report.mismatches = 1;
  report.first_mismatch = "block 3";
  EXPECT_EQ(nlohmann::json::parse(report_json(report))["first_mismatch"], "block 3");
}

TEST(ReportJson, IsJsonWhateverTheNamesOfFilesAre) {
  ReplayReport report = example();
  report.trace = "\xff\"\n";
  report.options.disk_dir = "/\xfe";
  EXPECT_TRUE(nlohmann::json::accept(report_json(report)));
}

TEST(ReportTable, ShowsTheNumbers) {
  const std::string table = report_table(example());
  for (const char* text :
       {"sample.jsonl", "1 000", "35.00 %", "20.00 %", "12 345", "350 blocks compared, 0 wrong",
        "G1 > G2", "2.79 GiB", "1.50 s", "2.00", "2 000 accesses a second", "14 blocks, 15 dropped",
        "13 blocks, 1 016 loads failed"}) {
    EXPECT_THAT(table, HasSubstr(text));
  }
  EXPECT_THAT(table, EndsWith("\n"));
  EXPECT_THAT(table, Not(HasSubstr("\x1b")));
  EXPECT_THAT(table, Not(HasSubstr("not shown")));
}

TEST(ReportTable, PaintsAMismatchRed) {
  ReplayReport report = example();
  report.failed_loads = 0;
  EXPECT_THAT(report_table(report, kColoured), Not(HasSubstr("\x1b[1;31m")));
  report.mismatches = 2;
  EXPECT_THAT(report_table(report, kColoured),
              HasSubstr("\x1b[1;31m350 blocks compared, 2 wrong\x1b[0m"));
  EXPECT_THAT(report_table(report), Not(HasSubstr("\x1b")));
}

TEST(ReportTable, PaintsFailedLoadsRed) {
  ReplayReport report = example();
  EXPECT_THAT(report_table(report, kColoured), HasSubstr("\x1b[1;31m1 016 loads failed\x1b[0m"));
  report.failed_loads = 0;
  EXPECT_THAT(report_table(report, kColoured), Not(HasSubstr("\x1b[1;31m")));
  EXPECT_THAT(report_table(report), HasSubstr("13 blocks, 0 loads failed"));
}

TEST(ReportTable, SaysSoWithoutBytes) {
  ReplayReport report = example();
  report.options.bytes = ReplayOptions::Bytes::kNone;
  EXPECT_THAT(report_table(report), HasSubstr("no bytes were moved"));
}

TEST(PlotHits, StacksTheTiers) {
  // A third of the height each, the same all the way.
  const std::vector<TimelineSample> timeline{{300, {100, 100, 100}}};
  const auto lines = lines_of(plot_hits(timeline));
  ASSERT_EQ(lines.size(), 14U);
  EXPECT_EQ(lines[0], "100 %|" + std::string(66, '.'));
  EXPECT_EQ(lines[3], " 75 %|" + std::string(66, '.'));
  EXPECT_EQ(lines[4], "     |" + std::string(66, '+'));
  EXPECT_EQ(lines[7], "     |" + std::string(66, '+'));
  EXPECT_EQ(lines[8], "     |" + std::string(66, '#'));
  EXPECT_EQ(lines[11], "     |" + std::string(66, '#'));
  EXPECT_EQ(lines[12], "  0 %+" + std::string(66, '-'));
  EXPECT_THAT(lines[13], EndsWith("300 accesses"));
}

TEST(PlotHits, FollowsTheShareOverTheTrace) {
  // No hits in the first half, nothing but G2 hits in the second.
  const std::vector<TimelineSample> timeline{{500, {}}, {1'000, {0, 500, 0}}};
  const auto lines = lines_of(plot_hits(timeline));
  for (size_t row = 0; row < 12; ++row) {
    EXPECT_EQ(lines[row].substr(6), std::string(33, ' ') + std::string(33, '+')) << row;
  }
}

TEST(PlotHits, ChoosesItsHeightByTheHighestShare) {
  const auto top_of = [](uint64_t hits) {
    const std::vector<TimelineSample> timeline{{500, {}}, {1'000, {0, 0, hits}}};
    return lines_of(plot_hits(timeline)).front();
  };
  EXPECT_EQ(top_of(200), " 40 %|" + std::string(33, ' ') + std::string(33, '.'));
  EXPECT_EQ(top_of(205), " 60 %|");
  EXPECT_EQ(top_of(1), "  4 %|");
  EXPECT_EQ(top_of(0), "  4 %|");
  EXPECT_EQ(top_of(405), "100 %|");
}

TEST(PlotHits, KeepsToItsWidth) {
  const std::vector<TimelineSample> timeline{{5, {1, 1, 1}}, {999'999'999'999'999, {2, 2, 2}}};
  for (const TextStyle style : {TextStyle{}, kUtf8}) {
    for (const std::string& line : lines_of(plot_hits(timeline, style))) {
      EXPECT_LE(width_of(line), kPlotWidth) << line;
    }
  }
}

TEST(PlotHits, IsAsciiUnlessTheOutputIsUtf8) {
  const std::string ascii = plot_hits(example().timeline);
  EXPECT_TRUE(std::all_of(ascii.begin(), ascii.end(), [](char c) { return c > 0; }));
  EXPECT_THAT(plot_hits(example().timeline, kUtf8), HasSubstr("\u2588"));
}

TEST(PlotHits, DrawsFewerSamplesThanColumnsAndMore) {
  std::vector<TimelineSample> many;
  for (uint64_t i = 1; i <= 1'000; ++i) many.push_back({i * 3, {i * 3, 0, 0}});
  for (const auto& timeline : {many, std::vector<TimelineSample>{{1, {1, 0, 0}}}}) {
    const auto lines = lines_of(plot_hits(timeline));
    ASSERT_EQ(lines.size(), 14U);
    EXPECT_EQ(lines[0].substr(6), std::string(66, '#'));
  }
}

TEST(PlotHits, OfNothingIsNothing) {
  EXPECT_EQ(plot_hits({}), "");
  EXPECT_EQ(plot_hits(std::vector<TimelineSample>{{0, {}}}), "");
}

TEST(PlotHits, RefusesSamplesThatGoBack) {
  const std::vector<TimelineSample> timeline{{2, {}}, {1, {}}};
  EXPECT_THROW(static_cast<void>(plot_hits(timeline)), ContractViolation);
}

}  // namespace
}  // namespace kvbm
