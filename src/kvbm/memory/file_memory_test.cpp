// SPDX-License-Identifier: Apache-2.0
#include "kvbm/memory/file_memory.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <string>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/units.hpp"
#include "kvbm/memory/internal/anonymous_file.hpp"

#include "tests/support/error_code.hpp"
#include "tests/support/recording_log_sink.hpp"

namespace kvbm {
namespace {

using testing::code_of;

using ::testing::HasSubstr;

/// A directory of its own, gone with the test.
class FileMemoryTest : public ::testing::Test {
 protected:
  FileMemoryTest() {
    std::string path = ::testing::TempDir() + "/kvbm-file-memory-XXXXXX";
    EXPECT_NE(::mkdtemp(path.data()), nullptr);
    directory_ = path;
  }
  ~FileMemoryTest() override { std::filesystem::remove_all(directory_); }

  [[nodiscard]] FileOptions options(uint64_t size_bytes = 64 * kKiB) {
    return {.directory = directory_, .size_bytes = size_bytes, .log = &log_};
  }

  void expect_nothing_left() const {
    EXPECT_TRUE(std::filesystem::is_empty(directory_)) << "something is left in " << directory_;
  }

  /// The creation with some system calls replaced.
  [[nodiscard]] Result<internal::AnonymousFile> create_with(const internal::FileCalls& calls) {
    return internal::create_anonymous_file(options(), calls);
  }

  [[nodiscard]] static internal::FileCalls calls() { return internal::FileCalls::system(); }

