// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/transfer_notification.hpp"

#include <algorithm>
#include <atomic>

#include "kvbm/base/contract.hpp"

namespace kvbm {
namespace {

/// Of parts that are done. Allocates nothing but what failures need; `failed` may bring room.
TransferResult sum_up(std::span<const TransferCompleteNotification> parts,
                      std::vector<uint32_t> failed) {
  TransferResult sum;
  for (size_t i = 0; i < parts.size(); ++i) {
    const TransferResult& part = parts[i].result();
    sum.bytes += part.bytes;
    if (part.status) continue;
    if (sum.status) sum.status = internal::copy_of(part.status);
    failed.push_back(static_cast<uint32_t>(i));
  }
  sum.failed = std::move(failed);
  return sum;
}

/// Keeps the parts of an aggregate until the last one is done.
class Aggregation {
 public:
  Aggregation(Executor& executor, std::span<const TransferCompleteNotification> parts)
      : source_(executor), parts_(parts.begin(), parts.end()), num_open_(parts.size()) {
    failed_.reserve(parts.size());  // so that the end needs no memory
  }

  [[nodiscard]] TransferCompleteNotification notification() const { return source_.notification(); }

  void on_part() noexcept {
    if (num_open_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    source_.resolve(sum_up(parts_, std::move(failed_)));
  }

 private:
  TransferSource source_;
  const std::vector<TransferCompleteNotification> parts_;
  std::vector<uint32_t> failed_;
  std::atomic<size_t> num_open_;
};

}  // namespace

TransferCompleteNotification TransferCompleteNotification::aggregate(
    std::span<const TransferCompleteNotification> parts) {
  const auto open = std::ranges::find_if(parts, [](const auto& part) { return !part.done(); });
  if (open == parts.end()) return ready(sum_up(parts, {}));

  const auto aggregation =
      std::make_shared<Aggregation>(*open->state_->completion.executor(), parts);
  TransferCompleteNotification whole = aggregation->notification();
  for (const TransferCompleteNotification& part : parts) {
    part.completion().on_done([aggregation](const Status&) noexcept { aggregation->on_part(); });
  }
  return whole;
}

const TransferResult& TransferCompleteNotification::result() const {
  KVBM_CONTRACT(done(), "the result of a transfer was asked for before it was done");
  return state_ ? state_->outcome() : ready_;
}

Status TransferCompleteNotification::wait(TimePoint deadline) const {
  return state_ ? state_->completion.wait(deadline) : ready_.status;
}

const TransferResult& TransferCompleteNotification::State::outcome() const {
  return has_result ? result : dropped();
}

const TransferResult& TransferCompleteNotification::State::dropped() {
  static const TransferResult result{
      .status = make_error(ErrorCode::kInternal, "a transfer was dropped")};
  return result;
}

TransferSource::TransferSource(Executor& executor, const MemoryPool& pool)
    : source_(executor, pool),
      state_(make_pooled<TransferCompleteNotification::State>(
          pool, TransferCompleteNotification::State{.completion = source_.completion(),
                                                    .event = Event(source_.completion())})) {
  // Made here, where memory may be asked for; who asks for an outcome may have none.
  static_cast<void>(TransferCompleteNotification::State::dropped());
}

void TransferSource::resolve(TransferResult result) {
  KVBM_CONTRACT(!state_->completion.done(), "a transfer was resolved twice");
  state_->result = std::move(result);
  state_->has_result = true;
  source_.resolve(internal::copy_of(state_->result.status));  // publishes the result
}

}  // namespace kvbm
