// SPDX-License-Identifier: Apache-2.0
#include "kvbm/connector/recording_channel.hpp"

#include <utility>

#include "kvbm/base/bytes.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/protocol/codec.hpp"

namespace kvbm {

uint64_t sent_checksum(uint64_t before, std::span<const CopyOp> ops,
                       std::span<const OpId> cancels) {
  ByteWriter sent;
  sent.u64(before);
  sent.bytes(encode(ops));
  for (const OpId cancel : cancels) sent.u64(cancel.value());
  return checksum(sent.view());
}

void RecordingChannel::begin_call() {
  num_receives_ = 0;
  inputs_.clear();
  sent_ = 0;
}

std::vector<CallInput> RecordingChannel::take_inputs() { return std::exchange(inputs_, {}); }

void RecordingChannel::send(std::span<const CopyOp> ops, std::span<const OpId> cancels) {
  sent_ = sent_checksum(sent_, ops, cancels);
  inner_.send(ops, cancels);
}

ChannelInbox RecordingChannel::receive() {
  const uint32_t receive = num_receives_++;
  ChannelInbox inbox = inner_.receive();
  if (!inbox.empty()) inputs_.emplace_back(ReceivedInbox{receive, inbox});
  return inbox;
}

bool RecordingChannel::wait(TimePoint deadline) {
  const bool has_come = inner_.wait(deadline);
  clock_.renew();
  inputs_.emplace_back(EndedWait{has_come, clock_.elapsed()});
  return has_come;
}

}  // namespace kvbm
