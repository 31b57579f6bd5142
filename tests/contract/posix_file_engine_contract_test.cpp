// SPDX-License-Identifier: Apache-2.0
// The contract of file engines, kept by PosixFileEngine on threads and in steps, and by
// FaultyFileEngine without faults; and what FaultyFileEngine does with them.
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kvbm/base/log.hpp"
#include "kvbm/base/stepped_executor.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/memory/posix_file_engine.hpp"

#include "tests/contract/file_engine_contract.hpp"
#include "tests/support/faulty_file_engine.hpp"

namespace kvbm::testing {
namespace {

struct Threads {
  NullLogSink log;
  ThreadExecutor executor{log};
};

template <uint64_t seed>
struct Steps {
  SteppedExecutor executor{seed};
};

std::unique_ptr<PosixFileEngine> posix(Executor& executor) {
  return PosixFileEngine::create({.executor = executor, .max_pending = 32}).value();
}

template <class Executors>
class PosixHarness {
 public:
  [[nodiscard]] Executor& executor() { return executors_.executor; }
  [[nodiscard]] FileEngine& engine() { return *engine_; }
  void destroy_engine() { engine_.reset(); }

 private:
  Executors executors_;
  std::unique_ptr<FileEngine> engine_ = posix(executors_.executor);
};

/// Late answers are no fault: the contract names no time.
template <class Executors, bool late>
class FaultyHarness {
 public:
  [[nodiscard]] Executor& executor() { return executors_.executor; }
  [[nodiscard]] FileEngine& engine() { return *engine_; }
  void destroy_engine() { engine_.reset(); }

 private:
  Executors executors_;
  std::unique_ptr<FileEngine> engine_ = std::make_unique<FaultyFileEngine>(
      posix(executors_.executor), executors_.executor, FileFaults{.delay = late ? 0.3 : 0.0});
};

using PosixHarnesses =
    ::testing::Types<PosixHarness<Threads>, PosixHarness<Steps<1>>, PosixHarness<Steps<2>>>;
INSTANTIATE_TYPED_TEST_SUITE_P(PosixFileEngine, FileEngineContract, PosixHarnesses);
using FaultyHarnesses =
    ::testing::Types<FaultyHarness<Threads, false>, FaultyHarness<Threads, true>,
                     FaultyHarness<Steps<1>, true>>;
INSTANTIATE_TYPED_TEST_SUITE_P(FaultyFileEngineWithoutFaults, FileEngineContract, FaultyHarnesses);

TEST(PosixFileEngine, RefusesOptionsThatMakeNoSense) {
  SteppedExecutor executor(1);
  for (const PosixFileEngineOptions& options : {
           PosixFileEngineOptions{.executor = executor, .num_threads = 0},
           PosixFileEngineOptions{.executor = executor, .max_pending = 0},
           PosixFileEngineOptions{.executor = executor, .name = ""},
       }) {
    const auto engine = PosixFileEngine::create(options);
    ASSERT_FALSE(engine);
    EXPECT_EQ(code_of(engine), ErrorCode::kInvalidArgument);
  }
}

/// `count` reads of 512 bytes, each into memory of its own.
class Reads {
 public:
  explicit Reads(size_t count) : memory_(count, std::vector<std::byte>(512)) {}

  [[nodiscard]] std::vector<FileRequest> requests(size_t first, size_t count) {
    std::vector<FileRequest> requests;
    for (size_t i = first; i < first + count; ++i) {
      requests.push_back({.op = FileOp::kRead,
                          .file = file_.file(),
                          .offset = 0,
                          .buffers = {{memory_[i].data(), memory_[i].size()}}});
    }
    return requests;
  }

