// SPDX-License-Identifier: Apache-2.0
// An engine that reuses GPU blocks while copies of what was in them are still under way.
#include <memory>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/base/stepped_executor.hpp"
#include "kvbm/replay/pretend_engine.hpp"
#include "kvbm/runtime/block_manager.hpp"

namespace kvbm {
namespace {

/// Takes the gates out of loads that say which copies still read the destinations.
class UngatedLoads final : public Channel {
 public:
  explicit UngatedLoads(std::unique_ptr<Channel> channel) : channel_(std::move(channel)) {}

  void send(std::span<const CopyOp> ops, std::span<const OpId> cancels) override {
    std::vector<CopyOp> changed(ops.begin(), ops.end());
    for (CopyOp& op : changed) {
      if (op.dst.tier == TierId::kG1) op.after.clear();
    }
    channel_->send(changed, cancels);
  }
  [[nodiscard]] ChannelInbox receive() override { return channel_->receive(); }
  [[nodiscard]] bool wait(TimePoint deadline) override { return channel_->wait(deadline); }

 private:
  std::unique_ptr<Channel> channel_;
};

enum class Order { kKept, kFencesTakenOut, kGatesTakenOut };

/// Chains that come back after they have left G1, in a G1 that holds hardly more than one.
std::vector<TraceRequest> churn(uint64_t seed) {
  Random random(seed);
  std::vector<TraceRequest> requests;
  for (int i = 0; i < 60; ++i) {
    TraceRequest request;
    const uint64_t chain = random.uniform(8) * 100;
    const uint64_t length = 2 + random.uniform(4);
    for (uint64_t block = 0; block < length; ++block) request.hash_ids.push_back(chain + block);
    requests.push_back(std::move(request));
  }
  return requests;
}

/// The wrong blocks that a run found, or the first error of another kind.
Result<uint64_t> run(uint64_t seed, Order order) {
  SteppedExecutor executor(seed);
  KvBlockManagerConfig config;
  config.block_size = 1;
  config.num_layers = 2;
  config.num_heads = 1;
  config.head_dim = 64;
  config.num_blocks = 8;
  config.host_blocks = 24;
  config.disk_blocks = 48;
  config.enable_offload = true;
  config.offload_path = testing::TempDir();
  config.num_ranks = 2;
  config.copy_threads = 4;  // the executor may run any of four ready streams: copies come late
  BlockManagerParts parts;
  parts.executor = &executor;
  if (order == Order::kFencesTakenOut) {
    parts.on_step_plan = [](StepPlan& plan) { plan.fences.clear(); };
  }
  if (order == Order::kGatesTakenOut) {
    parts.wrap_channel = [](std::unique_ptr<Channel> channel) -> std::unique_ptr<Channel> {
      return std::make_unique<UngatedLoads>(std::move(channel));
    };
  }
  KVBM_ASSIGN_OR_RETURN(const auto manager, BlockManager::create(config, parts));
  PretendEngine engine(*manager, {.bytes = true, .overlap = true, .seed = 1});
  const auto ended = [&engine](const Error& error) -> Result<uint64_t> {
    if (engine.mismatches() == 0) return tl::unexpected(error);
    return engine.mismatches();
  };
  for (const TraceRequest& request : churn(seed)) {
    if (auto served = engine.serve(request); !served) return ended(served.error());
  }
  if (Status finished = engine.finish(); !finished) return ended(finished.error());
  KVBM_TRY(manager->stop());
  return engine.mismatches();
}

constexpr uint64_t kSeeds = 40;

TEST(Fences, KeepEveryByteRightWhileBlocksAreReused) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    const auto mismatches = run(seed, Order::kKept);
    ASSERT_TRUE(mismatches) << mismatches.error();
    EXPECT_EQ(*mismatches, 0u);
  }
}

TEST(Fences, WithoutThemStoresSaveWhatTheNextStepWrote) {
  uint64_t wrong_runs = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const auto mismatches = run(seed, Order::kFencesTakenOut);
    wrong_runs += mismatches && *mismatches > 0 ? 1 : 0;
  }
  EXPECT_GT(wrong_runs, 0u);
}

TEST(Fences, WithoutGatesLoadsOverwriteWhatStoresStillRead) {
  uint64_t wrong_runs = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const auto mismatches = run(seed, Order::kGatesTakenOut);
    wrong_runs += mismatches && *mismatches > 0 ? 1 : 0;
  }
  EXPECT_GT(wrong_runs, 0u);
}

}  // namespace
}  // namespace kvbm
