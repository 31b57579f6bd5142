// SPDX-License-Identifier: Apache-2.0
// Managers read and write the layouts of each other, through agents of one process.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"
#include "kvbm/layout/layout_builder.hpp"
#include "kvbm/layout/layout_descriptor.hpp"
#include "kvbm/transfer/fill.hpp"
#include "kvbm/transfer/loopback_agent.hpp"
#include "kvbm/transfer/transfer_manager.hpp"
#include "kvbm/transfer/transfer_plan.hpp"

#include "tests/support/error_code.hpp"
#include "tests/support/faulty_remote_agent.hpp"
#include "tests/support/guarded_place.hpp"
#include "tests/support/transfer_rig.hpp"

namespace kvbm {
namespace {

using testing::block_ids;
using testing::code_of;
using ::testing::ElementsAre;
using testing::FaultyRemoteAgent;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::RemoteFaults;
using ::testing::SizeIs;
using testing::TransferRig;
using Tier = LogicalLayoutHandle;

constexpr LayoutConfig kConfig{.num_blocks = 8,
                               .num_layers = 3,
                               .outer_dim = 2,
                               .page_size = 4,
                               .inner_dim = 32,
                               .dtype_width_bytes = 2,
                               .num_heads = 8};

enum class Where { kTogether, kLayersApart };

PhysicalLayout layout_of(const LayoutConfig& config = kConfig,
                         const KvBlockLayout& format = KvBlockLayout::kOperationalNHD,
                         Where where = Where::kTogether) {
  if (where == Where::kLayersApart) {
    return PhysicalLayout::builder("")
        .with_config(config)
        .layer_separate(BlockDimension::kBlockIsSecond)
        .with_block_layout(format)
        .allocate_system()
        .build()
        .value();
  }
  return PhysicalLayout::builder("")
      .with_config(config)
      .fully_contiguous()
      .with_block_layout(format)
      .allocate_system()
      .build()
      .value();
}

std::vector<BlockId> all_blocks(const LayoutConfig& config = kConfig) {
  std::vector<BlockId> ids;
  for (uint32_t i = 0; i < config.num_blocks; ++i) ids.emplace_back(i);
  return ids;
}

/// A manager with an agent of its own.
struct Worker {
  std::unique_ptr<RemoteAgent> agent;
  std::unique_ptr<TransferManager> manager;

  LayoutHandle add(PhysicalLayout layout, Tier tier) {
    const LayoutHandle handle = manager->register_layout(std::move(layout)).value();
    EXPECT_TRUE(manager->build_logical_descriptor(handle, tier));
    return handle;
  }
  void fill_all(LayoutHandle handle, uint64_t seed) {
    const auto layout = manager->find_layout(handle);
    ASSERT_TRUE(fill(*layout, all_blocks(layout->config()), FillPattern::position(seed)));
  }
  void clear(LayoutHandle handle) {
    const auto layout = manager->find_layout(handle);
    ASSERT_TRUE(
        fill(*layout, all_blocks(layout->config()), FillPattern::constant(std::byte{0x11})));
  }
  /// Whether blocks are what fill_all() made of others.
  [[nodiscard]] bool holds(LayoutHandle handle, const std::vector<BlockId>& ids,
                           const std::vector<BlockId>& of, uint64_t seed) const {
    return !find_fill_mismatch(*manager->find_layout(handle), ids, of, FillPattern::position(seed))
                .value();
  }
  [[nodiscard]] bool is_clear(LayoutHandle handle, const std::vector<BlockId>& ids) const {
    return !find_fill_mismatch(*manager->find_layout(handle), ids, ids,
                               FillPattern::constant(std::byte{0x11}))
                .value();
  }
};

struct WorkerOptions {
  std::optional<RemoteFaults> faults = std::nullopt;
  size_t max_pending = 4096;
  bool device_memory = false;
  TransferCapabilities capabilities = {};
};

class RemoteTransfers : public ::testing::Test {
 protected:
  explicit RemoteTransfers(std::optional<uint64_t> seed = std::nullopt) : rig_({.seed = seed}) {}

  /// One block a turn of the agent.
  Worker worker(uint64_t id, const WorkerOptions& options = {}) {
    Worker made;
    made.agent = LoopbackAgent::create({.network = network_,
                                        .executor = *rig_.executor,
                                        .name = "agent-" + std::to_string(id),
                                        .max_pending = options.max_pending,
                                        .bytes_per_turn = 1,
                                        .device_memory = options.device_memory})
                     .value();
    if (options.faults) {
      made.agent = std::make_unique<FaultyRemoteAgent>(std::move(made.agent), *rig_.executor,
                                                       *options.faults);
    }
    made.manager = TransferManager::create({.worker = WorkerId{id},
                                            .device = *rig_.device,
                                            .executor = *rig_.executor,
                                            .log = rig_.log,
                                            .files = rig_.files.get(),
                                            .metrics = &rig_.metrics,
                                            .capabilities = options.capabilities,
                                            .remote_agent = made.agent.get()})
                       .value();
    return made;
  }

