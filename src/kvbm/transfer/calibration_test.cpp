// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/calibration.hpp"

#include <memory>
#include <optional>
#include <utility>

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/device/host_device.hpp"

#include "tests/support/error_code.hpp"
#include "tests/support/pinner_double.hpp"
#include "tests/support/transfer_rig.hpp"
#include "tests/support/two_method_device.hpp"

namespace kvbm {
namespace {

using testing::TwoMethodDevice;

FormCost rates(std::vector<RunRate> all) { return {.rates = std::move(all)}; }

TEST(Calibration, RatesGoBetweenMeasuredRunsByTheirRatio) {
  const FormCost cost = rates({{1000, 1e9}, {100'000, 3e9}});
  EXPECT_DOUBLE_EQ(cost.bytes_per_second(1000), 1e9);
  EXPECT_DOUBLE_EQ(cost.bytes_per_second(10'000), 2e9);
  EXPECT_DOUBLE_EQ(cost.bytes_per_second(100'000), 3e9);
  EXPECT_DOUBLE_EQ(cost.bytes_per_second(1'000'000), 3e9);
  EXPECT_DOUBLE_EQ(cost.bytes_per_second(100), 1e8) << "a run takes its time, however short";
}

TEST(Calibration, KeepsWhatWasSetAndRefusesWhatMakesNoSense) {
  Calibration calibration;
  EXPECT_EQ(calibration.find(TransferRoute::kHostToDevice), nullptr);
  const FormCost good = rates({{1000, 1e9}, {2000, 2e9}});
  calibration.set(TransferRoute::kHostToDevice, {good, good, good});
  ASSERT_NE(calibration.find(TransferRoute::kHostToDevice), nullptr);
  EXPECT_EQ((*calibration.find(TransferRoute::kHostToDevice))[1].rates.size(), 2u);
  EXPECT_EQ(calibration.find(TransferRoute::kDeviceToHost), nullptr);
  for (const FormCost& bad : {rates({}), rates({{1000, 0}}), rates({{1000, 1e9}, {1000, 1e9}}),
                              rates({{2000, 1e9}, {1000, 1e9}})}) {
    EXPECT_THROW(calibration.set(TransferRoute::kDeviceToHost, {good, bad, good}),
                 ContractViolation);
  }
}

/// However busy the machine is, nothing is left out for want of time.
constexpr Duration kNoLimit = Duration::max();

struct Machine {
  NullLogSink log;
  ThreadExecutor executor{log};
  std::unique_ptr<HostDevice> host = HostDevice::create({.executor = executor}).value();
};

TEST(Calibration, ADeviceOfOneMethodIsNotMeasured) {
  Machine machine;
  const Calibration calibration =
      measure_calibration({.device = *machine.host, .executor = machine.executor}).value();
  EXPECT_EQ(calibration.find(TransferRoute::kHostToDevice), nullptr);
}

TEST(Calibration, MeasuresEveryRouteInEveryForm) {
  Machine machine;
  TwoMethodDevice device(*machine.host);
  const auto pinner = std::make_shared<testing::PinnerDouble>();
  const Calibration calibration = measure_calibration({.device = device,
                                                       .executor = machine.executor,
                                                       .pinner = pinner,
                                                       .budget = kNoLimit,
                                                       .device_bytes = 16 * kMiB})
                                      .value();
  for (const TransferRoute route : {TransferRoute::kHostToDevice, TransferRoute::kDeviceToHost,
                                    TransferRoute::kDeviceToDevice}) {
    const RouteCost* const cost = calibration.find(route);
    ASSERT_NE(cost, nullptr) << to_string(route);
    EXPECT_TRUE((*cost)[static_cast<size_t>(CopyForm::kRing)].rates.empty()) << "there is no ring";
    for (const FormCost& form : std::span(*cost).first(kNumCopyForms - 1)) {
      const bool is_runs = &form == &cost->at(static_cast<size_t>(CopyForm::kEngineRuns));
      ASSERT_EQ(form.rates.size(), is_runs ? 7U : 6U);
      for (const RunRate& rate : form.rates) EXPECT_GT(rate.bytes_per_second, 0);
      EXPECT_GE(form.submission.count(), 0);
      EXPECT_GE(form.step.count(), 0);
    }
  }
  EXPECT_EQ(calibration.find(TransferRoute::kHostToHost), nullptr);
  EXPECT_EQ(device.ring_copies, 0);
  EXPECT_GT(device.kernel_copies, 0);
  EXPECT_GT(device.engine_copies, 0);
  EXPECT_TRUE(pinner->pinned().empty()) << "memory was left pinned";
}

TEST(Calibration, ARingIsMeasuredBetweenDeviceAndHost) {
  Machine machine;
  TwoMethodDevice device(*machine.host);
  const auto measure = [&] {
    return measure_calibration({.device = device,
                                .executor = machine.executor,
                                .budget = kNoLimit,
                                .device_bytes = 16 * kMiB})
        .value();
  };
  const auto ring_on = [](const Calibration& calibration, TransferRoute route) {
    const RouteCost* const cost = calibration.find(route);
    return cost == nullptr ? std::nullopt
                           : std::optional(cost->at(static_cast<size_t>(CopyForm::kRing)));
  };
  device.ring_block_bytes = 2 * kMiB - 1;
  EXPECT_FALSE(measures_ring(device.info().capabilities));
  const Calibration without = measure();
  ASSERT_TRUE(ring_on(without, TransferRoute::kHostToDevice)) << "the route was left out";
  EXPECT_TRUE(ring_on(without, TransferRoute::kHostToDevice)->rates.empty());
  device.ring_block_bytes = 2 * kMiB;
  EXPECT_TRUE(measures_ring(device.info().capabilities));
  const Calibration calibration = measure();
  for (const TransferRoute route : {TransferRoute::kHostToDevice, TransferRoute::kDeviceToHost}) {
    const auto form = ring_on(calibration, route);
    ASSERT_TRUE(form) << to_string(route) << " was left out";
    ASSERT_EQ(form->rates.size(), 2u);
    for (const RunRate& rate : form->rates) EXPECT_GT(rate.bytes_per_second, 0);
  }
  const auto on_the_device = ring_on(calibration, TransferRoute::kDeviceToDevice);
  ASSERT_TRUE(on_the_device) << "the route was left out";
  EXPECT_TRUE(on_the_device->rates.empty());
  EXPECT_GT(device.ring_copies, 0);
}

TEST(Calibration, OnAFullDeviceCopiesInsideItAreLeftOut) {
  Machine machine;
  TwoMethodDevice device(*machine.host);
  device.largest_allocation = 32 * kMiB;
  const Calibration calibration =
      measure_calibration({.device = device, .executor = machine.executor, .budget = kNoLimit})
          .value();
  EXPECT_NE(calibration.find(TransferRoute::kHostToDevice), nullptr);
  EXPECT_NE(calibration.find(TransferRoute::kDeviceToHost), nullptr);
  EXPECT_EQ(calibration.find(TransferRoute::kDeviceToDevice), nullptr);
}

TEST(Calibration, WhatDoesNotFitTheBudgetIsLeftOut) {
  Machine machine;
  TwoMethodDevice device(*machine.host);
  const Calibration calibration =
      measure_calibration(
          {.device = device, .executor = machine.executor, .budget = Duration::zero()})
          .value();
  EXPECT_EQ(calibration.find(TransferRoute::kHostToDevice), nullptr);
  EXPECT_EQ(device.engine_copies + device.kernel_copies, 0);
}

TEST(Calibration, RefusesCopiesThatTellNothing) {
  Machine machine;
  const auto measured = measure_calibration(
      {.device = *machine.host, .executor = machine.executor, .device_bytes = kMiB});
  EXPECT_EQ(testing::code_of(measured), ErrorCode::kInvalidArgument);
}

/// A manager with a layout in pinned memory and one in memory of a device that has two methods.
struct PlanningRig {
  explicit PlanningRig(const Calibration& calibration, uint64_t ring_block_bytes = 0)
      : device(*machine.host, ring_block_bytes),
        manager(TransferManager::create({.device = device,
                                         .executor = machine.executor,
                                         .log = machine.log,
                                         .calibration = calibration})
                    .value()) {
    near.data()[bytes - 1] = std::byte{7};
  }

  [[nodiscard]] LayoutHandle add(const MemoryRegion& region) const {
    return manager->register_layout(PhysicalLayout::fully_contiguous(kConfig, region).value())
        .value();
  }
  [[nodiscard]] Status transfer(LayoutHandle src, LayoutHandle dst,
                                TransferOptions options = {}) const {
    const std::vector<BlockId> ids = testing::block_ids({3, 0});
    return manager
        ->execute_transfer(
            {.src = src, .src_ids = ids, .dst = dst, .dst_ids = ids, .options = std::move(options)})
        .value()
        .wait();
  }

  static constexpr LayoutConfig kConfig{.num_blocks = 4,
                                        .num_layers = 2,
                                        .outer_dim = 1,
                                        .page_size = 4,
                                        .inner_dim = 16,
                                        .dtype_width_bytes = 1};
  const uint64_t bytes = required_bytes(kConfig, LayoutKind::kFullyContiguous).value();
  Machine machine;
  TwoMethodDevice device;
  DeviceMemory near = device.allocate(bytes, 64).value();
  DeviceMemory far = device.allocate(bytes, 64).value();
  std::unique_ptr<TransferManager> manager;
  LayoutHandle on_host = add(MemoryRegion::of_bytes(StorageKind::kPinned, near.data(), bytes));
  LayoutHandle on_device = add(MemoryRegion::of(far));
};

/// Kernels are ten times as fast on the way to the device, where memory is the "device's".
TEST(Calibration, TheManagerPlansByIt) {
  Calibration calibration;
  calibration.set(TransferRoute::kHostToDevice,
                  {rates({{64, 1e9}}), rates({{64, 1e9}}), rates({{64, 1e10}})});
  calibration.set(TransferRoute::kDeviceToHost,
                  {rates({{64, 1e10}}), rates({{64, 1e10}}), rates({{64, 1e9}})});
  PlanningRig rig(calibration);
  ASSERT_TRUE(rig.transfer(rig.on_host, rig.on_device));
  EXPECT_EQ(rig.device.kernel_copies, 1);
  EXPECT_EQ(rig.device.last_max_ctas, 4u);
  EXPECT_EQ(rig.device.last_pace, 0u);
  EXPECT_EQ(rig.far.data()[rig.bytes - 1], std::byte{7});
  ASSERT_TRUE(rig.transfer(rig.on_device, rig.on_host));
  EXPECT_EQ(rig.device.kernel_copies, 1);
  EXPECT_EQ(rig.device.engine_copies, 1);
  EXPECT_EQ(rig.device.last_max_ctas, 0u);
  const StreamRef stream = rig.device.create_stream("caller").value();
  ASSERT_TRUE(rig.transfer(rig.on_host, rig.on_device, {.stream = stream}));
  EXPECT_EQ(rig.device.kernel_copies, 1) << "a caller's stream takes the engine";
}

TEST(Calibration, TheManagerTakesTheRingWhereItIsFaster) {
  Calibration calibration;
  const FormCost slow = rates({{64, 1e9}});
  const FormCost fast = rates({{64, 1e10}});
  calibration.set(TransferRoute::kDeviceToHost, {fast, fast, slow, fast});
  calibration.set(
      TransferRoute::kHostToDevice,
      {FormCost{.submission = CopyCost(1000), .rates = {{64, 1e10}}}, slow, slow, fast});
  PlanningRig rig(calibration, 128);
  ASSERT_TRUE(rig.transfer(rig.on_host, rig.on_device));
  EXPECT_EQ(rig.device.ring_copies, 1);
  EXPECT_EQ(rig.device.last_max_ctas, 0u);
  EXPECT_EQ(rig.far.data()[rig.bytes - 1], std::byte{7});
  ASSERT_TRUE(rig.transfer(rig.on_device, rig.on_host));
  EXPECT_EQ(rig.device.engine_copies, 1);
  PlanningRig smaller(calibration, 127);
  ASSERT_TRUE(smaller.transfer(smaller.on_host, smaller.on_device));
  EXPECT_EQ(smaller.device.ring_copies, 0) << "a block has 128 bytes";
}

TEST(Calibration, TheManagerHoldsKernelsBackThatWriteToTheHost) {
  Calibration calibration;
  calibration.set(TransferRoute::kDeviceToHost,
                  {rates({{64, 1e9}}), rates({{64, 1e9}}), rates({{64, 1e10}})});
  PlanningRig rig(calibration);
  ASSERT_TRUE(rig.transfer(rig.on_device, rig.on_host));
  EXPECT_EQ(rig.device.kernel_copies, 1);
  EXPECT_EQ(rig.device.last_max_ctas, 2u);
  EXPECT_EQ(rig.device.last_pace, 9'900'000'000u);
}

}  // namespace
}  // namespace kvbm
