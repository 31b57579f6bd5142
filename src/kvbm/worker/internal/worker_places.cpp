// SPDX-License-Identifier: Apache-2.0
#include "kvbm/worker/internal/worker_places.hpp"

#include <algorithm>
#include <string>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/device/strided_copy.hpp"

namespace kvbm::internal {
namespace {

/// The log tells how far the pinning of host memory has come, this often and at its end.
constexpr uint64_t kPinnedBetweenRecords = uint64_t{4} << 30;

/// Of its pinning, one way or the other.
bool has_ended(const HostMemory& memory) { return memory.ready(memory.size_bytes()).done(); }

}  // namespace

Result<LayoutConfig> WorkerPlaces::config_of(const PlaceSpec& spec) const {
  const LayoutConfig* found = options_.model.find(spec.place.group);
  if (found == nullptr) {
    return make_error(ErrorCode::kInvalidArgument,
                      "the worker has no layer group " + to_string(spec.place.group));
  }
  LayoutConfig config = *found;
  config.num_blocks = spec.num_blocks;
  KVBM_TRY(config.validate());
  if (spec.rank_block_bytes != config.block_bytes()) {
    return make_error(ErrorCode::kInvalidArgument,
                      "a block of layer group " + to_string(spec.place.group) + " has " +
                          std::to_string(config.block_bytes()) + " bytes on this rank, not " +
                          std::to_string(spec.rank_block_bytes));
  }
  return config;
}

Result<PlaceSpec> WorkerPlaces::attach(Place place, PhysicalLayout tensors,
                                       uint32_t pieces_per_layer) {
  PlaceSpec spec{.place = place,
                 .owner = Owner::kEngine,
                 .spread = Spread::kSharded,
                 .num_blocks = static_cast<uint32_t>(tensors.config().num_blocks),
                 .rank_block_bytes = tensors.config().block_bytes()};
  KVBM_ASSIGN_OR_RETURN(const LayoutConfig config, config_of(spec));
  KVBM_TRY(check_same_block_shape(tensors.config(), config));
  if (pieces_per_layer > 0 && config.num_layers % pieces_per_layer != 0) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("a block of layer group {} has {} pieces, and a layer {} of them",
                                  place.group, config.num_layers, pieces_per_layer));
  }
  KVBM_TRY(add(place, std::move(tensors), {.pieces_per_layer = pieces_per_layer}));
  return spec;
}

Status WorkerPlaces::provide(const PlaceSpec& spec) {
  if (spec.spread != Spread::kSharded) {
    return make_error(ErrorCode::kUnsupported,
                      "replicated blocks are not supported; use sharded ones");
  }
  const bool in_memory = spec.place.tier == TierId::kG2;
  if (!in_memory && (spec.place.tier != TierId::kG3 || !has_files_)) {
    return make_error(ErrorCode::kUnsupported,
                      format_text("this worker provides host memory (G2){}, not {}",
                                  has_files_ ? " and files (G3)" : "", spec.place.tier));
  }
  KVBM_ASSIGN_OR_RETURN(const LayoutConfig config, config_of(spec));
  auto made = std::make_unique<Provided>();
  KVBM_ASSIGN_OR_RETURN(PhysicalLayout layout, in_memory
                                                   ? in_host_memory(config, spec.place, *made)
                                                   : in_file(config, spec.place.group, *made));
  Known known{.num_blocks = spec.num_blocks};
  if (in_memory) {
    known.memory = &made->memory;
    known.block_bytes = layout.page_maps().front().block_stride();
  }
  KVBM_TRY(add(spec.place, std::move(layout), known));
  const Provided& added = *made;
  {
    const MutexLock lock(mutex_);
    provided_.push_back(std::move(made));
    is_pinning_ = options_.pinner != nullptr;
  }
  shrink(spec.place, added);
  return {};
}

