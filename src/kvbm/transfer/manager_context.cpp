// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/manager_context.hpp"

#include <utility>

#include "kvbm/transfer/internal/transfer_context.hpp"

namespace kvbm {

using internal::StreamDirection;

LentStream::LentStream(std::shared_ptr<internal::TransferContext> context,
                       StreamDirection direction, StreamRef stream) noexcept
    : context_(std::move(context)), direction_(direction), stream_(stream) {}

LentStream::LentStream(LentStream&& other) noexcept
    : context_(std::move(other.context_)), direction_(other.direction_), stream_(other.stream_) {}

LentStream::~LentStream() {
  if (context_ == nullptr) return;
  try {
    // The record also takes away a failure that nobody has asked for.
    context_->device().record(stream_).on_done([weak = std::weak_ptr(context_),
                                                direction = direction_,
                                                stream = stream_](const Status&) noexcept {
      if (const auto context = weak.lock()) context->streams().end_loan(direction, stream);
    });
  } catch (...) {  // NOLINT(bugprone-empty-catch): without memory it rests until the manager goes
  }
}

ManagerContext::ManagerContext(std::shared_ptr<internal::TransferContext> context) noexcept
    : context_(std::move(context)) {}

Result<LentStream> ManagerContext::acquire_h2d_stream() const {
  return lend(StreamDirection::kToDevice);
}

Result<LentStream> ManagerContext::acquire_d2h_stream() const {
  return lend(StreamDirection::kToHost);
}

Result<LentStream> ManagerContext::acquire_d2d_stream() const {
  return lend(StreamDirection::kSide);
}

Device& ManagerContext::device() const noexcept { return context_->device(); }

Executor& ManagerContext::executor() const noexcept { return context_->executor(); }

Result<LentStream> ManagerContext::lend(StreamDirection direction) const {
  KVBM_ASSIGN_OR_RETURN(const StreamRef stream, context_->streams().lend(direction));
  return LentStream(context_, direction, stream);
}

}  // namespace kvbm
