// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/transfer_manager.hpp"

#include <algorithm>
#include <bit>
#include <map>
#include <set>
#include <utility>

#include "kvbm/base/mutex.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/transfer/copy_choice.hpp"
#include "kvbm/transfer/internal/failure.hpp"
#include "kvbm/transfer/internal/file_transfer.hpp"
#include "kvbm/transfer/internal/layout_directory.hpp"
#include "kvbm/transfer/internal/memory_transfer.hpp"
#include "kvbm/transfer/internal/transfer_context.hpp"
#include "kvbm/transfer/transfer_plan.hpp"
#include "kvbm/transfer/transfer_route.hpp"

namespace kvbm {
namespace {

constexpr size_t kMaxLayouts = 65536;

tl::unexpected<Error> invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, std::move(message));
}

/// A set of block ids of one layout: a table of twice as many places as ids, so that its cost is
/// that of the ids, however large the layout is.
class BlockSet {
 public:
  explicit BlockSet(size_t num_ids)
      : places_(std::bit_ceil(std::max<size_t>(2 * num_ids, 2)), kFree),
        shift_(static_cast<uint32_t>(64 - std::countr_zero(places_.size()))) {}

  /// False if it was there. Requires: no more of them than it was made for.
  bool insert(BlockId id) {
    uint32_t& place = places_[place_of(id)];
    return std::exchange(place, id.value()) != id.value();
  }
  [[nodiscard]] bool contains(BlockId id) const { return places_[place_of(id)] == id.value(); }

 private:
  static constexpr uint32_t kFree = 0xffff'ffff;  // no layout has a block of this id

  /// Where the id is or would be.
  [[nodiscard]] size_t place_of(BlockId id) const {
    // 2^64 / the golden ratio: the high bits of the product are far apart for ids that are near.
    size_t at = (id.value() * 0x9e37'79b9'7f4a'7c15) >> shift_;
    while (places_[at] != kFree && places_[at] != id.value()) at = (at + 1) & (places_.size() - 1);
    return at;
  }

  std::vector<uint32_t> places_;
  uint32_t shift_;
};

Status check_range(std::span<const BlockId> ids, uint32_t num_blocks, const char* side) {
  for (const BlockId id : ids) {
    if (id.value() >= num_blocks) {
      return invalid(format_text("{} block {} of a layout of {} blocks", side, id, num_blocks));
    }
  }
  return {};
}

/// Requires: ids in range.
Status check_distinct(const TransferRequest& request) {
  BlockSet destinations(request.dst_ids.size());
  for (const BlockId id : request.dst_ids) {
    if (!destinations.insert(id))
      return invalid(format_text("block {} is a destination twice", id));
  }
  if (request.src != request.dst) return {};
  for (const BlockId id : request.src_ids) {
    if (destinations.contains(id)) {
      return invalid(format_text("block {} is a source and a destination", id));
    }
  }
  return {};
}

std::vector<Event> not_done(std::span<const Event> events) {
  std::vector<Event> result;
  for (const Event& event : events) {
    // One that has failed counts as not done, so that it is looked at.
    if (!event.done() || !event.status()) result.push_back(event);
  }
  return result;
}

bool any_failed(std::span<const Event> events) {
  return std::ranges::any_of(events,
                             [](const Event& event) { return event.done() && !event.status(); });
}

WorkerAddress address_of(const TransferConfig& config) {
  return {config.worker,
          config.agent_name.empty() ? format_text("worker-{}", config.worker) : config.agent_name};
}

std::vector<BlockId> copy_of(std::span<const BlockId> ids) { return {ids.begin(), ids.end()}; }

}  // namespace

class TransferManager::Core {
 public:
  explicit Core(std::shared_ptr<internal::TransferContext> context)
      : context_(std::move(context)), address_(address_of(context_->config())) {}
  ~Core() { context_->close(); }
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  [[nodiscard]] const internal::TransferContext& context() const noexcept { return *context_; }

