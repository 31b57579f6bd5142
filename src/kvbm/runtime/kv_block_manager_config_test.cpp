// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/kv_block_manager_config.hpp"

#include <functional>

#include <gtest/gtest.h>

namespace kvbm {
namespace {

KvBlockManagerConfig valid() {
  KvBlockManagerConfig config;
  config.num_blocks = 100;
  config.num_layers = 4;
  config.num_heads = 8;
  config.head_dim = 128;
  return config;
}

GroupConfig group(std::string name, uint32_t num_layers) {
  GroupConfig group;
  group.name = std::move(name);
  group.num_layers = num_layers;
  return group;
}

// What validate() says after `change`.
std::string verdict(const std::function<void(KvBlockManagerConfig&)>& change) {
  KvBlockManagerConfig config = valid();
  change(config);
  const Status status = config.validate();
  if (status) return "valid";
  EXPECT_EQ(status.error().code(), ErrorCode::kInvalidArgument);
  return status.error().message();
}

using Config = KvBlockManagerConfig;

TEST(KvBlockManagerConfig, DefaultsAreTheDocumentedOnes) {
  const KvBlockManagerConfig config;
  EXPECT_EQ(config.block_size, 64U);
  EXPECT_EQ(config.gpu_memory_fraction, 0.9);
  EXPECT_FALSE(config.enable_offload);
  EXPECT_EQ(config.offload_path, "/tmp");
}

TEST(KvBlockManagerConfig, AModelAndItsBlocksAreEnough) {
  EXPECT_EQ(verdict([](Config&) {}), "valid");
  EXPECT_EQ(verdict([](Config& c) { c.num_blocks = 0; }), "valid");
}

TEST(KvBlockManagerConfig, RangesAreCheckedWithoutASource) {
  EXPECT_EQ(verdict([](Config& c) { c.block_size = 0; }),
            "block_size = 0: allowed is an integer from 1 to 65536");
  EXPECT_EQ(verdict([](Config& c) { c.gpu_memory_fraction = 1.5; }),
            "gpu_memory_fraction = 1.5: allowed is a number above 0, at most 1");
  EXPECT_EQ(verdict([](Config& c) { c.device = "tpu"; }),
            "device = \"tpu\": allowed is host, cuda or cuda:N");
  EXPECT_EQ(verdict([](Config& c) { c.policy = "lf\nu"; }),
            "policy = \"lf?u\": allowed is lineage, lru or fifo");
  EXPECT_EQ(verdict([](Config& c) { c.log_level = static_cast<LogLevel>(99); }).substr(0, 12),
            "log_level = ");
  EXPECT_EQ(verdict([](Config& c) { c.transfer_timeout = std::chrono::milliseconds(-1); }),
            "transfer_timeout = -1: allowed is an integer from 0 to 86400000");
  EXPECT_EQ(verdict([](Config& c) { c.host_bytes = ~uint64_t{0}; }),
            "host_bytes = 18446744073709551615: allowed is a number of bytes, or a size such as "
            "\"64 GiB\", below 8 EiB");
  EXPECT_EQ(verdict([](Config& c) { c.model = std::string(1, '\0'); }),
            "model = \"?\": allowed is a text without control characters");
  EXPECT_EQ(verdict([](Config& c) { c.groups = {group("a b", 4)}; }),
            "groups = \"full:name=a b,layers=4\": group \"a b\": a name has letters, digits, _ and "
            "-, at least one");
}

TEST(KvBlockManagerConfig, TheLayersComeFromNumLayersOrFromGroups) {
  EXPECT_EQ(verdict([](Config& c) { c.num_layers = 0; }),
            "num_layers is not set: set it to the layers of the model, or set groups");
  EXPECT_EQ(verdict([](Config& c) {
              c.num_layers = 0;
              c.groups = {group("a", 1), group("b", 3)};
            }),
            "valid");
  EXPECT_EQ(verdict([](Config& c) { c.groups = {group("a", 1), group("b", 3)}; }), "valid");
  EXPECT_EQ(verdict([](Config& c) {
              c.groups = {group("a", 1), group("b", 2)};
            }),
            "num_layers = 4 is not the 3 layers of groups = "
            "\"full:name=a,layers=1;full:name=b,layers=2\": drop num_layers");
  EXPECT_EQ(verdict([](Config& c) {
              c.num_layers = 0;
              c.groups = {group("a", 65535), group("b", 1)};
            }),
            "groups = \"full:name=a,layers=65535;full:name=b,layers=1\": 65536 layers together are "
            "more than 65535");
}

TEST(KvBlockManagerConfig, EveryGroupHasHeadsOfASize) {
  EXPECT_EQ(verdict([](Config& c) { c.num_heads = 0; }),
            "num_heads is not set: set it, or set it in every group; \"full\" has none");
  EXPECT_EQ(verdict([](Config& c) { c.head_dim = 0; }),
            "head_dim is not set: set it, or set it in every group; \"full\" has none");
  const auto with_heads_in = [](bool first, bool second) {
    return verdict([&](Config& c) {
      c.num_heads = 0;
      c.groups = {group("a", 1), group("b", 3)};
      if (first) c.groups[0].num_heads = 2;
      if (second) c.groups[1].num_heads = 2;
    });
  };
  EXPECT_EQ(with_heads_in(true, true), "valid");
  EXPECT_EQ(with_heads_in(true, false),
            "num_heads is not set: set it, or set it in every group; \"b\" has none");
}

TEST(KvBlockManagerConfig, ATierBelowTheGpuNeedsOffload) {
  EXPECT_EQ(verdict([](Config& c) { c.host_blocks = 10; }),
            "host_blocks = 10 needs enable_offload = true: set that, or drop host_blocks");
  EXPECT_EQ(verdict([](Config& c) { c.host_bytes = 10; }),
            "host_bytes = 10 needs enable_offload = true: set that, or drop host_bytes");
  EXPECT_EQ(verdict([](Config& c) { c.disk_blocks = 10; }),
            "disk_blocks = 10 needs enable_offload = true: set that, or drop disk_blocks");
  EXPECT_EQ(verdict([](Config& c) { c.disk_bytes = 10; }),
            "disk_bytes = 10 needs enable_offload = true: set that, or drop disk_bytes");
}

TEST(KvBlockManagerConfig, OffloadNeedsATier) {
  EXPECT_EQ(verdict([](Config& c) { c.enable_offload = true; }),
            "enable_offload = true has nowhere to offload to: set host_blocks, host_bytes, "
            "disk_blocks or disk_bytes, or drop enable_offload");
  for (const auto tier : {&Config::host_blocks, &Config::disk_blocks}) {
    EXPECT_EQ(verdict([tier](Config& c) {
                c.enable_offload = true;
                c.*tier = 1;
              }),
              "valid");
  }
  for (const auto tier : {&Config::host_bytes, &Config::disk_bytes}) {
    EXPECT_EQ(verdict([tier](Config& c) {
                c.enable_offload = true;
                c.*tier = 1;
              }),
              "valid");
  }
}

TEST(KvBlockManagerConfig, ATierHasOneSize) {
  EXPECT_EQ(verdict([](Config& c) {
              c.enable_offload = true;
              c.host_blocks = 1;
              c.host_bytes = 2;
            }),
            "host_blocks = 1 and host_bytes = 2 both size host memory: drop one");
  EXPECT_EQ(verdict([](Config& c) {
              c.enable_offload = true;
              c.disk_blocks = 1;
              c.disk_bytes = 2;
            }),
            "disk_blocks = 1 and disk_bytes = 2 both size the disk tier: drop one");
}

TEST(KvBlockManagerConfig, ADiskTierNeedsADirectory) {
  EXPECT_EQ(verdict([](Config& c) {
              c.enable_offload = true;
              c.disk_blocks = 1;
              c.offload_path = "";
            }),
            "offload_path = \"\" is no directory for the disk tier: name one");
}

TEST(KvBlockManagerConfig, WhatWouldHaveNoEffectIsRefused) {
  EXPECT_EQ(verdict([](Config& c) { c.gpu_memory_fraction = 0.5; }),
            "gpu_memory_fraction = 0.5 has no effect beside num_blocks = 100: drop one");
  EXPECT_EQ(verdict([](Config& c) {
              c.num_blocks = 0;
              c.device = "cuda";
              c.gpu_memory_fraction = 0.5;
            }),
            "valid");
  EXPECT_EQ(verdict([](Config& c) {
              c.num_blocks = 0;
              c.gpu_memory_fraction = 0.5;
            }),
            "gpu_memory_fraction = 0.5 has no effect with device = \"host\", which is no GPU: drop "
            "one");
  EXPECT_EQ(verdict([](Config& c) { c.offload_path = "/nvme"; }),
            "offload_path = \"/nvme\" has no effect without a disk tier: set disk_blocks or "
            "disk_bytes, or drop it");
  EXPECT_EQ(verdict([](Config& c) { c.disk_zero_fill = true; }),
            "disk_zero_fill = true has no effect without a disk tier: set disk_blocks or "
            "disk_bytes, or drop it");
  EXPECT_EQ(verdict([](Config& c) { c.disk_threads = 8; }),
            "disk_threads = 8 has no effect without a disk tier: set disk_blocks or disk_bytes, or "
            "drop it");
  EXPECT_EQ(
      verdict([](Config& c) { c.transfer_timeout = std::chrono::seconds(1); }),
      "transfer_timeout = 1000 has no effect without enable_offload = true: set that, or drop "
      "it");
  EXPECT_EQ(verdict([](Config& c) {
              c.enable_offload = true;
              c.disk_blocks = 1;
              c.offload_path = "/nvme";
              c.disk_zero_fill = true;
              c.disk_threads = 8;
              c.transfer_timeout = std::chrono::seconds(1);
            }),
            "valid");
}

TEST(KvBlockManagerConfig, ARingIsOfAGpuAndHasRoomForItsSlots) {
  const auto ring = [](std::string device, uint64_t size_bytes) {
    return verdict([&](Config& c) {
      c.device = std::move(device);
      c.cuda_ring_size = size_bytes;
    });
  };
  EXPECT_EQ(ring("cuda:1", 0), "valid");
  EXPECT_EQ(ring("cuda:1", 8192), "valid");
  EXPECT_EQ(ring("cuda:1", 8191),
            "cuda_ring_size = 8191 has no slots: give it 8 KiB and more, or 0 for no ring");
  EXPECT_EQ(ring("host", kDefaultRingBytes), "valid");
  EXPECT_EQ(ring("host", 0),
            "cuda_ring_size = 0 has no effect with device = \"host\", which is no GPU: drop one");
}

TEST(KvBlockManagerConfig, EffectiveGroupsHaveEveryOverrideSet) {
  KvBlockManagerConfig config = valid();
  ASSERT_EQ(config.effective_groups().size(), 1U);
  EXPECT_EQ(config.effective_groups().front(), (GroupConfig{.name = "full",
                                                            .num_layers = 4,
                                                            .retention = Retention::full_prefix(),
                                                            .outer_dim = 2,
                                                            .num_heads = 8,
                                                            .head_dim = 128,
                                                            .dtype_width_bytes = 2}));
  config.groups = {group("a", 1), group("b", 3)};
  config.groups[1].retention = Retention::last_window(5);
  config.groups[1].outer_dim = 1;
  config.groups[1].num_heads = 3;
  config.groups[1].head_dim = 4;
  config.groups[1].dtype_width_bytes = 1;
  const std::vector<GroupConfig> groups = config.effective_groups();
  ASSERT_EQ(groups.size(), 2U);
  EXPECT_EQ(groups[0].num_heads, 8U);
  EXPECT_EQ(groups[1], config.groups[1]);
}

}  // namespace
}  // namespace kvbm
