// SPDX-License-Identifier: Apache-2.0
// Configuration: no text crashes the readers, and what they accept writes itself as the same
// values. The first byte chooses: a TOML file, a SPEC of groups, or a value for each setting.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "kvbm/runtime/config.hpp"
#include "kvbm/runtime/config_schema.hpp"
#include "kvbm/runtime/connector_config.hpp"

namespace {

void check(bool holds) {
  if (!holds) std::abort();
}

void read_file(std::string text) {
  const kvbm::Result<kvbm::Config> config =
      kvbm::Config::load({.file = kvbm::ConfigFile{"fuzz", std::move(text)}});
  if (!config) {
    check(!config.error().message().empty());
    return;
  }
  check(config->values().validate().has_value());
  const kvbm::Result<kvbm::Config> back =
      kvbm::Config::load({.file = kvbm::ConfigFile{"fuzz", config->to_toml()}});
  check(back.has_value() && back->values() == config->values());
}

void read_spec(std::string_view spec) {
  const auto groups = kvbm::parse_groups(spec);
  if (!groups) {
    check(groups.error().message().starts_with("character "));
    return;
  }
  check(kvbm::check_groups(*groups).has_value());
  check(kvbm::parse_groups(kvbm::format_groups(*groups)) == groups);
}

template <class Values>
void set_each(const kvbm::SettingTable<Values>& schema, std::string_view text) {
  for (const kvbm::Setting<Values>& setting : schema) {
    Values values;
    if (setting.set(values, text)) check(setting.check(values).has_value());
  }
  check(schema.find(schema.nearest(text).name) != nullptr);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0]) {
    case 'F':
      read_file(text);
      break;
    case 'G':
      read_spec(text);
      break;
    default:
      set_each(kvbm::config_schema(), text);
      set_each(kvbm::connector_schema(), text);
  }
  return 0;
}
