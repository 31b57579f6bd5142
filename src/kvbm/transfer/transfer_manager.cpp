// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/transfer_manager.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "kvbm/base/mutex.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/transfer/copy_choice.hpp"
#include "kvbm/transfer/internal/agent_link.hpp"
#include "kvbm/transfer/internal/direct_files.hpp"
#include "kvbm/transfer/internal/failure.hpp"
#include "kvbm/transfer/internal/file_transfer.hpp"
#include "kvbm/transfer/internal/hop.hpp"
#include "kvbm/transfer/internal/layout_directory.hpp"
#include "kvbm/transfer/internal/ready_plan.hpp"
#include "kvbm/transfer/internal/request_check.hpp"
#include "kvbm/transfer/internal/staged_transfer.hpp"
#include "kvbm/transfer/internal/staging.hpp"
#include "kvbm/transfer/internal/transfer_context.hpp"
#include "kvbm/transfer/transfer_plan.hpp"
#include "kvbm/transfer/transfer_strategy.hpp"

namespace kvbm {
namespace {

constexpr size_t kMaxLayouts = 65536;
/// Of ready plans: all layers of a model by themselves, both ways, and some more.
constexpr size_t kMaxPlans = 1024;

tl::unexpected<Error> invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, std::move(message));
}

WorkerAddress address_of(const TransferConfig& config) {
  if (config.remote_agent != nullptr) return {config.worker, config.remote_agent->name()};
  return {config.worker,
          config.agent_name.empty() ? format_text("worker-{}", config.worker) : config.agent_name};
}

Status check_cuda_device(const TransferConfig& config) {
  if (!config.cuda_device_id) return {};
  const DeviceInfo info = config.device.info();
  if (info.kind == DeviceKind::kCuda && info.ordinal == *config.cuda_device_id) return {};
  return invalid(format_text("transfer config: cuda_device_id is {}, the device is {} {}",
                             *config.cuda_device_id, info.kind, info.ordinal));
}

Status check_agent(const TransferConfig& config) {
  if (config.remote_agent == nullptr || config.agent_name.empty()) return {};
  if (config.agent_name == config.remote_agent->name()) return {};
  return invalid(format_text("transfer config: agent_name is {}, the remote agent is {}",
                             config.agent_name, config.remote_agent->name()));
}

/// Only a layout that was made for an agent says which device has its memory.
Status check_own_device(const TransferConfig& config, const PhysicalLayout& layout) {
  const RegistrationMetadata& made = layout.registration();
  if (layout.storage_kind() != StorageKind::kDevice || made.agent_name.empty()) return {};
  const DeviceInfo info = config.device.info();
  if (made.device_id == static_cast<uint64_t>(info.ordinal)) return {};
  return invalid(
      format_text("the layout is in the memory of device {}, and this manager copies for {} {}: "
                  "register it with the manager of its device, or say device_id where it is made",
                  made.device_id, info.kind, info.ordinal));
}

void warn_of_kernels_from_ptx(const TransferConfig& config) {
  const DeviceInfo info = config.device.info();
  if (!info.capabilities.kernels_from_ptx) return;
  config.log.log(
      LogLevel::kWarning, "transfer",
      "this build has no kernels for the SM version of the GPU: its driver compiles them "
      "at the first use; build with that version in CUDA_ARCHS",
      {{"device", info.name}});
}

void warn_of_a_missing_ring(const TransferConfig& config) {
  const DeviceInfo info = config.device.info();
  if (!info.capabilities.ring_is_missing) return;
  config.log.log(
      LogLevel::kWarning, "transfer",
      "the GPU has no memory for the ring that copies go through: large ones are slower; "
      "leave it some, or give the ring less",
      {{"device", info.name}});
}

}  // namespace

class TransferManager::Core {
 public:
  explicit Core(std::shared_ptr<internal::TransferContext> context)
      : context_(std::move(context)),
        address_(address_of(context_->config())),
        direct_files_(context_->config(), context_->capabilities()) {
    RemoteAgent* const agent = context_->config().remote_agent;
    if (agent != nullptr) link_ = std::make_unique<internal::AgentLink>(*agent);
  }
  ~Core() {
    context_->close();
    if (link_) link_->close();
  }
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  [[nodiscard]] const std::shared_ptr<internal::TransferContext>& context() const noexcept {
    return context_;
  }