 private:
  FileMemory file_ =
      FileMemory::create({.directory = ::testing::TempDir(), .size_bytes = 512}).value();
  std::vector<std::vector<std::byte>> memory_;
};

TEST(PosixFileEngine, IsFullWithAsManyRequestsAsItWasTold) {
  SteppedExecutor executor(1);
  const auto engine = posix(executor);
  Reads reads(33);
  const FileBatch first = engine->submit(reads.requests(0, 20)).value();
  EXPECT_EQ(code_of(engine->submit(reads.requests(20, 13))), ErrorCode::kExhausted);
  const FileBatch second = engine->submit(reads.requests(20, 12)).value();
  EXPECT_EQ(code_of(engine->submit(reads.requests(32, 1))), ErrorCode::kExhausted);
  ASSERT_TRUE(executor.step());
  EXPECT_TRUE(engine->submit(reads.requests(32, 1)));
  executor.run_until_idle();
  EXPECT_TRUE(first.done());
  EXPECT_TRUE(second.done());
}

TEST(PosixFileEngine, CancelsWhatHasNotStartedWhenItIsDestroyed) {
  SteppedExecutor executor(1);
  auto engine = posix(executor);
  Reads reads(8);
  const FileBatch batch = engine->submit(reads.requests(0, 8)).value();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(executor.step());
  engine.reset();
  size_t succeeded = 0;
  for (size_t i = 0; i < batch.size(); ++i) {
    const FileResult& result = batch.result(i);
    if (result.status) {
      ++succeeded;
    } else {
      EXPECT_EQ(code_of(result.status), ErrorCode::kCancelled);
    }
  }
  EXPECT_EQ(succeeded, 3u);
}

/// A faulty engine under a fixed seed, and a file of blocks of a known pattern.
class FaultyFileEngineTest : public ::testing::Test {
 protected:
  static constexpr size_t kBlocks = 300;
  static constexpr size_t kBytes = 1024;

  struct Outcome {
    std::vector<FileResult> results;
    std::vector<std::vector<std::byte>> memory;
    FileFaultCounts counts;
    Duration took{0};
  };

  [[nodiscard]] static std::vector<std::byte> pattern(size_t block) {
    Random random(block + 1);
    std::vector<std::byte> bytes(kBytes);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.uniform(256));
    return bytes;
  }

  [[nodiscard]] std::vector<std::byte> in_file(size_t block) const {
    std::vector<std::byte> bytes(kBytes);
    EXPECT_EQ(::pread(file_.file().fd, bytes.data(), kBytes, static_cast<off_t>(block * kBytes)),
              static_cast<ssize_t>(kBytes));
    return bytes;
  }

  /// One request a block; reads find the pattern in the file.
  Outcome run(FileOp op, FileFaults faults) {
    Outcome outcome;
    SteppedExecutor executor(1);
    FaultyFileEngine engine(posix(executor), executor, faults);
    for (size_t i = 0; i < kBlocks; ++i) {
      outcome.memory.push_back(op == FileOp::kRead ? std::vector<std::byte>(kBytes) : pattern(i));
      const std::vector<std::byte> before =
          op == FileOp::kRead ? pattern(i) : std::vector<std::byte>(kBytes);
      EXPECT_EQ(::pwrite(file_.file().fd, before.data(), kBytes, static_cast<off_t>(i * kBytes)),
                static_cast<ssize_t>(kBytes));
    }
    const TimePoint start = executor.clock().now();
    for (size_t i = 0; i < kBlocks; ++i) {
      const FileBatch batch =
          engine
              .submit({{.op = op,
                        .file = file_.file(),
                        .offset = i * kBytes,
                        .buffers = {{outcome.memory[i].data(), 400},
                                    {outcome.memory[i].data() + 400, kBytes - 400}}}})
              .value();
      static_cast<void>(batch.wait());
      outcome.results.push_back(batch.result(0));
    }
    outcome.counts = engine.counts();
    outcome.took = executor.clock().now() - start;
    return outcome;
  }

  /// How many bits of two blocks differ.
  [[nodiscard]] static int distance(const std::vector<std::byte>& a,
                                    const std::vector<std::byte>& b) {
    int bits = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      bits += __builtin_popcount(std::to_integer<unsigned>(a[i] ^ b[i]));
    }
    return bits;
  }

  static void expect_about_a_third(uint64_t count) {
    EXPECT_GT(count, kBlocks / 5);
    EXPECT_LT(count, kBlocks / 2);
  }

  FileMemory file_ =
      FileMemory::create({.directory = ::testing::TempDir(), .size_bytes = kBlocks * kBytes})
          .value();
};

