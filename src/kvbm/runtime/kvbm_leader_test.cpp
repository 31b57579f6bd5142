// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/kvbm_leader.hpp"

#include <array>
#include <chrono>
#include <memory>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/runtime/metrics_endpoint.hpp"

#include "tests/support/recording_log_sink.hpp"

namespace kvbm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class KvbmLeaderTest : public ::testing::Test {
 protected:
  static bool has_http() {
    return read_metrics_page("nowhere").error().code() != ErrorCode::kUnsupported;
  }
  struct Rank {
    std::array<std::byte, 4096> tensor{};
    std::unique_ptr<KvbmWorker> worker;
  };
  void SetUp() override {
    for (Rank& rank : ranks_) {
      rank.worker = KvbmWorker::create(
                        {.rank = 0,
                         .num_blocks = 4,
                         .groups = {{.run_bytes = 1024,
                                     .runs = {{.base = rank.tensor.data(), .block_stride = 1024}}}},
                         .disk_directory = ""},
                        log_)
                        .value();
    }
  }
  std::unique_ptr<KvbmLeader> make(std::optional<uint16_t> metrics_port, size_t rank = 0) {
    KvbmLeaderOptions options;
    options.groups = {{.block_tokens = 4}};
    options.host_blocks = 2;
    options.metrics_port = metrics_port;
    KvbmWorker* const workers[] = {ranks_.at(rank).worker.get()};
    return KvbmLeader::create(options, workers, log_).value();
  }

  testing::RecordingLogSink log_{LogLevel::kWarning};
  std::array<Rank, 2> ranks_;
};

TEST_F(KvbmLeaderTest, ServesNothingUnlessAsked) {
  EXPECT_EQ(make(std::nullopt)->metrics_port(), std::nullopt);
}

TEST_F(KvbmLeaderTest, ServesItsSeriesAndThoseOfItsWorkers) {
  if (!has_http()) GTEST_SKIP() << "built without HTTP";
  const auto leader = make(0);
  ASSERT_TRUE(leader->metrics_port());
  const auto page =
      read_metrics_page("http://127.0.0.1:" + std::to_string(*leader->metrics_port()) + "/metrics");
  ASSERT_TRUE(page) << page.error();
  EXPECT_THAT(*page, HasSubstr("\nkvbm_matched_tokens 0\n"));
  EXPECT_THAT(*page, HasSubstr("\nkvbm_corrupt_blocks_total 0\n"));
  EXPECT_THAT(*page, HasSubstr("\nkvbm_blocks_free{pool=\"g2\"} 2\n"));
}

TEST_F(KvbmLeaderTest, APortInUseIsOneWarningAndNoFailure) {
  if (!has_http()) GTEST_SKIP() << "built without HTTP";
  const auto first = make(0);
  const auto second = make(*first->metrics_port(), 1);
  EXPECT_EQ(second->metrics_port(), std::nullopt);
  EXPECT_THAT(log_.messages(LogLevel::kWarning),
              ElementsAre(HasSubstr("DYN_KVBM_METRICS_PORT names the port")));
}

}  // namespace
}  // namespace kvbm