void WorkerPlaces::on_shrunk(ShrinkCallback callback) {
  const auto shared =
      callback ? std::make_shared<const ShrinkCallback>(std::move(callback)) : nullptr;
  std::vector<ShrunkPlace> shrunk;
  {
    const MutexLock lock(mutex_);
    on_shrunk_ = shared;
    for (const auto& [place, known] : known_) {
      if (known.shrunk_to) shrunk.push_back({options_.rank, place, *known.shrunk_to});
    }
  }
  if (shared == nullptr) return;
  for (const ShrunkPlace& one : shrunk) (*shared)(one);
}

/// On a thread that pins: maybe before there is a place, which then hears of it when it is added.
void WorkerPlaces::fall_short(Place place, Provided& provided, Shortage shortage) {
  {
    const MutexLock lock(mutex_);
    std::optional<Shortage>& known = provided.shortage;
    if (known && known->usable_bytes <= shortage.usable_bytes) return;
    known = std::move(shortage);
  }
  shrink(place, provided);
}

/// To what there is of its memory, if that is less than has been told.
void WorkerPlaces::shrink(Place place, const Provided& provided) {
  Shortage shortage;
  uint32_t num_blocks = 0;
  uint32_t usable = 0;
  std::shared_ptr<const ShrinkCallback> callback;
  {
    const MutexLock lock(mutex_);
    const auto found = known_.find(place);
    if (!provided.shortage || found == known_.end()) return;
    Known& known = found->second;
    if (known.memory != &provided.memory) return;  // of a place that was refused
    shortage = *provided.shortage;
    num_blocks = known.num_blocks;
    // One block has no stride, and has not come whole.
    if (known.block_bytes > 0) {
      usable = static_cast<uint32_t>(shortage.usable_bytes / known.block_bytes);
    }
    if (usable >= known.shrunk_to.value_or(num_blocks)) return;
    known.shrunk_to = usable;
    callback = on_shrunk_;
  }
  KVBM_LOG_ERROR(
      log_, "worker",
      "rank {}: no more than {} of host memory could be pinned: {}; layer group {} goes "
      "on with {} of {} blocks in host memory (G2), and nothing that is stored is lost. "
      "The kernel's log may know more (dmesg, NVRM): ask for a smaller host tier, or free "
      "memory of the machine, and start again",
      options_.rank.value(), format_size(shortage.usable_bytes), shortage.why, place.group.value(),
      usable, num_blocks);
  if (callback != nullptr) (*callback)({options_.rank, place, usable});
}

std::optional<LayoutHandle> WorkerPlaces::find(Place place) const {
  const MutexLock lock(mutex_);
  const auto found = known_.find(place);
  if (found == known_.end()) return std::nullopt;
  return found->second.handle;
}

Completion WorkerPlaces::ready(Place place, std::span<const BlockId> blocks) const {
  Known known;
  {
    const MutexLock lock(mutex_);
    const auto found = known_.find(place);
    if (found != known_.end()) known = found->second;
  }
  if (known.memory == nullptr || blocks.empty()) return Completion::ready();
  const uint64_t size = known.memory->size_bytes();
  // One block has no stride, and ids out of range are refused by whoever copies.
  const uint64_t end =
      known.block_bytes == 0 ? size : (range_of(blocks).highest + 1) * known.block_bytes;
  return known.memory->ready(std::min(end, size));
}

bool WorkerPlaces::take_pinning_ended() {
  if (!is_pinning_.load(std::memory_order_relaxed)) return false;
  const MutexLock lock(mutex_);
  const bool all =
      std::ranges::all_of(provided_, [](const auto& made) { return has_ended(made->memory); });
  return all && is_pinning_.exchange(false);
}

void WorkerPlaces::end_pinning() {
  std::vector<HostMemory*> memory;
  {
    const MutexLock lock(mutex_);
    for (const auto& made : provided_) {
      // What has come since is on its way, and has its own turn.
      if (has_ended(made->memory)) memory.push_back(&made->memory);
    }
  }
  // Where it failed the log has told.
  for (HostMemory* const one : memory) static_cast<void>(one->wait());
}

