// SPDX-License-Identifier: Apache-2.0
// FileEngineContract: what every FileEngine does, as one typed suite.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/memory/file_engine.hpp"
#include "kvbm/memory/file_memory.hpp"
#include "kvbm/memory/system_memory.hpp"

#include "tests/support/error_code.hpp"

namespace kvbm::testing {

/// A harness is default constructible and has
///   Executor& executor();  FileEngine& engine();
///   void destroy_engine();   // afterwards engine() is not called
/// The engine holds at least 16 requests.
template <class Harness>
class FileEngineContract : public ::testing::Test {
 protected:
  using Bytes = std::vector<std::byte>;

  [[nodiscard]] FileEngine& engine() { return harness_.engine(); }

  /// Far enough away that only a hang gets there.
  [[nodiscard]] TimePoint soon() {
    return harness_.executor().clock().now() + std::chrono::seconds(60);
  }

  [[nodiscard]] static FileMemory file_of(uint64_t size_bytes, DirectIo direct = DirectIo::kOff) {
    return FileMemory::create(
               {.directory = ::testing::TempDir(), .size_bytes = size_bytes, .direct = direct})
        .value();
  }

  [[nodiscard]] static Bytes noise(Random& random, size_t size) {
    Bytes bytes(size);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.uniform(256));
    return bytes;
  }

  [[nodiscard]] static FileRequest request(FileOp op, const FileRef& file, uint64_t offset,
                                           Bytes& bytes) {
    return {.op = op, .file = file, .offset = offset, .buffers = {{bytes.data(), bytes.size()}}};
  }

  /// One request, to its end.
  [[nodiscard]] FileResult run(FileRequest request) {
    std::vector<FileRequest> requests;
    requests.push_back(std::move(request));
    const FileBatch batch = engine().submit(std::move(requests)).value();
    const Status ended = batch.wait(soon());
    EXPECT_TRUE(batch.done()) << ended.error();
    if (!batch.done()) return {ended, 0};
    return batch.result(0);
  }

  /// What the file holds, read without the engine.
  [[nodiscard]] static Bytes content(const FileRef& file, uint64_t offset, size_t size) {
    Bytes bytes(size);
    EXPECT_EQ(::pread(file.fd, bytes.data(), size, static_cast<off_t>(offset)),
              static_cast<ssize_t>(size));
    return bytes;
  }

  static void expect_all(const FileResult& result, uint64_t bytes) {
    EXPECT_TRUE(result.status) << result.status.error();
    EXPECT_EQ(result.bytes, bytes);
  }

  Harness harness_;
};

TYPED_TEST_SUITE_P(FileEngineContract);

TYPED_TEST_P(FileEngineContract, DescribesItself) {
  const FileEngineCapabilities capabilities = this->engine().capabilities();
  EXPECT_FALSE(capabilities.name.empty());
  EXPECT_GT(capabilities.max_parallel, 0u);
  EXPECT_GE(capabilities.max_pending, 16u);
  EXPECT_GT(capabilities.preferred.memory, 0u);
  EXPECT_GT(capabilities.preferred.offset, 0u);
}

TYPED_TEST_P(FileEngineContract, ReachesDevicesAsItSays) {
  const FileEngineCapabilities capabilities = this->engine().capabilities();
  EXPECT_FALSE(capabilities.device_memory_note.empty());
  const FileMemory file = this->file_of(kKiB);
  std::vector<std::byte> bytes(64, std::byte{7});
  if (capabilities.device_memory) {
    EXPECT_TRUE(this->engine().reach_device(file.file()));
    return;
  }
  EXPECT_EQ(code_of(this->engine().reach_device(file.file())), ErrorCode::kUnsupported);
  FileRequest read = this->request(FileOp::kRead, file.file(), 0, bytes);
  read.buffers[0].place = BufferPlace::kDevice;
  const FileResult result = this->run(read);
  EXPECT_EQ(code_of(result.status), ErrorCode::kUnsupported);
  EXPECT_EQ(result.bytes, 0u);
  EXPECT_EQ(bytes, std::vector<std::byte>(64, std::byte{7}));
}

