// SPDX-License-Identifier: Apache-2.0
#include "kvbm/worker/worker.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/base/stepped_executor.hpp"
#include "kvbm/base/thread_executor.hpp"

#include "tests/support/allocation_meter.hpp"
#include "tests/support/hooked_device.hpp"
#include "tests/support/pattern.hpp"
#include "tests/support/pinner_double.hpp"
#include "tests/support/rank_rig.hpp"
#include "tests/support/recording_log_sink.hpp"
#include "tests/support/seed.hpp"

namespace kvbm {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::HookedDevice;
using ::testing::IsEmpty;
using testing::kRigBlockBytes;
using testing::RankRig;
using testing::RankRigOptions;
using testing::RecordingLogSink;

constexpr Place kEngine{TierId::kG1, GroupId(0)};
constexpr Place kHost{TierId::kG2, GroupId(0)};
constexpr Place kDisk{TierId::kG3, GroupId(0)};

Tag tag_of(uint64_t number) {
  Tag tag;
  for (size_t i = 0; i < tag.bytes.size(); ++i) {
    tag.bytes[i] = static_cast<std::byte>(number + i);
  }
  return tag;
}

std::vector<BlockId> ids(std::initializer_list<uint32_t> numbers) {
  std::vector<BlockId> blocks;
  for (const uint32_t number : numbers) blocks.emplace_back(number);
  return blocks;
}

struct CopyOptions {
  std::vector<Gate> after = {};
  Duration timeout{0};
  Priority priority = Priority::kOffload;
  uint64_t first_tag = 0;
};

/// With a tag a block where a side is the disk.
CopyOp copy(uint64_t op, Place src, std::vector<BlockId> from, Place dst, std::vector<BlockId> to,
            CopyOptions options = {}) {
  std::vector<Tag> tags;
  if (src.tier == TierId::kG3 || dst.tier == TierId::kG3) {
    for (size_t i = 0; i < from.size(); ++i) tags.push_back(tag_of(options.first_tag + i));
  }
  return {.op = OpId(op),
          .src = src,
          .dst = dst,
          .from = std::move(from),
          .to = std::move(to),
          .tags = std::move(tags),
          .after = std::move(options.after),
          .timeout = options.timeout,
          .priority = options.priority};
}

StepPlan plan(uint64_t step) {
  StepPlan plan;
  plan.step = StepId(step);
  return plan;
}

struct SteppedKind {
  static std::unique_ptr<Executor> make(LogSink& log) {
    return std::make_unique<SteppedExecutor>(11, log);
  }
};
struct ThreadKind {
  static std::unique_ptr<Executor> make(LogSink& log) {
    return std::make_unique<ThreadExecutor>(log);
  }
};

/// Runs on both executors.
template <class Kind>
class WorkerOn : public ::testing::Test {
 protected:
  void use(const RankRigOptions& options = {}) {
    rig_.reset();
    rig_ = std::make_unique<RankRig>(*executor_, log_, options);
  }
  RankRig& rig() {
    if (!rig_) use();
    return *rig_;
  }
  Worker& worker() { return *rig().worker; }
  OpResult await(uint64_t op) { return rig().await(OpId(op)); }
  void submit(const CopyOp& op) { worker().submit({&op, 1}); }
  OpResult run(const CopyOp& op) {
    submit(op);
    return rig().await(op.op);
  }
  bool ended(uint64_t op) { return rig().results.find(OpId(op)).has_value(); }
  /// Gives everything that could happen a chance to happen.
  void let_things_happen() {
    Latch never;
    EXPECT_FALSE(executor_->wait(never, executor_->clock().now() + milliseconds(5)));
  }
  /// Fills a block as a step of the engine would: on the compute stream.
  void compute(uint32_t block, uint64_t key) {
    EXPECT_TRUE(rig().device->launch(rig().compute, [this, block, key]() -> Status {
      rig().fill(block, key);
      return {};
    }));
  }
  Status wait_for_compute() {
    return rig().device->synchronize(rig().compute, executor_->clock().now() + seconds(10));
  }

  RecordingLogSink log_{LogLevel::kWarning};
  std::unique_ptr<Executor> executor_ = Kind::make(log_);
  std::unique_ptr<RankRig> rig_;
};

using BothExecutors = ::testing::Types<SteppedKind, ThreadKind>;
class KindNames {
 public:
  template <class T>
  static std::string GetName(int) {
    return std::is_same_v<T, SteppedKind> ? "Stepped" : "Threads";
  }
};
TYPED_TEST_SUITE(WorkerOn, BothExecutors, KindNames);

// --- places
// -----------------------------------------------------------------------------------------

TYPED_TEST(WorkerOn, CopiesBlocksBetweenEngineHostAndDisk) {
  for (uint32_t i = 0; i < 4; ++i) this->rig().fill(i, 100 + i);
  const OpResult stored = this->run(copy(1, kEngine, ids({0, 1, 2, 3}), kHost, ids({4, 7, 0, 1})));
  EXPECT_EQ(stored.outcome, Outcome::kSucceeded);
  EXPECT_EQ(stored.rank, RankId(0));
  EXPECT_EQ(stored.bytes, 4 * kRigBlockBytes);
  EXPECT_THAT(stored.failed, IsEmpty());
  EXPECT_EQ(this->run(copy(2, kHost, ids({0, 4, 1, 7}), kDisk, ids({5, 2, 3, 0}))).bytes,
            4 * kRigBlockBytes);
  EXPECT_EQ(this->run(copy(3, kDisk, ids({5, 2, 3, 0}), kEngine, ids({10, 11, 12, 13}))).bytes,
            4 * kRigBlockBytes);
  EXPECT_TRUE(this->rig().holds(10, 102));
  EXPECT_TRUE(this->rig().holds(11, 100));
  EXPECT_TRUE(this->rig().holds(12, 103));
  EXPECT_TRUE(this->rig().holds(13, 101));
  EXPECT_EQ(this->run(copy(4, kHost, ids({7}), kEngine, ids({20}))).outcome, Outcome::kSucceeded);
  EXPECT_TRUE(this->rig().holds(20, 101));
  EXPECT_EQ(this->worker().num_open(), 0U);
}

TYPED_TEST(WorkerOn, KeepsLayerGroupsApart) {
  this->use({.num_groups = 2});
  this->rig().fill(0, 1, 0);
  this->rig().fill(0, 2, 1);
  const Place engine{TierId::kG1, GroupId(1)};
  const Place host{TierId::kG2, GroupId(1)};
  this->run(copy(1, kEngine, ids({0}), kHost, ids({3})));
  this->run(copy(2, engine, ids({0}), host, ids({3})));
  this->run(copy(3, kHost, ids({3}), kEngine, ids({9})));
  this->run(copy(4, host, ids({3}), engine, ids({9})));
  EXPECT_TRUE(this->rig().holds(9, 1, 0));
  EXPECT_TRUE(this->rig().holds(9, 2, 1));
}

TEST(Worker, AttachTakesTheGroupsShapeAlone) {
  RecordingLogSink log(LogLevel::kError);
  SteppedExecutor executor(1, log);
  testing::RankRig rig(executor, log);
  EXPECT_EQ(rig.specs.front(), (PlaceSpec{.place = kEngine,
                                          .owner = Owner::kEngine,
                                          .spread = Spread::kSharded,
                                          .num_blocks = 32,
                                          .rank_block_bytes = kRigBlockBytes}));
  const auto refused = [&](Place place, LayoutConfig config) {
    config.num_blocks = 4;
    const DeviceMemory memory = rig.device->allocate(1 << 16, 64).value();
    const auto tensors = PhysicalLayout::fully_contiguous(config, MemoryRegion::of(memory)).value();
    const auto spec = rig.worker->attach(place, tensors);
    return spec ? Error(ErrorCode::kInternal, "it was taken") : spec.error();
  };
  LayoutConfig other_bytes = testing::kRigBlock;
  other_bytes.num_layers = 3;
  EXPECT_EQ(refused(kEngine, other_bytes).code(), ErrorCode::kInvalidArgument);
  LayoutConfig same_bytes = testing::kRigBlock;  // but another shape
  same_bytes.page_size = 8;
  same_bytes.inner_dim = 4;
  EXPECT_THAT(refused(kEngine, same_bytes).message(), HasSubstr("page_size"));
  EXPECT_THAT(refused(kEngine, testing::kRigBlock).message(), HasSubstr("already"));
  EXPECT_THAT(refused({TierId::kG1, GroupId(4)}, testing::kRigBlock).message(),
              HasSubstr("no layer group 4"));

  // The refused ones left nothing behind.
  rig.fill(0, 5);
  const CopyOp there = copy(1, kEngine, ids({0}), kHost, ids({0}));
  const CopyOp back =
      copy(2, kHost, ids({0}), kEngine, ids({1}), {.after = {Gate::op_done(OpId(1))}});
  rig.worker->submit({&there, 1});
  rig.worker->submit({&back, 1});
  EXPECT_EQ(rig.await(OpId(2)).outcome, Outcome::kSucceeded);
  EXPECT_TRUE(rig.holds(1, 5));
}

TEST(Worker, ProvideRefusesWhatItCannotMake) {
  RecordingLogSink log(LogLevel::kError);
  SteppedExecutor executor(1, log);
  RankRig rig(executor, log, {.host_blocks = 0, .disk_blocks = 0});
  const PlaceSpec good{.place = kHost,
                       .owner = Owner::kKvbm,
                       .spread = Spread::kSharded,
                       .num_blocks = 4,
                       .rank_block_bytes = kRigBlockBytes};
  const auto code = [&](PlaceSpec spec) {
    const Status status = rig.worker->provide(spec);
    return status ? ErrorCode::kInternal : status.error().code();
  };
  PlaceSpec spec = good;
  spec.spread = Spread::kReplicated;
  EXPECT_EQ(code(spec), ErrorCode::kUnsupported);
  spec = good;
  spec.rank_block_bytes += 1;
  EXPECT_EQ(code(spec), ErrorCode::kInvalidArgument);
  spec = good;
  spec.place.group = GroupId(9);
  EXPECT_EQ(code(spec), ErrorCode::kInvalidArgument);
  spec = good;
  spec.num_blocks = 0;
  EXPECT_EQ(code(spec), ErrorCode::kInvalidArgument);
  for (const TierId tier : {TierId::kG1, TierId::kG4}) {
    spec = good;
    spec.place.tier = tier;
    EXPECT_EQ(code(spec), ErrorCode::kUnsupported) << tier;
  }
  EXPECT_TRUE(rig.worker->provide(good));
  EXPECT_EQ(code(good), ErrorCode::kInvalidArgument);  // twice
}

TEST(Worker, ProvidesPinnedHostMemoryForADeviceThatTakesNoOther) {
  RecordingLogSink log;
  ThreadExecutor executor(log);
  testing::RankRig rig(executor, log);
  const auto pinner = std::make_shared<testing::PinnerDouble>();
  auto worker = Worker::create({.rank = RankId(0),
                                .worker = WorkerId(0),
                                .model = testing::rig_model(1),
                                .disk_directory = "",
                                .pinner = pinner},
                               *rig.device, nullptr, executor, log);
  ASSERT_TRUE(worker);
  PlaceSpec host{.place = kHost,
                 .owner = Owner::kKvbm,
                 .spread = Spread::kSharded,
                 .num_blocks = 4,
                 .rank_block_bytes = kRigBlockBytes};
  ASSERT_TRUE((*worker)->provide(host));
  ASSERT_EQ(pinner->pinned().size(), 1u);
  EXPECT_EQ(pinner->pinned()[0].size_bytes, 4 * kRigBlockBytes);
  worker->reset();
  EXPECT_TRUE(pinner->pinned().empty());

  pinner->refuse_from = 0;
  worker = Worker::create({.rank = RankId(0),
                           .worker = WorkerId(0),
                           .model = testing::rig_model(1),
                           .disk_directory = "",
                           .pinner = pinner},
                          *rig.device, nullptr, executor, log);
  ASSERT_TRUE(worker);
  const Status refused = (*worker)->provide(host);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), ErrorCode::kDevice);
}

