// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/config_schema.hpp"

#include <map>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/blocks/eviction_policy.hpp"

namespace kvbm {
namespace {

const ConfigKey& key(std::string_view name) {
  const ConfigKey* found = config_schema().find(name);
  if (found == nullptr) throw std::out_of_range(std::string(name));
  return *found;
}

// The value as TOML after `text` was set, or the reason why it was not.
std::string after_set(std::string_view name, std::string_view text) {
  KvBlockManagerConfig config;
  const KvBlockManagerConfig before = config;
  if (const Status status = key(name).set(config, text); !status) {
    EXPECT_EQ(config, before) << "a refused value changed something";
    EXPECT_EQ(status.error().code(), ErrorCode::kInvalidArgument);
    return status.error().message();
  }
  return key(name).value_in(config);
}

TEST(ConfigSchema, HasEveryKeyOnceWithADocument) {
  std::set<std::string_view> names;
  for (const ConfigKey& each : config_schema()) {
    EXPECT_TRUE(names.insert(each.name).second) << each.name;
    EXPECT_TRUE(each.doc.ends_with('.')) << each.name;
    EXPECT_EQ(each.doc.find_first_of("\n|"), std::string_view::npos) << each.name;
  }
  EXPECT_EQ(names.size(), 27U);
}

TEST(ConfigSchema, NoTwoKeysShareAMember) {
  for (const ConfigKey& a : config_schema()) {
    for (const ConfigKey& b : config_schema()) {
      EXPECT_EQ(a.member == b.member, a.name == b.name) << a.name << ' ' << b.name;
    }
  }
}

TEST(ConfigSchema, DefaultsAreThoseOfTheStructure) {
  const std::map<std::string_view, std::string> defaults = {
      {"block_size", "64"},
      {"device", "\"host\""},
      {"num_blocks", "0"},
      {"num_layers", "0"},
      {"gpu_memory_fraction", "0.9"},
      {"enable_offload", "false"},
      {"offload_path", "\"/tmp\""},
      {"outer_dim", "2"},
      {"num_heads", "0"},
      {"head_dim", "0"},
      {"dtype_width_bytes", "2"},
      {"num_ranks", "1"},
      {"groups", "\"\""},
      {"host_blocks", "0"},
      {"host_bytes", "0"},
      {"disk_blocks", "0"},
      {"disk_bytes", "0"},
      {"disk_zero_fill", "false"},
      {"policy", "\"lineage\""},
      {"model", "\"\""},
      {"cache_salt", "\"\""},
      {"transfer_timeout", "30000"},
      {"copy_threads", "2"},
      {"cuda_ring_size", "83886080"},
      {"disk_threads", "4"},
      {"calibration_dir", "\"\""},
      {"log_level", "\"info\""},
  };
  for (const ConfigKey& each : config_schema()) {
    EXPECT_EQ(each.default_value(), defaults.at(each.name)) << each.name;
    EXPECT_TRUE(each.is_default_in(KvBlockManagerConfig{})) << each.name;
    EXPECT_TRUE(each.check(KvBlockManagerConfig{})) << each.name;
  }
}

TEST(ConfigSchema, EveryIntegerHasBothEndsOfItsRangeAndNothingOutside) {
  const std::map<std::string_view, std::pair<std::string, std::string>> ranges = {
      {"block_size", {"1", "65536"}},       {"num_blocks", {"0", "1073741824"}},
      {"num_layers", {"0", "65535"}},       {"outer_dim", {"1", "2"}},
      {"num_heads", {"0", "8192"}},         {"head_dim", {"0", "65536"}},
      {"num_ranks", {"1", "1024"}},         {"host_blocks", {"0", "1073741824"}},
      {"disk_blocks", {"0", "1073741824"}}, {"transfer_timeout", {"0", "86400000"}},
      {"copy_threads", {"1", "256"}},       {"disk_threads", {"1", "256"}},
  };
  size_t seen = 0;
  for (const ConfigKey& each : config_schema()) {
    if (each.placeholder() != "INTEGER") continue;
    ++seen;
    const auto& [low, high] = ranges.at(each.name);
    const std::string refused = "allowed is an integer from " + low + " to " + high;
    EXPECT_EQ(after_set(each.name, low), low) << each.name;
    EXPECT_EQ(after_set(each.name, high), high) << each.name;
    EXPECT_EQ(after_set(each.name, std::to_string(std::stoll(low) - 1)), refused) << each.name;
    EXPECT_EQ(after_set(each.name, std::to_string(std::stoll(high) + 1)), refused) << each.name;
    for (const std::string_view wrong :
         {"", " 1", "1 ", "+1", "0x10", "1.0", "one", "true", "99999999999999999999", "1_000"}) {
      EXPECT_EQ(after_set(each.name, wrong), refused) << each.name << ' ' << wrong;
    }
  }
  EXPECT_EQ(seen, ranges.size());
}

TEST(ConfigSchema, SizesAreNumbersOfBytesWithOrWithoutAUnit) {
  const std::string refused =
      "allowed is a number of bytes, or a size such as \"64 GiB\", below 8 EiB";
  for (const std::string_view name : {"host_bytes", "disk_bytes", "cuda_ring_size"}) {
    EXPECT_EQ(after_set(name, "0"), "0");
    EXPECT_EQ(after_set(name, "4096"), "4096");
    EXPECT_EQ(after_set(name, "64 GiB"), "68719476736");
    EXPECT_EQ(after_set(name, "1.5MB"), "1500000");
    EXPECT_EQ(after_set(name, "9223372036854775807"), "9223372036854775807");
    for (const std::string_view wrong : {"9223372036854775808", "64G", "-1", "", "many"}) {
      EXPECT_EQ(after_set(name, wrong), refused) << wrong;
    }
  }
}

TEST(ConfigSchema, AFractionIsAboveZeroAndAtMostOne) {
  EXPECT_EQ(after_set("gpu_memory_fraction", "1"), "1.0");
  EXPECT_EQ(after_set("gpu_memory_fraction", "0.25"), "0.25");
  EXPECT_EQ(after_set("gpu_memory_fraction", "1e-3"), "0.001");
  for (const std::string_view wrong : {"0", "0.0", "-0.5", "1.0001", "nan", "inf", "half", ""}) {
    EXPECT_EQ(after_set("gpu_memory_fraction", wrong), "allowed is a number above 0, at most 1")
        << wrong;
  }
}

TEST(ConfigSchema, ABooleanIsTrueOrFalse) {
  for (const std::string_view yes : {"true", "1"}) {
    EXPECT_EQ(after_set("enable_offload", yes), "true");
  }
  KvBlockManagerConfig config{.enable_offload = true};
  EXPECT_TRUE(key("enable_offload").set(config, "false"));
  EXPECT_FALSE(config.enable_offload);
  config.enable_offload = true;
  EXPECT_TRUE(key("enable_offload").set(config, "0"));
  EXPECT_FALSE(config.enable_offload);
  for (const std::string_view wrong : {"", "TRUE", "yes", "2", "on"}) {
    EXPECT_EQ(after_set("enable_offload", wrong), "allowed is true or false") << wrong;
  }
}

TEST(ConfigSchema, ChoicesAreWhatTheProgramHas) {
  for (const std::string_view name : policy_names()) {
    EXPECT_EQ(after_set("policy", name), '"' + std::string(name) + '"');
  }
  EXPECT_EQ(after_set("policy", "lfu"), "allowed is lineage, lru or fifo");
  for (const std::string_view name : {"trace", "debug", "info", "warning", "error", "off"}) {
    EXPECT_EQ(after_set("log_level", name), '"' + std::string(name) + '"');
  }
  EXPECT_EQ(after_set("log_level", "warn"), "allowed is trace, debug, info, warning, error or off");
  for (const std::string_view width : {"1", "2", "4", "8"}) {
    EXPECT_EQ(after_set("dtype_width_bytes", width), width);
  }
  for (const std::string_view wrong : {"0", "3", "16", "two"}) {
    EXPECT_EQ(after_set("dtype_width_bytes", wrong), "allowed is 1, 2, 4 or 8");
  }
}

TEST(ConfigSchema, TextsAreTakenAsTheyAreButForControlCharacters) {
  for (const std::string_view name : {"offload_path", "model", "cache_salt"}) {
    EXPECT_EQ(after_set(name, ""), "\"\"");
    EXPECT_EQ(after_set(name, " a \"b\" \\c é "), "\" a \\\"b\\\" \\\\c é \"");
    EXPECT_EQ(after_set(name, "a\nb"), "allowed is a text without control characters");
    EXPECT_EQ(after_set(name, std::string_view("a\0b", 3)),
              "allowed is a text without control characters");
  }
}

TEST(ConfigSchema, ADeviceHasAName) {
  for (const std::string_view good : {"host", "cuda", "cuda:0", "cuda:17"}) {
    EXPECT_EQ(after_set("device", good), '"' + std::string(good) + '"');
  }
  for (const std::string_view bad : {"", "gpu", "cuda:", "cuda:x", "Host"}) {
    EXPECT_EQ(after_set("device", bad), "allowed is host, cuda or cuda:N") << bad;
  }
}

TEST(ConfigSchema, GroupsAreASpecWhoseMistakesHaveAPosition) {
  EXPECT_EQ(after_set("groups", "full:layers=4"), "\"full:name=full,layers=4\"");
  EXPECT_EQ(after_set("groups", "full:layers=x"),
            "character 13: allowed is an integer from 1 to 65535");
}

TEST(ConfigSchema, AKeyHasANameForEverySource) {
  EXPECT_EQ(option_of(key("block_size")), "--block-size");
  EXPECT_EQ(environment_variable_of(key("block_size")), "KVBM_BLOCK_SIZE");
  EXPECT_EQ(key("policy").placeholder(), "lineage|lru|fifo");
  EXPECT_EQ(key("enable_offload").placeholder(), "true|false");
  EXPECT_EQ(key("host_bytes").placeholder(), "SIZE");
  EXPECT_EQ(key("gpu_memory_fraction").placeholder(), "NUMBER");
  EXPECT_EQ(key("groups").placeholder(), "SPEC");
  EXPECT_EQ(key("model").placeholder(), "TEXT");
  EXPECT_EQ(config_schema().find("blocksize"), nullptr);
  EXPECT_EQ(config_schema().nearest("blocksize").name, "block_size");
}

TEST(ConfigSchema, OnlyWritesItsOwnMember) {
  for (const ConfigKey& each : config_schema()) {
    KvBlockManagerConfig config{.block_size = 7, .num_layers = 3, .model = "m"};
    KvBlockManagerConfig expected = config;
    ASSERT_TRUE(each.set(
        config, each.name == "groups" ? "" : [&each] {
          const std::string value = each.default_value();
          return value.starts_with('"') ? value.substr(1, value.size() - 2) : value;
        }()));
    std::visit([&](auto member) { expected.*member = KvBlockManagerConfig{}.*member; },
               each.member);
    EXPECT_EQ(config, expected) << each.name;
  }
}

}  // namespace
}  // namespace kvbm