  Result<LayoutHandle> register_layout(PhysicalLayout layout) {
    auto shared = std::make_shared<const PhysicalLayout>(std::move(layout));
    const MutexLock lock(mutex_);
    if (layouts_.size() == kMaxLayouts) {
      return make_error(ErrorCode::kExhausted,
                        format_text("{} layouts are registered; unregister some", kMaxLayouts));
    }
    while (layouts_.contains(next_id_)) ++next_id_;
    const uint16_t id = next_id_++;
    for (const auto& [other_id, other] : layouts_) {
      if (may_share_bytes(*shared, *other)) aliases_.insert(std::minmax(id, other_id));
    }
    layouts_.emplace(id, std::move(shared));
    return LayoutHandle{context_->config().worker, id};
  }

  Status unregister_layout(LayoutHandle handle) {
    std::shared_ptr<const PhysicalLayout> last;  // released without the lock
    const MutexLock lock(mutex_);
    const auto found =
        handle.worker == context_->config().worker ? layouts_.find(handle.layout) : layouts_.end();
    if (found == layouts_.end()) return unknown(handle);
    last = std::move(found->second);
    layouts_.erase(found);
    directory_.forget(handle);
    std::erase_if(aliases_, [&](const auto& pair) {
      return pair.first == handle.layout || pair.second == handle.layout;
    });
    return {};
  }

  [[nodiscard]] std::shared_ptr<const PhysicalLayout> find_layout(LayoutHandle handle) const {
    if (handle.worker != context_->config().worker) return nullptr;
    const MutexLock lock(mutex_);
    const auto found = layouts_.find(handle.layout);
    return found == layouts_.end() ? nullptr : found->second;
  }

  [[nodiscard]] const WorkerAddress& address() const noexcept { return address_; }

  Result<LogicalLayoutDescriptor> build_logical_descriptor(LayoutHandle handle,
                                                           LogicalLayoutHandle tier,
                                                           GroupId group) {
    const MutexLock lock(mutex_);
    const auto found =
        handle.worker == address_.worker ? layouts_.find(handle.layout) : layouts_.end();
    if (found == layouts_.end()) return unknown(handle);
    KVBM_TRY(directory_.assign(handle, tier, group));
    return LogicalLayoutDescriptor{handle, tier, group, LayoutDescriptor::of(*found->second)};
  }

  [[nodiscard]] Result<SerializedLayout> export_metadata(
      std::span<const std::byte> agent_metadata) const {
    LayoutMetadata metadata{.worker = address_,
                            .agent_metadata = {agent_metadata.begin(), agent_metadata.end()}};
    {
      const MutexLock lock(mutex_);
      for (const internal::LayoutDirectory::Entry& entry : directory_.own()) {
        const PhysicalLayout& layout = *layouts_.at(entry.handle.layout);
        metadata.layouts.push_back(
            {entry.handle, entry.tier, entry.group, LayoutDescriptor::of(layout)});
      }
    }
    return SerializedLayout::pack(metadata);
  }

  Result<std::vector<LayoutHandle>> import_metadata(const SerializedLayout& bytes) {
    KVBM_ASSIGN_OR_RETURN(LayoutMetadata metadata, bytes.unpack());
    std::vector<LayoutHandle> handles;
    handles.reserve(metadata.layouts.size());
    for (const LogicalLayoutDescriptor& layout : metadata.layouts) {
      handles.push_back(layout.handle);
    }
    const MutexLock lock(mutex_);
    KVBM_TRY(directory_.import(std::move(metadata)));
    return handles;
  }

  /// Whatever `ask` does with the directory.
  template <class Ask>
  auto with_directory(Ask&& ask) {
    const MutexLock lock(mutex_);
    return ask(directory_);
  }

  Result<TransferCompleteNotification> execute_transfer(const TransferRequest& request) {
    const std::shared_ptr<const PhysicalLayout> src = find_layout(request.src);
    if (!src) return not_here(request.src);
    const std::shared_ptr<const PhysicalLayout> dst = find_layout(request.dst);
    if (!dst) return not_here(request.dst);
    KVBM_TRY(check_blocks(request, *src, *dst));
    KVBM_ASSIGN_OR_RETURN(const TransferRoute route,
                          choose_route(src->storage_kind(), dst->storage_kind(), capabilities_));
    KVBM_TRY(check_options(request, route, src->config()));
    if (request.src_ids.empty()) return TransferCompleteNotification();
    const internal::TransferFrame frame{.context = context_,
                                        .route = route,
                                        .num_blocks = request.src_ids.size(),
                                        .deadline = request.options.deadline,
                                        .layouts = {src, dst}};
    return is_file(route) ? transfer_file(request, frame) : transfer_memory(request, frame);
  }

