// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/loopback_agent.hpp"

#include <algorithm>
#include <atomic>
#include <map>
#include <optional>
#include <random>
#include <utility>

#include "kvbm/base/bytes.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/transfer/internal/failure.hpp"

namespace kvbm {
namespace {

constexpr uint32_t kMagic = 0x424c564b;  // "KVLB"
constexpr uint16_t kVersion = 1;

tl::unexpected<Error> invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, std::move(message));
}

tl::unexpected<Error> unavailable(std::string message) {
  return make_error(ErrorCode::kUnavailable, std::move(message));
}

/// Addresses [first, end).
struct Extent {
  uint64_t first = 0;
  uint64_t end = 0;
};

/// What a piece touches of one side. Requires: planned_bytes() takes the piece.
Extent extent_of(uint64_t base, const BlockIdRange& ids, uint64_t block_stride,
                 const StridedPiece& piece, uint64_t StridedAxis::*stride) {
  uint64_t reach = piece.bytes;
  for (const StridedAxis& axis : piece.axes) reach += (axis.count - 1) * (axis.*stride);
  return {base + ids.lowest * block_stride, base + ids.highest * block_stride + reach};
}

bool has_bytes(const StridedPiece& piece) {
  return piece.bytes > 0 &&
         std::ranges::all_of(piece.axes, [](const StridedAxis& axis) { return axis.count > 0; });
}

/// The piece with addresses on both sides: here they are all of one process.
StridedPiece addressed(const RemotePiece& piece, RemoteOp op) {
  auto* remote = reinterpret_cast<std::byte*>(piece.remote);  // NOLINT(performance-no-int-to-ptr)
  const bool reads = op == RemoteOp::kRead;
  StridedPiece made{
      .src = reads ? remote : piece.local,
      .dst = reads ? piece.local : remote,
      .src_block_stride = reads ? piece.remote_block_stride : piece.local_block_stride,
      .dst_block_stride = reads ? piece.local_block_stride : piece.remote_block_stride,
      .bytes = piece.bytes};
  for (size_t i = 0; i < kStridedAxes; ++i) {
    const RemoteAxis& axis = piece.axes[i];
    made.axes[i] = {.count = axis.count,
                    .src_stride = reads ? axis.remote_stride : axis.local_stride,
                    .dst_stride = reads ? axis.local_stride : axis.remote_stride};
  }
  return made;
}

/// Memory that is registered. Whoever holds it keeps ended() from being done.
class Registration {
 public:
  Registration(Executor& executor, const AgentMemory& memory, std::span<const MemoryRegion> regions)
      : memory_(memory), ended_(executor) {
    for (const MemoryRegion& region : regions) {
      const auto first = reinterpret_cast<uintptr_t>(region.base());
      extents_.push_back({first, first + region.size_bytes()});
    }
  }
  ~Registration() { ended_.try_resolve({}); }
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;

  [[nodiscard]] Completion ended() const { return ended_.completion(); }
  [[nodiscard]] bool covers(const AgentMemory& memory, const Extent& extent) const {
    return memory == memory_ && std::ranges::any_of(extents_, [&](const Extent& own) {
             return own.first <= extent.first && extent.end <= own.end;
           });
  }

  void close() noexcept { open_.store(false); }
  [[nodiscard]] bool is_open() const noexcept { return open_.load(); }

 private:
  const AgentMemory memory_;
  std::vector<Extent> extents_;
  std::atomic<bool> open_{true};
  CompletionSource ended_;
};

