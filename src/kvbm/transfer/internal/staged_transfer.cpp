// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/staged_transfer.hpp"

#include <algorithm>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/transfer/internal/failure.hpp"
#include "kvbm/transfer/internal/hop.hpp"

namespace kvbm::internal {

StagedTransfer::StagedTransfer(TransferFrame frame, StagedSpec spec)
    : Transfer(std::move(frame)),
      spec_(std::move(spec)),
      way_(format_text("{} then {}", spec_.strategy.first.route(),
                       spec_.strategy.second.value().route())),
      groups_(spec_.slots.size()) {
  // Ends arrive where nothing may fail.
  ended_.reserve(groups_.size());
  const MutexLock lock(mutex_);
  inbox_.reserve(groups_.size());
}

Status StagedTransfer::start(std::span<const Event> events) {
  std::vector<Event> all(events.begin(), events.end());
  if (spec_.memory) all.push_back(spec_.memory->ready());
  if (deadline() != kNever) KVBM_TRY(context().wake_at(deadline(), shared_from_this()));
  return start_after(all);
}

void StagedTransfer::run() noexcept {
  bool stopped = false;
  {
    const MutexLock lock(mutex_);
    stopped = stopped_;
    woken_ = false;
    ended_.clear();
    ended_.swap(inbox_);
  }
  if (!no_more_ && stopped) {
    no_more_ = failure(ErrorCode::kCancelled, "the transfer manager was destroyed before its turn");
  } else if (!no_more_ && context().now() >= deadline()) {
    no_more_ = failure(ErrorCode::kTimeout, "the deadline passed before its turn");
  }
  try {
    turn();
  } catch (...) {
    give_up(current_failure());
  }
  if (num_open_ == 0 && next_ == num_blocks()) return conclude();
  {
    const MutexLock lock(mutex_);
    running_ = woken_ || !inbox_.empty() || stopped_ != stopped;
    if (!running_) return;
  }
  context().schedule(shared_from_this());
}

void StagedTransfer::turn() {
  while (!ended_.empty()) {
    const uint32_t slot = ended_.back();
    ended_.pop_back();
    hop_ended(slot);
  }
  if (no_more_) {
    give_up(Error(*no_more_));
  } else {
    begin_groups();
  }
}

/// Goes on with what the first hop brought, or counts what the second one did.
void StagedTransfer::hop_ended(uint32_t slot) noexcept {
  Group& group = groups_[slot];
  const TransferCompleteNotification hop = std::exchange(group.hop, {});
  const TransferResult& result = hop.result();
  // Its positions are those of the group's list.
  for (const uint32_t index : result.failed) fail(group.positions[index], result.status.error());
  if (group.phase == Phase::kSecond) {
    bytes_ += result.bytes;
    return free_slot(slot);
  }
  for (auto index = result.failed.rbegin(); index != result.failed.rend(); ++index) {
    group.positions.erase(group.positions.begin() + *index);
    group.ids.erase(group.ids.begin() + *index);
  }
  if (group.positions.empty()) return free_slot(slot);
  if (no_more_) return fail_group(slot, *no_more_);
  begin(slot, Phase::kSecond);
}

void StagedTransfer::begin_groups() {
  while (next_ < num_blocks()) {
    const std::optional<uint32_t> slot =
        spec_.ring().take(std::static_pointer_cast<StagedTransfer>(shared_from_this()), priority());
    if (!slot) return;
    ++num_open_;
    Group& group = groups_[*slot];
    group.positions.clear();
    group.ids.clear();
    group.phase = Phase::kFirst;
    const BounceSlot& place = spec_.slots[*slot];
    const size_t count =
        std::min<size_t>({spec_.blocks_per_group, place.ids.size(), num_blocks() - next_});
    try {
      group.positions.reserve(count);
      group.ids.assign(place.ids.begin(), place.ids.begin() + static_cast<ptrdiff_t>(count));
    } catch (...) {
      free_slot(*slot);
      throw;
    }
    for (size_t i = 0; i < count; ++i) group.positions.push_back(next_++);
    begin(*slot, Phase::kFirst);
  }
}

/// Starts a hop of a group; where that fails, its blocks have.
void StagedTransfer::begin(uint32_t slot, Phase phase) noexcept {
  Group& group = groups_[slot];
  group.phase = phase;
  const bool is_first = phase == Phase::kFirst;
  const auto ids_of = [&](const std::vector<BlockId>& all) {
    std::vector<BlockId> ids;
    ids.reserve(group.positions.size());
    for (const uint32_t position : group.positions) ids.push_back(all[position]);
    return ids;
  };
  const Status begun = guarded([&]() -> Status {
    const TransferHop& hop = is_first ? spec_.strategy.first : *spec_.strategy.second;
    const std::vector<BlockId> ids = ids_of(is_first ? spec_.from : spec_.to);
    auto blocks = context().blocks().take();
    blocks->pairs.assign(is_first ? ids : group.ids, is_first ? group.ids : ids);
    std::vector<SlotTag> tags;
    if (hop.kind == HopKind::kFile) {
      for (const uint32_t position : group.positions) tags.push_back(spec_.tags[position]);
    }
    const auto& bounce = spec_.slots[slot].layout;
    const auto& plan = is_first ? spec_.first_plan : spec_.second_plan;
    KVBM_ASSIGN_OR_RETURN(group.hop,
                          start_hop(frame().context, {.hop = hop,
                                                      .src = is_first ? frame().layouts[0] : bounce,
                                                      .dst = is_first ? bounce : frame().layouts[1],
                                                      .plan = plan ? &*plan : nullptr,
                                                      .blocks = std::move(blocks),
                                                      .tags = tags,
                                                      .deadline = deadline(),
                                                      .priority = priority(),
                                                      .kind = TransferKind::kPart}));
    return {};
  });
  if (!begun) return fail_group(slot, begun.error());
  watch(slot);
}

/// Hears of the end of the hop.
void StagedTransfer::watch(uint32_t slot) noexcept {
  const auto ended = [self = std::static_pointer_cast<StagedTransfer>(shared_from_this()),
                      slot](const TransferResult&) noexcept {
    {
      const MutexLock lock(self->mutex_);
      self->inbox_.push_back(slot);  // has room
    }
    self->wake();
  };
  const TransferCompleteNotification hop = groups_[slot].hop;
  const Status heard = guarded([&]() -> Status {
    hop.on_done(ended);
    return {};
  });
  if (heard) return;
  // No memory to be called back, so it is waited for: its memory is in use until then.
  static_cast<void>(guarded([&] { return hop.wait(); }));
  if (hop.done()) ended(hop.result());
}

void StagedTransfer::wake() noexcept {
  {
    const MutexLock lock(mutex_);
    woken_ = true;
    if (std::exchange(running_, true)) return;
  }
  context().schedule(shared_from_this());
}

void StagedTransfer::stop() noexcept {
  {
    const MutexLock lock(mutex_);
    stopped_ = true;
  }
  wake();
}

void StagedTransfer::free_slot(uint32_t slot) noexcept {
  groups_[slot].phase = Phase::kFree;
  --num_open_;
  spec_.ring().give_back(slot);
}

void StagedTransfer::fail_group(uint32_t slot, const Error& error) noexcept {
  for (const uint32_t position : groups_[slot].positions) fail(position, error);
  free_slot(slot);
}

/// What is under way ends by itself; the rest fails.
void StagedTransfer::give_up(const Error& error) noexcept {
  if (!no_more_) no_more_ = copy_of(error);
  spec_.ring().withdraw(*this);
  while (next_ < num_blocks()) fail(next_++, error);
  // Ends that have come are still to be looked at.
  while (!ended_.empty()) {
    const uint32_t slot = ended_.back();
    ended_.pop_back();
    hop_ended(slot);
  }
}

void StagedTransfer::fail(uint32_t position, const Error& error) noexcept {
  failed().push_back(position);  // has room
  if (!first_failure_ || position < first_failed_) {
    first_failed_ = position;
    first_failure_ = copy_of(error);
  }
}

void StagedTransfer::conclude() noexcept {
  spec_.ring().withdraw(*this);
  TransferResult result;
  result.bytes = bytes_;
  result.failed = std::move(failed());
  std::ranges::sort(result.failed);
  if (first_failure_) {
    try {
      result.status = make_error(
          Error(*first_failure_)
              .with_context(format_text("{} of {} blocks failed, first position {}",
                                        result.failed.size(), num_blocks(), first_failed_)));
    } catch (...) {
      result.status = make_error(std::move(*first_failure_));
    }
  }
  finish(std::move(result));
}

/// Blocks and bytes are counted by the hops.
void StagedTransfer::ending(const TransferResult& /*result*/) noexcept {
  if (spec_.loan) spec_.loan->release();
}

}  // namespace kvbm::internal
