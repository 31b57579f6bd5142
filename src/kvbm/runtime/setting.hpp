// SPDX-License-Identifier: Apache-2.0
// Setting: one value that can be configured, and what may be written for it. SettingTable: all
// values of a structure, from which parsing, checks, --help and the documentation follow.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/runtime/group_config.hpp"

namespace kvbm {

/// What a TOML file can write for a value. kOther: what no value is, such as a list.
enum class ConfigLiteral : uint8_t { kBoolean, kInteger, kReal, kText, kOther };

/// The words for a boolean. kMore: `yes`, `no`, `on` and `off` too, in any case of letters.
enum class BooleanWords : uint8_t { kFew, kMore };

/// How an environment variable writes a setting's value.
enum class VariableForm : uint8_t { kSame, kOpposite, kGigabytes };

/// One value of the structure `Values`, which is KvBlockManagerConfig or ConnectorConfig.
template <class Values>
struct Setting {
  /// Where the value lives; the alternative is its type. A Duration is written in seconds, a share
  /// that is not set as "auto".
  using Member =
      std::variant<bool Values::*, uint32_t Values::*, uint64_t Values::*, double Values::*,
                   std::optional<double> Values::*, std::string Values::*,
                   std::chrono::milliseconds Values::*, Duration Values::*, LogLevel Values::*,
                   std::vector<GroupConfig> Values::*>;

  std::string_view name;
  Member member;
  std::string_view variable = {};  ///< of a connector's setting: "DYN_KVBM_…"; empty: none
  VariableForm variable_form = VariableForm::kSame;
  BooleanWords words = BooleanWords::kFew;
  std::string_view unit = {};  ///< "tokens", "blocks", "bytes", "ms"
  std::string_view doc;        ///< one sentence or two, without a line break
  uint64_t min = 0;            ///< of integers, sizes and milliseconds; of texts, their length
  uint64_t max = 0;            ///< of integers, sizes and durations
  std::span<const std::string_view> choices = {};     ///< if there are any: one of these
  std::string_view form = {};                         ///< what is allowed, where no rule says it
  bool (*has_form)(std::string_view text) = nullptr;  ///< of texts
  std::string_view pattern = {};                      ///< of texts: the form, as JSON Schema has it

  /// Whether it is a number of bytes, which may be a size such as "64 GiB".
  [[nodiscard]] bool is_size() const noexcept {
    return std::holds_alternative<uint64_t Values::*>(member) && unit == "bytes";
  }
  /// "an integer from 1 to 65536", "true or false", "lineage, lru or fifo".
  [[nodiscard]] std::string allowed() const;
  /// "INTEGER", "true|false", "lineage|lru|fifo": for --help.
  [[nodiscard]] std::string placeholder() const;

  /// The setting's value in `values`, and the default, as TOML.
  [[nodiscard]] std::string value_in(const Values& values) const;
  [[nodiscard]] std::string default_value() const { return value_in(Values{}); }
  [[nodiscard]] bool is_default_in(const Values& values) const;

  [[nodiscard]] bool accepts(ConfigLiteral literal) const;
  /// With `literal`, the text was that before, and has to fit as in a file.
  /// Errors: kInvalidArgument, with the reason alone: neither name nor value.
  Status set(Values& values, std::string_view text,
             std::optional<ConfigLiteral> literal = std::nullopt) const;
  /// Whether the value is in its range. Errors: as set().
  [[nodiscard]] Status check(const Values& values) const;
};

/// Every setting of a structure, in the order of the documentation. Threads: any thread.
template <class Values>
class SettingTable {
 public:
  /// `name`: of the file's table that has them; empty: they stand at its top.
  SettingTable(std::string_view name, std::vector<Setting<Values>> settings)
      : name_(name), settings_(std::move(settings)) {}

  [[nodiscard]] std::string_view name() const noexcept { return name_; }
  [[nodiscard]] size_t size() const noexcept { return settings_.size(); }
  [[nodiscard]] auto begin() const noexcept { return settings_.begin(); }
  [[nodiscard]] auto end() const noexcept { return settings_.end(); }

  /// Null if there is no such setting.
  [[nodiscard]] const Setting<Values>* find(std::string_view name) const;
  /// The setting that `wrong` was most likely meant to be.
  [[nodiscard]] const Setting<Values>& nearest(std::string_view wrong) const;
  /// The setting's name with that of the table: "connector.host_bytes".
  [[nodiscard]] std::string key_of(std::string_view name) const;

 private:
  std::string_view name_;
  std::vector<Setting<Values>> settings_;
};

}  // namespace kvbm
