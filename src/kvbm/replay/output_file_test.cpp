// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/output_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <string>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/temporary_folder.hpp"

namespace kvbm {
namespace {

using ::testing::HasSubstr;

class OutputFileTest : public ::testing::Test {
 protected:
  [[nodiscard]] std::filesystem::path path() const { return folder_.path() / "report"; }

  testing::TemporaryFolder folder_;
};

TEST_F(OutputFileTest, AppearsWholeAtTheCommit) {
  auto output = OutputFile::create(path());
  ASSERT_TRUE(output.has_value()) << output.error();
  ASSERT_TRUE(output->append("one ").has_value());
  ASSERT_TRUE(output->append("two").has_value());
  EXPECT_FALSE(std::filesystem::exists(path()));
  ASSERT_TRUE(output->commit().has_value());
  EXPECT_EQ(folder_.read(path()), "one two");
  EXPECT_EQ(folder_.num_entries(), 1U);
}

TEST_F(OutputFileTest, LeavesNothingWithoutACommit) {
  {
    auto output = OutputFile::create(path());
    ASSERT_TRUE(output.has_value());
    ASSERT_TRUE(output->append("lost").has_value());
  }
  EXPECT_EQ(folder_.num_entries(), 0U);
}

TEST_F(OutputFileTest, ReplacesWhatWasThereOnlyAtTheCommit) {
  folder_.write("report", "before");
  auto output = OutputFile::create(path());
  ASSERT_TRUE(output.has_value());
  ASSERT_TRUE(output->append("after").has_value());
  EXPECT_EQ(folder_.read(path()), "before");
  ASSERT_TRUE(output->commit().has_value());
  EXPECT_EQ(folder_.read(path()), "after");
}

TEST_F(OutputFileTest, MovesItsTemporaryFileAlong) {
  auto output = OutputFile::create(path());
  ASSERT_TRUE(output.has_value());
  OutputFile moved = std::move(*output);
  auto other = OutputFile::create(folder_.path() / "other");
  ASSERT_TRUE(other.has_value());
  *other = std::move(moved);  // gives up the temporary file of "other"
  EXPECT_EQ(folder_.num_entries(), 1U);
  ASSERT_TRUE(other->commit().has_value());
  EXPECT_TRUE(std::filesystem::exists(path()));
  EXPECT_EQ(folder_.num_entries(), 1U);
}

TEST_F(OutputFileTest, FollowsALink) {
  const auto target = folder_.write("folder/target", "before");
  std::filesystem::create_symlink(target, path());
  ASSERT_TRUE(write_file(path(), "after").has_value());
  EXPECT_TRUE(std::filesystem::is_symlink(path()));
  EXPECT_EQ(folder_.read(target), "after");
}

TEST_F(OutputFileTest, WritesStraightToWhatIsNoRegularFile) {
  ASSERT_EQ(::mkfifo(path().c_str(), 0600), 0);
  const int reader = ::open(path().c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(reader, 0);
  ASSERT_TRUE(write_file(path(), "text").has_value());
  EXPECT_TRUE(std::filesystem::is_fifo(path()));
  char text[8] = {};
  EXPECT_EQ(::read(reader, text, sizeof(text)), 4);
  EXPECT_STREQ(text, "text");
  ::close(reader);
}

TEST_F(OutputFileTest, TellsWhenThereIsNoSpace) {
  if (!std::filesystem::is_character_file("/dev/full")) GTEST_SKIP() << "no device /dev/full here";
  const auto written = write_file("/dev/full", "text");
  ASSERT_FALSE(written.has_value());
  EXPECT_EQ(written.error().message(), "cannot write /dev/full");
  EXPECT_EQ(written.error().native_code(), ENOSPC);
}

TEST_F(OutputFileTest, RefusesAFolderAndAFolderThatIsMissing) {
  const auto folder = write_file(folder_.path(), "text");
  ASSERT_FALSE(folder.has_value());
  EXPECT_THAT(folder.error().message(), HasSubstr("it is a directory"));
  const auto missing = write_file(folder_.path() / "none" / "report", "text");
  ASSERT_FALSE(missing.has_value());
  EXPECT_EQ(missing.error().code(), ErrorCode::kNotFound);
  EXPECT_FALSE(write_file("", "text").has_value());
  EXPECT_EQ(folder_.num_entries(), 0U);
}

TEST_F(OutputFileTest, HasTheRightsOfAnyNewFile) {
  const mode_t before = ::umask(022);
  ASSERT_TRUE(write_file(path(), "text").has_value());
  ::umask(before);
  EXPECT_EQ(std::filesystem::status(path()).permissions(), std::filesystem::perms(0644));
}

}  // namespace
}  // namespace kvbm