  Result<LayoutHandle> register_layout(PhysicalLayout layout) {
    if (layout.storage_kind() == StorageKind::kRemote) {
      return invalid("a layout of another worker is imported, not registered");
    }
    KVBM_TRY(check_own_device(context_->config(), layout));
    const auto shared = std::make_shared<const PhysicalLayout>(std::move(layout));
    direct_files_.enter(*shared);
    Result<LayoutHandle> handle = register_shared(shared);
    if (!handle) direct_files_.leave(*shared);
    return handle;
  }

  Result<LayoutHandle> register_shared(const std::shared_ptr<const PhysicalLayout>& shared) {
    if (!link_) return add_layout(shared);
    KVBM_ASSIGN_OR_RETURN(const std::optional<AgentMemoryId> memory, link_->enter(*shared));
    Result<LayoutHandle> handle = add_layout(shared);
    if (memory && handle) link_->keep(handle->layout, *memory);
    if (memory && !handle) link_->withdraw(*memory, shared);
    return handle;
  }

  Result<Completion> unregister_layout(LayoutHandle handle) {
    std::vector<internal::PlanCache::Plan> plans;
    KVBM_ASSIGN_OR_RETURN(auto last, remove_layout(handle, plans));
    direct_files_.leave(*last);
    return link_ ? link_->leave(handle.layout, std::move(last)) : Completion::ready();
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
    if (link_) {
      if (!agent_metadata.empty()) {
        return invalid("the remote agent of this manager gives metadata of its own: give none");
      }
      KVBM_ASSIGN_OR_RETURN(metadata.agent_metadata, link_->agent().metadata());
    }
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
    const WorkerId worker = metadata.worker.worker;
    {
      const MutexLock lock(mutex_);
      KVBM_TRY(directory_.check_import(metadata.worker));
      if (!changing_.insert(worker).second) {
        return invalid(format_text("worker {} is being imported or removed already", worker));
      }
    }
    Status imported = link_ ? link_->connect(metadata) : Status();
    const bool is_connected = link_ && imported;
    if (imported) {
      const MutexLock lock(mutex_);
      imported = directory_.import(std::move(metadata));
    }
    if (!imported && is_connected) link_->disconnect(worker);
    const MutexLock lock(mutex_);
    changing_.erase(worker);
    KVBM_TRY(imported);
    return handles;
  }

  Status remove_import(WorkerId worker) {
    std::vector<internal::PlanCache::Plan> plans;  // released without the lock
    {
      const MutexLock lock(mutex_);
      KVBM_TRY(directory_.remove(worker));
      plans = plans_.forget(worker);
      changing_.insert(worker);
    }
    if (link_) link_->disconnect(worker);
    const MutexLock lock(mutex_);
    changing_.erase(worker);
    return {};
  }

  [[nodiscard]] std::vector<RemoteNotification> take_notifications() {
    return link_ ? link_->agent().take_notifications() : std::vector<RemoteNotification>();
  }

  /// Whatever `ask` does with the directory.
  template <class Ask>
  auto with_directory(Ask&& ask) {
    const MutexLock lock(mutex_);
    return ask(directory_);
  }

  /// What a layout of this worker is registered as. Errors: kNotFound.
  [[nodiscard]] Result<LayoutHandle> handle_of(const PhysicalLayout& layout) const {
    const MutexLock lock(mutex_);
    const auto found = std::ranges::find_if(
        layouts_, [&](const auto& entry) { return entry.second.get() == &layout; });
    if (found == layouts_.end()) {
      return make_error(ErrorCode::kNotFound,
                        "the layout of these blocks is not registered here: make KvBlocks of what "
                        "find_layout() gives");
    }
    return LayoutHandle{address_.worker, found->first};
  }

  Result<TransferCompleteNotification> execute_transfer(const TransferRequest& request) {
    KVBM_ASSIGN_OR_RETURN(const CheckedTransfer checked, check(request));
    if (request.src_ids.empty() && !request.options.write_notification) {
      return TransferCompleteNotification();
    }
    const TransferOptions& options = request.options;
    const internal::ReadyPlan& plan = *checked.plan;
    TransferHop hop = checked.strategy.first;
    if (request.src_ids.empty()) {
      // A notification alone goes by the agent, whatever is between the blocks.
      hop = {.kind = HopKind::kRemote, .from = plan.src_end, .to = plan.dst_end};
    } else if (checked.strategy.is_staged()) {
      return stage(request, checked);
    }
    return internal::start_hop(context_, {.hop = hop,
                                          .src = plan.src,
                                          .dst = plan.dst,
                                          .plan = &plan.plan,
                                          .pieces = plan.pieces,
                                          .blocks = checked.blocks,
                                          .tags = options.tags,
                                          .stream = options.stream,
                                          .wait_for = options.wait_for,
                                          .write_notification = options.write_notification,
                                          .deadline = options.deadline,
                                          .priority = options.priority});
  }