 private:
  [[nodiscard]] static tl::unexpected<Error> unknown(LayoutHandle handle) {
    return make_error(ErrorCode::kNotFound,
                      format_text("{} is not registered here", to_string(handle)));
  }

  [[nodiscard]] tl::unexpected<Error> not_here(LayoutHandle handle) const {
    const MutexLock lock(mutex_);
    const std::shared_ptr<const LogicalLayoutDescriptor> remote = directory_.find(handle);
    if (!remote) return unknown(handle);
    return make_error(
        ErrorCode::kUnsupported,
        format_text("{} is {} of another process: its bytes are reached by a remote agent, and "
                    "this transfer manager has none",
                    to_string(handle), remote->tier));
  }

  Status check_blocks(const TransferRequest& request, const PhysicalLayout& src,
                      const PhysicalLayout& dst) const {
    if (request.src_ids.size() != request.dst_ids.size()) {
      return invalid(format_text("{} source blocks and {} destination blocks",
                                 request.src_ids.size(), request.dst_ids.size()));
    }
    KVBM_TRY(check_range(request.src_ids, src.config().num_blocks, "source"));
    KVBM_TRY(check_range(request.dst_ids, dst.config().num_blocks, "destination"));
    KVBM_TRY(check_distinct(request));
    KVBM_TRY(check_same_block_shape(src.config(), dst.config()));
    if (request.options.layer_range) {
      KVBM_TRY(check_layer_range(src.config(), *request.options.layer_range));
    }
    const MutexLock lock(mutex_);
    if (request.src != request.dst &&
        aliases_.contains(std::minmax(request.src.layout, request.dst.layout))) {
      return make_error(ErrorCode::kUnsupported,
                        format_text("layouts {} and {} may share bytes, so a copy between them may "
                                    "overwrite what it reads",
                                    request.src.layout, request.dst.layout));
    }
    return {};
  }

  [[nodiscard]] static bool is_file(TransferRoute route) {
    return route == TransferRoute::kMemoryToFile || route == TransferRoute::kFileToMemory;
  }

  Status check_options(const TransferRequest& request, TransferRoute route,
                       const LayoutConfig& config) const {
    const TransferOptions& options = request.options;
    if (options.deadline <= context_->now()) {
      return make_error(ErrorCode::kTimeout, "the deadline of the transfer has passed already");
    }
    if (!is_file(route)) {
      if (!options.tags.empty()) {
        return invalid("tags are kept in files; memory has no place for them");
      }
      return {};
    }
    if (context_->config().files == nullptr) {
      return make_error(ErrorCode::kUnsupported,
                        "the transfer manager was made without a file engine");
    }
    if (options.tags.size() != request.src_ids.size()) {
      return invalid(format_text("{} tags for {} blocks; a file asks for one each",
                                 options.tags.size(), request.src_ids.size()));
    }
    if (options.stream) {
      return make_error(
          ErrorCode::kUnsupported,
          "file transfers do not run on a stream: give events to wait for, and let the stream "
          "wait for the event of the notification");
    }
    if (options.layer_range && *options.layer_range != config.all_layers()) {
      return make_error(ErrorCode::kUnsupported,
                        "a slot of a file is written and checked as a whole: transfer all layers");
    }
    return {};
  }

  /// Admits the transfer and starts it; forgets it if it does not start.
  template <class T, class Start>
  Result<TransferCompleteNotification> launch(const std::shared_ptr<T>& transfer, Start&& start) {
    KVBM_TRY(context_->admit(transfer));
    if (Status status = internal::guarded([&] { return start(*transfer); }); !status) {
      context_->ending();
      context_->forget(*transfer);
      return make_error(std::move(status).error());
    }
    return transfer->notification();
  }

