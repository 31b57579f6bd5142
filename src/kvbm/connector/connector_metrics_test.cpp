// SPDX-License-Identifier: Apache-2.0
#include "kvbm/connector/connector_metrics.hpp"

#include <sstream>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvbm {
namespace {

using ::testing::HasSubstr;

class ConnectorMetricsTest : public ::testing::Test {
 protected:
  std::string page() const {
    std::ostringstream text;
    write_prometheus_text(registry_, text);
    return text.str();
  }

  MetricsRegistry registry_;
  ConnectorMetrics metrics_{registry_};
};

TEST_F(ConnectorMetricsTest, HitRatesAreSharesOfTheBlocksThatWereLookedFor) {
  EXPECT_THAT(page(), HasSubstr("\nkvbm_host_cache_hit_rate 0\n"));
  metrics_.looked_up({.blocks = 6, .on_host = 3, .on_disk = 1});
  metrics_.looked_up({.blocks = 2, .on_host = 1, .on_disk = 0});
  EXPECT_THAT(page(), HasSubstr("\nkvbm_host_cache_hit_rate 0.5\n"));
  EXPECT_THAT(page(), HasSubstr("\nkvbm_disk_cache_hit_rate 0.125\n"));
}

TEST_F(ConnectorMetricsTest, ALookUpForNothingDoesNotCount) {
  metrics_.looked_up({.blocks = 4, .on_host = 4, .on_disk = 0});
  for (int i = 0; i < 2000; ++i) metrics_.looked_up({});
  EXPECT_THAT(page(), HasSubstr("\nkvbm_host_cache_hit_rate 1\n"));
}

TEST_F(ConnectorMetricsTest, OnlyTheLastThousandLookUpsCount) {
  for (int i = 0; i < 1000; ++i) metrics_.looked_up({.blocks = 1, .on_host = 1, .on_disk = 0});
  for (int i = 0; i < 999; ++i) metrics_.looked_up({.blocks = 1, .on_host = 0, .on_disk = 1});
  EXPECT_THAT(page(), HasSubstr("\nkvbm_host_cache_hit_rate 0.001\n"));
  EXPECT_THAT(page(), HasSubstr("\nkvbm_disk_cache_hit_rate 0.999\n"));
  metrics_.looked_up({.blocks = 1, .on_host = 0, .on_disk = 1});
  EXPECT_THAT(page(), HasSubstr("\nkvbm_host_cache_hit_rate 0\n"));
}

}  // namespace
}  // namespace kvbm
