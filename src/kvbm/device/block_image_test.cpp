// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/block_image.hpp"

#include <vector>

#include <gtest/gtest.h>

namespace kvbm {
namespace {

std::byte host[4096];
std::byte device[4096];

/// `layers` pieces of two runs each (keys and values) on the device, side by side in a block of the
/// host.
std::vector<StridedPiece> layers(size_t first, size_t count) {
  std::vector<StridedPiece> pieces;
  for (size_t i = first; i < first + count; ++i) {
    pieces.push_back({.src = device + 256 * i,
                      .dst = host + 32 * i,
                      .src_block_stride = 16,
                      .dst_block_stride = 512,
                      .bytes = 16,
                      .axes = {{{}, {}, {}, {2, 128, 16}}}});
  }
  return pieces;
}

TEST(BlockImage, LayersSideBySideAreOneRun) {
  EXPECT_EQ(find_image(layers(0, 4), CopySide::kDestination),
            (BlockImage{.base = host, .block_stride = 512, .bytes = 128}));
  EXPECT_EQ(find_image(layers(1, 2), CopySide::kDestination),
            (BlockImage{.base = host + 32, .block_stride = 512, .bytes = 64}))
      << "some layers";
  EXPECT_FALSE(find_image(layers(0, 4), CopySide::kSource)) << "layers apart";
}

TEST(BlockImage, TheOrderOfPiecesDoesNotMatter) {
  auto pieces = layers(0, 3);
  std::swap(pieces[0], pieces[2]);
  EXPECT_EQ(find_image(pieces, CopySide::kDestination)->base, host);
  pieces.erase(pieces.begin() + 1);
  EXPECT_FALSE(find_image(pieces, CopySide::kDestination)) << "a layer is missing in between";
}

TEST(BlockImage, APieceThatTouchesNothingIsNotLookedAt) {
  auto pieces = layers(1, 2);
  pieces.insert(pieces.begin(), {.src = nullptr, .dst = nullptr, .dst_block_stride = 1});
  pieces.push_back(layers(9, 1).front());
  pieces.back().axes[3].count = 0;
  EXPECT_EQ(find_image(pieces, CopySide::kDestination)->bytes, 64u);
  EXPECT_FALSE(find_image({}, CopySide::kDestination));
  EXPECT_FALSE(find_image(std::span(pieces).last(1), CopySide::kDestination));
}

TEST(BlockImage, PiecesThatGoToOtherBlocksHaveNone) {
  auto pieces = layers(0, 2);
  pieces[1].dst_block_stride = 1024;
  EXPECT_FALSE(find_image(pieces, CopySide::kDestination));
}

TEST(BlockImage, ASourceThatIsReadTwiceMayHideAGap) {
  // 16 bytes are read twice, 16 are not: the image has all of them.
  const std::vector<StridedPiece> pieces = {{.src = host, .dst = device, .bytes = 16},
                                            {.src = host, .dst = device + 16, .bytes = 16},
                                            {.src = host + 32, .dst = device + 32, .bytes = 16}};
  EXPECT_EQ(find_image(pieces, CopySide::kSource)->bytes, 48u);
}

TEST(BlockImage, MovedPiecesKeepTheirDistances) {
  std::byte slot[256];
  const auto pieces = layers(2, 2);
  const BlockImage image = find_image(pieces, CopySide::kDestination).value();
  const StridedPiece moved = moved_to(pieces[1], image, CopySide::kDestination, slot);
  EXPECT_EQ(moved.dst, slot + 32);
  EXPECT_EQ(moved.dst_block_stride, 64u);
  EXPECT_EQ(moved.src, pieces[1].src);
  EXPECT_EQ(moved.src_block_stride, 16u);
  const StridedPiece whole = image_piece(image, CopySide::kDestination, slot);
  EXPECT_EQ(whole.src, slot);
  EXPECT_EQ(whole.src_block_stride, 64u);
  EXPECT_EQ(whole.dst, host + 64);
  EXPECT_EQ(whole.dst_block_stride, 512u);
  EXPECT_EQ(whole.bytes, 64u);
}

}  // namespace
}  // namespace kvbm
