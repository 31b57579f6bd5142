// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/connector_config.hpp"

#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/runtime/config.hpp"

namespace kvbm {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

Result<ConnectorConfig> read_variables(std::vector<EnvironmentVariable> environment) {
  KVBM_ASSIGN_OR_RETURN(const Config config, Config::read({.environment = std::move(environment)}));
  return config.connector();
}

ConfigSources with_file(std::string text) {
  return {.file = ConfigFile{.name = "kvbm.toml", .text = std::move(text)}};
}

std::string error_of(const ConfigSources& sources) {
  const Result<Config> config = Config::read(sources);
  return config ? "no error" : config.error().message();
}

TEST(ConnectorVariables, HaveTheDocumentsDefaults) {
  const auto found = read_variables({});
  ASSERT_TRUE(found);
  EXPECT_EQ(*found, ConnectorConfig());
  EXPECT_EQ(found->disk_directory, "/tmp/");
  EXPECT_EQ(found->init_timeout, std::chrono::seconds(120));
}

TEST(ConnectorVariables, AreRead) {
  const auto found = read_variables({{"DYN_KVBM_CPU_CACHE_GB", "4"},
                                     {"DYN_KVBM_DISK_CACHE_GB", "0.5"},
                                     {"DYN_KVBM_DISK_CACHE_DIR", "/data"},
                                     {"DYN_KVBM_LEADER_WORKER_INIT_TIMEOUT_SECS", "1800"},
                                     {"DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS", "7"},
                                     {"DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS", "8"}});
  ASSERT_TRUE(found) << found.error();
  EXPECT_EQ(found->host_bytes, 4'000'000'000U);
  EXPECT_EQ(found->disk_bytes, 500'000'000U);
  EXPECT_EQ(found->disk_directory, "/data");
  EXPECT_EQ(found->init_timeout, std::chrono::seconds(1800));
  EXPECT_EQ(found->host_blocks, 7U);
  EXPECT_EQ(found->disk_blocks, 8U);
}

TEST(ConnectorVariables, SwitchesSayWhatTheySay) {
  for (const auto& [text, value] :
       {std::pair("true", true), {"1", true}, {"false", false}, {"0", false}}) {
    const auto found = read_variables({{"DYN_KVBM_DISK_ZEROFILL_FALLBACK", text},
                                       {"DYN_KVBM_DISK_DISABLE_O_DIRECT", text},
                                       {"DYN_KVBM_DISABLE_DISK_OFFLOAD_FILTER", text},
                                       {"DYN_KVBM_ENABLE_RECORD", text}});
    ASSERT_TRUE(found) << found.error();
    EXPECT_EQ(found->disk_zero_fill, value);
    EXPECT_EQ(found->disk_direct_io, !value);
    EXPECT_EQ(found->disk_filter, !value);
    EXPECT_EQ(found->record, value);
  }
  for (const char* name : {"DYN_KVBM_DISK_ZEROFILL_FALLBACK", "DYN_KVBM_DISK_DISABLE_O_DIRECT",
                           "DYN_KVBM_DISABLE_DISK_OFFLOAD_FILTER", "DYN_KVBM_ENABLE_RECORD"}) {
    const auto found = read_variables({{name, "maybe"}});
    ASSERT_FALSE(found);
    EXPECT_EQ(found.error().code(), ErrorCode::kInvalidArgument);
  }
}

TEST(ConnectorVariables, APriorityIsFromZeroToAHundred) {
  const std::string name = "DYN_KVBM_HOST_OFFLOAD_PREFIX_MIN_PRIORITY";
  EXPECT_EQ(read_variables({{name, "35"}})->min_priority, 35U);
  EXPECT_EQ(read_variables({{name, "100"}})->min_priority, 100U);
  EXPECT_FALSE(read_variables({{name, "101"}}));
  EXPECT_FALSE(read_variables({{name, "-1"}}));
}

TEST(ConnectorVariables, MetricsAreOffUntilAskedForAndThenOnTheDocumentsPort) {
  const auto port = [](const std::vector<EnvironmentVariable>& variables) {
    return read_variables(variables).value().served_port();
  };
  EXPECT_EQ(port({}), std::nullopt);
  EXPECT_EQ(port({{"DYN_KVBM_METRICS_PORT", "9000"}}), std::nullopt);
  for (const char* yes : {"true", "True", "1", "yes", "ON"}) {
    EXPECT_EQ(port({{"DYN_KVBM_METRICS", yes}}), 6880) << yes;
  }
  for (const char* no : {"false", "0", "no", "Off"}) {
    EXPECT_EQ(port({{"DYN_KVBM_METRICS", no}}), std::nullopt) << no;
  }
}

TEST(ConnectorVariables, TheMetricsPortIsRead) {
  EXPECT_EQ(
      read_variables({{"DYN_KVBM_METRICS_PORT", "9000"}, {"DYN_KVBM_METRICS", "1"}})->served_port(),
      9000);
  for (const char* value : {"", "0", "65536", "-1", "http", "6880 "}) {
    const auto found = read_variables({{"DYN_KVBM_METRICS_PORT", value}});
    ASSERT_FALSE(found) << value;
    EXPECT_THAT(found.error().message(), HasSubstr("DYN_KVBM_METRICS_PORT = "));
  }
  EXPECT_FALSE(read_variables({{"DYN_KVBM_METRICS", "maybe"}}));
}

TEST(ConnectorVariables, TheStoreBudgetIsAShareOrAuto) {
  const std::string name = "DYN_KVBM_STORE_BUDGET";
  EXPECT_EQ(read_variables({{name, "auto"}})->store_budget, std::nullopt);
  EXPECT_EQ(read_variables({{name, "0.05"}})->store_budget, 0.05);
  EXPECT_EQ(read_variables({{name, "1"}})->store_budget, 1.0);
  for (const char* value : {"0", "-0.1", "1.01", "nan", "", "much", "5%"}) {
    const auto found = read_variables({{name, value}});
    ASSERT_FALSE(found) << value;
    EXPECT_THAT(found.error().message(), HasSubstr("auto, or a number above 0, at most 1"));
  }
}

TEST(ConnectorVariables, TheEndpointIsIpcOrAPort) {
  const std::string name = "DYN_KVBM_ENDPOINT";
  for (const char* value :
       {"ipc", "tcp://127.0.0.1:5600", "tcp://localhost:1", "tcp://[::1]:65535"}) {
    const auto found = read_variables({{name, value}});
    ASSERT_TRUE(found) << found.error();
    EXPECT_EQ(found->endpoint, value);
  }
  for (const char* value :
       {"", "tcp", "tcp://", "tcp://:5600", "tcp://127.0.0.1", "tcp://a:0", "tcp://a:65536",
        "tcp://*:5600", "tcp://a:*", "ipc:///tmp/x", "tcp://a b:1", "udp://a:1"}) {
    const auto found = read_variables({{name, value}});
    ASSERT_FALSE(found) << value;
    EXPECT_THAT(found.error().message(), HasSubstr("allowed is ipc, or an address and a port"));
  }
}

TEST(ConnectorVariables, AreRefusedWithTheNameAndWhatIsAllowed) {
  for (const char* value : {"", "four", "-1", "1e99", "nan", "4 ", "4GB"}) {
    const auto found = read_variables({{"DYN_KVBM_CPU_CACHE_GB", value}});
    ASSERT_FALSE(found) << value;
    EXPECT_EQ(found.error().code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(found.error().message(), HasSubstr("DYN_KVBM_CPU_CACHE_GB = "));
  }
  EXPECT_FALSE(read_variables({{"DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS", "1.5"}}));
  EXPECT_FALSE(read_variables({{"DYN_KVBM_DISK_CACHE_DIR", ""}}));
  for (const char* value : {"", "0", "-1", "nan", "86401", "2 min"}) {
    EXPECT_FALSE(read_variables({{"DYN_KVBM_LEADER_WORKER_INIT_TIMEOUT_SECS", value}})) << value;
  }
  const auto unknown = read_variables({{"DYN_KVBM_CPU_CACHE", "4"}});
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().message(),
            "there is no variable \"DYN_KVBM_CPU_CACHE\"; the nearest is DYN_KVBM_CPU_CACHE_GB");
}

TEST(ConnectorVariables, WhatIsLeftOutIsRefusedWithTheReason) {
  for (const auto& [name, reason] : {std::pair("DYN_KVBM_NCCL_MLA_MODE", "NCCL"),
                                     {"DYN_KVBM_NIXL_BACKEND_UCX", "NIXL"},
                                     {"DYN_KVBM_OBJECT_BUCKET", "remote"},
                                     {"DYN_KVBM_LEADER_ZMQ_HOST", "folder"}}) {
    const auto found = read_variables({{name, "1"}});
    ASSERT_FALSE(found) << name;
    EXPECT_EQ(found.error().code(), ErrorCode::kUnsupported);
    EXPECT_THAT(found.error().message(), HasSubstr(reason));
  }
}

TEST(ConnectorConfig, IsReadFromATableOfTheFile) {
  const Config config = Config::read(with_file(R"(
block_size = 16
[connector]
host_bytes = "4 GiB"
disk_bytes = 500000000
disk_blocks = 8
disk_directory = "/data"
disk_direct_io = false
disk_filter = false
load_mode = "between_steps"
store_budget = 0.25
weights_epoch = 7
transfer_timeout_seconds = 0.5
init_timeout_seconds = 3
metrics = true
)"))
                            .value();
  const ConnectorConfig expected{.host_bytes = uint64_t{4} << 30,
                                 .disk_bytes = 500'000'000,
                                 .disk_blocks = 8,
                                 .disk_directory = "/data",
                                 .disk_direct_io = false,
                                 .disk_filter = false,
                                 .load_mode = "between_steps",
                                 .store_budget = 0.25,
                                 .weights_epoch = 7,
                                 .transfer_timeout = std::chrono::milliseconds(500),
                                 .init_timeout = std::chrono::seconds(3),
                                 .metrics = true};
  EXPECT_EQ(config.connector(), expected);
  EXPECT_EQ(config.values().block_size, 16U);
  EXPECT_EQ(config.origin("connector.disk_blocks"),
            (ConfigOrigin{ConfigSourceKind::kFile, "kvbm.toml:6"}));
}

TEST(ConnectorConfig, NeedsNoBlockManagerAndABlockManagerNeedsNoConnector) {
  EXPECT_EQ(error_of(with_file("[connector]\nhost_blocks = 4\n")), "no error");
  EXPECT_EQ(error_of(with_file("")), "no error");
  const auto config = Config::load(
      with_file("num_layers = 1\nnum_heads = 1\nhead_dim = 1\n[connector]\nhost_blocks = 4\n"));
  ASSERT_TRUE(config) << config.error();
  EXPECT_EQ(config->values().host_blocks, 0U) << "the name of another key";
}

TEST(ConnectorConfig, AVariableWinsOverTheFileAndASettingOverBoth) {
  ConfigSources sources =
      with_file("[connector]\nhost_blocks = 1\ndisk_blocks = 1\nmin_priority = 1\n");
  sources.environment = {{"DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS", "2"},
                         {"DYN_KVBM_HOST_OFFLOAD_PREFIX_MIN_PRIORITY", "2"},
                         {"DYN_KVBM_DISK_DISABLE_O_DIRECT", "true"}};
  sources.settings = {{"connector.min_priority", "3", "kv_connector_extra_config"}};
  const Config config = Config::read(sources).value();
  EXPECT_EQ(config.connector().host_blocks, 1U);
  EXPECT_EQ(config.connector().disk_blocks, 2U);
  EXPECT_EQ(config.connector().min_priority, 3U);
  EXPECT_FALSE(config.connector().disk_direct_io);
  EXPECT_EQ(config.origin("connector.host_blocks").where, "kvbm.toml:2");
  EXPECT_EQ(
      config.origin("connector.disk_blocks"),
      (ConfigOrigin{ConfigSourceKind::kEnvironment, "DYN_KVBM_DISK_CACHE_OVERRIDE_NUM_BLOCKS"}));
  EXPECT_EQ(config.origin("connector.min_priority"),
            (ConfigOrigin{ConfigSourceKind::kSetting, "kv_connector_extra_config"}));
  EXPECT_EQ(config.origin("connector.record"), ConfigOrigin());
  const std::string text = config.connector_to_toml();
  EXPECT_THAT(text, StartsWith("[connector]\nhost_bytes = 0  # default\nhost_blocks = 1  # kvbm"));
  EXPECT_THAT(text, HasSubstr("\ndisk_direct_io = false  # DYN_KVBM_DISK_DISABLE_O_DIRECT\n"));
}

TEST(ConnectorConfig, AMistakeNamesTheSettingThePlaceAndWhatIsNear) {
  EXPECT_EQ(error_of(with_file("[connector]\nhost_block = 4\n")),
            "kvbm.toml:2: the connector has no setting \"host_block\"; the nearest is host_blocks");
  EXPECT_EQ(error_of(with_file("[conector]\nhost_blocks = 4\n")),
            "kvbm.toml:1: there is no key \"conector\"; the nearest is connector");
  EXPECT_EQ(error_of({.settings = {{"connector.loadmode", "auto", "kv_connector_extra_config"}}}),
            "kv_connector_extra_config: the connector has no setting \"loadmode\"; the nearest is "
            "load_mode");
  EXPECT_THAT(error_of(with_file("connector = 1\n")), StartsWith("connector = 1 (kvbm.toml:1): "));
  EXPECT_EQ(error_of(with_file("[connector]\n\nmin_priority = 101\n")),
            "connector.min_priority = 101 (kvbm.toml:3): allowed is an integer from 0 to 100");
  EXPECT_EQ(error_of(with_file("[connector]\nload_mode = \"later\"\n")),
            "connector.load_mode = \"later\" (kvbm.toml:2): allowed is auto or between_steps");
  for (const char* line :
       {"host_blocks = \"4\"", "host_bytes = \"2 PB\"", "metrics = 1", "metrics_port = 0",
        "record = \"true\"", "disk_directory = \"\"", "disk_directory = \"a\\n\"",
        "weights_epoch = -1", "transfer_timeout_seconds = 0", "transfer_timeout_seconds = \"2\"",
        "place_timeout_seconds = nan", "store_budget = 0", "store_budget = 2",
        "store_budget = true", "store_budget = \"0,1\""}) {
    EXPECT_THAT(error_of(with_file(std::string("[connector]\n") + line)),
                HasSubstr("(kvbm.toml:2): allowed is "))
        << line;
  }
}

TEST(ConnectorConfig, ASettingOfKnownTypeHasToFitAsInAFile) {
  const auto error = [](std::string name, std::string text, ConfigLiteral literal) {
    return error_of({.settings = {{"connector." + name, std::move(text), "here", literal}}});
  };
  EXPECT_EQ(error("weights_epoch", "18446744073709551615", ConfigLiteral::kInteger), "no error");
  EXPECT_EQ(error("metrics", "true", ConfigLiteral::kBoolean), "no error");
  EXPECT_THAT(error("weights_epoch", "1", ConfigLiteral::kText),
              StartsWith("connector.weights_epoch = \"1\" (here): allowed is "));
  EXPECT_THAT(error("metrics", "1", ConfigLiteral::kInteger), HasSubstr("allowed is"));
}

TEST(ConnectorConfig, TheDefaultsAsAFileAreTheDefaults) {
  const Config config = Config::read({}).value();
  const auto back = Config::read(with_file(config.connector_to_toml()));
  ASSERT_TRUE(back) << back.error();
  EXPECT_EQ(back->connector(), ConnectorConfig());
  EXPECT_THAT(config.connector_to_toml(), HasSubstr("\nstore_budget = \"auto\"  # default\n"));
}

TEST(ConnectorConfig, WritesItselfAsAFileThatGivesTheSameValues) {
  ConfigSources sources;
  for (const ConnectorSetting& setting : connector_schema()) {
    std::string value = std::visit(
        []<class T>(T ConnectorConfig::* /*member*/) {
          if constexpr (std::is_same_v<T, std::string>) return std::string("/a \"b\"\\c");
          if constexpr (std::is_same_v<T, Duration>) return std::string("0.25");
          if constexpr (std::is_same_v<T, std::optional<double>>) return std::string("0.25");
          return std::string("97");
        },
        setting.member);
    if (std::holds_alternative<bool ConnectorConfig::*>(setting.member)) {
      value = setting.default_value() == "true" ? "false" : "true";
    }
    if (!setting.choices.empty()) value = setting.choices.back();
    if (setting.has_form != nullptr) value = "tcp://127.0.0.1:97";
    sources.settings.push_back({connector_schema().key_of(setting.name), std::move(value), {}});
  }
  const auto config = Config::read(sources);
  ASSERT_TRUE(config) << config.error();
  for (const ConnectorSetting& setting : connector_schema()) {
    EXPECT_NE(setting.value_in(config->connector()), setting.default_value()) << setting.name;
  }
  const auto back = Config::read(with_file(config->connector_to_toml()));
  ASSERT_TRUE(back) << back.error();
  EXPECT_EQ(back->connector(), config->connector());
}

}  // namespace
}  // namespace kvbm