/// Pins one slice, and the others with the outcome and at the time that the test says.
class LatePinner final : public HostPinner {
 public:
  explicit LatePinner(std::shared_future<Status> rest) : rest_(std::move(rest)) {}
  Status pin(std::byte* /*data*/, uint64_t /*size_bytes*/) override {
    return num_pinned_++ == 0 ? Status() : rest_.get();
  }
  void unpin(std::byte* /*data*/, uint64_t /*size_bytes*/) noexcept override {}
  [[nodiscard]] std::optional<uint32_t> numa_node() const override { return std::nullopt; }

 private:
  const std::shared_future<Status> rest_;
  std::atomic<int> num_pinned_{0};
};

/// Of this process.
size_t threads_named(const std::string& name) {
  size_t count = 0;
  for (const auto& thread : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string found;
    std::ifstream(thread.path() / "comm") >> found;
    count += found.starts_with(name) ? 1 : 0;
  }
  return count;
}

constexpr uint32_t kBlocksPerSlice = (uint32_t{2} << 20) / kRigBlockBytes;

TEST(Worker, ServesTheFirstHostBlocksBeforeTheLastArePinned) {
  RecordingLogSink log(LogLevel::kWarning);
  ThreadExecutor executor(log);
  std::promise<Status> rest;
  RankRig rig(executor, log,
              {.host_blocks = 3 * kBlocksPerSlice,
               .pinner = std::make_shared<LatePinner>(rest.get_future().share()),
               .pin_slice_bytes = kBlocksPerSlice * kRigBlockBytes});
  for (uint32_t i = 0; i < 4; ++i) rig.fill(i, 100 + i);
  const auto submit = [&](const CopyOp& op) { rig.worker->submit({&op, 1}); };
  submit(copy(1, kEngine, ids({0}), kHost, ids({kBlocksPerSlice - 1})));
  submit(copy(2, kEngine, ids({1, 2}), kHost, ids({kBlocksPerSlice, 0})));
  submit(copy(3, kEngine, ids({3}), kHost, ids({3 * kBlocksPerSlice - 1})));
  submit(copy(4, kHost, ids({kBlocksPerSlice - 1}), kEngine, ids({10}),
              {.after = {Gate::op_done(OpId(1))}}));
  EXPECT_EQ(rig.await(OpId(4)).outcome, Outcome::kSucceeded);
  EXPECT_TRUE(rig.holds(10, 100));
  EXPECT_FALSE(rig.results.find(OpId(2)));
  EXPECT_FALSE(rig.results.find(OpId(3)));
  EXPECT_GT(threads_named("kvbm-pin"), 0U);
  rest.set_value({});
  EXPECT_EQ(rig.await(OpId(2)).outcome, Outcome::kSucceeded);
  EXPECT_EQ(rig.await(OpId(3)).outcome, Outcome::kSucceeded);
  submit(copy(5, kHost, ids({3 * kBlocksPerSlice - 1, kBlocksPerSlice}), kEngine, ids({11, 12})));
  EXPECT_EQ(rig.await(OpId(5)).outcome, Outcome::kSucceeded);
  EXPECT_TRUE(rig.holds(11, 103));
  EXPECT_TRUE(rig.holds(12, 101));
  EXPECT_THAT(log.messages(LogLevel::kError), IsEmpty());
  // An operation has found that there is nothing more to pin.
  const TimePoint late = executor.clock().now() + seconds(10);
  while (threads_named("kvbm-pin") > 0 && executor.clock().now() < late) std::this_thread::yield();
  EXPECT_EQ(threads_named("kvbm-pin"), 0U);
}

TEST(Worker, WhatWaitsToBePinnedTakesNoTurnAndMayBeCancelled) {
  NullLogSink log;
  ThreadExecutor executor(log);
  std::promise<Status> rest;
  RankRig rig(executor, log,
              {.host_blocks = 3 * kBlocksPerSlice,
               .max_running_operations = 1,
               .pinner = std::make_shared<LatePinner>(rest.get_future().share()),
               .pin_slice_bytes = kBlocksPerSlice * kRigBlockBytes});
  rig.fill(0, 100);
  const auto submit = [&](const CopyOp& op) { rig.worker->submit({&op, 1}); };
  submit(copy(1, kEngine, ids({0}), kHost, ids({kBlocksPerSlice})));
  submit(copy(2, kEngine, ids({0}), kHost, ids({2 * kBlocksPerSlice})));
  submit(copy(3, kEngine, ids({0}), kHost, ids({0})));
  EXPECT_EQ(rig.await(OpId(3)).outcome, Outcome::kSucceeded);
  const OpId second(2);
  rig.worker->cancel({&second, 1});
  EXPECT_EQ(rig.await(OpId(2)).outcome, Outcome::kCancelled);
  // Nor does the end of the worker wait for pinning.
  EXPECT_TRUE(rig.worker->stop(executor.clock().now() + seconds(10)));
  EXPECT_EQ(rig.await(OpId(1)).outcome, Outcome::kCancelled);
  rest.set_value({});
}

TEST(Worker, WhatCannotBePinnedIsNotTouchedAndTheOtherBlocksAreServed) {
  RecordingLogSink log(LogLevel::kWarning);
  ThreadExecutor executor(log);
  std::promise<Status> rest;
  RankRig rig(executor, log,
              {.host_blocks = 3 * kBlocksPerSlice,
               .pinner = std::make_shared<LatePinner>(rest.get_future().share()),
               .pin_slice_bytes = kBlocksPerSlice * kRigBlockBytes});
  const auto submit = [&](const CopyOp& op) { rig.worker->submit({&op, 1}); };
  submit(copy(1, kEngine, ids({0}), kHost, ids({2 * kBlocksPerSlice})));
  const auto shrunk = std::make_shared<std::vector<ShrunkPlace>>();
  const auto cancelled_before = std::make_shared<bool>();
  rig.worker->on_shrunk([&rig, shrunk, cancelled_before](const ShrunkPlace& place) {
    shrunk->push_back(place);
    *cancelled_before = rig.results.find(OpId(1)).has_value();
  });
  EXPECT_THAT(*shrunk, IsEmpty());
  rest.set_value(make_error(ErrorCode::kExhausted, "no more may be locked"));
  // Failed, a leader would take a block that came from disk for one that cannot be read.
  EXPECT_EQ(rig.await(OpId(1)).outcome, Outcome::kCancelled);
  const ShrunkPlace to_a_slice{RankId(0), kHost, kBlocksPerSlice};
  EXPECT_THAT(*shrunk, ElementsAre(to_a_slice));
  EXPECT_FALSE(*cancelled_before);
  submit(copy(2, kEngine, ids({0}), kHost, ids({kBlocksPerSlice})));
  EXPECT_EQ(rig.await(OpId(2)).outcome, Outcome::kCancelled);
  EXPECT_THAT(log.messages(LogLevel::kWarning),
              Contains(HasSubstr("operation 2 is cancelled on rank 0, its blocks: ")));
  submit(copy(3, kEngine, ids({0}), kHost, ids({kBlocksPerSlice - 1})));
  EXPECT_EQ(rig.await(OpId(3)).outcome, Outcome::kSucceeded);
  EXPECT_THAT(log.messages(LogLevel::kError),
              ElementsAre(AllOf(HasSubstr("no more than 2 MiB of host memory could be pinned: "
                                          "exhausted: no more may be locked"),
                                HasSubstr("goes on with 8192 of 24576 blocks"),
                                HasSubstr("free memory of the machine"))));
  // Who comes later hears of it too, and nobody again.
  std::vector<ShrunkPlace> later;
  rig.worker->on_shrunk([&later](const ShrunkPlace& place) { later.push_back(place); });
  EXPECT_THAT(later, ElementsAre(to_a_slice));
  EXPECT_EQ(shrunk->size(), 1U);
  rig.worker->on_shrunk(nullptr);
  const TimePoint late = executor.clock().now() + seconds(10);
  while (threads_named("kvbm-pin") > 0 && executor.clock().now() < late) std::this_thread::yield();
  EXPECT_EQ(threads_named("kvbm-pin"), 0U);
}

TEST(Worker, CreateRefusesAModelOrOptionsThatCannotWork) {
  RecordingLogSink log(LogLevel::kError);
  SteppedExecutor executor(1, log);
  testing::RankRig rig(executor, log);
  const auto code = [&](WorkerOptions options) {
    const auto worker =
        Worker::create(std::move(options), *rig.device, rig.files.get(), executor, log);
    return worker ? ErrorCode::kInternal : worker.error().code();
  };
  EXPECT_EQ(code({.rank = RankId(0), .worker = WorkerId(0), .model = {}, .disk_directory = {}}),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code({.rank = RankId(0),
                  .worker = WorkerId(0),
                  .model = testing::rig_model(1),
                  .disk_directory = {},
                  .max_running_operations = 0}),
            ErrorCode::kInvalidArgument);
}

TEST(Worker, WithoutAFileEngineHasNoDisk) {
  RecordingLogSink log;
  ThreadExecutor executor(log);
  testing::RankRig rig(executor, log);
  const auto worker = Worker::create({.rank = RankId(0),
                                      .worker = WorkerId(0),
                                      .model = testing::rig_model(1),
                                      .disk_directory = ""},
                                     *rig.device, nullptr, executor, log);
  ASSERT_TRUE(worker);
  const Status provided = (*worker)->provide({.place = {TierId::kG3, GroupId(0)},
                                              .owner = Owner::kKvbm,
                                              .spread = Spread::kSharded,
                                              .num_blocks = 4,
                                              .rank_block_bytes = kRigBlockBytes});
  ASSERT_FALSE(provided);
  EXPECT_EQ(provided.error().code(), ErrorCode::kUnsupported);
}

// --- failures
// ---------------------------------------------------------------------------------------

TYPED_TEST(WorkerOn, AFailedDiskReadNamesItsPositions) {
  for (uint32_t i = 0; i < 5; ++i) this->rig().fill(i, 100 + i);
  this->run(copy(1, kEngine, ids({0, 1, 2}), kDisk, ids({0, 1, 2}), {.first_tag = 50}));
  this->run(copy(2, kEngine, ids({3}), kDisk, ids({3}), {.first_tag = 90}));  // another block
  // Slot 3 holds something else, slot 4 was never written.
  const OpResult read = this->run(
      copy(3, kDisk, ids({0, 3, 2, 4}), kEngine, ids({10, 11, 12, 13}), {.first_tag = 50}));
  EXPECT_EQ(read.outcome, Outcome::kFailed);
  EXPECT_THAT(read.failed, ElementsAre(1, 3));
  EXPECT_EQ(read.bytes, 2 * kRigBlockBytes);
  EXPECT_TRUE(this->rig().holds(10, 100));
  EXPECT_TRUE(this->rig().holds(12, 102));
}

