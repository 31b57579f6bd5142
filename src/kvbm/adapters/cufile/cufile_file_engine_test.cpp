// SPDX-License-Identifier: Apache-2.0
// The contract of file engines, kept by CufileFileEngine for memory of the host and of a device;
// and what it does with every libcufile that fails.
#include "kvbm/adapters/cufile/cufile_file_engine.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/log.hpp"
#include "kvbm/base/stepped_executor.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/device/host_device.hpp"

#include "tests/contract/file_engine_contract.hpp"
#include "tests/support/cufile_rig.hpp"
#include "tests/support/error_code.hpp"
#include "tests/support/hidden_device.hpp"

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

/// Calls every buffer a device's.
class AllOnDevice final : public FileEngine {
 public:
  explicit AllOnDevice(std::unique_ptr<FileEngine> inner) : inner_(std::move(inner)) {}
  [[nodiscard]] FileEngineCapabilities capabilities() const override {
    return inner_->capabilities();
  }
  [[nodiscard]] Status reach_device(const FileRef& file) override {
    return inner_->reach_device(file);
  }
  [[nodiscard]] Result<FileBatch> submit(std::vector<FileRequest> requests) override {
    for (FileRequest& request : requests) {
      for (IoBuffer& buffer : request.buffers) buffer.place = BufferPlace::kDevice;
    }
    return inner_->submit(std::move(requests));
  }

 private:
  std::unique_ptr<FileEngine> inner_;
};

template <class Executors, BufferPlace place>
class CufileHarness {
 public:
  CufileHarness() : fake_(fresh_fake_cufile()) {
    engine_ = cufile_engine(executors_.executor);
    if (place == BufferPlace::kDevice) engine_ = std::make_unique<AllOnDevice>(std::move(engine_));
  }
  ~CufileHarness() {
    destroy_engine();
    EXPECT_EQ(fake_.num_misuses, 0);
    EXPECT_EQ(fake_.num_opened, 0);
    EXPECT_TRUE(fake_.registered.empty());
    EXPECT_TRUE(place == BufferPlace::kDevice || fake_.asked.empty());
  }
  [[nodiscard]] Executor& executor() { return executors_.executor; }
  [[nodiscard]] FileEngine& engine() { return *engine_; }
  void destroy_engine() { engine_.reset(); }

 private:
  FakeCufile& fake_;
  Executors executors_;
  std::unique_ptr<FileEngine> engine_;
};

using Harnesses = ::testing::Types<
    CufileHarness<Threads, BufferPlace::kHost>, CufileHarness<Threads, BufferPlace::kDevice>,
    CufileHarness<Steps<1>, BufferPlace::kHost>, CufileHarness<Steps<2>, BufferPlace::kDevice>>;
INSTANTIATE_TYPED_TEST_SUITE_P(CufileFileEngine, FileEngineContract, Harnesses);

/// A hidden device, so that nothing but the library reaches its memory, and a file.
class CufileFileEngineTest : public ::testing::Test {
 protected:
  static constexpr size_t kBytes = 64 * 1024;

  CufileFileEngineTest() : fake_(fresh_fake_cufile()) {
    fake_.behind = [this](const std::byte* address) { return device_.behind(address); };
    for (size_t i = 0; i < kBytes; ++i) noise_.push_back(static_cast<std::byte>(i * 7 + i / 256));
  }
  ~CufileFileEngineTest() override {
    fake_.behind = nullptr;
    fake_.before_io = nullptr;
    EXPECT_EQ(fake_.num_misuses, 0);
    EXPECT_EQ(fake_.num_opened, 0);
    EXPECT_TRUE(fake_.registered.empty());
  }

  [[nodiscard]] std::unique_ptr<CufileFileEngine> engine(const CufileRigOptions& options = {}) {
    return cufile_engine(executor_, options);
  }

  [[nodiscard]] std::byte* hidden() { return device_.behind(memory_.data()); }

  [[nodiscard]] FileRequest request(FileOp op, uint64_t offset = 0, size_t bytes = kBytes) {
    return {.op = op,
            .file = file_.file(),
            .offset = offset,
            .buffers = {{memory_.data(), bytes, BufferPlace::kDevice}}};
  }

  [[nodiscard]] static FileResult run(FileEngine& engine, FileRequest request) {
    std::vector<FileRequest> requests;
    requests.push_back(std::move(request));
    const FileBatch batch = engine.submit(std::move(requests)).value();
    static_cast<void>(batch.wait());
    return batch.result(0);
  }

