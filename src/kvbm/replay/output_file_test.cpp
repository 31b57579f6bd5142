// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/output_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/units.hpp"

#include "tests/support/temporary_folder.hpp"

namespace kvbm {
namespace {

using ::testing::HasSubstr;

Status write_file(const std::filesystem::path& path, std::string_view text) {
  KVBM_ASSIGN_OR_RETURN(auto output, OutputFile::create(path));
  KVBM_TRY(output.append(text));
  return output.commit();
}

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

TEST_F(OutputFileTest, FollowsALinkToWhereNothingIsYet) {
  std::filesystem::create_directory(folder_.path() / "folder");
  std::filesystem::create_symlink("folder/second", path());
  std::filesystem::create_symlink("../target", folder_.path() / "folder" / "second");
  auto output = OutputFile::create(path());
  ASSERT_TRUE(output.has_value()) << output.error();
  EXPECT_EQ(output->target(), std::filesystem::canonical(folder_.path()) / "target");
  ASSERT_TRUE(output->append("text").has_value());
  ASSERT_TRUE(output->commit().has_value());
  EXPECT_TRUE(std::filesystem::is_symlink(path()));
  EXPECT_TRUE(std::filesystem::is_symlink(folder_.path() / "folder" / "second"));
  EXPECT_EQ(folder_.read(folder_.path() / "target"), "text");
}

TEST_F(OutputFileTest, RefusesLinksThatLeadNowhere) {
  std::filesystem::create_symlink("report", path());
  const auto endless = write_file(path(), "text");
  ASSERT_FALSE(endless.has_value());
  EXPECT_EQ(endless.error().native_code(), ELOOP);
  std::filesystem::remove(path());
  std::filesystem::create_symlink("none/target", path());
  const auto missing = write_file(path(), "text");
  ASSERT_FALSE(missing.has_value());
  EXPECT_EQ(missing.error().native_code(), ENOENT);
  EXPECT_TRUE(std::filesystem::is_symlink(path()));
}

TEST_F(OutputFileTest, KeepsTheRightsOfWhatItReplaces) {
  folder_.write("report", "before");
  for (const auto rights : {std::filesystem::perms(0600), std::filesystem::perms(0664)}) {
    std::filesystem::permissions(path(), rights);
    ASSERT_TRUE(write_file(path(), "after").has_value());
    EXPECT_EQ(std::filesystem::status(path()).permissions(), rights);
  }
}

TEST_F(OutputFileTest, HasANameAsLongAsANameCanBe) {
  const auto longest = folder_.path() / std::string(255, 'x');
  ASSERT_TRUE(write_file(longest, "text").has_value());
  EXPECT_EQ(folder_.read(longest), "text");
  const auto longer = OutputFile::create(folder_.path() / std::string(256, 'x'));
  ASSERT_FALSE(longer.has_value());
  EXPECT_EQ(longer.error().native_code(), ENAMETOOLONG);
}

TEST_F(OutputFileTest, WaitsForAFullPipeUntilItIsInterrupted) {
  ASSERT_EQ(::mkfifo(path().c_str(), 0600), 0);
  const int reader = ::open(path().c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(reader, 0);
  std::atomic<bool> interrupted{false};
  auto output = OutputFile::create(path(), &interrupted);
  ASSERT_TRUE(output.has_value()) << output.error();
  EXPECT_EQ(output->target(), "");
  interrupted = true;  // what finds room is written all the same
  ASSERT_TRUE(output->append("text").has_value());
  const Status written = output->append(std::string(16 * kMiB, 'x'));
  ASSERT_FALSE(written.has_value());
  EXPECT_EQ(written.error().code(), ErrorCode::kCancelled);
  EXPECT_THAT(written.error().message(), HasSubstr("was interrupted"));
  ::close(reader);
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
