// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/event.hpp"

#include <array>
#include <memory>
#include <optional>

#include <gtest/gtest.h>

#include "kvbm/base/stepped_executor.hpp"
#include "kvbm/device/host_device.hpp"

#include "tests/support/allocation_meter.hpp"
#include "tests/support/error_code.hpp"

namespace kvbm {
namespace {

using testing::code_of;

TEST(Event, OfNothingIsDoneAndSucceeded) {
  const Event event;
  EXPECT_TRUE(event.done());
  EXPECT_TRUE(event.status());
  EXPECT_TRUE(event.wait());
  EXPECT_EQ(event.native(), nullptr);
  bool called = false;
  event.on_done([&called](const Status& status) noexcept { called = status.has_value(); });
  EXPECT_TRUE(called);
}

TEST(Event, ThatIsDoneFromTheStartAllocatesNothing) {
  SteppedExecutor executor(1);
  const auto device = HostDevice::create({.executor = executor}).value();
  const StreamRef stream = device->create_stream("idle").value();
  const testing::AllocationMeter meter;
  const Event event;
  Event copy;
  copy = event;
  const Event recorded = device->record(stream);
  bool called = false;
  copy.on_done([&called](const Status&) noexcept { called = true; });
  EXPECT_TRUE(copy.wait());
  EXPECT_TRUE(recorded.wait());
  EXPECT_EQ(meter.count(), 0u);
  EXPECT_TRUE(called);
}

TEST(Event, TwoCallbacksAllocateNothingAndKeepTheirOrder) {
  SteppedExecutor executor(1);
  EventSource source(executor);
  const Event event = source.event();
  std::array<int, 4> order{};
  size_t called = 0;
  const auto call = [&](int number) {
    event.on_done([&, number](const Status&) noexcept { order[called++] = number; });
  };
  const testing::AllocationMeter meter;
  call(1);
  call(2);
  EXPECT_EQ(meter.count(), 0u);
  call(3);
  call(4);
  source.signal();
  EXPECT_EQ(order, (std::array<int, 4>{1, 2, 3, 4}));
}

TEST(Event, MayBeFailedFromTheStart) {
  const Event event = Event::ready(make_error(ErrorCode::kDevice, "lost"));
  EXPECT_TRUE(event.done());
  EXPECT_EQ(code_of(event.status()), ErrorCode::kDevice);
}

TEST(Event, CopiesShareTheSignalOfTheSource) {
  SteppedExecutor executor(1);
  EventSource source(executor);
  const Event event = source.event();
  Event copy;
  copy = event;
  int calls = 0;
  copy.on_done([&calls](const Status&) noexcept { ++calls; });
  EXPECT_FALSE(copy.done());
  EXPECT_EQ(code_of(copy.wait()), ErrorCode::kTimeout);
  source.signal(make_error(ErrorCode::kIo, "torn"));
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(code_of(event.status()), ErrorCode::kIo);
  EXPECT_FALSE(source.try_signal());
  EXPECT_EQ(code_of(copy.status()), ErrorCode::kIo);
}

TEST(Event, FailsWhenItsSourceIsDroppedUnsignalled) {
  SteppedExecutor executor(1);
  std::optional<EventSource> source(executor);
  const Event event = source->event();
  source.reset();
  EXPECT_EQ(code_of(event.status()), ErrorCode::kInternal);
}

TEST(Event, CarriesWhatItsDeviceAttached) {
  class Marker final : public NativeEvent {};
  const auto marker = std::make_shared<const Marker>();
  const Event event(Completion::ready(), marker);
  EXPECT_EQ(event.native(), marker.get());
}

}  // namespace
}  // namespace kvbm
