// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/config_doc.hpp"

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstdint>
#include <optional>
#include <utility>
#include <variant>

#include <nlohmann/json.hpp>

#include "kvbm/base/text.hpp"
#include "kvbm/runtime/config.hpp"
#include "kvbm/runtime/config_schema.hpp"
#include "kvbm/runtime/connector_config.hpp"

namespace kvbm {
namespace {

constexpr std::string_view kHead =
    R"(<!-- Written by the build target config_doc from src/kvbm/runtime/config_schema.cpp and connector_config.cpp. -->
# Configuration

One configuration for every program and binding, for the block manager and for [the connector of an engine](#the-connector);
`kvbm replay` alone is described by its command line and looks at none of this. Each value comes from the last of these sources
that sets it:

1. the default in the table below;
2. a TOML file: the one given to the program, or else the one that `KVBM_CONFIG` names;
3. the environment: `KVBM_` and the key in upper case, such as `KVBM_BLOCK_SIZE=32`, or the variable of a connector's setting;
4. the program itself: an option such as `--block-size 32`, a keyword in Python, or `kv_connector_extra_config` in vLLM.

`kvbm config show` prints every value with the source it came from, `kvbm config schema` a JSON Schema for editors and other
programs. A connector looks at its own variables and at the file; a block manager at the others and at the file.

```toml
block_size = 16
num_layers = 32
num_heads = 8
head_dim = 128
num_blocks = 2048
enable_offload = true
host_bytes = "16 GiB"

[connector]
host_bytes = "16 GB"
disk_directory = "/data"
```

Nothing is accepted and ignored. An unknown key is an error that names the nearest key there is; so is a value of the
wrong type or out of its range, even where a later source replaces it; so is a value, other than the default, that would have
no effect beside the others. Every message names the key, the value and where it stood.

## Keys

| key | default | allowed | unit | what it does |
|---|---|---|---|---|
)";

constexpr std::string_view kAfterKeys = R"(
In the environment and on the command line a value is written as in TOML, but without quotes; booleans may also be `1` and `0`.
A number of bytes is an integer or a size with a unit: `KiB MiB GiB TiB` count 1024s, `kB MB GB TB` 1000s.

What belongs together:

- `host_blocks`, `host_bytes`, `disk_blocks` and `disk_bytes` need `enable_offload = true`, and that needs one of them. A tier is sized in
  blocks or in bytes, not both.
- `num_layers`, `num_heads` and `head_dim` have no useful default and must be set, here or in `groups`.
- `gpu_memory_fraction` is used where `num_blocks` is 0 and `device` is a GPU; with `host`, `num_blocks` must be set. `cuda_ring_size` needs a GPU too. `offload_path`, `disk_zero_fill` and `disk_threads` need a disk tier; `transfer_timeout`
  needs `enable_offload`.

## Layer groups

`groups` lists groups of layers that are alike, in one text:

    full:layers=4;window:layers=2,blocks=8

A group is `full` (it needs the whole prefix) or `window` (it needs the last `blocks` blocks), a colon, and options with commas
between them. Groups have semicolons between them; spaces do not matter.

| option | what it says |
|---|---|
| `layers` | how many layers; required |
| `blocks` | the window; required in a `window`, wrong in a `full` group |
| `name` | letters, digits, `_` and `-`; without it the kind, the second one with `_2` after it |
| `outer_dim`, `num_heads`, `head_dim`, `dtype_width_bytes` | this group's own value for the key of that name |

A mistake is reported with the number of the character at which it begins.

## The connector

What the connector of an engine is told: the table `[connector]` of the file. Here an engine gives the model, its layers and its
block size.

| setting | default | allowed | unit | variable | what it does |
|---|---|---|---|---|---|
)";

constexpr std::string_view kAfterConnector = R"(
A variable named after GB counts gigabytes of 10^9 bytes, such as `0.5`. One marked "not" says the opposite of the setting.

These variables of Dynamo's KVBM are refused, as nothing here acts on them:

| variable | why |
|---|---|
)";

constexpr std::string_view kTail = R"(
## Other variables

These begin with `KVBM_` too, and are no keys:

| variable | what it is for |
|---|---|
)";

nlohmann::ordered_json size_schema(uint64_t min, uint64_t max) {
  return {{{"type", "integer"}, {"minimum", min}, {"maximum", max}},
          {{"type", "string"}, {"pattern", "^[0-9]+([.][0-9]{1,9})? *(B|[KMGT]iB|[kKMGT]B)?$"}}};
}

