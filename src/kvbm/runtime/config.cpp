// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/config.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <fstream>
#include <set>

#include <toml++/toml.h>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/runtime/config_schema.hpp"
#include "kvbm/runtime/internal/config_check.hpp"
#include "kvbm/runtime/internal/nearest_name.hpp"

namespace kvbm {
namespace {

using internal::config_message;
using internal::shown_text;

constexpr std::string_view kPrefix = "KVBM_";
constexpr std::string_view kConnectorPrefix = "DYN_KVBM_";
constexpr std::string_view kConnectorTable = "connector";
constexpr std::string_view kConfigVariable = "KVBM_CONFIG";
constexpr size_t kMaxFileBytes = size_t{1} << 20;

constexpr std::array kReserved = {
    ReservedVariable{kConfigVariable, "The path of the TOML file."},
    ReservedVariable{"KVBM_SEED", "Tests: the seed of random tests."},
    ReservedVariable{"KVBM_REQUIRE",
                     "Tests: what must be here, such as gpu; a skip is then a failure."},
    ReservedVariable{"KVBM_MODEL_OPS", "Tests: how many operations a model test runs."},
    ReservedVariable{"KVBM_CONVERSATION_TRACE", "Tests: the path of Mooncake's trace."},
    ReservedVariable{"KVBM_BENCH_TRACE", "Benchmarks: the path of the trace to play."},
    ReservedVariable{"KVBM_REQUIRE_CUDA", "Build: whether it is an error that there is no nvcc."},
    ReservedVariable{"KVBM_WITH_*",
                     "Build: which adapters are built, and whether kernels are (KVBM_WITH_CUDA)."},
    ReservedVariable{"KVBM_WERROR", "Build: whether warnings are errors."},
};

bool is_reserved(std::string_view name) {
  return std::ranges::any_of(kReserved, [name](const ReservedVariable& reserved) {
    if (!reserved.name.ends_with('*')) return name == reserved.name;
    return name.starts_with(reserved.name.substr(0, reserved.name.size() - 1));
  });
}

tl::unexpected<Error> invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, std::move(message));
}

// A scalar of a TOML file as the text that ConfigKey::set takes.
struct Literal {
  ConfigLiteral kind;
  std::string text;
};

std::optional<Literal> literal_of(const toml::node& node) {
  if (const auto* value = node.as_boolean()) {
    return Literal{ConfigLiteral::kBoolean, value->get() ? "true" : "false"};
  }
  if (const auto* value = node.as_integer()) {
    return Literal{ConfigLiteral::kInteger, std::to_string(value->get())};
  }
  if (const auto* value = node.as_floating_point()) {
    char digits[32];
    const auto end = std::to_chars(std::begin(digits), std::end(digits), value->get()).ptr;
    return Literal{ConfigLiteral::kReal, std::string(digits, end)};
  }
  if (const auto* value = node.as_string()) return Literal{ConfigLiteral::kText, value->get()};
  return std::nullopt;
}

// A value as a message shows it.
std::string shown(const toml::node& node) {
  if (const auto literal = literal_of(node)) {
    return literal->kind == ConfigLiteral::kText ? shown_text(literal->text) : literal->text;
  }
  if (node.is_table()) return "{…}";
  if (node.is_array()) return "[…]";
  return "a date or time";
}

std::string place(const ConfigFile& file, const toml::source_region& region) {
  return format_text("{}:{}", file.name, region.begin.line);
}

// In the order of the file, so that the first mistake is the one that is reported.
std::vector<std::pair<const toml::key*, const toml::node*>> entries_of(const toml::table& table) {
  std::vector<std::pair<const toml::key*, const toml::node*>> entries;
  for (const auto& [key, node] : table) entries.emplace_back(&key, &node);
  std::ranges::sort(entries, {}, [](const auto& entry) {
    const toml::source_position at = entry.first->source().begin;
    return std::pair(at.line, at.column);
  });
  return entries;
}

// Sets a ConfigKey or a ConnectorSetting, which messages call `name`.
template <class Key, class Values>
Status set_node(const Key& key, std::string_view name, Values& values, const toml::node& node,
                const std::string& where) {
  const std::optional<Literal> literal = literal_of(node);
  Status status =
      make_error(ErrorCode::kInvalidArgument, format_text("allowed is {}", key.allowed()));
  if (literal && key.accepts(literal->kind)) status = key.set(values, literal->text);
  if (!status) {
    return invalid(config_message(name, shown(node), where, status.error().message()));
  }
  return {};
}

