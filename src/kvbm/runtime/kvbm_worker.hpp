// SPDX-License-Identifier: Apache-2.0
// KvbmWorker: one rank of an engine: its KV tensors, and everything that moves bytes for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kvbm/base/log.hpp"
#include "kvbm/base/metrics.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/connector/connector_worker.hpp"
#include "kvbm/memory/file.hpp"
#include "kvbm/protocol/messages.hpp"
#include "kvbm/runtime/devices.hpp"
#include "kvbm/worker/worker.hpp"

namespace kvbm {

/// A part of every block of a layer that is contiguous: that of block b is the `bytes` bytes from
/// `base + b * block_stride` on.
struct EngineRun {
  std::byte* base = nullptr;
  uint64_t block_stride = 0;  ///< bytes
};

/// The KV tensors of one layer group, as an engine has them. All runs have the same length; a block
/// of the group is its runs in this order.
struct EngineGroup {
  uint64_t run_bytes = 0;
  std::vector<EngineRun> runs;  ///< layer by layer
  /// As many for each layer. 0: nobody knows; then each layer needs all of a load.
  uint32_t runs_per_layer = 0;
};

struct KvbmWorkerOptions {
  uint16_t rank = 0;
  /// Where the engine's tensors are: "host", or "cuda:N" for device addresses of that GPU.
  std::string device = "host";
  /// The engine's native stream (a cudaStream_t), on which it computes; nothing: the default stream
  /// of the GPU. Only with a GPU.
  std::optional<uintptr_t> compute_stream = std::nullopt;
  uint32_t num_blocks = 0;          ///< of every group
  std::vector<EngineGroup> groups;  ///< their index is their GroupId
  std::string disk_directory;
  DirectIo direct_io = DirectIo::kTry;  ///< of the disk tier
  bool zero_fill = false;               ///< of the disk tier, see FileOptions
  uint32_t copy_threads = 2;
  /// As the configuration key of that name; nothing: its default. Only with a GPU.
  std::optional<uint64_t> cuda_ring_size = std::nullopt;
  uint32_t disk_threads = 4;
  std::string calibration_dir = {};  ///< as the configuration key of that name
  /// Instead of the device of that name; null: open_device().
  DeviceOpener open_device = nullptr;
};

/// With tensors on a GPU nothing waits on the host: steps order the engine's stream and the copies.
/// Ownership: owns threads, device and worker; borrows the engine's tensors, which stay until
/// stop() has succeeded, and the log.
/// Threads: the engine's thread.
class KvbmWorker {
 public:
  /// Errors: kInvalidArgument (no group, no run, no whole number of layers, runs that overlap,
  /// addresses that are not the device's), kExhausted (threads), those of open_device().
  [[nodiscard]] static Result<std::unique_ptr<KvbmWorker>> create(KvbmWorkerOptions options,
                                                                  LogSink& log);
  ~KvbmWorker();
  KvbmWorker(const KvbmWorker&) = delete;
  KvbmWorker& operator=(const KvbmWorker&) = delete;

  [[nodiscard]] Worker& worker() noexcept;
  /// The hooks of a step.
  [[nodiscard]] ConnectorWorker& hooks() noexcept;
  /// G1, group by group.
  [[nodiscard]] const std::vector<PlaceSpec>& engine_places() const noexcept;

  /// Comes to a leader of another process of this host, now or when it is there, makes the places
  /// that it asks for and takes its operations. Contract: once only. Errors: kInvalidArgument (the
  /// endpoint), kExhausted (thread), kUnsupported (this build has no channel between processes).
  Status connect(const std::string& endpoint, const std::string& secret);

  /// What the copies of this rank have counted.
  [[nodiscard]] MetricsRegistry& metrics() noexcept;

  /// Waits for running copies and takes no more, then leaves its leader. Errors: kTimeout (the
  /// tensors must stay).
  Status stop(TimePoint deadline = kNever);

 private:
  struct Impl;
  explicit KvbmWorker(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace kvbm