TYPED_TEST(WorkerOn, DirectFilesTakeWhateverMemoryThereIs) {
  this->use({.direct_io = DirectIo::kTry});
  for (uint32_t i = 0; i < 3; ++i) this->rig().fill(i, 100 + i);
  this->run(copy(1, kEngine, ids({0, 1, 2}), kHost, ids({0, 1, 2})));
  this->run(copy(2, kHost, ids({0, 1}), kDisk, ids({5, 6}), {.first_tag = 50}));
  this->run(copy(3, kEngine, ids({2}), kDisk, ids({7}), {.first_tag = 52}));
  this->run(copy(4, kDisk, ids({5, 6, 7}), kEngine, ids({10, 11, 12}), {.first_tag = 50}));
  for (uint32_t i = 0; i < 3; ++i) EXPECT_TRUE(this->rig().holds(10 + i, 100 + i));
}

TYPED_TEST(WorkerOn, AReadOfWhichNothingArrivedHasFailedAltogether) {
  const OpResult read = this->run(copy(1, kDisk, ids({0, 1}), kEngine, ids({10, 11})));
  EXPECT_EQ(read.outcome, Outcome::kFailed);
  EXPECT_THAT(read.failed, IsEmpty());
  EXPECT_EQ(read.bytes, 0U);
}

TYPED_TEST(WorkerOn, AnOperationThatMakesNoSenseIsRefusedUntouched) {
  EXPECT_EQ(this->run(copy(1, kEngine, ids({0, 1}), kHost, ids({0}))).outcome, Outcome::kCancelled);
  EXPECT_EQ(this->run(copy(2, kEngine, ids({0}), kHost, ids({8}))).outcome, Outcome::kCancelled);
  EXPECT_EQ(this->run(copy(3, kEngine, ids({0, 1}), kHost, ids({1, 1}))).outcome,
            Outcome::kCancelled);
  const OpResult unknown =
      this->run(copy(4, kEngine, ids({0}), {TierId::kG4, GroupId(0)}, ids({1})));
  EXPECT_EQ(unknown.outcome, Outcome::kCancelled);
  EXPECT_EQ(unknown.bytes, 0U);
  EXPECT_THAT(this->log_.messages(LogLevel::kError),
              ::testing::Contains(HasSubstr("a place that rank 0 does not have")));
  EXPECT_EQ(this->worker().num_open(), 0U);
}

TYPED_TEST(WorkerOn, AnOperationOfNoBlockSucceeds) {
  const OpResult result = this->run(copy(1, kEngine, {}, kHost, {}));
  EXPECT_EQ(result.outcome, Outcome::kSucceeded);
  EXPECT_EQ(result.bytes, 0U);
}

TYPED_TEST(WorkerOn, ACopyThatTheDeviceFailsIsFailedAltogether) {
  this->use({.faults = testing::DeviceFaults{.seed = 1, .copy_fails = 1}});
  const OpResult result = this->run(copy(1, kEngine, ids({0, 1}), kHost, ids({0, 1})));
  EXPECT_EQ(result.outcome, Outcome::kFailed);
  EXPECT_EQ(result.bytes, 0U);
  EXPECT_THAT(result.failed, IsEmpty());
}

TYPED_TEST(WorkerOn, ADeviceThatRefusesEverythingDoesNotUseUpTheStack) {
  this->use(
      {.max_running_operations = 1, .faults = testing::DeviceFaults{.seed = 1, .copy_refused = 1}});
  this->log_.set_level(LogLevel::kOff);
  constexpr uint64_t kMany = 30'000;
  std::vector<CopyOp> ops;
  for (uint64_t op = 1; op <= kMany; ++op) {
    ops.push_back(copy(op, kEngine, ids({0}), kHost, ids({0})));
  }
  this->worker().submit(ops);
  EXPECT_EQ(this->await(kMany).outcome, Outcome::kCancelled);
  EXPECT_EQ(this->worker().num_open(), 0U);
}

TYPED_TEST(WorkerOn, AnOperationThatIsSubmittedAgainWhileItIsOpenHasOneResult) {
  this->submit(copy(1, kEngine, ids({0}), kHost, ids({0}), {.after = {Gate::step_end(StepId(1))}}));
  this->submit(copy(1, kEngine, ids({0}), kHost, ids({0})));
  this->let_things_happen();
  EXPECT_FALSE(this->ended(1));
  EXPECT_THAT(this->log_.messages(LogLevel::kError), ElementsAre(HasSubstr("submitted again")));
  EXPECT_TRUE(this->worker().begin_step(plan(1), this->rig().compute));
  this->worker().end_step(this->rig().compute);
  EXPECT_EQ(this->await(1).outcome, Outcome::kSucceeded);
}

// --- gates
// ------------------------------------------------------------------------------------------

TYPED_TEST(WorkerOn, AStepGateOpensWhenTheComputeOfTheStepHasEnded) {
  EventSource kernel = this->rig().device->create_event();
  this->submit(copy(1, kEngine, ids({0}), kHost, ids({0}), {.after = {Gate::step_end(StepId(1))}}));
  this->let_things_happen();
  EXPECT_FALSE(this->ended(1));  // the step has not begun

  EXPECT_TRUE(this->worker().begin_step(plan(1), this->rig().compute));
  EXPECT_TRUE(this->rig().device->wait(this->rig().compute, kernel.event()));
  this->compute(0, 7);
  this->submit(copy(2, kEngine, ids({0}), kHost, ids({1}), {.after = {Gate::step_end(StepId(1))}}));
  this->worker().end_step(this->rig().compute);
  this->submit(copy(3, kEngine, ids({0}), kHost, ids({2}), {.after = {Gate::step_end(StepId(1))}}));
  this->let_things_happen();
  EXPECT_THAT(this->rig().results.all(), IsEmpty());  // the compute has not ended
  EXPECT_EQ(this->worker().num_open(), 3U);

  kernel.signal();
  for (const uint64_t op : {1, 2, 3}) EXPECT_EQ(this->await(op).outcome, Outcome::kSucceeded);
  this->run(copy(4, kHost, ids({0, 1, 2}), kEngine, ids({10, 11, 12})));
  for (const uint32_t block : {10U, 11U, 12U}) EXPECT_TRUE(this->rig().holds(block, 7));
}

TYPED_TEST(WorkerOn, ALayerGateOpensWhenTheLayerIsWrittenAtTheLatestWithTheStep) {
  EventSource kernel = this->rig().device->create_event();
  const auto gate = [](uint16_t layer) { return Gate::layer_end(StepId(1), LayerId(layer)); };
  EXPECT_TRUE(this->worker().begin_step(plan(1), this->rig().compute));
  this->submit(copy(1, kEngine, ids({0}), kHost, ids({0}), {.after = {gate(0)}}));
  this->submit(copy(2, kEngine, ids({0}), kHost, ids({1}), {.after = {gate(1)}}));
  this->submit(copy(3, kEngine, ids({0}), kHost, ids({2}), {.after = {gate(9)}}));  // never written
  this->compute(0, 7);
  this->worker().layer_written(LayerId(0), this->rig().compute);
  EXPECT_EQ(this->await(1).outcome, Outcome::kSucceeded);
  this->submit(copy(4, kEngine, ids({0}), kHost, ids({3}), {.after = {gate(0)}}));
  EXPECT_EQ(this->await(4).outcome, Outcome::kSucceeded);
  EXPECT_TRUE(this->rig().device->wait(this->rig().compute, kernel.event()));
  this->worker().layer_written(LayerId(1), this->rig().compute);
  this->let_things_happen();
  EXPECT_FALSE(this->ended(2));
  EXPECT_FALSE(this->ended(3));
  this->worker().end_step(this->rig().compute);
  this->let_things_happen();
  EXPECT_FALSE(this->ended(3));
  kernel.signal();
  this->await(2);
  this->await(3);
  this->submit(copy(5, kEngine, ids({0}), kHost, ids({4}), {.after = {gate(8)}}));
  EXPECT_EQ(this->await(5).outcome, Outcome::kSucceeded);
}

TYPED_TEST(WorkerOn, GatesOfThePastAreOpen) {
  const auto gated = [&](uint64_t op, Gate gate) {
    return this->run(copy(op, kEngine, ids({0}), kHost, ids({0}), {.after = {gate}})).outcome;
  };
  EXPECT_EQ(gated(1, Gate::step_end(StepId(0))), Outcome::kSucceeded);
  EXPECT_EQ(gated(2, Gate::layer_end(StepId(0), LayerId(3))), Outcome::kSucceeded);
  EXPECT_EQ(gated(3, Gate::op_done(OpId(1))), Outcome::kSucceeded);
  EXPECT_EQ(gated(4, Gate::op_done(OpId(2))), Outcome::kSucceeded);
  EXPECT_EQ(gated(5, Gate::op_done(OpId(5))), Outcome::kSucceeded);  // itself

  // The first step that a worker sees may be any; before it nothing is awaited.
  EXPECT_TRUE(this->worker().begin_step(plan(100), this->rig().compute));
  EXPECT_EQ(gated(6, Gate::step_end(StepId(50))), Outcome::kSucceeded);
  this->worker().end_step(this->rig().compute);
  for (uint64_t step = 101; step < 300; ++step) {
    EXPECT_TRUE(this->worker().begin_step(plan(step), this->rig().compute));
    this->worker().end_step(this->rig().compute);
  }
  // How a step ended is remembered for a while: what it wrote is not stored after that.
  EXPECT_EQ(gated(7, Gate::step_end(StepId(299 - 63))), Outcome::kSucceeded);
  EXPECT_EQ(gated(8, Gate::step_end(StepId(299 - 64))), Outcome::kFailed);
  EXPECT_EQ(gated(9, Gate::layer_end(StepId(100), LayerId(1))), Outcome::kFailed);

  // What is long past does not wait for what came much later.
  EventSource kernel = this->rig().device->create_event();
  EXPECT_TRUE(this->rig().device->wait(this->rig().compute, kernel.event()));
  EXPECT_TRUE(this->worker().begin_step(plan(300), this->rig().compute));
  this->worker().end_step(this->rig().compute);
  EXPECT_TRUE(this->worker().begin_step(plan(301), this->rig().compute));
  const Gate forgotten = Gate::step_end(StepId(100));
  const CopyOp onboard = copy(10, kHost, ids({0}), kEngine, ids({1}), {.after = {forgotten}});
  EXPECT_EQ(this->run(onboard).outcome, Outcome::kSucceeded);
  this->worker().end_step(this->rig().compute);
  kernel.signal();
}

