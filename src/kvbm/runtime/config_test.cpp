// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/config.hpp"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"
#include "kvbm/runtime/config_schema.hpp"

namespace kvbm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// What every configuration needs.
constexpr std::string_view kModel = "num_layers = 4\nnum_heads = 8\nhead_dim = 128\n";

ConfigSources with_file(std::string text, std::string_view model = kModel) {
  return {.file = ConfigFile{.name = "kvbm.toml", .text = std::string(model) + std::move(text)}};
}

ConfigSources with_variable(std::string name, std::string value) {
  ConfigSources sources = with_file("");
  sources.environment.push_back({std::move(name), std::move(value)});
  return sources;
}

ConfigSources with_setting(std::string key, std::string value, std::string where = {}) {
  ConfigSources sources = with_file("");
  sources.settings.push_back({std::move(key), std::move(value), std::move(where)});
  return sources;
}

std::string error_of(const ConfigSources& sources, ErrorCode code = ErrorCode::kInvalidArgument) {
  const Result<Config> config = Config::load(sources);
  if (config) return "no error";
  EXPECT_EQ(config.error().code(), code) << config.error();
  return config.error().message();
}

class TempFile {
 public:
  explicit TempFile(std::string_view text) {
    path_ = (std::filesystem::temp_directory_path() / "kvbm_config_XXXXXX").string();
    const int descriptor = mkstemp(path_.data());
    if (descriptor >= 0) close(descriptor);
    std::ofstream(path_, std::ios::binary) << text;
  }
  ~TempFile() { std::filesystem::remove(path_); }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;

  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(Config, WithoutSourcesIsTheDefaultsWhichLackAModel) {
  EXPECT_EQ(error_of({}),
            "num_layers is not set: set it to the layers of the model, or set groups");
}

TEST(Config, ReadsEveryTypeFromAFile) {
  const Config config = Config::load(with_file(R"(
block_size = 16            # a comment
device = "cuda:1"
gpu_memory_fraction = 0.5
enable_offload = true
host_bytes = "2 GiB"
disk_bytes = 1_000_000
policy = "lru"
transfer_timeout = 0
log_level = "debug"
groups = "full:layers=3; window:layers=1, blocks=2"
model = "a/b"
)"))
                            .value();
  const KvBlockManagerConfig& values = config.values();
  EXPECT_EQ(values.block_size, 16U);
  EXPECT_EQ(values.device, "cuda:1");
  EXPECT_EQ(values.gpu_memory_fraction, 0.5);
  EXPECT_TRUE(values.enable_offload);
  EXPECT_EQ(values.host_bytes, uint64_t{2} << 30);
  EXPECT_EQ(values.disk_bytes, 1'000'000U);
  EXPECT_EQ(values.policy, "lru");
  EXPECT_EQ(values.transfer_timeout.count(), 0);
  EXPECT_EQ(values.log_level, LogLevel::kDebug);
  EXPECT_EQ(values.groups.size(), 2U);
  EXPECT_EQ(values.model, "a/b");
  EXPECT_EQ(values.num_layers, 4U);
  EXPECT_EQ(values.head_dim, 128U);
}

TEST(Config, AnIntegerWillDoForAFraction) {
  const Config config =
      Config::load(with_file("device = \"cuda\"\ngpu_memory_fraction = 1")).value();
  EXPECT_EQ(config.values().gpu_memory_fraction, 1.0);
}

TEST(Config, TheEnvironmentWinsOverTheFileAndASettingOverBoth) {
  ConfigSources sources = with_file("block_size = 1\nnum_blocks = 1\nmodel = \"file\"\n");
  sources.environment = {{"KVBM_NUM_BLOCKS", "2"}, {"KVBM_MODEL", "environment"}};
  sources.settings = {{"model", "setting", "--model"}};
  const Config config = Config::load(sources).value();
  EXPECT_EQ(config.values().block_size, 1U);
  EXPECT_EQ(config.values().num_blocks, 2U);
  EXPECT_EQ(config.values().model, "setting");
  EXPECT_EQ(config.values().cache_salt, "");
}

TEST(Config, RemembersWhereEachValueCameFrom) {
  ConfigSources sources = with_file("block_size = 1\nnum_blocks = 1\n");
  sources.environment = {{"KVBM_NUM_BLOCKS", "2"}};
  sources.settings = {{"model", "m", "--model"}, {"policy", "lru", {}}};
  const Config config = Config::load(sources).value();
  EXPECT_EQ(config.origin("block_size"), (ConfigOrigin{ConfigSourceKind::kFile, "kvbm.toml:4"}));
  EXPECT_EQ(config.origin("num_blocks"),
            (ConfigOrigin{ConfigSourceKind::kEnvironment, "KVBM_NUM_BLOCKS"}));
  EXPECT_EQ(config.origin("model"), (ConfigOrigin{ConfigSourceKind::kSetting, "--model"}));
  EXPECT_EQ(config.origin("policy"),
            (ConfigOrigin{ConfigSourceKind::kSetting, "set by the program"}));
  EXPECT_EQ(config.origin("cache_salt"), (ConfigOrigin{ConfigSourceKind::kDefault, "default"}));
  EXPECT_THROW((void)config.origin("no_such_key"), ContractViolation);
}

TEST(Config, AnUnknownKeyIsAnErrorThatNamesTheNearestAndThePlace) {
  EXPECT_EQ(error_of(with_file("\nblok_size = 16\n")),
            "kvbm.toml:5: there is no key \"blok_size\"; the nearest is block_size");
  EXPECT_EQ(error_of(with_file("[host]\nblocks = 16\n")),
            "kvbm.toml:4: there is no key \"host\"; the nearest is model");
  EXPECT_EQ(error_of(with_variable("KVBM_BLOCKSIZE", "16")),
            "environment: there is no variable \"KVBM_BLOCKSIZE\"; the nearest is KVBM_BLOCK_SIZE");
  EXPECT_EQ(error_of(with_setting("num-blocks", "16", "--set")),
            "--set: there is no key \"num-blocks\"; the nearest is num_blocks");
}

TEST(Config, OfSeveralMistakesInAFileTheFirstIsReported) {
  EXPECT_THAT(error_of(with_file("zzz = 1\naaa = 1\n")), StartsWith("kvbm.toml:4: "));
}

TEST(Config, AWrongValueNamesKeyValueWhatIsAllowedAndThePlace) {
  EXPECT_EQ(error_of(with_file("block_size = 0")),
            "block_size = 0 (kvbm.toml:4): allowed is an integer from 1 to 65536");
  EXPECT_EQ(error_of(with_variable("KVBM_BLOCK_SIZE", "many")),
            "block_size = \"many\" (KVBM_BLOCK_SIZE): allowed is an integer from 1 to 65536");
  EXPECT_EQ(error_of(with_variable("KVBM_BLOCK_SIZE", "")),
            "block_size = \"\" (KVBM_BLOCK_SIZE): allowed is an integer from 1 to 65536");
  EXPECT_EQ(error_of(with_setting("block_size", "-1", "--block-size")),
            "block_size = \"-1\" (--block-size): allowed is an integer from 1 to 65536");
  EXPECT_EQ(error_of(with_setting("block_size", "-1")),
            "block_size = \"-1\" (set by the program): allowed is an integer from 1 to 65536");
  EXPECT_EQ(
      error_of(with_file("groups = \"full:layer=4\"")),
      "groups = \"full:layer=4\" (kvbm.toml:4): character 6: a group has no option \"layer\"; "
      "the nearest is layers");
}

TEST(Config, AValueOfTheWrongTypeIsRefused) {
  EXPECT_EQ(error_of(with_file("block_size = \"16\"")),
            "block_size = \"16\" (kvbm.toml:4): allowed is an integer from 1 to 65536");
  EXPECT_EQ(error_of(with_file("block_size = 16.0")),
            "block_size = 16 (kvbm.toml:4): allowed is an integer from 1 to 65536");
  EXPECT_EQ(error_of(with_file("enable_offload = 1")),
            "enable_offload = 1 (kvbm.toml:4): allowed is true or false");
  EXPECT_EQ(error_of(with_file("model = 1")),
            "model = 1 (kvbm.toml:4): allowed is a text without control characters");
  EXPECT_EQ(error_of(with_file("gpu_memory_fraction = \"0.5\"")),
            "gpu_memory_fraction = \"0.5\" (kvbm.toml:4): allowed is a number above 0, at most 1");
  EXPECT_EQ(error_of(with_file("gpu_memory_fraction = nan")),
            "gpu_memory_fraction = nan (kvbm.toml:4): allowed is a number above 0, at most 1");
  EXPECT_EQ(error_of(with_file("host_bytes = true")),
            "host_bytes = true (kvbm.toml:4): allowed is a number of bytes, or a size such as \"64 "
            "GiB\", below 8 EiB");
  EXPECT_EQ(error_of(with_file("groups = [1]")),
            "groups = […] (kvbm.toml:4): allowed is a list of groups such as "
            "full:layers=4;window:layers=2,blocks=8");
  EXPECT_THAT(error_of(with_file("[groups]\nfull = 4")), HasSubstr("groups = {…} (kvbm.toml:4): "));
  EXPECT_THAT(error_of(with_file("model = 2026-01-31")),
              HasSubstr("model = a date or time (kvbm.toml:4): "));
}

TEST(Config, AWrongValueIsAnErrorAlsoWhereALaterSourceReplacesIt) {
  ConfigSources sources = with_file("block_size = 0");
  sources.settings = {{"block_size", "16", {}}};
  EXPECT_THAT(error_of(sources), HasSubstr("kvbm.toml:4"));
}

TEST(Config, ValuesThatDoNotGoTogetherAreNamedWithTheirPlaces) {
  ConfigSources sources = with_file("host_blocks = 10\n");
  sources.environment = {{"KVBM_HOST_BYTES", "1 MiB"}};
  EXPECT_EQ(error_of(sources),
            "host_blocks = 10 (kvbm.toml:4) and host_bytes = 1048576 (KVBM_HOST_BYTES) both size "
            "host memory: drop one");
}

TEST(Config, BrokenTomlIsReportedWithLineAndColumn) {
  EXPECT_THAT(error_of(with_file("block_size = = 1")), StartsWith("kvbm.toml:4:14: "));
  EXPECT_THAT(error_of(with_file("block_size = 1\nblock_size = 2")), StartsWith("kvbm.toml:5:"));
  EXPECT_THAT(error_of(with_file("model = \"\xFF\"")), StartsWith("kvbm.toml:4:"));
  EXPECT_THAT(error_of(with_file("block_size = 99999999999999999999")), StartsWith("kvbm.toml:4:"));
}

TEST(Config, AKeySetTwiceByTheProgramIsAnError) {
  ConfigSources sources = with_setting("block_size", "16", "--block-size");
  sources.settings.push_back({"block_size", "32", "--set"});
  EXPECT_EQ(error_of(sources), "block_size = \"32\" (--set): it is set already (--block-size)");
}

TEST(Config, ReservedVariablesAndThoseOfOthersAreLeftAlone) {
  ConfigSources sources = with_file("");
  sources.environment = {{"KVBM_SEED", "1"},
                         {"KVBM_REQUIRE", "gpu"},
                         {"KVBM_REQUIRE_CUDA", "1"},
                         {"KVBM_CONVERSATION_TRACE", "/trace"},
                         {"KVBM_BENCH_TRACE", "/trace"},
                         {"KVBM_MODEL_OPS", "9"},
                         {"KVBM_WITH_CUDA", "ON"},
                         {"KVBM_WERROR", "ON"},
                         {"HOME", "/"},
                         {"KVBM_CONFIG", "/no/such/file"}};
  EXPECT_EQ(error_of(sources), "no error");
  EXPECT_THAT(error_of(with_variable("KVBM_REQUIRED", "1")), HasSubstr("there is no variable"));
  EXPECT_THAT(error_of(with_variable("KVBM_SEEDS", "1")), HasSubstr("there is no variable"));
  EXPECT_THAT(error_of(with_variable("KVBM_WITH", "1")), HasSubstr("there is no variable"));
  EXPECT_THAT(error_of(with_variable("KVBM_block_size", "1")), HasSubstr("there is no variable"));
}

TEST(Config, TheEnvironmentMayNameTheFile) {
  const TempFile file(std::string(kModel) + "block_size = 8\n");
  ConfigSources sources;
  sources.environment = {{"KVBM_CONFIG", file.path()}};
  const Config config = Config::load(sources).value();
  EXPECT_EQ(config.values().block_size, 8U);
  EXPECT_EQ(config.origin("block_size").where, file.path() + ":4");

  sources.environment = {{"KVBM_CONFIG", file.path() + ".none"}};
  EXPECT_EQ(error_of(sources, ErrorCode::kNotFound),
            "KVBM_CONFIG: cannot open the configuration file \"" + file.path() + ".none\"");
}

TEST(Config, AFileIsReadWholeOrNotAtAll) {
  const TempFile small("model = \"m\"\n");
  const ConfigFile read = read_config_file(small.path()).value();
  EXPECT_EQ(read.name, small.path());
  EXPECT_EQ(read.text, "model = \"m\"\n");
  const TempFile largest(std::string(1 << 20, '#'));
  EXPECT_EQ(read_config_file(largest.path()).value().text.size(), size_t{1} << 20);
  const TempFile large(std::string((1 << 20) + 1, '#'));
  EXPECT_EQ(read_config_file(large.path()).error().code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(read_config_file("/no/such/file").error().code(), ErrorCode::kNotFound);
  EXPECT_FALSE(read_config_file(std::filesystem::temp_directory_path().string()).has_value());
}

TEST(Config, TheProcessEnvironmentIsReadForItsOwnVariables) {
  ASSERT_EQ(setenv("KVBM_BLOCK_SIZE", "a=b", 1), 0);
  const std::vector<EnvironmentVariable> found = process_environment();
  ASSERT_EQ(unsetenv("KVBM_BLOCK_SIZE"), 0);
  bool is_there = false;
  for (const EnvironmentVariable& variable : found) {
    EXPECT_THAT(variable.name, StartsWith("KVBM_"));
    if (variable.name == "KVBM_BLOCK_SIZE") is_there = variable.value == "a=b";
  }
  EXPECT_TRUE(is_there);
}

TEST(Config, WritesItselfAsAFileThatGivesTheSameValues) {
  ConfigSources sources = with_file("model = \"a \\\"b\\\" \\\\ c\"\n");
  sources.settings = {{"groups", "full:layers=4", "--groups"}};
  const Config config = Config::load(sources).value();
  const std::string text = config.to_toml();
  EXPECT_THAT(text, HasSubstr("block_size = 64  # default\n"));
  EXPECT_THAT(text, HasSubstr("num_layers = 4  # kvbm.toml:1\n"));
  EXPECT_THAT(text, HasSubstr("groups = \"full:name=full,layers=4\"  # --groups\n"));
  EXPECT_EQ(Config::load(with_file(text, "")).value().values(), config.values());
}

}  // namespace
}  // namespace kvbm
