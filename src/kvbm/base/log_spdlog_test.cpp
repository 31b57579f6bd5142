// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/log_spdlog.hpp"

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace kvbm {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

std::string contents_of(const std::filesystem::path& path) {
  std::ifstream in(path);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

class SpdlogSinkFile : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    path_ = std::filesystem::path(::testing::TempDir()) / (std::string(test->name()) + ".log");
    std::filesystem::remove(path_);
  }
  void TearDown() override { std::filesystem::remove_all(path_); }

  std::filesystem::path path_;
};

TEST_F(SpdlogSinkFile, WritesOneLineARecord) {
  auto sink = SpdlogSink::to_file(path_.string());
  ASSERT_TRUE(sink) << sink.error();
  KVBM_LOG_DEBUG(**sink, "tiers", "below the level");
  (*sink)->log(LogLevel::kWarning, "tiers", "braces {} stay", {{"op", OpId(3)}, {"why", "a b"}});
  const std::string text = contents_of(path_);
  EXPECT_THAT(text, MatchesRegex("[0-9-]+ [0-9:]+\\.[0-9][0-9][0-9] W "
                                 "\\[tiers\\] braces \\{\\} stay op=3 why=\"a b\"\n"));
}

TEST_F(SpdlogSinkFile, AppendsAndFlushesOnDemand) {
  for (const char* message : {"first", "second"}) {
    auto sink = SpdlogSink::to_file(path_.string(), LogLevel::kTrace);
    ASSERT_TRUE(sink) << sink.error();
    KVBM_LOG_TRACE(**sink, "x", "{}", message);
    (*sink)->flush();
  }
  const std::string text = contents_of(path_);
  EXPECT_THAT(text, HasSubstr(" T [x] first\n"));
  EXPECT_THAT(text, HasSubstr(" T [x] second\n"));
}

TEST_F(SpdlogSinkFile, LinesOfManyThreadsDoNotMix) {
  {
    auto sink = SpdlogSink::to_file(path_.string());
    ASSERT_TRUE(sink) << sink.error();
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&sink] {
        for (int i = 0; i < 200; ++i) KVBM_LOG_INFO(**sink, "x", "a line of its own");
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  std::ifstream in(path_);
  int lines = 0;
  for (std::string line; std::getline(in, line); ++lines) {
    ASSERT_TRUE(line.ends_with(" I [x] a line of its own")) << line;
  }
  EXPECT_EQ(lines, 800);
}

TEST_F(SpdlogSinkFile, AFileThatCannotBeOpenedIsAnError) {
  std::filesystem::create_directory(path_);
  const auto sink = SpdlogSink::to_file(path_.string());
  ASSERT_FALSE(sink);
  EXPECT_EQ(sink.error().code(), ErrorCode::kIo);
  EXPECT_THAT(sink.error().message(), HasSubstr(path_.string()));
}

TEST(SpdlogSink, WritesToStderr) {
  ::testing::internal::CaptureStderr();
  {
    const auto sink = SpdlogSink::to_stderr();
    KVBM_LOG_ERROR(*sink, "runtime", "seen by people");
  }
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr(" E [runtime] seen by people\n"));
}

}  // namespace
}  // namespace kvbm
