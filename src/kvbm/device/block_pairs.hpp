// SPDX-License-Identifier: Apache-2.0
// BlockPairs: which blocks are copied to which, looked at once for all who ask about them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kvbm/base/ids.hpp"

namespace kvbm {

/// The lowest and the highest of some block ids; zeros of none.
struct BlockIdRange {
  uint64_t lowest = 0;
  uint64_t highest = 0;

  friend bool operator==(const BlockIdRange&, const BlockIdRange&) = default;
};

[[nodiscard]] BlockIdRange range_of(std::span<const BlockId> ids) noexcept;

/// Fewer rows of a rectangle are cheaper to a copy engine as plain runs.
inline constexpr uint64_t kLeastRows = 8;

/// How many pairs (from[i], to[i]) from `first` on go up in equal steps: what can be the rows of a
/// rectangle. Two in steps of more than one block are none: the second may begin a longer one.
/// Requires: lists of one length, above `first`.
[[nodiscard]] size_t count_rows(std::span<const BlockId> from, std::span<const BlockId> to,
                                size_t first) noexcept;

/// Pairs (from[i], to[i]) of blocks, with what a look at all of them has found.
/// Threads: any thread reads; whoever assigns is alone.
class BlockPairs {
 public:
  BlockPairs() = default;
  /// Requires: lists of one length.
  BlockPairs(std::span<const BlockId> from, std::span<const BlockId> to) { assign(from, to); }

  /// In the memory of those before, where it is enough. Requires: lists of one length.
  void assign(std::span<const BlockId> from, std::span<const BlockId> to);

  [[nodiscard]] size_t size() const noexcept { return from_.size(); }
  [[nodiscard]] bool empty() const noexcept { return from_.empty(); }
  /// For how many there is memory.
  [[nodiscard]] size_t capacity() const noexcept;

  [[nodiscard]] const std::vector<BlockId>& from() const noexcept { return from_; }
  [[nodiscard]] const std::vector<BlockId>& to() const noexcept { return to_; }
  [[nodiscard]] const BlockIdRange& from_range() const noexcept { return from_range_; }
  [[nodiscard]] const BlockIdRange& to_range() const noexcept { return to_range_; }

  /// All of them, upwards: each id is there once.
  [[nodiscard]] bool in_equal_steps() const noexcept { return in_equal_steps_; }
  /// As the function of this name. Requires: more of them than `first`.
  [[nodiscard]] size_t count_rows(size_t first) const noexcept {
    return in_equal_steps_ && first == 0 ? size() : kvbm::count_rows(from_, to_, first);
  }
  /// How many groups of pairs in equal steps they are.
  [[nodiscard]] size_t count_groups() const noexcept;

 private:
  std::vector<BlockId> from_;
  std::vector<BlockId> to_;
  BlockIdRange from_range_;
  BlockIdRange to_range_;
  bool in_equal_steps_ = false;
};

/// Pairs that a transfer and its batches share.
using BlockPairList = std::shared_ptr<const BlockPairs>;

/// Requires: lists of one length.
[[nodiscard]] BlockPairList make_block_pairs(const std::vector<BlockId>& from,
                                             const std::vector<BlockId>& to);
/// Each block to the one of its number.
[[nodiscard]] BlockPairList make_block_pairs(const std::vector<BlockId>& both);

}  // namespace kvbm
