// SPDX-License-Identifier: Apache-2.0
// Managers tell each other of their layouts: tiers, export, import.
#include <memory>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/layout/layout_builder.hpp"
#include "kvbm/transfer/transfer_manager.hpp"

#include "tests/support/error_code.hpp"
#include "tests/support/sample_metadata.hpp"
#include "tests/support/transfer_rig.hpp"

namespace kvbm {
namespace {

using testing::block_ids;
using testing::code_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TransferRig;
using Tier = LogicalLayoutHandle;

constexpr LayoutConfig kConfig{.num_blocks = 4,
                               .num_layers = 3,
                               .outer_dim = 2,
                               .page_size = 4,
                               .inner_dim = 12,
                               .dtype_width_bytes = 2,
                               .num_heads = 3};

PhysicalLayout layout_of(const LayoutConfig& config = kConfig,
                         const KvBlockLayout& format = KvBlockLayout::kOperationalNHD) {
  return PhysicalLayout::builder("test")
      .with_config(config)
      .fully_contiguous()
      .with_block_layout(format)
      .allocate_system()
      .build()
      .value();
}

class LayoutExchange : public ::testing::Test {
 protected:
  std::unique_ptr<TransferManager> manager_of(uint64_t worker, std::string agent_name = {}) {
    return TransferManager::create({.worker = WorkerId{worker},
                                    .device = *rig_.device,
                                    .executor = *rig_.executor,
                                    .log = rig_.log,
                                    .agent_name = std::move(agent_name)})
        .value();
  }

