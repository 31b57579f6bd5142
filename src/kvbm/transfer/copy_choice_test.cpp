// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/copy_choice.hpp"

#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/random.hpp"
#include "kvbm/base/units.hpp"

#include "tests/support/transfer_rig.hpp"

namespace kvbm {
namespace {

using testing::block_ids;
using ::testing::HasSubstr;
using Reason = MethodChoice::Reason;

constexpr DeviceCapabilities kKernels{.kernel_copies = true};

FormCost cost(double submission_us, double step_us, std::vector<RunRate> rates) {
  return {
      .submission = CopyCost(submission_us), .step = CopyCost(step_us), .rates = std::move(rates)};
}

/// A link of 50 GB/s whose engine moves runs badly when they are short, rows well, and whose
/// kernels reach 46 GB/s with every run.
Calibration link() {
  Calibration calibration;
  const RouteCost costs = {
      cost(10, 0, {{4 * kKiB, 10e9}, {32 * kKiB, 40e9}, {kMiB, 50e9}}),
      cost(10, 1.5, {{256, 50e9}}),
      cost(15, 0.1, {{256, 46e9}}),
  };
  calibration.set(TransferRoute::kHostToDevice, costs);
  calibration.set(TransferRoute::kDeviceToHost, costs);
  calibration.set(TransferRoute::kDeviceToDevice, costs);
  return calibration;
}

/// `count` layers, each with one run of a block.
std::vector<StridedPiece> layers(size_t count, uint64_t bytes) {
  static std::byte memory[1];
  return std::vector<StridedPiece>(count, {.src = memory,
                                           .dst = memory,
                                           .src_block_stride = bytes,
                                           .dst_block_stride = count * bytes,
                                           .bytes = bytes});
}

MethodChoice choose(const std::vector<StridedPiece>& pieces, size_t num_blocks,
                    TransferRoute route = TransferRoute::kHostToDevice, size_t num_groups = 0) {
  const Calibration calibration = link();
  return choose_method({.pieces = pieces,
                        .num_blocks = num_blocks,
                        .num_groups = num_groups,
                        .route = route,
                        .capabilities = kKernels,
                        .calibration = calibration});
}

TEST(CopyChoice, ADeviceOfOneMethodIsNotAskedFurther) {
  const auto pieces = layers(160, 32 * kKiB);
  const Calibration calibration = link();
  const MethodChoice choice = choose_method({.pieces = pieces,
                                             .num_blocks = 1,
                                             .route = TransferRoute::kHostToDevice,
                                             .capabilities = {},
                                             .calibration = calibration});
  EXPECT_EQ(choice.method, CopyMethod::kEngine);
  EXPECT_EQ(choice.reason, Reason::kOnlyMethod);
}

TEST(CopyChoice, WithoutAMeasurementTheEngineIsTaken) {
  const auto pieces = layers(160, 32 * kKiB);
  const MethodChoice choice = choose_method({.pieces = pieces,
                                             .num_blocks = 1,
                                             .route = TransferRoute::kHostToDevice,
                                             .capabilities = kKernels,
                                             .calibration = Calibration()});
  EXPECT_EQ(choice.method, CopyMethod::kEngine);
  EXPECT_EQ(choice.reason, Reason::kNotMeasured);
  EXPECT_THAT(describe(choice), HasSubstr("nothing was measured"));
}

TEST(CopyChoice, NothingToMoveIsNoWorkForAKernel) {
  EXPECT_EQ(choose({}, 3).reason, Reason::kNothingToMove);
  EXPECT_EQ(choose(layers(4, 0), 3).reason, Reason::kNothingToMove);
  EXPECT_EQ(choose(layers(4, 64), 0).reason, Reason::kNothingToMove);
}

TEST(CopyChoice, OneRunIsForTheEngineWhateverWasMeasured) {
  // Of the engine something came in between.
  Calibration calibration;
  const RouteCost costs = {cost(50, 0, {{256, 1e9}}), cost(50, 0, {{256, 1e9}}),
                           cost(1, 0, {{256, 50e9}})};
  calibration.set(TransferRoute::kDeviceToDevice, costs);
  const auto reason = [&](const std::vector<StridedPiece>& pieces, size_t num_blocks,
                          size_t num_groups) {
    const MethodChoice choice = choose_method({.pieces = pieces,
                                               .num_blocks = num_blocks,
                                               .num_groups = num_groups,
                                               .route = TransferRoute::kDeviceToDevice,
                                               .capabilities = kKernels,
                                               .calibration = calibration});
    EXPECT_EQ(choice.method == CopyMethod::kEngine, choice.reason == Reason::kOneRun);
    return choice.reason;
  };
  std::vector<StridedPiece> whole = layers(1, kMiB);
  whole.front().axes[1] = {.count = 4, .src_stride = kMiB, .dst_stride = kMiB};
  whole.front().src_block_stride = whole.front().dst_block_stride = 4 * kMiB;
  EXPECT_EQ(reason(whole, 1, 1), Reason::kOneRun);
  EXPECT_EQ(reason(whole, 1, 0), Reason::kOneRun);
  EXPECT_EQ(reason(whole, 16, 1), Reason::kOneRun);
  EXPECT_EQ(reason(whole, 16, 2), Reason::kCheaper);
  EXPECT_EQ(reason(whole, 16, 0), Reason::kCheaper) << "nothing is known of their order";
  whole.front().dst_block_stride *= 2;
  EXPECT_EQ(reason(whole, 16, 1), Reason::kCheaper) << "a gap behind each block";
  EXPECT_EQ(reason(layers(2, kMiB), 1, 1), Reason::kCheaper);
  whole.front().axes[1].src_stride *= 2;
  EXPECT_EQ(reason(whole, 1, 1), Reason::kCheaper);
  EXPECT_THAT(describe({.reason = Reason::kOneRun}), HasSubstr("one run of bytes"));
}

TEST(CopyChoice, AKernelTakesManyShortRuns) {
  const MethodChoice choice = choose(layers(160, 32 * kKiB), 16);
  EXPECT_EQ(choice.method, CopyMethod::kKernel);
  EXPECT_EQ(choice.reason, Reason::kCheaper);
  EXPECT_EQ(choice.max_ctas, 4u);
  // 160 * 16 * 32 KiB: at 40 GB/s and 10 us; at 46 GB/s, 15 us and 160 pieces of 0.1 us.
  EXPECT_NEAR(choice.engine.count(), 10 + 83886080 / 40e3, 1e-6);
  EXPECT_NEAR(choice.kernel.count(), 15 + 16 + 83886080 / 46e3, 1e-6);
  EXPECT_EQ(describe(choice), "kernel, at most 4 CTAs: 1855 us, the engine would take 2107 us");
  EXPECT_EQ(choose(layers(160, 32 * kKiB), 16, TransferRoute::kDeviceToHost).max_ctas, 2u);
  EXPECT_EQ(choose(layers(160, 32 * kKiB), 16, TransferRoute::kDeviceToDevice).max_ctas, 0u);
}

TEST(CopyChoice, AKernelThatWritesToTheHostIsHeldBack) {
  const auto pieces = layers(160, 32 * kKiB);
  EXPECT_EQ(choose(pieces, 16, TransferRoute::kHostToDevice).max_bytes_per_second, 0u);
  EXPECT_EQ(choose(pieces, 16, TransferRoute::kDeviceToDevice).max_bytes_per_second, 0u);
  const MethodChoice choice = choose(pieces, 16, TransferRoute::kDeviceToHost);
  ASSERT_EQ(choice.method, CopyMethod::kKernel);
  EXPECT_EQ(choice.max_bytes_per_second, 45'540'000'000u);
  EXPECT_NEAR(choice.kernel.count(), 15 + 16 + 83886080 / 45.54e3, 1e-6);
  EXPECT_EQ(describe(choice),
            "kernel, at most 2 CTAs and 45.5 GB/s: 1873 us, the engine would take 2107 us");
}

TEST(CopyChoice, ThePaceIsThatOfTheSlowestPiece) {
  Calibration calibration;
  const FormCost slow = cost(1000, 10, {{256, 1e9}});
  calibration.set(TransferRoute::kDeviceToHost,
                  {slow, slow, cost(0, 0, {{64, 10e9}, {4 * kKiB, 50e9}})});
  const auto pace = [&](const std::vector<StridedPiece>& pieces) {
    return choose_method({.pieces = pieces,
                          .num_blocks = 5,
                          .route = TransferRoute::kDeviceToHost,
                          .capabilities = kKernels,
                          .calibration = calibration})
        .max_bytes_per_second;
  };
  auto pieces = layers(2, 4 * kKiB);
  EXPECT_EQ(pace(pieces), 49'500'000'000u);
  pieces[1].bytes = 64;
  EXPECT_EQ(pace(pieces), 9'900'000'000u);
  pieces[1].bytes = 0;
  EXPECT_EQ(pace(pieces), 49'500'000'000u) << "nothing moves there";
}

TEST(CopyChoice, TheEngineTakesLongRuns) {
  const MethodChoice choice = choose(layers(1, 5 * kMiB), 16);
  EXPECT_EQ(choice.method, CopyMethod::kEngine);
  EXPECT_EQ(choice.reason, Reason::kCheaper);
  EXPECT_THAT(describe(choice), HasSubstr("a kernel would take"));
}

TEST(CopyChoice, TheEngineTakesOneShortRun) {
  EXPECT_EQ(choose(layers(1, 4 * kKiB), 1).method, CopyMethod::kEngine);
}

TEST(CopyChoice, AnAxisOfEightIsARectangleToTheEngine) {
  auto pieces = layers(1, 4 * kKiB);
  pieces[0].axes[3] = {.count = 7, .src_stride = 8 * kKiB, .dst_stride = 4 * kKiB};
  EXPECT_EQ(choose(pieces, 1000).method, CopyMethod::kKernel);
  pieces[0].axes[3].count = 160;
  const MethodChoice choice = choose(pieces, 500);
  EXPECT_EQ(choice.method, CopyMethod::kEngine);
  EXPECT_NEAR(choice.engine.count(), 10 + 500 * 1.5 + 327680000 / 50e3, 1e-6);
}

TEST(CopyChoice, BlocksInEqualStepsAreRowsOfARectangle) {
  const auto pieces = layers(160, 4 * kKiB);
  EXPECT_EQ(choose(pieces, 64).method, CopyMethod::kKernel);
  EXPECT_EQ(choose(pieces, 64, TransferRoute::kHostToDevice, 10).method, CopyMethod::kKernel)
      << "six blocks in a group are runs";
  const MethodChoice choice = choose(pieces, 1024, TransferRoute::kHostToDevice, 2);
  EXPECT_EQ(choice.method, CopyMethod::kEngine);
  EXPECT_NEAR(choice.engine.count(), 10 + 160 * 2 * 1.5 + 671088640 / 50e3, 1e-6);
}

TEST(CopyChoice, AKernelThatGainsLittleIsLeftOut) {
  Calibration calibration;
  calibration.set(
      TransferRoute::kHostToDevice,
      {cost(0, 0, {{256, 40e9}}), cost(0, 0, {{256, 40e9}}), cost(0, 0, {{256, 41e9}})});
  const auto pieces = layers(8, 4 * kKiB);
  const MethodChoice choice = choose_method({.pieces = pieces,
                                             .num_blocks = 5,
                                             .route = TransferRoute::kHostToDevice,
                                             .capabilities = kKernels,
                                             .calibration = calibration});
  EXPECT_EQ(choice.method, CopyMethod::kEngine);
  EXPECT_EQ(choice.reason, Reason::kEngineInDoubt);
  EXPECT_LT(choice.kernel, choice.engine);
  EXPECT_THAT(describe(choice), HasSubstr("too little less"));
}

/// 100 blocks of one run by layer, dense on the host, over the link above with a ring.
struct RingQuestion {
  std::vector<StridedPiece> pieces;
  RouteCost costs = *link().find(TransferRoute::kHostToDevice);
  DeviceCapabilities capabilities = {
      .kernel_copies = true, .ring_copies = true, .ring_block_bytes = 8 * kMiB};
  TransferRoute route = TransferRoute::kHostToDevice;
  size_t num_groups = 0;

  explicit RingQuestion(size_t num_layers = 160, uint64_t bytes = 32 * kKiB) {
    static std::byte host[1];
    static std::byte device[1];
    for (size_t i = 0; i < num_layers; ++i) {
      pieces.push_back({.src = host + i * bytes,
                        .dst = device + i * 100 * bytes,
                        .src_block_stride = num_layers * bytes,
                        .dst_block_stride = bytes,
                        .bytes = bytes});
    }
    costs[static_cast<size_t>(CopyForm::kRing)] = cost(20, 0.2, {{256, 49e9}});
  }

  [[nodiscard]] MethodChoice choose(size_t num_blocks = 100) const {
    Calibration calibration;
    calibration.set(route, costs);
    return choose_method({.pieces = pieces,
                          .num_blocks = num_blocks,
                          .num_groups = num_groups,
                          .route = route,
                          .capabilities = capabilities,
                          .calibration = calibration});
  }
};

TEST(CopyChoice, TheRingTakesManyBlocksOfShortRuns) {
  const MethodChoice choice = RingQuestion().choose();
  EXPECT_EQ(choice.method, CopyMethod::kRing);
  EXPECT_EQ(choice.reason, Reason::kCheaper);
  EXPECT_EQ(choice.max_ctas, 0u);
  EXPECT_EQ(choice.max_bytes_per_second, 0u);
  // 20 us, 160 pieces of 0.2 us, 524288000 bytes at 49 GB/s: slower than the link.
  ASSERT_TRUE(choice.ring);
  EXPECT_NEAR(choice.ring->count(), 20 + 32 + 524288000 / 49e3, 1e-6);
  EXPECT_EQ(describe(choice), "ring: 10752 us, the engine would take 13117 us, a kernel 11429 us");
}

TEST(CopyChoice, AKernelTakesFewBlocksOfShortRuns) {
  RingQuestion question;
  question.costs[static_cast<size_t>(CopyForm::kEngineRuns)] = cost(10, 0, {{256, 20e9}});
  question.costs[static_cast<size_t>(CopyForm::kRing)].submission = CopyCost(40);
  const MethodChoice choice = question.choose(1);
  EXPECT_EQ(choice.method, CopyMethod::kKernel);
  EXPECT_EQ(choice.max_ctas, 4u);
  EXPECT_EQ(describe(choice),
            "kernel, at most 4 CTAs: 145 us, the engine would take 272 us, the ring 302 us");
}

TEST(CopyChoice, TheRingIsNotFasterThanTheLinkIsWithWholeBlocks) {
  RingQuestion question(2, 16 * kKiB);  // blocks of 32 KiB, which the engine moves at 40 GB/s
  const MethodChoice runs = question.choose();
  ASSERT_TRUE(runs.ring);
  EXPECT_NEAR(runs.ring->count(), 20 + 3276800 / 40e3, 1e-6);
  question.num_groups = 1;  // in equal steps: rows, at 50
  const MethodChoice rows = question.choose();
  EXPECT_NEAR(rows.ring->count(), 20 + 0.4 + 3276800 / 49e3, 1e-6);
}

TEST(CopyChoice, TheRingTakesOnlyWhatFits) {
  const auto has_ring = [](const RingQuestion& question) {
    return question.choose().ring.has_value();
  };
  EXPECT_TRUE(has_ring(RingQuestion()));
  RingQuestion question;
  question.capabilities.ring_copies = false;
  EXPECT_FALSE(has_ring(question)) << "no ring on the device";
  question = RingQuestion();
  question.capabilities.ring_block_bytes = 160 * 32 * kKiB - 1;
  EXPECT_FALSE(has_ring(question)) << "a block is larger than a slot";
  question = RingQuestion();
  question.pieces.erase(question.pieces.begin() + 80);
  EXPECT_FALSE(has_ring(question)) << "blocks have a gap";
  question = RingQuestion();
  question.route = TransferRoute::kDeviceToHost;
  EXPECT_FALSE(has_ring(question)) << "the other side has gaps";
  question = RingQuestion();
  question.costs[static_cast<size_t>(CopyForm::kRing)].rates.clear();
  EXPECT_FALSE(has_ring(question)) << "it was not measured";
  question = RingQuestion(1);
  EXPECT_TRUE(has_ring(question));
  question.route = TransferRoute::kDeviceToDevice;
  EXPECT_FALSE(has_ring(question)) << "there is no link";
}

/// Of 10 runs of 512 KiB a block.
RingQuestion long_runs() {
  RingQuestion question(10, 512 * kKiB);
  question.costs[static_cast<size_t>(CopyForm::kEngineRuns)] =
      cost(0, 0, {{512 * kKiB, 47e9}, {5 * kMiB, 50e9}});
  return question;
}

TEST(CopyChoice, ARingThatGainsLittleIsLeftOut) {
  const MethodChoice choice = long_runs().choose(50);
  EXPECT_EQ(choice.method, CopyMethod::kEngine);
  EXPECT_EQ(choice.reason, Reason::kEngineInDoubt);
  EXPECT_LT(*choice.ring, choice.engine);
  EXPECT_EQ(describe(choice),
            "engine: 5578 us, a kernel would take 5715 us, the ring 5372 us, too little less for "
            "the SMs that it holds");
}

TEST(CopyChoice, ManyCopiesAreForTheEngineOnlyIfTheySaveTime) {
  EXPECT_EQ(long_runs().choose(51).method, CopyMethod::kEngine) << "510 of them";
  EXPECT_EQ(long_runs().choose(52).method, CopyMethod::kRing);
  RingQuestion question = long_runs();
  question.costs[static_cast<size_t>(CopyForm::kEngineRuns)].rates = {{512 * kKiB, 50e9}};
  EXPECT_EQ(question.choose(100).method, CopyMethod::kEngine);
}

TEST(CopyChoice, AKernelLeavesBatchesThatFillTheRingToIt) {
  RingQuestion question;
  question.costs[static_cast<size_t>(CopyForm::kEngineRuns)].rates = {{32 * kKiB, 10e9},
                                                                      {5 * kMiB, 50e9}};
  question.costs[static_cast<size_t>(CopyForm::kKernel)] = cost(0, 0, {{256, 50e9}});
  EXPECT_EQ(question.choose(6).method, CopyMethod::kKernel) << "30 MiB of a ring of slots of 8";
  EXPECT_EQ(question.choose(100).method, CopyMethod::kRing) << "a kernel saves 2 %";
  question.costs[static_cast<size_t>(CopyForm::kKernel)] = cost(0, 0, {{256, 52e9}});
  EXPECT_EQ(question.choose(100).method, CopyMethod::kKernel);
  // A ring that does not beat the engine leaves nothing to itself.
  question.costs[static_cast<size_t>(CopyForm::kEngineRuns)].rates = {{32 * kKiB, 49.5e9}};
  question.costs[static_cast<size_t>(CopyForm::kKernel)] = cost(0, 0, {{256, 50e9}});
  EXPECT_EQ(question.choose(100).method, CopyMethod::kKernel);
}

size_t groups(const std::vector<uint32_t>& from, const std::vector<uint32_t>& to) {
  return make_block_pairs(block_ids(from), block_ids(to))->count_groups();
}

TEST(CopyChoice, GroupsGoUpInEqualSteps) {
  EXPECT_EQ(groups({}, {}), 0u);
  EXPECT_EQ(groups({5}, {9}), 1u);
  EXPECT_EQ(groups({0, 1, 2, 3}, {4, 5, 6, 7}), 1u);
  EXPECT_EQ(groups({0, 1, 2, 3}, {4, 6, 8, 10}), 1u);
  EXPECT_EQ(groups({0, 1, 2, 3}, {4, 5, 7, 8}), 2u);
  EXPECT_EQ(groups({0, 1, 2, 3}, {9, 8, 7, 6}), 4u) << "a rectangle has no rows backwards";
  EXPECT_EQ(groups({0, 5, 6, 7, 8}, {0, 5, 6, 7, 8}), 2u);
}

}  // namespace
}  // namespace kvbm