void WorkerPlaces::close() {
  std::vector<HostMemory*> memory;
  {
    const MutexLock lock(mutex_);
    for (const auto& made : provided_) memory.push_back(&made->memory);
  }
  for (HostMemory* const one : memory) one->give_up();
}

uint32_t WorkerPlaces::pieces_per_layer(Place place) const {
  const MutexLock lock(mutex_);
  const auto found = known_.find(place);
  return found == known_.end() ? 0 : found->second.pieces_per_layer;
}

/// Pinning takes seconds where there is much of it, so the log tells how far it has come.
Result<HostMemory> WorkerPlaces::make_host_memory(Place place, uint64_t bytes, Provided& provided) {
  const auto tell = [&log = log_, rank = options_.rank, bytes,
                     told = uint64_t{0}](uint64_t ready) mutable {
    if (ready < bytes && ready - told < kPinnedBetweenRecords) return;
    told = ready;
    KVBM_LOG_INFO(log, "worker", "rank {}: {} of {} of host memory are pinned", rank.value(),
                  format_size(ready), format_size(bytes));
  };
  return HostMemory::create(
      {.executor = executor_,
       .pinner = options_.pinner,
       .size_bytes = bytes,
       .wait = HostReady::kFirstSlice,
       .slice_bytes = options_.pin_slice_bytes,
       .on_progress = tell,
       .on_shortage = [this, place, &provided](uint64_t usable_bytes, const Error& why) {
         fall_short(place, provided, {usable_bytes, why.describe()});
       }});
}

Result<PhysicalLayout> WorkerPlaces::in_host_memory(const LayoutConfig& config, Place place,
                                                    Provided& memory) {
  KVBM_ASSIGN_OR_RETURN(const uint64_t bytes, required_bytes(config, LayoutKind::kFullyContiguous));
  KVBM_ASSIGN_OR_RETURN(memory.memory, make_host_memory(place, bytes, memory));
  return PhysicalLayout::fully_contiguous(config, memory.memory.region());
}

Result<PhysicalLayout> WorkerPlaces::in_file(const LayoutConfig& config, GroupId group,
                                             Provided& memory) {
  const SlotOptions slots = options_.direct_io == DirectIo::kOff ? SlotOptions{} : kDirectSlots;
  KVBM_ASSIGN_OR_RETURN(const uint64_t bytes,
                        required_bytes(config, LayoutKind::kFileSlots, slots));
  KVBM_ASSIGN_OR_RETURN(memory.file,
                        FileMemory::create({.directory = options_.disk_directory,
                                            .size_bytes = bytes,
                                            .name_hint = "kvbm-rank" + to_string(options_.rank) +
                                                         "-group" + to_string(group),
                                            .direct = options_.direct_io,
                                            .zero_fill = options_.zero_fill,
                                            .log = &log_}));
  if (slots.alignment % memory.file.alignment().offset != 0) {
    return make_error(
        ErrorCode::kUnsupported,
        format_text("direct I/O in \"{}\" asks for units of {} bytes, more than "
                    "the {} of a slot: turn it off, or choose another directory",
                    options_.disk_directory, memory.file.alignment().offset, slots.alignment));
  }
  return PhysicalLayout::file_slots(config, memory.file.region(), slots);
}

Status WorkerPlaces::add(Place place, PhysicalLayout layout, Known known) {
  KVBM_ASSIGN_OR_RETURN(known.handle, transfers_.register_layout(std::move(layout)));
  bool is_new = false;
  {
    const MutexLock lock(mutex_);
    is_new = known_.emplace(place, known).second;
  }
  if (is_new) return {};
  KVBM_TRY(transfers_.unregister_layout(known.handle));
  return make_error(ErrorCode::kInvalidArgument,
                    "the worker has a place in " + std::string(to_string(place.tier)) +
                        " for layer group " + to_string(place.group) + " already");
}

}  // namespace kvbm::internal
