// SPDX-License-Identifier: Apache-2.0
#include "checksum_plan.hpp"

#include <cstring>

namespace kvbm::kernels {
namespace {

/// The words of the secret that XXH3 has without a seed. Source: as above.
constexpr uint64_t kSecret[kSecretWords] = {
    0xbe4ba423396cfeb8, 0x1cad21f72c81017c, 0xdb979083e96dd4de, 0x1f67b3b7a4a44072,
    0x78e5c0cc4ee679cb, 0x2172ffcc7dd05a82, 0x8e2443f7744608b8, 0x4c263a81e69035e0,
    0xcb00c391bb52283c, 0xa32e531b8b65d088, 0x4ef90da297486471, 0xd8acdea946ef1938,
    0x3f349ce33f76faa8, 0x1d4f0bc7c7bbdcf9, 0x3159b4cd4be0518a, 0x647378d9c97e9fc8,
    0xc3ebd33483acc5ea, 0xeb6313faffa081c5, 0x49daf0b751dd0d17, 0x9e68d429265516d3,
    0xfca1477d58be162b, 0xce31d07ad1b8f88f, 0x280416958f3acb45, 0x7e404bbbcafbd7af,
};

uint64_t units_of(const kvbm_checksum_piece& piece) {
  return piece.bytes / kUnitBytes * piece.count;
}

/// Whether the block takes part with some bytes, and they can be counted.
bool is_valid(const kvbm_checksum_piece& piece) {
  if (piece.bytes % kUnitBytes != 0 || piece.data == nullptr) return false;
  if (((reinterpret_cast<uintptr_t>(piece.data) | piece.block_stride | piece.stride) & 15) != 0) {
    return false;
  }
  return piece.bytes / kUnitBytes < kMaxUnits && units_of(piece) < kMaxUnits;
}

}  // namespace

ChecksumSecret checksum_secret(uint64_t seed) {
  ChecksumSecret secret;
  for (uint32_t i = 0; i < kSecretWords; ++i) {
    secret.words[i] = i % 2 == 0 ? kSecret[i] + seed : kSecret[i] - seed;
  }
  // Little-endian, as all that CUDA runs on.
  const char* const bytes = reinterpret_cast<const char*>(secret.words);
  std::memcpy(secret.last, bytes + 121, sizeof(secret.last));
  std::memcpy(secret.merge, bytes + 11, sizeof(secret.merge));
  return secret;
}

uint64_t ChecksumPlan::block_units() const {
  uint64_t units = 0;
  for (size_t i = 0; i < num_pieces_; ++i) {
    if (pieces_[i].bytes != 0 && pieces_[i].count != 0) units += units_of(pieces_[i]);
  }
  return units;
}

int ChecksumPlan::check() const {
  if (num_blocks_ == 0) return KVBM_KERNELS_SUCCESS;
  if (pieces_ == nullptr || ids_ == nullptr || sums_ == nullptr ||
      num_blocks_ > UINT32_MAX / kLanes || num_pieces_ > UINT32_MAX) {
    return KVBM_KERNELS_INVALID_VALUE;
  }
  for (size_t i = 0; i < num_pieces_; ++i) {
    if (pieces_[i].bytes == 0 || pieces_[i].count == 0) continue;
    if (!is_valid(pieces_[i])) return KVBM_KERNELS_INVALID_VALUE;
  }
  const uint64_t units = block_units();
  return units > 0 && units < kMaxUnits ? KVBM_KERNELS_SUCCESS : KVBM_KERNELS_INVALID_VALUE;
}

bool ChecksumPlan::next(ChecksumLaunch& launch) {
  if (num_blocks_ == 0) return false;
  if (next_piece_ == 0) units_left_ = block_units();
  if (units_left_ == 0) return false;
  launch = ChecksumLaunch();
  launch.is_first = next_piece_ == 0;
  launch.ids = ids_;
  launch.sums = sums_;
  launch.block_bytes = block_units() * kUnitBytes;
  launch.num_blocks = static_cast<uint32_t>(num_blocks_);
  launch.secret = checksum_secret(seed_);
  uint32_t units = 0;
  for (; next_piece_ < num_pieces_ && launch.num_pieces < kMaxChecksumPieces; ++next_piece_) {
    const kvbm_checksum_piece& piece = pieces_[next_piece_];
    if (piece.bytes == 0 || piece.count == 0) continue;
    units += static_cast<uint32_t>(units_of(piece));
    launch.pieces[launch.num_pieces++] = {
        .data = static_cast<const char*>(piece.data),
        .block_stride = piece.block_stride,
        .stride = piece.stride,
        .run_units = static_cast<uint32_t>(piece.bytes / kUnitBytes),
        .end_unit = units};
  }
  units_left_ -= units;
  launch.is_last = units_left_ == 0;
  return true;
}

}  // namespace kvbm::kernels

int kvbm_kernels_checksum_on_host(const kvbm_checksum_piece* pieces, size_t num_pieces,
                                  uint32_t block, uint64_t seed, uint64_t* checksum) {
  using namespace kvbm::kernels;
  uint64_t sums[kLanes] = {};
  ChecksumPlan plan(pieces, num_pieces, &block, 1, seed, sums);
  if (checksum == nullptr) return KVBM_KERNELS_INVALID_VALUE;
  if (const int error = plan.check(); error != KVBM_KERNELS_SUCCESS) return error;
  for (uint32_t lane = 0; lane < kLanes; ++lane) sums[lane] = initial_sum(lane);
  ChecksumLaunch launch;
  while (plan.next(launch)) {
    uint32_t piece = 0;
    for (uint32_t unit = 0; unit < launch.num_units(); ++unit) {
      while (unit >= launch.pieces[piece].end_unit) ++piece;
      const ChecksumPiece& of = launch.pieces[piece];
      const uint32_t within = unit - (piece == 0 ? 0 : launch.pieces[piece - 1].end_unit);
      const char* const bytes = of.data + block * of.block_stride +
                                within / of.run_units * of.stride +
                                uint64_t{within % of.run_units} * kUnitBytes;
      const bool is_last = launch.is_last && unit + 1 == launch.num_units();
      for (uint32_t stripe = 0; stripe < kStripes; ++stripe) {
        const bool last_stripe = is_last && stripe + 1 == kStripes;
        for (uint32_t lane = 0; lane < kLanes; ++lane) {
          uint64_t word = 0;
          std::memcpy(&word, bytes + (stripe * kLanes + lane) * sizeof(word), sizeof(word));
          sums[lane] += product(
              word, last_stripe ? launch.secret.last[lane] : launch.secret.words[stripe + lane]);
          sums[lane ^ 1] += word;
        }
      }
      if (is_last) break;
      for (uint32_t lane = 0; lane < kLanes; ++lane) {
        sums[lane] = scramble(sums[lane], launch.secret.words[16 + lane]);
      }
    }
  }
  *checksum = merged(sums, launch.secret.merge, launch.block_bytes);
  return KVBM_KERNELS_SUCCESS;
}
