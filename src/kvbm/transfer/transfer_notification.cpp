// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/transfer_notification.hpp"

#include "kvbm/base/contract.hpp"

namespace kvbm {
namespace {

const TransferResult kNothingMoved{};

}  // namespace

const TransferResult& TransferCompleteNotification::result() const {
  KVBM_CONTRACT(done(), "the result of a transfer was asked for before it was done");
  return state_ ? state_->result : kNothingMoved;
}

Status TransferCompleteNotification::wait(TimePoint deadline) const {
  return state_ ? state_->completion.wait(deadline) : Status();
}

TransferSource::TransferSource(Executor& executor) : source_(executor) {
  const Completion completion = source_.completion();
  state_ = std::make_shared<TransferCompleteNotification::State>(
      TransferCompleteNotification::State{completion, Event(completion), {}});
  state_->result.status = make_error(ErrorCode::kInternal, "a transfer was dropped");
}

TransferSource::TransferSource(Executor& executor, Event event) : TransferSource(executor) {
  state_->event = std::move(event);
}

void TransferSource::resolve(TransferResult result) {
  KVBM_CONTRACT(!state_->completion.done(), "a transfer was resolved twice");
  state_->result = std::move(result);
  source_.resolve(state_->result.status);  // publishes the result
}

}  // namespace kvbm
