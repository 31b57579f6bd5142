// SPDX-License-Identifier: Apache-2.0
#include "kvbm/memory/internal/file_transfer.hpp"

#include <limits.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"

#include "tests/support/error_code.hpp"

namespace kvbm::internal {
namespace {

using testing::code_of;

/// A file in memory, behind calls that follow a script.
struct ScriptedFile {
  struct Step {
    ssize_t most = SSIZE_MAX;  ///< bytes that the call moves at most
    int error_number = 0;      ///< or this
  };

  std::vector<std::byte> bytes;
  std::deque<Step> script;  ///< afterwards: calls that move all
  int calls = 0;
  int most_vectors = 0;
  int waits = 0;
  int wait_errno = 0;  ///< 0: ready

  ssize_t move(const iovec* vectors, int count, off_t offset, FileOp op) {
    ++calls;
    most_vectors = std::max(most_vectors, count);
    Step step;
    if (!script.empty()) {
      step = script.front();
      script.pop_front();
    }
    if (step.error_number != 0) {
      errno = step.error_number;
      return -1;
    }
    ssize_t moved = 0;
    for (int i = 0; i < count && moved < step.most; ++i) {
      const auto at = static_cast<size_t>(offset + moved);
      if (at >= bytes.size()) break;
      const size_t part =
          std::min({vectors[i].iov_len, static_cast<size_t>(step.most - moved), bytes.size() - at});
      if (op == FileOp::kRead) {
        std::memcpy(vectors[i].iov_base, &bytes[at], part);
      } else {
        std::memcpy(&bytes[at], vectors[i].iov_base, part);
      }
      moved += static_cast<ssize_t>(part);
      if (part < vectors[i].iov_len) break;
    }
    return moved;
  }
};

ScriptedFile* current = nullptr;

class FileTransfer : public ::testing::Test {
 protected:
  FileTransfer() { current = &file_; }
  ~FileTransfer() override { current = nullptr; }

  static constexpr TransferCalls kCalls{
      .read = [](int, const iovec* vectors, int count,
                 off_t offset) { return current->move(vectors, count, offset, FileOp::kRead); },
      .write = [](int, const iovec* vectors, int count,
                  off_t offset) { return current->move(vectors, count, offset, FileOp::kWrite); },
      .wait_ready =
          [](int, FileOp) {
            ++current->waits;
            errno = current->wait_errno;
            return current->wait_errno == 0 ? 0 : -1;
          }};

  void fill(size_t size) {
    Random random(1);
    file_.bytes.resize(size);
    for (std::byte& byte : file_.bytes) byte = static_cast<std::byte>(random.uniform(256));
  }

  /// Buffers of the given sizes behind each other in `memory_`.
  FileRequest request(FileOp op, uint64_t offset, const std::vector<size_t>& sizes) {
    size_t total = 0;
    for (const size_t size : sizes) total += size;
    memory_.assign(total, std::byte{0xaa});
    FileRequest request{.op = op, .file = {.fd = 1}, .offset = offset};
    std::byte* at = memory_.data();
    for (const size_t size : sizes) {
      request.buffers.push_back({size == 0 ? nullptr : at, size});
      at += size;
    }
    return request;
  }

  void expect_read(const FileResult& result, uint64_t offset) {
    EXPECT_TRUE(result.status) << result.status.error();
    EXPECT_EQ(result.bytes, memory_.size());
    EXPECT_TRUE(std::equal(memory_.begin(), memory_.end(),
                           file_.bytes.begin() + static_cast<ptrdiff_t>(offset)));
  }

