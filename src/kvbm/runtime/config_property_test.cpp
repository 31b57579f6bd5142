// SPDX-License-Identifier: Apache-2.0
// Random values from random sources, against the rule that the last source wins.
#include <map>
#include <optional>
#include <string>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/runtime/config.hpp"
#include "kvbm/runtime/config_schema.hpp"

#include "tests/support/seed.hpp"

namespace kvbm {
namespace {

// A group list of at least one layer each.
std::string any_spec(Random& random) {
  std::string spec;
  const uint64_t count = 1 + random.uniform(3);
  for (uint64_t i = 0; i < count; ++i) {
    if (i > 0) spec += ';';
    const bool is_window = random.chance(0.5);
    spec += is_window ? "window:" : "full:";
    if (random.chance(0.5)) spec += "name=g" + std::to_string(i) + ',';
    spec += "layers=" + std::to_string(1 + random.uniform(100));
    if (is_window) spec += ",blocks=" + std::to_string(1 + random.uniform(1000));
    if (random.chance(0.3)) spec += ",head_dim=" + std::to_string(1 + random.uniform(512));
    if (random.chance(0.3)) spec += ",dtype_width_bytes=" + std::to_string(1U << random.uniform(4));
  }
  return spec;
}

// A value in the key's range, as text without quotes.
std::string any_value(const ConfigKey& key, Random& random) {
  if (!key.choices.empty()) return std::string(key.choices[random.uniform(key.choices.size())]);
  const std::string kind = key.placeholder();
  if (kind == "INTEGER") return std::to_string(random.uniform_between(key.min, key.max));
  if (kind == "SIZE") return std::to_string(random.uniform(key.max));
  if (kind == "NUMBER") return std::to_string(1 - random.uniform_real() * 0.9);
  if (kind == "true|false") return random.chance(0.5) ? "true" : "false";
  if (kind == "SPEC") return any_spec(random);
  if (key.has_form != nullptr)
    return random.chance(0.5) ? "cuda:" + std::to_string(random.uniform(9)) : "host";
  std::string text;
  for (uint64_t i = random.uniform(12); i > 0; --i) {
    text += static_cast<char>(random.uniform_between(' ', '~'));
  }
  return text;
}

std::string as_toml(const ConfigKey& key, const std::string& value) {
  if (!key.accepts(ConfigLiteral::kText) || key.placeholder() == "SIZE") return value;
  std::string text = "\"";
  for (const char letter : value) {
    if (letter == '"' || letter == '\\') text += '\\';
    text += letter;
  }
  return text + '"';
}

// Makes a configuration valid as a whole without touching what has been drawn for most keys.
void mend(KvBlockManagerConfig& config) {
  const KvBlockManagerConfig defaults;
  if (config.host_blocks > 0) config.host_bytes = 0;
  if (config.disk_blocks > 0) config.disk_bytes = 0;
  config.enable_offload = config.has_host_tier() || config.has_disk_tier();
  if (!config.enable_offload) config.transfer_timeout = defaults.transfer_timeout;
  if (!config.has_disk_tier()) {
    config.offload_path = defaults.offload_path;
    config.disk_zero_fill = defaults.disk_zero_fill;
    config.disk_threads = defaults.disk_threads;
  } else if (config.offload_path.empty()) {
    config.offload_path = "x";
  }
  if (config.num_blocks > 0 || config.device == "host")
    config.gpu_memory_fraction = defaults.gpu_memory_fraction;
  if (config.device == "host" || config.cuda_ring_size < kLeastRingBytes) {
    config.cuda_ring_size = defaults.cuda_ring_size;
  }
  if (config.num_heads == 0) config.num_heads = 1;
  if (config.head_dim == 0) config.head_dim = 1;
  if (!config.groups.empty()) {
    config.num_layers = 0;
  } else if (config.num_layers == 0) {
    config.num_layers = 1;
  }
}

KvBlockManagerConfig any_config(Random& random) {
  KvBlockManagerConfig config;
  for (const ConfigKey& key : config_schema()) {
    if (random.chance(0.4)) continue;
    EXPECT_TRUE(key.set(config, any_value(key, random))) << key.name;
  }
  mend(config);
  return config;
}

// The value as the environment and settings take it.
std::string plain_value(const ConfigKey& key, const KvBlockManagerConfig& config) {
  if (const auto* text = std::get_if<std::string KvBlockManagerConfig::*>(&key.member)) {
    return config.**text;
  }
  const std::string value = key.value_in(config);
  return value.starts_with('"') ? value.substr(1, value.size() - 2) : value;
}

TEST(ConfigProperty, EveryKeyHasTheValueOfItsLastSource) {
  Random random(testing::test_seed());
  for (int round = 0; round < 500; ++round) {
    const KvBlockManagerConfig expected = any_config(random);
    ASSERT_TRUE(expected.validate()) << expected.validate().error();
    ConfigSources sources;
    std::string file;
    std::map<std::string_view, ConfigSourceKind> last;
    for (const ConfigKey& key : config_schema()) {
      const bool is_default = key.is_default_in(expected);
      // Some source has to say it, unless the default does.
      const auto kind =
          static_cast<ConfigSourceKind>(is_default ? random.uniform(4) : 1 + random.uniform(3));
      last[key.name] = kind;
      const std::string right = plain_value(key, expected);
      const auto value = [&](ConfigSourceKind source) -> std::optional<std::string> {
        if (source == kind) return right;
        if (source > kind || random.chance(0.5)) return std::nullopt;
        return any_value(key, random);
      };
      if (const auto text = value(ConfigSourceKind::kFile)) {
        file += std::string(key.name) + " = " + as_toml(key, *text) + '\n';
      }
      if (const auto text = value(ConfigSourceKind::kEnvironment)) {
        sources.environment.push_back({environment_variable_of(key), *text});
      }
      if (const auto text = value(ConfigSourceKind::kSetting)) {
        sources.settings.push_back({std::string(key.name), *text, option_of(key)});
      }
    }
    sources.file = ConfigFile{"random", file};
    const Result<Config> config = Config::load(sources);
    ASSERT_TRUE(config) << config.error() << '\n' << file;
    ASSERT_EQ(config->values(), expected);
    for (const auto& [name, kind] : last) {
      ASSERT_EQ(config->origin(name).kind, kind) << name << " from " << config->origin(name).where;
    }
  }
}

TEST(ConfigProperty, EveryConfigurationWritesAFileThatReadsBack) {
  Random random(testing::test_seed());
  for (int round = 0; round < 500; ++round) {
    const KvBlockManagerConfig expected = any_config(random);
    ConfigSources sources;
    for (const ConfigKey& key : config_schema()) {
      sources.settings.push_back({std::string(key.name), plain_value(key, expected), {}});
    }
    const Result<Config> config = Config::load(sources);
    ASSERT_TRUE(config) << config.error();
    const Result<Config> back = Config::load({.file = ConfigFile{"written", config->to_toml()}});
    ASSERT_TRUE(back) << back.error() << '\n' << config->to_toml();
    ASSERT_EQ(back->values(), expected);
  }
}

TEST(ConfigProperty, GroupsReadBackFromTheirSpec) {
  Random random(testing::test_seed());
  for (int round = 0; round < 2000; ++round) {
    const std::string spec = any_spec(random);
    const Result<std::vector<GroupConfig>> groups = parse_groups(spec);
    ASSERT_TRUE(groups) << spec << ": " << groups.error();
    ASSERT_EQ(parse_groups(format_groups(*groups)), groups);
    ASSERT_TRUE(check_groups(*groups));
  }
}

TEST(ConfigProperty, AMistakeInASpecIsFoundInsideIt) {
  Random random(testing::test_seed());
  for (int round = 0; round < 5000; ++round) {
    std::string spec = any_spec(random);
    spec[random.uniform(spec.size())] = static_cast<char>(random.uniform_between(' ', '~'));
    const Result<std::vector<GroupConfig>> groups = parse_groups(spec);
    if (groups) {
      ASSERT_EQ(parse_groups(format_groups(*groups)), groups) << spec;
      continue;
    }
    const std::string& message = groups.error().message();
    ASSERT_TRUE(message.starts_with("character ")) << message;
    const size_t position = std::stoul(message.substr(10));
    ASSERT_GE(position, 1U) << spec << ": " << message;
    ASSERT_LE(position, spec.size() + 1) << spec << ": " << message;
  }
}

}  // namespace
}  // namespace kvbm
