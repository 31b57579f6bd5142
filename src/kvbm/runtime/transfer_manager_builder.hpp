// SPDX-License-Identifier: Apache-2.0
// TransferManagerBuilder: a TransferManager with all that it needs, for programs that have nothing
// of it.
//
//   auto manager = TransferManagerBuilder().cuda_device_id(0).build();
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/device.hpp"
#include "kvbm/layout/layout_builder.hpp"
#include "kvbm/layout/owned_region.hpp"
#include "kvbm/runtime/gds.hpp"
#include "kvbm/transfer/remote_agent.hpp"
#include "kvbm/transfer/transfer_manager.hpp"
#include "kvbm/transfer/transfer_preferences.hpp"

namespace kvbm {

/// A TransferManager with its threads, its device, its files and its log.
/// Ownership: layouts, notifications and events may outlive it as far as those of a TransferManager
/// may outlive their device. Destruction: see TransferManager.
/// Threads: any thread; destruction as a TransferManager's.
class OwnedTransferManager {
 public:
  ~OwnedTransferManager();
  OwnedTransferManager(const OwnedTransferManager&) = delete;
  OwnedTransferManager& operator=(const OwnedTransferManager&) = delete;

  [[nodiscard]] TransferManager& operator*() const noexcept;
  [[nodiscard]] TransferManager* operator->() const noexcept { return &**this; }

  [[nodiscard]] Device& device() const noexcept;
  [[nodiscard]] Executor& executor() const noexcept;

  /// The first step of a layout whose memory this manager's agent knows by its name.
  [[nodiscard]] LayoutBuilder layout() const;
  /// Host memory that the device reaches by itself, for LayoutMemoryStage::allocate_pinned: pinned
  /// for a GPU, and the layout's build() then waits until all of it is; any for the host. Valid as
  /// long as this; what it gave may outlive it. Errors: those of PinnedMemory, SystemMemory.
  [[nodiscard]] RegionAllocator pinned_memory() const;
  /// The name of an engine's own stream (a cudaStream_t; 0: the default stream), for
  /// TransferOptions::stream; see OpenedDevice. Errors: kUnsupported (the host has no native
  /// streams), kInvalidArgument (a stream of another GPU), kExhausted.
  [[nodiscard]] Result<StreamRef> adopt_stream(uintptr_t native_stream,
                                               std::string_view name) const;

 private:
  friend class TransferManagerBuilder;
  struct Parts;
  explicit OwnedTransferManager(std::unique_ptr<Parts> parts) noexcept;

  std::unique_ptr<Parts> parts_;
};

/// Each setting at most once matters: the last one counts.
/// Threads: one thread at a time.
class TransferManagerBuilder {
 public:
  /// Default: cuda:0 where there is a GPU and this build has CUDA, else the host.
  TransferManagerBuilder& cuda_device_id(int32_t ordinal);
  /// "host", "cuda:N".
  TransferManagerBuilder& device(std::string name);

  /// Of the GPU's memory pool (CudaMemPool): bytes that are taken at once, and bytes that it keeps
  /// of what comes back. build() refuses them for the host, which has no pool.
  TransferManagerBuilder& cuda_pool_reserve_size(uint64_t size_bytes);
  TransferManagerBuilder& cuda_pool_release_threshold(uint64_t size_bytes);

  /// Of the GPU's memory, each way, for the ring that large copies go through; 0: none. Default:
  /// see CudaDeviceOptions. build() refuses it for the host.
  TransferManagerBuilder& cuda_ring_size(uint64_t size_bytes);

  /// build() answers kUnsupported: there is no NIXL adapter yet.
  TransferManagerBuilder& nixl_backend(std::string name);

  /// By which other workers are reached. Borrowed: outlives the manager. Default: none.
  TransferManagerBuilder& remote_agent(RemoteAgent& agent);

  TransferManagerBuilder& worker_id(WorkerId worker);
  TransferManagerBuilder& agent_name(std::string name);
  /// With allow_gds, blocks go between files and memory of a GPU by libcufile where that reaches
  /// both. Where it does not they are staged, as without: the log says so once, and
  /// explain_transfer() why.
  TransferManagerBuilder& capabilities(const TransferCapabilities& allowed);
  /// Which libcufile, and in which mode. build() refuses it without allow_gds.
  TransferManagerBuilder& gds(GdsOptions options);
  TransferManagerBuilder& preferences(const TransferPreferences& wishes);
  TransferManagerBuilder& streams_per_direction(size_t count);
  /// That serve files.
  TransferManagerBuilder& file_threads(size_t count);
  /// Where the calibration of a GPU is kept: see calibration_folder().
  TransferManagerBuilder& calibration_dir(std::string folder);
  /// Borrowed; default: warnings and errors on standard error.
  TransferManagerBuilder& log(LogSink& sink);

  /// May be called again, for another manager.
  /// Errors: those of open_device, TransferManager::create, kUnsupported (a backend of NIXL).
  [[nodiscard]] Result<std::unique_ptr<OwnedTransferManager>> build() const;

 private:
  std::string device_;  // empty: see cuda_device_id
  std::optional<uint64_t> cuda_pool_reserve_size_;
  std::optional<uint64_t> cuda_pool_release_threshold_;
  std::optional<uint64_t> cuda_ring_size_;
  std::vector<std::string> nixl_backends_;
  RemoteAgent* remote_agent_ = nullptr;
  WorkerId worker_{0};
  std::string agent_name_;
  TransferCapabilities capabilities_;
  std::optional<GdsOptions> gds_;
  TransferPreferences preferences_;
  std::optional<size_t> streams_per_direction_;
  size_t file_threads_ = 4;
  std::string calibration_dir_;
  LogSink* log_ = nullptr;
};

}  // namespace kvbm
