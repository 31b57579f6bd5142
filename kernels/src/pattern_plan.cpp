// SPDX-License-Identifier: Apache-2.0
#include "pattern_plan.hpp"

#include <algorithm>
#include <cstring>

namespace kvbm::kernels {
namespace {

uint64_t sections_of(uint64_t bytes) { return (bytes + kItemBytes - 1) / kItemBytes; }

}  // namespace

int PatternPlan::check() const {
  if (num_pieces_ == 0 || num_blocks_ == 0) return KVBM_KERNELS_SUCCESS;
  if (pieces_ == nullptr || num_pieces_ >= kMaxPatternPieces) return KVBM_KERNELS_INVALID_VALUE;
  for (size_t i = 0; i < num_pieces_; ++i) {
    const kvbm_pattern_piece& piece = pieces_[i];
    if (piece.bytes == 0) continue;
    if (piece.data == nullptr || piece.bytes >= kMaxPatternBytes ||
        piece.bytes > UINTPTR_MAX - reinterpret_cast<uintptr_t>(piece.data) || ids_ == nullptr ||
        seeds_ == nullptr) {
      return KVBM_KERNELS_INVALID_VALUE;
    }
  }
  return KVBM_KERNELS_SUCCESS;
}

bool PatternPlan::has_work() const {
  if (num_blocks_ == 0 || num_pieces_ == 0) return false;
  return first_wrong_ != nullptr ||
         std::any_of(pieces_, pieces_ + num_pieces_,
                     [](const kvbm_pattern_piece& piece) { return piece.bytes != 0; });
}

bool PatternPlan::start_group() {
  while (next_piece_ < num_pieces_ && pieces_[next_piece_].bytes == 0) ++next_piece_;
  if (next_piece_ == num_pieces_) return false;

  const kvbm_pattern_piece& first = pieces_[next_piece_];
  group_ = PatternLaunch();
  group_.bytes = first.bytes;
  group_.block_stride = first.block_stride;
  group_.first_wrong = first_wrong_;
  group_.first_piece = static_cast<uint32_t>(next_piece_);
  const auto sections = static_cast<uint32_t>(sections_of(first.bytes));
  group_.sections = fast_divisor(sections);
  const uint64_t most = std::min<uint64_t>(kMaxPatternBases, (kMaxItems - 1) / sections);
  uint64_t bits = first.block_stride;
  for (; next_piece_ < num_pieces_ && group_.num_bases < most; ++next_piece_) {
    const kvbm_pattern_piece& piece = pieces_[next_piece_];
    if (piece.bytes != first.bytes || piece.block_stride != first.block_stride) break;
    group_.bases[group_.num_bases++] = {static_cast<char*>(piece.data), piece.seed};
    bits |= reinterpret_cast<uintptr_t>(piece.data);
  }
  group_.bases_count = fast_divisor(group_.num_bases);
  group_.aligned = bits % 16 == 0;
  next_block_ = 0;
  return true;
}

bool PatternPlan::next(PatternLaunch& launch) {
  if (num_blocks_ == 0) return false;
  if (group_.num_bases == 0 || next_block_ == num_blocks_) {
    if (!start_group()) return false;
  }
  launch = group_;
  const uint64_t items_of_block = uint64_t{group_.sections.divisor} * group_.num_bases;
  const uint64_t most = (kMaxItems - 1) / items_of_block;
  launch.num_blocks = static_cast<uint32_t>(std::min<uint64_t>(most, num_blocks_ - next_block_));
  launch.num_items = static_cast<uint32_t>(items_of_block * launch.num_blocks);
  launch.ids = ids_ + next_block_;
  launch.seeds = seeds_ + next_block_;
  if (first_wrong_ != nullptr) launch.first_wrong = first_wrong_ + next_block_;
  next_block_ += launch.num_blocks;
  return true;
}

}  // namespace kvbm::kernels

int kvbm_kernels_pattern_on_host(const kvbm_pattern_piece* piece, uint32_t block, uint64_t seed,
                                 uint64_t* first_wrong) {
  using namespace kvbm::kernels;
  if (piece == nullptr) return KVBM_KERNELS_INVALID_VALUE;
  const PatternPlan plan(piece, 1, &block, &seed, 1, first_wrong);
  if (const int error = plan.check(); error != KVBM_KERNELS_SUCCESS) return error;
  char* const data = static_cast<char*>(piece->data) + block * piece->block_stride;
  if (first_wrong != nullptr) *first_wrong = UINT64_MAX;
  for (uint64_t at = 0; at < piece->bytes; at += sizeof(uint64_t)) {
    const uint64_t word = pattern_word(seed + piece->seed, at / sizeof(uint64_t));
    const size_t bytes = std::min<uint64_t>(sizeof(word), piece->bytes - at);
    if (first_wrong == nullptr) {
      std::memcpy(data + at, &word, bytes);
    } else if (std::memcmp(data + at, &word, bytes) != 0) {
      const char* const expected = reinterpret_cast<const char*>(&word);
      size_t within = 0;
      while (data[at + within] == expected[within]) ++within;
      *first_wrong = at + within;
      break;
    }
  }
  return KVBM_KERNELS_SUCCESS;
}
