// SPDX-License-Identifier: Apache-2.0
// Protocol messages: no input crashes the decoder, and what it accepts encodes to the same bytes.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "kvbm/base/bytes.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/protocol/codec.hpp"

namespace {

using kvbm::CopyOp;
using kvbm::OpResult;
using kvbm::PlaceSpec;
using kvbm::StepPlan;

template <class T>
bool decode(std::span<const std::byte> message) {
  const kvbm::Result<T> value = kvbm::decode<T>(message);
  if (value && !std::ranges::equal(kvbm::encode(*value), message)) std::abort();
  return value.has_value();
}

void decode_all(std::span<const std::byte> message) {
  const int accepted = decode<CopyOp>(message) + decode<std::vector<CopyOp>>(message) +
                       decode<StepPlan>(message) + decode<std::vector<StepPlan>>(message) +
                       decode<OpResult>(message) + decode<std::vector<OpResult>>(message) +
                       decode<PlaceSpec>(message) + decode<std::vector<PlaceSpec>>(message);
  // A message is of one type.
  if (accepted > 1 || (accepted == 1 && !kvbm::message_type(message))) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> input = std::as_bytes(std::span(data, size));
  decode_all(input);
  if (size < 20) return 0;
  // The same with a header that holds, so that the body is reached: see docs/formats/protocol.md.
  kvbm::ByteWriter message(size);
  message.bytes(kvbm::bytes_of("KVBP"));
  message.bytes(input.subspan(4));
  message.patch_u32(16, static_cast<uint32_t>(size - 20));
  message.patch_u64(4, kvbm::checksum(message.view().subspan(12)));
  decode_all(message.view());
  return 0;
}