  TransferRig rig_{{.seed = 1}};
};

SerializedLayout bytes_of(const TransferManager& manager) {
  return manager.export_metadata().value();
}

template <class T>
std::string reason_of(const T& result) {
  return result ? "no error" : result.error().message();
}

TEST_F(LayoutExchange, FromG1ToG2MeansTheLayoutsOfEachWorker) {
  std::vector<std::unique_ptr<TransferManager>> managers;
  std::vector<LayoutHandle> g1;
  std::vector<LayoutHandle> g2;
  for (uint64_t worker = 0; worker < 3; ++worker) {
    TransferManager& manager = *managers.emplace_back(manager_of(10 + worker));
    // The same tier has another number on each of them.
    for (uint64_t i = 0; i < worker; ++i) ASSERT_TRUE(manager.register_layout(layout_of()));
    LayoutConfig config = kConfig;
    config.num_blocks = 4 + static_cast<uint32_t>(worker);
    g2.push_back(manager.register_layout(layout_of(config, KvBlockLayout::kUniversalTP)).value());
    g1.push_back(manager.register_layout(layout_of(config)).value());
    ASSERT_TRUE(manager.build_logical_descriptor(g1.back(), Tier::kG1));
    ASSERT_TRUE(manager.build_logical_descriptor(g2.back(), Tier::kG2));
  }
  for (const auto& importer : managers) {
    for (const auto& exporter : managers) {
      if (importer == exporter) continue;
      const size_t index = exporter->worker_id().value() - 10;
      const auto handles = importer->import_metadata(bytes_of(*exporter));
      ASSERT_TRUE(handles) << handles.error();
      EXPECT_THAT(*handles, ElementsAre(g2[index], g1[index]));  // in the order of handles
    }
  }
  for (const auto& manager : managers) {
    EXPECT_EQ(manager->imported_workers().size(), 2U);
    for (uint64_t worker = 0; worker < 3; ++worker) {
      const WorkerId id{10 + worker};
      EXPECT_EQ(manager->resolve(id, Tier::kG1).value(), g1[worker]);
      EXPECT_EQ(manager->resolve(id, Tier::kG2).value(), g2[worker]);
      EXPECT_EQ(code_of(manager->resolve(id, Tier::kG3)), ErrorCode::kNotFound);
      EXPECT_EQ(code_of(manager->resolve(id, Tier::kG1, GroupId{1})), ErrorCode::kNotFound);
      const auto remote = manager->find_remote_layout(g2[worker]);
      if (id == manager->worker_id()) {
        EXPECT_EQ(remote, nullptr);
        continue;
      }
      ASSERT_NE(remote, nullptr);
      EXPECT_EQ(remote->tier, Tier::kG2);
      EXPECT_EQ(remote->layout.config.num_blocks, 4 + worker);
      EXPECT_EQ(remote->layout.format, KvBlockLayout::kUniversalTP);
      // All of it as its worker has it: addresses too.
      EXPECT_EQ(remote->layout, LayoutDescriptor::of(*managers[worker]->find_layout(g2[worker])));
      EXPECT_EQ(manager->find_layout(g2[worker]), nullptr);
    }
    EXPECT_EQ(code_of(manager->resolve(WorkerId{99}, Tier::kG1)), ErrorCode::kNotFound);
  }
}

TEST_F(LayoutExchange, ATransferThatNamesTheLayoutOfAnotherWorkerIsUnsupported) {
  const auto here = manager_of(1);
  const auto there = manager_of(2);
  const LayoutHandle local = here->register_layout(layout_of()).value();
  const LayoutHandle remote = there->register_layout(layout_of()).value();
  ASSERT_TRUE(there->build_logical_descriptor(remote, Tier::kG2));
  const std::vector<BlockId> ids = block_ids({0, 1});
  const auto transfer = [&](LayoutHandle src, LayoutHandle dst) {
    return here->execute_transfer({.src = src, .src_ids = ids, .dst = dst, .dst_ids = ids});
  };
  EXPECT_EQ(code_of(transfer(local, remote)), ErrorCode::kNotFound);
  ASSERT_TRUE(here->import_metadata(bytes_of(*there)));
  for (const auto& [src, dst] : {std::pair{local, remote}, {remote, local}, {remote, remote}}) {
    const auto found = transfer(src, dst);
    ASSERT_FALSE(found);
    EXPECT_EQ(found.error().code(), ErrorCode::kUnsupported);
    EXPECT_THAT(found.error().message(),
                HasSubstr("worker 2 layout 0 is G2 of another process: its bytes are reached by a "
                          "remote agent"));
  }
  const LayoutHandle other{WorkerId{2}, 1};
  EXPECT_EQ(code_of(transfer(local, other)), ErrorCode::kNotFound);
  ASSERT_TRUE(here->remove_import(WorkerId{2}));
  EXPECT_EQ(code_of(transfer(local, remote)), ErrorCode::kNotFound);
}

TEST_F(LayoutExchange, ADescriptorSaysTierGroupAndLayout) {
  const auto manager = manager_of(3);
  const LayoutHandle handle = manager->register_layout(layout_of()).value();
  const auto logical = manager->build_logical_descriptor(handle, Tier::kG3, GroupId{2}).value();
  EXPECT_EQ(logical.handle, handle);
  EXPECT_EQ(logical.tier, Tier::kG3);
  EXPECT_EQ(logical.group, GroupId{2});
  EXPECT_EQ(logical.layout, LayoutDescriptor::of(*manager->find_layout(handle)));
  EXPECT_EQ(manager->resolve(WorkerId{3}, Tier::kG3, GroupId{2}).value(), handle);
  EXPECT_TRUE(manager->build_logical_descriptor(handle, Tier::kG3, GroupId{2}));  // no change
}

TEST_F(LayoutExchange, ALayoutIsOneTierAndATierIsOneLayout) {
  const auto manager = manager_of(3);
  const LayoutHandle first = manager->register_layout(layout_of()).value();
  const LayoutHandle second = manager->register_layout(layout_of()).value();
  ASSERT_TRUE(manager->build_logical_descriptor(first, Tier::kG1));
  EXPECT_THAT(reason_of(manager->build_logical_descriptor(first, Tier::kG2)),
              HasSubstr("layout 0 is G1 of group 0 already; it cannot be G2 of group 0 too"));
  EXPECT_THAT(reason_of(manager->build_logical_descriptor(first, Tier::kG1, GroupId{1})),
              HasSubstr("it cannot be G1 of group 1 too"));
  EXPECT_THAT(reason_of(manager->build_logical_descriptor(second, Tier::kG1)),
              HasSubstr("layout 0 is G1 of group 0 already; worker 3 layout 1 cannot be it too"));
  EXPECT_TRUE(manager->build_logical_descriptor(second, Tier::kG1, GroupId{1}));
  EXPECT_EQ(code_of(manager->build_logical_descriptor({WorkerId{3}, 9}, Tier::kG4)),
            ErrorCode::kNotFound);
  EXPECT_EQ(code_of(manager->build_logical_descriptor({WorkerId{4}, 0}, Tier::kG4)),
            ErrorCode::kNotFound);
}

TEST_F(LayoutExchange, ALayoutThatIsUnregisteredIsNoTierAnyMore) {
  const auto manager = manager_of(3);
  const LayoutHandle first = manager->register_layout(layout_of()).value();
  ASSERT_TRUE(manager->build_logical_descriptor(first, Tier::kG1));
  ASSERT_TRUE(manager->unregister_layout(first));
  EXPECT_EQ(code_of(manager->resolve(WorkerId{3}, Tier::kG1)), ErrorCode::kNotFound);
  EXPECT_THAT(bytes_of(*manager).unpack()->layouts, IsEmpty());
  const LayoutHandle second = manager->register_layout(layout_of()).value();
  EXPECT_TRUE(manager->build_logical_descriptor(second, Tier::kG1));
  EXPECT_EQ(manager->resolve(WorkerId{3}, Tier::kG1).value(), second);
}

TEST_F(LayoutExchange, MetadataHasTheLayoutsWithATierAndTheAgentsOwn) {
  const auto exporter = manager_of(1, "agent-a");
  EXPECT_EQ(exporter->worker_address(), (WorkerAddress{WorkerId{1}, "agent-a"}));
  EXPECT_EQ(manager_of(5)->worker_address(), (WorkerAddress{WorkerId{5}, "worker-5"}));
  ASSERT_TRUE(exporter->register_layout(layout_of()));
  const LayoutHandle handle = exporter->register_layout(layout_of()).value();
  ASSERT_TRUE(exporter->build_logical_descriptor(handle, Tier::kG4, GroupId{3}));
  const std::vector<std::byte> own{std::byte{9}, std::byte{8}};
  const SerializedLayout bytes = exporter->export_metadata(own).value();

  const auto importer = manager_of(2);
  EXPECT_THAT(importer->import_metadata(bytes).value(), ElementsAre(handle));
  const auto found = importer->find_import(WorkerId{1});
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(found->worker, exporter->worker_address());
  EXPECT_EQ(found->agent_metadata, own);
  EXPECT_EQ(found->layouts.at(0).tier, Tier::kG4);
  EXPECT_EQ(found->layouts.at(0).group, GroupId{3});
  EXPECT_THAT(importer->imported_workers(), ElementsAre(exporter->worker_address()));
  EXPECT_EQ(importer->find_import(WorkerId{3}), nullptr);
}

TEST_F(LayoutExchange, AnImportIsAllOrNothing) {
  const auto manager = manager_of(1);
  // The last of four layouts is none.
  const SerializedLayout packed = SerializedLayout::pack(testing::sample_metadata()).value();
  std::vector<std::byte> bytes(packed.as_bytes().begin(), packed.as_bytes().end());
  bytes[bytes.size() - 8 - 4 - 7 * 8 + 1] = std::byte{0};  // its region has no bytes
  const auto damaged = SerializedLayout::from_bytes(testing::resealed_metadata(bytes));
  EXPECT_EQ(code_of(manager->import_metadata(damaged)), ErrorCode::kCorrupt);
  EXPECT_THAT(manager->imported_workers(), IsEmpty());
  for (uint16_t layout = 0; layout < 4; ++layout) {
    EXPECT_EQ(manager->find_remote_layout({WorkerId{7}, layout}), nullptr);
  }
  EXPECT_EQ(manager->import_metadata(packed)->size(), 4U);
}

TEST_F(LayoutExchange, TwoWorkersWithOneIdOrOneAgentAreRefused) {
  const auto importer = manager_of(1, "agent-1");
  const auto import = [&](uint64_t worker, const std::string& agent) {
    return importer->import_metadata(bytes_of(*manager_of(worker, agent)));
  };
  EXPECT_THAT(reason_of(import(1, "agent-x")), HasSubstr("has the id of this worker (agent-1)"));
  EXPECT_EQ(code_of(importer->import_metadata(bytes_of(*importer))), ErrorCode::kInvalidArgument);
  EXPECT_THAT(reason_of(import(2, "agent-1")), HasSubstr("has the agent name of this worker"));
  EXPECT_THAT(importer->imported_workers(), IsEmpty());

  ASSERT_TRUE(import(2, "agent-2"));
  EXPECT_THAT(reason_of(import(2, "agent-3")),
              HasSubstr("worker 2 (agent-3) was imported before, with the agent agent-2"));
  EXPECT_THAT(reason_of(import(2, "agent-2")), HasSubstr("its import has to be removed first"));
  EXPECT_THAT(reason_of(import(3, "agent-2")),
              HasSubstr("workers 2 and 3 have one agent name, agent-2"));
  EXPECT_THAT(importer->imported_workers(), ElementsAre(WorkerAddress{WorkerId{2}, "agent-2"}));
}

TEST_F(LayoutExchange, WhatChangedIsSeenAfterTheImportWasRemoved) {
  const auto importer = manager_of(1);
  const auto exporter = manager_of(2);
  const LayoutHandle first = exporter->register_layout(layout_of()).value();
  ASSERT_TRUE(exporter->build_logical_descriptor(first, Tier::kG1));
  ASSERT_TRUE(importer->import_metadata(bytes_of(*exporter)));
  const auto held = importer->find_remote_layout(first);
  const LayoutHandle second = exporter->register_layout(layout_of()).value();
  ASSERT_TRUE(exporter->build_logical_descriptor(second, Tier::kG2));
  EXPECT_EQ(code_of(importer->resolve(WorkerId{2}, Tier::kG2)), ErrorCode::kNotFound);

  ASSERT_TRUE(importer->remove_import(WorkerId{2}));
  EXPECT_EQ(code_of(importer->remove_import(WorkerId{2})), ErrorCode::kNotFound);
  EXPECT_EQ(importer->find_remote_layout(first), nullptr);
  EXPECT_EQ(code_of(importer->resolve(WorkerId{2}, Tier::kG1)), ErrorCode::kNotFound);
  EXPECT_EQ(held->handle, first);  // who holds it keeps it
  ASSERT_TRUE(importer->import_metadata(bytes_of(*exporter)));
  EXPECT_EQ(importer->resolve(WorkerId{2}, Tier::kG2).value(), second);
}

}  // namespace
}  // namespace kvbm