template <class T, class Values>
void describe_type(const Setting<Values>& setting, nlohmann::ordered_json& schema) {
  if constexpr (std::same_as<T, bool>) {
    schema["type"] = "boolean";
  } else if constexpr (std::same_as<T, uint32_t> || std::same_as<T, uint64_t> ||
                       std::same_as<T, std::chrono::milliseconds>) {
    if (setting.is_size()) {
      schema["anyOf"] = size_schema(setting.min, setting.max);
      return;
    }
    schema["type"] = "integer";
    if (setting.choices.empty()) {
      schema["minimum"] = setting.min;
      schema["maximum"] = setting.max;
    }
    for (const std::string_view choice : setting.choices) {
      schema["enum"].push_back(nlohmann::ordered_json::parse(choice));
    }
  } else if constexpr (std::same_as<T, double> || std::same_as<T, Duration>) {
    schema["type"] = "number";
    schema["exclusiveMinimum"] = 0;
    schema["maximum"] = std::same_as<T, double> ? 1 : setting.max;
  } else if constexpr (std::same_as<T, std::optional<double>>) {
    schema["anyOf"] = {{{"type", "number"}, {"exclusiveMinimum", 0}, {"maximum", 1}},
                       {{"type", "string"}, {"enum", {"auto"}}}};
  } else {
    schema["type"] = "string";
    for (const std::string_view choice : setting.choices) schema["enum"].push_back(choice);
    if (!setting.pattern.empty()) schema["pattern"] = setting.pattern;
    if (setting.min > 0) schema["minLength"] = setting.min;
  }
}

// A sentence without the marks of Markdown.
std::string plain(std::string_view doc) {
  std::string text(doc);
  std::erase(text, '`');
  return text;
}

template <class Values>
nlohmann::ordered_json schema_of(const Setting<Values>& setting) {
  nlohmann::ordered_json schema = {{"description", plain(setting.doc)}};
  std::visit([&]<class T>(T Values::* /*member*/) { describe_type<T>(setting, schema); },
             setting.member);
  // Defaults are texts, numbers and booleans, which TOML and JSON write alike.
  schema["default"] = nlohmann::ordered_json::parse(setting.default_value());
  if (!setting.unit.empty()) schema["x-unit"] = setting.unit;
  if (!setting.variable.empty()) schema["x-variable"] = setting.variable;
  return schema;
}

template <class Values>
nlohmann::ordered_json schemas_of(const SettingTable<Values>& settings) {
  nlohmann::ordered_json schemas = nlohmann::ordered_json::object();
  for (const Setting<Values>& setting : settings) schemas[setting.name] = schema_of(setting);
  return schemas;
}

nlohmann::ordered_json object_schema(std::string_view description,
                                     nlohmann::ordered_json properties) {
  return {{"description", description},
          {"type", "object"},
          {"properties", std::move(properties)},
          {"additionalProperties", false}};
}

std::string variable_of(const ConnectorSetting& setting) {
  if (setting.variable.empty()) return {};
  return format_text("{}`{}`", setting.variable_form == VariableForm::kOpposite ? "not " : "",
                     setting.variable);
}

}  // namespace

std::string config_doc() {
  std::string text(kHead);
  for (const ConfigKey& key : config_schema()) {
    text += format_text("| `{}` | `{}` | {} | {} | {} |\n", key.name, key.default_value(),
                        key.allowed(), key.unit, key.doc);
  }
  text += kAfterKeys;
  for (const ConnectorSetting& setting : connector_schema()) {
    text +=
        format_text("| `{}` | `{}` | {} | {} | {} | {} |\n", setting.name, setting.default_value(),
                    setting.allowed(), setting.unit, variable_of(setting), setting.doc);
  }
  text += kAfterConnector;
  for (const RefusedVariable& variable : refused_variables()) {
    text += format_text("| `{}` | {} |\n", variable.name, variable.reason);
  }
  text += kTail;
  for (const ReservedVariable& variable : reserved_variables()) {
    text += format_text("| `{}` | {} |\n", variable.name, variable.doc);
  }
  return text;
}

std::string config_json_schema() {
  nlohmann::ordered_json properties = schemas_of(config_schema());
  properties["connector"] =
      object_schema("What the connector of an engine is told.", schemas_of(connector_schema()));
  nlohmann::ordered_json schema = {{"$schema", "https://json-schema.org/draft/2020-12/schema"},
                                   {"title", "kvbm"}};
  schema.update(object_schema("The configuration of kvbm; see docs/configuration.md.",
                              std::move(properties)));
  return schema.dump(2) + "\n";
}

std::string config_help() {
  std::string text;
  for (const ConfigKey& key : config_schema()) {
    text += format_text("  {} {}\n      {} [{}]\n", option_of(key), key.placeholder(),
                        plain(key.doc), key.default_value());
  }
  return text;
}

}  // namespace kvbm