template <class Key, class Values>
Status set_text(const Key& key, std::string_view name, Values& values, const ConfigSetting& setting,
                const std::string& where) {
  Status status =
      make_error(ErrorCode::kInvalidArgument, format_text("allowed is {}", key.allowed()));
  if (!setting.literal || key.accepts(*setting.literal)) status = key.set(values, setting.value);
  if (!status) {
    return invalid(
        config_message(name, shown_text(setting.value), where, status.error().message()));
  }
  return {};
}

// The name after "connector.", if it is one of those.
std::optional<std::string_view> connector_name(std::string_view key) {
  if (!key.starts_with(kConnectorTable)) return std::nullopt;
  key.remove_prefix(kConnectorTable.size());
  if (!key.starts_with('.')) return std::nullopt;
  return key.substr(1);
}

tl::unexpected<Error> no_such_setting(std::string_view where, std::string_view name) {
  return invalid(format_text("{}: the connector has no setting {}; the nearest is {}", where,
                             shown_text(name), nearest_connector_setting(name).name));
}

std::string toml_line(std::string_view name, std::string_view value, const ConfigOrigin& origin) {
  const std::string where = shown_text(origin.where);
  return format_text("{} = {}  # {}\n", name, value,
                     std::string_view(where).substr(1, where.size() - 2));
}

template <class Wanted>
std::vector<EnvironmentVariable> environment_of(Wanted is_wanted) {
  std::vector<EnvironmentVariable> found;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const size_t equals = text.find('=');
    if (equals == std::string_view::npos || !is_wanted(text.substr(0, equals))) continue;
    found.push_back({std::string(text.substr(0, equals)), std::string(text.substr(equals + 1))});
  }
  return found;
}

}  // namespace

Result<ConfigFile> read_config_file(const std::string& path) {
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    return errno_error(format_text("cannot open the configuration file {}", shown_text(path)),
                       errno != 0 ? errno : EIO);
  }
  ConfigFile file{.name = path, .text = {}};
  file.text.resize(kMaxFileBytes + 1);
  in.read(file.text.data(), static_cast<std::streamsize>(file.text.size()));
  if (in.bad()) {
    return errno_error(format_text("cannot read the configuration file {}", shown_text(path)),
                       errno != 0 ? errno : EIO);
  }
  file.text.resize(static_cast<size_t>(in.gcount()));
  if (file.text.size() > kMaxFileBytes) {
    return invalid(
        format_text("the file {} is no configuration: it has more than 1 MiB", shown_text(path)));
  }
  return file;
}

std::vector<EnvironmentVariable> process_environment() {
  return environment_of([](std::string_view name) { return name.starts_with(kPrefix); });
}

std::vector<EnvironmentVariable> connector_environment() {
  return environment_of([](std::string_view name) {
    return name.starts_with(kConnectorPrefix) || name == kConfigVariable;
  });
}

std::span<const ReservedVariable> reserved_variables() noexcept { return kReserved; }

Result<Config> Config::load(const ConfigSources& sources) {
  KVBM_ASSIGN_OR_RETURN(Config config, read(sources));
  KVBM_TRY(config.check());
  return config;
}

Status Config::check() const {
  return internal::check_config(values_,
                                [this](std::string_view key) { return origin(key).where; });
}

Result<Config> Config::read(const ConfigSources& sources) {
  Config config;
  if (sources.file) {
    KVBM_TRY(config.apply_file(*sources.file));
  } else {
    const auto named =
        std::ranges::find(sources.environment, kConfigVariable, &EnvironmentVariable::name);
    if (named != sources.environment.end()) {
      Result<ConfigFile> file = read_config_file(named->value);
      if (!file) return make_error(std::move(file).error().with_context(kConfigVariable));
      KVBM_TRY(config.apply_file(*file));
    }
  }
  KVBM_TRY(config.apply_environment(sources.environment));
  KVBM_TRY(config.apply_settings(sources.settings));
  return config;
}

