// SPDX-License-Identifier: Apache-2.0
// DynamoVariables: the environment variables DYN_KVBM_*, as users of Dynamo's KVBM set them.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/runtime/config.hpp"

namespace kvbm {

/// How long a leader waits for its workers.
inline constexpr char kInitTimeoutVariable[] = "DYN_KVBM_LEADER_WORKER_INIT_TIMEOUT_SECS";

/// Units: bytes; a number of blocks, where given, has precedence. 0: not set.
struct DynamoVariables {
  uint64_t host_bytes = 0;               ///< DYN_KVBM_CPU_CACHE_GB
  uint64_t disk_bytes = 0;               ///< DYN_KVBM_DISK_CACHE_GB
  uint32_t host_blocks = 0;              ///< DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS
  uint32_t disk_blocks = 0;              ///< DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS
  std::string disk_directory = "/tmp/";  ///< DYN_KVBM_DISK_CACHE_DIR
  bool disk_zero_fill = false;           ///< DYN_KVBM_DISK_ZEROFILL_FALLBACK
  bool disk_direct_io = true;            ///< not DYN_KVBM_DISK_DISABLE_O_DIRECT
  bool disk_filter = true;               ///< not DYN_KVBM_DISABLE_DISK_OFFLOAD_FILTER
  /// DYN_KVBM_HOST_OFFLOAD_PREFIX_MIN_PRIORITY, 0 to 100
  uint32_t min_priority = 0;
  bool record = false;  ///< DYN_KVBM_ENABLE_RECORD
  /// DYN_KVBM_METRICS_PORT, if DYN_KVBM_METRICS is true
  std::optional<uint16_t> metrics_port;
  Duration init_timeout = std::chrono::seconds(120);  ///< kInitTimeoutVariable

  friend bool operator==(const DynamoVariables&, const DynamoVariables&) = default;
};

/// The variables of this process whose names begin with DYN_KVBM_.
[[nodiscard]] std::vector<EnvironmentVariable> dynamo_environment();

/// A GB is 10^9 bytes and may have a fraction. Errors: kInvalidArgument (a value out of its range,
/// a name that nobody knows), kUnsupported (one that this version does not act on).
[[nodiscard]] Result<DynamoVariables> read_dynamo_variables(
    const std::vector<EnvironmentVariable>& environment);

}  // namespace kvbm