/// What peers see of an agent. Outlives it while a peer knows it.
/// Threads: any thread.
class Endpoint {
 public:
  Endpoint(std::string name, size_t max_notifications)
      : name_(std::move(name)), max_notifications_(max_notifications) {}

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] bool is_open() const {
    const MutexLock lock(mutex_);
    return open_;
  }

  AgentMemoryId add(std::shared_ptr<Registration> registration) {
    const MutexLock lock(mutex_);
    memory_.emplace(++last_id_, std::move(registration));
    return AgentMemoryId{last_id_};
  }

  /// Null if there is none of this id.
  std::shared_ptr<Registration> remove(AgentMemoryId id) {
    const MutexLock lock(mutex_);
    const auto found = memory_.find(static_cast<uint64_t>(id));
    if (found == memory_.end()) return nullptr;
    std::shared_ptr<Registration> removed = std::move(found->second);
    memory_.erase(found);
    removed->close();
    return removed;
  }

  /// Takes no more; what was registered.
  std::map<uint64_t, std::shared_ptr<Registration>> close() {
    const MutexLock lock(mutex_);
    open_ = false;
    for (const auto& [id, registration] : memory_) registration->close();
    return std::exchange(memory_, {});
  }

  /// Of the memory that an address range is in.
  [[nodiscard]] std::shared_ptr<Registration> find(const AgentMemory& memory,
                                                   const Extent& extent) const {
    const MutexLock lock(mutex_);
    for (const auto& [id, registration] : memory_) {
      if (registration->covers(memory, extent)) return registration;
    }
    return nullptr;
  }

  Status notify(RemoteNotification notification) {
    const MutexLock lock(mutex_);
    if (!open_) return unavailable(format_text("the agent {} is gone", name_));
    if (inbox_.size() >= max_notifications_) {
      return make_error(
          ErrorCode::kExhausted,
          format_text("the agent {} holds {} notifications that nobody has taken: the bytes are "
                      "there, it was not told",
                      name_, inbox_.size()));
    }
    inbox_.push_back(std::move(notification));
    return {};
  }

  [[nodiscard]] std::vector<RemoteNotification> take_notifications() {
    const MutexLock lock(mutex_);
    return std::exchange(inbox_, {});
  }

 private:
  const std::string name_;
  const size_t max_notifications_;
  mutable Mutex mutex_{LockRank::kTransfer, "transfer.loopback_memory"};
  bool open_ KVBM_GUARDED_BY(mutex_) = true;
  uint64_t last_id_ KVBM_GUARDED_BY(mutex_) = 0;
  std::map<uint64_t, std::shared_ptr<Registration>> memory_ KVBM_GUARDED_BY(mutex_);
  std::vector<RemoteNotification> inbox_ KVBM_GUARDED_BY(mutex_);
};

/// One read or write on its way.
struct Operation {
  Operation(Executor& executor, RemoteRequest asked, std::shared_ptr<Endpoint> to)
      : request(std::move(asked)), peer(std::move(to)), source(executor) {}

  const RemoteRequest request;
  const std::shared_ptr<Endpoint> peer;
  StridedCopyBatch batch = {};
  uint64_t block_bytes = 0;
  std::vector<std::shared_ptr<Registration>> here = {};
  std::vector<std::weak_ptr<Registration>> there = {};
  size_t next = 0;  ///< the first position that is not copied
  CompletionSource source;
};

}  // namespace

class LoopbackNetwork::Core {
 public:
  struct Member {
    uint64_t number = 0;  ///< no two agents have one, also if one comes after the other
    std::shared_ptr<Endpoint> endpoint;
  };

  [[nodiscard]] uint64_t identity() const noexcept { return identity_; }

  /// Its number. Errors: kInvalidArgument (the name is taken).
  Result<uint64_t> join(std::shared_ptr<Endpoint> endpoint) {
    const MutexLock lock(mutex_);
    const std::string& name = endpoint->name();
    if (members_.contains(name)) {
      return invalid(format_text("an agent named {} is on this network already", name));
    }
    members_.emplace(name, Member{++last_number_, std::move(endpoint)});
    return last_number_;
  }
  void leave(const std::string& name) {
    const MutexLock lock(mutex_);
    members_.erase(name);
  }
  [[nodiscard]] std::shared_ptr<Endpoint> find(std::string_view name, uint64_t number) const {
    const MutexLock lock(mutex_);
    const auto found = members_.find(name);
    if (found == members_.end() || found->second.number != number) return nullptr;
    return found->second.endpoint;
  }

 private:
  /// Tells networks of different processes apart.
  const uint64_t identity_ = [] {
    std::random_device random;
    return uint64_t{random()} << 32 | random();
  }();
  mutable Mutex mutex_{LockRank::kTransfer, "transfer.loopback_network"};
  uint64_t last_number_ KVBM_GUARDED_BY(mutex_) = 0;
  std::map<std::string, Member, std::less<>> members_ KVBM_GUARDED_BY(mutex_);
};

LoopbackNetwork::LoopbackNetwork() : core_(std::make_shared<Core>()) {}
LoopbackNetwork::~LoopbackNetwork() = default;

class LoopbackAgent::Core {
 public:
  Core(const LoopbackAgentOptions& options, std::shared_ptr<LoopbackNetwork::Core> network,
       std::shared_ptr<Endpoint> endpoint, uint64_t number, std::unique_ptr<TaskQueue> queue)
      : executor_(options.executor),
        max_pending_(options.max_pending),
        bytes_per_turn_(options.bytes_per_turn),
        device_memory_(options.device_memory),
        number_(number),
        network_(std::move(network)),
        endpoint_(std::move(endpoint)),
        queue_(std::move(queue)) {}
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  ~Core() {
    network_->leave(endpoint_->name());
    stopping_.store(true);
    queue_->stop();
    std::vector<Completion> leaving;
    {
      const MutexLock lock(mutex_);
      leaving = std::move(leaving_);
    }
    for (auto& [id, registration] : endpoint_->close()) leaving.push_back(registration->ended());
    // Turns of peers.
    for (const Completion& ended : leaving) static_cast<void>(ended.wait());
  }

