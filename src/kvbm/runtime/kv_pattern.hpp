// SPDX-License-Identifier: Apache-2.0
// Patterns in blocks of G1: bytes that tell which block they belong in, on every rank.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kvbm/base/completion.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/blocks/block.hpp"
#include "kvbm/device/pattern.hpp"
#include "kvbm/layout/physical_layout.hpp"

namespace kvbm {

/// Blocks to fill, and blocks to compare first. A block's seed stands for what it holds; rank,
/// layer and outer are mixed in, so that a swap of any of them shows.
struct KvPatterns {
  std::span<const MutableBlock> writes;
  std::span<const uint64_t> write_seeds;  ///< one for each of them
  std::span<const ImmutableBlock> reads;
  std::span<const uint64_t> read_seeds;
};

/// The first wrong byte of a block on one rank.
struct WrongBytes {
  size_t read = 0;  ///< index of the block in KvPatterns::reads
  RankId rank;
  LayerId layer;  ///< within the group
  uint32_t outer = 0;
  uint64_t offset = 0;

  friend bool operator==(const WrongBytes&, const WrongBytes&) = default;
};

/// Patterns that are being filled and compared. Ownership: a value; copies share what is found.
/// Threads: one thread at a time.
// NOLINTNEXTLINE(bugprone-exception-escape): moving a Status or a pointer does not throw.
class KvPatternRun {
 public:
  /// Nothing to do, and done.
  KvPatternRun() = default;

  [[nodiscard]] const Completion& ended() const noexcept { return ended_; }

  /// The blocks that all ranks have compared. Contract, here and below: ended().done().
  [[nodiscard]] uint64_t num_compared() const;
  /// Those of them that were wrong on a rank.
  [[nodiscard]] uint64_t num_wrong() const;
  /// Of the first block in the order of the reads, and the first rank that has it wrong.
  [[nodiscard]] std::optional<WrongBytes> first_wrong() const;

 private:
  friend class BlockManager;

  /// The reads of one layer group.
  struct Part {
    uint32_t outer_dim = 1;
    std::vector<size_t> reads;
    std::vector<std::shared_ptr<const PatternFindings>> by_rank;
  };

  Completion ended_ = Completion::ready();
  std::vector<Part> parts_;
};

/// The chunks of a group on one rank, layer by layer, outer by outer.
/// Contract: the layout has regions.
[[nodiscard]] std::vector<PatternPiece> pattern_pieces(const PhysicalLayout& layout, RankId rank);

}  // namespace kvbm