TYPED_TEST(WorkerOn, WhatHasNotComeYetIsWaitedFor) {
  // The plan of a step overtakes what was sent by the channel before it.
  this->rig().fill(0, 7);
  this->run(copy(1, kEngine, ids({0}), kHost, ids({0})));
  StepPlan first = plan(1);
  first.loads = {copy(4, kHost, ids({1}), kEngine, ids({5}),
                      {.after = {Gate::op_done(OpId(3))}, .priority = Priority::kOnboard})};
  first.fences = {OpId(2)};
  EXPECT_TRUE(this->worker().begin_step(first, this->rig().compute));
  const Event fenced = this->rig().device->record(this->rig().compute);
  this->let_things_happen();
  EXPECT_FALSE(fenced.done());
  EXPECT_FALSE(this->ended(4));
  this->submit(copy(3, kHost, ids({0}), kHost, ids({1})));
  EXPECT_EQ(this->await(4).outcome, Outcome::kSucceeded);
  EXPECT_TRUE(this->rig().holds(5, 7));
  EXPECT_FALSE(fenced.done());
  this->submit(copy(2, kHost, ids({0}), kHost, ids({2})));
  EXPECT_TRUE(fenced.wait());
  this->worker().end_step(this->rig().compute);
}

TYPED_TEST(WorkerOn, StopEndsTheWaitForWhatWillNotCome) {
  StepPlan first = plan(1);
  first.fences = {OpId(9)};
  EXPECT_TRUE(this->worker().begin_step(first, this->rig().compute));
  const Event fenced = this->rig().device->record(this->rig().compute);
  this->submit(copy(1, kEngine, ids({0}), kHost, ids({0}), {.after = {Gate::op_done(OpId(8))}}));
  this->let_things_happen();
  EXPECT_FALSE(fenced.done());
  this->worker().end_step(this->rig().compute);
  EXPECT_TRUE(this->worker().stop());
  EXPECT_TRUE(fenced.wait());
  EXPECT_EQ(this->await(1).outcome, Outcome::kCancelled);
}

TYPED_TEST(WorkerOn, NothingWaitsForWhatWillNotComeOnceOnlyStepsBringOperations) {
  this->rig().fill(0, 7);
  EventSource kernel = this->rig().device->create_event();
  EXPECT_TRUE(this->rig().device->wait(this->rig().compute, kernel.event()));
  StepPlan first = plan(1);
  first.fences = {OpId(9)};
  first.stores = {
      copy(1, kEngine, ids({0}), kHost, ids({0}), {.after = {Gate::step_end(StepId(1))}})};
  EXPECT_TRUE(this->worker().begin_step(first, this->rig().compute));
  const Event fenced = this->rig().device->record(this->rig().compute);
  this->worker().end_step(this->rig().compute);
  this->submit(copy(2, kHost, ids({0}), kHost, ids({1}), {.after = {Gate::op_done(OpId(8))}}));
  this->submit(copy(3, kHost, ids({0}), kHost, ids({2}), {.after = {Gate::op_done(OpId(2))}}));
  this->let_things_happen();
  EXPECT_FALSE(this->ended(2));
  this->worker().expect_only_steps();
  EXPECT_EQ(this->await(2).outcome, Outcome::kCancelled);
  EXPECT_EQ(this->await(3).outcome, Outcome::kSucceeded);  // what it waited for has ended
  EXPECT_FALSE(this->ended(1));                            // waits for what comes
  kernel.signal();
  EXPECT_TRUE(fenced.wait());
  EXPECT_EQ(this->await(1).outcome, Outcome::kSucceeded);

  // Operations of one step may still wait for each other, and a fence for them.
  StepPlan second = plan(2);
  second.fences = {OpId(4), OpId(10)};
  second.stores = {copy(4, kHost, ids({0}), kHost, ids({3})),
                   copy(5, kHost, ids({3}), kHost, ids({4}), {.after = {Gate::op_done(OpId(4))}}),
                   copy(6, kHost, ids({0}), kHost, ids({5}), {.after = {Gate::op_done(OpId(10))}})};
  EXPECT_TRUE(this->worker().begin_step(second, this->rig().compute));
  EXPECT_TRUE(this->wait_for_compute());
  EXPECT_EQ(this->await(4).outcome, Outcome::kSucceeded);
  EXPECT_EQ(this->await(5).outcome, Outcome::kSucceeded);
  EXPECT_EQ(this->await(6).outcome, Outcome::kCancelled);
  this->worker().end_step(this->rig().compute);
  this->submit(copy(7, kHost, ids({0}), kHost, ids({6}), {.after = {Gate::op_done(OpId(11))}}));
  EXPECT_EQ(this->await(7).outcome, Outcome::kCancelled);
  EXPECT_EQ(this->worker().num_open(), 0U);
}

TYPED_TEST(WorkerOn, GatesOnStepsThatWereLeftOutOpenWithTheNextOne) {
  this->submit(copy(1, kEngine, ids({0}), kHost, ids({0}), {.after = {Gate::step_end(StepId(2))}}));
  this->submit(copy(2, kEngine, ids({0}), kHost, ids({1}), {.after = {Gate::step_end(StepId(7))}}));
  EventSource kernel = this->rig().device->create_event();
  EXPECT_TRUE(this->worker().begin_step(plan(5), this->rig().compute));  // 2 never was
  EXPECT_EQ(this->await(1).outcome, Outcome::kSucceeded);
  EXPECT_TRUE(this->rig().device->wait(this->rig().compute, kernel.event()));
  this->worker().end_step(this->rig().compute);
  this->let_things_happen();
  EXPECT_FALSE(this->ended(2));
  EXPECT_TRUE(this->worker().begin_step(plan(9), this->rig().compute));  // nor was 7
  this->submit(copy(3, kEngine, ids({0}), kHost, ids({2}), {.after = {Gate::step_end(StepId(8))}}));
  this->let_things_happen();
  EXPECT_FALSE(this->ended(2));  // what was before it has not ended
  EXPECT_FALSE(this->ended(3));
  kernel.signal();
  EXPECT_EQ(this->await(2).outcome, Outcome::kSucceeded);
  EXPECT_EQ(this->await(3).outcome, Outcome::kSucceeded);
  this->worker().end_step(this->rig().compute);
}

TYPED_TEST(WorkerOn, AnOperationGateOpensHoweverTheOperationEnds) {
  this->rig().fill(0, 7);
  const Gate later = Gate::step_end(StepId(1));
  this->submit(copy(1, kEngine, ids({0}), kHost, ids({0}), {.after = {later}}));
  this->submit(copy(2, kHost, ids({0}), kHost, ids({1}), {.after = {Gate::op_done(OpId(1))}}));
  this->submit(copy(3, kHost, ids({1}), kEngine, ids({1}), {.after = {Gate::op_done(OpId(2))}}));
  this->submit(copy(4, kEngine, ids({2}), kHost, ids({4}), {.after = {later}}));
  this->submit(copy(5, kEngine, ids({2}), kHost, ids({5}), {.after = {Gate::op_done(OpId(4))}}));
  this->submit(copy(6, kEngine, ids({2}), kHost, ids({99}), {.after = {later}}));  // will fail
  this->submit(copy(7, kEngine, ids({2}), kHost, ids({6}), {.after = {Gate::op_done(OpId(6))}}));
  this->let_things_happen();
  EXPECT_THAT(this->rig().results.all(), IsEmpty());
  const OpId cancelled(4);
  this->worker().cancel({&cancelled, 1});
  EXPECT_EQ(this->await(4).outcome, Outcome::kCancelled);
  EXPECT_EQ(this->await(5).outcome, Outcome::kSucceeded);
  EXPECT_TRUE(this->worker().begin_step(plan(1), this->rig().compute));
  this->worker().end_step(this->rig().compute);
  EXPECT_EQ(this->await(3).outcome, Outcome::kSucceeded);
  EXPECT_TRUE(this->rig().holds(1, 7));
  EXPECT_EQ(this->await(6).outcome, Outcome::kCancelled);
  EXPECT_EQ(this->await(7).outcome, Outcome::kSucceeded);
}

TYPED_TEST(WorkerOn, AnOperationWaitsForAllItsGates) {
  this->submit(copy(1, kEngine, ids({0}), kHost, ids({0}), {.after = {Gate::step_end(StepId(1))}}));
  this->submit(
      copy(2, kEngine, ids({0}), kHost, ids({1}),
           {.after = {Gate::op_done(OpId(1)), Gate::op_done(OpId(1)),
                      Gate::layer_end(StepId(2), LayerId(0)), Gate::step_end(StepId(1))}}));
  EXPECT_TRUE(this->worker().begin_step(plan(1), this->rig().compute));
  this->worker().end_step(this->rig().compute);
  this->await(1);
  this->let_things_happen();
  EXPECT_FALSE(this->ended(2));
  EXPECT_TRUE(this->worker().begin_step(plan(2), this->rig().compute));
  this->worker().layer_written(LayerId(0), this->rig().compute);
  EXPECT_EQ(this->await(2).outcome, Outcome::kSucceeded);
  this->worker().end_step(this->rig().compute);
}

TYPED_TEST(WorkerOn, ACopyBehindAFailedStepFails) {
  EXPECT_TRUE(this->worker().begin_step(plan(1), this->rig().compute));
  EXPECT_TRUE(this->rig().device->launch(this->rig().compute, []() -> Status {
    return make_error(ErrorCode::kDevice, "the kernel failed");
  }));
  this->submit(copy(1, kEngine, ids({0}), kHost, ids({0}), {.after = {Gate::step_end(StepId(1))}}));
  this->worker().end_step(this->rig().compute);
  EXPECT_EQ(this->await(1).outcome, Outcome::kFailed);
}

TYPED_TEST(WorkerOn, StepsComeInOrder) {
  const StreamRef compute = this->rig().compute;
  EXPECT_THROW(this->worker().end_step(compute), ContractViolation);
  EXPECT_THROW(this->worker().layer_written(LayerId(0), compute), ContractViolation);
  EXPECT_TRUE(this->worker().begin_step(plan(3), compute));
  EXPECT_THROW(this->worker().begin_step(plan(4), compute), ContractViolation);
  this->worker().end_step(compute);
  EXPECT_THROW(this->worker().begin_step(plan(3), compute), ContractViolation);
  EXPECT_THROW(this->worker().end_step(compute), ContractViolation);
  EXPECT_TRUE(this->worker().begin_step(plan(4), compute));
  this->worker().end_step(compute);
}

// --- fences and loads of a step
// -----------------------------------------------------------------------

TYPED_TEST(WorkerOn, AFenceKeepsTheComputeFromOverwritingWhatIsStillRead) {
  this->rig().fill(0, 7);
  EventSource before = this->rig().device->create_event();
  EXPECT_TRUE(this->worker().begin_step(plan(1), this->rig().compute));
  this->worker().end_step(this->rig().compute);
  const StreamRef other = this->rig().device->create_stream("other").value();
  // The store waits for a layer that somebody else's stream writes, so the compute could overtake
  // it.
  EXPECT_TRUE(this->worker().begin_step(plan(2), this->rig().compute));
  EXPECT_TRUE(this->rig().device->wait(other, before.event()));
  this->worker().layer_written(LayerId(0), other);
  this->submit(copy(1, kEngine, ids({0}), kHost, ids({0}),
                    {.after = {Gate::layer_end(StepId(2), LayerId(0))}}));
  this->worker().end_step(this->rig().compute);

  StepPlan next = plan(3);
  next.fences = {OpId(1)};
  EXPECT_TRUE(this->worker().begin_step(next, this->rig().compute));
  this->compute(0, 8);
  this->worker().end_step(this->rig().compute);
  this->let_things_happen();
  EXPECT_TRUE(this->rig().holds(0, 7));
  before.signal();
  EXPECT_EQ(this->await(1).outcome, Outcome::kSucceeded);
  EXPECT_TRUE(this->wait_for_compute());
  EXPECT_TRUE(this->rig().holds(0, 8));
  this->run(copy(2, kHost, ids({0}), kEngine, ids({5})));
  EXPECT_TRUE(this->rig().holds(5, 7));
}

