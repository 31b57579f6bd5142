// SPDX-License-Identifier: Apache-2.0
// WorkerPlaces: where the blocks of a rank are: the engine's tensors, host memory, files.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvbm/base/completion.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/layout/layout_config.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/memory/file_memory.hpp"
#include "kvbm/memory/host_memory.hpp"
#include "kvbm/protocol/messages.hpp"
#include "kvbm/transfer/layout_handle.hpp"
#include "kvbm/transfer/transfer_manager.hpp"
#include "kvbm/worker/worker.hpp"

namespace kvbm::internal {

/// Ownership: owns the memory of the places that it makes; borrows all else. The transfer manager,
/// with which it registers them, ends before it.
/// Threads: any thread.
class WorkerPlaces {
 public:
  WorkerPlaces(const WorkerOptions& options, TransferManager& transfers, bool has_files,
               Executor& executor, LogSink& log)
      : options_(options),
        transfers_(transfers),
        has_files_(has_files),
        executor_(executor),
        log_(log) {}

  /// As Worker has them.
  [[nodiscard]] Result<PlaceSpec> attach(Place place, PhysicalLayout tensors,
                                         uint32_t pieces_per_layer);
  Status provide(const PlaceSpec& spec);
  void on_shrunk(ShrinkCallback callback);

  /// None: there is no such place.
  [[nodiscard]] std::optional<LayoutHandle> find(Place place) const;
  /// True once, when the pinning of host memory is over: then the threads that did it are to be
  /// ended, by end_pinning() on a thread that may wait.
  [[nodiscard]] bool take_pinning_ended();
  void end_pinning();
  /// Ends the threads that pin, however far they are. Requires: nobody adds places any more.
  void close();

  /// Done when the blocks of both ends may be copied: those in host memory are pinned.
  [[nodiscard]] std::array<Completion, 2> ready(const CopyOp& op) const {
    return {ready(op.src, op.from), ready(op.dst, op.to)};
  }
  /// Of a place of the engine's. 0: nobody knows.
  [[nodiscard]] uint32_t pieces_per_layer(Place place) const;

 private:
  struct Known {
    LayoutHandle handle = {};
    uint32_t pieces_per_layer = 0;
    const HostMemory* memory = nullptr;  ///< of `provided_`: may still be on its way to be pinned
    uint64_t block_bytes = 0;            ///< from block to block of it
    uint32_t num_blocks = 0;             ///< that it was to have
    std::optional<uint32_t> shrunk_to = std::nullopt;
  };
  /// Host memory of which there is less than was asked for.
  struct Shortage {
    uint64_t usable_bytes = 0;
    std::string why;
  };
  struct Provided {
    std::optional<Shortage> shortage;  ///< under the lock; outlives the threads of `memory`
    HostMemory memory;
    FileMemory file;
  };

  [[nodiscard]] Completion ready(Place place, std::span<const BlockId> blocks) const;
  [[nodiscard]] Result<LayoutConfig> config_of(const PlaceSpec& spec) const;
  [[nodiscard]] Result<HostMemory> make_host_memory(Place place, uint64_t bytes,
                                                    Provided& provided);
  void fall_short(Place place, Provided& provided, Shortage shortage);
  void shrink(Place place, const Provided& provided);
  [[nodiscard]] Result<PhysicalLayout> in_host_memory(const LayoutConfig& config, Place place,
                                                      Provided& memory);
  [[nodiscard]] Result<PhysicalLayout> in_file(const LayoutConfig& config, GroupId group,
                                               Provided& memory);
  Status add(Place place, PhysicalLayout layout, Known known);

  const WorkerOptions& options_;
  TransferManager& transfers_;
  const bool has_files_;
  Executor& executor_;
  LogSink& log_;

  std::atomic<bool> is_pinning_{false};  // there are threads that pin, or did
  mutable Mutex mutex_{LockRank::kWorker, "worker.places"};
  std::map<Place, Known> known_ KVBM_GUARDED_BY(mutex_);
  std::shared_ptr<const ShrinkCallback> on_shrunk_ KVBM_GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<Provided>> provided_ KVBM_GUARDED_BY(mutex_);
};

}  // namespace kvbm::internal