  Result<std::string> explain_transfer(const TransferRequest& request) const {
    KVBM_ASSIGN_OR_RETURN(const CheckedTransfer checked, check(request));
    std::string text = describe(checked.strategy);
    if (checked.strategy.first.kind != HopKind::kDevice || request.options.stream ||
        request.src_ids.empty()) {
      return text;
    }
    if (checked.strategy.is_staged()) return text;
    const MethodChoice choice = internal::choose_method_of(
        *context_, checked.plan->pieces, checked.blocks->pairs, checked.strategy.first.route());
    return format_text("{}; {}", text, describe(choice));
  }

 private:
  Result<LayoutHandle> add_layout(const std::shared_ptr<const PhysicalLayout>& layout) {
    const MutexLock lock(mutex_);
    if (layouts_.size() == kMaxLayouts) {
      return make_error(ErrorCode::kExhausted,
                        format_text("{} layouts are registered; unregister some", kMaxLayouts));
    }
    while (layouts_.contains(next_id_)) ++next_id_;
    const uint16_t id = next_id_++;
    for (const auto& [other_id, other] : layouts_) {
      if (may_share_bytes(*layout, *other)) aliases_.insert(std::minmax(id, other_id));
    }
    layouts_.emplace(id, layout);
    return LayoutHandle{context_->config().worker, id};
  }

  /// It, to be released without the lock, as are the plans that knew it. Errors: kNotFound.
  Result<std::shared_ptr<const PhysicalLayout>> remove_layout(
      LayoutHandle handle, std::vector<internal::PlanCache::Plan>& plans) {
    const MutexLock lock(mutex_);
    const auto found =
        handle.worker == context_->config().worker ? layouts_.find(handle.layout) : layouts_.end();
    if (found == layouts_.end()) return unknown(handle);
    plans = plans_.forget(handle);
    std::shared_ptr<const PhysicalLayout> last = std::move(found->second);
    layouts_.erase(found);
    directory_.forget(handle);
    std::erase_if(aliases_, [&](const auto& pair) {
      return pair.first == handle.layout || pair.second == handle.layout;
    });
    return last;
  }

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

  struct Side {
    std::shared_ptr<const PhysicalLayout> layout;
    TransferEnd end;  ///< a remote one has the storage that its worker says
  };

  /// Errors: kNotFound, kUnsupported (the layout of another worker that cannot be reached).
  [[nodiscard]] Result<Side> find_side(LayoutHandle handle) const {
    if (auto layout = find_layout(handle)) {
      const TransferEnd end{.storage = layout->storage_kind()};
      return Side{std::move(layout), end};
    }
    if (!link_) return not_here(handle);
    std::shared_ptr<const LogicalLayoutDescriptor> remote;
    {
      const MutexLock lock(mutex_);
      remote = directory_.find(handle);
    }
    if (!remote) return unknown(handle);
    if (auto layout = link_->find(handle)) {
      return Side{std::move(layout),
                  {.storage = remote->layout.storage, .locality = Locality::kRemote}};
    }
    return make_error(
        ErrorCode::kUnsupported,
        remote->layout.storage == StorageKind::kFile
            ? format_text("{} is in a file of its worker, and a remote agent reaches memory: ask "
                          "it to read the blocks into memory first",
                          to_string(handle))
            : format_text("{} is of a worker that gave no metadata of a remote agent",
                          to_string(handle)));
  }

  /// A request that nothing is wrong with.
  struct CheckedTransfer {
    internal::PlanCache::Plan plan;
    TransferStrategy strategy;                     // of the plan, but for lent bounce blocks
    std::shared_ptr<const PhysicalLayout> bounce;  // null: the manager's own
    std::shared_ptr<internal::TransferBlocks> blocks;
  };