TYPED_TEST(WorkerOn, AFenceOnACancelledOperationOpens) {
  this->submit(copy(1, kEngine, ids({0}), kHost, ids({0}), {.after = {Gate::step_end(StepId(9))}}));
  StepPlan first = plan(1);
  first.fences = {OpId(1)};
  first.cancels = {OpId(1)};
  EXPECT_TRUE(this->worker().begin_step(first, this->rig().compute));
  this->compute(0, 8);
  this->worker().end_step(this->rig().compute);
  EXPECT_TRUE(this->wait_for_compute());
  EXPECT_TRUE(this->rig().holds(0, 8));
  EXPECT_EQ(this->await(1).outcome, Outcome::kCancelled);
}

TYPED_TEST(WorkerOn, TheComputeWaitsForTheLoadsOfItsStep) {
  this->rig().fill(0, 7);
  this->run(copy(1, kEngine, ids({0}), kDisk, ids({0})));
  StepPlan first = plan(1);
  first.loads = {copy(2, kDisk, ids({0}), kEngine, ids({5}), {.priority = Priority::kOnboard})};
  first.stores = {
      copy(3, kEngine, ids({6}), kHost, ids({1}), {.after = {Gate::step_end(StepId(1))}})};
  EXPECT_TRUE(this->worker().begin_step(first, this->rig().compute));
  EXPECT_TRUE(this->worker().layer_needed(LayerId(0), this->rig().compute));
  EXPECT_TRUE(this->rig().device->launch(this->rig().compute, [this]() -> Status {
    // The kernel: block 6 becomes what block 5 is.
    const auto from = this->rig().engine_block(5);
    std::copy(from.begin(), from.end(), this->rig().engine_block(6).begin());
    return {};
  }));
  EXPECT_TRUE(this->worker().layer_needed(LayerId(1), this->rig().compute));
  this->worker().end_step(this->rig().compute);
  EXPECT_EQ(this->await(2).outcome, Outcome::kSucceeded);
  EXPECT_EQ(this->await(3).outcome, Outcome::kSucceeded);
  EXPECT_TRUE(this->rig().holds(6, 7));
  this->run(copy(4, kHost, ids({1}), kEngine, ids({9})));
  EXPECT_TRUE(this->rig().holds(9, 7));
}

TYPED_TEST(WorkerOn, AStepFailsWithAnyOfItsEvents) {
  const auto launch = [this](Status outcome) {
    EXPECT_TRUE(this->rig().device->launch(this->rig().compute, [outcome] { return outcome; }));
  };
  const Gate first = Gate::step_end(StepId(1));
  EXPECT_TRUE(this->worker().begin_step(plan(1), this->rig().compute));
  this->submit(copy(1, kEngine, ids({0}), kHost, ids({0}), {.after = {first}}));
  launch(make_error(ErrorCode::kDevice, "the kernel failed"));
  const Event failed = this->worker().record(this->rig().compute);
  launch({});
  this->worker().layer_written(LayerId(0), this->rig().compute);
  launch({});
  this->worker().end_step(this->rig().compute);
  EXPECT_EQ(this->await(1).outcome, Outcome::kFailed);
  EXPECT_FALSE(failed.status());
  const auto store = [this](uint64_t op, Gate gate) {
    return this->run(copy(op, kEngine, ids({0}), kHost, ids({0}), {.after = {gate}})).outcome;
  };
  EXPECT_EQ(store(2, first), Outcome::kFailed);
  EXPECT_EQ(store(3, Gate::layer_end(StepId(1), LayerId(0))), Outcome::kFailed);
  EXPECT_TRUE(this->worker().begin_step(plan(2), this->rig().compute));
  launch({});
  this->worker().end_step(this->rig().compute);
  EXPECT_EQ(store(4, Gate::step_end(StepId(2))), Outcome::kSucceeded);
}

TYPED_TEST(WorkerOn, ALoadWaitsForAStepThatFailsAndGoesOn) {
  this->rig().fill(0, 7);
  this->run(copy(1, kEngine, ids({0}), kDisk, ids({0})));
  EXPECT_TRUE(this->worker().begin_step(plan(1), this->rig().compute));
  EXPECT_TRUE(this->rig().device->launch(
      this->rig().compute, [] { return make_error(ErrorCode::kDevice, "the kernel failed"); }));
  this->worker().end_step(this->rig().compute);
  const OpResult load = this->run(
      copy(2, kDisk, ids({0}), kEngine, ids({5}), {.after = {Gate::step_end(StepId(1))}}));
  EXPECT_EQ(load.outcome, Outcome::kSucceeded);
  EXPECT_TRUE(this->rig().holds(5, 7));
}

TYPED_TEST(WorkerOn, EveryStreamMayWaitForTheLoadsOfAStep) {
  const StreamRef other = this->rig().device->create_stream("other").value();
  StepPlan first = plan(1);
  first.loads = {copy(1, kHost, ids({0}), kEngine, ids({5}),
                      {.after = {Gate::step_end(StepId(2))}, .priority = Priority::kOnboard})};
  EXPECT_TRUE(this->worker().begin_step(first, this->rig().compute));
  EXPECT_TRUE(this->worker().layer_needed(LayerId(0), this->rig().compute));
  EXPECT_TRUE(this->worker().layer_needed(LayerId(1), other));
  const Event on_compute = this->rig().device->record(this->rig().compute);
  const Event on_other = this->rig().device->record(other);
  this->let_things_happen();
  EXPECT_FALSE(on_compute.done());
  EXPECT_FALSE(on_other.done());
  const OpId load(1);
  this->worker().cancel({&load, 1});
  EXPECT_TRUE(on_compute.wait());
  EXPECT_TRUE(on_other.wait());
  this->worker().end_step(this->rig().compute);
}

TYPED_TEST(WorkerOn, AStoreThatWaitsForItsStepTakesNoTurnFromALoad) {
  this->use({.max_running_operations = 1});
  this->rig().fill(0, 7);
  this->run(copy(1, kEngine, ids({0}), kHost, ids({0})));
  EventSource kernel = this->rig().device->create_event();
  EXPECT_TRUE(this->worker().begin_step(plan(1), this->rig().compute));
  EXPECT_TRUE(this->rig().device->wait(this->rig().compute, kernel.event()));
  this->worker().end_step(this->rig().compute);
  this->submit(copy(2, kEngine, ids({1}), kHost, ids({1}), {.after = {Gate::step_end(StepId(1))}}));
  this->let_things_happen();
  EXPECT_EQ(this->run(copy(3, kHost, ids({0}), kEngine, ids({5}))).outcome, Outcome::kSucceeded);
  EXPECT_FALSE(this->ended(2));
  // What waits for an event has not started.
  const OpId waiting(2);
  this->worker().cancel({&waiting, 1});
  EXPECT_EQ(this->await(2).outcome, Outcome::kCancelled);
  kernel.signal();
}

TYPED_TEST(WorkerOn, StoresOfAStepAndALoadThatTheStepWaitsForDoNotBlockEachOther) {
  // Store 2 waits for the compute of step 2, which waits for load 4, which waits for store 3, which
  // waits for store 1. With one turn for all of them, store 2 must not take it before the others.
  this->use({.max_running_operations = 1});
  this->rig().fill(0, 7);
  this->rig().fill(1, 8);
  this->run(copy(100, kEngine, ids({0}), kHost, ids({0})));
  EventSource kernel = this->rig().device->create_event();
  EXPECT_TRUE(this->worker().begin_step(plan(1), this->rig().compute));
  EXPECT_TRUE(this->rig().device->wait(this->rig().compute, kernel.event()));
  this->worker().end_step(this->rig().compute);
  this->submit(copy(1, kEngine, ids({3}), kHost, ids({1}), {.after = {Gate::step_end(StepId(1))}}));
  this->submit(copy(2, kEngine, ids({2}), kHost, ids({2}),
                    {.after = {Gate::layer_end(StepId(2), LayerId(0))}}));
  this->submit(copy(3, kEngine, ids({1}), kHost, ids({3}), {.after = {Gate::op_done(OpId(1))}}));
  StepPlan second = plan(2);
  second.loads = {copy(4, kHost, ids({0}), kEngine, ids({1}),
                       {.after = {Gate::op_done(OpId(3))}, .priority = Priority::kOnboard})};
  EXPECT_TRUE(this->worker().begin_step(second, this->rig().compute));
  EXPECT_TRUE(this->worker().layer_needed(LayerId(0), this->rig().compute));
  this->compute(2, 9);
  this->worker().layer_written(LayerId(0), this->rig().compute);
  this->worker().end_step(this->rig().compute);
  this->let_things_happen();
  kernel.signal();
  EXPECT_EQ(this->await(4).outcome, Outcome::kSucceeded);
  EXPECT_EQ(this->await(2).outcome, Outcome::kSucceeded);
  EXPECT_TRUE(this->rig().holds(1, 7));
  this->run(copy(5, kHost, ids({2, 3}), kEngine, ids({10, 11})));
  EXPECT_TRUE(this->rig().holds(10, 9));
  EXPECT_TRUE(this->rig().holds(11, 8));
}

TYPED_TEST(WorkerOn, ALoadOfAPlanWaitsForAStoreOfTheSamePlan) {
  this->rig().fill(0, 7);
  this->rig().fill(1, 8);
  this->run(copy(100, kEngine, ids({0}), kHost, ids({0})));
  StepPlan first = plan(1);
  first.loads = {copy(2, kHost, ids({0}), kEngine, ids({1}),
                      {.after = {Gate::op_done(OpId(1))}, .priority = Priority::kOnboard})};
  first.stores = {copy(1, kEngine, ids({1}), kDisk, ids({1}))};
  EXPECT_TRUE(this->worker().begin_step(first, this->rig().compute));
  this->worker().end_step(this->rig().compute);
  EXPECT_EQ(this->await(2).outcome, Outcome::kSucceeded);
  EXPECT_THAT(this->rig().results.order(), ElementsAre(OpId(100), OpId(1), OpId(2)));
  EXPECT_TRUE(this->rig().holds(1, 7));
  this->run(copy(3, kDisk, ids({1}), kEngine, ids({10})));
  EXPECT_TRUE(this->rig().holds(10, 8));
}

// --- loads layer by layer
// -----------------------------------------------------------------------------

/// A host block with key 7, and a device that holds back each copy of the load of it.
template <class Kind>
class LoadByLayersOn : public WorkerOn<Kind> {
 protected:
  static constexpr size_t kLayerBytes = kRigBlockBytes / 2;