TYPED_TEST_P(FileEngineContract, ReadsBackWhatItWrote) {
  Random random(1);
  const FileMemory file = this->file_of(kMiB);
  auto written = this->noise(random, 100'000);
  this->expect_all(this->run(this->request(FileOp::kWrite, file.file(), 777, written)), 100'000);
  EXPECT_EQ(this->content(file.file(), 777, written.size()), written);
  std::vector<std::byte> read(written.size());
  this->expect_all(this->run(this->request(FileOp::kRead, file.file(), 777, read)), 100'000);
  EXPECT_EQ(read, written);
}

TYPED_TEST_P(FileEngineContract, WritesNothingOutsideTheRange) {
  const FileMemory file = this->file_of(16 * kKiB);
  std::vector<std::byte> ones(1000, std::byte{1});
  this->expect_all(this->run(this->request(FileOp::kWrite, file.file(), 5000, ones)), 1000);
  std::vector<std::byte> expected(16 * kKiB);
  std::fill_n(expected.begin() + 5000, 1000, std::byte{1});
  EXPECT_EQ(this->content(file.file(), 0, expected.size()), expected);
}

TYPED_TEST_P(FileEngineContract, GathersAndScattersOverMoreBuffersThanOneCallTakes) {
  Random random(2);
  const FileMemory file = this->file_of(kMiB);
  // Buffers of 0 to 40 bytes, each between guards, more of them than IOV_MAX.
  std::vector<std::byte> memory = this->noise(random, 3000 * 64);
  FileRequest write{.op = FileOp::kWrite, .file = file.file(), .offset = 13};
  for (size_t i = 0; i < 3000; ++i) {
    write.buffers.push_back({&memory[i * 64 + random.uniform(16)], random.uniform(41)});
  }
  const uint64_t size = write.size_bytes();
  this->expect_all(this->run(write), size);
  std::vector<std::byte> gathered;
  for (const IoBuffer& buffer : write.buffers) {
    gathered.insert(gathered.end(), buffer.data, buffer.data + buffer.size);
  }
  EXPECT_EQ(this->content(file.file(), 13, size), gathered);

  const std::vector<std::byte> expected = memory;
  FileRequest read = write;
  read.op = FileOp::kRead;
  for (const IoBuffer& buffer : read.buffers)
    std::fill_n(buffer.data, buffer.size, std::byte{0xee});
  this->expect_all(this->run(read), size);
  EXPECT_EQ(memory, expected);
}

TYPED_TEST_P(FileEngineContract, ARequestOfNoByteSucceeds) {
  const FileMemory file = this->file_of(kKiB);
  this->expect_all(this->run({.op = FileOp::kRead, .file = file.file(), .offset = 1 << 20}), 0);
  this->expect_all(this->run({.op = FileOp::kWrite, .file = file.file(), .buffers = {{}, {}}}), 0);
}

TYPED_TEST_P(FileEngineContract, ABatchOfNoRequestIsDone) {
  const FileBatch batch = this->engine().submit({}).value();
  EXPECT_EQ(batch.size(), 0u);
  EXPECT_TRUE(batch.done());
  EXPECT_TRUE(batch.wait());
}

TYPED_TEST_P(FileEngineContract, AnswersEachRequestOfABatchByItself) {
  Random random(3);
  const FileMemory file = this->file_of(64 * kKiB);
  std::vector<std::vector<std::byte>> blocks;
  for (int i = 0; i < 8; ++i) blocks.push_back(this->noise(random, 4096));
  std::vector<FileRequest> requests;
  for (size_t i = 0; i < blocks.size(); ++i) {
    requests.push_back(this->request(FileOp::kWrite, file.file(), i * 8192, blocks[i]));
  }
  requests[2].file = FileRef{};
  requests[5].file = FileRef{.fd = 1 << 30};
  const FileBatch batch = this->engine().submit(requests).value();
  ASSERT_EQ(batch.size(), 8u);
  const Status whole = batch.wait(this->soon());
  ASSERT_FALSE(whole);
  EXPECT_EQ(code_of(whole), ErrorCode::kInvalidArgument) << "not the first failure";
  EXPECT_EQ(batch.bytes(), 6 * 4096u);
  for (size_t i = 0; i < 8; ++i) {
    ASSERT_TRUE(batch.completion(i).done());
    if (i == 2) {
      EXPECT_EQ(code_of(batch.result(i).status), ErrorCode::kInvalidArgument);
    } else if (i == 5) {
      EXPECT_EQ(code_of(batch.result(i).status), ErrorCode::kIo);
      EXPECT_EQ(batch.result(i).status.error().native_code(), EBADF);
    } else {
      this->expect_all(batch.result(i), 4096);
      EXPECT_EQ(this->content(file.file(), i * 8192, 4096), blocks[i]);
    }
  }
}

TYPED_TEST_P(FileEngineContract, AReadPastTheEndIsAnErrorWithTheBytesThatThereWere) {
  Random random(4);
  const FileMemory file = this->file_of(10'000);
  auto written = this->noise(random, 10'000);
  this->expect_all(this->run(this->request(FileOp::kWrite, file.file(), 0, written)), 10'000);
  std::vector<std::byte> read(4096);
  const FileResult across = this->run(this->request(FileOp::kRead, file.file(), 8000, read));
  EXPECT_EQ(code_of(across.status), ErrorCode::kIo);
  EXPECT_EQ(across.bytes, 2000u);
  EXPECT_TRUE(std::equal(read.begin(), read.begin() + 2000, written.begin() + 8000));
  const FileResult beyond = this->run(this->request(FileOp::kRead, file.file(), 10'000, read));
  EXPECT_EQ(code_of(beyond.status), ErrorCode::kIo);
  EXPECT_EQ(beyond.bytes, 0u);
}

TYPED_TEST_P(FileEngineContract, RefusesRequestsThatMakeNoSense) {
  const FileMemory file = this->file_of(kKiB);
  std::vector<std::byte> bytes(64);
  FileRequest null_buffer = this->request(FileOp::kRead, file.file(), 0, bytes);
  null_buffer.buffers.push_back({.data = nullptr, .size = 1});
  EXPECT_EQ(code_of(this->run(null_buffer).status), ErrorCode::kInvalidArgument);
  EXPECT_EQ(
      code_of(this->run(this->request(FileOp::kRead, file.file(), (uint64_t{1} << 63) - 10, bytes))
                  .status),
      ErrorCode::kInvalidArgument);
  FileRequest overflow = this->request(FileOp::kRead, file.file(), 100, bytes);
  overflow.buffers[0].size = ~size_t{0} - 50;
  EXPECT_EQ(code_of(this->run(overflow).status), ErrorCode::kInvalidArgument);
}

TYPED_TEST_P(FileEngineContract, AFileThatCannotBeWrittenIsAnIoError) {
  const int fd = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  const File read_only(fd);
  std::vector<std::byte> bytes(64);
  const FileResult result = this->run(this->request(FileOp::kWrite, read_only.ref(), 0, bytes));
  EXPECT_EQ(code_of(result.status), ErrorCode::kIo);
  EXPECT_EQ(result.status.error().native_domain(), NativeDomain::kErrno);
}

TYPED_TEST_P(FileEngineContract, AFullFileSystemIsExhausted) {
  struct stat facts {};
  if (::stat("/dev/full", &facts) != 0 || !S_ISCHR(facts.st_mode)) {
    GTEST_SKIP() << "/dev/full is not the device of that name";
  }
  const File full(::open("/dev/full", O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(full);
  std::vector<std::byte> bytes(64);
  const FileResult result = this->run(this->request(FileOp::kWrite, full.ref(), 0, bytes));
  EXPECT_EQ(code_of(result.status), ErrorCode::kExhausted);
  EXPECT_EQ(result.status.error().native_code(), ENOSPC);
}

TYPED_TEST_P(FileEngineContract, ReachesOffsetsBeyond32Bits) {
  Random random(5);
  const FileMemory file = this->file_of(4096);
  ASSERT_EQ(::ftruncate(file.file().fd, off_t{1} << 34), 0);
  auto written = this->noise(random, 5000);
  const uint64_t offset = (uint64_t{1} << 33) + 123;
  this->expect_all(this->run(this->request(FileOp::kWrite, file.file(), offset, written)), 5000);
  EXPECT_EQ(this->content(file.file(), offset, 5000), written);
}

TYPED_TEST_P(FileEngineContract, MovesRandomRangesAsAnOracleDoes) {
  constexpr uint64_t kSize = 256 * kKiB;
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(seed);
    const FileMemory file = this->file_of(kSize);
    std::vector<std::byte> oracle(kSize);
    for (int round = 0; round < 12; ++round) {
      // Requests of one batch do not overlap, so their order does not matter.
      std::vector<FileRequest> requests;
      std::vector<std::vector<std::byte>> memory;
      std::vector<std::vector<std::byte>> expected;
      uint64_t offset = random.uniform(1000);
      while (requests.size() < 16) {
        const uint64_t size = random.uniform(12'000);
        if (offset + size > kSize) break;
        const FileOp op = random.chance(0.5) ? FileOp::kRead : FileOp::kWrite;
        std::vector<std::byte>& bytes = memory.emplace_back(this->noise(random, size + 32));
        FileRequest request{.op = op, .file = file.file(), .offset = offset};
        // Cut into a few buffers behind each other, 16 bytes of guard on both ends.
        for (uint64_t done = 0; done < size;) {
          const uint64_t part = std::min(size - done, 1 + random.uniform(6000));
          request.buffers.push_back({bytes.data() + 16 + done, part});
          done += part;
        }
        std::vector<std::byte>& after = expected.emplace_back(bytes);
        const auto in_file = oracle.begin() + static_cast<ptrdiff_t>(offset);
        if (op == FileOp::kRead) {
          std::copy_n(in_file, size, after.begin() + 16);
        } else {
          std::copy_n(after.begin() + 16, size, in_file);
        }
        requests.push_back(std::move(request));
        offset += size + random.uniform(3000);
      }
      uint64_t planned = 0;
      for (const FileRequest& request : requests) planned += request.size_bytes();
      const FileBatch batch = this->engine().submit(std::move(requests)).value();
      const Status ended = batch.wait(this->soon());
      ASSERT_TRUE(ended) << ended.error();
      EXPECT_EQ(batch.bytes(), planned);
      EXPECT_EQ(memory, expected);
    }
    EXPECT_EQ(this->content(file.file(), 0, kSize), oracle);
  }
}

TYPED_TEST_P(FileEngineContract, DirectFilesWorkAndInsistOnTheirAlignment) {
  const FileMemory file = this->file_of(kMiB, DirectIo::kTry);
  if (!file.alignment().direct()) GTEST_SKIP() << "no direct I/O in " << ::testing::TempDir();
  const uint64_t unit = file.alignment().offset;
  Random random(6);
  const auto noise = this->noise(random, 4 * unit);
  const SystemMemory memory = SystemMemory::create({.size_bytes = 16 * unit}).value();
  std::copy(noise.begin(), noise.end(), memory.data());
  const FileRequest write{.op = FileOp::kWrite,
                          .file = file.file(),
                          .offset = 2 * unit,
                          .buffers = {{memory.data(), unit}, {memory.data() + unit, 3 * unit}}};
  this->expect_all(this->run(write), 4 * unit);
  FileRequest read = write;
  read.op = FileOp::kRead;
  read.buffers = {{memory.data() + 8 * unit, 4 * unit}};
  this->expect_all(this->run(read), 4 * unit);
  EXPECT_TRUE(std::equal(noise.begin(), noise.end(), memory.data() + 8 * unit));

  for (int what = 0; what < 3; ++what) {
    FileRequest bad = read;
    if (what == 0) bad.offset += 1;
    if (what == 1) bad.buffers[0].size -= 1;
    if (what == 2) bad.buffers[0].data += 1;
    if (what == 2 && file.alignment().memory == 1) continue;
    EXPECT_EQ(code_of(this->run(bad).status), ErrorCode::kInvalidArgument) << what;
  }
}

TYPED_TEST_P(FileEngineContract, AFullEngineRefusesAWholeBatchAndTakesItLater) {
  const size_t room = this->engine().capabilities().max_pending;
  const FileMemory file = this->file_of(4096);
  std::vector<std::byte> bytes(4096);
  const FileRequest read = this->request(FileOp::kRead, file.file(), 0, bytes);
  const Result<FileBatch> too_large =
      this->engine().submit(std::vector<FileRequest>(room + 1, read));
  ASSERT_FALSE(too_large);
  EXPECT_EQ(code_of(too_large), ErrorCode::kInvalidArgument);

  // Every request has memory of its own: several are at work.
  std::vector<std::vector<std::byte>> memory(room, std::vector<std::byte>(4096));
  std::vector<FileRequest> requests;
  for (auto& own : memory) {
    requests.push_back(this->request(FileOp::kRead, file.file(), 0, own));
  }
  const FileBatch first = this->engine().submit(requests).value();
  const Result<FileBatch> second = this->engine().submit({read});
  if (!second) {
    EXPECT_EQ(code_of(second), ErrorCode::kExhausted);
  } else {
    EXPECT_TRUE(second->wait(this->soon()));
  }
  ASSERT_TRUE(first.wait(this->soon()));
  const Result<FileBatch> third = this->engine().submit(requests);
  ASSERT_TRUE(third) << third.error();
  EXPECT_TRUE(third->wait(this->soon()));
}

TYPED_TEST_P(FileEngineContract, WhoIsToldCanSubmitAgainAtOnce) {
  constexpr int kRounds = 50;
  const size_t room = this->engine().capabilities().max_pending;
  const FileMemory file = this->file_of(4096);
  std::vector<std::vector<std::byte>> memory(room, std::vector<std::byte>(512));
  std::vector<FileRequest> requests;
  for (auto& own : memory) {
    requests.push_back(this->request(FileOp::kRead, file.file(), 0, own));
  }
  struct Chain {
    FileEngine& engine;
    std::vector<FileRequest> requests;
    CompletionSource end;
    int left = kRounds;
    void next() noexcept {
      if (left-- == 0) return end.resolve({});
      Result<FileBatch> batch = engine.submit(requests);
      if (!batch) return end.resolve(make_error(std::move(batch).error()));
      batch->completion().on_done([this](const Status& status) noexcept {
        if (!status) return end.resolve(status);
        next();
      });
    }
  };
  Chain chain{this->engine(), requests, CompletionSource(this->harness_.executor())};
  const Completion end = chain.end.completion();
  chain.next();
  const Status ended = end.wait(this->soon());
  EXPECT_TRUE(ended) << ended.error();
}

TYPED_TEST_P(FileEngineContract, AnEngineThatIsDestroyedAnswersEverything) {
  const size_t room = this->engine().capabilities().max_pending;
  const FileMemory file = this->file_of(64 * kKiB);
  std::vector<std::vector<std::byte>> memory(room, std::vector<std::byte>(64 * kKiB));
  std::vector<FileRequest> requests;
  for (auto& own : memory) {
    requests.push_back(this->request(FileOp::kRead, file.file(), 0, own));
  }
  const FileBatch batch = this->engine().submit(std::move(requests)).value();
  std::atomic<size_t> told{0};
  for (size_t i = 0; i < room; ++i) {
    batch.completion(i).on_done([&told](const Status&) noexcept { ++told; });
  }
  this->harness_.destroy_engine();
  EXPECT_TRUE(batch.done());
  EXPECT_EQ(told, room);
  for (size_t i = 0; i < room; ++i) {
    const FileResult& result = batch.result(i);
    if (result.status) {
      this->expect_all(result, 64 * kKiB);
    } else {
      EXPECT_EQ(code_of(result.status), ErrorCode::kCancelled);
      EXPECT_EQ(result.bytes, 0u);
    }
  }
}

REGISTER_TYPED_TEST_SUITE_P(
    FileEngineContract, DescribesItself, ReachesDevicesAsItSays, ReadsBackWhatItWrote,
    WritesNothingOutsideTheRange, GathersAndScattersOverMoreBuffersThanOneCallTakes,
    ARequestOfNoByteSucceeds, ABatchOfNoRequestIsDone, AnswersEachRequestOfABatchByItself,
    AReadPastTheEndIsAnErrorWithTheBytesThatThereWere, RefusesRequestsThatMakeNoSense,
    AFileThatCannotBeWrittenIsAnIoError, AFullFileSystemIsExhausted, ReachesOffsetsBeyond32Bits,
    MovesRandomRangesAsAnOracleDoes, DirectFilesWorkAndInsistOnTheirAlignment,
    AFullEngineRefusesAWholeBatchAndTakesItLater, WhoIsToldCanSubmitAgainAtOnce,
    AnEngineThatIsDestroyedAnswersEverything);

}  // namespace kvbm::testing