  testing::RecordingLogSink log_;
  std::string directory_;
};

size_t open_descriptors() {
  size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

TEST_F(FileMemoryTest, HasItsSizeAndReadsAsZero) {
  const FileMemory memory = FileMemory::create(options(100'001)).value();
  EXPECT_EQ(memory.size_bytes(), 100'001u);
  EXPECT_TRUE(memory.reserved());
  EXPECT_EQ(memory.alignment(), FileAlignment{});
  EXPECT_EQ(memory.region(), MemoryRegion::of_file(memory.file(), 0, 100'001));
  struct stat facts {};
  ASSERT_EQ(::fstat(memory.file().fd, &facts), 0);
  EXPECT_EQ(facts.st_size, 100'001);
  EXPECT_EQ(facts.st_nlink, 0u) << "the file has a name";
  std::array<std::byte, 64> bytes;
  bytes.fill(std::byte{1});
  ASSERT_EQ(::pread(memory.file().fd, bytes.data(), 64, 99'937), 64);
  EXPECT_THAT(bytes, ::testing::Each(std::byte{0}));
  EXPECT_TRUE(log_.records().empty());
}

TEST_F(FileMemoryTest, ReservesItsSpaceUpFront) {
  const FileMemory memory = FileMemory::create(options(kMiB)).value();
  struct stat facts {};
  ASSERT_EQ(::fstat(memory.file().fd, &facts), 0);
  EXPECT_GE(static_cast<uint64_t>(facts.st_blocks) * 512, kMiB);
}

TEST_F(FileMemoryTest, LeavesNothingBehindWhileItLivesAndAfter) {
  const size_t before = open_descriptors();
  {
    FileMemory memory = FileMemory::create(options()).value();
    expect_nothing_left();
    FileMemory moved = std::move(memory);
    memory = std::move(moved);
    EXPECT_EQ(open_descriptors(), before + 1);
  }
  EXPECT_EQ(open_descriptors(), before);
  expect_nothing_left();
}

TEST_F(FileMemoryTest, RefusesMoreThanTheFileSystemHas) {
  const size_t before = open_descriptors();
  const auto memory = FileMemory::create(options(uint64_t{1} << 58));
  ASSERT_FALSE(memory);
  EXPECT_EQ(code_of(memory), ErrorCode::kExhausted);
  EXPECT_EQ(memory.error().native_code(), ENOSPC);
  EXPECT_THAT(memory.error().message(), HasSubstr(directory_));
  EXPECT_THAT(memory.error().message(), HasSubstr(format_size(uint64_t{1} << 58)));
  EXPECT_THAT(memory.error().message(), HasSubstr("are free"));
  EXPECT_EQ(open_descriptors(), before);
  expect_nothing_left();
}

TEST_F(FileMemoryTest, SaysSoWhenTheDirectoryIsMissingOrIsNone) {
  FileOptions missing = options();
  missing.directory += "/missing";
  auto memory = FileMemory::create(missing);
  ASSERT_FALSE(memory);
  EXPECT_EQ(code_of(memory), ErrorCode::kNotFound);
  EXPECT_EQ(memory.error().native_code(), ENOENT);
  EXPECT_THAT(memory.error().message(), HasSubstr(missing.directory));

  FileOptions file = options();
  file.directory = "/proc/self/status";
  memory = FileMemory::create(file);
  ASSERT_FALSE(memory);
  EXPECT_EQ(code_of(memory), ErrorCode::kIo);
  EXPECT_EQ(memory.error().native_code(), ENOTDIR);
}

TEST_F(FileMemoryTest, SaysSoWhenTheDirectoryIsReadOnly) {
  internal::FileCalls read_only = calls();
  read_only.open_unnamed = [](const char*) {
    errno = EROFS;
    return -1;
  };
  auto file = create_with(read_only);
  ASSERT_FALSE(file);
  EXPECT_EQ(code_of(file), ErrorCode::kIo);
  EXPECT_EQ(file.error().native_code(), EROFS);
  EXPECT_THAT(file.error().message(), HasSubstr("written to"));

  // The same where files without a name are not to be had.
  read_only.open_unnamed = [](const char*) {
    errno = EOPNOTSUPP;
    return -1;
  };
  read_only.make_named = [](char*) {
    errno = EACCES;
    return -1;
  };
  file = create_with(read_only);
  ASSERT_FALSE(file);
  EXPECT_EQ(code_of(file), ErrorCode::kIo);
  EXPECT_EQ(file.error().native_code(), EACCES);
}

TEST_F(FileMemoryTest, TellsWhatIsMissingFromWhatIsFull) {
  for (const auto& [error_number, code] :
       {std::pair{ENOENT, ErrorCode::kNotFound}, std::pair{ENOSPC, ErrorCode::kExhausted},
        std::pair{EDQUOT, ErrorCode::kExhausted}, std::pair{EMFILE, ErrorCode::kExhausted},
        std::pair{EIO, ErrorCode::kIo}}) {
    static int refusal = 0;
    refusal = error_number;
    internal::FileCalls fails = calls();
    fails.open_unnamed = [](const char*) {
      errno = refusal;
      return -1;
    };
    const auto file = create_with(fails);
    ASSERT_FALSE(file);
    EXPECT_EQ(code_of(file), code) << error_number;
    EXPECT_EQ(file.error().native_code(), error_number);
  }
}

TEST_F(FileMemoryTest, ASparseFileThatIsTooLargeIsNoRoom) {
  for (const auto& [error_number, code] :
       {std::pair{EFBIG, ErrorCode::kExhausted}, std::pair{ENOSPC, ErrorCode::kExhausted},
        std::pair{EIO, ErrorCode::kIo}}) {
    static int refusal = 0;
    refusal = error_number;
    internal::FileCalls fails = calls();
    fails.allocate = [](int, off_t) {
      errno = EOPNOTSUPP;
      return -1;
    };
    fails.truncate = [](int, off_t) {
      errno = refusal;
      return -1;
    };
    const auto file = create_with(fails);
    ASSERT_FALSE(file);
    EXPECT_EQ(code_of(file), code) << error_number;
  }
}

TEST_F(FileMemoryTest, RefusesOptionsThatMakeNoSense) {
  FileOptions bad[5] = {options(), options(), options(), options(), options()};
  bad[0].directory.clear();
  bad[1].size_bytes = 0;
  bad[2].size_bytes = uint64_t{1} << 63;
  bad[3].name_hint = "../escape";
  bad[4].name_hint.clear();
  for (const FileOptions& wrong : bad) {
    const auto memory = FileMemory::create(wrong);
    ASSERT_FALSE(memory);
    EXPECT_EQ(code_of(memory), ErrorCode::kInvalidArgument);
  }
}

TEST_F(FileMemoryTest, RemovesTheNameAtOnceWhereFilesNeedOne) {
  for (const int error_number : {EOPNOTSUPP, EISDIR, EINVAL}) {
    static int refusal = 0;
    refusal = error_number;
    internal::FileCalls no_tmpfile = calls();
    no_tmpfile.open_unnamed = [](const char*) {
      errno = refusal;
      return -1;
    };
    const auto file = create_with(no_tmpfile);
    ASSERT_TRUE(file) << file.error();
    struct stat facts {};
    ASSERT_EQ(::fstat(file->file.fd(), &facts), 0);
    EXPECT_EQ(facts.st_size, static_cast<off_t>(64 * kKiB));
    EXPECT_EQ(::fcntl(file->file.fd(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    expect_nothing_left();
  }
}

TEST_F(FileMemoryTest, IsSparseWhereSpaceCannotBeReservedAndLogsIt) {
  internal::FileCalls no_fallocate = calls();
  no_fallocate.allocate = [](int, off_t) {
    errno = EOPNOTSUPP;
    return -1;
  };
  const auto file = create_with(no_fallocate);
  ASSERT_TRUE(file) << file.error();
  EXPECT_FALSE(file->reserved);
  struct stat facts {};
  ASSERT_EQ(::fstat(file->file.fd(), &facts), 0);
  EXPECT_EQ(facts.st_size, static_cast<off_t>(64 * kKiB));
  ASSERT_EQ(log_.messages(LogLevel::kWarning).size(), 1u);
  EXPECT_THAT(log_.records().front().line, HasSubstr("sparse"));
  EXPECT_THAT(log_.records().front().line, HasSubstr(directory_));
}

TEST_F(FileMemoryTest, IsFilledWithZerosWhereSpaceCannotBeReservedIfAsked) {
  internal::FileCalls no_fallocate = calls();
  no_fallocate.allocate = [](int, off_t) {
    errno = EOPNOTSUPP;
    return -1;
  };
  static int num_writes;
  num_writes = 0;
  no_fallocate.write = [](int fd, const void* bytes, size_t size, off_t offset) -> ssize_t {
    if (num_writes++ == 1) {
      errno = EINTR;
      return -1;
    }
    return ::pwrite(fd, bytes, std::min<size_t>(size, 24 * kKiB), offset);
  };
  FileOptions options = this->options();
  options.zero_fill = true;
  const auto file = internal::create_anonymous_file(options, no_fallocate);
  ASSERT_TRUE(file) << file.error();
  EXPECT_TRUE(file->reserved);
  EXPECT_EQ(num_writes, 4);
  struct stat facts {};
  ASSERT_EQ(::fstat(file->file.fd(), &facts), 0);
  EXPECT_EQ(facts.st_size, static_cast<off_t>(64 * kKiB));
  EXPECT_GE(facts.st_blocks * 512, static_cast<off_t>(64 * kKiB));
  EXPECT_THAT(log_.records().front().line, HasSubstr("filled with zeros"));

  no_fallocate.write = [](int, const void*, size_t, off_t) -> ssize_t {
    errno = ENOSPC;
    return -1;
  };
  const auto full = internal::create_anonymous_file(options, no_fallocate);
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code(), ErrorCode::kExhausted);
  expect_nothing_left();
}

TEST_F(FileMemoryTest, RefusesASparseFileThatCouldNotBeFilled) {
  internal::FileCalls full = calls();
  full.allocate = [](int, off_t) {
    errno = EOPNOTSUPP;
    return -1;
  };
  full.free_space = [](int, struct statvfs* facts) {
    *facts = {};
    facts->f_blocks = 1000;
    facts->f_bavail = 15;
    facts->f_frsize = 4096;
    return 0;
  };
  const auto file = create_with(full);
  ASSERT_FALSE(file);
  EXPECT_EQ(code_of(file), ErrorCode::kExhausted);
  EXPECT_THAT(file.error().message(), HasSubstr("60 KiB are free"));
}

TEST_F(FileMemoryTest, GoesOnAfterASignalAndStopsWhenTheSpaceRunsOut) {
  static int interrupted = 0;
  interrupted = 3;
  internal::FileCalls signals = calls();
  signals.allocate = [](int fd, off_t size) {
    if (interrupted-- > 0) {
      errno = EINTR;
      return -1;
    }
    return ::fallocate(fd, 0, 0, size);
  };
  EXPECT_TRUE(create_with(signals));

  const size_t before = open_descriptors();
  for (const auto& [error_number, code] :
       {std::pair{ENOSPC, ErrorCode::kExhausted}, std::pair{EDQUOT, ErrorCode::kExhausted},
        std::pair{EFBIG, ErrorCode::kExhausted}, std::pair{EIO, ErrorCode::kIo}}) {
    static int refusal = 0;
    refusal = error_number;
    internal::FileCalls fails = calls();
    fails.allocate = [](int, off_t) {
      errno = refusal;
      return -1;
    };
    const auto file = create_with(fails);
    ASSERT_FALSE(file);
    EXPECT_EQ(code_of(file), code);
    EXPECT_EQ(file.error().native_code(), error_number);
  }
  EXPECT_EQ(open_descriptors(), before);
}

TEST_F(FileMemoryTest, DoesNotTrustAFileSystemThatTellsNoFreeSpace) {
  internal::FileCalls silent = calls();
  silent.free_space = [](int, struct statvfs* facts) {
    *facts = {};
    return 0;
  };
  EXPECT_TRUE(create_with(silent)) << "zero blocks in all means unknown, not full";
}

TEST_F(FileMemoryTest, IsDirectWhereThatIsPossibleAndSaysWhereItIsNot) {
  FileOptions direct = options(kMiB);
  direct.direct = DirectIo::kTry;
  const FileMemory memory = FileMemory::create(direct).value();
  const int flags = ::fcntl(memory.file().fd, F_GETFL);
  EXPECT_EQ(memory.alignment().direct(), (flags & O_DIRECT) != 0);
  EXPECT_EQ(log_.records().empty(), memory.alignment().direct());

  // A file shorter than one unit cannot prove that it works.
  FileOptions small = options(100);
  small.direct = DirectIo::kTry;
  const FileMemory buffered = FileMemory::create(small).value();
  EXPECT_FALSE(buffered.alignment().direct());
  EXPECT_EQ(buffered.alignment(), FileAlignment{});
  EXPECT_EQ(::fcntl(buffered.file().fd, F_GETFL) & O_DIRECT, 0);
  ASSERT_FALSE(log_.records().empty());
  EXPECT_THAT(log_.records().back().message, HasSubstr("direct"));
}

TEST_F(FileMemoryTest, ProvingDirectIoKeepsTheContent) {
  FileMemory source = FileMemory::create(options(64 * kKiB)).value();
  File file(::dup(source.file().fd));
  const std::string text = "what was there before";
  ASSERT_EQ(::pwrite(file.fd(), text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
  static_cast<void>(file.try_direct());
  const FileAlignment again = file.try_direct();
  EXPECT_EQ(again, file.ref().alignment);
  const int flags = ::fcntl(file.fd(), F_GETFL);
  ASSERT_EQ(::fcntl(file.fd(), F_SETFL, flags & ~O_DIRECT), 0);
  std::string read(text.size(), ' ');
  ASSERT_EQ(::pread(file.fd(), read.data(), read.size(), 0), static_cast<ssize_t>(read.size()));
  EXPECT_EQ(read, text);
}

TEST(File, OfNothingHasNoDirectIo) {
  File file;
  EXPECT_FALSE(file);
  EXPECT_FALSE(file.try_direct().direct());
}

}  // namespace
}  // namespace kvbm
