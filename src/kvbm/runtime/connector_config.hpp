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
#include <variant>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/runtime/config_schema.hpp"

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

/// Where a setting's value lives; the alternative is the setting's type. A Duration is written in
/// seconds, a share that is not set as "auto".
using ConnectorMember =
    std::variant<bool ConnectorConfig::*, uint32_t ConnectorConfig::*, uint64_t ConnectorConfig::*,
                 Duration ConnectorConfig::*, std::optional<double> ConnectorConfig::*,
                 std::string ConnectorConfig::*>;

/// What a text without choices says.
enum class TextForm : uint8_t { kDirectory, kEndpoint };

/// How a variable writes a setting's value.
enum class VariableForm : uint8_t { kSame, kOpposite, kGigabytes };

struct ConnectorSetting {
  std::string_view name;
  ConnectorMember member;
  std::string_view variable = {};  ///< "DYN_KVBM_…"; empty: none
  VariableForm form = VariableForm::kSame;
  std::string_view unit = {};  ///< "bytes": it may be written as a size such as "64 GiB"
  std::string_view doc;        ///< one sentence or two, without a line break
  uint64_t min = 0;            ///< of integers
  uint64_t max = 0;            ///< of integers, sizes and seconds
  std::span<const std::string_view> choices = {};
  TextForm text_form = TextForm::kDirectory;

  /// "connector.host_bytes": for messages and ConfigSetting::key.
  [[nodiscard]] std::string key() const;
  [[nodiscard]] bool is_size() const noexcept { return unit == "bytes"; }
  [[nodiscard]] std::string allowed() const;
  /// The setting's value in `config`, and the default, as TOML.
  [[nodiscard]] std::string value_in(const ConnectorConfig& config) const;
  [[nodiscard]] std::string default_value() const { return value_in({}); }
  [[nodiscard]] bool accepts(ConfigLiteral literal) const;
  /// Errors: kInvalidArgument, with the reason alone.
  Status set(ConnectorConfig& config, std::string_view text) const;
  /// The same of the variable's value.
  Status set_from_variable(ConnectorConfig& config, std::string_view text) const;
};

/// Every setting, in the order of the documentation.
[[nodiscard]] std::span<const ConnectorSetting> connector_schema();
/// Null if there is no such setting.
[[nodiscard]] const ConnectorSetting* find_connector_setting(std::string_view name);
/// The setting that `wrong` was most likely meant to be.
[[nodiscard]] const ConnectorSetting& nearest_connector_setting(std::string_view wrong);

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
