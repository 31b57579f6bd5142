// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/hash.hpp"

#include <vector>

#include <gtest/gtest.h>

namespace kvbm {
namespace {

std::vector<std::byte> pattern(size_t size) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 31 % 251);
  return bytes;
}

// Computed with another binding of the algorithm (Python's xxhash).
TEST(Hash, KnownAnswers) {
  EXPECT_EQ(xxh3_64({}), 0x2d06800538d394c2U);
  EXPECT_EQ(xxh3_64(bytes_of("kvbm")), 0xbfb778761abdbd6dU);
  EXPECT_EQ(xxh3_64(bytes_of("kvbm"), 42), 0x0c4bd9e0ffa5b081U);
  EXPECT_EQ(xxh3_64(pattern(1000), 7), 0xcb66d80f2d9f2cc3U);
  EXPECT_EQ(xxh3_128(bytes_of("kvbm"), 42),
            (Hash128{.low = 0x43804c1fb691d697U, .high = 0x013a7cae87f5ec08U}));
  EXPECT_EQ(checksum(bytes_of("kvbm")), 0x12cfd99200f37f85U);
}

TEST(Hash, AStreamGivesTheHashOfTheWhole) {
  const std::vector<std::byte> bytes = pattern(5000);
  for (const size_t piece : {size_t{1}, size_t{63}, size_t{256}, size_t{4999}}) {
    Xxh3Stream stream(9);
    for (size_t at = 0; at < bytes.size(); at += piece) {
      stream.update(std::span(bytes).subspan(at, std::min(piece, bytes.size() - at)));
    }
    EXPECT_EQ(stream.digest(), xxh3_64(bytes, 9)) << piece;
  }
  EXPECT_EQ(Xxh3Stream(9).digest(), xxh3_64({}, 9));
}

TEST(Hash, AChecksumSeesOneFlippedBit) {
  std::vector<std::byte> bytes = pattern(4096);
  const uint64_t before = checksum(bytes);
  bytes[2000] ^= std::byte{0x10};
  EXPECT_NE(checksum(bytes), before);
}

}  // namespace
}  // namespace kvbm
