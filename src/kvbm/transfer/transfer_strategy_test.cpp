// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/transfer_strategy.hpp"

#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/allocation_meter.hpp"

namespace kvbm {
namespace {

constexpr StorageKind kKinds[] = {StorageKind::kSystem, StorageKind::kPinned, StorageKind::kDevice,
                                  StorageKind::kFile};
constexpr BlockMatch kMatches[] = {BlockMatch::kSameBytes, BlockMatch::kReshaped,
                                   BlockMatch::kPartOfBlock};

constexpr TransferEnd here(StorageKind kind) { return {.storage = kind}; }
constexpr TransferEnd remote(StorageKind kind) {
  return {.storage = kind, .locality = Locality::kRemote};
}

constexpr DeviceCapabilities kHostDevice{
    .host_accessible = true, .copies_pageable_host = true, .page_bytes = 4096};
constexpr DeviceCapabilities kGpu{.page_bytes = 4096};

std::vector<TransferEnd> all_ends() {
  std::vector<TransferEnd> ends;
  for (const StorageKind kind : kKinds) {
    ends.push_back(here(kind));
    ends.push_back(remote(kind));
  }
  ends.push_back(remote(StorageKind::kRemote));  // says nothing
  return ends;
}

/// The rules that every hop keeps, whatever the table says.
void expect_possible(const TransferHop& hop, const StrategyQuestion& question) {
  const auto memory = [](const TransferEnd& end) { return end.storage != StorageKind::kFile; };
  const auto is_here = [](const TransferEnd& end) { return end.locality == Locality::kHere; };
  const auto host_reaches = [&](const TransferEnd& end) {
    return end.storage != StorageKind::kDevice || question.device.host_accessible;
  };
  switch (hop.kind) {
    case HopKind::kDevice:
      for (const TransferEnd& end : {hop.from, hop.to}) {
        EXPECT_TRUE(memory(end) && is_here(end));
        EXPECT_TRUE(end.storage != StorageKind::kSystem || question.device.copies_pageable_host);
      }
      return;
    case HopKind::kHost:
      for (const TransferEnd& end : {hop.from, hop.to}) {
        EXPECT_TRUE(memory(end) && is_here(end) && end.storage != StorageKind::kDevice);
      }
      return;
    case HopKind::kFile: {
      EXPECT_TRUE(is_here(hop.from) && is_here(hop.to));
      EXPECT_NE(memory(hop.from), memory(hop.to));
      const TransferEnd& other = memory(hop.from) ? hop.from : hop.to;
      EXPECT_TRUE(host_reaches(other) ||
                  (question.allowed.allow_gds && question.not_direct.empty()));
      return;
    }
    case HopKind::kRemote:
      EXPECT_TRUE(memory(hop.from) && memory(hop.to));
      EXPECT_NE(is_here(hop.from), is_here(hop.to));
      for (const TransferEnd& end : {hop.from, hop.to}) {
        if (end.storage != StorageKind::kDevice) continue;
        EXPECT_TRUE(question.remote_agent->device_memory);
        EXPECT_TRUE(question.allowed.allow_gpu_rdma || (is_here(end) && host_reaches(end)));
      }
      return;
  }
}

TEST(TransferStrategy, EveryPairOfPlacesHasAStrategyOrAReason) {
  size_t strategies = 0;
  size_t staged = 0;
  size_t refused = 0;
  for (unsigned flags = 0; flags < 128; ++flags) {
    const auto is_set = [flags](unsigned bit) { return (flags >> bit & 1U) != 0; };
    const DeviceCapabilities device{
        .host_accessible = is_set(0), .copies_pageable_host = is_set(1), .page_bytes = 4096};
    const RemoteAgentCapabilities agent{.device_memory = is_set(6)};
    for (const TransferEnd& src : all_ends()) {
      for (const TransferEnd& dst : all_ends()) {
        for (const BlockMatch match : kMatches) {
          const StrategyQuestion question{
              .src = src,
              .dst = dst,
              .match = match,
              .device = device,
              .allowed = {.allow_gds = is_set(2), .allow_gpu_rdma = is_set(3)},
              .not_direct = is_set(4) ? "" : "no file engine reaches it",
              .remote_agent = is_set(5) ? &agent : nullptr};
          SCOPED_TRACE(to_string(src) + " to " + to_string(dst) + ", flags " +
                       std::to_string(flags));
          const Result<TransferStrategy> strategy = choose_strategy(question);
          if (!strategy) {
            ++refused;
            EXPECT_EQ(strategy.error().code(), ErrorCode::kUnsupported);
            EXPECT_GT(strategy.error().message().size(), 20U);
            continue;
          }
          ++strategies;
          SCOPED_TRACE(describe(*strategy));
          EXPECT_FALSE(strategy->reason.empty());
          EXPECT_TRUE(strategy->note.empty());
          EXPECT_EQ(strategy->first.from, src);
          EXPECT_EQ((strategy->second ? *strategy->second : strategy->first).to, dst);
          expect_possible(strategy->first, question);
          if (!strategy->second) continue;
          ++staged;
          expect_possible(*strategy->second, question);
          EXPECT_EQ(strategy->first.to, strategy->second->from);
          EXPECT_EQ(strategy->first.to.locality, Locality::kHere);
          // What is not the same bytes needs a copy that knows strides.
          if (match != BlockMatch::kSameBytes) {
            const auto copies = [](HopKind kind) {
              return kind == HopKind::kDevice || kind == HopKind::kHost;
            };
            EXPECT_TRUE(copies(strategy->first.kind) || copies(strategy->second->kind));
          }
        }
      }
    }
  }
  EXPECT_GT(strategies, 1000U);
  EXPECT_GT(staged, 500U);
  EXPECT_GT(refused, 500U);
}

/// What a place is to this worker alone, with nothing turned on.
std::string words(const TransferEnd& src, const TransferEnd& dst, const DeviceCapabilities& device,
                  BlockMatch match = BlockMatch::kSameBytes) {
  const auto strategy = choose_strategy({.src = src, .dst = dst, .match = match, .device = device});
  if (!strategy) return "refused: " + strategy.error().message();
  const std::string text = describe(*strategy);
  return text.substr(0, text.find(": "));
}

TEST(TransferStrategy, OnAHostDeviceOnlyFilesAreStaged) {
  using enum StorageKind;
  for (const StorageKind src : {kSystem, kPinned, kDevice}) {
    for (const StorageKind dst : {kSystem, kPinned, kDevice}) {
      EXPECT_EQ(words(here(src), here(dst), kHostDevice),
                to_string(here(src)) + " to " + to_string(here(dst)) + " (device copy)");
    }
    EXPECT_EQ(words(here(src), here(kFile), kHostDevice),
              to_string(here(src)) + " to file (file engine)");
  }
  EXPECT_EQ(words(here(kFile), here(kFile), kHostDevice),
            "file to system (file engine), system to file (file engine)");
  EXPECT_EQ(words(here(kDevice), here(kFile), kHostDevice, BlockMatch::kReshaped),
            "device to system (device copy), system to file (file engine)");
  EXPECT_EQ(words(here(kFile), here(kSystem), kHostDevice, BlockMatch::kPartOfBlock),
            "file to system (file engine), system to system (device copy)");
}

TEST(TransferStrategy, WhatAGpuDoesNotReachGoesThroughPinnedMemory) {
  using enum StorageKind;
  EXPECT_EQ(words(here(kPinned), here(kDevice), kGpu), "pinned to device (device copy)");
  EXPECT_EQ(words(here(kSystem), here(kDevice), kGpu),
            "system to pinned (host copy), pinned to device (device copy)");
  EXPECT_EQ(words(here(kDevice), here(kSystem), kGpu),
            "device to pinned (device copy), pinned to system (host copy)");
  EXPECT_EQ(words(here(kSystem), here(kPinned), kGpu), "system to pinned (host copy)");
  EXPECT_EQ(words(here(kDevice), here(kFile), kGpu),
            "device to pinned (device copy), pinned to file (file engine)");
  EXPECT_EQ(words(here(kFile), here(kDevice), kGpu, BlockMatch::kPartOfBlock),
            "file to pinned (file engine), pinned to device (device copy)");
}

TEST(TransferStrategy, ASlotOfAFileIsWrittenWhole) {
  EXPECT_NE(words(here(StorageKind::kSystem), here(StorageKind::kFile), kHostDevice,
                  BlockMatch::kPartOfBlock)
                .find("all layers and heads"),
            std::string::npos);
}

TEST(TransferStrategy, GpuDirectStorageIsTakenOnlyIfItIsAllowedAndThere) {
  constexpr std::string_view kMissing = "libcufile is not found";
  for (const bool allowed : {false, true}) {
    for (const std::string_view not_direct : {std::string_view(), kMissing}) {
      StrategyQuestion question{.src = here(StorageKind::kDevice),
                                .dst = here(StorageKind::kFile),
                                .device = kGpu,
                                .allowed = {.allow_gds = allowed},
                                .not_direct = not_direct};
      for (int way = 0; way < 2; ++way) {
        const auto strategy = choose_strategy(question);
        ASSERT_TRUE(strategy);
        EXPECT_EQ(strategy->is_staged(), !(allowed && not_direct.empty()));
        EXPECT_EQ(strategy->reason.find("allow_gds is off") != std::string_view::npos, !allowed);
        EXPECT_EQ(strategy->reason == kMissing, allowed && !not_direct.empty());
        std::swap(question.src, question.dst);
      }
    }
  }
}

TEST(TransferStrategy, GpuDirectStorageMovesWholeBlocksOfOneFormat) {
  for (const BlockMatch match : {BlockMatch::kSameBytes, BlockMatch::kReshaped}) {
    const auto strategy = choose_strategy({.src = here(StorageKind::kFile),
                                           .dst = here(StorageKind::kDevice),
                                           .match = match,
                                           .device = kGpu,
                                           .allowed = {.allow_gds = true},
                                           .not_direct = ""});
    ASSERT_TRUE(strategy);
    EXPECT_EQ(strategy->is_staged(), match != BlockMatch::kSameBytes);
  }
}

TEST(TransferStrategy, OtherWorkersAskForARemoteAgent) {
  const StrategyQuestion without{
      .src = here(StorageKind::kPinned), .dst = remote(StorageKind::kPinned), .device = kGpu};
  const auto refused = choose_strategy(without);
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message().find("remote agent"), std::string::npos);

