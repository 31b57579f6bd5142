// SPDX-License-Identifier: Apache-2.0
// CudaDevice: an NVIDIA GPU as a Device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/device.hpp"
#include "kvbm/device/ring_size.hpp"
#include "kvbm/memory/host_pinner.hpp"

namespace kvbm {

namespace internal {
class CudaContext;
class CudaMemory;
class CudaPinner;
class CudaStreams;
}  // namespace internal

/// A GPU as `kvbm doctor` tells it; no context is made on it.
struct CudaDeviceInfo {
  int32_t ordinal = 0;
  std::string name = {};
  int32_t sm = 0;  ///< compute capability: 90 is 9.0
  uint64_t total_bytes = 0;
  std::string pci_address = {};
  std::optional<uint32_t> numa_node = std::nullopt;  ///< where the machine has nodes
  int32_t driver_version = 0;                        ///< of CUDA: 13000 is 13.0
  int32_t runtime_version = 0;
  bool has_memcpy_batch = false;  ///< in this build and in the running driver
  bool has_kernels = false;       ///< in this build, as code or as PTX
  bool kernels_from_ptx = false;  ///< that the driver has to compile at their first use
};

struct CudaDeviceOptions {
  Executor& executor;  ///< with threads of its own: a SteppedExecutor cannot drive a GPU
  int32_t ordinal = 0;
  size_t num_threads = 2;     ///< that run launched tasks, and operations that waited on the host
  size_t max_streams = 256;   ///< that exist at the same time, adopted ones among them
  size_t max_queued = 65536;  ///< operations of one stream; full: the call fails with kExhausted
  uint64_t pool_reserve_bytes = uint64_t{64} << 20;      ///< taken at once for small allocations
  uint64_t pool_release_threshold = uint64_t{64} << 20;  ///< what the pool keeps of what comes back
  /// Of the GPU's memory, each way, for copies through a ring; 0: none. A block of them is not
  /// larger than half of it. Where that much is not free there is no ring.
  uint64_t ring_bytes = kDefaultRingBytes;
};

/// A native stream for each stream. What depends on the GPU alone (copies, events of CUDA devices)
/// is put on it within the call. A stream that has to wait for the host (an event of another
/// origin, a launched task) keeps what follows in a queue of its own until the host is there, so
/// that no native stream of ours ever waits for the host: streams share hardware queues, and one
/// that waits in there may hold up the very copy that it waits for.
///
/// Completions: one thread asks the oldest event of each stream, spins shortly and then sleeps at
/// most 50 µs; without anything to watch it sleeps for good. Callbacks run there.
///
/// An adopted stream is the engine's own. Everything goes on it at once, and where it has to wait
/// for the host it waits in the GPU for a word of memory that the host writes. A GPU has few
/// hardware queues (CUDA_DEVICE_MAX_CONNECTIONS, 8): while as many streams wait like that, kernels
/// of all streams are held up behind them; copies are not.
///
/// Memory: host memory is pinned memory; any other the driver would copy on the calling thread.
/// Copies: kEngine makes of a batch rectangles, plain copies and at most one batch of the driver. A
/// rectangle of rows of 256 bytes and more has the full rate of the link. kKernel is there where
/// the build has kernels for the GPU, or its driver compiles them; create() loads them. The ids of
/// up to 512 blocks travel with their launch, as do those of more if blocks on the device are
/// large. For all others a stream has room for 65536 pairs that kernels have not read yet: one of
/// ours submits what is beyond that when there is room again; an adopted one refuses it as
/// kExhausted.
///
/// kRing is there with kernels, and with memory for it (`ring_bytes`); on an adopted stream it is
/// refused. All streams share the ring, so such a copy goes on once the GPU has ended what came
/// before it on its stream: nothing that a caller makes a stream wait for holds up the others. The
/// whole image of a block is read and written, also what lies between bytes of a source that are
/// read twice.
///
/// After an error that a CUDA context does not survive, everything queued and every later call
/// fails as kDevice.
class CudaDevice final : public Device {
 public:
  /// Errors: kUnavailable (no driver, no GPU), kUnsupported (too old a driver), kNotFound (no such
  /// ordinal), kInvalidArgument (an option that is zero, a ring of
  /// less than 8 KiB), kExhausted (no thread, no memory),
  /// kDevice.
  [[nodiscard]] static Result<std::unique_ptr<CudaDevice>> create(const CudaDeviceOptions& options);
  ~CudaDevice() override;

  /// The GPUs that this process may use. Errors: kUnavailable, kUnsupported, kDevice, as create().
  [[nodiscard]] static Result<std::vector<CudaDeviceInfo>> find_all();

  /// The name of an engine's native stream (its cudaStream_t; 0 is the default stream). The same
  /// stream has the same name until destroy_stream(), which leaves the native stream alone.
  /// Ownership: the engine's; it destroys the stream after destroy_stream() and after the events of
  /// it are done. A stream that records a graph is refused by every operation, as kRejected.
  /// Errors: kInvalidArgument (a stream of another GPU), kExhausted.
  [[nodiscard]] Result<StreamRef> adopt_stream(uintptr_t native_stream, std::string_view name);

  /// For PinnedMemory that this device copies; the memory may outlive the device.
  [[nodiscard]] std::shared_ptr<HostPinner> pinner() const;

  /// For calls of libraries that work in the thread's current context: it is this GPU's for as long
  /// as the result lives, on this thread; of several the last one goes first. Valid as long as the
  /// device.
  [[nodiscard]] std::shared_ptr<const void> enter() const;

  [[nodiscard]] DeviceInfo info() const override;
  [[nodiscard]] Result<StreamRef> create_stream(std::string_view name) override;
  Status destroy_stream(StreamRef stream) override;
  /// Up to pool_reserve_bytes from the pool. A larger one is an allocation of its own, and its end
  /// waits for the GPU.
  [[nodiscard]] Result<DeviceMemory> allocate(uint64_t size_bytes, uint64_t alignment) override;
  Status copy(StreamRef stream, StridedCopyBatch batch) override;
  Status pattern(StreamRef stream, PatternBatch batch) override;
  Status checksum(StreamRef stream, ChecksumBatch batch) override;
  Status launch(StreamRef stream, StreamTask task) override;
  [[nodiscard]] Event record(StreamRef stream) override;
  [[nodiscard]] Result<Event> copy_and_record(StreamRef stream, StridedCopyBatch batch) override;
  Status wait(StreamRef stream, const Event& event) override;
  [[nodiscard]] Executor& executor() const noexcept override;

 private:
  /// The bytes of the batch. Errors: those of copy().
  [[nodiscard]] Result<uint64_t> check(const StridedCopyBatch& batch) const;

  CudaDevice(std::shared_ptr<const internal::CudaContext> context,
             std::shared_ptr<internal::CudaMemory> memory,
             std::shared_ptr<internal::CudaPinner> pinner,
             std::shared_ptr<internal::CudaStreams> streams);

  const std::shared_ptr<const internal::CudaContext> context_;
  const std::shared_ptr<internal::CudaMemory> memory_;
  const std::shared_ptr<internal::CudaPinner> pinner_;
  const std::shared_ptr<internal::CudaStreams> streams_;
};

}  // namespace kvbm
