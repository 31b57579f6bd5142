// SPDX-License-Identifier: Apache-2.0
// Config: one configuration out of its sources, and where each value came from.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvbm/base/result.hpp"
#include "kvbm/runtime/connector_config.hpp"
#include "kvbm/runtime/kv_block_manager_config.hpp"
#include "kvbm/runtime/setting.hpp"

namespace kvbm {

/// A TOML file that has been read. `name` is for messages.
struct ConfigFile {
  std::string name;
  std::string text;
};

/// Errors: kNotFound, kIo, kInvalidArgument (above 1 MiB).
[[nodiscard]] Result<ConfigFile> read_config_file(const std::string& path);

struct EnvironmentVariable {
  std::string name;
  std::string value;
};

/// The variables of this process whose names begin with KVBM_.
[[nodiscard]] std::vector<EnvironmentVariable> process_environment();
/// Those of a connector: whose names begin with DYN_KVBM_, and KVBM_CONFIG.
[[nodiscard]] std::vector<EnvironmentVariable> connector_environment();

/// Variables that begin with KVBM_ and are no configuration key. A name that ends in `*` is a
/// prefix.
struct ReservedVariable {
  std::string_view name;
  std::string_view doc;
};
[[nodiscard]] std::span<const ReservedVariable> reserved_variables() noexcept;

/// One value given by the program or on its command line, as text.
struct ConfigSetting {
  std::string key;  ///< of the connector's table: "connector.host_blocks"
  std::string value;
  std::string where = {};  ///< for messages: "--block-size"; empty: "set by the program"
  /// What the value was before it was text, if that is known: it has to fit as in a file.
  std::optional<ConfigLiteral> literal = {};
};

/// Where values come from; each source wins over those above it. All of them are over the defaults.
struct ConfigSources {
  /// Without one, the file that the environment names in KVBM_CONFIG.
  std::optional<ConfigFile> file = {};
  std::vector<EnvironmentVariable> environment = {};
  std::vector<ConfigSetting> settings = {};
};

enum class ConfigSourceKind : uint8_t { kDefault, kFile, kEnvironment, kSetting };

/// Where a value came from. `where` is "default", "kvbm.toml:3", "KVBM_BLOCK_SIZE" or
/// "--block-size".
struct ConfigOrigin {
  ConfigSourceKind kind = ConfigSourceKind::kDefault;
  std::string where = "default";

  friend bool operator==(const ConfigOrigin&, const ConfigOrigin&) = default;
};

/// What a block manager and an engine's connector are told. Valid, and immutable. Threads: a value;
/// one thread at a time.
class Config {
 public:
  /// A wrong value is an error even where a later source replaces it.
  /// Errors: kInvalidArgument with key, value, what is allowed and where it stood; an unknown key
  /// also names the nearest one there is. Those of read_config_file for KVBM_CONFIG.
  [[nodiscard]] static Result<Config> load(const ConfigSources& sources);
  /// The same without check(): for a connector, which needs none of the block manager's keys.
  [[nodiscard]] static Result<Config> read(const ConfigSources& sources);
  /// Whether the block manager's values make sense together. Errors: kInvalidArgument.
  [[nodiscard]] Status check() const;

  [[nodiscard]] const KvBlockManagerConfig& values() const noexcept { return values_; }
  [[nodiscard]] const ConnectorConfig& connector() const noexcept { return connector_; }
  /// Contract: there is such a key, or "connector." and a connector's setting.
  [[nodiscard]] const ConfigOrigin& origin(std::string_view key) const;

  /// Every key, each with its origin as a comment: a file that gives the same values.
  [[nodiscard]] std::string to_toml() const;
  /// The same of the connector: the table [connector].
  [[nodiscard]] std::string connector_to_toml() const;

 private:
  Config() = default;

  Status apply_file(const ConfigFile& file);
  Status apply_environment(const std::vector<EnvironmentVariable>& environment);
  Status apply_settings(const std::vector<ConfigSetting>& settings);
  struct Written;
  template <class Values>
  Status set(const SettingTable<Values>& schema, Values& values, std::string_view name,
             const Written& written);

  KvBlockManagerConfig values_;
  ConnectorConfig connector_;
  std::map<std::string, ConfigOrigin, std::less<>> origins_;  // of what is not a default
};

}  // namespace kvbm
