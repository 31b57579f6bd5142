// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/metrics_page.hpp"

#include <cmath>
#include <sstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvbm {
namespace {

using ::testing::HasSubstr;

TEST(MetricsPage, ReadsWhatTheWriterWrites) {
  MetricsRegistry registry;
  registry.counter({"a_total", "Some \\ help\nof two lines.", "", {{"k", "x \"\\\n}"}}}).add(7);
  registry.gauge({"b", "", "", {}}).set(-3);
  registry.real_gauge({"c", "", "", {}}).set(0.25);
  registry.histogram({"d", "", "", {{"k", "v"}}}, {0.5, 1}).observe(0.7);
  std::ostringstream text;
  write_prometheus_text(registry, text);
  const auto page = MetricsPage::parse(text.str());
  ASSERT_TRUE(page) << page.error();
  EXPECT_EQ(page->sum("a_total", {"k", "x \"\\\n}"}), 7);
  EXPECT_EQ(page->sum("b"), -3);
  EXPECT_EQ(page->sum("c"), 0.25);
  EXPECT_EQ(page->sum("d_bucket", {"le", "+Inf"}), 1);
  EXPECT_EQ(page->sum("d_bucket", {"le", "0.5"}), 0);
  EXPECT_EQ(page->sum("d_sum"), 0.7);
  EXPECT_EQ(page->samples().size(), 8U);
}

TEST(MetricsPage, ReadsOtherWritersToo) {
  const auto page = MetricsPage::parse(
      "# TYPE x counter\r\n\r\n  x { a = \"1\" , b=\"2\", } 1e3 1700000000\r\nx +Inf\ny NaN # {} "
      "1");
  ASSERT_TRUE(page) << page.error();
  EXPECT_EQ(page->sum("x", {"b", "2"}), 1000);
  EXPECT_TRUE(std::isinf(page->sum("x")));
  EXPECT_TRUE(std::isnan(page->sum("y")));
}

TEST(MetricsPage, AddsUpWhatHasTheLabel) {
  const auto page =
      MetricsPage::parse("n{r=\"1\",t=\"a\"} 1\nn{r=\"2\",t=\"a\"} 2\nn{t=\"b\"} 4\n");
  EXPECT_EQ(page->sum("n"), 7);
  EXPECT_EQ(page->sum("n", {"t", "a"}), 3);
  EXPECT_EQ(page->sum("n", {"t", "c"}), 0);
}

TEST(MetricsPage, FindsSeriesOnThePageOfVllm) {
  const auto page = MetricsPage::parse(
      "vllm:kvbm_matched_tokens_total{engine=\"0\"} 5\nvllm:kvbm_bypass_open{engine=\"0\"} 1\n"
      "vllm:kvbm_evictions_total{engine=\"0\",pool=\"g2\"} 3\nother:kvbm_x 1\n");
  EXPECT_EQ(page->sum("kvbm_matched_tokens"), 5);
  EXPECT_EQ(page->sum("kvbm_bypass_open"), 1);
  EXPECT_EQ(page->sum("kvbm_evictions_total", {"pool", "g2"}), 3);
  EXPECT_FALSE(page->has("kvbm_x"));
  EXPECT_FALSE(page->has("kvbm"));
}

TEST(MetricsPage, TellsTheLineThatIsNotInTheFormat) {
  for (const char* line : {"1 2", "a", "a b", "a 1 b", "a 1 2 3", "a{ 1", "a{b} 1", "a{b=\"c} 1",
                           "a{b=\"c\" d=\"e\"} 1", "a{b=c} 1", "a{b=\"\\", "{} 1", "<html>",
                           "a{,} 1", "a 0x", "a 1e999"}) {
    const auto page = MetricsPage::parse("good 1\n" + std::string(line) + "\n");
    ASSERT_FALSE(page) << line;
    EXPECT_EQ(page.error().code(), ErrorCode::kCorrupt);
    EXPECT_THAT(page.error().message(), HasSubstr("line 2 "));
  }
}

}  // namespace
}  // namespace kvbm