  ScriptedFile file_;
  std::vector<std::byte> memory_;
};

TEST_F(FileTransfer, GoesOnAfterShortReadsWhereverTheyEnd) {
  fill(1000);
  for (const ssize_t first : {1, 99, 100, 101, 250, 349}) {
    file_.script = {{.most = first}, {.most = 1}, {.most = 50}};
    expect_read(transfer(request(FileOp::kRead, 30, {100, 0, 150, 100}), kCalls), 30);
  }
}

TEST_F(FileTransfer, GoesOnAfterShortWrites) {
  fill(1000);
  const std::vector<std::byte> before = file_.bytes;
  file_.script = {{.most = 3}, {.most = 97}, {.most = 1}};
  const FileResult result = transfer(request(FileOp::kWrite, 30, {100, 150}), kCalls);
  EXPECT_TRUE(result.status);
  EXPECT_EQ(result.bytes, 250u);
  std::vector<std::byte> expected = before;
  std::fill_n(expected.begin() + 30, 250, std::byte{0xaa});
  EXPECT_EQ(file_.bytes, expected);
}

TEST_F(FileTransfer, TriesAgainAfterSignals) {
  fill(100);
  file_.script = {
      {.error_number = EINTR}, {.most = 10}, {.error_number = EINTR}, {.error_number = EINTR}};
  expect_read(transfer(request(FileOp::kRead, 0, {100}), kCalls), 0);
  EXPECT_EQ(file_.calls, 5);
}

TEST_F(FileTransfer, WaitsUntilAFileIsReady) {
  fill(100);
  file_.script = {{.error_number = EAGAIN}, {.most = 10}, {.error_number = EAGAIN}};
  expect_read(transfer(request(FileOp::kRead, 0, {100}), kCalls), 0);
  EXPECT_EQ(file_.waits, 2);

  file_.script = {{.most = 10}, {.error_number = EAGAIN}};
  file_.wait_errno = EAGAIN;
  const FileResult result = transfer(request(FileOp::kRead, 0, {100}), kCalls);
  ASSERT_FALSE(result.status);
  EXPECT_EQ(code_of(result.status), ErrorCode::kIo);
  EXPECT_EQ(result.bytes, 10u);
}

TEST_F(FileTransfer, GivesUpOnAFileThatIsReadyAndNeverMoves) {
  fill(100);
  // As poll() does with a regular file: ready, whatever the read says.
  file_.script = {{.most = 10}};
  file_.script.insert(file_.script.end(), 100'000, {.error_number = EAGAIN});
  const FileResult result = transfer(request(FileOp::kRead, 0, {100}), kCalls);
  ASSERT_FALSE(result.status);
  EXPECT_EQ(code_of(result.status), ErrorCode::kIo);
  EXPECT_EQ(result.status.error().native_code(), EAGAIN);
  EXPECT_EQ(result.bytes, 10u);
  EXPECT_LT(file_.calls, 10'000);
}

TEST_F(FileTransfer, AByteThatMovesStartsTheCountOfFutileTriesAnew) {
  fill(100);
  file_.script.clear();
  for (int i = 0; i < 5; ++i) {
    file_.script.insert(file_.script.end(), 900, {.error_number = EAGAIN});
    file_.script.push_back({.most = 20});
  }
  expect_read(transfer(request(FileOp::kRead, 0, {100}), kCalls), 0);
}

TEST_F(FileTransfer, ReportsErrorsWithTheBytesThatMovedBefore) {
  fill(100);
  for (const auto& [error_number, code] :
       {std::pair{EIO, ErrorCode::kIo}, std::pair{EBADF, ErrorCode::kIo},
        std::pair{EINVAL, ErrorCode::kIo}, std::pair{ENOSPC, ErrorCode::kExhausted},
        std::pair{EDQUOT, ErrorCode::kExhausted}}) {
    file_.script = {{.most = 40}, {.error_number = error_number}};
    const FileResult result = transfer(request(FileOp::kWrite, 0, {30, 70}), kCalls);
    ASSERT_FALSE(result.status);
    EXPECT_EQ(code_of(result.status), code);
    EXPECT_EQ(result.status.error().native_code(), error_number);
    EXPECT_EQ(result.bytes, 40u);
  }
}

TEST_F(FileTransfer, TheEndOfTheFileIsAnError) {
  fill(100);
  const FileResult result = transfer(request(FileOp::kRead, 60, {30, 30}), kCalls);
  ASSERT_FALSE(result.status);
  EXPECT_EQ(code_of(result.status), ErrorCode::kIo);
  EXPECT_EQ(result.bytes, 40u);
  EXPECT_NE(result.status.error().message().find("ends"), std::string::npos);
}

TEST_F(FileTransfer, AWriteThatMovesNothingIsAnErrorAndNoLoop) {
  fill(100);
  file_.script = {{.most = 10}, {.most = 0}};
  const FileResult result = transfer(request(FileOp::kWrite, 0, {100}), kCalls);
  ASSERT_FALSE(result.status);
  EXPECT_EQ(result.bytes, 10u);
  EXPECT_EQ(file_.calls, 2);
}

TEST_F(FileTransfer, SplitsWhatOneCallDoesNotTake) {
  fill(5000);
  expect_read(transfer(request(FileOp::kRead, 7, std::vector<size_t>(2500, 1)), kCalls), 7);
  EXPECT_EQ(file_.calls, 3);
  EXPECT_LE(file_.most_vectors, IOV_MAX);
}

TEST_F(FileTransfer, DirectFilesStopAtABrokenUnit) {
  fill(4096 + 100);
  FileRequest read = request(FileOp::kRead, 0, {8192});
  read.file.alignment = {.memory = 1, .offset = 512};
  FileResult result = transfer(read, kCalls);
  ASSERT_FALSE(result.status);
  EXPECT_EQ(result.bytes, 4196u);
  EXPECT_EQ(file_.calls, 1) << "went on from an offset that direct I/O refuses";

  // A whole number of units may go on.
  file_ = {};
  fill(8192);
  file_.script = {{.most = 1024}};
  read = request(FileOp::kRead, 0, {8192});
  read.file.alignment = {.memory = 1, .offset = 512};
  expect_read(transfer(read, kCalls), 0);
}

TEST_F(FileTransfer, ChecksTheAlignmentOfDirectFiles) {
  FileRequest read = request(FileOp::kRead, 512, {1024});
  read.file.alignment = {.memory = 1, .offset = 512};
  EXPECT_TRUE(check_request(read));
  read.offset = 513;
  EXPECT_EQ(code_of(check_request(read)), ErrorCode::kInvalidArgument);
  read.offset = 512;
  read.buffers[0].size = 1000;
  EXPECT_EQ(code_of(check_request(read)), ErrorCode::kInvalidArgument);
  read.buffers[0].size = 512;
  read.file.alignment.memory = 1 << 30;
  read.buffers[0].data += 1;
  EXPECT_EQ(code_of(check_request(read)), ErrorCode::kInvalidArgument);
}

TEST_F(FileTransfer, ChecksRangesBeforeAnythingMoves) {
  FileRequest read = request(FileOp::kRead, (uint64_t{1} << 63) - 100, {100});
  EXPECT_EQ(code_of(check_request(read)), ErrorCode::kInvalidArgument);
  read.offset -= 1;
  EXPECT_TRUE(check_request(read));
  read.buffers[0].size = ~size_t{0};
  EXPECT_EQ(code_of(check_request(read)), ErrorCode::kInvalidArgument);
  read.buffers[0] = {.data = nullptr, .size = 1};
  EXPECT_EQ(code_of(check_request(read)), ErrorCode::kInvalidArgument);
  read.buffers[0].size = 0;
  EXPECT_TRUE(check_request(read));
  read.file.fd = -1;
  EXPECT_EQ(code_of(check_request(read)), ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvbm::internal