  static void introduce(const Worker& worker, const Worker& to) {
    const auto imported = to.manager->import_metadata(worker.manager->export_metadata().value());
    ASSERT_TRUE(imported) << imported.error();
  }

  [[nodiscard]] TransferResult run(const Worker& worker, LayoutHandle src,
                                   const std::vector<BlockId>& from, LayoutHandle dst,
                                   const std::vector<BlockId>& to, TransferOptions options = {}) {
    const auto started = worker.manager->execute_transfer(
        {.src = src, .src_ids = from, .dst = dst, .dst_ids = to, .options = std::move(options)});
    if (!started) return {.status = make_error(started.error())};
    static_cast<void>(started->wait(rig_.after(std::chrono::seconds(60))));
    EXPECT_TRUE(started->done());
    return {.status = started->result().status,
            .bytes = started->result().bytes,
            .failed = started->result().failed};
  }

  TransferRig rig_;
  LoopbackNetwork network_;
};

class SteppedRemoteTransfers : public RemoteTransfers {
 protected:
  SteppedRemoteTransfers() : RemoteTransfers(1) {}
};

TEST_F(RemoteTransfers, TwoManagersReadAndWriteTheLayoutsOfEachOther) {
  Worker a = worker(1);
  Worker b = worker(2);
  const LayoutHandle mine = a.add(layout_of(), Tier::kG1);
  const LayoutHandle theirs =
      b.add(layout_of(kConfig, KvBlockLayout::kOperationalHND, Where::kLayersApart), Tier::kG2);
  introduce(b, a);
  const auto from = block_ids({7, 0, 3});
  const auto to = block_ids({2, 5, 4});

  a.fill_all(mine, 1);
  b.clear(theirs);
  const TransferResult wrote = run(a, mine, from, theirs, to);
  ASSERT_TRUE(wrote.status) << wrote.status.error();
  EXPECT_EQ(wrote.bytes, 3 * kConfig.block_bytes());
  EXPECT_TRUE(b.holds(theirs, to, from, 1));
  EXPECT_TRUE(b.is_clear(theirs, block_ids({0, 1, 3, 6, 7})));

  b.fill_all(theirs, 2);
  a.clear(mine);
  const TransferResult read = run(a, theirs, to, mine, from);
  ASSERT_TRUE(read.status) << read.status.error();
  EXPECT_EQ(read.bytes, 3 * kConfig.block_bytes());
  EXPECT_TRUE(a.holds(mine, from, to, 2));
  EXPECT_TRUE(a.is_clear(mine, block_ids({1, 2, 4, 5, 6})));
  EXPECT_EQ(a.manager->in_flight(), 0u);
  EXPECT_EQ(testing::counter_value(rig_.metrics, "kvbm_copied_blocks_total"), 6u);

  const auto words = a.manager->explain_transfer(
      {.src = theirs, .src_ids = to, .dst = mine, .dst_ids = from, .options = {}});
  EXPECT_EQ(words.value(),
            "remote system to system (remote agent): the remote agent reaches both "
            "sides");
}

TEST_F(RemoteTransfers, TheOtherWorkerIsToldOnceTheBytesAreThere) {
  Worker a = worker(1);
  Worker b = worker(2);
  const LayoutHandle mine = a.add(layout_of(), Tier::kG1);
  const LayoutHandle theirs = b.add(layout_of(), Tier::kG1);
  introduce(b, a);
  a.fill_all(mine, 1);
  const auto ids = all_blocks();
  const auto started = a.manager->execute_transfer({.src = mine,
                                                    .src_ids = ids,
                                                    .dst = theirs,
                                                    .dst_ids = ids,
                                                    .options = {.write_notification = 77}});
  ASSERT_TRUE(started) << started.error();
  std::vector<RemoteNotification> told;
  while (told.empty()) told = b.manager->take_notifications();
  EXPECT_THAT(told, ElementsAre(RemoteNotification{"agent-1", 77}));
  EXPECT_TRUE(b.holds(theirs, ids, ids, 1));
  EXPECT_TRUE(started->wait());

  // Read: the other worker learns that its blocks have been read.
  ASSERT_TRUE(run(a, theirs, ids, mine, ids, {.write_notification = 78}).status);
  EXPECT_THAT(b.manager->take_notifications(), ElementsAre(RemoteNotification{"agent-1", 78}));
  // No block is a message alone.
  ASSERT_TRUE(run(a, mine, {}, theirs, {}, {.write_notification = 79}).status);
  EXPECT_THAT(b.manager->take_notifications(), ElementsAre(RemoteNotification{"agent-1", 79}));
  ASSERT_TRUE(run(a, mine, ids, theirs, ids).status);
  EXPECT_THAT(b.manager->take_notifications(), IsEmpty());
  EXPECT_THAT(a.manager->take_notifications(), IsEmpty());

  const LayoutHandle other = a.add(layout_of(), Tier::kG2);
  EXPECT_EQ(code_of(run(a, mine, ids, other, ids, {.write_notification = 1}).status),
            ErrorCode::kUnsupported);
}

TEST_F(RemoteTransfers, FromG1ToG2OfAnotherWorker) {
  std::vector<Worker> workers;
  std::vector<LayoutHandle> g1;
  std::vector<LayoutHandle> g2;
  for (uint64_t id = 0; id < 3; ++id) {
    Worker& one = workers.emplace_back(worker(id));
    for (uint64_t i = 0; i < id; ++i) ASSERT_TRUE(one.manager->register_layout(layout_of()));
    g2.push_back(one.add(layout_of(kConfig, KvBlockLayout::kUniversalTP), Tier::kG2));
    g1.push_back(one.add(layout_of(), Tier::kG1));
    one.fill_all(g1.back(), 10 + id);
    one.clear(g2.back());
  }
  for (const Worker& to : workers) {
    for (const Worker& one : workers) {
      if (&one != &to) introduce(one, to);
    }
  }
  // Each pushes its G1 to the next one's G2, and pulls the one before's G1 to its own.
  const auto low = block_ids({0, 1, 2, 3});
  const auto high = block_ids({4, 5, 6, 7});
  for (uint64_t id = 0; id < 3; ++id) {
    const auto transfer = [&](const LogicalTransferRequest& request) {
      const auto started = workers[id].manager->execute_transfer(request);
      ASSERT_TRUE(started) << started.error();
      const Status ended = started->wait(rig_.after(std::chrono::seconds(60)));
      EXPECT_TRUE(ended) << ended.error();
    };
    transfer({.src = Tier::kG1,
              .src_ids = low,
              .dst = Tier::kG2,
              .dst_ids = low,
              .dst_worker = WorkerId{(id + 1) % 3}});
    transfer({.src = Tier::kG1,
              .src_ids = high,
              .dst = Tier::kG2,
              .dst_ids = high,
              .src_worker = WorkerId{(id + 2) % 3}});
  }
  for (uint64_t id = 0; id < 3; ++id) {
    EXPECT_TRUE(workers[id].holds(g2[id], all_blocks(), all_blocks(), 10 + (id + 2) % 3)) << id;
  }
  const LogicalTransferRequest unknown{.src_ids = low, .dst_ids = low, .dst_worker = WorkerId{9}};
  EXPECT_EQ(code_of(workers[0].manager->execute_transfer(unknown)), ErrorCode::kNotFound);
}

TEST_F(RemoteTransfers, SlicesOfHeadsGoToWorkersOfAnotherTensorParallelSize) {
  // One worker with 8 heads, two with 4 each, and each in its own format.
  LayoutConfig half = kConfig;
  half.num_heads = 4;
  half.inner_dim = kConfig.inner_dim / 2;
  Worker whole = worker(1);
  const LayoutHandle src = whole.add(layout_of(), Tier::kG1);
  const LayoutHandle back = whole.add(layout_of(kConfig, KvBlockLayout::kUniversalPP), Tier::kG2);
  whole.fill_all(src, 5);
  whole.clear(back);
  const auto ids = all_blocks();
  for (uint32_t rank = 0; rank < 2; ++rank) {
    Worker part = worker(2 + rank);
    const LayoutHandle own = part.add(
        layout_of(half, rank == 0 ? KvBlockLayout::kOperationalHND : KvBlockLayout::kUniversalTP),
        Tier::kG1);
    introduce(whole, part);
    const HeadRange heads{rank * 4, 4};
    const TransferResult pulled = run(part, src, ids, own, ids, {.src_heads = heads});
    ASSERT_TRUE(pulled.status) << pulled.status.error();
    EXPECT_EQ(pulled.bytes, ids.size() * half.block_bytes());
    // Into a part of each block over there, and one layer of it at a time.
    for (uint32_t layer = 0; layer < 3; ++layer) {
      const TransferResult pushed =
          run(part, own, ids, back, ids,
              {.layer_range = LayerRange{LayerId(static_cast<uint16_t>(layer)), 1},
               .dst_heads = heads});
      ASSERT_TRUE(pushed.status) << pushed.status.error();
    }
  }
  EXPECT_TRUE(whole.holds(back, ids, ids, 5));
}

TEST_F(RemoteTransfers, WhatCannotBeReachedIsRefusedWithTheReason) {
  Worker a = worker(1);
  Worker b = worker(2);
  const LayoutHandle mine = a.add(layout_of(), Tier::kG1);
  const LayoutHandle g1 = b.add(layout_of(), Tier::kG1);
  const LayoutHandle g2 = b.add(layout_of(), Tier::kG2);
  const auto ids = block_ids({0});
  const auto reason = [&](LayoutHandle src, LayoutHandle dst) {
    const Status status = run(a, src, ids, dst, ids).status;
    return status ? "no error" : status.error().describe();
  };
  EXPECT_THAT(reason(mine, g1), HasSubstr("not_found: worker 2 layout 0 is not registered here"));
  introduce(b, a);
  EXPECT_THAT(reason(g1, g2), HasSubstr("both sides are of other workers: ask one of them"));
  EXPECT_THAT(reason(mine, LayoutHandle{WorkerId{2}, 7}), HasSubstr("not_found"));

  // A worker without an agent of its own.
  const auto plain = TransferManager::create({.worker = WorkerId{3},
                                              .device = *rig_.device,
                                              .executor = *rig_.executor,
                                              .log = rig_.log})
                         .value();
  const LayoutHandle silent = plain->register_layout(layout_of()).value();
  ASSERT_TRUE(plain->build_logical_descriptor(silent, Tier::kG1));
  ASSERT_TRUE(a.manager->import_metadata(plain->export_metadata().value()));
  EXPECT_THAT(reason(mine, silent), HasSubstr("gave no metadata of a remote agent"));
  EXPECT_TRUE(plain->take_notifications().empty());
}

TEST_F(RemoteTransfers, MemoryOfDevicesAsksForRdmaOnTheOtherSide) {
  const auto on_device = [&] {
    return PhysicalLayout::builder("")
        .with_config(kConfig)
        .fully_contiguous()
        .with_block_layout(KvBlockLayout::kOperationalNHD)
        .allocate_device(*rig_.device)
        .build()
        .value();
  };
  for (const bool allowed : {false, true}) {
    SCOPED_TRACE(allowed ? "allowed" : "not allowed");
    const uint64_t first = allowed ? 10 : 20;
    const WorkerOptions options{.device_memory = true, .capabilities = {.allow_gpu_rdma = allowed}};
    Worker a = worker(first, options);
    Worker b = worker(first + 1, options);
    const LayoutHandle host = a.add(layout_of(), Tier::kG2);
    const LayoutHandle device = a.add(on_device(), Tier::kG1);
    const LayoutHandle there = b.add(layout_of(), Tier::kG2);
    const LayoutHandle device_there = b.add(on_device(), Tier::kG1);
    introduce(b, a);
    const auto ids = all_blocks();
    // The host reaches the memory of a host device.
    EXPECT_TRUE(run(a, device, ids, there, ids).status);
    const Status wrote = run(a, host, ids, device_there, ids).status;
    if (allowed) {
      EXPECT_TRUE(wrote) << wrote.error();
    } else {
      EXPECT_EQ(code_of(wrote), ErrorCode::kUnsupported);
    }
  }
}

TEST_F(RemoteTransfers, WhatTheAgentDoesNotReachGoesThroughBounceBlocks) {
  Worker a = worker(1);  // its agent reaches no memory of devices
  Worker b = worker(2);
  const LayoutHandle device = a.add(PhysicalLayout::builder("")
                                        .with_config(kConfig)
                                        .fully_contiguous()
                                        .with_block_layout(KvBlockLayout::kUniversalPP)
                                        .allocate_device(*rig_.device)
                                        .build()
                                        .value(),
                                    Tier::kG1);
  const LayoutHandle host = a.add(layout_of(), Tier::kG2);
  const testing::GuardedPlace disk(kConfig, LayoutKind::kFileSlots, StorageKind::kFile, {},
                                   KvBlockLayout::kOperationalNHD);
  const LayoutHandle file = a.add(disk.layout(), Tier::kG3);
  const LayoutHandle source = b.add(layout_of(), Tier::kG1);
  const LayoutHandle target = b.add(layout_of(), Tier::kG2);
  introduce(b, a);
  b.fill_all(source, 3);
  const auto ids = all_blocks();
  const auto ok = [&](LayoutHandle src, LayoutHandle dst, TransferOptions options = {}) {
    const TransferResult result = run(a, src, ids, dst, ids, std::move(options));
    EXPECT_TRUE(result.status) << result.status.error();
    EXPECT_EQ(result.bytes, ids.size() * kConfig.block_bytes());
  };
  ok(source, device);
  ok(device, target);
  EXPECT_TRUE(b.holds(target, ids, ids, 3));

  std::vector<SlotTag> tags;
  for (uint64_t i = 0; i < ids.size(); ++i) tags.push_back(testing::tag_of(i));
  b.clear(target);
  ok(source, file, {.tags = tags});
  ok(file, target, {.tags = tags});
  EXPECT_TRUE(b.holds(target, ids, ids, 3));
  // Blocks that the caller lends.
  b.clear(target);
  ok(device, target,
     {.bounce_buffer = BounceBuffer::from_handle(host, block_ids({0, 1, 2, 3, 4}))});
  EXPECT_TRUE(b.holds(target, ids, ids, 3));

  EXPECT_EQ(code_of(run(a, device, ids, target, ids, {.write_notification = 1}).status),
            ErrorCode::kUnsupported);
  for (const LayoutHandle src : {device, file}) {
    const Status told = run(a, src, {}, target, {}, {.write_notification = 2}).status;
    EXPECT_TRUE(told) << told.error();
  }
  EXPECT_THAT(b.manager->take_notifications(), SizeIs(2));
  // The files of others are out of reach.
  const LayoutHandle theirs = b.add(disk.layout(), Tier::kG3);
  ASSERT_TRUE(a.manager->remove_import(WorkerId{2}));
  introduce(b, a);
  EXPECT_THAT(run(a, device, ids, theirs, ids).status.error().message(),
              HasSubstr("is in a file of its worker"));
}

TEST_F(RemoteTransfers, WhatIsWrongComesBackBeforeAByteMoves) {
  Worker a = worker(1);
  Worker b = worker(2);
  const LayoutHandle mine = a.add(layout_of(), Tier::kG1);
  const LayoutHandle theirs = b.add(layout_of(), Tier::kG1);
  LayoutConfig smaller = kConfig;
  smaller.num_layers = 2;
  const LayoutHandle other = b.add(layout_of(smaller), Tier::kG2);
  introduce(b, a);
  b.clear(theirs);
  const auto code = [&](const std::vector<BlockId>& from, LayoutHandle dst,
                        const std::vector<BlockId>& to, TransferOptions options = {}) {
    return code_of(a.manager->execute_transfer(
        {.src = mine, .src_ids = from, .dst = dst, .dst_ids = to, .options = std::move(options)}));
  };
  const auto ids = block_ids({0, 1});
  EXPECT_EQ(code(ids, theirs, block_ids({0})), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(ids, theirs, block_ids({0, 8})), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(ids, theirs, block_ids({3, 3})), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(ids, other, ids), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(ids, theirs, ids, {.layer_range = LayerRange{LayerId(2), 2}}),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code(ids, theirs, ids, {.deadline = rig_.executor->clock().now()}),
            ErrorCode::kTimeout);
  const StreamRef stream = rig_.device->create_stream("mine").value();
  EXPECT_EQ(code(ids, theirs, ids, {.stream = stream}), ErrorCode::kUnsupported);
  const SlotTag tag{};
  EXPECT_EQ(code(block_ids({0}), theirs, block_ids({0}), {.tags = {&tag, 1}}),
            ErrorCode::kInvalidArgument);
  EXPECT_TRUE(b.is_clear(theirs, all_blocks()));
}

TEST_F(SteppedRemoteTransfers, APeerThatGoesInTheMiddleFailsTheTransferOnce) {
  Worker a = worker(1);
  auto b = std::make_optional<Worker>(worker(2));
  const LayoutHandle mine = a.add(layout_of(), Tier::kG1);
  const LayoutHandle theirs = b->add(layout_of(), Tier::kG1);
  introduce(*b, a);
  const auto ids = all_blocks();
  const auto read = a.manager->execute_transfer(
      {.src = theirs, .src_ids = ids, .dst = mine, .dst_ids = ids, .options = {}});
  ASSERT_TRUE(read);
  int ends = 0;
  read->on_done([&](const TransferResult&) noexcept { ++ends; });
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(rig_.stepped->step());
  ASSERT_FALSE(read->done());
  b.reset();  // with its memory
  rig_.stepped->run_until_idle();
  EXPECT_EQ(ends, 1);
  EXPECT_EQ(code_of(read->result().status), ErrorCode::kUnavailable);
  EXPECT_THAT(read->result().failed, SizeIs(ids.size()));
  EXPECT_EQ(a.manager->in_flight(), 0u);
  EXPECT_EQ(code_of(run(a, theirs, ids, mine, ids).status), ErrorCode::kUnavailable);
  // It may come back as another one.
  ASSERT_TRUE(a.manager->remove_import(WorkerId{2}));
  b.emplace(worker(2));
  const LayoutHandle again = b->add(layout_of(), Tier::kG1);
  introduce(*b, a);
  b->fill_all(again, 3);
  EXPECT_TRUE(run(a, again, ids, mine, ids).status);
  EXPECT_TRUE(a.holds(mine, ids, ids, 3));
}

TEST_F(RemoteTransfers, APlanGoesWithItsImport) {
  Worker a = worker(1);
  auto b = std::make_optional<Worker>(worker(2));
  const LayoutHandle mine = a.add(layout_of(), Tier::kG1);
  const LayoutHandle theirs = b->add(layout_of(), Tier::kG1);
  introduce(*b, a);
  const auto ids = all_blocks();
  ASSERT_TRUE(run(a, mine, ids, theirs, ids).status);
  ASSERT_TRUE(a.manager->remove_import(WorkerId{2}));
  const auto code = [&] {
    return code_of(a.manager->execute_transfer(
        {.src = mine, .src_ids = ids, .dst = theirs, .dst_ids = ids, .options = {}}));
  };
  EXPECT_EQ(code(), ErrorCode::kNotFound);
  // It comes back with other blocks under the same handle.
  b.reset();
  b.emplace(worker(2));
  LayoutConfig smaller = kConfig;
  smaller.num_layers = 2;
  ASSERT_EQ(b->add(layout_of(smaller), Tier::kG1), theirs);
  introduce(*b, a);
  EXPECT_EQ(code(), ErrorCode::kInvalidArgument);
}

TEST_F(SteppedRemoteTransfers, MemoryThatIsUnregisteredIsLeftByOthers) {
  Worker a = worker(1);
  Worker b = worker(2);
  const LayoutHandle mine = a.add(layout_of(), Tier::kG1);
  const LayoutHandle theirs = b.add(layout_of(), Tier::kG1);
  introduce(b, a);
  const auto ids = all_blocks();
  const auto layout = b.manager->find_layout(theirs);
  const auto wrote = a.manager->execute_transfer({.src = mine,
                                                  .src_ids = ids,
                                                  .dst = theirs,
                                                  .dst_ids = ids,
                                                  .options = {.write_notification = 1}});
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(rig_.stepped->step());
  ASSERT_FALSE(wrote->done());
  const Completion left = b.manager->unregister_layout(theirs).value();
  ASSERT_TRUE(left.wait(rig_.after(std::chrono::seconds(1))));
  ASSERT_TRUE(fill(*layout, ids, FillPattern::position(9)));
  rig_.stepped->run_until_idle();
  EXPECT_EQ(code_of(wrote->result().status), ErrorCode::kUnavailable);
  EXPECT_FALSE(find_fill_mismatch(*layout, ids, ids, FillPattern::position(9)).value());
  EXPECT_THAT(b.manager->take_notifications(), IsEmpty());
}

TEST_F(SteppedRemoteTransfers, OwnTransfersGoOnWithWhatIsUnregisteredOrRemoved) {
  Worker a = worker(1);
  Worker b = worker(2);
  const LayoutHandle mine = a.add(layout_of(), Tier::kG1);
  const LayoutHandle theirs = b.add(layout_of(), Tier::kG1);
  introduce(b, a);
  a.fill_all(mine, 4);
  const auto ids = all_blocks();
  const auto wrote = a.manager->execute_transfer(
      {.src = mine, .src_ids = ids, .dst = theirs, .dst_ids = ids, .options = {}});
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(rig_.stepped->step());
  ASSERT_FALSE(wrote->done());
  const Completion left = a.manager->unregister_layout(mine).value();
  ASSERT_TRUE(a.manager->remove_import(WorkerId{2}));
  EXPECT_FALSE(left.done());
  rig_.stepped->run_until_idle();
  EXPECT_TRUE(left.done());
  EXPECT_TRUE(wrote->result().status);
  EXPECT_TRUE(b.holds(theirs, ids, ids, 4));
}

TEST_F(RemoteTransfers, AddressesThatThePeerHasNotRegisteredAreNotTouched) {
  Worker a = worker(1);
  Worker b = worker(2);
  const LayoutHandle mine = a.add(layout_of(), Tier::kG1);
  const LayoutHandle theirs = b.add(layout_of(), Tier::kG1);
  const PhysicalLayout hidden = layout_of();
  ASSERT_TRUE(fill(hidden, all_blocks(), FillPattern::position(6)));
  LayoutMetadata metadata = b.manager->export_metadata()->unpack().value();
  metadata.layouts[0].layout.page_maps[0].address =
      LayoutDescriptor::of(hidden).page_maps[0].address;
  ASSERT_TRUE(a.manager->import_metadata(SerializedLayout::pack(metadata).value()));
  const auto ids = all_blocks();
  a.clear(mine);
  for (const auto& [src, dst] : {std::pair{mine, theirs}, {theirs, mine}}) {
    const TransferResult result = run(a, src, ids, dst, ids);
    EXPECT_EQ(code_of(result.status), ErrorCode::kInvalidArgument);
    EXPECT_EQ(result.failed.size(), ids.size());
  }
  EXPECT_FALSE(find_fill_mismatch(hidden, ids, ids, FillPattern::position(6)).value());
  EXPECT_TRUE(a.is_clear(mine, ids));
}

TEST_F(RemoteTransfers, AnImportWithAlteredMetadataOfTheAgentIsNone) {
  Worker a = worker(1);
  Worker b = worker(2);
  const LayoutHandle theirs = b.add(layout_of(), Tier::kG1);
  const SerializedLayout good = b.manager->export_metadata().value();
  LayoutMetadata metadata = good.unpack().value();
  for (size_t i = 0; i < metadata.agent_metadata.size(); ++i) {
    LayoutMetadata altered = metadata;
    altered.agent_metadata[i] ^= std::byte{1};
    EXPECT_FALSE(a.manager->import_metadata(SerializedLayout::pack(altered).value())) << i;
    EXPECT_THAT(a.manager->imported_workers(), IsEmpty());
    EXPECT_EQ(a.manager->find_remote_layout(theirs), nullptr);
  }
  // As another worker's, with the agent of this one.
  LayoutMetadata stolen = metadata;
  stolen.worker.agent_name = "agent-3";
  EXPECT_EQ(code_of(a.manager->import_metadata(SerializedLayout::pack(stolen).value())),
            ErrorCode::kCorrupt);
  EXPECT_TRUE(a.manager->import_metadata(good));
  EXPECT_EQ(code_of(a.manager->import_metadata(good)), ErrorCode::kInvalidArgument);
  ASSERT_TRUE(a.manager->remove_import(WorkerId{2}));
  EXPECT_EQ(code_of(a.manager->remove_import(WorkerId{2})), ErrorCode::kNotFound);
  EXPECT_TRUE(a.manager->import_metadata(good));
}

TEST_F(SteppedRemoteTransfers, ItWaitsForEventsAndForNoLongerThanTheDeadline) {
  Worker a = worker(1);
  Worker b = worker(2);
  const LayoutHandle mine = a.add(layout_of(), Tier::kG1);
  const LayoutHandle theirs = b.add(layout_of(), Tier::kG1);
  introduce(b, a);
  a.fill_all(mine, 4);
  b.clear(theirs);
  const auto ids = all_blocks();
  const auto start = [&](const EventSource& event, TimePoint deadline) {
    return a.manager
        ->execute_transfer({.src = mine,
                            .src_ids = ids,
                            .dst = theirs,
                            .dst_ids = ids,
                            .options = {.wait_for = {event.event()}, .deadline = deadline}})
        .value();
  };
  EventSource fails(*rig_.executor);
  EventSource never(*rig_.executor);
  EventSource comes(*rig_.executor);
  const auto failed = start(fails, kNever);
  const auto late = start(never, rig_.after(std::chrono::seconds(1)));
  const auto slow = start(comes, rig_.after(std::chrono::seconds(3)));
  const auto done = start(comes, kNever);
  rig_.stepped->run_until_idle();
  EXPECT_TRUE(b.is_clear(theirs, ids));
  fails.signal(make_error(ErrorCode::kIo, "no"));
  rig_.stepped->run_until_idle();
  EXPECT_EQ(code_of(failed.result().status), ErrorCode::kIo);
  rig_.stepped->advance(std::chrono::seconds(2));
  rig_.stepped->run_until_idle();
  EXPECT_EQ(code_of(late.result().status), ErrorCode::kTimeout);
  EXPECT_FALSE(slow.done());
  // The deadline holds for what the agent has as well.
  comes.signal();
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(rig_.stepped->step());
  rig_.stepped->advance(std::chrono::seconds(2));
  rig_.stepped->run_until_idle();
  EXPECT_EQ(code_of(slow.result().status), ErrorCode::kTimeout);
  EXPECT_TRUE(done.result().status);
  EXPECT_TRUE(b.holds(theirs, ids, ids, 4));
}

TEST_F(RemoteTransfers, FaultsOfAnAgentAreNoSuccess) {
  for (int what = 0; what < 3; ++what) {
    SCOPED_TRACE(what);
    const RemoteFaults faults{.fail = what == 0 ? 1.0 : 0,
                              .torn = what == 1 ? 1.0 : 0,
                              .lie = what == 2 ? 1.0 : 0,
                              .delay = 0.5};
    const uint64_t first = 10 + 2 * static_cast<uint64_t>(what);
    Worker a = worker(first, {.faults = faults});
    Worker b = worker(first + 1);
    const LayoutHandle mine = a.add(layout_of(), Tier::kG1);
    const LayoutHandle theirs = b.add(layout_of(), Tier::kG1);
    introduce(b, a);
    const auto ids = all_blocks();
    for (const auto& [src, dst] : {std::pair{mine, theirs}, {theirs, mine}}) {
      const TransferResult result = run(a, src, ids, dst, ids, {.write_notification = 1});
      EXPECT_EQ(code_of(result.status), what == 2 ? ErrorCode::kInternal : ErrorCode::kUnavailable);
      EXPECT_EQ(result.bytes, 0u);
      EXPECT_EQ(result.failed.size(), ids.size());
    }
    EXPECT_THAT(b.manager->take_notifications(), IsEmpty());
  }
}

TEST_F(RemoteTransfers, AFullAgentIsAskedAgain) {
  Worker a = worker(1, {.max_pending = 1});
  Worker b = worker(2);
  const LayoutHandle mine = a.add(layout_of(), Tier::kG1);
  const LayoutHandle theirs = b.add(layout_of(), Tier::kG1);
  introduce(b, a);
  a.fill_all(mine, 8);
  std::vector<TransferCompleteNotification> parts;
  for (const BlockId id : all_blocks()) {
    const std::vector<BlockId> one{id};
    parts.push_back(
        a.manager
            ->execute_transfer(
                {.src = mine, .src_ids = one, .dst = theirs, .dst_ids = one, .options = {}})
            .value());
  }
  const Status all =
      TransferCompleteNotification::aggregate(parts).wait(rig_.after(std::chrono::seconds(60)));
  EXPECT_TRUE(all) << all.error();
  EXPECT_TRUE(b.holds(theirs, all_blocks(), all_blocks(), 8));
}

TEST_F(RemoteTransfers, ManyTransfersBetweenThreeWorkersAllArrive) {
  LayoutConfig config = kConfig;
  config.num_blocks = 64;
  std::vector<Worker> workers;
  std::vector<LayoutHandle> from;
  std::vector<LayoutHandle> to;
  for (uint64_t id = 0; id < 3; ++id) {
    Worker& one = workers.emplace_back(worker(id));
    from.push_back(one.add(layout_of(config), Tier::kG1));
    to.push_back(
        one.add(layout_of(config, KvBlockLayout::kOperationalHND, Where::kLayersApart), Tier::kG2));
    one.fill_all(from.back(), 20 + id);
  }
  for (const Worker& importer : workers) {
    for (const Worker& one : workers) {
      if (&one != &importer) introduce(one, importer);
    }
  }
  std::vector<TransferCompleteNotification> all;
  for (const BlockId id : all_blocks(config)) {
    const std::vector<BlockId> one{id};
    for (size_t w = 0; w < 3; ++w) {
      // Even blocks are pushed to the next worker, odd ones are pulled by it.
      const bool pushes = id.value() % 2 == 0;
      const size_t next = (w + 1) % 3;
      all.push_back(workers[pushes ? w : next]
                        .manager
                        ->execute_transfer({.src = from[w],
                                            .src_ids = one,
                                            .dst = to[next],
                                            .dst_ids = one,
                                            .options = {.write_notification = id.value()}})
                        .value());
    }
  }
  const Status ended =
      TransferCompleteNotification::aggregate(all).wait(rig_.after(std::chrono::seconds(60)));
  ASSERT_TRUE(ended) << ended.error();
  const auto ids = all_blocks(config);
  for (size_t w = 0; w < 3; ++w) {
    EXPECT_TRUE(workers[(w + 1) % 3].holds(to[(w + 1) % 3], ids, ids, 20 + w)) << w;
    // 32 of the one before that pushes, 32 of the one behind that pulls.
    EXPECT_THAT(workers[w].manager->take_notifications(), SizeIs(64));
  }
}

TEST_F(SteppedRemoteTransfers, WhatRunsWithAManagerThatGoesEndsOnce) {
  auto a = std::make_optional<Worker>(worker(1, {.max_pending = 2}));
  Worker b = worker(2);
  const LayoutHandle mine = a->add(layout_of(), Tier::kG1);
  const LayoutHandle theirs = b.add(layout_of(), Tier::kG1);
  introduce(b, *a);
  const auto ids = all_blocks();
  std::vector<TransferCompleteNotification> started;
  int ends = 0;
  for (int i = 0; i < 6; ++i) {
    started.push_back(
        a->manager
            ->execute_transfer(
                {.src = mine, .src_ids = ids, .dst = theirs, .dst_ids = ids, .options = {}})
            .value());
    started.back().on_done([&](const TransferResult&) noexcept { ++ends; });
  }
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(rig_.stepped->step());
  a.reset();
  EXPECT_EQ(ends, 6);
  size_t cancelled = 0;
  for (const auto& one : started) {
    ASSERT_TRUE(one.done());
    if (one.result().status) continue;
    EXPECT_EQ(code_of(one.result().status), ErrorCode::kCancelled);
    ++cancelled;
  }
  EXPECT_GT(cancelled, 0u);
}

TEST_F(RemoteTransfers, AManagerHasTheNameOfItsAgent) {
  Worker a = worker(1);
  EXPECT_EQ(a.manager->worker_address(), (WorkerAddress{WorkerId{1}, "agent-1"}));
  const std::byte own{1};
  EXPECT_EQ(code_of(a.manager->export_metadata({&own, 1})), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(TransferManager::create({.worker = WorkerId{1},
                                             .device = *rig_.device,
                                             .executor = *rig_.executor,
                                             .log = rig_.log,
                                             .agent_name = "another",
                                             .remote_agent = a.agent.get()})),
            ErrorCode::kInvalidArgument);
  const auto made_for = [&](const std::string& agent) {
    return PhysicalLayout::builder(agent)
        .with_config(kConfig)
        .fully_contiguous()
        .allocate_system()
        .build()
        .value();
  };
  EXPECT_TRUE(a.manager->register_layout(made_for("agent-1")));
  EXPECT_EQ(code_of(a.manager->register_layout(made_for("agent-2"))), ErrorCode::kInvalidArgument);
}

TEST_F(RemoteTransfers, ALayoutOfAnotherWorkerHasNoAddressHere) {
  Worker a = worker(1);
  const PhysicalLayout here = layout_of();
  const PhysicalLayout there = LayoutDescriptor::of(here).as_remote("agent-2").value();
  EXPECT_EQ(there.storage_kind(), StorageKind::kRemote);
  EXPECT_EQ(there.registration().agent_name, "agent-2");
  EXPECT_FALSE(may_share_bytes(here, there));
  const MemoryRegion region = there.region(BlockId(1), LayerId(2), 1);
  EXPECT_EQ(region.remote_address(),
            reinterpret_cast<uintptr_t>(here.region(BlockId(1), LayerId(2), 1).base()));
  EXPECT_THROW(static_cast<void>(region.base()), ContractViolation);
  EXPECT_THROW(static_cast<void>(here.page_maps()[0].region().remote_address()), ContractViolation);
  const TransferPlan plan = TransferPlan::create(here, there).value();
  EXPECT_THROW(static_cast<void>(plan.with_addresses(here, there)), ContractViolation);
  EXPECT_THROW(static_cast<void>(plan.with_remote_addresses(here, here)), ContractViolation);
  EXPECT_EQ(plan.with_remote_addresses(here, there).size(), 1u);
  EXPECT_EQ(code_of(fill(there, block_ids({0}), FillPattern::sequential())),
            ErrorCode::kUnsupported);
  EXPECT_EQ(code_of(a.manager->register_layout(there)), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(LayoutDescriptor::of(there).validate()), ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace kvbm