  [[nodiscard]] Result<CheckedTransfer> check(const TransferRequest& request) const {
    const TransferOptions& options = request.options;
    KVBM_ASSIGN_OR_RETURN(const internal::PlanCache::Plan plan, find_plan(request));
    auto blocks = context_->blocks().take();
    if (request.src_ids.size() != request.dst_ids.size()) {
      return invalid(format_text("{} source blocks and {} destination blocks",
                                 request.src_ids.size(), request.dst_ids.size()));
    }
    blocks->pairs.assign(request.src_ids, request.dst_ids);
    KVBM_TRY(internal::check_pairs(*plan->src, *plan->dst, blocks->pairs, blocks->scratch));
    TransferStrategy strategy = plan->strategy;
    KVBM_TRY(internal::check_options(options, strategy, request.src_ids.size()));
    std::shared_ptr<const PhysicalLayout> bounce;
    if (options.bounce_buffer) {
      KVBM_ASSIGN_OR_RETURN(bounce, find_bounce(*options.bounce_buffer, request));
      KVBM_ASSIGN_OR_RETURN(strategy, internal::with_bounce_in(bounce->storage_kind(), strategy,
                                                               context_->capabilities()));
    }
    if (options.deadline <= context_->now()) {
      return make_error(ErrorCode::kTimeout, "the deadline of the transfer has passed already");
    }
    return CheckedTransfer{plan, strategy, std::move(bounce), std::move(blocks)};
  }

  [[nodiscard]] Result<internal::PlanCache::Plan> find_plan(const TransferRequest& request) const {
    const TransferOptions& options = request.options;
    const internal::PlanKey key{.src = request.src,
                                .dst = request.dst,
                                .layers = options.layer_range,
                                .src_format = options.src_kv_layout,
                                .dst_format = options.dst_kv_layout,
                                .src_heads = options.src_heads,
                                .dst_heads = options.dst_heads};
    uint64_t generation = 0;
    {
      const MutexLock lock(mutex_);
      if (internal::PlanCache::Plan plan = plans_.find(key)) return plan;
      generation = plans_.generation();
    }
    KVBM_ASSIGN_OR_RETURN(const internal::PlanCache::Plan plan, make_plan(key));
    internal::PlanCache::Plan last;  // released without the lock
    const MutexLock lock(mutex_);
    last = plans_.keep(key, plan, generation);
    return plan;
  }

  [[nodiscard]] Result<internal::PlanCache::Plan> make_plan(const internal::PlanKey& key) const {
    KVBM_ASSIGN_OR_RETURN(const Side src, find_side(key.src));
    KVBM_ASSIGN_OR_RETURN(const Side dst, find_side(key.dst));
    KVBM_ASSIGN_OR_RETURN(const LayoutView from, internal::view_of(*src.layout, key.src_format,
                                                                   key.layers, key.src_heads));
    KVBM_ASSIGN_OR_RETURN(const LayoutView to, internal::view_of(*dst.layout, key.dst_format,
                                                                 key.layers, key.dst_heads));
    KVBM_ASSIGN_OR_RETURN(TransferPlan plan, TransferPlan::create(from, to));
    KVBM_TRY(check_apart(key.src, key.dst));
    KVBM_ASSIGN_OR_RETURN(
        const TransferStrategy strategy,
        choose_strategy({.src = src.end,
                         .dst = dst.end,
                         .match = internal::match_of(from, to),
                         .device = context_->capabilities(),
                         .allowed = context_->config().capabilities,
                         .preferences = context_->config().preferences,
                         .not_direct = direct_files_.why_not(*src.layout, *dst.layout),
                         .remote_agent = link_ ? &link_->capabilities() : nullptr}));
    KVBM_TRY(check_files(strategy, *src.layout, *dst.layout));
    PieceList pieces;
    const HopKind kind = strategy.first.kind;
    if (!strategy.is_staged() && (kind == HopKind::kDevice || kind == HopKind::kHost)) {
      pieces = plan.with_addresses(*src.layout, *dst.layout);
    }
    return std::make_shared<const internal::ReadyPlan>(
        internal::ReadyPlan{.src = src.layout,
                            .dst = dst.layout,
                            .src_end = src.end,
                            .dst_end = dst.end,
                            .from = from,
                            .to = to,
                            .plan = std::move(plan),
                            .strategy = strategy,
                            .pieces = std::move(pieces)});
  }

  Status check_apart(LayoutHandle src, LayoutHandle dst) const {
    const MutexLock lock(mutex_);
    if (src == dst || src.worker != dst.worker ||
        !aliases_.contains(std::minmax(src.layout, dst.layout)))
      return {};
    return make_error(ErrorCode::kUnsupported,
                      format_text("layouts {} and {} may share bytes, so a copy between them may "
                                  "overwrite what it reads",
                                  src.layout, dst.layout));
  }