  void prepare(RankRigOptions options = {}) {
    options.wrap_device = [this](Device& inner) {
      auto hooked = std::make_unique<HookedDevice>(inner);
      device_ = hooked.get();
      return hooked;
    };
    this->use(options);
    for (uint16_t group = 0; group < options.num_groups; ++group) {
      this->rig().fill(0, 7 + group, group);
      const GroupId id(group);
      this->run(copy(100U + group, {TierId::kG1, id}, ids({0}), {TierId::kG2, id}, ids({0})));
    }
    hold();
  }
  void hold() {
    held_.clear();
    for (size_t i = 0; i < 4; ++i) held_.push_back(this->rig().device->create_event());
    device_->hook([this](StreamRef stream, size_t number) {
      return this->rig().device->wait(stream, held_.at(number).event());
    });
  }
  void let_all_go() {
    for (EventSource& held : held_) static_cast<void>(held.try_signal());
  }
  static CopyOp load(uint64_t op, uint16_t group = 0, uint32_t to = 5) {
    const GroupId id(group);
    return copy(op, {TierId::kG2, id}, ids({0}), {TierId::kG1, id}, ids({to}),
                {.priority = Priority::kOnboard});
  }
  void begin(uint64_t step, std::vector<CopyOp> loads) {
    StepPlan begun = plan(step);
    begun.loads = std::move(loads);
    EXPECT_TRUE(this->worker().begin_step(begun, this->rig().compute));
  }
  /// Of the compute, as it is after the layer's hook.
  Event needs(uint16_t layer) {
    EXPECT_TRUE(this->worker().layer_needed(LayerId(layer), this->rig().compute));
    return this->rig().device->record(this->rig().compute);
  }
  bool holds_layer(uint32_t block, size_t layer, uint64_t key) {
    const auto found = this->rig().engine_block(block).subspan(layer * kLayerBytes, kLayerBytes);
    const auto whole = testing::pattern_block(testing::kRigBlock, key);
    return std::equal(found.begin(), found.end(),
                      whole.begin() + static_cast<ptrdiff_t>(layer * kLayerBytes));
  }
  Status soon(const Event& event) {
    return event.wait(this->executor_->clock().now() + seconds(10));
  }

  HookedDevice* device_ = nullptr;
  std::vector<EventSource> held_;
};
TYPED_TEST_SUITE(LoadByLayersOn, BothExecutors, KindNames);

TYPED_TEST(LoadByLayersOn, ALayerWaitsForItsPartOfALoadAndNoMore) {
  this->prepare();
  this->begin(1, {this->load(1)});
  const auto first = this->worker().layer_needed(LayerId(0), this->rig().compute);
  ASSERT_TRUE(first);
  EXPECT_TRUE(first->waits);
  EXPECT_TRUE(first->more);
  const Event before_first = this->rig().device->record(this->rig().compute);
  this->let_things_happen();
  EXPECT_FALSE(before_first.done());
  this->held_[0].signal();
  EXPECT_TRUE(this->soon(before_first));
  EXPECT_TRUE(this->holds_layer(5, 0, 7));
  EXPECT_FALSE(this->holds_layer(5, 1, 7));
  EXPECT_FALSE(this->ended(1));

  const auto again = this->worker().layer_needed(LayerId(0), this->rig().compute);
  ASSERT_TRUE(again);
  EXPECT_FALSE(again->waits);
  EXPECT_TRUE(again->more);
  const auto second = this->worker().layer_needed(LayerId(1), this->rig().compute);
  ASSERT_TRUE(second);
  EXPECT_TRUE(second->waits);
  EXPECT_FALSE(second->more);
  const Event before_second = this->rig().device->record(this->rig().compute);
  this->let_things_happen();
  EXPECT_FALSE(before_second.done());
  this->held_[1].signal();
  EXPECT_TRUE(this->soon(before_second));
  const OpResult loaded = this->await(1);
  EXPECT_EQ(loaded.outcome, Outcome::kSucceeded);
  EXPECT_EQ(loaded.bytes, kRigBlockBytes);
  EXPECT_TRUE(this->rig().holds(5, 7));
  this->worker().end_step(this->rig().compute);
}

TYPED_TEST(LoadByLayersOn, PartsComeInTheOrderOfTheLayers) {
  this->prepare();
  this->begin(1, {this->load(1)});
  const Event second = this->needs(1);
  this->held_[1].signal();
  this->let_things_happen();
  EXPECT_FALSE(second.done());
  EXPECT_FALSE(this->holds_layer(5, 1, 7));
  this->held_[0].signal();
  EXPECT_TRUE(this->soon(second));
  EXPECT_TRUE(this->rig().holds(5, 7));
  this->worker().end_step(this->rig().compute);
}

TYPED_TEST(LoadByLayersOn, ALaterPartThatFailsFailsTheWholeLoad) {
  this->prepare();
  std::optional<Event> awaited;
  std::atomic<bool> observed = false;
  this->worker().observe_results([&](const OpResult& result) {
    if (result.op != OpId(1)) return;
    observed = result.outcome == Outcome::kFailed;
    EXPECT_FALSE(awaited->done());  // the compute is still held back
  });
  this->begin(1, {this->load(1)});
  const Event first = this->needs(0);
  this->held_[0].signal();
  EXPECT_TRUE(this->soon(first));
  this->device_->hook_waits([&](const Event& event) { awaited = event; });
  const Event second = this->needs(1);
  ASSERT_TRUE(awaited);
  this->device_->hook_waits(nullptr);
  this->held_[1].signal(make_error(ErrorCode::kDevice, "the second part failed"));
  EXPECT_TRUE(this->soon(second));  // goes on, and whoever looks knows by now
  EXPECT_TRUE(observed);
  const OpResult failed = this->await(1);
  EXPECT_EQ(failed.outcome, Outcome::kFailed);
  EXPECT_EQ(failed.bytes, 0U);
  EXPECT_THAT(failed.failed, IsEmpty());  // all blocks
  this->worker().end_step(this->rig().compute);
  this->worker().observe_results(nullptr);
}

TYPED_TEST(LoadByLayersOn, NothingIsCopiedAfterAPartThatFailed) {
  this->prepare();
  this->begin(1, {this->load(1)});
  const Event second = this->needs(1);
  this->held_[0].signal(make_error(ErrorCode::kDevice, "the first part failed"));
  this->held_[1].signal();
  EXPECT_TRUE(this->soon(second));
  EXPECT_EQ(this->await(1).outcome, Outcome::kFailed);
  EXPECT_FALSE(this->holds_layer(5, 0, 7));
  EXPECT_FALSE(this->holds_layer(5, 1, 7));
  this->worker().end_step(this->rig().compute);
}

TYPED_TEST(LoadByLayersOn, APartThatIsRefusedEndsTheLoadAfterThoseThatGoOn) {
  this->prepare();
  this->device_->hook([this](StreamRef stream, size_t number) -> Status {
    if (number > 0) return make_error(ErrorCode::kDevice, "no more copies");
    return this->rig().device->wait(stream, this->held_[0].event());
  });
  this->begin(1, {this->load(1)});
  const Event second = this->needs(1);
  this->let_things_happen();
  EXPECT_FALSE(this->ended(1));
  this->held_[0].signal();
  EXPECT_TRUE(this->soon(second));
  EXPECT_EQ(this->await(1).outcome, Outcome::kFailed);
  this->worker().end_step(this->rig().compute);

  // The first one refused: nothing was touched.
  this->device_->hook(
      [](StreamRef, size_t) -> Status { return make_error(ErrorCode::kDevice, "no copies"); });
  this->begin(2, {this->load(2)});
  EXPECT_TRUE(this->soon(this->needs(1)));
  EXPECT_EQ(this->await(2).outcome, Outcome::kCancelled);
  this->worker().end_step(this->rig().compute);
}

TYPED_TEST(LoadByLayersOn, ALayerIsThatOfEveryGroup) {
  this->prepare({.num_groups = 2});
  this->begin(1, {this->load(1, 0), this->load(2, 1)});
  const Event first = this->needs(0);
  this->held_[0].signal();
  this->let_things_happen();
  EXPECT_FALSE(first.done());
  this->held_[2].signal();  // of the second load, the first part
  EXPECT_TRUE(this->soon(first));
  EXPECT_FALSE(this->ended(1));
  EXPECT_FALSE(this->ended(2));
  const Event second = this->needs(1);
  this->held_[1].signal();
  this->let_things_happen();
  EXPECT_FALSE(second.done());
  this->held_[3].signal();
  EXPECT_TRUE(this->soon(second));
  EXPECT_TRUE(this->rig().holds(5, 7, 0));
  EXPECT_TRUE(this->rig().holds(5, 8, 1));
  this->worker().end_step(this->rig().compute);
}

TYPED_TEST(LoadByLayersOn, AllLayersWaitForTheWhole) {
  this->prepare();
  this->begin(1, {this->load(1)});
  const auto all = this->worker().all_layers_needed(this->rig().compute);
  ASSERT_TRUE(all);
  EXPECT_TRUE(all->waits);
  EXPECT_FALSE(all->more);
  const Event after = this->rig().device->record(this->rig().compute);
  this->held_[0].signal();
  this->let_things_happen();
  EXPECT_FALSE(after.done());
  this->held_[1].signal();
  EXPECT_TRUE(this->soon(after));
  EXPECT_TRUE(this->rig().holds(5, 7));
  this->worker().end_step(this->rig().compute);
}

TYPED_TEST(LoadByLayersOn, TheNextStepWaitsForWhatNoLayerHasAskedFor) {
  this->prepare();
  this->begin(1, {this->load(1)});
  const Event first = this->needs(0);
  this->held_[0].signal();
  EXPECT_TRUE(this->soon(first));
  this->worker().end_step(this->rig().compute);
  this->begin(2, {});
  const Event in_second = this->rig().device->record(this->rig().compute);
  this->let_things_happen();
  EXPECT_FALSE(in_second.done());
  this->held_[1].signal();
  EXPECT_TRUE(this->soon(in_second));
  EXPECT_TRUE(this->rig().holds(5, 7));
  this->worker().end_step(this->rig().compute);
}

TYPED_TEST(LoadByLayersOn, AFenceOnALoadWaitsForAllPartsOfIt) {
  this->prepare();
  this->begin(1, {this->load(1)});
  EXPECT_TRUE(
      this->worker().all_layers_needed(this->rig().device->create_stream("another").value()));
  this->worker().end_step(this->rig().compute);
  const StreamRef compute = this->rig().device->create_stream("fenced").value();
  StepPlan second = plan(2);
  second.fences = {OpId(1)};
  EXPECT_TRUE(this->worker().begin_step(second, compute));
  const Event fenced = this->rig().device->record(compute);
  this->held_[0].signal();
  this->let_things_happen();
  EXPECT_FALSE(fenced.done());
  this->held_[1].signal();
  EXPECT_TRUE(this->soon(fenced));
  this->worker().end_step(compute);
}

TYPED_TEST(LoadByLayersOn, ACancelledLoadLetsEveryLayerGo) {
  this->prepare();
  CopyOp gated = this->load(1);
  gated.after = {Gate::step_end(StepId(2))};
  this->begin(1, {gated});
  const Event first = this->needs(0);
  const Event second = this->needs(1);
  this->let_things_happen();
  EXPECT_FALSE(first.done());
  const OpId load(1);
  this->worker().cancel({&load, 1});
  EXPECT_TRUE(this->soon(first));
  EXPECT_TRUE(this->soon(second));
  EXPECT_EQ(this->await(1).outcome, Outcome::kCancelled);
  EXPECT_EQ(this->device_->num_copies(), 0U);
  this->worker().end_step(this->rig().compute);
}