  [[nodiscard]] const std::string& name() const noexcept { return endpoint_->name(); }
  [[nodiscard]] RemoteAgentCapabilities capabilities() const {
    return {.backend = "loopback", .device_memory = device_memory_, .max_pending = max_pending_};
  }

  Result<AgentMemoryId> register_memory(const AgentMemory& memory,
                                        std::span<const MemoryRegion> regions) {
    if (regions.empty()) return invalid("no region is to be registered");
    if (memory.type == MemoryType::kFile)
      return invalid("a remote agent registers memory, no file");
    if (memory.type == MemoryType::kVram && !device_memory_) {
      return make_error(ErrorCode::kUnsupported,
                        "this loopback agent does not reach the memory of devices");
    }
    for (const MemoryRegion& region : regions) {
      if (region.is_file()) return invalid("a remote agent registers memory, no file");
      if (region.size_bytes() == 0) return invalid("a region to be registered is empty");
    }
    return endpoint_->add(std::make_shared<Registration>(executor_, memory, regions));
  }

  Result<Completion> unregister_memory(AgentMemoryId id) {
    const std::shared_ptr<Registration> removed = endpoint_->remove(id);
    if (!removed) {
      return make_error(ErrorCode::kNotFound,
                        format_text("no memory is registered as {} with the agent {}",
                                    static_cast<uint64_t>(id), name()));
    }
    Completion ended = removed->ended();
    const MutexLock lock(mutex_);
    std::erase_if(leaving_, [](const Completion& other) { return other.done(); });
    leaving_.push_back(ended);
    return ended;
  }

  [[nodiscard]] AgentMetadata metadata() const {
    ByteWriter out;
    out.u32(kMagic);
    out.u16(kVersion);
    out.u64(network_->identity());
    out.u64(number_);
    out.string(name());
    return std::move(out).take();
  }

  Status add_peer(std::string_view peer, std::span<const std::byte> metadata) {
    if (peer == name()) return invalid(format_text("{} is this agent itself", peer));
    ByteReader in(metadata);
    const bool is_ours = in.u32() == kMagic;
    const uint16_t version = in.u16();
    if (in.ok() && (!is_ours || version != kVersion)) {
      return make_error(ErrorCode::kUnsupported,
                        format_text("the metadata of {} is not that of a loopback agent, version "
                                    "{}",
                                    peer, kVersion));
    }
    const uint64_t network = in.u64();
    const uint64_t number = in.u64();
    if (in.string() != peer) in.fail(format_text("this is not the metadata of {}", peer));
    KVBM_TRY(in.finish());
    std::shared_ptr<Endpoint> endpoint =
        network == network_->identity() ? network_->find(peer, number) : nullptr;
    if (!endpoint) {
      return unavailable(format_text("the agent {} is not in this process, or gone", peer));
    }
    const MutexLock lock(mutex_);
    if (!peers_.emplace(peer, std::move(endpoint)).second) {
      return invalid(format_text("the agent {} is known already: remove it first", peer));
    }
    return {};
  }

  Status remove_peer(std::string_view peer) {
    const MutexLock lock(mutex_);
    const auto found = peers_.find(peer);
    if (found == peers_.end()) return unknown(peer);
    peers_.erase(found);
    return {};
  }

  Result<Completion> submit(RemoteRequest request) {
    std::shared_ptr<Endpoint> peer;
    {
      const MutexLock lock(mutex_);
      const auto found = peers_.find(request.peer);
      if (found == peers_.end()) return unknown(request.peer);
      peer = found->second;
    }
    const auto operation =
        std::make_shared<Operation>(executor_, std::move(request), std::move(peer));
    KVBM_TRY(prepare(*operation));
    if (operation->batch.pairs->empty() && !operation->request.notification) {
      return Completion::ready();
    }
    if (num_pending_.fetch_add(1) >= max_pending_) {
      --num_pending_;
      return make_error(
          ErrorCode::kExhausted,
          format_text("{} operations are under way; wait for some to end", max_pending_));
    }
    Completion completion = operation->source.completion();
    if (Status posted = post(operation); !posted) {
      --num_pending_;
      return make_error(std::move(posted).error());
    }
    return completion;
  }