  [[nodiscard]] std::vector<std::byte> in_file(uint64_t offset, size_t bytes) const {
    std::vector<std::byte> content(bytes);
    EXPECT_EQ(::pread(file_.file().fd, content.data(), bytes, static_cast<off_t>(offset)),
              static_cast<ssize_t>(bytes));
    return content;
  }
  void write_file() {
    ASSERT_EQ(::pwrite(file_.file().fd, noise_.data(), kBytes, 0), static_cast<ssize_t>(kBytes));
  }

  /// An engine that reaches no device says why, in the capabilities and to each request; what is in
  /// host memory goes on.
  void expect_no_device(FileEngine& engine, const std::string& word) {
    const FileEngineCapabilities capabilities = engine.capabilities();
    EXPECT_FALSE(capabilities.device_memory);
    EXPECT_NE(capabilities.device_memory_note.find(word), std::string::npos)
        << capabilities.device_memory_note;
    EXPECT_EQ(code_of(engine.reach_device(file_.file())), ErrorCode::kUnsupported);
    const FileResult refused = run(engine, request(FileOp::kRead));
    EXPECT_EQ(code_of(refused.status), ErrorCode::kUnsupported);
    EXPECT_NE(refused.status.error().message().find(word), std::string::npos);
    std::vector<std::byte> bytes(100);
    const FileResult served =
        run(engine, {.op = FileOp::kRead, .file = file_.file(), .buffers = {{bytes.data(), 100}}});
    EXPECT_TRUE(served.status);
    EXPECT_TRUE(fake_.asked.empty());
  }

  FakeCufile& fake_;
  SteppedExecutor executor_{1};
  std::unique_ptr<HostDevice> host_ = HostDevice::create({.executor = executor_}).value();
  HiddenDevice device_{*host_};
  DeviceMemory memory_ = device_.allocate(kBytes, 4096).value();
  FileMemory file_ =
      FileMemory::create({.directory = ::testing::TempDir(), .size_bytes = 2 * kBytes}).value();
  std::vector<std::byte> noise_;
};

TEST_F(CufileFileEngineTest, ReadsAndWritesMemoryThatTheHostCannotAddress) {
  const auto engine = this->engine();
  const FileEngineCapabilities capabilities = engine->capabilities();
  EXPECT_EQ(capabilities.name, "cufile over posix");
  EXPECT_TRUE(capabilities.device_memory);
  EXPECT_EQ(capabilities.device_memory_note, "libcufile 1.14, GPU Direct Storage");
  EXPECT_TRUE(engine->reach_device(file_.file()));

  std::copy(noise_.begin(), noise_.end(), hidden());
  const FileResult written = run(*engine, request(FileOp::kWrite, kBytes));
  ASSERT_TRUE(written.status) << written.status.error();
  EXPECT_EQ(written.bytes, kBytes);
  EXPECT_EQ(in_file(kBytes, kBytes), noise_);
  std::fill_n(hidden(), kBytes, std::byte{0});
  const FileResult read = run(*engine, request(FileOp::kRead, kBytes));
  ASSERT_TRUE(read.status) << read.status.error();
  EXPECT_EQ(read.bytes, kBytes);
  EXPECT_TRUE(std::equal(noise_.begin(), noise_.end(), hidden()));
}

TEST_F(CufileFileEngineTest, ARequestMayNameBothKindsOfMemory) {
  const auto engine = this->engine();
  write_file();
  std::vector<std::byte> head(100);
  std::vector<std::byte> middle(30);
  FileRequest read = request(FileOp::kRead, 0, 1000);
  read.buffers = {{head.data(), 60},
                  {head.data() + 60, 40},
                  {memory_.data() + 5, 1000, BufferPlace::kDevice},
                  {memory_.data() + 2000, 500, BufferPlace::kDevice},
                  {middle.data(), 30},
                  {nullptr, 0, BufferPlace::kDevice},
                  {memory_.data() + 3000, 70, BufferPlace::kDevice}};
  const FileResult result = run(*engine, read);
  ASSERT_TRUE(result.status) << result.status.error();
  EXPECT_EQ(result.bytes, 1700U);
  const auto expect_at = [&](const std::byte* found, size_t in_file, size_t bytes) {
    EXPECT_TRUE(std::equal(found, found + bytes, noise_.data() + in_file)) << in_file;
  };
  expect_at(head.data(), 0, 100);
  expect_at(hidden() + 5, 100, 1000);
  expect_at(hidden() + 2000, 1100, 500);
  expect_at(middle.data(), 1600, 30);
  expect_at(hidden() + 3000, 1630, 70);
  EXPECT_EQ(fake_.asked.size(), 3U);
}

