// SPDX-License-Identifier: Apache-2.0
// TransferManager: copies blocks between registered layouts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/metrics.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/device.hpp"
#include "kvbm/layout/kv_blocks.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/memory/file_engine.hpp"
#include "kvbm/memory/host_pinner.hpp"
#include "kvbm/transfer/calibration.hpp"
#include "kvbm/transfer/layout_handle.hpp"
#include "kvbm/transfer/logical_layout.hpp"
#include "kvbm/transfer/manager_context.hpp"
#include "kvbm/transfer/remote_agent.hpp"
#include "kvbm/transfer/serialized_layout.hpp"
#include "kvbm/transfer/transfer_notification.hpp"
#include "kvbm/transfer/transfer_options.hpp"
#include "kvbm/transfer/transfer_preferences.hpp"

namespace kvbm {

struct TransferConfig {
  WorkerId worker{0};  ///< in handles, and in the name of the task queue: "w0-transfer"
  Device& device;
  Executor& executor;
  LogSink& log;
  FileEngine* files = nullptr;         ///< null: transfers with a file side are kUnsupported
  MetricsRegistry* metrics = nullptr;  ///< null: nobody counts
  /// What choose_method() goes by between memory and memory; empty: the copy engine moves all.
  Calibration calibration = {};

  /// For transfers that need not wait, to the device and as many to the host. All streams are made
  /// by create(), none later.
  size_t streams_per_direction = 4;
  /// For transfers that wait for events, one each; beyond it they wait on the host instead.
  size_t max_waiting_streams = 8;
  size_t num_threads = 2;                  ///< that checksum file transfers
  size_t file_requests_per_transfer = 64;  ///< in flight at the same time; the rest follow
  size_t max_transfers = 4096;  ///< not done yet; full: execute_transfer fails with kExhausted

  /// By which other workers know this one, besides its id. Empty: the name of the remote agent, or
  /// without one "worker-" and the id.
  std::string agent_name = {};

  size_t side_streams = 2;  ///< for copies on the device, and on the host
  TransferCapabilities capabilities = {};
  TransferPreferences preferences = {};
  /// Between the hops of staged transfers, made when the first one comes: in pageable memory, or
  /// where the device takes no other in pinned memory, by `pinner`. A slot holds whole blocks;
  /// those of one transfer may fill several.
  uint32_t bounce_slots = 4;
  uint64_t bounce_slot_bytes = uint64_t{32} << 20;
  std::shared_ptr<HostPinner> pinner = nullptr;
  /// Reaches the layouts of other workers, and lets them reach ours. Null: nobody does.
  RemoteAgent* remote_agent = nullptr;
  /// If set, create() refuses a device that is not this CUDA device.
  std::optional<int32_t> cuda_device_id = std::nullopt;

  /// Asks for a backend of NIXL. Errors: kUnsupported, always: there is no NIXL adapter yet.
  Status nixl_backend(std::string_view name);
};

/// Memory to memory goes through Device::copy, on the caller's stream, always by the copy engine,
/// or on streams of the manager's own, by the method that choose_method() says. Between a file and
/// memory each block is one file request; writing adds tag and checksum, reading checks them, and a
/// block that does not pass has failed while the others go on. Memory of other workers is read and
/// written by the remote agent; their threads take no part. What no single hop can do goes by two,
/// some blocks at a time, through bounce blocks.
///
/// Ownership: borrows all of TransferConfig but the pinner, which outlives the manager and its
/// transfers; the device and
///   the file engine outlive the manager. The memory of layouts stays until the notifications of
///   their transfers are done; memory that a layout owns does so by itself. Destruction: transfers
///   that wait on the host and blocks that have not been submitted end as kCancelled; file requests
///   and copies that nothing holds up are waited for, and so is what other workers are doing to the
///   memory of layouts, which is cut off. Copies queued behind an event, or on a caller's stream,
///   end with their device, as do their notifications.
/// Errors: what is wrong with a request comes back from the call, and nothing has been touched.
/// Threads: any thread (with a SteppedExecutor: its owner thread). Destruction: not inside a
/// callback.
class TransferManager {
 public:
  /// Errors: kInvalidArgument (a count that is zero, an agent_name that is not the remote agent's),
  /// kExhausted (no thread, no stream).
  [[nodiscard]] static Result<std::unique_ptr<TransferManager>> create(
      const TransferConfig& config);
  ~TransferManager();
  TransferManager(const TransferManager&) = delete;
  TransferManager& operator=(const TransferManager&) = delete;

  /// Ids are given in turn; one comes again only after all others of its 16 bits.
  /// Other workers may reach its memory from now on, if there is a remote agent that does.
  /// Errors: kExhausted (65536 layouts are registered), kInvalidArgument (made for another remote
  /// agent, or in the memory of another device than the manager's), those of
  /// RemoteAgent::register_memory.
  [[nodiscard]] Result<LayoutHandle> register_layout(PhysicalLayout layout);

  /// No new transfer can name it; those that run are not disturbed, but those of other workers are
  /// cut off. Done once none of these touches its memory: with what the notifications of this
  /// manager's say, the memory is the caller's again. Errors: kNotFound.
  Result<Completion> unregister_layout(LayoutHandle handle);

