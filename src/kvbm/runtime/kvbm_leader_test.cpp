// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/kvbm_leader.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/runtime/metrics_endpoint.hpp"

#include "tests/support/pinner_double.hpp"
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

TEST_F(KvbmLeaderTest, SaysHowManyHostBlocksThereAreWhereNotAllCanBePinned) {
  constexpr uint64_t kBlockBytes = uint64_t{1} << 20;
  constexpr uint32_t kPinned = PinnedMemoryOptions::kSliceBytes / kBlockBytes;
  const auto pinner = std::make_shared<testing::PinnerDouble>();
  pinner->refuse_from = 1;
  std::vector<std::byte> tensor(kBlockBytes);
  const auto worker =
      KvbmWorker::create(
          {.num_blocks = 1,
           .groups = {{.run_bytes = kBlockBytes,
                       .runs = {{.base = tensor.data(), .block_stride = kBlockBytes}}}},
           .disk_directory = "",
           .open_device = [&](const OpenDeviceOptions& options) -> Result<OpenedDevice> {
             Result<OpenedDevice> opened = open_device(options);
             if (opened) opened->pinner = pinner;
             return opened;
           }},
          log_)
          .value();
  KvbmWorker* const workers[] = {worker.get()};
  KvbmLeaderOptions options;
  options.groups = {{.block_tokens = 4}};
  options.host_blocks = kPinned + 5;
  options.metrics_port = has_http() ? std::optional<uint16_t>(0) : std::nullopt;
  const auto leader = KvbmLeader::create(options, workers, log_).value();
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  do {
    std::this_thread::yield();
    leader->poll();
  } while (leader->num_host_blocks() != kPinned && std::chrono::steady_clock::now() < deadline);
  EXPECT_EQ(leader->num_host_blocks(), kPinned);
  EXPECT_EQ(leader->num_disk_blocks(), 0U);
  if (!has_http()) return;
  const auto page =
      read_metrics_page("http://127.0.0.1:" + std::to_string(*leader->metrics_port()) + "/metrics");
  ASSERT_TRUE(page) << page.error();
  EXPECT_THAT(*page,
              HasSubstr("\nkvbm_blocks_free{pool=\"g2\"} " + std::to_string(kPinned) + "\n"));
}

/// A step that computes two blocks of each of two groups, which have one pool of 8.
class StoreBudgetTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kRun = 64;
  static constexpr uint32_t kBlocks = 8;

  Result<std::unique_ptr<KvbmLeader>> make(std::optional<double> budget) {
    KvbmWorkerOptions options;
    options.num_blocks = kBlocks;
    options.groups.assign(
        2, {.run_bytes = kRun, .runs = {{.base = tensor_.data(), .block_stride = kRun}}});
    worker_ = KvbmWorker::create(options, log_).value();
    KvbmWorker* const workers[] = {worker_.get()};
    KvbmLeaderOptions of_leader;
    of_leader.groups.assign(2, {.block_tokens = 4});
    of_leader.host_blocks = kBlocks;
    of_leader.store_budget = budget;
    return KvbmLeader::create(of_leader, workers, log_);
  }

  testing::RecordingLogSink log_{LogLevel::kWarning};
  std::array<std::byte, kBlocks * kRun> tensor_{};
  std::unique_ptr<KvbmWorker> worker_;
};

TEST_F(StoreBudgetTest, WhatIsBeyondItIsDroppedAndCounted) {
  for (const std::optional<double> share :
       std::initializer_list<std::optional<double>>{std::nullopt, 0.125, 0.25, 0.375, 0.5}) {
    const auto leader = make(share).value();
    const int64_t budget = share ? static_cast<int64_t>(*share * kBlocks) : 2 * kBlocks;
    const int64_t stored = std::min<int64_t>(budget, 4);
    const TierMetrics& metrics = leader->tier_metrics();
    EXPECT_EQ(metrics.store_budget_blocks.value(), budget);
    for (uint64_t i = 0; i < 2; ++i) {
      const Identity identity =
          Identity::from_hashes(SequenceHash(i), BlockHash(i), SequenceHash(0), i);
      leader->requests().extend("a", {&identity, 1});
    }
    const ScheduledRequest scheduled{.request = "a",
                                     .blocks = {{BlockId(1), BlockId(2)}, {BlockId(3), BlockId(4)}},
                                     .replaces_blocks = true,
                                     .num_computed_tokens = 0,
                                     .num_scheduled_tokens = 8};
    const auto step = leader->requests().build_step({&scheduled, 1});
    EXPECT_EQ(metrics.open_store_blocks.value(), stored);
    EXPECT_EQ(static_cast<int64_t>(metrics.store_dropped_backlog.value()), 4 - stored);
    EXPECT_FALSE(leader->requests().finished("a")) << "no block is held for a store";
    ASSERT_TRUE(worker_->hooks().begin_step(step));
    worker_->hooks().end_step();
    ASSERT_TRUE(leader->wait_idle(std::chrono::steady_clock::now() + std::chrono::seconds(10)));
    EXPECT_EQ(metrics.open_store_blocks.value(), 0);
    EXPECT_EQ(static_cast<int64_t>(leader->resident_blocks(TierId::kG2)), stored);
  }
}

TEST_F(StoreBudgetTest, IsAShare) {
  for (const double share : {0.0, 1.5, -1.0}) {
    const auto leader = make(share);
    ASSERT_FALSE(leader) << share;
    EXPECT_THAT(leader.error().message(), HasSubstr("above 0, at most 1"));
  }
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
