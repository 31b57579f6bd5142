// SPDX-License-Identifier: Apache-2.0
// Channel messages: no input crashes the decoder, and what it accepts encodes to the same bytes.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "kvbm/adapters/zmq/channel_message.hpp"
#include "kvbm/base/bytes.hpp"
#include "kvbm/base/hash.hpp"

namespace {

void decode(std::span<const std::byte> message) {
  const auto value = kvbm::decode_channel_message(message);
  if (value && !std::ranges::equal(kvbm::encode(*value), message)) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> input = std::as_bytes(std::span(data, size));
  decode(input);
  if (size < 18) return 0;
  // The same with a header that holds, so that the body is reached: see docs/formats/channel.md.
  kvbm::ByteWriter message(size);
  message.bytes(kvbm::bytes_of("KVBZ"));
  message.u64(0);
  message.u16(1);
  message.u16(1);
  message.bytes(input.subspan(16));
  message.patch_u64(4, kvbm::checksum(message.view().subspan(12)));
  decode(message.view());
  return 0;
}
