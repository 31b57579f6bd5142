// SPDX-License-Identifier: Apache-2.0
// The table of all configuration keys, from which parsing, checks, --help and the documentation
// follow.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "kvbm/base/log.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/runtime/kv_block_manager_config.hpp"

namespace kvbm {

/// Where a key's value lives; the alternative is the key's type.
using ConfigMember = std::variant<
    bool KvBlockManagerConfig::*, uint32_t KvBlockManagerConfig::*,
    uint64_t KvBlockManagerConfig::*, double KvBlockManagerConfig::*,
    std::string KvBlockManagerConfig::*, std::chrono::milliseconds KvBlockManagerConfig::*,
    LogLevel KvBlockManagerConfig::*, std::vector<GroupConfig> KvBlockManagerConfig::*>;

/// What a TOML file can write for a value.
enum class ConfigLiteral : uint8_t { kBoolean, kInteger, kReal, kText };

/// One key. A number of bytes is written as an integer or as a size such as "64 GiB".
struct ConfigKey {
  std::string_view name;
  ConfigMember member;
  std::string_view unit = {};  ///< "tokens", "blocks", "bytes", "ms"
  std::string_view doc;        ///< one sentence or two, without a line break
  uint64_t min = 0;            ///< of integers, sizes and durations
  uint64_t max = 0;
  std::span<const std::string_view> choices = {};     ///< if there are any: one of these
  bool (*has_form)(std::string_view text) = nullptr;  ///< of texts, with `form` in words
  std::string_view form = {};

  /// "an integer from 1 to 65536", "true or false", "lineage, lru or fifo".
  [[nodiscard]] std::string allowed() const;
  /// "INTEGER", "true|false", "lineage|lru|fifo": for --help.
  [[nodiscard]] std::string placeholder() const;
  /// "--block-size"
  [[nodiscard]] std::string option() const;
  /// "KVBM_BLOCK_SIZE"
  [[nodiscard]] std::string environment_variable() const;

  /// The key's value in `config`, and the default, as TOML.
  [[nodiscard]] std::string value_in(const KvBlockManagerConfig& config) const;
  [[nodiscard]] std::string default_value() const { return value_in(KvBlockManagerConfig{}); }
  [[nodiscard]] bool is_default_in(const KvBlockManagerConfig& config) const;

  [[nodiscard]] bool accepts(ConfigLiteral literal) const;
  /// Errors: kInvalidArgument, with the reason alone: neither key nor value.
  Status set(KvBlockManagerConfig& config, std::string_view text) const;
  /// Whether the value is in its range. Errors: as set().
  [[nodiscard]] Status check(const KvBlockManagerConfig& config) const;
};

/// Every key, in the order of the documentation.
[[nodiscard]] std::span<const ConfigKey> config_schema();

/// Null if there is no such key.
[[nodiscard]] const ConfigKey* find_config_key(std::string_view name);

/// The key that `wrong` was most likely meant to be.
[[nodiscard]] const ConfigKey& nearest_config_key(std::string_view wrong);

}  // namespace kvbm