  /// Null if not registered; the layout lives as long as the pointer.
  [[nodiscard]] std::shared_ptr<const PhysicalLayout> find_layout(LayoutHandle handle) const;

  /// Makes a registered layout this worker's `tier` of a group of layers, until it is unregistered:
  /// resolve() gives it, export_metadata() takes it along. Again is no change. Errors: kNotFound
  /// (not registered here), kInvalidArgument (it is another tier or group already; another layout
  /// is this one).
  [[nodiscard]] Result<LogicalLayoutDescriptor> build_logical_descriptor(
      LayoutHandle handle, LogicalLayoutHandle tier, GroupId group = GroupId{0});

  /// All layouts that have a tier, for other workers. The remote agent's metadata goes along, or
  /// without one `agent_metadata` as it is.
  /// Errors: kInvalidArgument (2^32 bytes and more; `agent_metadata` with a remote agent), those of
  /// RemoteAgent::metadata.
  [[nodiscard]] Result<SerializedLayout> export_metadata(
      std::span<const std::byte> agent_metadata = {}) const;

  /// Makes the layouts of another worker known by their handles, which it returns in the order of
  /// the metadata: all of them, or on an error none. Where both workers have remote agents,
  /// transfers may name them. What a worker has changed since is seen after remove_import()
  /// and another import: a second import of an id is refused, because nothing tells it from a
  /// second worker with this id.
  /// Errors: those of SerializedLayout::unpack, kInvalidArgument (a worker id or an agent name that
  /// is this worker's or was imported before; another thread is at it), those of
  /// RemoteAgent::add_peer.
  Result<std::vector<LayoutHandle>> import_metadata(const SerializedLayout& metadata);
  /// Its handles are unknown from now on; transfers that run go on. Errors: kNotFound.
  Status remove_import(WorkerId worker);

  /// Null if not imported; what it points to stays as long as the pointer.
  [[nodiscard]] std::shared_ptr<const LayoutMetadata> find_import(WorkerId worker) const;
  [[nodiscard]] std::shared_ptr<const LogicalLayoutDescriptor> find_remote_layout(
      LayoutHandle handle) const;
  /// By id.
  [[nodiscard]] std::vector<WorkerAddress> imported_workers() const;

  /// The layout that is a tier of a worker, this one or an imported one.
  /// Errors: kNotFound (the worker is not known here; it has no such layout).
  [[nodiscard]] Result<LayoutHandle> resolve(WorkerId worker, LogicalLayoutHandle tier,
                                             GroupId group = GroupId{0}) const;

  /// Never waits. An empty id list is done at once, whatever it waits for.
  /// Errors: kNotFound (a handle), kInvalidArgument (lists of different lengths; an id out of
  /// range; a destination twice; a destination that is also a source of the same layout; shapes
  /// that differ after slices; layers or heads outside; a format that LayoutView::as refuses; tags
  /// missing, too many or without a file; bounce blocks that are none, out of range, there twice,
  /// in use, or of another shape), kUnsupported (the layout of another worker, if there is no
  /// remote agent here or there; a way that
  /// choose_strategy() refuses, or an option that the way cannot honour; a format that is known on
  /// one side only; layouts that may share bytes; a direct file whose slots are not aligned for it;
  /// a block that is larger than a bounce slot; bounce blocks that a hop does not reach), kTimeout
  /// (the deadline has passed), kExhausted (max_transfers; the queue of the stream; a moment at
  /// which other threads hold all streams), kDevice and others from the device.
  [[nodiscard]] Result<TransferCompleteNotification> execute_transfer(
      const TransferRequest& request);

  /// The same for blocks of layouts that find_layout() gave, in the format that they say.
  /// Errors: as above; kNotFound (a layout that is not registered, or no longer), kInvalidArgument
  /// (a format that an option says otherwise).
  [[nodiscard]] Result<TransferCompleteNotification> execute_transfer(
      const KvBlocks& src, const KvBlocks& dst, const TransferOptions& options = {});

  /// The same between two tiers, of this worker unless it says another. Errors: as above; kNotFound
  /// (a worker that is not known; it has no such layout).
  [[nodiscard]] Result<TransferCompleteNotification> execute_transfer(
      const LogicalTransferRequest& request);

  /// By which way the request would go, and why, in words; moves nothing. Errors: those of
  /// execute_transfer that are known without a device.
  [[nodiscard]] Result<std::string> explain_transfer(const TransferRequest& request) const;

  /// Streams and events for callers.
  [[nodiscard]] ManagerContext context() const;

  /// What other workers have said by TransferOptions::write_notification since the last call, in
  /// the order in which it came. Empty without a remote agent.
  [[nodiscard]] std::vector<RemoteNotification> take_notifications();

  /// Transfers that are not done.
  [[nodiscard]] size_t in_flight() const;
  [[nodiscard]] WorkerId worker_id() const noexcept;
  /// By which other workers know this one.
  [[nodiscard]] const WorkerAddress& worker_address() const noexcept;

 private:
  class Core;

  explicit TransferManager(std::unique_ptr<Core> core);

  std::unique_ptr<Core> core_;
};

}  // namespace kvbm