  /// A caller's stream may have no room for what a kernel needs, and cannot wait for it; there the
  /// copy engine is left as it is.
  void choose(StridedCopyBatch& batch, TransferRoute route) const {
    if (!capabilities_.kernel_copies) return;
    const MethodChoice choice =
        choose_method({.pieces = batch.pieces,
                       .num_blocks = batch.from->size(),
                       .num_groups = count_equal_steps(*batch.from, *batch.to),
                       .route = route,
                       .capabilities = capabilities_,
                       .calibration = context_->config().calibration});
    batch.method = choice.method;
    batch.max_ctas = choice.max_ctas;
    batch.max_bytes_per_second = choice.max_bytes_per_second;
  }

  /// `frame` without block_bytes.
  Result<TransferCompleteNotification> transfer_memory(const TransferRequest& request,
                                                       internal::TransferFrame frame) {
    const TransferOptions& options = request.options;
    const PhysicalLayout& src = *frame.layouts[0];
    const PhysicalLayout& dst = *frame.layouts[1];
    KVBM_ASSIGN_OR_RETURN(
        const TransferPlan plan,
        TransferPlan::create(src, dst, options.layer_range.value_or(src.config().all_layers())));
    frame.block_bytes = plan.bytes_per_block();
    StridedCopyBatch batch{.from = make_block_list(copy_of(request.src_ids)),
                           .to = make_block_list(copy_of(request.dst_ids)),
                           .pieces = plan.with_addresses(src, dst),
                           .bytes_moved = nullptr};
    if (!options.stream) choose(batch, frame.route);
    auto transfer = std::make_shared<internal::MemoryTransfer>(std::move(frame), std::move(batch));
    const std::vector<Event> events = not_done(options.wait_for);
    return launch(transfer, [&](internal::MemoryTransfer& starting) -> Status {
      if (any_failed(events)) return starting.start_on_host(events);
      if (options.stream) return starting.start_on(*options.stream, events);
      if (events.empty()) return starting.start_now();
      if (options.deadline == kNever) {
        if (const auto stream = context_->streams().take_waiting()) {
          Status status = starting.start_on_waiting(*stream, events);
          // It may have been left with a wait for an event that never comes.
          if (!status) context_->streams().discard_waiting(*stream);
          return status;
        }
      }
      return starting.start_on_host(events);
    });
  }

  /// `frame` without block_bytes.
  Result<TransferCompleteNotification> transfer_file(const TransferRequest& request,
                                                     internal::TransferFrame frame) {
    const PhysicalLayout& src = *frame.layouts[0];
    const PhysicalLayout& dst = *frame.layouts[1];
    if (src.kv_block_layout().requires_transform(dst.kv_block_layout())) {
      return make_error(
          ErrorCode::kUnsupported,
          format_text("a slot of a file is written and read in the format of its memory, not as {} "
                      "on one side and {} on the other: copy the blocks to memory of the other "
                      "format first",
                      to_string(src.kv_block_layout()), to_string(dst.kv_block_layout())));
    }
    const bool writes = frame.route == TransferRoute::kMemoryToFile;
    const PhysicalLayout& file = writes ? dst : src;
    KVBM_TRY(internal::check_slot_alignment(file));
    std::vector<internal::AddressedRun> runs = internal::addressed_runs(writes ? src : dst);
    const std::span<const SlotTag> tags = request.options.tags;
    frame.block_bytes = file.config().block_bytes();
    KVBM_ASSIGN_OR_RETURN(
        const auto transfer,
        internal::FileTransfer::create(
            std::move(frame), internal::FileTransferSpec{
                                  .op = writes ? FileOp::kWrite : FileOp::kRead,
                                  .file = file,
                                  .runs = std::move(runs),
                                  .slots = copy_of(writes ? request.dst_ids : request.src_ids),
                                  .blocks = copy_of(writes ? request.src_ids : request.dst_ids),
                                  .tags = {tags.begin(), tags.end()}}));
    return launch(transfer, [&](internal::FileTransfer& starting) {
      return starting.start(not_done(request.options.wait_for));
    });
  }

