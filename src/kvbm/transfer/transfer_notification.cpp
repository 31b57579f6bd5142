// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/transfer_notification.hpp"

#include "kvbm/base/contract.hpp"
#include "kvbm/transfer/internal/failure.hpp"

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

TransferSource::TransferSource(Executor& executor)
    : source_(executor), state_(make_state(source_.completion(), Event(source_.completion()))) {}

std::shared_ptr<TransferCompleteNotification::State> TransferSource::make_state(
    Completion completion, Event event) {
  return std::make_shared<TransferCompleteNotification::State>(TransferCompleteNotification::State{
      .completion = std::move(completion),
      .event = std::move(event),
      // What is seen if the source is dropped.
      .result = {.status = make_error(ErrorCode::kInternal, "a transfer was dropped")}});
}

void TransferSource::resolve(TransferResult result) {
  KVBM_CONTRACT(!state_->completion.done(), "a transfer was resolved twice");
  state_->result = std::move(result);
  source_.resolve(internal::copy_of(state_->result.status));  // publishes the result
}

}  // namespace kvbm
