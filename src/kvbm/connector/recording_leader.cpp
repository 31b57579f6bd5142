// SPDX-License-Identifier: Apache-2.0
#include "kvbm/connector/recording_leader.hpp"

#include <string>
#include <utility>

namespace kvbm {
namespace {

std::optional<ErrorCode> code_of(const Status& status) {
  return status ? std::nullopt : std::optional(status.error().code());
}

}  // namespace

/// `run` makes the call, and writes its outcome into what it is given.
template <class Call, class Run>
void RecordingLeader::record(Call call, Run run) {
  clock_.renew();
  channel_.begin_call();
  RecordedCall recorded;
  recorded.time = clock_.elapsed();
  const auto append = [&] {
    recorded.inputs = channel_.take_inputs();
    recorded.sent = channel_.sent();
    recorded.call = std::move(call);
    writer_.append(std::move(recorded), counts_of(metrics_));
  };
  try {
    run(call);
  } catch (...) {
    recorded.threw = true;
    append();
    throw;
  }
  append();
}

void RecordingLeader::extend(std::string_view request, std::span<const Identity> identities,
                             std::optional<uint32_t> priority) {
  record(ExtendCall{std::string(request),
                    inner_.num_identities(request),
                    {identities.begin(), identities.end()},
                    priority},
         [&](ExtendCall& /*call*/) { inner_.extend(request, identities, priority); });
}

ExternalMatch RecordingLeader::match(std::string_view request, uint32_t num_computed_tokens,
                                     uint32_t num_tokens) {
  ExternalMatch offer;
  record(MatchCall{std::string(request), num_computed_tokens, num_tokens, {}},
         [&](MatchCall& call) {
           call.offer = offer = inner_.match(request, num_computed_tokens, num_tokens);
         });
  return offer;
}

Status RecordingLeader::allocated(std::string_view request,
                                  const std::vector<std::vector<BlockId>>& blocks,
                                  uint32_t num_external_tokens) {
  Status status;
  record(AllocatedCall{std::string(request), blocks, num_external_tokens, std::nullopt},
         [&](AllocatedCall& call) {
           status = inner_.allocated(request, blocks, num_external_tokens);
           call.error = code_of(status);
         });
  return status;
}

std::vector<std::byte> RecordingLeader::build_step(std::span<const ScheduledRequest> scheduled) {
  BuildStepCall made;
  made.scheduled.reserve(scheduled.size());
  for (const ScheduledRequest& request : scheduled) {
    made.scheduled.push_back({std::string(request.request), request.blocks, request.replaces_blocks,
                              request.num_computed_tokens, request.num_scheduled_tokens});
  }
  std::vector<std::byte> step;
  record(std::move(made), [&](BuildStepCall& call) {
    step = inner_.build_step(scheduled);
    call.step = step;
  });
  return step;
}

bool RecordingLeader::finished(std::string_view request) {
  bool holds_blocks = false;
  record(FinishedCall{std::string(request), false},
         [&](FinishedCall& call) { call.holds_blocks = holds_blocks = inner_.finished(request); });
  return holds_blocks;
}

void RecordingLeader::reset() {
  record(ResetCall{}, [&](ResetCall& /*call*/) { inner_.reset(); });
}

void RecordingLeader::poll() {
  record(PollCall{}, [&](PollCall& /*call*/) { inner_.poll(); });
}

Status RecordingLeader::wait_idle(TimePoint deadline) {
  Status status;
  WaitIdleCall made;
  if (deadline != kNever) made.deadline = deadline - clock_.started();
  record(made, [&](WaitIdleCall& call) {
    status = inner_.wait_idle(deadline);
    call.error = code_of(status);
  });
  return status;
}

}  // namespace kvbm
