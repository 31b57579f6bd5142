// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/checksum.hpp"

#include <memory>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/hash.hpp"
#include "kvbm/base/random.hpp"

namespace kvbm {
namespace {

alignas(16) std::byte g_somewhere[4 * kChecksumUnit];

ChecksumBatch batch_of(const ChecksumPiece& piece, size_t num_blocks = 1) {
  ChecksumBatch batch{.pieces = {piece}, .checksums = std::make_shared<BlockChecksums>(num_blocks)};
  for (uint32_t i = 0; i < num_blocks; ++i) batch.blocks.emplace_back(i);
  return batch;
}

TEST(Checksum, IsThatOfTheRunsOneBehindTheOther) {
  Random random(1);
  std::vector<std::byte> memory(64 * kChecksumUnit);
  for (std::byte& byte : memory) byte = static_cast<std::byte>(random.uniform(256));
  std::byte* const base =
      memory.data() + (16 - reinterpret_cast<uintptr_t>(memory.data()) % 16) % 16;
  ChecksumBatch batch{.blocks = {BlockId{2}, BlockId{0}},
                      .pieces = {{.data = base,
                                  .block_stride = 8 * kChecksumUnit,
                                  .bytes = kChecksumUnit,
                                  .count = 3,
                                  .stride = 2 * kChecksumUnit},
                                 {.data = base + 40 * kChecksumUnit,
                                  .block_stride = 4 * kChecksumUnit,
                                  .bytes = 2 * kChecksumUnit}},
                      .checksums = std::make_shared<BlockChecksums>(2)};
  EXPECT_EQ(planned_bytes(batch).value(), 5 * kChecksumUnit);
  run_checksum(batch);
  ASSERT_EQ(batch.checksums->num_known(), 2U);
  for (size_t i = 0; i < 2; ++i) {
    const uint64_t block = batch.blocks[i].value();
    std::vector<std::byte> joined;
    const auto join = [&](uint64_t at, uint64_t units) {
      joined.insert(joined.end(), base + at * kChecksumUnit, base + (at + units) * kChecksumUnit);
    };
    for (uint64_t run = 0; run < 3; ++run) join(8 * block + 2 * run, 1);
    join(40 + 4 * block, 2);
    EXPECT_EQ(batch.checksums->at(i), checksum(joined));
  }
  EXPECT_NE(batch.checksums->at(0), batch.checksums->at(1));
}

TEST(Checksum, RefusesBatchesThatMakeNoSense) {
  const ChecksumPiece good{.data = g_somewhere, .block_stride = 2048, .bytes = kChecksumUnit};
  EXPECT_TRUE(planned_bytes(batch_of(good, 2)));
  EXPECT_EQ(planned_bytes(batch_of({}, 0)).value(), 0U);
  const auto refused = [](const ChecksumBatch& batch) {
    const auto planned = planned_bytes(batch);
    return !planned && planned.error().code() == ErrorCode::kInvalidArgument;
  };
  ChecksumBatch nowhere = batch_of(good);
  nowhere.checksums = nullptr;
  EXPECT_TRUE(refused(nowhere));
  const auto refused_with = [&](auto&& change) {
    ChecksumPiece bad = good;
    change(bad);
    return refused(batch_of(bad, 2));
  };
  EXPECT_TRUE(refused_with([](ChecksumPiece& piece) { piece.data = nullptr; }));
  EXPECT_TRUE(refused_with([](ChecksumPiece& piece) { piece.bytes = kChecksumUnit - 1; }));
  EXPECT_TRUE(refused_with([](ChecksumPiece& piece) { piece.bytes = 0; })) << "no byte";
  EXPECT_TRUE(refused_with([](ChecksumPiece& piece) { piece.data += 8; }));
  EXPECT_TRUE(refused_with([](ChecksumPiece& piece) { piece.block_stride = 2056; }));
  EXPECT_TRUE(refused_with([](ChecksumPiece& piece) { piece.stride = 8; }));
  EXPECT_TRUE(refused_with([](ChecksumPiece& piece) { piece.bytes = uint64_t{1} << 40; }));
  EXPECT_TRUE(refused_with([](ChecksumPiece& piece) {
    piece.bytes = uint64_t{1} << 30;
    piece.count = 1 << 10;
  }));
  EXPECT_TRUE(refused_with([](ChecksumPiece& piece) { piece.block_stride = ~uint64_t{15}; }));
  EXPECT_TRUE(refused_with([](ChecksumPiece& piece) {
    piece.count = 1 << 20;
    piece.stride = uint64_t{1} << 60;
  }));
}

TEST(Checksum, WhatIsNotKnownIsNotGiven) {
  BlockChecksums sums(2);
  const uint64_t values[] = {1, 2, 3};
  EXPECT_THROW(static_cast<void>(sums.at(0)), ContractViolation);
  sums.add(std::span(values).first(1));
  EXPECT_EQ(sums.at(0), 1U);
  EXPECT_THROW(static_cast<void>(sums.at(1)), ContractViolation);
  EXPECT_THROW(sums.add(std::span(values).first(2)), ContractViolation);
}

}  // namespace
}  // namespace kvbm