  const std::shared_ptr<internal::TransferContext> context_;
  const WorkerAddress address_;
  const DeviceCapabilities capabilities_ = context_->device().info().capabilities;
  mutable Mutex mutex_{LockRank::kTransfer, "transfer.layouts"};
  std::map<uint16_t, std::shared_ptr<const PhysicalLayout>> layouts_ KVBM_GUARDED_BY(mutex_);
  std::set<std::pair<uint16_t, uint16_t>> aliases_ KVBM_GUARDED_BY(mutex_);
  uint16_t next_id_ KVBM_GUARDED_BY(mutex_) = 0;
  internal::LayoutDirectory directory_ KVBM_GUARDED_BY(mutex_){address_};
};

Result<std::unique_ptr<TransferManager>> TransferManager::create(const TransferConfig& config) {
  const auto check = [](const char* name, size_t value) -> Status {
    if (value > 0) return {};
    return invalid(format_text("transfer config: {} is 0", name));
  };
  KVBM_TRY(check("streams_per_direction", config.streams_per_direction));
  KVBM_TRY(check("num_threads", config.num_threads));
  KVBM_TRY(check("file_requests_per_transfer", config.file_requests_per_transfer));
  KVBM_TRY(check("max_transfers", config.max_transfers));
  KVBM_ASSIGN_OR_RETURN(auto streams,
                        internal::StreamPool::create(config.device, config.streams_per_direction,
                                                     config.max_waiting_streams));
  KVBM_ASSIGN_OR_RETURN(
      auto queue,
      config.executor.create_queue(
          // The id first: a thread name is cut at its end.
          {.name = format_text("w{}-transfer", config.worker),
           .num_threads = config.num_threads,
           .capacity = internal::TransferContext::queue_capacity(config.max_transfers)}));
  auto context =
      std::make_shared<internal::TransferContext>(config, std::move(streams), std::move(queue));
  return std::unique_ptr<TransferManager>(
      new TransferManager(std::make_unique<Core>(std::move(context))));
}

TransferManager::TransferManager(std::unique_ptr<Core> core) : core_(std::move(core)) {}

TransferManager::~TransferManager() = default;

Result<LayoutHandle> TransferManager::register_layout(PhysicalLayout layout) {
  return core_->register_layout(std::move(layout));
}

Status TransferManager::unregister_layout(LayoutHandle handle) {
  return core_->unregister_layout(handle);
}

std::shared_ptr<const PhysicalLayout> TransferManager::find_layout(LayoutHandle handle) const {
  return core_->find_layout(handle);
}

Result<TransferCompleteNotification> TransferManager::execute_transfer(
    const TransferRequest& request) {
  return core_->execute_transfer(request);
}

Result<LogicalLayoutDescriptor> TransferManager::build_logical_descriptor(LayoutHandle handle,
                                                                          LogicalLayoutHandle tier,
                                                                          GroupId group) {
  return core_->build_logical_descriptor(handle, tier, group);
}

Result<SerializedLayout> TransferManager::export_metadata(
    std::span<const std::byte> agent_metadata) const {
  return core_->export_metadata(agent_metadata);
}

Result<std::vector<LayoutHandle>> TransferManager::import_metadata(
    const SerializedLayout& metadata) {
  return core_->import_metadata(metadata);
}

Status TransferManager::remove_import(WorkerId worker) {
  return core_->with_directory([&](auto& directory) { return directory.remove(worker); });
}

std::shared_ptr<const LayoutMetadata> TransferManager::find_import(WorkerId worker) const {
  return core_->with_directory([&](const auto& directory) { return directory.find(worker); });
}

std::shared_ptr<const LogicalLayoutDescriptor> TransferManager::find_remote_layout(
    LayoutHandle handle) const {
  return core_->with_directory([&](const auto& directory) { return directory.find(handle); });
}

std::vector<WorkerAddress> TransferManager::imported_workers() const {
  return core_->with_directory([](const auto& directory) { return directory.imported(); });
}

Result<LayoutHandle> TransferManager::resolve(WorkerId worker, LogicalLayoutHandle tier,
                                              GroupId group) const {
  return core_->with_directory(
      [&](const auto& directory) { return directory.resolve(worker, tier, group); });
}

size_t TransferManager::in_flight() const { return core_->context().in_flight(); }

WorkerId TransferManager::worker_id() const noexcept { return core_->context().config().worker; }

const WorkerAddress& TransferManager::worker_address() const noexcept { return core_->address(); }

}  // namespace kvbm
