// SPDX-License-Identifier: Apache-2.0
// XXH3 of blocks: its arithmetic, the same on the host and on the device, and the cutting of pieces
// into launches.
//
// XXH3 takes 64 bytes at a time into eight sums and mixes these after every 1024. What such a unit
// adds does not depend on the sums, so units are read side by side, and only the mixing goes one by
// one.
// Source: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
#pragma once

#include <cstddef>
#include <cstdint>

#include <kvbm/kernels.h>

#include "host_device.hpp"

namespace kvbm::kernels {

inline constexpr uint32_t kUnitBytes = 1024;
inline constexpr uint32_t kLanes = 8;         ///< of 64 bits
inline constexpr uint32_t kStripes = 16;      ///< of a unit
inline constexpr uint32_t kSecretWords = 24;  ///< 192 bytes
inline constexpr uint64_t kMaxUnits = uint64_t{1} << 30;
/// What fits into the 4 KiB that every driver takes as parameters of a kernel.
inline constexpr uint32_t kMaxChecksumPieces = 90;

/// The secret of a seed, and the words of it that start at odd bytes.
struct ChecksumSecret {
  uint64_t words[kSecretWords] = {};
  uint64_t last[kLanes] = {};   ///< for the last stripe of all
  uint64_t merge[kLanes] = {};  ///< for the end
};

[[nodiscard]] ChecksumSecret checksum_secret(uint64_t seed);

KVBM_HOST_DEVICE uint64_t initial_sum(uint32_t lane) {
  constexpr uint64_t kInitial[kLanes] = {0xC2B2AE3D,         0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F,
                                         0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x85EBCA77,
                                         0x27D4EB2F165667C5, 0x9E3779B1};
  return kInitial[lane];
}

/// What a word adds to the sum of its own lane; to its neighbour's it adds itself.
KVBM_HOST_DEVICE uint64_t product(uint64_t word, uint64_t key) {
  const uint64_t mixed = word ^ key;
  return (mixed & 0xFFFFFFFF) * (mixed >> 32);
}

KVBM_HOST_DEVICE uint64_t scramble(uint64_t sum, uint64_t key) {
  sum ^= sum >> 47;
  return (sum ^ key) * 0x9E3779B1;
}

KVBM_HOST_DEVICE uint64_t folded_product(uint64_t a, uint64_t b) {
#ifdef __CUDA_ARCH__
  return (a * b) ^ __umul64hi(a, b);
#else
  __extension__ using Wide = unsigned __int128;
  const Wide product = Wide{a} * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
#endif
}

KVBM_HOST_DEVICE uint64_t merged(const uint64_t* sums, const uint64_t* merge, uint64_t bytes) {
  uint64_t hash = bytes * 0x9E3779B185EBCA87;
  for (uint32_t i = 0; i < kLanes; i += 2) {
    hash += folded_product(sums[i] ^ merge[i], sums[i + 1] ^ merge[i + 1]);
  }
  hash ^= hash >> 37;
  hash *= 0x165667919E3779F9;
  return hash ^ (hash >> 32);
}

struct ChecksumPiece {
  const char* data = nullptr;
  uint64_t block_stride = 0;
  uint64_t stride = 0;
  uint32_t run_units = 0;
  uint32_t end_unit = 0;  ///< the first unit of the launch that is not this piece's
};

/// Some pieces of all blocks: the parameter of a kernel.
struct ChecksumLaunch {
  const uint32_t* ids = nullptr;
  uint64_t* sums = nullptr;  ///< [num_blocks][kLanes]; at the end the first one is the checksum
  uint64_t block_bytes = 0;
  uint32_t num_blocks = 0;
  uint32_t num_pieces = 0;
  bool is_first = false;
  bool is_last = false;
  ChecksumSecret secret;
  ChecksumPiece pieces[kMaxChecksumPieces] = {};

  KVBM_HOST_DEVICE uint32_t num_units() const { return pieces[num_pieces - 1].end_unit; }
};
static_assert(sizeof(ChecksumLaunch) <= 4096);

/// The checks of a call, and its cutting into ChecksumLaunches. Allocates nothing.
class ChecksumPlan {
 public:
  ChecksumPlan(const kvbm_checksum_piece* pieces, size_t num_pieces, const uint32_t* ids,
               size_t num_blocks, uint64_t seed, uint64_t* sums)
      : pieces_(pieces),
        num_pieces_(num_pieces),
        ids_(ids),
        num_blocks_(num_blocks),
        seed_(seed),
        sums_(sums) {}

  /// KVBM_KERNELS_SUCCESS or KVBM_KERNELS_INVALID_VALUE.
  int check() const;

  bool has_work() const { return num_blocks_ != 0; }

  /// Fills in the next launch; false at the end. Requires: check() succeeded.
  bool next(ChecksumLaunch& launch);

 private:
  uint64_t block_units() const;

  const kvbm_checksum_piece* pieces_;
  size_t num_pieces_;
  const uint32_t* ids_;
  size_t num_blocks_;
  uint64_t seed_;
  uint64_t* sums_;

  size_t next_piece_ = 0;
  uint64_t units_left_ = 0;
};

}  // namespace kvbm::kernels
