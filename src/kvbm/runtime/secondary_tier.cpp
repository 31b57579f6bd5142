// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/secondary_tier.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/cluster/cluster.hpp"
#include "kvbm/cluster/inproc_channel.hpp"
#include "kvbm/connector/connector_step.hpp"
#include "kvbm/events/event_sink.hpp"
#include "kvbm/layout/slot_format.hpp"
#include "kvbm/runtime/internal/tier_size.hpp"
#include "kvbm/runtime/kvbm_worker.hpp"

namespace kvbm {
namespace {

/// The pool is one place, whatever layer groups its chunks belong to: their keys keep them apart.
constexpr GroupId kPool{0};
/// Every chunk that is handed over has been written before.
constexpr StepId kBefore{1};

constexpr size_t kGroupBytes = 4;

tl::unexpected<Error> invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, std::move(message));
}

Result<uint32_t> disk_blocks_of(const SecondaryTierOptions& options) {
  KVBM_ASSIGN_OR_RETURN(const SlotGeometry slot, slot_geometry(options.chunk_bytes, kDirectSlots));
  KVBM_ASSIGN_OR_RETURN(
      const uint32_t blocks,
      internal::tier_blocks("the disk", options.disk_blocks, options.disk_bytes, slot.slot_bytes));
  if (blocks == 0) return invalid("a secondary tier needs disk space: none is given");
  return blocks;
}

}  // namespace

/// Members go in reverse order, the worker last.
struct SecondaryTier::Impl {
  struct Job {
    std::vector<BlockId> chunks;
    TimePoint submitted;
    std::vector<BlockKey> stored;  // of a store
    std::optional<LoadId> load;    // of a load, while it runs
    std::vector<uint32_t> found;   // of a load: the positions that are being copied
    uint32_t num_arrived = 0;      // of them, from the front
    bool is_load = false;
  };

  explicit Impl(const SecondaryTierOptions& the_options, LogSink& log)
      : options(the_options), executor(log) {}

  Status make(LogSink& log);
  Result<std::vector<BlockKey>> keys_of(std::span<const std::span<const std::byte>> raw);
  std::optional<ImmutableBlock> find(const BlockKey& key);
  Status check_job(uint64_t job, size_t num_keys, std::span<const uint32_t> chunks) const;
  FinishedTierJob finish(uint64_t id, const Job& job);

  const SecondaryTierOptions options;
  std::unique_ptr<KvbmWorker> worker;
  ThreadExecutor executor;
  NullSink events;
  MetricsRegistry metrics;
  std::unique_ptr<InprocChannel> channel;
  std::unique_ptr<Cluster> cluster;
  std::map<uint32_t, NamespaceId> namespaces;  // by layer group
  std::map<uint64_t, Job> jobs;
  uint32_t disk_blocks = 0;
};

Status SecondaryTier::Impl::make(LogSink& log) {
  KVBM_ASSIGN_OR_RETURN(disk_blocks, disk_blocks_of(options));
  KvbmWorkerOptions rank;
  rank.num_blocks = options.num_chunks;
  rank.groups.push_back({.run_bytes = options.chunk_bytes,
                         .runs = {{.base = options.memory, .block_stride = options.chunk_stride}}});
  rank.disk_directory = options.disk_directory;
  rank.direct_io = options.direct_io;
  rank.zero_fill = options.zero_fill;
  rank.disk_threads = options.disk_threads;
  KVBM_ASSIGN_OR_RETURN(worker, KvbmWorker::create(std::move(rank), log));
  ConnectorStep before;
  before.plan.step = kBefore;
  KVBM_TRY(worker->hooks().begin_step(encode(before)));
  worker->hooks().end_step();

  std::vector<PlaceSpec> places = worker->engine_places();
  PlaceSpec disk = places.front();
  disk.place.tier = TierId::kG3;
  disk.owner = Owner::kKvbm;
  disk.num_blocks = disk_blocks;
  KVBM_TRY(worker->worker().provide(disk));
  places.push_back(disk);
  channel = std::make_unique<InprocChannel>(executor, std::vector{&worker->worker()});
  KVBM_ASSIGN_OR_RETURN(
      auto tiers,
      TierManager::create({.groups = {{kPool, Retention::full_prefix()}},
                           .places = places,
                           .num_ranks = 1,
                           .policy = PolicyKind::kLru,  // nobody says which chunk follows which
                           .timeout = options.timeout,
                           .worker = WorkerId{0}},
                          executor.clock(), events, metrics, log));
  cluster = std::make_unique<Cluster>(std::move(tiers), *channel, executor.clock());
  return {};
}

