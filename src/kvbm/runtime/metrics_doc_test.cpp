// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/metrics_doc.hpp"

#include <fstream>
#include <iterator>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvbm {
namespace {

using ::testing::HasSubstr;

TEST(MetricsDoc, IsWhatTheDocumentationSays) {
  std::ifstream file(KVBM_TEST_SOURCE_DIR "/../../../docs/metrics.md", std::ios::binary);
  ASSERT_TRUE(file);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const auto series = documented_series();
  ASSERT_TRUE(series) << series.error();
  const auto anew = with_metrics_table(text, metrics_table(*series));
  ASSERT_TRUE(anew) << anew.error();
  EXPECT_EQ(text, *anew) << "write it anew: cmake --build <build folder> --target metrics_doc";
}

TEST(MetricsDoc, EverySeriesHasAMeaning) {
  const auto series = documented_series();
  ASSERT_TRUE(series) << series.error();
  for (const DocumentedSeries& one : *series) {
    EXPECT_THAT(one.info.help, ::testing::EndsWith(".")) << one.info.name;
  }
}

TEST(MetricsDoc, HasTheNamesOfDynamo) {
  const std::string table = metrics_table(documented_series().value());
  for (const char* name : {"kvbm_offload_blocks_d2h",
                           "kvbm_offload_blocks_h2d",
                           "kvbm_offload_blocks_d2d",
                           "kvbm_onboard_blocks_h2d",
                           "kvbm_onboard_blocks_d2d",
                           "kvbm_onboard_blocks_d2h",
                           "kvbm_matched_tokens",
                           "kvbm_host_cache_hit_rate",
                           "kvbm_disk_cache_hit_rate",
                           "kvbm_transfer_duration_seconds",
                           "kvbm_transfer_failures_total",
                           "kvbm_transfer_inflight",
                           "kvbm_cache_blocks_hit_total",
                           "kvbm_allocations_total",
                           "kvbm_allocations_from_reset_total",
                           "kvbm_evictions_total",
                           "kvbm_registrations_total",
                           "kvbm_duplicate_blocks_total",
                           "kvbm_registration_dedup_total",
                           "kvbm_stagings_total",
                           "kvbm_match_hashes_requested_total",
                           "kvbm_match_blocks_returned_total",
                           "kvbm_inflight_mutable",
                           "kvbm_inflight_immutable",
                           "kvbm_reset_pool_size",
                           "kvbm_inactive_pool_size",
                           "kvbm_blocks_allocated",
                           "kvbm_blocks_free",
                           "kvbm_allocation_latency",
                           "kvbm_eviction_count"}) {
    EXPECT_THAT(table, HasSubstr("| `" + std::string(name) + "` | "));
  }
}

TEST(MetricsDoc, ADocumentWithoutMarksIsRefused) {
  EXPECT_FALSE(with_metrics_table("# Metrics\n", "| a |\n"));
}

}  // namespace
}  // namespace kvbm