  Status check_files(const TransferStrategy& strategy, const PhysicalLayout& src,
                     const PhysicalLayout& dst) const {
    const bool has_file = strategy.first.kind == HopKind::kFile ||
                          (strategy.second && strategy.second->kind == HopKind::kFile);
    if (!has_file) return {};
    if (context_->config().files == nullptr) {
      return make_error(ErrorCode::kUnsupported,
                        "the transfer manager was made without a file engine");
    }
    for (const PhysicalLayout* const side : {&src, &dst}) {
      if (side->slots() != nullptr) KVBM_TRY(internal::check_slot_alignment(*side));
    }
    return {};
  }

  [[nodiscard]] Result<std::shared_ptr<const PhysicalLayout>> find_bounce(
      const BounceBuffer& buffer, const TransferRequest& request) const {
    std::shared_ptr<const PhysicalLayout> layout = find_layout(buffer.handle());
    if (!layout) return not_here(buffer.handle());
    if (buffer.ids().empty()) return invalid("a bounce buffer without blocks");
    for (const BlockId id : buffer.ids()) {
      if (id.value() >= layout->config().num_blocks) {
        return invalid(format_text("bounce block {} of a layout of {} blocks", id,
                                   layout->config().num_blocks));
      }
    }
    for (const LayoutHandle side : {request.src, request.dst}) {
      if (side == buffer.handle()) {
        return invalid("the layout of the bounce blocks is a side of the transfer");
      }
      KVBM_TRY(check_apart(side, buffer.handle()));
    }
    return layout;
  }

  Result<TransferCompleteNotification> stage(const TransferRequest& request,
                                             const CheckedTransfer& checked) {
    const TransferOptions& options = request.options;
    internal::StagingSides sides{.strategy = checked.strategy,
                                 .from = checked.plan->from,
                                 .to = checked.plan->to,
                                 .num_blocks = request.src_ids.size()};
    internal::StagedSpec spec;
    if (checked.bounce) {
      KVBM_ASSIGN_OR_RETURN(
          spec, internal::stage_through(sides, checked.bounce, options.bounce_buffer->ids(),
                                        context_->config().bounce_slots));
      KVBM_ASSIGN_OR_RETURN(spec.loan, internal::BounceLoan::create(context_->bounce_loans(),
                                                                    options.bounce_buffer->handle(),
                                                                    options.bounce_buffer->ids()));
    } else {
      KVBM_ASSIGN_OR_RETURN(auto memory,
                            context_->bounce_memory(checked.strategy.first.to.storage));
      const bool has_remote = checked.plan->src_end.locality != checked.plan->dst_end.locality;
      if (has_remote) KVBM_TRY(link_->enter(memory));
      KVBM_ASSIGN_OR_RETURN(spec, internal::stage_through(sides, std::move(memory)));
    }
    spec.from.assign(request.src_ids.begin(), request.src_ids.end());
    spec.to.assign(request.dst_ids.begin(), request.dst_ids.end());
    spec.tags.assign(options.tags.begin(), options.tags.end());
    const auto transfer = std::make_shared<internal::StagedTransfer>(
        internal::TransferFrame{.context = context_,
                                .route = checked.strategy.first.route(),
                                .num_blocks = request.src_ids.size(),
                                .block_bytes = checked.plan->plan.bytes_per_block(),
                                .blocks = checked.blocks,
                                .deadline = options.deadline,
                                .priority = options.priority,
                                .layouts = {checked.plan->src, checked.plan->dst}},
        std::move(spec));
    return internal::launch(*context_, transfer, [&](internal::StagedTransfer& staged) {
      return staged.start(options.wait_for);
    });
  }

  const std::shared_ptr<internal::TransferContext> context_;
  const WorkerAddress address_;
  std::unique_ptr<internal::AgentLink> link_;  // null: no remote agent
  internal::DirectFiles direct_files_;
  mutable Mutex mutex_{LockRank::kTransfer, "transfer.layouts"};
  std::map<uint16_t, std::shared_ptr<const PhysicalLayout>> layouts_ KVBM_GUARDED_BY(mutex_);
  std::set<std::pair<uint16_t, uint16_t>> aliases_ KVBM_GUARDED_BY(mutex_);
  uint16_t next_id_ KVBM_GUARDED_BY(mutex_) = 0;
  internal::LayoutDirectory directory_ KVBM_GUARDED_BY(mutex_){address_};
  std::set<WorkerId> changing_ KVBM_GUARDED_BY(mutex_);  // imports that are made or removed
  mutable internal::PlanCache plans_ KVBM_GUARDED_BY(mutex_){kMaxPlans};
};