TYPED_TEST(LoadByLayersOn, WhatIsNotWorthAPartGoesAsAWhole) {
  const auto copies = [this](const RankRigOptions& options, bool in_step) {
    this->prepare(options);
    this->let_all_go();
    if (in_step) {
      this->begin(1, {this->load(1)});
      this->worker().end_step(this->rig().compute);
    } else {
      this->submit(this->load(1));
    }
    EXPECT_EQ(this->await(1).outcome, Outcome::kSucceeded);
    EXPECT_TRUE(this->rig().holds(5, 7));
    return this->device_->num_copies();
  };
  EXPECT_EQ(copies({}, true), 2U);
  EXPECT_EQ(copies({}, false), 1U);  // no layer can ask for it
  EXPECT_EQ(copies({.min_load_part_bytes = kRigBlockBytes / 2}, true), 1U);
  EXPECT_EQ(copies({.pieces_per_layer = 2}, true), 1U);  // a model of one layer
  EXPECT_EQ(copies({.pieces_per_layer = 0}, true), 1U);  // of nobody knows how many
}

TYPED_TEST(LoadByLayersOn, AHookOfAStepWithoutLoadsCostsNothing) {
  this->prepare();
  this->let_all_go();
  this->begin(1, {});
  const size_t num_waits = this->device_->num_waits();
  const testing::AllocationMeter meter;
  for (uint16_t layer = 0; layer < 80; ++layer) {
    const auto needed = this->worker().layer_needed(LayerId(layer), this->rig().compute);
    if (!needed || needed->waits || needed->more) FAIL();
  }
  EXPECT_EQ(meter.count(), 0U);
  EXPECT_EQ(this->device_->num_waits(), num_waits);
  this->worker().end_step(this->rig().compute);
}

TEST(Worker, ALayerOfSeveralPiecesIsNotSplit) {
  RecordingLogSink log(LogLevel::kError);
  SteppedExecutor executor(1, log);
  const auto host = HostDevice::create({.executor = executor}).value();
  HookedDevice device(*host);
  // Two layers, each with keys and values apart.
  const LayoutConfig config{
      .num_blocks = 2, .num_layers = 4, .outer_dim = 1, .page_size = 1, .inner_dim = 16};
  const auto worker = Worker::create({.rank = RankId(0),
                                      .worker = WorkerId(0),
                                      .model = {{{.id = GroupId(0), .config = config}}},
                                      .disk_directory = "",
                                      .min_load_part_bytes = 1},
                                     device, nullptr, executor, log)
                          .value();
  const DeviceMemory memory = host->allocate(2 * config.block_bytes(), 64).value();
  const auto tensors = PhysicalLayout::fully_contiguous(config, MemoryRegion::of(memory)).value();
  PlaceSpec spec = worker->attach(kEngine, tensors, 2).value();
  spec.place = kHost;
  spec.owner = Owner::kKvbm;
  ASSERT_TRUE(worker->provide(spec));
  std::fill_n(memory.data(), config.block_bytes(), std::byte{7});
  const CopyOp store = copy(1, kEngine, ids({0}), kHost, ids({0}));
  worker->submit({&store, 1});
  executor.run_until_idle();

  const StreamRef compute = host->create_stream("compute").value();
  EventSource held = host->create_event();
  device.hook([&](StreamRef stream, size_t number) -> Status {
    return number == 1 ? host->wait(stream, held.event()) : Status();
  });
  StepPlan first = plan(1);
  first.loads = {copy(2, kHost, ids({0}), kEngine, ids({1}), {.priority = Priority::kOnboard})};
  ASSERT_TRUE(worker->begin_step(first, compute));
  ASSERT_TRUE(worker->layer_needed(LayerId(0), compute));
  const Event with_first = host->record(compute);
  ASSERT_TRUE(worker->layer_needed(LayerId(1), compute));
  const Event with_second = host->record(compute);
  executor.run_until_idle();
  EXPECT_TRUE(with_first.done());
  EXPECT_FALSE(with_second.done());
  const std::byte* block = memory.data() + config.block_bytes();
  const auto arrived = std::count(block, block + config.block_bytes(), std::byte{7});
  EXPECT_EQ(static_cast<uint64_t>(arrived), config.block_bytes() / 2);
  held.signal();
  executor.run_until_idle();
  EXPECT_TRUE(with_second.done());
  EXPECT_EQ(std::count(block, block + config.block_bytes(), std::byte{7}),
            static_cast<ptrdiff_t>(config.block_bytes()));
  EXPECT_EQ(device.num_copies(), 2U);
  worker->end_step(compute);
  EXPECT_TRUE(worker->stop());
}

TEST(Worker, AttachRefusesLayersOfUnequalPieces) {
  RecordingLogSink log(LogLevel::kError);
  SteppedExecutor executor(1, log);
  const RankRig rig(executor, log);
  LayoutConfig config = testing::kRigBlock;
  config.num_blocks = 4;
  const DeviceMemory memory = rig.device->allocate(1 << 16, 64).value();
  const auto tensors = PhysicalLayout::fully_contiguous(config, MemoryRegion::of(memory)).value();
  const auto refused = rig.worker->attach(kEngine, tensors, 3);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message(),
            "a block of layer group 0 has 2 pieces, and a layer 3 of them");
}

// --- cancel, timeout, priority
// ------------------------------------------------------------------------

TYPED_TEST(WorkerOn, CancellingEndsWhatHasNotStartedAndNothingElse) {
  const Gate later = Gate::step_end(StepId(1));
  this->submit(copy(1, kEngine, ids({0}), kHost, ids({0}), {.after = {later}}));
  this->submit(copy(2, kEngine, ids({0}), kHost, ids({1}), {.after = {later}}));
  const std::vector<OpId> cancels = {OpId(1), OpId(1), OpId(4711)};
  this->worker().cancel(cancels);
  const OpResult cancelled = this->await(1);
  EXPECT_EQ(cancelled.outcome, Outcome::kCancelled);
  EXPECT_EQ(cancelled.bytes, 0U);
  EXPECT_EQ(this->worker().num_open(), 1U);
  EXPECT_TRUE(this->worker().begin_step(plan(1), this->rig().compute));
  this->worker().end_step(this->rig().compute);
  EXPECT_EQ(this->await(2).outcome, Outcome::kSucceeded);
  EXPECT_EQ(this->rig().results.all().size(), 2U);
}

TYPED_TEST(WorkerOn, AnOperationThatCannotStartInTimeEndsAsCancelled) {
  const Gate never = Gate::step_end(StepId(1));
  this->submit(
      copy(1, kEngine, ids({0}), kHost, ids({0}), {.after = {never}, .timeout = hours(1)}));
  this->submit(copy(2, kEngine, ids({0}), kHost, ids({1}), {.after = {never}}));
  // One with less time than those before it does not wait for theirs.
  this->submit(
      copy(3, kEngine, ids({0}), kHost, ids({2}), {.after = {never}, .timeout = milliseconds(30)}));
  this->submit(
      copy(4, kEngine, ids({0}), kHost, ids({3}), {.after = {never}, .timeout = milliseconds(10)}));
  EXPECT_EQ(this->await(4).outcome, Outcome::kCancelled);
  EXPECT_EQ(this->await(3).outcome, Outcome::kCancelled);
  EXPECT_EQ(this->worker().num_open(), 2U);
  EXPECT_TRUE(this->worker().stop());
  EXPECT_THAT(this->log_.messages(LogLevel::kWarning),
              Contains(HasSubstr("operations of rank 0 have not started in time")));
}

TYPED_TEST(WorkerOn, AnOperationThatHasEndedInTimeIsNotTouchedByItsTimeout) {
  for (uint64_t op = 1; op <= 20; ++op) {
    const OpResult result =
        this->run(copy(op, kEngine, ids({0}), kHost, ids({0}), {.timeout = seconds(5)}));
    EXPECT_EQ(result.outcome, Outcome::kSucceeded);
  }
  EXPECT_EQ(this->worker().num_open(), 0U);
}

TEST(Worker, TimeoutsCountFromTheMomentOfReceipt) {
  RecordingLogSink log(LogLevel::kError);
  SteppedExecutor executor(3, log);
  testing::RankRig rig(executor, log);
  const Gate never = Gate::step_end(StepId(1));
  const auto submit = [&](uint64_t op, Duration timeout) {
    const CopyOp sent =
        copy(op, kEngine, ids({0}), kHost, ids({0}), {.after = {never}, .timeout = timeout});
    rig.worker->submit({&sent, 1});
  };
  submit(1, milliseconds(100));
  executor.run_for(milliseconds(60));
  submit(2, milliseconds(100));
  submit(3, milliseconds(10));
  executor.run_for(milliseconds(39));
  EXPECT_THAT(rig.results.order(), ElementsAre(OpId(3)));
  executor.run_for(milliseconds(1));
  EXPECT_THAT(rig.results.order(), ElementsAre(OpId(3), OpId(1)));
  executor.run_for(milliseconds(59));
  EXPECT_EQ(rig.worker->num_open(), 1U);
  executor.run_for(milliseconds(1));
  EXPECT_THAT(rig.results.order(), ElementsAre(OpId(3), OpId(1), OpId(2)));
  EXPECT_EQ(executor.next_due(), std::nullopt);  // no timer is left behind
}

TEST(Worker, AnOperationThatWaitsForItsTurnCanRunOutOfTime) {
  RecordingLogSink log(LogLevel::kError);
  SteppedExecutor executor(3, log);
  RankRig rig(executor, log, {.max_running_operations = 1});
  executor.hold("file");
  const CopyOp running = copy(1, kEngine, ids({0}), kDisk, ids({0}), {.timeout = milliseconds(10)});
  const CopyOp waiting = copy(2, kEngine, ids({0}), kHost, ids({0}), {.timeout = milliseconds(10)});
  rig.worker->submit({&running, 1});
  rig.worker->submit({&waiting, 1});
  executor.run_for(milliseconds(20));
  EXPECT_THAT(rig.results.order(), ElementsAre(OpId(2)));
  EXPECT_EQ(rig.results.find(OpId(2))->outcome, Outcome::kCancelled);
  const OpId started(1);
  rig.worker->cancel({&started, 1});
  EXPECT_EQ(rig.worker->num_open(), 1U);  // what has started goes on
  executor.release("file");
  EXPECT_EQ(rig.await(OpId(1)).outcome, Outcome::kSucceeded);
}

