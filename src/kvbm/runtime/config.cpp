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

// A node of a TOML file as Setting::set takes it and as a message shows it.
struct NodeText {
  ConfigLiteral literal = ConfigLiteral::kOther;
  std::string text = {};
  std::string shown = {};
};

NodeText text_of(const toml::node& node) {
  using enum ConfigLiteral;
  const auto unquoted = [](ConfigLiteral literal, const std::string& text) {
    return NodeText{literal, text, text};
  };
  if (const auto* value = node.as_boolean()) {
    return unquoted(kBoolean, value->get() ? "true" : "false");
  }
  if (const auto* value = node.as_integer()) {
    return unquoted(kInteger, std::to_string(value->get()));
  }
  if (const auto* value = node.as_floating_point()) {
    char digits[32];
    const auto end = std::to_chars(std::begin(digits), std::end(digits), value->get()).ptr;
    return unquoted(kReal, std::string(digits, end));
  }
  if (const auto* value = node.as_string()) return {kText, value->get(), shown_text(value->get())};
  if (node.is_table()) return {.shown = "{…}"};
  if (node.is_array()) return {.shown = "[…]"};
  return {.shown = "a date or time"};
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

// The name after "connector.", if it is one of those.
std::optional<std::string_view> connector_name(std::string_view key) {
  const std::string_view table = connector_schema().name();
  if (!key.starts_with(table)) return std::nullopt;
  key.remove_prefix(table.size());
  if (!key.starts_with('.')) return std::nullopt;
  return key.substr(1);
}

tl::unexpected<Error> no_such_name(std::string_view where, std::string_view table,
                                   std::string_view name, std::string_view nearest) {
  return invalid(
      format_text("{}: {} {}; the nearest is {}", where,
                  table.empty() ? "there is no key" : format_text("the {} has no setting", table),
                  shown_text(name), nearest));
}

// Every value, each with its origin as a comment.
template <class Values>
std::string toml_lines(const SettingTable<Values>& schema, const Values& values,
                       const Config& config) {
  std::string text;
  for (const Setting<Values>& setting : schema) {
    const std::string where = shown_text(config.origin(schema.key_of(setting.name)).where);
    text += format_text("{} = {}  # {}\n", setting.name, setting.value_in(values),
                        std::string_view(where).substr(1, where.size() - 2));
  }
  return text;
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

// A value as it was written.
struct Config::Written {
  std::string text;
  std::optional<ConfigLiteral> literal = std::nullopt;  // if that is known
  std::string shown;                                    // in messages
  ConfigOrigin origin;
};

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
  const auto written = [&](const toml::key& name, const toml::node& node) {
    NodeText value = text_of(node);
    return Written{.text = std::move(value.text),
                   .literal = value.literal,
                   .shown = std::move(value.shown),
                   .origin = {ConfigSourceKind::kFile, place(file, name.source())}};
  };
  const std::string_view connector = connector_schema().name();
  for (const auto& [name, node] : entries_of(table)) {
    if (name->str() != connector) {
      if (config_schema().find(name->str()) == nullptr) {
        const std::string_view names[] = {config_schema().nearest(name->str()).name, connector};
        return no_such_name(place(file, name->source()), {}, name->str(),
                            internal::nearest_name(name->str(), names));
      }
      KVBM_TRY(set(config_schema(), values_, name->str(), written(*name, *node)));
      continue;
    }
    const toml::table* const settings = node->as_table();
    if (settings == nullptr) {
      return invalid(config_message(connector, text_of(*node).shown, place(file, name->source()),
                                    "allowed is a table, [connector]"));
    }
    for (const auto& [setting, value] : entries_of(*settings)) {
      KVBM_TRY(set(connector_schema(), connector_, setting->str(), written(*setting, *value)));
    }
  }
  return {};
}

Status Config::apply_environment(const std::vector<EnvironmentVariable>& environment) {
  for (const auto& [name, value] : environment) {
    const ConfigOrigin origin{ConfigSourceKind::kEnvironment, name};
    if (name.starts_with(kConnectorPrefix)) {
      KVBM_ASSIGN_OR_RETURN(const ConnectorSetting* setting,
                            set_connector_variable(connector_, name, value));
      origins_[connector_schema().key_of(setting->name)] = origin;
      continue;
    }
    if (is_reserved(name) || !name.starts_with(kPrefix)) continue;
    const auto key = std::ranges::find(config_schema(), name, environment_variable_of);
    if (key == config_schema().end()) {
      const ConfigKey& nearest = config_schema().nearest(name.substr(kPrefix.size()));
      return invalid(format_text("environment: there is no variable {}; the nearest is {}",
                                 shown_text(name), environment_variable_of(nearest)));
    }
    KVBM_TRY(set(config_schema(), values_, key->name,
                 {.text = value, .shown = shown_text(value), .origin = origin}));
  }
  return {};
}

Status Config::apply_settings(const std::vector<ConfigSetting>& settings) {
  std::set<std::string_view> seen;
  for (const ConfigSetting& setting : settings) {
    const Written written{.text = setting.value,
                          .literal = setting.literal,
                          .shown = shown_text(setting.value),
                          .origin = {ConfigSourceKind::kSetting,
                                     setting.where.empty() ? "set by the program" : setting.where}};
    if (!seen.insert(setting.key).second) {
      return invalid(
          config_message(setting.key, written.shown, written.origin.where,
                         format_text("it is set already ({})", origin(setting.key).where)));
    }
    if (const auto name = connector_name(setting.key)) {
      KVBM_TRY(set(connector_schema(), connector_, *name, written));
    } else {
      KVBM_TRY(set(config_schema(), values_, setting.key, written));
    }
  }
  return {};
}

template <class Values>
Status Config::set(const SettingTable<Values>& schema, Values& values, std::string_view name,
                   const Written& written) {
  const Setting<Values>* const setting = schema.find(name);
  const std::string& where = written.origin.where;
  if (setting == nullptr) {
    return no_such_name(where, schema.name(), name, schema.nearest(name).name);
  }
  const std::string key = schema.key_of(name);
  if (const Status status = setting->set(values, written.text, written.literal); !status) {
    return invalid(config_message(key, written.shown, where, status.error().message()));
  }
  origins_[key] = written.origin;
  return {};
}

const ConfigOrigin& Config::origin(std::string_view key) const {
  static const ConfigOrigin kUnset;
  const std::optional<std::string_view> name = connector_name(key);
  KVBM_CONTRACT(
      name ? connector_schema().find(*name) != nullptr : config_schema().find(key) != nullptr,
      format_text("there is no key {}", shown_text(key)));
  const auto found = origins_.find(key);
  return found == origins_.end() ? kUnset : found->second;
}

std::string Config::to_toml() const { return toml_lines(config_schema(), values_, *this); }

std::string Config::connector_to_toml() const {
  return format_text("[{}]\n", connector_schema().name()) +
         toml_lines(connector_schema(), connector_, *this);
}

}  // namespace kvbm
