// SPDX-License-Identifier: Apache-2.0
// What needs no GPU: arguments, plans, and what the kernels do with a plan, done by loops.
#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <kvbm/kernels.h>

#include "random_copy.hpp"
#include "src/strided_plan.hpp"
#include "src/table_plan.hpp"

namespace kvbm::kernels {
namespace {

constexpr uint64_t kHuge = uint64_t{1} << 62;

kvbm_strided_piece small_piece(const void* src, void* dst) {
  return {src, dst, 64, 64, 64, {{1, 0, 0}, {1, 0, 0}, {1, 0, 0}, {1, 0, 0}}};
}

/// What a launch with sound arguments answers where there is no GPU.
void expect_no_gpu_error(int error) {
  if (kvbm_kernels_is_stub_build()) {
    EXPECT_EQ(error, KVBM_KERNELS_NOT_SUPPORTED);
  } else {
    EXPECT_NE(error, KVBM_KERNELS_INVALID_VALUE);
  }
}

// --- arguments -----------------------------------------------------------------------------------

TEST(Kernels, SayWhichBuildTheyAre) {
  EXPECT_EQ(kvbm_kernels_is_stub_build(), KVBM_KERNELS_STUB != 0);
  if (kvbm_kernels_is_stub_build()) {
    EXPECT_FALSE(kvbm_kernels_has_memcpy_batch_async());
  }
}

TEST(Kernels, TakeNoWorkWithNullTables) {
  EXPECT_EQ(kvbm_kernels_launch_universal_from_block(nullptr, nullptr, 0, 1, 1, 1, 1, 1,
                                                     KVBM_KERNELS_F16, KVBM_KERNELS_NHD, nullptr),
            0);
  EXPECT_EQ(kvbm_kernels_launch_block_from_universal(nullptr, nullptr, 1, 1, 1, 1, 1, 0,
                                                     KVBM_KERNELS_F16, KVBM_KERNELS_HND, nullptr),
            0);
  EXPECT_EQ(kvbm_kernels_launch_vectorized_copy(nullptr, nullptr, 16, 0, nullptr), 0);
  EXPECT_EQ(kvbm_kernels_launch_vectorized_copy(nullptr, nullptr, 0, 16, nullptr), 0);
  EXPECT_EQ(kvbm_kernels_memcpy_batch(nullptr, nullptr, 0, 8, 0, nullptr), 0);
  EXPECT_EQ(kvbm_kernels_memcpy_batch(nullptr, nullptr, 8, 0, 2, nullptr), 0);
  EXPECT_EQ(kvbm_kernels_launch_strided_copy(nullptr, 0, nullptr, nullptr, 4, nullptr, nullptr), 0);
  EXPECT_EQ(
      kvbm_kernels_launch_strided_copy_host_ids(nullptr, 0, nullptr, nullptr, 4, nullptr, nullptr),
      0);
}

TEST(Kernels, RefuseNullTablesWhereThereIsWork) {
  char byte = 0;
  void* table[] = {&byte};
  const void* source[] = {&byte};
  EXPECT_EQ(
      kvbm_kernels_launch_universal_from_block(nullptr, source, 1, 1, 1, 1, 1, 1, 0, 0, nullptr),
      KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(
      kvbm_kernels_launch_block_from_universal(source, nullptr, 1, 1, 1, 1, 1, 1, 0, 0, nullptr),
      KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(kvbm_kernels_launch_vectorized_copy(nullptr, table, 1, 1, nullptr),
            KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(kvbm_kernels_memcpy_batch(source, nullptr, 1, 1, 0, nullptr),
            KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(kvbm_kernels_launch_strided_copy(nullptr, 1, nullptr, nullptr, 1, nullptr, nullptr),
            KVBM_KERNELS_INVALID_VALUE);
}

TEST(Kernels, RefuseUnknownTypesLayoutsAndModes) {
  char byte = 0;
  void* table[] = {&byte};
  const void* source[] = {&byte};
  for (const int dtype : {-1, 5, 99}) {
    EXPECT_EQ(kvbm_kernels_launch_universal_from_block(table, source, 1, 1, 1, 1, 1, 1, dtype, 0,
                                                       nullptr),
              KVBM_KERNELS_INVALID_VALUE);
  }
  for (const int layout : {-1, 2}) {
    EXPECT_EQ(kvbm_kernels_launch_block_from_universal(source, table, 1, 1, 1, 1, 1, 1, 0, layout,
                                                       nullptr),
              KVBM_KERNELS_INVALID_VALUE);
  }
  for (const int mode : {-1, 3}) {
    EXPECT_EQ(kvbm_kernels_memcpy_batch(source, table, 1, 1, mode, nullptr),
              KVBM_KERNELS_INVALID_VALUE);
  }
  EXPECT_EQ(kvbm_kernels_launch_vectorized_copy(table, table, 1, -1, nullptr),
            KVBM_KERNELS_INVALID_VALUE);
}

TEST(Kernels, RefuseWhatOverflows) {
  char byte = 0;
  void* table[] = {&byte};
  const void* source[] = {&byte};
  EXPECT_EQ(
      kvbm_kernels_launch_universal_from_block(table, source, 1, kHuge, 4, 1, 1, 1, 0, 0, nullptr),
      KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(
      kvbm_kernels_launch_universal_from_block(table, source, kHuge, 1, 4, 1, 1, 1, 0, 0, nullptr),
      KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(kvbm_kernels_launch_vectorized_copy(table, table, kHuge, 4, nullptr),
            KVBM_KERNELS_INVALID_VALUE);
}

TEST(Kernels, RefusePiecesThatMakeNoSense) {
  char memory[64] = {};
  const uint32_t ids[] = {0};
  const auto launch = [&](const kvbm_strided_piece& piece) {
    return kvbm_kernels_launch_strided_copy(&piece, 1, ids, ids, 1, nullptr, nullptr);
  };
  EXPECT_EQ(launch(small_piece(nullptr, memory)), KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(launch(small_piece(memory, nullptr)), KVBM_KERNELS_INVALID_VALUE);

  kvbm_strided_piece piece = small_piece(memory, memory);
  piece.axes[1] = {8, kHuge, 0};
  EXPECT_EQ(launch(piece), KVBM_KERNELS_INVALID_VALUE);
  piece.axes[1] = {8, 0, kHuge};
  EXPECT_EQ(launch(piece), KVBM_KERNELS_INVALID_VALUE);
  piece.axes[1] = {kHuge, 0, 0};
  EXPECT_EQ(launch(piece), KVBM_KERNELS_INVALID_VALUE);
  piece.axes[1] = {uint64_t{1} << 29, 128, 128};  // 2^31 accesses of 16 bytes
  EXPECT_EQ(launch(piece), KVBM_KERNELS_INVALID_VALUE);
  piece.axes[1].count = 0;
  EXPECT_EQ(launch(piece), KVBM_KERNELS_SUCCESS);

  piece = small_piece(memory, memory);
  EXPECT_EQ(kvbm_kernels_launch_strided_copy(&piece, 1, nullptr, ids, 1, nullptr, nullptr),
            KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(kvbm_kernels_launch_strided_copy(&piece, 1, ids, nullptr, 1, nullptr, nullptr),
            KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(kvbm_kernels_launch_strided_copy_host_ids(&piece, 1, nullptr, ids, 1, nullptr, nullptr),
            KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(kvbm_kernels_launch_digest(&piece, 1, ids, 1, nullptr, nullptr),
            KVBM_KERNELS_INVALID_VALUE);  // nowhere to put them
}

TEST(Kernels, MakeNoPlanThatMakesNoSense) {
  char memory[64] = {};
  const uint32_t ids[] = {0};
  kvbm_kernels_strided_plan* plan = nullptr;
  const kvbm_strided_piece broken = small_piece(nullptr, memory);
  EXPECT_EQ(kvbm_kernels_create_strided_plan(&broken, 1, &plan), KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(kvbm_kernels_create_strided_plan(nullptr, 1, &plan), KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(kvbm_kernels_create_strided_plan(nullptr, 0, nullptr), KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(plan, nullptr);

  ASSERT_EQ(kvbm_kernels_create_strided_plan(nullptr, 0, &plan), KVBM_KERNELS_SUCCESS);
  EXPECT_EQ(kvbm_kernels_launch_strided_plan(plan, ids, ids, 1, nullptr, nullptr), 0);
  kvbm_kernels_destroy_strided_plan(plan);

  const kvbm_strided_piece piece = small_piece(memory, memory);
  ASSERT_EQ(kvbm_kernels_create_strided_plan(&piece, 1, &plan), KVBM_KERNELS_SUCCESS);
  EXPECT_EQ(kvbm_kernels_launch_strided_plan(plan, nullptr, nullptr, 0, nullptr, nullptr), 0);
  EXPECT_EQ(kvbm_kernels_launch_strided_plan(plan, ids, nullptr, 1, nullptr, nullptr),
            KVBM_KERNELS_INVALID_VALUE);
  uint64_t digests[1] = {};
  const kvbm_strided_copy_options options = {0, 0, nullptr, digests};
  EXPECT_EQ(kvbm_kernels_launch_strided_plan(plan, ids, ids, 1, &options, nullptr),
            KVBM_KERNELS_INVALID_VALUE);
  if (kvbm_kernels_is_stub_build()) {
    EXPECT_EQ(kvbm_kernels_launch_strided_plan(plan, ids, ids, 1, nullptr, nullptr),
              KVBM_KERNELS_NOT_SUPPORTED);
  }
  kvbm_kernels_destroy_strided_plan(plan);
  kvbm_kernels_destroy_strided_plan(nullptr);
}

TEST(Kernels, AnswerWithAnErrorWhereNoGpuCanDoTheWork) {
  if (!kvbm_kernels_is_stub_build())
    GTEST_SKIP() << "this build has kernels; the stub build has none";
  char memory[64] = {};
  void* table[] = {memory};
  const void* source[] = {memory};
  const uint32_t ids[] = {0};
  uint64_t digests[] = {0};
  const kvbm_strided_piece piece = small_piece(memory, memory);
  const kvbm_strided_copy_options options = {0, 0, nullptr, digests};
  expect_no_gpu_error(kvbm_kernels_launch_strided_copy(&piece, 1, ids, ids, 1, nullptr, nullptr));
  expect_no_gpu_error(
      kvbm_kernels_launch_strided_copy_host_ids(&piece, 1, ids, ids, 1, nullptr, nullptr));
  expect_no_gpu_error(kvbm_kernels_launch_digest(&piece, 1, ids, 1, &options, nullptr));
  expect_no_gpu_error(
      kvbm_kernels_launch_universal_from_block(table, source, 1, 1, 1, 1, 1, 1, 0, 0, nullptr));
  expect_no_gpu_error(
      kvbm_kernels_launch_block_from_universal(source, table, 1, 1, 1, 1, 1, 1, 0, 0, nullptr));
  expect_no_gpu_error(kvbm_kernels_launch_vectorized_copy(table, table, 1, 1, nullptr));
  expect_no_gpu_error(kvbm_kernels_memcpy_batch(source, table, 1, 1, 0, nullptr));
}

// --- arithmetic ----------------------------------------------------------------------------------

TEST(FastDivisor, DividesLikeTheMachine) {
  CopyMaker maker(1);
  std::vector<uint32_t> divisors = {1, 2, 3, 5, 7, 16, 127, 128, 129, 65535, 65536, (1U << 31) - 1};
  for (int i = 0; i < 300; ++i) {
    divisors.push_back(
        static_cast<uint32_t>(maker.pick(1, (uint64_t{1} << maker.pick(1, 31)) - 1)));
  }
  for (const uint32_t divisor : divisors) {
    const FastDivisor fast = fast_divisor(divisor);
    std::vector<uint32_t> numbers = {0, 1, divisor - 1, divisor, (1U << 31) - 1};
    for (int i = 0; i < 200; ++i) {
      numbers.push_back(static_cast<uint32_t>(maker.pick(0, (1U << 31) - 1)));
    }
    for (const uint32_t number : numbers) {
      const Division division = divide(number, fast);
      ASSERT_EQ(division.quotient, number / divisor) << number << " / " << divisor;
      ASSERT_EQ(division.remainder, number % divisor) << number << " % " << divisor;
    }
  }
}

// --- plans, executed as the kernels do -----------------------------------------------------------

/// Copies a cell; true if it had not been copied before.
template <uint32_t kWidth>
void do_cell(const StridedLaunch& launch, uint32_t part, const Offsets& offsets,
             std::vector<uint32_t>& writes, const char* dst_arena) {
  const Division block = divide(part, launch.bases_count);
  const Base base = base_in(launch, block.remainder);
  const IdPair id = launch.from_ids == nullptr
                        ? ids_in(launch, block.quotient)
                        : IdPair{launch.from_ids[block.quotient], launch.to_ids[block.quotient]};
  char* dst = base.dst + id.to * launch.dst_block_stride + offsets.dst;
  std::memcpy(dst, base.src + id.from * launch.src_block_stride + offsets.src, kWidth);
  for (uint32_t i = 0; i < kWidth; ++i) ++writes[static_cast<size_t>(dst - dst_arena) + i];
}

template <uint32_t kWidth>
void emulate(const StridedLaunch& launch, std::vector<uint32_t>& writes, const char* dst_arena) {
  if (launch.stepped) {
    ASSERT_EQ(launch.num_cells % kChunkCells, 0U);
    for (uint32_t chunk = 0; chunk < launch.num_cells; chunk += kChunkCells) {
      for (uint32_t lane = 0; lane < kWarp; ++lane) {
        const Division part = divide(chunk + lane, launch.part_cells);
        ASSERT_EQ(part.quotient, chunk / launch.part_cells.divisor) << "a chunk has two parts";
        const Offsets first = offsets_in_part<kWidth>(launch, part.remainder);
        for (uint32_t i = 0; i < kCellsPerThread; ++i) {
          do_cell<kWidth>(launch, part.quotient,
                          {first.src + i * launch.src_step, first.dst + i * launch.dst_step},
                          writes, dst_arena);
        }
      }
    }
    return;
  }
  for (uint32_t cell = 0; cell < launch.num_cells; ++cell) {
    const Division part = divide(cell, launch.part_cells);
    do_cell<kWidth>(launch, part.quotient, offsets_in_part<kWidth>(launch, part.remainder), writes,
                    dst_arena);
  }
}

void emulate(const StridedLaunch& launch, std::vector<uint32_t>& writes, const char* dst_arena) {
  switch (launch.width) {
    case 16:
      return emulate<16>(launch, writes, dst_arena);
    case 8:
      return emulate<8>(launch, writes, dst_arena);
    case 4:
      return emulate<4>(launch, writes, dst_arena);
    case 2:
      return emulate<2>(launch, writes, dst_arena);
    default:
      ASSERT_EQ(launch.width, 1U);
      return emulate<1>(launch, writes, dst_arena);
  }
}

struct Planned {
  uint32_t launches = 0;
  uint32_t stepped = 0;
  uint32_t widest = 0;
};

/// The launches of a plan that is made once, done by loops.
void emulate_ready_plan(const RandomCopy& copy, const std::vector<kvbm_strided_piece>& pieces,
                        std::vector<char>& dst) {
  kvbm_kernels_strided_plan* plan = nullptr;
  ASSERT_EQ(kvbm_kernels_create_strided_plan(pieces.data(), pieces.size(), &plan),
            KVBM_KERNELS_SUCCESS);
  const std::unique_ptr<kvbm_kernels_strided_plan, void (*)(kvbm_kernels_strided_plan*)> owner(
      plan, kvbm_kernels_destroy_strided_plan);
  const Blocks blocks = {copy.from.data(), copy.to.data(), copy.from.size(), IdsIn::kLaunch};
  ASSERT_EQ(plan->check(blocks, nullptr), KVBM_KERNELS_SUCCESS);
  std::vector<uint32_t> writes(dst.size());
  StridedLaunch launch;
  for (const StridedLaunch& group : plan->groups) {
    for (size_t next_block = 0; next_block < blocks.count;) {
      cut_launch(group, blocks, next_block, launch);
      emulate(launch, writes, dst.data());
    }
  }
}

/// Plans a copy, does it by loops, and holds it against the plain copy.
Planned expect_right_bytes(const RandomCopy& copy, uint64_t seed, IdsIn ids_in) {
  // The arena of a vector is aligned to 16 bytes, so that unit 16 gives accesses of 16.
  const std::vector<char> src = random_bytes(copy.src_bytes, seed);
  std::vector<char> dst = random_bytes(copy.dst_bytes, seed + 1);
  std::vector<char> expected = dst;
  copy_plainly(copy, src, expected);

  const auto pieces = copy.place(src.data(), dst.data());
  StridedPlan plan(pieces.data(), pieces.size(), copy.from.data(), copy.to.data(), copy.from.size(),
                   nullptr, Work::kCopy, ids_in);
  EXPECT_EQ(plan.check(), KVBM_KERNELS_SUCCESS);
  std::vector<uint32_t> writes(dst.size());
  Planned planned;
  StridedLaunch launch;
  while (plan.next(launch)) {
    EXPECT_EQ(launch.from_ids == nullptr, ids_in == IdsIn::kLaunch);
    ++planned.launches;
    planned.stepped += launch.stepped ? 1 : 0;
    planned.widest = std::max(planned.widest, launch.width);
    emulate(launch, writes, dst.data());
  }
  EXPECT_TRUE(dst == expected);
  EXPECT_LE(*std::max_element(writes.begin(), writes.end()), 1U) << "a byte was written twice";

  std::ranges::copy(random_bytes(copy.dst_bytes, seed + 1), dst.begin());
  emulate_ready_plan(copy, pieces, dst);
  EXPECT_TRUE(dst == expected) << "a plan that is made once";
  return planned;
}

TEST(StridedPlan, CopiesRightBytesForAnyPieces) {
  uint32_t stepped = 0;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    CopyMaker maker(seed);
    CopyLimits limits;
    limits.unit = uint64_t{1} << maker.pick(0, 5);
    if (seed % 4 == 0) limits = {2048, 3, 3, 3, 3};  // a chunk inside a run
    if (seed % 4 == 1) limits = {128, 3, 2, 16, 1};  // whole runs of an axis in a chunk
    const RandomCopy copy = maker.make(limits);
    for (const IdsIn ids_in : {IdsIn::kMemory, IdsIn::kLaunch}) {
      const Planned planned = expect_right_bytes(copy, seed, ids_in);
      EXPECT_GE(planned.widest, std::min<uint64_t>(16, limits.unit));
      if (HasFailure()) return;
      stepped += planned.stepped;
    }
  }
  EXPECT_GT(stepped, 20U) << "the case was not tested";
}

TEST(StridedPlan, UsesTheWidestAccessThatEverythingAllows) {
  alignas(64) char memory[64] = {};
  const uint32_t ids[] = {0, 1};
  const auto width = [&](const kvbm_strided_piece& piece) {
    StridedPlan plan(&piece, 1, ids, ids, 2, nullptr, Work::kCopy);
    StridedLaunch launch;
    EXPECT_TRUE(plan.next(launch));
    return launch.width;
  };
  kvbm_strided_piece piece = small_piece(memory, memory);
  EXPECT_EQ(width(piece), 16U);
  piece.src = memory + 8;
  EXPECT_EQ(width(piece), 8U);
  piece.dst_block_stride = 68;
  EXPECT_EQ(width(piece), 4U);
  piece.axes[2] = {2, 66, 64};
  EXPECT_EQ(width(piece), 2U);
  piece.bytes = 63;
  EXPECT_EQ(width(piece), 1U);
}

TEST(StridedPlan, Parts16ByteAccessesFromNarrowerOnes) {
  alignas(64) char memory[64] = {};
  const uint32_t ids[] = {0};
  const std::vector<kvbm_strided_piece> pieces = {
      small_piece(memory, memory), small_piece(memory + 8, memory), small_piece(memory, memory)};
  StridedPlan plan(pieces.data(), pieces.size(), ids, ids, 1, nullptr, Work::kCopy);
  std::vector<uint32_t> widths;
  StridedLaunch launch;
  while (plan.next(launch)) widths.push_back(launch.width);
  EXPECT_EQ(widths, (std::vector<uint32_t>{16, 8, 16}));
}

TEST(StridedPlan, GivesPiecesOfOneShapeOneLaunch) {
  char memory[1] = {};
  std::vector<kvbm_strided_piece> pieces;
  for (uint64_t i = 0; i < 160; ++i) {
    pieces.push_back(small_piece(memory + 64 * i, memory + 128 * i));
  }
  const uint32_t ids[] = {0};
  const auto launches = [&] {
    StridedPlan plan(pieces.data(), pieces.size(), ids, ids, 1, nullptr, Work::kCopy);
    EXPECT_EQ(plan.check(), KVBM_KERNELS_SUCCESS);
    StridedLaunch launch;
    uint32_t count = 0;
    while (plan.next(launch)) ++count;
    return count;
  };
  EXPECT_EQ(launches(), 1U);
  pieces[80].bytes = 32;
  EXPECT_EQ(launches(), 3U);
  pieces.resize(400, pieces[0]);
  EXPECT_EQ(launches(), 4U);
  pieces[80].bytes = 0;  // left out, but still between two
  EXPECT_EQ(launches(), 3U);
  pieces[90].bytes = 32;
  EXPECT_EQ(launches(), 5U);
}

TEST(StridedPlan, CutsManyPiecesAndManyBlocks) {
  CopyMaker maker(7);
  RandomCopy many_pieces = maker.make({16, 500, 3, 2, 2});
  while (many_pieces.pieces.size() <= 2 * kMaxBases) many_pieces = maker.make({16, 500, 3, 2, 2});
  EXPECT_GT(expect_right_bytes(many_pieces, 1, IdsIn::kMemory).launches, 3U);
  EXPECT_GT(expect_right_bytes(many_pieces, 1, IdsIn::kLaunch).launches, 3U);

  RandomCopy many_blocks = maker.make({8, 2, 3 * kMaxBlocks, 2, 2});
  while (many_blocks.from.size() <= kMaxBlocks) {
    many_blocks = maker.make({8, 2, 3 * kMaxBlocks, 2, 2});
  }
  EXPECT_GT(expect_right_bytes(many_blocks, 2, IdsIn::kMemory).launches, 1U);
  EXPECT_GT(expect_right_bytes(many_blocks, 2, IdsIn::kLaunch).launches, kMaxBlocks / kTableWords);
}

TEST(StridedPlan, TakesTheIdsAlongThatTheHeaderPromises) {
  char memory[1] = {};
  const std::vector<uint32_t> ids(2000, 5);
  const auto blocks_of_a_launch = [&](size_t num_pieces) {
    const std::vector<kvbm_strided_piece> pieces(num_pieces, small_piece(memory, memory));
    StridedPlan plan(pieces.data(), pieces.size(), ids.data(), ids.data(), ids.size(), nullptr,
                     Work::kCopy, IdsIn::kLaunch);
    StridedLaunch launch;
    EXPECT_TRUE(plan.next(launch));
    return launch.num_blocks;
  };
  EXPECT_EQ(blocks_of_a_launch(1), 476U);
  EXPECT_EQ(blocks_of_a_launch(80), 318U);
  EXPECT_EQ(blocks_of_a_launch(160), 158U);
  EXPECT_EQ(blocks_of_a_launch(161), 158U);
}

TEST(StridedPlan, CutsLaunchesOfMoreCellsThanItCanNumber) {
  // Never executed: only the numbers are looked at.
  char* const memory = reinterpret_cast<char*>(uintptr_t{1} << 20);
  const std::vector<uint32_t> ids(3000);
  kvbm_strided_piece piece = small_piece(memory, memory);
  piece.bytes = 64 << 20;
  piece.src_block_stride = piece.dst_block_stride = piece.bytes;
  const std::vector<kvbm_strided_piece> pieces(4, piece);
  StridedPlan plan(pieces.data(), pieces.size(), ids.data(), ids.data(), ids.size(), nullptr,
                   Work::kCopy);
  ASSERT_EQ(plan.check(), KVBM_KERNELS_SUCCESS);
  StridedLaunch launch;
  uint64_t cells = 0;
  while (plan.next(launch)) {
    ASSERT_LT(launch.num_cells, kMaxCells);
    ASSERT_GT(launch.num_cells, 0U);
    cells += launch.num_cells;
  }
  EXPECT_EQ(cells, uint64_t{4} * 3000 * (4 << 20));
}

// --- the pace ------------------------------------------------------------------------------------

TEST(SharedPace, AnyRateIsATimeThatAClockCanBeAddedTo) {
  EXPECT_EQ(paced_ticks(1000, 1'000'000'000), 1000 * kTicks);
  EXPECT_EQ(paced_ticks(4096, 50'000'000'000), 328U) << "81.92 ns";
  EXPECT_EQ(paced_ticks(1 << 16, 1), (uint64_t{1} << 16) * 1'000'000'000 * kTicks);
  EXPECT_EQ(paced_ticks(uint64_t{1} << 36, 1), uint64_t{1} << 48);
}

TEST(SharedPace, TimeWithoutATurnIsLost) {
  unsigned long long next = 0;
  EXPECT_EQ(take_turn(&next, 1000, 10), 1000U);
  EXPECT_EQ(take_turn(&next, 1000, 30), 1010U);
  EXPECT_EQ(take_turn(&next, 1005, 10), 1040U);
  EXPECT_EQ(take_turn(&next, 2000, 10), 2000U);
  EXPECT_EQ(take_turn(&next, 2000, 10), 2010U);
}

/// Warps of launches as the kernel has them: each takes its next turn when one begins, and begins
/// it when it is due and the one before has ended. One that could have begun a round ago takes
/// another.
class PacedLaunches {
 public:
  /// `works`: ticks from the begin of a turn until the warp could begin another one.
  void add(uint64_t start, uint64_t end, uint64_t bytes_per_second, uint64_t works) {
    const size_t launch = bytes_.size();
    bytes_.push_back(0);
    for (uint64_t warp = 0; warp < kWarps; ++warp) {
      warps_.push_back({.time = start,
                        .end = end,
                        .turn = paced_ticks(kTurnBytes, bytes_per_second),
                        .works = works,
                        .launch = launch});
    }
  }

  void run_until(uint64_t time) {
    for (;;) {
      Warp* next = nullptr;
      for (Warp& warp : warps_) {
        if (warp.time < std::min(warp.end, time) && (!next || warp.time < next->time)) {
          next = &warp;
        }
      }
      if (next == nullptr) return;
      Warp& warp = *next;
      if (warp.begins) {
        bytes_[warp.launch] += kTurnBytes;
        warp.due = take_turn(&next_turn_, warp.time, warp.turn);
        warp.time += warp.works;
      } else {
        if (!warp.due || warp.time > *warp.due + kWarps * warp.turn) {
          warp.due = take_turn(&next_turn_, warp.time, warp.turn);
        }
        warp.time = std::max(warp.time, *warp.due);
      }
      warp.begins = !warp.begins;
    }
  }

  /// Since it was asked last.
  uint64_t take_bytes(size_t launch) { return std::exchange(bytes_[launch], 0); }

 private:
  struct Warp {
    uint64_t time;  ///< when a turn begins, or when it could
    uint64_t end;
    uint64_t turn;
    uint64_t works;
    size_t launch;
    std::optional<uint64_t> due = std::nullopt;
    bool begins = false;
  };

  static constexpr uint64_t kWarps = 32;
  static constexpr uint64_t kTurnBytes = 4096;
  std::vector<Warp> warps_;
  std::vector<uint64_t> bytes_;
  unsigned long long next_turn_ = 0;
};

TEST(SharedPace, LaunchesTogetherAreAsFastAsOneAlone) {
  constexpr uint64_t kMs = 1'000'000 * kTicks;
  constexpr uint64_t kRate = 50'000'000'000;
  constexpr uint64_t kWorks = 1500 * kTicks;
  constexpr double kBytesOfAMs = 50'000'000;
  PacedLaunches launches;
  launches.add(0, 3 * kMs, kRate, kWorks);
  launches.add(kMs, 2 * kMs, kRate, kWorks);
  launches.run_until(kMs);
  EXPECT_NEAR(static_cast<double>(launches.take_bytes(0)), kBytesOfAMs, 0.01 * kBytesOfAMs);
  launches.run_until(2 * kMs);
  const auto first = static_cast<double>(launches.take_bytes(0));
  const auto second = static_cast<double>(launches.take_bytes(1));
  EXPECT_NEAR(first + second, kBytesOfAMs, 0.01 * kBytesOfAMs);
  EXPECT_NEAR(first, second, 0.05 * first) << "each has its share";
  launches.run_until(3 * kMs);
  EXPECT_NEAR(static_cast<double>(launches.take_bytes(0)), kBytesOfAMs, 0.01 * kBytesOfAMs);
}

TEST(SharedPace, ALaunchThatCannotKeepItTakesTwoTurnsForOneAndLeavesTheRestToOthers) {
  constexpr uint64_t kMs = 1'000'000 * kTicks;
  constexpr uint64_t kRate = 50'000'000'000;
  PacedLaunches launches;
  launches.add(0, kMs, kRate, 26'000 * kTicks);  // 32 turns of 4 KiB in 26 us: 5 GB/s
  launches.add(0, kMs, kRate, 1000 * kTicks);
  launches.run_until(kMs);
  const auto slow = static_cast<double>(launches.take_bytes(0));
  EXPECT_NEAR(slow, 4.5e6, 0.02 * 4.5e6) << "each of its turns is waited for anew";
  EXPECT_NEAR(2 * slow + static_cast<double>(launches.take_bytes(1)), 50e6, 0.02 * 50e6);
}

// --- digests -------------------------------------------------------------------------------------

TEST(Digest, IsWhatTheHeaderSays) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    CopyMaker maker(seed);
    const RandomCopy copy = maker.make({uint64_t{1} << maker.pick(0, 4), 4, 4, 4, 20});
    const std::vector<char> src = random_bytes(copy.src_bytes, seed);
    std::vector<char> dst(copy.dst_bytes);
    for (const auto& piece : copy.place(src.data(), dst.data())) {
      for (const uint32_t block : copy.from) {
        uint64_t digest = 0;
        ASSERT_EQ(kvbm_kernels_digest_on_host(&piece, block, &digest), KVBM_KERNELS_SUCCESS);
        ASSERT_EQ(digest, digest_plainly(piece, block));
      }
    }
  }
}

TEST(Digest, SeesAChangedBitASwapAndTheLengthButForAChance) {
  std::vector<char> bytes = random_bytes(512, 3);
  kvbm_strided_piece piece = small_piece(bytes.data(), bytes.data());
  piece.bytes = bytes.size();
  const auto digest = [&] {
    uint64_t value = 0;
    EXPECT_EQ(kvbm_kernels_digest_on_host(&piece, 0, &value), KVBM_KERNELS_SUCCESS);
    return value;
  };
  const uint64_t right = digest();
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
    EXPECT_NE(digest(), right) << bit;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
  }
  for (size_t i = 0; i < bytes.size() / 8; ++i) {
    for (size_t j = 0; j < i; ++j) {
      std::swap_ranges(&bytes[8 * i], &bytes[8 * i] + 8, &bytes[8 * j]);
      EXPECT_NE(digest(), right) << i << " " << j;
      std::swap_ranges(&bytes[8 * i], &bytes[8 * i] + 8, &bytes[8 * j]);
    }
  }
  std::fill(bytes.begin(), bytes.end(), 0);
  const uint64_t zeros = digest();
  piece.bytes -= 8;
  EXPECT_NE(digest(), zeros);
}

TEST(Digest, MissesABitWhereTheHeaderSaysItMay) {
  // low(w) xor a = 1: where bit i of b is set, setting bit i of high(w) takes from the product what
  // it adds to the rotation.
  uint64_t word = 0x85EBCA76;
  kvbm_strided_piece piece =
      small_piece(reinterpret_cast<char*>(&word), reinterpret_cast<char*>(&word));
  piece.bytes = sizeof(word);
  uint64_t found[2];
  for (uint64_t& digest : found) {
    ASSERT_EQ(kvbm_kernels_digest_on_host(&piece, 0, &digest), KVBM_KERNELS_SUCCESS);
    word += uint64_t{1} << 32;
  }
  EXPECT_EQ(found[0], found[1]);
  EXPECT_EQ(found[0], 0x85EBCA7627D4EB2FU);
}

TEST(Digest, RefusesWhatMakesNoSense) {
  uint64_t digest = 0;
  kvbm_strided_piece piece = small_piece(nullptr, nullptr);
  EXPECT_EQ(kvbm_kernels_digest_on_host(&piece, 0, &digest), KVBM_KERNELS_INVALID_VALUE);
  EXPECT_EQ(kvbm_kernels_digest_on_host(nullptr, 0, &digest), KVBM_KERNELS_INVALID_VALUE);
  piece.bytes = 0;
  EXPECT_EQ(kvbm_kernels_digest_on_host(&piece, 0, &digest), KVBM_KERNELS_SUCCESS);
  EXPECT_EQ(digest, 0U);
}

// --- permutations --------------------------------------------------------------------------------

TEST(PermutePlan, PutsEveryElementWhereTheDocumentSays) {
  struct Shape {
    size_t nb, nh, nl, no, nt, hd;
  };
  uint32_t stepped = 0;
  for (const Shape& s :
       {Shape{3, 3, 2, 2, 4, 5}, Shape{2, 8, 2, 2, 16, 64}, Shape{1, 8, 1, 2, 4, 128},
        Shape{1, 2, 3, 1, 7, 8}, Shape{1, 1, 1, 1, 1, 1}, Shape{1, 16, 1, 1, 3, 128}}) {
    for (const int dtype :
         {KVBM_KERNELS_F16, KVBM_KERNELS_F32, KVBM_KERNELS_F64, KVBM_KERNELS_F8}) {
      for (const int layout : {KVBM_KERNELS_NHD, KVBM_KERNELS_HND}) {
        const uint64_t element = dtype == KVBM_KERNELS_F16   ? 2
                                 : dtype == KVBM_KERNELS_F32 ? 4
                                 : dtype == KVBM_KERNELS_F64 ? 8
                                                             : 1;
        void* tables[1] = {};
        PermutePlan plan(tables, tables, s.nb, s.nh, s.nl, s.no, s.nt, s.hd, dtype, layout, true);
        ASSERT_EQ(plan.check(), KVBM_KERNELS_SUCCESS);
        PermuteLaunch launch;
        ASSERT_TRUE(plan.next(launch));
        ASSERT_EQ(launch.num_cells * uint64_t{launch.width},
                  s.nb * s.nh * s.nl * s.no * s.nt * s.hd * element);
        const uint32_t chunk_cells = launch.chunk_cells.divisor;
        for (uint32_t plane = 0; plane < s.nl * s.no; ++plane) {
          for (uint32_t cell = 0; cell < chunk_cells; ++cell) {
            // The element that the cell begins in.
            const uint64_t byte = uint64_t{cell} * launch.width;
            const uint64_t d = byte / element % s.hd;
            const uint64_t row = byte / element / s.hd;
            const bool nhd = layout == KVBM_KERNELS_NHD;
            const uint64_t h = nhd ? row % s.nh : row / s.nt;
            const uint64_t t = nhd ? row / s.nh : row % s.nt;
            const uint64_t expected =
                (((h * s.nl * s.no + plane) * s.nt + t) * s.hd + d) * element + byte % element;
            ASSERT_EQ(universal_offset(launch, plane, cell), expected);
          }
        }
        if (!launch.stepped) continue;
        ++stepped;
        for (uint32_t cell = 0; cell + kWarp < chunk_cells; ++cell) {
          if (cell % kChunkCells >= kChunkCells - kWarp) continue;
          ASSERT_EQ(universal_offset(launch, 0, cell + kWarp),
                    universal_offset(launch, 0, cell) + launch.universal_step);
        }
      }
    }
  }
  EXPECT_GT(stepped, 6U) << "the case was not tested";
}

TEST(PermutePlan, CutsLaunchesOfMoreCellsThanItCanNumber) {
  void* tables[1] = {};
  PermutePlan plan(tables, tables, 128, 64, 32, 2, 256, 128, KVBM_KERNELS_F32, KVBM_KERNELS_NHD,
                   true);
  ASSERT_EQ(plan.check(), KVBM_KERNELS_SUCCESS);
  PermuteLaunch launch;
  uint64_t cells = 0;
  while (plan.next(launch)) {
    ASSERT_LT(launch.num_cells, kMaxCells);
    EXPECT_EQ(launch.blocks - tables, (launch.universal - tables) * 64);
    cells += launch.num_cells;
  }
  EXPECT_EQ(cells, uint64_t{128} * 64 * 32 * 2 * 256 * 128 * 4 / 16);
}

}  // namespace
}  // namespace kvbm::kernels