TEST_F(FaultyFileEngineTest, FailsWithoutMovingAByte) {
  const Outcome outcome = run(FileOp::kWrite, {.seed = 1, .fail = 0.33});
  uint64_t failed = 0;
  for (size_t i = 0; i < kBlocks; ++i) {
    const bool succeeded = outcome.results[i].status.has_value();
    EXPECT_EQ(outcome.results[i].bytes, succeeded ? kBytes : 0);
    EXPECT_EQ(in_file(i), succeeded ? pattern(i) : std::vector<std::byte>(kBytes));
    if (!succeeded) ++failed;
  }
  expect_about_a_third(failed);
  EXPECT_EQ(outcome.counts.failed, failed);
}

TEST_F(FaultyFileEngineTest, TearsRequestsAndSaysSo) {
  const Outcome outcome = run(FileOp::kRead, {.seed = 2, .torn = 0.33});
  uint64_t torn = 0;
  for (size_t i = 0; i < kBlocks; ++i) {
    if (outcome.results[i].status) continue;
    ++torn;
    EXPECT_EQ(code_of(outcome.results[i].status), ErrorCode::kIo);
    ASSERT_LT(outcome.results[i].bytes, kBytes);
    std::vector<std::byte> expected = pattern(i);
    std::fill(expected.begin() + static_cast<ptrdiff_t>(outcome.results[i].bytes), expected.end(),
              std::byte{0});
    EXPECT_EQ(outcome.memory[i], expected);
  }
  expect_about_a_third(torn);
  EXPECT_EQ(outcome.counts.torn, torn);
}

TEST_F(FaultyFileEngineTest, LiesAboutShortRequestsButNotAboutTheirBytes) {
  const Outcome outcome = run(FileOp::kWrite, {.seed = 3, .lie = 0.33});
  uint64_t lies = 0;
  for (size_t i = 0; i < kBlocks; ++i) {
    EXPECT_TRUE(outcome.results[i].status);
    if (outcome.results[i].bytes == kBytes) continue;
    ++lies;
    EXPECT_NE(in_file(i), pattern(i));
  }
  expect_about_a_third(lies);
  EXPECT_EQ(outcome.counts.lies, lies);
}

TEST_F(FaultyFileEngineTest, FlipsOneBitOfWhatItReadsOrWrites) {
  for (const FileOp op : {FileOp::kRead, FileOp::kWrite}) {
    const Outcome outcome = run(op, {.seed = 4, .bit_flip = 0.33});
    uint64_t flipped = 0;
    for (size_t i = 0; i < kBlocks; ++i) {
      EXPECT_TRUE(outcome.results[i].status);
      EXPECT_EQ(outcome.results[i].bytes, kBytes);
      const auto& arrived = op == FileOp::kRead ? outcome.memory[i] : in_file(i);
      const auto& untouched = op == FileOp::kRead ? in_file(i) : outcome.memory[i];
      EXPECT_EQ(untouched, pattern(i));
      const int bits = distance(arrived, pattern(i));
      EXPECT_LE(bits, 1);
      if (bits != 0) ++flipped;
    }
    expect_about_a_third(flipped);
    EXPECT_EQ(outcome.counts.bit_flips, flipped);
  }
}

TEST_F(FaultyFileEngineTest, DelaysAnswersByAsMuchAsItWasTold) {
  const Outcome outcome =
      run(FileOp::kRead, {.seed = 5, .delay = 0.33, .max_delay = std::chrono::milliseconds(10)});
  for (const FileResult& result : outcome.results) EXPECT_TRUE(result.status);
  expect_about_a_third(outcome.counts.delays);
  EXPECT_GT(outcome.took, std::chrono::milliseconds(10));
  EXPECT_LE(outcome.took, outcome.counts.delays * std::chrono::milliseconds(10));
}

TEST_F(FaultyFileEngineTest, DoesTheSameAgainWithTheSameSeed) {
  const FileFaults faults{.seed = 6, .fail = 0.1, .torn = 0.1, .lie = 0.1, .bit_flip = 0.1};
  const Outcome once = run(FileOp::kRead, faults);
  const Outcome again = run(FileOp::kRead, faults);
  EXPECT_EQ(once.memory, again.memory);
  for (size_t i = 0; i < kBlocks; ++i) {
    EXPECT_EQ(once.results[i].status.has_value(), again.results[i].status.has_value());
    EXPECT_EQ(once.results[i].bytes, again.results[i].bytes);
  }
  FileFaults other = faults;
  other.seed = 7;
  EXPECT_NE(run(FileOp::kRead, other).memory, once.memory);
}

}  // namespace
}  // namespace kvbm::testing
