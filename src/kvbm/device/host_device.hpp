// SPDX-License-Identifier: Apache-2.0
// HostDevice: a device made of host memory and host threads; the oracle for all others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/device.hpp"

namespace kvbm {

struct HostDeviceOptions {
  Executor& executor;
  size_t num_threads = 2;     ///< streams that run at the same time
  std::string name = "host";  ///< of the device and of its task queue
  int32_t ordinal = 0;        ///< as DeviceInfo tells it
  size_t max_streams = 256;   ///< that exist at the same time
  size_t max_queued = 65536;  ///< operations of one stream; full: the call fails with kExhausted
  size_t operations_per_turn = 16;  ///< that a stream runs before another one gets the thread
  std::optional<uint64_t> memory_bytes =
      std::nullopt;  ///< pretend to have this much; else what the machine has
  std::filesystem::path machine_root = "/";  ///< whose proc/ and sys/ tell what the machine has
};

/// Streams are queues that the threads of one TaskQueue drain. A stream that waits for an event
/// leaves its thread and comes back when the event is done, so a waiting stream holds no thread.
/// Memory: anonymous pages, taken when first touched. Without `memory_bytes`, an allocation larger
/// than what the kernel calls available, or the control group still allows, is refused. Copies:
/// plain memcpy, runs that touch on both sides joined; one batch runs on one thread, a pattern too.
class HostDevice final : public Device {
 public:
  /// Errors: kInvalidArgument (an option that is zero), kExhausted (no thread).
  [[nodiscard]] static Result<std::unique_ptr<HostDevice>> create(HostDeviceOptions options);
  ~HostDevice() override;

  [[nodiscard]] DeviceInfo info() const override;
  [[nodiscard]] Result<StreamRef> create_stream(std::string_view name) override;
  Status destroy_stream(StreamRef stream) override;
  [[nodiscard]] Result<DeviceMemory> allocate(uint64_t size_bytes, uint64_t alignment) override;
  Status copy(StreamRef stream, StridedCopyBatch batch) override;
  Status pattern(StreamRef stream, PatternBatch batch) override;
  Status checksum(StreamRef stream, ChecksumBatch batch) override;
  Status launch(StreamRef stream, StreamTask task) override;
  [[nodiscard]] Event record(StreamRef stream) override;
  Status wait(StreamRef stream, const Event& event) override;
  [[nodiscard]] Executor& executor() const noexcept override;

 private:
  class Allocator;
  class Core;
  struct Stream;

  HostDevice(std::shared_ptr<Core> core, std::shared_ptr<Allocator> allocator);

  std::shared_ptr<Core> core_;
  std::shared_ptr<Allocator> allocator_;
};

}  // namespace kvbm
