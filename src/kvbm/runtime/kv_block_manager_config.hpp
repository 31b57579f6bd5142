// SPDX-License-Identifier: Apache-2.0
// KvBlockManagerConfig: everything a block manager is told, as plain values.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "kvbm/base/log.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/ring_size.hpp"
#include "kvbm/runtime/group_config.hpp"

namespace kvbm {

/// The most blocks of a tier, in each group.
inline constexpr uint32_t kMaxTierBlocks = 1U << 30;

/// Members have the names of the configuration keys; config_schema() documents each, with its
/// range. Units: blocks of all groups alike; bytes over all ranks.
struct KvBlockManagerConfig {
  uint32_t block_size = 64;     ///< tokens per block
  std::string device = "host";  ///< of G1, see open_device(); the first of several ranks
  uint32_t num_blocks = 0;  ///< of G1; 0: as many as gpu_memory_fraction of the GPU's memory holds
  uint32_t num_layers = 0;
  double gpu_memory_fraction = 0.9;
  bool enable_offload = false;
  std::string offload_path = "/tmp";

  uint32_t outer_dim = 2;  ///< 2: keys and values; 1: one tensor
  uint32_t num_heads = 0;  ///< KV heads of one rank
  uint32_t head_dim = 0;
  uint32_t dtype_width_bytes = 2;
  uint32_t num_ranks = 1;
  std::vector<GroupConfig> groups = {};  ///< empty: one full-prefix group of num_layers layers

  uint32_t host_blocks = 0;  ///< of G2
  uint64_t host_bytes = 0;   ///< of G2, instead of host_blocks
  uint32_t disk_blocks = 0;  ///< of G3
  uint64_t disk_bytes = 0;   ///< of G3, instead of disk_blocks
  /// Where space for the files cannot be reserved: false: they are sparse.
  bool disk_zero_fill = false;

  std::string policy = "lineage";
  std::string model = {};
  std::string cache_salt = {};
  std::chrono::milliseconds transfer_timeout{30'000};  ///< 0: no limit
  uint32_t copy_threads = 2;
  uint64_t cuda_ring_size = kDefaultRingBytes;  ///< of a GPU's memory, each way; 0: no ring
  uint32_t disk_threads = 4;
  std::string calibration_dir = {};  ///< see calibration_folder()
  LogLevel log_level = LogLevel::kInfo;

  [[nodiscard]] bool has_host_tier() const noexcept { return host_blocks > 0 || host_bytes > 0; }
  [[nodiscard]] bool has_disk_tier() const noexcept { return disk_blocks > 0 || disk_bytes > 0; }

  /// The groups with every override set; never empty after validate().
  [[nodiscard]] std::vector<GroupConfig> effective_groups() const;

  /// Whether every value is in its range and all of them make sense together: nothing is accepted
  /// that would have no effect. Errors: kInvalidArgument, naming the keys and the mend.
  [[nodiscard]] Status validate() const;

  friend bool operator==(const KvBlockManagerConfig&, const KvBlockManagerConfig&) = default;
};

}  // namespace kvbm
