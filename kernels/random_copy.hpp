// SPDX-License-Identifier: Apache-2.0
// Strided copies made up from a seed, between two arenas, and a plain copy of them: what kernels
// are held against.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include <kvbm/kernels.h>

namespace kvbm::kernels {

/// Bases are offsets into the arenas until place() has put them there.
struct RandomCopy {
  std::vector<kvbm_strided_piece> pieces;
  std::vector<uint32_t> from;
  std::vector<uint32_t> to;
  uint64_t src_bytes = 0;  ///< of the arenas
  uint64_t dst_bytes = 0;

  std::vector<kvbm_strided_piece> place(const void* src, void* dst) const {
    std::vector<kvbm_strided_piece> placed = pieces;
    for (auto& piece : placed) {
      piece.src = static_cast<const char*>(src) + reinterpret_cast<uintptr_t>(piece.src);
      piece.dst = static_cast<char*>(dst) + reinterpret_cast<uintptr_t>(piece.dst);
    }
    return placed;
  }
};

struct CopyLimits {
  uint64_t unit = 16;  ///< everything is a multiple of it
  uint32_t max_pieces = 6;
  uint32_t max_blocks = 6;
  uint64_t max_count = 6;       ///< of an axis
  uint64_t max_run_units = 40;  ///< of a run
};

class CopyMaker {
 public:
  explicit CopyMaker(uint64_t seed) : random_(seed) {}

  uint64_t pick(uint64_t low, uint64_t high) {
    return std::uniform_int_distribution<uint64_t>(low, high)(random_);
  }

  /// Pieces of one or of several shapes; what is written does not overlap.
  RandomCopy make(const CopyLimits& limits) {
    RandomCopy copy;
    const uint32_t num_blocks = static_cast<uint32_t>(pick(1, limits.max_blocks));
    const uint32_t src_blocks = static_cast<uint32_t>(pick(1, limits.max_blocks));
    const uint32_t dst_blocks = num_blocks + static_cast<uint32_t>(pick(0, 3));
    for (uint32_t i = 0; i < num_blocks; ++i) {
      copy.from.push_back(static_cast<uint32_t>(pick(0, src_blocks - 1)));
    }
    copy.to.resize(dst_blocks);
    std::iota(copy.to.begin(), copy.to.end(), 0U);
    std::shuffle(copy.to.begin(), copy.to.end(), random_);
    copy.to.resize(num_blocks);

    copy.src_bytes = copy.dst_bytes = limits.unit * pick(0, 9);
    const uint64_t num_pieces = pick(1, limits.max_pieces);
    while (copy.pieces.size() < num_pieces) {
      kvbm_strided_piece piece = {};
      piece.bytes = limits.unit * pick(1, limits.max_run_units);
      for (auto& axis : piece.axes) axis.count = pick(0, 2) == 0 ? 1 : pick(1, limits.max_count);
      const uint64_t src_bytes = set_strides(piece, src_blocks, limits.unit, true);
      const uint64_t dst_bytes = set_strides(piece, dst_blocks, limits.unit, false);
      for (uint64_t twins = pick(1, 4); twins > 0 && copy.pieces.size() < num_pieces; --twins) {
        piece.src = reinterpret_cast<const void*>(copy.src_bytes);
        piece.dst = reinterpret_cast<void*>(copy.dst_bytes);
        copy.pieces.push_back(piece);
        copy.src_bytes += src_bytes + limits.unit * pick(0, 5);
        copy.dst_bytes += dst_bytes + limits.unit * pick(0, 5);
      }
    }
    copy.src_bytes += limits.unit * 4;
    copy.dst_bytes += limits.unit * 4;
    return copy;
  }

 private:
  /// Puts blocks and axes into some order of nesting, with gaps or without. Returns the bytes of
  /// all blocks.
  uint64_t set_strides(kvbm_strided_piece& piece, uint64_t blocks, uint64_t unit, bool is_src) {
    std::vector<size_t> order = {0, 1, 2, 3, 4};  // 4 is the block
    if (pick(0, 2) != 0) std::shuffle(order.begin(), order.end(), random_);
    uint64_t bytes = piece.bytes;
    for (size_t i = order.size(); i-- > 0;) {
      if (pick(0, 3) == 0) bytes += unit * pick(1, 3);
      const size_t axis = order[i];
      if (axis == 4) {
        (is_src ? piece.src_block_stride : piece.dst_block_stride) = bytes;
        bytes *= blocks;
      } else {
        (is_src ? piece.axes[axis].src_stride : piece.axes[axis].dst_stride) = bytes;
        bytes *= piece.axes[axis].count;
      }
    }
    return bytes;
  }

  std::mt19937_64 random_;
};

/// Every run of a piece in the order of its stream, as offsets from its bases.
template <typename Visit>
void for_each_run(const kvbm_strided_piece& piece, Visit visit) {
  const auto& axes = piece.axes;
  for (uint64_t i = 0; i < axes[0].count; ++i) {
    for (uint64_t j = 0; j < axes[1].count; ++j) {
      for (uint64_t k = 0; k < axes[2].count; ++k) {
        for (uint64_t l = 0; l < axes[3].count; ++l) {
          visit(i * axes[0].src_stride + j * axes[1].src_stride + k * axes[2].src_stride +
                    l * axes[3].src_stride,
                i * axes[0].dst_stride + j * axes[1].dst_stride + k * axes[2].dst_stride +
                    l * axes[3].dst_stride);
        }
      }
    }
  }
}

/// The copy in plain loops, between arenas in host memory.
inline void copy_plainly(const RandomCopy& copy, const std::vector<char>& src,
                         std::vector<char>& dst) {
  for (const auto& piece : copy.place(src.data(), dst.data())) {
    for (size_t b = 0; b < copy.from.size(); ++b) {
      for_each_run(piece, [&](uint64_t src_offset, uint64_t dst_offset) {
        std::memcpy(
            static_cast<char*>(piece.dst) + copy.to[b] * piece.dst_block_stride + dst_offset,
            static_cast<const char*>(piece.src) + copy.from[b] * piece.src_block_stride +
                src_offset,
            piece.bytes);
      });
    }
  }
}

/// A digest as kernels.h defines it, in the plainest way.
inline uint64_t digest_plainly(const kvbm_strided_piece& piece, uint32_t block) {
  std::vector<char> stream;
  for_each_run(piece, [&](uint64_t src_offset, uint64_t) {
    const char* run =
        static_cast<const char*>(piece.src) + block * piece.src_block_stride + src_offset;
    stream.insert(stream.end(), run, run + piece.bytes);
  });
  stream.resize((stream.size() + 7) / 8 * 8, 0);
  uint64_t digest = 0;
  for (uint32_t k = 0; k < stream.size() / 8; ++k) {
    uint32_t low = 0;
    uint32_t high = 0;
    std::memcpy(&low, stream.data() + 8 * size_t{k}, 4);
    std::memcpy(&high, stream.data() + 8 * size_t{k} + 4, 4);
    const uint32_t a = k * 0x9E3779B1U + 0x85EBCA77U;
    const uint32_t b = k * 0xC2B2AE3DU + 0x27D4EB2FU;
    digest += uint64_t{low ^ a} * uint64_t{high ^ b} + ((uint64_t{low} << 32) + high);
  }
  return digest;
}

inline std::vector<char> random_bytes(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<char> bytes(count);
  for (auto& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

}  // namespace kvbm::kernels