Result<std::unique_ptr<TransferManager>> TransferManager::create(const TransferConfig& config) {
  const auto check = [](const char* name, size_t value) -> Status {
    if (value > 0) return {};
    return invalid(format_text("transfer config: {} is 0", name));
  };
  KVBM_TRY(check("streams_per_direction", config.streams_per_direction));
  KVBM_TRY(check("side_streams", config.side_streams));
  KVBM_TRY(check("bounce_slots", config.bounce_slots));
  KVBM_TRY(check("bounce_slot_bytes", config.bounce_slot_bytes));
  KVBM_TRY(check("num_threads", config.num_threads));
  KVBM_TRY(check("file_requests_per_transfer", config.file_requests_per_transfer));
  KVBM_TRY(check("max_transfers", config.max_transfers));
  KVBM_TRY(check_cuda_device(config));
  KVBM_TRY(check_agent(config));
  warn_of_kernels_from_ptx(config);
  warn_of_a_missing_ring(config);
  KVBM_ASSIGN_OR_RETURN(
      auto streams,
      internal::StreamPool::create(config.device, {.per_direction = config.streams_per_direction,
                                                   .side = config.side_streams,
                                                   .waiting = config.max_waiting_streams}));
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

Result<Completion> TransferManager::unregister_layout(LayoutHandle handle) {
  return core_->unregister_layout(handle);
}

std::shared_ptr<const PhysicalLayout> TransferManager::find_layout(LayoutHandle handle) const {
  return core_->find_layout(handle);
}

Status TransferConfig::nixl_backend(std::string_view name) {
  return make_error(
      ErrorCode::kUnsupported,
      format_text("the NIXL backend {} is asked for, and this version of kvbm has no NIXL adapter: "
                  "leave it out, transfers inside a worker need none",
                  name));
}

Result<TransferCompleteNotification> TransferManager::execute_transfer(
    const TransferRequest& request) {
  return core_->execute_transfer(request);
}

Result<TransferCompleteNotification> TransferManager::execute_transfer(
    const KvBlocks& src, const KvBlocks& dst, const TransferOptions& options) {
  const auto format = [](const KvBlocks& blocks, std::optional<KvBlockLayout>& option,
                         const char* side) -> Status {
    if (!blocks.has_override()) return {};
    if (option && option->requires_transform(blocks.kv_block_layout())) {
      return invalid(format_text("the {} blocks are to be taken as {}, the option says {}", side,
                                 to_string(blocks.kv_block_layout()), to_string(*option)));
    }
    option = blocks.kv_block_layout();
    return {};
  };
  KVBM_ASSIGN_OR_RETURN(const LayoutHandle from, core_->handle_of(*src.layout()));
  KVBM_ASSIGN_OR_RETURN(const LayoutHandle to, core_->handle_of(*dst.layout()));
  TransferRequest request{
      .src = from, .src_ids = src.ids(), .dst = to, .dst_ids = dst.ids(), .options = options};
  KVBM_TRY(format(src, request.options.src_kv_layout, "source"));
  KVBM_TRY(format(dst, request.options.dst_kv_layout, "destination"));
  return core_->execute_transfer(request);
}

Result<TransferCompleteNotification> TransferManager::execute_transfer(
    const LogicalTransferRequest& request) {
  KVBM_ASSIGN_OR_RETURN(const LayoutHandle src, resolve(request.src_worker.value_or(worker_id()),
                                                        request.src, request.group));
  KVBM_ASSIGN_OR_RETURN(const LayoutHandle dst, resolve(request.dst_worker.value_or(worker_id()),
                                                        request.dst, request.group));
  return core_->execute_transfer({.src = src,
                                  .src_ids = request.src_ids,
                                  .dst = dst,
                                  .dst_ids = request.dst_ids,
                                  .options = request.options});
}

Result<std::string> TransferManager::explain_transfer(const TransferRequest& request) const {
  return core_->explain_transfer(request);
}

ManagerContext TransferManager::context() const { return ManagerContext(core_->context()); }

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

Status TransferManager::remove_import(WorkerId worker) { return core_->remove_import(worker); }

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

std::vector<RemoteNotification> TransferManager::take_notifications() {
  return core_->take_notifications();
}

size_t TransferManager::in_flight() const { return core_->context()->in_flight(); }

WorkerId TransferManager::worker_id() const noexcept { return core_->context()->config().worker; }

const WorkerAddress& TransferManager::worker_address() const noexcept { return core_->address(); }

}  // namespace kvbm
