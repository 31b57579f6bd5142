// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/config_doc.hpp"

#include <fstream>
#include <iterator>
#include <regex>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "kvbm/base/units.hpp"
#include "kvbm/runtime/config.hpp"
#include "kvbm/runtime/config_schema.hpp"
#include "kvbm/runtime/connector_config.hpp"

namespace kvbm {
namespace {

using ::testing::HasSubstr;

TEST(ConfigDoc, IsWhatTheDocumentationSays) {
  std::ifstream file(KVBM_TEST_SOURCE_DIR "/../../../docs/configuration.md", std::ios::binary);
  ASSERT_TRUE(file);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  EXPECT_EQ(text, config_doc())
      << "write it anew: cmake --build <build folder> --target config_doc";
}

TEST(ConfigDoc, NamesEveryKeyAndEveryOtherVariable) {
  const std::string doc = config_doc();
  for (const ConfigKey& key : config_schema()) {
    EXPECT_THAT(doc, HasSubstr("| `" + std::string(key.name) + "` | `" + key.default_value()));
  }
  for (const ConnectorSetting& setting : connector_schema()) {
    EXPECT_THAT(doc, HasSubstr("| `" + std::string(setting.name) + "` | `" +
                               setting.default_value() + "` | "));
    EXPECT_THAT(doc, HasSubstr(setting.variable));
  }
  for (const RefusedVariable& variable : refused_variables()) {
    EXPECT_THAT(doc, HasSubstr("| `" + std::string(variable.name) + "` | "));
  }
  for (const ReservedVariable& variable : reserved_variables()) {
    EXPECT_THAT(doc, HasSubstr("| `" + std::string(variable.name) + "` | "));
  }
}

TEST(ConfigDoc, ItsExampleIsAConfiguration) {
  const std::string doc = config_doc();
  const size_t start = doc.find("```toml\n") + 8;
  const std::string example = doc.substr(start, doc.find("```\n", start) - start);
  const Result<Config> config = Config::load({.file = ConfigFile{"example", example}});
  ASSERT_TRUE(config) << config.error();
  EXPECT_TRUE(config->values().has_host_tier());
  EXPECT_GT(config->connector().host_bytes, 0U);
}

TEST(ConfigJsonSchema, DescribesEveryKey) {
  const auto schema = nlohmann::json::parse(config_json_schema());
  EXPECT_EQ(schema["additionalProperties"], false);
  const auto& properties = schema["properties"];
  EXPECT_EQ(properties.size(), config_schema().size() + 1) << "and the table of the connector";
  for (const ConfigKey& key : config_schema()) {
    ASSERT_TRUE(properties.contains(key.name)) << key.name;
    EXPECT_TRUE(properties[key.name].contains("default")) << key.name;
  }
  EXPECT_EQ(properties["block_size"], (nlohmann::json{{"description", "Tokens per block."},
                                                      {"type", "integer"},
                                                      {"minimum", 1},
                                                      {"maximum", 65536},
                                                      {"default", 64},
                                                      {"x-unit", "tokens"}}));
  EXPECT_EQ(properties["policy"]["enum"], (nlohmann::json{"lineage", "lru", "fifo"}));
  EXPECT_EQ(properties["dtype_width_bytes"]["enum"], (nlohmann::json{1, 2, 4, 8}));
  EXPECT_EQ(properties["enable_offload"]["type"], "boolean");
  EXPECT_EQ(properties["host_bytes"]["anyOf"].size(), 2U);
}

TEST(ConfigJsonSchema, ASizeIsWhatAFileMaySay) {
  const auto schema = nlohmann::json::parse(config_json_schema());
  const auto& forms = schema["properties"]["host_bytes"]["anyOf"];
  const std::regex pattern(forms[1]["pattern"].get<std::string>());
  for (const std::string text :
       {"0",     "64",     "1.5MB",     "64 B", "1 kB", "1KB",   "2 GB", "3TB", "4 KiB",
        "5 MiB", "64 GiB", "1.25  TiB", "64G",  "64Ki", "1.2.3", "1.",   ".5",  "1.0123456789 GB",
        "1kiB",  "-1",     "many"}) {
    EXPECT_EQ(std::regex_match(text, pattern), parse_size(text).has_value()) << text;
  }
}

TEST(ConfigJsonSchema, DescribesEverySettingOfTheConnector) {
  const auto connector = nlohmann::json::parse(config_json_schema())["properties"]["connector"];
  EXPECT_EQ(connector["type"], "object");
  EXPECT_EQ(connector["additionalProperties"], false);
  const auto& properties = connector["properties"];
  EXPECT_EQ(properties.size(), connector_schema().size());
  for (const ConnectorSetting& setting : connector_schema()) {
    ASSERT_TRUE(properties.contains(setting.name)) << setting.name;
    EXPECT_TRUE(properties[setting.name].contains("default")) << setting.name;
    EXPECT_EQ(properties[setting.name].contains("x-variable"), !setting.variable.empty());
  }
  EXPECT_EQ(properties["load_mode"]["enum"], (nlohmann::json{"auto", "between_steps"}));
  EXPECT_EQ(properties["metrics_port"]["maximum"], 65535);
  EXPECT_EQ(properties["store_budget"]["anyOf"].size(), 2U);
  EXPECT_EQ(properties["store_budget"]["default"], "auto");
  EXPECT_TRUE(properties["endpoint"].contains("pattern"));
  EXPECT_FALSE(properties["disk_directory"].contains("pattern"));
  EXPECT_EQ(properties["host_bytes"]["anyOf"].size(), 2U);
  EXPECT_EQ(properties["init_timeout_seconds"]["type"], "number");
  EXPECT_EQ(properties["record"]["x-variable"], "DYN_KVBM_ENABLE_RECORD");
}

TEST(ConfigHelp, ShowsEveryOptionWithItsValuesAndDefault) {
  const std::string help = config_help();
  EXPECT_THAT(help, HasSubstr("  --block-size INTEGER\n      Tokens per block. [64]\n"));
  EXPECT_THAT(help, HasSubstr("  --policy lineage|lru|fifo\n"));
  EXPECT_EQ(help.find('`'), std::string::npos);
  for (const ConfigKey& key : config_schema()) EXPECT_THAT(help, HasSubstr("  " + option_of(key)));
}

}  // namespace
}  // namespace kvbm
