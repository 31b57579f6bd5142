// SPDX-License-Identifier: Apache-2.0
// SecondaryTier: a disk below a host pool that an engine keeps itself.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/metrics.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/memory/file.hpp"

namespace kvbm {

/// Of disk_blocks and disk_bytes the number has precedence.
struct SecondaryTierOptions {
  std::byte* memory = nullptr;  ///< of the engine's host pool: chunk i at i * chunk_stride
  uint32_t num_chunks = 0;
  uint64_t chunk_bytes = 0;
  uint64_t chunk_stride = 0;  ///< bytes
  std::string model;          ///< whose weights; chunks of different models never meet
  uint32_t disk_blocks = 0;   ///< chunks on disk
  uint64_t disk_bytes = 0;
  std::string disk_directory;
  DirectIo direct_io = DirectIo::kTry;
  bool zero_fill = false;  ///< see FileOptions
  uint32_t disk_threads = 4;
  Duration timeout{std::chrono::seconds(30)};  ///< of a load
};

/// The end of a job.
struct FinishedTierJob {
  uint64_t job = 0;
  bool succeeded = false;  ///< everything that was asked for is where it should be
  /// Of a load: the positions that are, up to the first whose copy failed; sorted.
  std::vector<uint32_t> arrived;
  uint64_t bytes = 0;  ///< moved
  Duration time{0};    ///< since it was submitted

  friend bool operator==(const FinishedTierJob&, const FinishedTierJob&) = default;
};

/// Chunks of an engine's host pool, copied to disk and back by key. Keys are the engine's own: a
/// hash of up to 32 bytes, then the layer group in four bytes, big-endian, as vLLM makes them. A
/// chunk is found only when it has arrived. No call but drain() waits for a copy.
///
/// Ownership: owns threads and files; borrows the pool, which stays until the destructor has
/// returned, and the log. Threads: one thread at a time, the engine's scheduler.
/// Source: vLLM 0.32, vllm/v1/kv_offload/tiering/base.py (SecondaryTierManager)
class SecondaryTier {
 public:
  /// Errors: kInvalidArgument (no pool, no disk), those of the disk's file.
  [[nodiscard]] static Result<std::unique_ptr<SecondaryTier>> create(
      const SecondaryTierOptions& options, LogSink& log);
  /// Waits for running copies.
  ~SecondaryTier();
  SecondaryTier(const SecondaryTier&) = delete;
  SecondaryTier& operator=(const SecondaryTier&) = delete;

  /// Whether the chunk can be loaded. Renews its recency. Errors: kInvalidArgument (no such key),
  /// here and below; then nothing has happened.
  [[nodiscard]] Result<bool> contains(std::span<const std::byte> key);

  /// Starts to copy chunks[i] of the pool, which stays as it is until the job has finished, to disk
  /// under keys[i]. What is there already, or on its way, is not copied again.
  Status store(uint64_t job, std::span<const std::span<const std::byte>> keys,
               std::span<const uint32_t> chunks);
  /// Starts to copy what has been stored under keys[i] to chunks[i] of the pool, which is the job's
  /// until it has finished.
  Status load(uint64_t job, std::span<const std::span<const std::byte>> keys,
              std::span<const uint32_t> chunks);

  /// Moves out the jobs that have finished: no copy touches their chunks any more.
  [[nodiscard]] std::vector<FinishedTierJob> take_finished();
  [[nodiscard]] size_t num_open_jobs() const noexcept;
  /// Waits until every job has finished. Errors: kTimeout.
  Status drain(TimePoint deadline = kNever);

  [[nodiscard]] uint32_t num_disk_blocks() const noexcept;
  [[nodiscard]] uint64_t resident_blocks() const;
  [[nodiscard]] MetricsRegistry& metrics() noexcept;

 private:
  struct Impl;
  explicit SecondaryTier(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace kvbm