TEST(Worker, OnboardingGoesFirstAndThenTheOlder) {
  RecordingLogSink log(LogLevel::kError);
  SteppedExecutor executor(3, log);
  RankRig rig(executor, log, {.max_running_operations = 1});
  executor.hold("file");
  const CopyOp running = copy(1, kEngine, ids({0}), kDisk, ids({0}));
  rig.worker->submit({&running, 1});
  std::vector<CopyOp> ops;
  for (const uint64_t op : {2, 3, 4, 5}) {
    ops.push_back(copy(op, kEngine, ids({static_cast<uint32_t>(op)}), kHost,
                       ids({static_cast<uint32_t>(op)}),
                       {.priority = op % 2 == 0 ? Priority::kOffload : Priority::kOnboard}));
  }
  rig.worker->submit(ops);
  executor.run_until_idle();
  EXPECT_THAT(rig.results.all(), IsEmpty());
  executor.release("file");
  executor.run_until_idle();
  EXPECT_THAT(rig.results.order(), ElementsAre(OpId(1), OpId(3), OpId(5), OpId(2), OpId(4)));
}

TEST(Worker, NoMoreOperationsRunThanMay) {
  RecordingLogSink log(LogLevel::kError);
  SteppedExecutor executor(3, log);
  RankRig rig(executor, log, {.max_running_operations = 2});
  executor.hold("file");
  std::vector<CopyOp> ops;
  for (uint32_t op = 0; op < 5; ++op) {
    ops.push_back(copy(op + 1, kEngine, ids({op}), kDisk, ids({op})));
  }
  rig.worker->submit(ops);
  executor.run_until_idle();
  std::vector<OpId> all;
  for (const CopyOp& op : ops) all.push_back(op.op);
  rig.worker->cancel(all);
  EXPECT_THAT(rig.results.order(), ElementsAre(OpId(3), OpId(4), OpId(5)));
  executor.release("file");
  executor.run_until_idle();
  EXPECT_EQ(rig.results.find(OpId(1))->outcome, Outcome::kSucceeded);
  EXPECT_EQ(rig.results.find(OpId(2))->outcome, Outcome::kSucceeded);
}

// --- results and the end
// ------------------------------------------------------------------------------

TYPED_TEST(WorkerOn, TheReceiverOfResultsCanBeReplacedAndLeftOut) {
  std::atomic<int> heard{0};
  this->worker().on_result([&heard](OpResult&&) { ++heard; });
  this->submit(copy(1, kEngine, ids({0}), kHost, ids({0})));
  EXPECT_TRUE(this->wait_for_compute());
  while (this->worker().num_open() > 0) this->let_things_happen();
  this->let_things_happen();
  EXPECT_EQ(heard, 1);
  this->worker().on_result(nullptr);
  this->submit(copy(2, kEngine, ids({0}), kHost, ids({0})));
  while (this->worker().num_open() > 0) this->let_things_happen();
  EXPECT_EQ(heard, 1);
  EXPECT_THAT(this->rig().results.all(), IsEmpty());
}

TYPED_TEST(WorkerOn, AResultCallbackMaySubmitAndCancel) {
  RankRig& rig = this->rig();
  const Gate never = Gate::step_end(StepId(1));
  this->worker().on_result([&](OpResult&& result) {
    const uint64_t op = result.op.value();
    rig.results.take(std::move(result));
    if (op < 5) {
      const CopyOp next = copy(op + 1, kEngine, ids({0}), kHost, ids({0}),
                               {.after = op + 1 == 5 ? std::vector{never} : std::vector<Gate>{}});
      rig.worker->submit({&next, 1});
    }
    const OpId last(5);
    if (op == 4) rig.worker->cancel({&last, 1});
  });
  this->submit(copy(1, kEngine, ids({0}), kHost, ids({0})));
  EXPECT_EQ(this->await(5).outcome, Outcome::kCancelled);
}

TYPED_TEST(WorkerOn, StopCancelsWhatWaitsAndTakesNoMore) {
  const Gate never = Gate::step_end(StepId(1));
  this->submit(
      copy(1, kEngine, ids({0}), kHost, ids({0}), {.after = {never}, .timeout = hours(1)}));
  this->submit(copy(2, kEngine, ids({0}), kDisk, ids({1}), {.after = {Gate::op_done(OpId(1))}}));
  this->submit(copy(3, kEngine, ids({0}), kDisk, ids({2})));
  EXPECT_TRUE(this->worker().stop());
  EXPECT_EQ(this->worker().num_open(), 0U);
  EXPECT_EQ(this->rig().results.find(OpId(1))->outcome, Outcome::kCancelled);
  EXPECT_EQ(this->rig().results.find(OpId(2))->outcome, Outcome::kCancelled);
  EXPECT_TRUE(this->rig().results.find(OpId(3)).has_value());
  this->submit(copy(4, kEngine, ids({0}), kHost, ids({0})));
  EXPECT_EQ(this->rig().results.find(OpId(4))->outcome, Outcome::kCancelled);
  EXPECT_TRUE(this->worker().stop());
}

TYPED_TEST(WorkerOn, StopDoesNotWaitForAStepThatNeverEnds) {
  EventSource kernel = this->rig().device->create_event();
  EXPECT_TRUE(this->worker().begin_step(plan(1), this->rig().compute));
  EXPECT_TRUE(this->rig().device->wait(this->rig().compute, kernel.event()));
  this->worker().end_step(this->rig().compute);
  this->submit(copy(1, kEngine, ids({0}), kHost, ids({0}), {.after = {Gate::step_end(StepId(1))}}));
  EXPECT_TRUE(this->worker().stop());
  EXPECT_EQ(this->await(1).outcome, Outcome::kCancelled);
  kernel.signal();
}

TEST(Worker, StopSaysThatCopiesDidNotStopInTime) {
  RecordingLogSink log(LogLevel::kError);
  SteppedExecutor executor(3, log);
  testing::RankRig rig(executor, log);
  executor.hold("file");
  const CopyOp op = copy(1, kEngine, ids({0}), kDisk, ids({0}));
  rig.worker->submit({&op, 1});
  const Status stopped = rig.worker->stop(executor.clock().now() + milliseconds(50));
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code(), ErrorCode::kTimeout);
  EXPECT_EQ(rig.worker->num_open(), 1U);
  executor.release("file");
  EXPECT_TRUE(rig.worker->stop());
  EXPECT_EQ(rig.results.find(OpId(1))->outcome, Outcome::kSucceeded);
}

TYPED_TEST(WorkerOn, ADestroyedWorkerHasAnsweredEverything) {
  for (int round = 0; round < 30; ++round) {
    this->use({.disk_blocks = 8, .max_running_operations = 2});
    std::vector<CopyOp> ops;
    for (uint32_t op = 0; op < 6; ++op) {
      ops.push_back(
          copy(op + 1, kEngine, ids({op}), op % 2 == 0 ? kDisk : kHost, ids({op}),
               {.after = op == 5 ? std::vector{Gate::step_end(StepId(1))} : std::vector<Gate>{}}));
    }
    this->worker().submit(ops);
    this->rig().worker.reset();
    // Every result has been heard by now: nobody calls back any more.
    EXPECT_EQ(this->rig().results.all().size(), 6U);
    for (const CopyOp& op : ops) EXPECT_TRUE(this->rig().results.find(op.op).has_value());
  }
}

TEST(Worker, StopWaitsUntilTheReceiverHasHeardOfAll) {
  RecordingLogSink log(LogLevel::kError);
  ThreadExecutor executor(log);
  testing::RankRig rig(executor, log);
  Latch entered;
  Latch go_on;
  std::atomic<bool> heard{false};
  std::atomic<bool> heard_before_stopped{false};
  rig.worker->on_result([&](OpResult&&) {
    entered.set();
    EXPECT_TRUE(go_on.block_until(executor.clock().now() + seconds(10)));
    heard = true;
  });
  const CopyOp op = copy(1, kEngine, ids({0}), kHost, ids({0}));
  std::thread submitting([&] { rig.worker->submit({&op, 1}); });  // which may call back itself
  ASSERT_TRUE(entered.block_until(executor.clock().now() + seconds(10)));
  EXPECT_EQ(rig.worker->num_open(), 0U);
  std::thread stopping([&] {
    EXPECT_TRUE(rig.worker->stop());
    heard_before_stopped = heard.load();
  });
  Latch never;
  EXPECT_FALSE(executor.wait(never, executor.clock().now() + milliseconds(20)));
  go_on.set();
  submitting.join();
  stopping.join();
  EXPECT_TRUE(heard_before_stopped);
}

TEST(Worker, SeveralThreadsMayStopAtTheSameTime) {
  RecordingLogSink log(LogLevel::kError);
  ThreadExecutor executor(log);
  for (int round = 0; round < 20; ++round) {
    RankRig rig(executor, log);
    std::vector<CopyOp> ops;
    for (uint32_t op = 0; op < 8; ++op) {
      ops.push_back(copy(op + 1, kEngine, ids({op}), kDisk, ids({op})));
    }
    rig.worker->submit(ops);
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
      threads.emplace_back([&] { EXPECT_TRUE(rig.worker->stop()); });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(rig.results.all().size(), 8U);
  }
}

TYPED_TEST(WorkerOn, EveryOperationHasOneResultWhateverHappens) {
  const uint64_t seed = testing::test_seed();
  for (uint64_t round = 0; round < 8; ++round) {
    Random random(seed * 100 + round);
    this->use({.engine_blocks = 160,
               .host_blocks = 160,
               .disk_blocks = 160,
               .max_running_operations = static_cast<uint32_t>(random.uniform_between(1, 4)),
               .faults = testing::DeviceFaults{
                   .seed = random.next(), .copy_fails = 0.1, .copy_refused = 0.1}});
    this->log_.set_level(LogLevel::kOff);
    uint64_t num_ops = 0;
    uint64_t step = 0;
    for (int action = 0; action < 150; ++action) {
      switch (random.uniform(8)) {
        case 0:
          EXPECT_TRUE(this->worker().begin_step(plan(++step), this->rig().compute));
          this->worker().layer_written(LayerId(0), this->rig().compute);
          this->worker().end_step(this->rig().compute);
          break;
        case 1: {
          const OpId cancelled(random.uniform_between(1, num_ops + 1));
          this->worker().cancel({&cancelled, 1});
          break;
        }
        default: {
          const uint64_t op = ++num_ops;
          CopyOptions options;
          if (random.chance(0.4))
            options.after.push_back(Gate::op_done(OpId(random.uniform(op) + 1)));
          if (random.chance(0.3)) {
            options.after.push_back(Gate::step_end(StepId(random.uniform_between(0, step + 2))));
          }
          if (random.chance(0.2)) {
            options.after.push_back(Gate::layer_end(StepId(step + 1), LayerId(0)));
          }
          if (random.chance(0.5)) options.timeout = milliseconds(random.uniform(5));
          if (random.chance(0.3)) options.priority = Priority::kOnboard;
          const auto block = static_cast<uint32_t>(op);
          const Place below = random.chance(0.5) ? kHost : kDisk;
          CopyOp sent = copy(op, kEngine, ids({block}), below, ids({block}), options);
          if (random.chance(0.1)) sent.to = ids({999});
          this->submit(sent);
        }
      }
    }
    EXPECT_TRUE(this->worker().stop());
    std::vector<OpId> ended = this->rig().results.order();
    std::sort(ended.begin(), ended.end());
    ASSERT_EQ(ended.size(), num_ops) << "KVBM_SEED=" << seed;
    for (uint64_t op = 1; op <= num_ops; ++op) ASSERT_EQ(ended[op - 1], OpId(op));
  }
}

}  // namespace
}  // namespace kvbm