TEST_F(CufileFileEngineTest, GoesOnAfterShortTransfersAndSignals) {
  const auto engine = this->engine();
  write_file();
  int call = 0;
  fake_.before_io = [&](FakeCufileIo& io) -> ssize_t {
    switch (call++) {
      case 0:
        io.size = 1;
        return FakeCufile::kGoOn;
      case 1:
        errno = EINTR;
        return -1;
      case 2:
        io.size = 4095;
        return FakeCufile::kGoOn;
      case 3:
        errno = EAGAIN;
        return -1;
      default:
        return FakeCufile::kGoOn;
    }
  };
  const FileResult result = run(*engine, request(FileOp::kRead));
  ASSERT_TRUE(result.status) << result.status.error();
  EXPECT_EQ(result.bytes, kBytes);
  EXPECT_TRUE(std::equal(noise_.begin(), noise_.end(), hidden()));
  EXPECT_EQ(call, 5);
}

TEST_F(CufileFileEngineTest, GivesUpOnALibraryThatNeverMovesAByte) {
  const auto engine = this->engine();
  int calls = 0;
  fake_.before_io = [&](FakeCufileIo&) -> ssize_t {
    ++calls;
    errno = EAGAIN;
    return -1;
  };
  const FileResult result = run(*engine, request(FileOp::kRead));
  EXPECT_EQ(code_of(result.status), ErrorCode::kIo);
  EXPECT_LT(calls, 10'000);
}

TEST_F(CufileFileEngineTest, AnErrorInTheMiddleSaysWhatMovedBefore) {
  const auto engine = this->engine();
  write_file();
  struct Case {
    int answer;
    int error_number;
    ErrorCode code;
    NativeDomain domain;
    int64_t native;
  };
  for (const Case& wrong : {
           Case{-1, EIO, ErrorCode::kIo, NativeDomain::kErrno, EIO},
           Case{-1, ENOSPC, ErrorCode::kExhausted, NativeDomain::kErrno, ENOSPC},
           Case{-5011, 0, ErrorCode::kDevice, NativeDomain::kCufile, 5011},
           Case{-5012, 0, ErrorCode::kInvalidArgument, NativeDomain::kCufile, 5012},
           Case{-5043, 0, ErrorCode::kExhausted, NativeDomain::kCufile, 5043},
           Case{-5044, 0, ErrorCode::kIo, NativeDomain::kCufile, 5044},
           Case{-5999, 0, ErrorCode::kIo, NativeDomain::kCufile, 5999},
           Case{0, 0, ErrorCode::kIo, NativeDomain::kNone, 0},
       }) {
    SCOPED_TRACE(wrong.answer);
    int call = 0;
    fake_.before_io = [&](FakeCufileIo& io) -> ssize_t {
      if (call++ == 0) {
        io.size = 4096;
        return FakeCufile::kGoOn;
      }
      errno = wrong.error_number;
      return wrong.answer;
    };
    const FileResult result = run(*engine, request(FileOp::kRead));
    ASSERT_FALSE(result.status);
    EXPECT_EQ(result.bytes, 4096U);
    EXPECT_EQ(code_of(result.status), wrong.code) << result.status.error();
    EXPECT_EQ(result.status.error().native_domain(), wrong.domain);
    EXPECT_EQ(result.status.error().native_code(), wrong.native);
    EXPECT_NE(result.status.error().message().find("4096 moved"), std::string::npos);
  }
}

TEST_F(CufileFileEngineTest, BelievesNoMoreBytesThanItAskedFor) {
  const auto engine = this->engine();
  fake_.before_io = [](FakeCufileIo& io) { return static_cast<ssize_t>(io.size + 1); };
  const FileResult result = run(*engine, request(FileOp::kRead));
  EXPECT_EQ(code_of(result.status), ErrorCode::kInternal);
  EXPECT_EQ(result.bytes, 0U);
}

TEST_F(CufileFileEngineTest, WithoutTheLibraryItServesTheHostAndSaysWhy) {
  const auto engine = this->engine({.library = "libno-such-thing.so.7"});
  EXPECT_NE(engine->capabilities().device_memory_note.find("libno-such-thing.so.7"),
            std::string::npos);
  expect_no_device(*engine, "libcufile is not found");
}

TEST_F(CufileFileEngineTest, ALibraryThatLacksAnEntryPointIsNamedWithIt) {
  static_cast<void>(fresh_fake_cufile(KVBM_FAKE_CUFILE_INCOMPLETE));
  const auto engine = this->engine({.library = KVBM_FAKE_CUFILE_INCOMPLETE});
  expect_no_device(*engine, "cuFileWrite");
}

TEST_F(CufileFileEngineTest, ADriverThatDoesNotOpenIsTheReason) {
  fake_.open_code = 5001;
  expect_no_device(*engine(), "nvidia-fs is not loaded");
  fake_.open_code = 5011;
  fake_.cuda_code = 100;
  const auto info = CufileFileEngine::find(KVBM_FAKE_CUFILE);
  ASSERT_FALSE(info);
  EXPECT_EQ(info.error().code(), ErrorCode::kDevice);
  EXPECT_EQ(info.error().native_domain(), NativeDomain::kCuda);
  EXPECT_EQ(info.error().native_code(), 100);
  fake_.open_code = 0;
  fake_.properties_code = 5030;
  expect_no_device(*engine(), "tells nothing of itself");
}

TEST_F(CufileFileEngineTest, SomebodyElsesDriverIsUsedAndNotClosed) {
  fake_.open_code = 5026;
  fake_.num_opened = 1;
  {
    const auto engine = this->engine();
    EXPECT_TRUE(engine->capabilities().device_memory);
    EXPECT_TRUE(run(*engine, request(FileOp::kRead)).status);
  }
  EXPECT_EQ(fake_.num_opened, 1);
  fake_.num_opened = 0;
}

TEST_F(CufileFileEngineTest, TheCompatibilityModeIsTakenOnlyIfThatIsAllowed) {
  fake_.nvidia_fs_major = 0;
  expect_no_device(*engine(), "compatibility mode");
  const auto engine = this->engine({.compatibility = CufileCompatibility::kTake});
  EXPECT_TRUE(engine->capabilities().device_memory);
  EXPECT_EQ(engine->capabilities().device_memory_note, "libcufile 1.14, its compatibility mode");
  EXPECT_TRUE(run(*engine, request(FileOp::kRead)).status);
  EXPECT_FALSE(CufileFileEngine::find(KVBM_FAKE_CUFILE)->is_direct);
  fake_.features |= 1U << 4;
  EXPECT_TRUE(CufileFileEngine::find(KVBM_FAKE_CUFILE)->is_direct) << "PCI P2PDMA";
}

TEST_F(CufileFileEngineTest, AFileThatTheLibraryRefusesIsRefusedByReachDevice) {
  const auto engine = this->engine();
  for (const auto& [code, meaning, word] :
       {std::tuple{5008, ErrorCode::kUnsupported, "file system"},
        std::tuple{5019, ErrorCode::kUnsupported, "have a name"},
        std::tuple{5030, ErrorCode::kUnsupported, "cufile.log"},
        std::tuple{5034, ErrorCode::kUnsupported, "cufile.json"},
        std::tuple{5031, ErrorCode::kUnsupported, "by its path"},
        std::tuple{5043, ErrorCode::kExhausted, "no memory"}}) {
    fake_.register_code = code;
    const Status reached = engine->reach_device(file_.file());
    EXPECT_EQ(code_of(reached), ErrorCode::kUnsupported);
    EXPECT_NE(reached.error().message().find(word), std::string::npos) << reached.error();
    EXPECT_EQ(code_of(run(*engine, request(FileOp::kRead)).status), meaning);
  }
  fake_.register_code = 0;
  EXPECT_TRUE(engine->reach_device(file_.file()));
  EXPECT_TRUE(run(*engine, request(FileOp::kRead)).status);
}

TEST_F(CufileFileEngineTest, AFileIsRegisteredWhileRequestsOnItArePending) {
  auto engine = this->engine();
  std::vector<FileRequest> requests;
  for (uint64_t i = 0; i < 8; ++i) requests.push_back(request(FileOp::kWrite, 4096 * i, 4096));
  const FileBatch batch = engine->submit(requests).value();
  EXPECT_EQ(fake_.num_registrations, 0) << "before the first one runs";
  size_t while_told = 0;
  for (size_t i = 0; i < batch.size(); ++i) {
    batch.completion(i).on_done(
        [&](const Status&) noexcept { while_told = fake_.registered.size(); });
  }
  for (int i = 0; i < 7; ++i) {
    ASSERT_TRUE(executor_.step());
    EXPECT_EQ(while_told, 1U);
  }
  ASSERT_TRUE(executor_.step());
  EXPECT_EQ(while_told, 0U) << "who is told may close the file";
  EXPECT_EQ(fake_.num_registrations, 1);
  EXPECT_TRUE(batch.wait());

  // Also if they are cancelled.
  const FileBatch cancelled = engine->submit(requests).value();
  ASSERT_TRUE(executor_.step());
  engine.reset();
  EXPECT_EQ(code_of(cancelled.wait()), ErrorCode::kCancelled);
  EXPECT_TRUE(fake_.registered.empty());
}

TEST_F(CufileFileEngineTest, ThreadsShareTheRegistrationsOfFilesThatComeAndGo) {
  NullLogSink log;
  ThreadExecutor threads(log);
  const auto engine = cufile_engine(threads, {.num_threads = 8, .max_pending = 64});
  for (int round = 0; round < 100; ++round) {
    const FileMemory one =
        FileMemory::create({.directory = ::testing::TempDir(), .size_bytes = 4096}).value();
    const FileMemory other =
        FileMemory::create({.directory = ::testing::TempDir(), .size_bytes = 4096}).value();
    std::vector<FileBatch> batches;
    for (int i = 0; i < 12; ++i) {
      FileRequest write = request(FileOp::kWrite, 0, 512);
      write.file = i % 3 == 0 ? other.file() : one.file();
      write.buffers[0].data += 512 * i;
      batches.push_back(engine->submit({write}).value());
    }
    for (const FileBatch& batch : batches) ASSERT_TRUE(batch.wait());
  }
  EXPECT_EQ(fake_.num_misuses, 0);
}

TEST_F(CufileFileEngineTest, RunsInTheContextOfTheDevice) {
  int entered = 0;
  int left = 0;
  auto host = PosixFileEngine::create({.executor = executor_}).value();
  const auto engine =
      CufileFileEngine::create({.executor = executor_,
                                .host = std::move(host),
                                .library = KVBM_FAKE_CUFILE,
                                .enter_device = [&]() -> std::shared_ptr<const void> {
                                  ++entered;
                                  return {&entered, [&](const int*) { ++left; }};
                                }})
          .value();
  fake_.before_io = [&](FakeCufileIo&) {
    EXPECT_EQ(entered, left + 1);
    return FakeCufile::kGoOn;
  };
  EXPECT_TRUE(run(*engine, request(FileOp::kRead)).status);
  EXPECT_TRUE(engine->reach_device(file_.file()));
  EXPECT_EQ(entered, 2);
  EXPECT_EQ(left, 2);
}

TEST_F(CufileFileEngineTest, AForkIsNoticed) {
  const auto engine = this->engine();
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const auto batch = engine->submit({request(FileOp::kRead)});
    const bool refused = !batch && batch.error().code() == ErrorCode::kUnsupported &&
                         batch.error().message().find("fork") != std::string::npos;
    ::_exit(refused && !engine->reach_device(file_.file()) ? 7 : 8);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_TRUE(run(*engine, request(FileOp::kRead)).status);
}

TEST_F(CufileFileEngineTest, RefusesOptionsThatMakeNoSense) {
  const auto refused = [&](auto&& change) {
    CufileFileEngineOptions options{
        .executor = executor_,
        .host = PosixFileEngine::create({.executor = executor_}).value(),
        .library = KVBM_FAKE_CUFILE};
    change(options);
    return code_of(CufileFileEngine::create(std::move(options))) == ErrorCode::kInvalidArgument;
  };
  EXPECT_TRUE(refused([](CufileFileEngineOptions& options) { options.host = nullptr; }));
  EXPECT_TRUE(refused([](CufileFileEngineOptions& options) { options.num_threads = 0; }));
  EXPECT_TRUE(refused([](CufileFileEngineOptions& options) { options.max_pending = 0; }));
  EXPECT_TRUE(refused([](CufileFileEngineOptions& options) { options.name = ""; }));
}

}  // namespace
}  // namespace kvbm::testing
