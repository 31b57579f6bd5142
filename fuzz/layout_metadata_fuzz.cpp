// SPDX-License-Identifier: Apache-2.0
// Layout metadata: no input crashes the reader, what it accepts packs to the same bytes, and any
// altered bit of that is refused.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "kvbm/transfer/serialized_layout.hpp"

#include "tests/support/sample_metadata.hpp"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

void unpack(std::span<const std::byte> input) {
  std::vector<std::byte> bytes(input.begin(), input.end());
  const auto metadata = kvbm::SerializedLayout::from_bytes(bytes).unpack();
  if (!metadata) {
    const kvbm::ErrorCode code = metadata.error().code();
    require(code == kvbm::ErrorCode::kCorrupt || code == kvbm::ErrorCode::kUnsupported);
    return;
  }
  const auto again = kvbm::SerializedLayout::pack(*metadata);
  require(again.has_value() && std::ranges::equal(again->as_bytes(), input));
  // The whole of a small one, a part of a large one.
  const size_t step = 1 + bytes.size() / 1024;
  for (size_t at = 0; at < bytes.size(); at += step) {
    for (unsigned bit = 0; bit < 8; ++bit) {
      bytes[at] ^= std::byte{1} << bit;
      require(!kvbm::SerializedLayout::from_bytes(bytes).unpack());
      bytes[at] ^= std::byte{1} << bit;
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> input = std::as_bytes(std::span(data, size));
  unpack(input);
  // The same with a length and a checksum that hold, so that the body is reached.
  if (size >= 18) unpack(kvbm::testing::resealed_metadata(input));
  return 0;
}
