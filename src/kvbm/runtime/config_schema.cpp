// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/config_schema.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <string_view>
#include <vector>

#include "kvbm/blocks/eviction_policy.hpp"
#include "kvbm/runtime/devices.hpp"

namespace kvbm {
namespace {

using Values = KvBlockManagerConfig;

constexpr uint64_t kMaxBytes = std::numeric_limits<int64_t>::max();
constexpr uint64_t kMaxTimeout = 24ULL * 60 * 60 * 1000;
constexpr std::string_view kSizeForm =
    "a number of bytes, or a size such as \"64 GiB\", below 8 EiB";
constexpr std::array<std::string_view, 4> kWidths = {"1", "2", "4", "8"};
constexpr std::array<std::string_view, 6> kLevels = {"trace",   "debug", "info",
                                                     "warning", "error", "off"};

std::vector<ConfigKey> make_schema() {
  return {
      {.name = "block_size",
       .member = &Values::block_size,
       .unit = "tokens",
       .doc = "Tokens per block.",
       .min = 1,
       .max = 65536},
      {.name = "device",
       .member = &Values::device,
       .doc = "Where G1 is: `cuda:N` (`cuda` is `cuda:0`), or `host` for host memory in its place. "
              "Each further rank takes the next GPU if there are enough, else all share one.",
       .form = "host, cuda or cuda:N",
       .has_form = is_device_name},
      {.name = "num_blocks",
       .member = &Values::num_blocks,
       .unit = "blocks",
       .doc = "Blocks of GPU memory (G1). 0: as many as `gpu_memory_fraction` allows.",
       .max = kMaxTierBlocks},
      {.name = "num_layers",
       .member = &Values::num_layers,
       .unit = "layers",
       .doc = "Layers of the model. 0 where `groups` says it; if both do, they agree.",
       .max = 65535},
      {.name = "gpu_memory_fraction",
       .member = &Values::gpu_memory_fraction,
       .doc =
           "The part of the free GPU memory that blocks may take. Only where `num_blocks` is 0 and "
           "`device` is a GPU."},
      {.name = "enable_offload",
       .member = &Values::enable_offload,
       .doc = "Keep blocks in host memory or on disk too. Needs a size for at least one of them."},
      {.name = "offload_path",
       .member = &Values::offload_path,
       .doc = "The directory of the disk tier's files. Only with a disk tier."},
      {.name = "outer_dim",
       .member = &Values::outer_dim,
       .doc = "2 for keys and values; 1 for a single tensor (MLA).",
       .min = 1,
       .max = 2},
      {.name = "num_heads",
       .member = &Values::num_heads,
       .unit = "heads",
       .doc = "KV heads on one rank. Must be set, here or in every group.",
       .max = 8192},
      {.name = "head_dim",
       .member = &Values::head_dim,
       .unit = "elements",
       .doc = "Size of one head. Must be set, here or in every group.",
       .max = 65536},
      {.name = "dtype_width_bytes",
       .member = &Values::dtype_width_bytes,
       .unit = "bytes",
       .doc = "Width of one element.",
       .choices = kWidths},
      {.name = "num_ranks",
       .member = &Values::num_ranks,
       .unit = "ranks",
       .doc = "Workers that hold a shard of every block (tensor parallelism).",
       .min = 1,
       .max = 1024},
      {.name = "groups",
       .member = &Values::groups,
       .doc =
           "Layer groups, see below. Empty: one group that keeps the full prefix, of `num_layers` "
           "layers."},
      {.name = "host_blocks",
       .member = &Values::host_blocks,
       .unit = "blocks",
       .doc = "Blocks of host memory (G2). 0: none, unless `host_bytes` is set.",
       .max = kMaxTierBlocks},
      {.name = "host_bytes",
       .member = &Values::host_bytes,
       .unit = "bytes",
       .doc = "Host memory (G2) over all ranks, instead of `host_blocks`.",
       .max = kMaxBytes,
       .form = kSizeForm},
      {.name = "disk_blocks",
       .member = &Values::disk_blocks,
       .unit = "blocks",
       .doc = "Blocks on disk (G3). 0: none, unless `disk_bytes` is set.",
       .max = kMaxTierBlocks},
      {.name = "disk_bytes",
       .member = &Values::disk_bytes,
       .unit = "bytes",
       .doc = "Disk space (G3) over all ranks, instead of `disk_blocks`.",
       .max = kMaxBytes,
       .form = kSizeForm},
      {.name = "disk_zero_fill",
       .member = &Values::disk_zero_fill,
       .doc = "Fill the files with zeros at the start where space cannot be reserved. Without it "
              "they are sparse there, and a write may fail later. Only with a disk tier."},
      {.name = "policy",
       .member = &Values::policy,
       .doc = "Which idle block makes room for a new one.",
       .choices = policy_names()},
      {.name = "model",
       .member = &Values::model,
       .doc = "Name and revision of the weights: blocks of different models never meet."},
      {.name = "cache_salt",
       .member = &Values::cache_salt,
       .doc = "Keeps tenants apart: blocks of different salts never meet."},
      {.name = "transfer_timeout",
       .member = &Values::transfer_timeout,
       .unit = "ms",
       .doc =
           "How long a load from a lower tier may take, and any copy may wait for its start. 0: no "
           "limit. Only with `enable_offload`.",
       .max = kMaxTimeout},
      {.name = "copy_threads",
       .member = &Values::copy_threads,
       .unit = "threads",
       .doc = "Threads that copy between device and host memory, on each rank.",
       .min = 1,
       .max = 256},
      {.name = "cuda_ring_size",
       .member = &Values::cuda_ring_size,
       .unit = "bytes",
       .doc = "Memory of each GPU, each way, for the ring that large copies go through. 0: no "
              "ring; else at least 8 KiB. Only where `device` is a GPU.",
       .max = kMaxBytes,
       .form = kSizeForm},
      {.name = "disk_threads",
       .member = &Values::disk_threads,
       .unit = "threads",
       .doc = "Threads that read and write files, on each rank. Only with a disk tier.",
       .min = 1,
       .max = 256},
      {.name = "calibration_dir",
       .member = &Values::calibration_dir,
       .doc =
           "The folder that keeps what copies cost, as measured on this machine. Empty: `kvbm` in "
           "`XDG_CACHE_HOME`, or in `~/.cache`; `off`: kept nowhere."},
      {.name = "log_level",
       .member = &Values::log_level,
       .doc =
           "The least important records that are logged, to standard error. A program that hands "
           "in a log sink decides with its level instead.",
       .choices = kLevels},
  };
}

}  // namespace

const SettingTable<KvBlockManagerConfig>& config_schema() {
  static const SettingTable<KvBlockManagerConfig> schema("", make_schema());
  return schema;
}

std::string option_of(const ConfigKey& key) {
  std::string text = "--" + std::string(key.name);
  std::ranges::replace(text, '_', '-');
  return text;
}

std::string environment_variable_of(const ConfigKey& key) {
  std::string text = "KVBM_";
  for (const char letter : key.name) {
    text += letter >= 'a' && letter <= 'z' ? static_cast<char>(letter - 'a' + 'A') : letter;
  }
  return text;
}

}  // namespace kvbm