  [[nodiscard]] std::vector<RemoteNotification> take_notifications() {
    return endpoint_->take_notifications();
  }

 private:
  [[nodiscard]] static tl::unexpected<Error> unknown(std::string_view peer) {
    return make_error(ErrorCode::kNotFound,
                      format_text("the agent {} is not known here: add its metadata", peer));
  }

  /// Checks the request, and finds the registrations of both sides.
  Status prepare(Operation& operation) const {
    const RemoteRequest& request = operation.request;
    const bool reads = request.op == RemoteOp::kRead;
    StridedCopyBatch& batch = operation.batch;
    if (request.local == nullptr || request.remote == nullptr) {
      return invalid("a remote request has no list of block ids");
    }
    if (request.local->size() != request.remote->size()) {
      return invalid(format_text("a remote request has {} blocks here and {} there",
                                 request.local->size(), request.remote->size()));
    }
    batch.pairs = reads ? make_block_pairs(*request.remote, *request.local)
                        : make_block_pairs(*request.local, *request.remote);
    std::vector<StridedPiece> pieces;
    for (const RemotePiece& piece : request.pieces) {
      if (const StridedPiece made = addressed(piece, request.op); has_bytes(made)) {
        pieces.push_back(made);
      }
    }
    batch.pieces = pieces;
    KVBM_ASSIGN_OR_RETURN(const uint64_t bytes, planned_bytes(batch));
    if (!operation.peer->is_open()) {
      return unavailable(format_text("the agent {} is gone", request.peer));
    }
    if (batch.pairs->empty()) return {};
    operation.block_bytes = bytes / batch.pairs->size();
    const BlockIdRange& from = batch.pairs->from_range();
    const BlockIdRange& to = batch.pairs->to_range();
    for (StridedPiece& piece : pieces) {
      const Extent src = extent_of(reinterpret_cast<uintptr_t>(piece.src), from,
                                   piece.src_block_stride, piece, &StridedAxis::src_stride);
      const Extent dst = extent_of(reinterpret_cast<uintptr_t>(piece.dst), to,
                                   piece.dst_block_stride, piece, &StridedAxis::dst_stride);
      KVBM_TRY(keep(operation, reads ? dst : src));
      KVBM_TRY(reach(operation, reads ? src : dst));
      piece = fold(piece);
    }
    batch.pieces = std::move(pieces);
    return {};
  }

  Status keep(Operation& operation, const Extent& extent) const {
    const auto found = endpoint_->find(operation.request.local_memory, extent);
    if (!found) {
      return invalid(format_text("{} bytes of {} memory at {} are not registered with the agent {}",
                                 extent.end - extent.first, operation.request.local_memory.type,
                                 HexText{extent.first}, name()));
    }
    if (std::ranges::find(operation.here, found) == operation.here.end()) {
      operation.here.push_back(found);
    }
    return {};
  }

  static Status reach(Operation& operation, const Extent& extent) {
    const auto found = operation.peer->find(operation.request.remote_memory, extent);
    if (!found) {
      return invalid(format_text("{} bytes of {} memory at {} are not registered with the agent {}",
                                 extent.end - extent.first, operation.request.remote_memory.type,
                                 HexText{extent.first}, operation.request.peer));
    }
    const auto is_same = [&](const auto& other) { return other.lock() == found; };
    if (std::ranges::none_of(operation.there, is_same)) operation.there.push_back(found);
    return {};
  }

  Status post(std::shared_ptr<Operation> operation) {
    return queue_->try_post(Task([this, operation = std::move(operation)] { turn(operation); }));
  }

  /// The next turn. A queue that has been stopped takes none.
  Status post_next(const std::shared_ptr<Operation>& operation) {
    Status posted = post(operation);
    if (!posted && stopping_.load()) return cancelled();
    return posted;
  }

  [[nodiscard]] static tl::unexpected<Error> cancelled() {
    return make_error(ErrorCode::kCancelled,
                      "the remote agent was destroyed before the operation had ended");
  }

  void turn(const std::shared_ptr<Operation>& operation) noexcept {
    const Status status = internal::guarded([&]() -> Status {
      KVBM_TRY(copy_some(*operation));
      if (operation->next < operation->batch.pairs->size()) return post_next(operation);
      const RemoteRequest& request = operation->request;
      if (request.notification) {
        KVBM_TRY(operation->peer->notify({.peer = name(), .value = *request.notification}));
      }
      end(*operation, {});
      return {};
    });
    if (!status) end(*operation, internal::copy_of(status));
  }

