// SPDX-License-Identifier: Apache-2.0
// The contract of devices, kept by HostDevice on threads and in steps, by FaultyDevice without
// faults, and by HiddenDevice.
#include <cstring>
#include <memory>
#include <span>

#include "kvbm/base/log.hpp"
#include "kvbm/base/stepped_executor.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/device/host_device.hpp"

#include "tests/contract/device_contract.hpp"
#include "tests/support/faulty_device.hpp"
#include "tests/support/hidden_device.hpp"

namespace kvbm::testing {
namespace {

template <class Executors>
class HostDeviceHarness {
 public:
  [[nodiscard]] Executor& executor() { return executors_.executor; }
  [[nodiscard]] Device& device() { return *device_; }
  void destroy_device() { device_.reset(); }
  void upload(std::byte* to, std::span<const std::byte> from) {
    std::memcpy(to, from.data(), from.size());
  }
  void download(std::span<std::byte> to, const std::byte* from) {
    std::memcpy(to.data(), from, to.size());
  }

 private:
  Executors executors_;
  std::unique_ptr<HostDevice> device_ =
      HostDevice::create(
          {.executor = executors_.executor, .operations_per_turn = Executors::kOperationsPerTurn})
          .value();
};

struct Threads {
  static constexpr size_t kOperationsPerTurn = 16;
  NullLogSink log;
  ThreadExecutor executor{log};
};

/// One operation a step, so that streams mix in every order.
template <uint64_t seed>
struct Steps {
  static constexpr size_t kOperationsPerTurn = 1;
  SteppedExecutor executor{seed};
};

class FaultlessDeviceHarness : public HostDeviceHarness<Threads> {
 public:
  [[nodiscard]] Device& device() { return *faulty_; }
  void destroy_device() {
    faulty_.reset();
    HostDeviceHarness<Threads>::destroy_device();
  }

 private:
  std::unique_ptr<FaultyDevice> faulty_ =
      std::make_unique<FaultyDevice>(HostDeviceHarness<Threads>::device(), DeviceFaults{});
};

class HiddenDeviceHarness : public HostDeviceHarness<Threads> {
 public:
  [[nodiscard]] Device& device() { return *hidden_; }
  void destroy_device() {
    hidden_.reset();
    HostDeviceHarness<Threads>::destroy_device();
  }
  void upload(std::byte* to, std::span<const std::byte> from) {
    HostDeviceHarness<Threads>::upload(hidden_->behind(to), from);
  }
  void download(std::span<std::byte> to, const std::byte* from) {
    HostDeviceHarness<Threads>::download(to, hidden_->behind(from));
  }

 private:
  std::unique_ptr<HiddenDevice> hidden_ =
      std::make_unique<HiddenDevice>(HostDeviceHarness<Threads>::device());
};

INSTANTIATE_TYPED_TEST_SUITE_P(HostDeviceOnThreads, DeviceContract, HostDeviceHarness<Threads>);
using SteppedHarnesses = ::testing::Types<HostDeviceHarness<Steps<1>>, HostDeviceHarness<Steps<2>>,
                                          HostDeviceHarness<Steps<3>>>;
INSTANTIATE_TYPED_TEST_SUITE_P(HostDeviceInSteps, DeviceContract, SteppedHarnesses);
INSTANTIATE_TYPED_TEST_SUITE_P(FaultyDeviceWithoutFaults, DeviceContract, FaultlessDeviceHarness);
INSTANTIATE_TYPED_TEST_SUITE_P(HiddenDeviceOnThreads, DeviceContract, HiddenDeviceHarness);

TEST(FaultyDevice, FailsTheEventAfterACopyItWasToldToFail) {
  NullLogSink log;
  ThreadExecutor executor(log);
  const auto host = HostDevice::create({.executor = executor}).value();
  FaultyDevice device(*host, {.seed = 5, .copy_fails = 0.5});
  const DeviceMemory memory = device.allocate(8192, 1).value();
  const StreamRef stream = device.create_stream("stream").value();
  uint64_t failed = 0;
  for (int i = 0; i < 100; ++i) {
    const auto moved = std::make_shared<std::atomic<uint64_t>>(0);
    ASSERT_TRUE(device.copy(
        stream, {.pairs = make_block_pairs({BlockId(0)}),
                 .pieces = {{.src = memory.data(), .dst = memory.data() + 4096, .bytes = 4096}},
                 .bytes_moved = moved}));
    const Status outcome = device.synchronize(stream);
    EXPECT_EQ(*moved, outcome ? 4096u : 0u);
    if (outcome) continue;
    ++failed;
    EXPECT_EQ(code_of(outcome), ErrorCode::kDevice);
  }
  EXPECT_EQ(failed, device.num_faults());
  EXPECT_GT(failed, 20u);
  EXPECT_LT(failed, 80u);
}

}  // namespace
}  // namespace kvbm::testing