  RemoteAgentCapabilities agent;
  StrategyQuestion with = without;
  with.remote_agent = &agent;
  EXPECT_EQ(choose_strategy(with)->first.kind, HopKind::kRemote);
  EXPECT_FALSE(choose_strategy(with)->is_staged());

  // Both have to be: that it is allowed, and that the agent can.
  StrategyQuestion from_gpu = with;
  from_gpu.src = here(StorageKind::kDevice);
  StrategyQuestion to_gpu = with;
  to_gpu.dst = remote(StorageKind::kDevice);
  for (const bool allowed : {false, true}) {
    for (const bool can : {false, true}) {
      agent.device_memory = can;
      from_gpu.allowed.allow_gpu_rdma = to_gpu.allowed.allow_gpu_rdma = allowed;
      EXPECT_EQ(choose_strategy(from_gpu)->is_staged(), !(allowed && can));
      EXPECT_EQ(choose_strategy(to_gpu).has_value(), allowed && can);
    }
  }
}

TEST(TransferStrategy, ARemoteAgentMovesPartsAndOtherFormatsInOneHop) {
  const RemoteAgentCapabilities agent;
  for (const BlockMatch match : kMatches) {
    StrategyQuestion question{.src = here(StorageKind::kSystem),
                              .dst = remote(StorageKind::kSystem),
                              .match = match,
                              .device = kHostDevice,
                              .remote_agent = &agent};
    EXPECT_FALSE(choose_strategy(question)->is_staged());
    std::swap(question.src, question.dst);
    EXPECT_FALSE(choose_strategy(question)->is_staged());
  }
}

TEST(TransferStrategy, AWishForNixlThatIsNotMetIsSaid) {
  for (const NativeVsNixlPolicy policy :
       {NativeVsNixlPolicy::kPreferNative, NativeVsNixlPolicy::kPreferNixl,
        NativeVsNixlPolicy::kAutomatic}) {
    const auto strategy = choose_strategy({.src = here(StorageKind::kPinned),
                                           .dst = here(StorageKind::kFile),
                                           .device = kGpu,
                                           .preferences = {.native_vs_nixl = policy}});
    ASSERT_TRUE(strategy);
    EXPECT_EQ(strategy->first.kind, HopKind::kFile);
    EXPECT_EQ(describe(*strategy).find("NIXL was preferred") != std::string::npos,
              policy == NativeVsNixlPolicy::kPreferNixl)
        << to_string(policy);
  }
}

TEST(TransferStrategy, AStrategyCostsNoAllocation) {
  const testing::AllocationMeter meter;
  for (const StorageKind src : kKinds) {
    for (const StorageKind dst : kKinds) {
      EXPECT_TRUE(choose_strategy({.src = here(src), .dst = here(dst), .device = kGpu}));
    }
  }
  EXPECT_EQ(meter.count(), 0U);
}

TEST(TransferStrategy, HopsKnowTheirRoutes) {
  std::set<TransferRoute> routes;
  for (const StorageKind src : kKinds) {
    for (const StorageKind dst : kKinds) {
      const auto strategy =
          choose_strategy({.src = here(src), .dst = here(dst), .device = kGpu}).value();
      routes.insert(strategy.first.route());
      if (strategy.second) routes.insert(strategy.second->route());
    }
  }
  const RemoteAgentCapabilities agent;
  StrategyQuestion question{.src = here(StorageKind::kSystem),
                            .dst = remote(StorageKind::kSystem),
                            .device = kGpu,
                            .remote_agent = &agent};
  EXPECT_EQ(choose_strategy(question)->first.route(), TransferRoute::kMemoryToRemote);
  std::swap(question.src, question.dst);
  EXPECT_EQ(choose_strategy(question)->first.route(), TransferRoute::kRemoteToMemory);
  routes.insert({TransferRoute::kMemoryToRemote, TransferRoute::kRemoteToMemory});
  EXPECT_EQ(routes.size(), kNumTransferRoutes);
}

}  // namespace
}  // namespace kvbm
