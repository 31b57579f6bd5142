// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/dynamo_variables.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvbm {
namespace {

using ::testing::HasSubstr;

TEST(DynamoVariables, HaveTheDocumentsDefaults) {
  const auto found = read_dynamo_variables({});
  ASSERT_TRUE(found);
  EXPECT_EQ(*found, DynamoVariables());
  EXPECT_EQ(found->disk_directory, "/tmp/");
  EXPECT_EQ(found->init_timeout, std::chrono::seconds(120));
}

TEST(DynamoVariables, AreRead) {
  const auto found = read_dynamo_variables({{"DYN_KVBM_CPU_CACHE_GB", "4"},
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

TEST(DynamoVariables, SwitchesSayWhatTheySay) {
  for (const auto& [text, value] :
       {std::pair("true", true), {"1", true}, {"false", false}, {"0", false}}) {
    const auto found = read_dynamo_variables({{"DYN_KVBM_DISK_ZEROFILL_FALLBACK", text},
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
    const auto found = read_dynamo_variables({{name, "maybe"}});
    ASSERT_FALSE(found);
    EXPECT_EQ(found.error().code(), ErrorCode::kInvalidArgument);
  }
}

TEST(DynamoVariables, APriorityIsFromZeroToAHundred) {
  const std::string name = "DYN_KVBM_HOST_OFFLOAD_PREFIX_MIN_PRIORITY";
  EXPECT_EQ(read_dynamo_variables({{name, "35"}})->min_priority, 35U);
  EXPECT_EQ(read_dynamo_variables({{name, "100"}})->min_priority, 100U);
  EXPECT_FALSE(read_dynamo_variables({{name, "101"}}));
  EXPECT_FALSE(read_dynamo_variables({{name, "-1"}}));
}

TEST(DynamoVariables, MetricsAreOffUntilAskedForAndThenOnTheDocumentsPort) {
  const auto port = [](const std::vector<EnvironmentVariable>& variables) {
    return read_dynamo_variables(variables).value().metrics_port;
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

TEST(DynamoVariables, TheMetricsPortIsRead) {
  EXPECT_EQ(read_dynamo_variables({{"DYN_KVBM_METRICS_PORT", "9000"}, {"DYN_KVBM_METRICS", "1"}})
                ->metrics_port,
            9000);
  for (const char* value : {"", "0", "65536", "-1", "http", "6880 "}) {
    const auto found = read_dynamo_variables({{"DYN_KVBM_METRICS_PORT", value}});
    ASSERT_FALSE(found) << value;
    EXPECT_THAT(found.error().message(), HasSubstr("DYN_KVBM_METRICS_PORT = "));
  }
  EXPECT_FALSE(read_dynamo_variables({{"DYN_KVBM_METRICS", "maybe"}}));
}

TEST(DynamoVariables, AreRefusedWithTheNameAndWhatIsAllowed) {
  for (const char* value : {"", "four", "-1", "1e99", "nan", "4 ", "4GB"}) {
    const auto found = read_dynamo_variables({{"DYN_KVBM_CPU_CACHE_GB", value}});
    ASSERT_FALSE(found) << value;
    EXPECT_EQ(found.error().code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(found.error().message(), HasSubstr("DYN_KVBM_CPU_CACHE_GB = "));
  }
  EXPECT_FALSE(read_dynamo_variables({{"DYN_KVBM_CPU_CACHE_OVERRIDE_NUM_BLOCKS", "1.5"}}));
  EXPECT_FALSE(read_dynamo_variables({{"DYN_KVBM_DISK_CACHE_DIR", ""}}));
  for (const char* value : {"", "0", "-1", "1.5", "86401", "2 min"}) {
    EXPECT_FALSE(read_dynamo_variables({{"DYN_KVBM_LEADER_WORKER_INIT_TIMEOUT_SECS", value}}))
        << value;
  }
  const auto unknown = read_dynamo_variables({{"DYN_KVBM_CPU_CACHE", "4"}});
  ASSERT_FALSE(unknown);
  EXPECT_THAT(unknown.error().message(), HasSubstr("DYN_KVBM_CPU_CACHE"));
}

TEST(DynamoVariables, WhatIsLeftOutIsRefusedWithTheReason) {
  for (const auto& [name, reason] : {std::pair("DYN_KVBM_NCCL_MLA_MODE", "NCCL"),
                                     {"DYN_KVBM_NIXL_BACKEND_UCX", "NIXL"},
                                     {"DYN_KVBM_OBJECT_BUCKET", "remote"},
                                     {"DYN_KVBM_LEADER_ZMQ_HOST", "folder"}}) {
    const auto found = read_dynamo_variables({{name, "1"}});
    ASSERT_FALSE(found) << name;
    EXPECT_EQ(found.error().code(), ErrorCode::kUnsupported);
    EXPECT_THAT(found.error().message(), HasSubstr(reason));
  }
}

}  // namespace
}  // namespace kvbm
