// SPDX-License-Identifier: Apache-2.0
// ConnectorConfig: what an engine's connector is told, and the table of its settings, from which
// the file's table [connector], the variables DYN_KVBM_* and the documentation follow.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/runtime/setting.hpp"

namespace kvbm {

/// How long a leader waits for its workers.
inline constexpr char kInitTimeoutVariable[] = "DYN_KVBM_LEADER_WORKER_INIT_TIMEOUT_SECS";

/// Members have the names of the settings, times without their unit; connector_schema() documents
/// each. Units: bytes over all ranks; a number of blocks, where given, has precedence. 0: not set.
struct ConnectorConfig {
  uint64_t host_bytes = 0;
  uint32_t host_blocks = 0;
  uint64_t disk_bytes = 0;
  uint32_t disk_blocks = 0;
  std::string disk_directory = "/tmp/";
  bool disk_direct_io = true;
  bool disk_zero_fill = false;
  bool disk_filter = true;
  uint32_t min_priority = 0;
  std::string load_mode = "auto";
  std::optional<double> store_budget;  ///< none: "auto"
  uint64_t weights_epoch = 0;
  Duration transfer_timeout = std::chrono::seconds(30);
  Duration init_timeout = std::chrono::seconds(120);
  Duration place_timeout = std::chrono::minutes(30);
  std::string endpoint = "ipc";
  bool record = false;
  bool metrics = false;
  uint32_t metrics_port = 6880;

  [[nodiscard]] bool has_disk_tier() const noexcept { return disk_blocks > 0 || disk_bytes > 0; }
  /// Where the page of metrics is to be served, if it is.
  [[nodiscard]] std::optional<uint16_t> served_port() const noexcept {
    return metrics ? std::optional(static_cast<uint16_t>(metrics_port)) : std::nullopt;
  }

  friend bool operator==(const ConnectorConfig&, const ConnectorConfig&) = default;
};

using ConnectorSetting = Setting<ConnectorConfig>;

[[nodiscard]] const SettingTable<ConnectorConfig>& connector_schema();

/// A name of Dynamo's KVBM that nothing here acts on. A name that ends in `*` is a prefix.
struct RefusedVariable {
  std::string_view name;
  std::string_view reason;
};
[[nodiscard]] std::span<const RefusedVariable> refused_variables() noexcept;

/// Sets what the variable `name`, which begins with DYN_KVBM_, is for, and returns it.
/// Errors: kInvalidArgument (a value out of its range, a name that nobody knows, with the nearest),
/// kUnsupported (one that is refused, with the reason).
Result<const ConnectorSetting*> set_connector_variable(ConnectorConfig& config,
                                                       std::string_view name,
                                                       std::string_view value);

}  // namespace kvbm