  Status copy_some(Operation& operation) {
    if (stopping_.load()) return cancelled();
    if (executor_.clock().now() >= operation.request.deadline) {
      return make_error(ErrorCode::kTimeout, "the deadline passed before all bytes were there");
    }
    // Held to the end of the turn, so that nobody gives the memory back meanwhile.
    std::vector<std::shared_ptr<Registration>> held;
    for (const std::weak_ptr<Registration>& there : operation.there) {
      std::shared_ptr<Registration> registration = there.lock();
      if (!registration || !registration->is_open()) {
        return unavailable(format_text("the agent {} is gone, or has unregistered the memory",
                                       operation.request.peer));
      }
      held.push_back(std::move(registration));
    }
    const StridedCopyBatch& batch = operation.batch;
    const size_t per_turn =
        std::max<uint64_t>(bytes_per_turn_ / std::max<uint64_t>(operation.block_bytes, 1), 1);
    const size_t end = operation.next + std::min(per_turn, batch.pairs->size() - operation.next);
    const size_t count = end - operation.next;
    for (; operation.next < end; ++operation.next) {
      for (const StridedPiece& piece : batch.pieces) {
        copy_on_host(piece, batch.pairs->from()[operation.next], batch.pairs->to()[operation.next]);
      }
    }
    if (operation.request.bytes_moved) {
      operation.request.bytes_moved->fetch_add(count * operation.block_bytes);
    }
    return {};
  }

  void end(Operation& operation, Status status) noexcept {
    operation.here.clear();  // whoever waits for the memory need not wait for callbacks
    --num_pending_;
    operation.source.try_resolve(std::move(status));
  }

  Executor& executor_;
  const size_t max_pending_;
  const uint64_t bytes_per_turn_;
  const bool device_memory_;
  const uint64_t number_;
  const std::shared_ptr<LoopbackNetwork::Core> network_;
  const std::shared_ptr<Endpoint> endpoint_;
  std::atomic<bool> stopping_{false};
  std::atomic<size_t> num_pending_{0};

  mutable Mutex mutex_{LockRank::kTransfer, "transfer.loopback_agent"};
  std::map<std::string, std::shared_ptr<Endpoint>, std::less<>> peers_ KVBM_GUARDED_BY(mutex_);
  std::vector<Completion> leaving_ KVBM_GUARDED_BY(mutex_);  // of memory that is not registered

  const std::unique_ptr<TaskQueue> queue_;  // last: its tasks use what is above
};

Result<std::unique_ptr<LoopbackAgent>> LoopbackAgent::create(const LoopbackAgentOptions& options) {
  if (options.name.empty()) return invalid("a loopback agent needs a name");
  if (options.max_pending == 0 || options.max_notifications == 0 || options.bytes_per_turn == 0) {
    return invalid("a loopback agent with max_pending, max_notifications or bytes_per_turn 0");
  }
  KVBM_ASSIGN_OR_RETURN(auto queue,
                        options.executor.create_queue({.name = options.name + "-link",
                                                       .num_threads = options.num_threads,
                                                       .capacity = options.max_pending}));
  auto endpoint = std::make_shared<Endpoint>(options.name, options.max_notifications);
  KVBM_ASSIGN_OR_RETURN(const uint64_t number, options.network.core_->join(endpoint));
  return std::unique_ptr<LoopbackAgent>(new LoopbackAgent(std::make_unique<Core>(
      options, options.network.core_, std::move(endpoint), number, std::move(queue))));
}

LoopbackAgent::LoopbackAgent(std::unique_ptr<Core> core) : core_(std::move(core)) {}
LoopbackAgent::~LoopbackAgent() = default;

const std::string& LoopbackAgent::name() const noexcept { return core_->name(); }

RemoteAgentCapabilities LoopbackAgent::capabilities() const { return core_->capabilities(); }

Result<AgentMemoryId> LoopbackAgent::register_memory(const AgentMemory& memory,
                                                     std::span<const MemoryRegion> regions) {
  return core_->register_memory(memory, regions);
}

Result<Completion> LoopbackAgent::unregister_memory(AgentMemoryId id) {
  return core_->unregister_memory(id);
}

Result<AgentMetadata> LoopbackAgent::metadata() const { return core_->metadata(); }

Status LoopbackAgent::add_peer(std::string_view peer, std::span<const std::byte> metadata) {
  return core_->add_peer(peer, metadata);
}

Status LoopbackAgent::remove_peer(std::string_view peer) { return core_->remove_peer(peer); }

Result<Completion> LoopbackAgent::submit(RemoteRequest request) {
  return core_->submit(std::move(request));
}

std::vector<RemoteNotification> LoopbackAgent::take_notifications() {
  return core_->take_notifications();
}

}  // namespace kvbm