Status Config::apply_file(const ConfigFile& file) {
  toml::table table;
  try {
    table = toml::parse(std::string_view(file.text), std::string_view(file.name));
  } catch (const toml::parse_error& error) {
    const toml::source_position at = error.source().begin;
    return invalid(format_text("{}:{}:{}: {}", file.name, at.line, at.column, error.description()));
  }
  const auto set = [&](const auto& key, std::string_view name, auto& values, const toml::node& node,
                       const std::string& where) -> Status {
    KVBM_TRY(set_node(key, name, values, node, where));
    origins_[std::string(name)] = {ConfigSourceKind::kFile, where};
    return {};
  };
  for (const auto& [name, node] : entries_of(table)) {
    const std::string where = place(file, name->source());
    if (name->str() == kConnectorTable) {
      const toml::table* const settings = node->as_table();
      if (settings == nullptr) {
        return invalid(config_message(kConnectorTable, shown(*node), where,
                                      "allowed is a table, [connector]"));
      }
      for (const auto& [setting_name, value] : entries_of(*settings)) {
        const std::string place_of_value = place(file, setting_name->source());
        const ConnectorSetting* setting = find_connector_setting(setting_name->str());
        if (setting == nullptr) return no_such_setting(place_of_value, setting_name->str());
        KVBM_TRY(set(*setting, setting->key(), connector_, *value, place_of_value));
      }
      continue;
    }
    const ConfigKey* key = find_config_key(name->str());
    if (key == nullptr) {
      const std::string_view names[] = {nearest_config_key(name->str()).name, kConnectorTable};
      return invalid(format_text("{}: there is no key {}; the nearest is {}", where,
                                 shown_text(name->str()),
                                 internal::nearest_name(name->str(), names)));
    }
    KVBM_TRY(set(*key, key->name, values_, *node, where));
  }
  return {};
}

Status Config::apply_environment(const std::vector<EnvironmentVariable>& environment) {
  for (const auto& [name, value] : environment) {
    if (name.starts_with(kConnectorPrefix)) {
      KVBM_ASSIGN_OR_RETURN(const ConnectorSetting* setting,
                            set_connector_variable(connector_, name, value));
      origins_[setting->key()] = {ConfigSourceKind::kEnvironment, name};
      continue;
    }
    if (is_reserved(name) || !name.starts_with(kPrefix)) continue;
    const auto key = std::ranges::find(config_schema(), name, &ConfigKey::environment_variable);
    if (key == config_schema().end()) {
      const ConfigKey& nearest = nearest_config_key(name.substr(kPrefix.size()));
      return invalid(format_text("environment: there is no variable {}; the nearest is {}",
                                 shown_text(name), nearest.environment_variable()));
    }
    if (const Status status = key->set(values_, value); !status) {
      return invalid(config_message(key->name, shown_text(value), name, status.error().message()));
    }
    origins_[std::string(key->name)] = {ConfigSourceKind::kEnvironment, name};
  }
  return {};
}

Status Config::apply_settings(const std::vector<ConfigSetting>& settings) {
  std::set<std::string_view> seen;
  for (const ConfigSetting& setting : settings) {
    const std::string where = setting.where.empty() ? "set by the program" : setting.where;
    const std::optional<std::string_view> of_connector = connector_name(setting.key);
    const ConnectorSetting* const connector_setting =
        of_connector ? find_connector_setting(*of_connector) : nullptr;
    const ConfigKey* const key = of_connector ? nullptr : find_config_key(setting.key);
    if (of_connector && connector_setting == nullptr) return no_such_setting(where, *of_connector);
    if (!of_connector && key == nullptr) {
      return invalid(format_text("{}: there is no key {}; the nearest is {}", where,
                                 shown_text(setting.key), nearest_config_key(setting.key).name));
    }
    if (!seen.insert(setting.key).second) {
      return invalid(
          config_message(setting.key, shown_text(setting.value), where,
                         format_text("it is set already ({})", origin(setting.key).where)));
    }
    if (key != nullptr) {
      KVBM_TRY(set_text(*key, setting.key, values_, setting, where));
    } else {
      KVBM_TRY(set_text(*connector_setting, setting.key, connector_, setting, where));
    }
    origins_[setting.key] = {ConfigSourceKind::kSetting, where};
  }
  return {};
}

const ConfigOrigin& Config::origin(std::string_view key) const {
  static const ConfigOrigin kUnset;
  const std::optional<std::string_view> name = connector_name(key);
  KVBM_CONTRACT(name ? find_connector_setting(*name) != nullptr : find_config_key(key) != nullptr,
                format_text("there is no key {}", shown_text(key)));
  const auto found = origins_.find(key);
  return found == origins_.end() ? kUnset : found->second;
}

std::string Config::to_toml() const {
  std::string text;
  for (const ConfigKey& key : config_schema()) {
    text += toml_line(key.name, key.value_in(values_), origin(key.name));
  }
  return text;
}

std::string Config::connector_to_toml() const {
  std::string text = format_text("[{}]\n", kConnectorTable);
  for (const ConnectorSetting& setting : connector_schema()) {
    text += toml_line(setting.name, setting.value_in(connector_), origin(setting.key()));
  }
  return text;
}

}  // namespace kvbm