Result<std::vector<BlockKey>> SecondaryTier::Impl::keys_of(
    std::span<const std::span<const std::byte>> raw) {
  std::vector<BlockKey> keys;
  keys.reserve(raw.size());
  for (const std::span<const std::byte> bytes : raw) {
    if (bytes.size() <= kGroupBytes) {
      return invalid(format_text("a key of {} bytes; it is a hash and four bytes", bytes.size()));
    }
    const size_t hash_bytes = bytes.size() - kGroupBytes;
    uint32_t group = 0;
    for (const std::byte byte : bytes.last(kGroupBytes)) {
      group = group << 8 | static_cast<uint32_t>(byte);
    }
    auto ns = namespaces.find(group);
    if (ns == namespaces.end()) {
      const Namespace of_group{.model = options.model,
                               .weights_epoch = 0,
                               .dtype = "",
                               .num_heads = 0,
                               .num_layers = 0,
                               .tokens_per_block = 0,
                               .identity_scheme = format_text("offload-key-group-{}", group),
                               .tenant_salt = ""};
      ns = namespaces.emplace(group, of_group.id()).first;
    }
    KVBM_ASSIGN_OR_RETURN(const Identity identity, Identity::from_bytes(bytes.first(hash_bytes)));
    keys.push_back({ns->second, kPool, identity});
  }
  return keys;
}

std::optional<ImmutableBlock> SecondaryTier::Impl::find(const BlockKey& key) {
  const GroupKeys one{kPool, {&key, 1}};
  Match match = cluster->leader().find({&one, 1}, 0);
  if (match.empty()) return std::nullopt;
  return std::move(match.groups.front().blocks.front());
}

Status SecondaryTier::Impl::check_job(uint64_t job, size_t num_keys,
                                      std::span<const uint32_t> chunks) const {
  if (jobs.contains(job)) return invalid(format_text("job {} is open already", job));
  if (num_keys != chunks.size()) {
    return invalid(format_text("{} keys for {} chunks", num_keys, chunks.size()));
  }
  for (const uint32_t chunk : chunks) {
    if (chunk >= options.num_chunks) {
      return invalid(format_text("chunk {} of {}", chunk, options.num_chunks));
    }
  }
  return {};
}

Result<std::unique_ptr<SecondaryTier>> SecondaryTier::create(const SecondaryTierOptions& options,
                                                             LogSink& log) {
  auto impl = std::make_unique<Impl>(options, log);
  KVBM_TRY(impl->make(log));
  return std::unique_ptr<SecondaryTier>(new SecondaryTier(std::move(impl)));
}

SecondaryTier::SecondaryTier(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

SecondaryTier::~SecondaryTier() { static_cast<void>(impl_->worker->stop()); }

Result<bool> SecondaryTier::contains(std::span<const std::byte> key) {
  KVBM_ASSIGN_OR_RETURN(const std::vector<BlockKey> keys, impl_->keys_of({&key, 1}));
  impl_->cluster->exchange();
  return impl_->find(keys.front()).has_value();
}

Status SecondaryTier::store(uint64_t job, std::span<const std::span<const std::byte>> keys,
                            std::span<const uint32_t> chunks) {
  KVBM_TRY(impl_->check_job(job, keys.size(), chunks));
  Impl::Job open;
  KVBM_ASSIGN_OR_RETURN(open.stored, impl_->keys_of(keys));
  for (const uint32_t chunk : chunks) open.chunks.emplace_back(chunk);
  open.submitted = impl_->executor.clock().now();
  // One by one: keys of one request would be a chain.
  for (size_t i = 0; i < open.chunks.size(); ++i) {
    static_cast<void>(impl_->cluster->leader().store({.group = kPool,
                                                      .keys = {&open.stored[i], 1},
                                                      .parent = std::nullopt,
                                                      .blocks = {&open.chunks[i], 1},
                                                      .written = Gate::step_end(kBefore)}));
  }
  impl_->jobs.emplace(job, std::move(open));
  impl_->cluster->exchange();
  return {};
}

Status SecondaryTier::load(uint64_t job, std::span<const std::span<const std::byte>> keys,
                           std::span<const uint32_t> chunks) {
  KVBM_TRY(impl_->check_job(job, keys.size(), chunks));
  KVBM_ASSIGN_OR_RETURN(const std::vector<BlockKey> wanted, impl_->keys_of(keys));
  Impl::Job open;
  open.is_load = true;
  open.submitted = impl_->executor.clock().now();
  Match match;
  match.groups.push_back({.group = kPool, .first = 0, .blocks = {}, .parent = std::nullopt});
  EngineBlocks into{.group = kPool, .first = 0, .ids = {}};
  for (uint32_t i = 0; i < wanted.size(); ++i) {
    open.chunks.emplace_back(chunks[i]);
    std::optional<ImmutableBlock> block = impl_->find(wanted[i]);
    if (!block) continue;  // evicted since it was looked up
    match.groups.front().blocks.push_back(*std::move(block));
    into.ids.emplace_back(chunks[i]);
    open.found.push_back(i);
  }
  match.num_blocks = static_cast<uint32_t>(open.found.size());
  if (!open.found.empty()) {
    KVBM_ASSIGN_OR_RETURN(open.load, impl_->cluster->leader().load(std::move(match), {&into, 1},
                                                                   Gate::step_end(kBefore)));
  }
  impl_->jobs.emplace(job, std::move(open));
  impl_->cluster->exchange();
  return {};
}

FinishedTierJob SecondaryTier::Impl::finish(uint64_t id, const Job& job) {
  FinishedTierJob end{.job = id, .succeeded = true, .arrived = {}, .bytes = 0, .time = {}};
  if (job.is_load) {
    end.arrived.assign(job.found.begin(), job.found.begin() + job.num_arrived);
    end.succeeded = end.arrived.size() == job.chunks.size();
    end.bytes = end.arrived.size() * options.chunk_bytes;
  } else {
    end.succeeded = std::ranges::all_of(
        job.stored, [this](const BlockKey& key) { return find(key).has_value(); });
    end.bytes = end.succeeded ? job.stored.size() * options.chunk_bytes : 0;
  }
  end.time = executor.clock().now() - job.submitted;
  return end;
}

std::vector<FinishedTierJob> SecondaryTier::take_finished() {
  impl_->cluster->exchange();
  for (const LoadOutcome& outcome : impl_->cluster->take_loads()) {
    for (auto& [id, job] : impl_->jobs) {
      if (job.load != outcome.load) continue;
      job.num_arrived = outcome.num_blocks;
      job.load.reset();
    }
  }
  std::vector<FinishedTierJob> finished;
  for (auto it = impl_->jobs.begin(); it != impl_->jobs.end();) {
    const Impl::Job& job = it->second;
    if (job.load || !impl_->cluster->leader().touching(kPool, job.chunks).empty()) {
      ++it;
      continue;
    }
    finished.push_back(impl_->finish(it->first, job));
    it = impl_->jobs.erase(it);
  }
  return finished;
}

size_t SecondaryTier::num_open_jobs() const noexcept { return impl_->jobs.size(); }

Status SecondaryTier::drain(TimePoint deadline) { return impl_->cluster->wait_idle(deadline); }

uint32_t SecondaryTier::num_disk_blocks() const noexcept { return impl_->disk_blocks; }
uint64_t SecondaryTier::resident_blocks() const {
  return impl_->cluster->leader().resident_blocks(TierId::kG3);
}
MetricsRegistry& SecondaryTier::metrics() noexcept { return impl_->metrics; }

}  // namespace kvbm
