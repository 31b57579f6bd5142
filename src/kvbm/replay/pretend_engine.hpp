// SPDX-License-Identifier: Apache-2.0
// PretendEngine: plays an inference engine on a BlockManager, with bytes that can be checked.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvbm/base/error.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/blocks/block_key.hpp"
#include "kvbm/replay/trace.hpp"
#include "kvbm/runtime/block_manager.hpp"
#include "kvbm/runtime/kv_pattern.hpp"

namespace kvbm {

/// What became of the blocks of one request; hits and misses add up to its blocks.
struct Served {
  std::array<uint64_t, kNumTiers> hits{};  ///< by the tier that the position was restored from
  uint64_t misses = 0;
  uint64_t uncached = 0;  ///< misses that found no room in G1: computed, and forgotten
};

struct PretendEngineOptions {
  bool bytes = true;     ///< fill and compare; else only ids move
  bool overlap = false;  ///< go on while stores run; else each phase ends before the next
  uint64_t seed = 0;     ///< of what hash ids mean
};

/// Serves requests one after the other: matches, onboards, fills the missing blocks with the bytes
/// that their key dictates, compares those it got, registers, releases. The bytes are patterns that
/// the device makes and compares, so that they go over no link. Ownership: borrows the
/// manager. Threads: one thread at a time.
class PretendEngine {
 public:
  PretendEngine(BlockManager& manager, PretendEngineOptions options);
  ~PretendEngine();

  /// Errors: those of the manager; kCorrupt once a wrong byte was found, with block, tier, rank and
  /// offset.
  [[nodiscard]] Result<Served> serve(const TraceRequest& request);

  /// Waits for what serve() left running. Errors: as serve().
  Status finish();

  /// Blocks that were compared, on every rank and in every group each. What serve() left running
  /// is not among them.
  [[nodiscard]] uint64_t verified_blocks() const noexcept { return verified_blocks_; }
  /// Those of them that were wrong.
  [[nodiscard]] uint64_t mismatches() const noexcept { return mismatches_; }
  /// Loads of matched blocks that failed, as a whole or in part, or ran out of time.
  [[nodiscard]] uint64_t failed_loads() const noexcept { return failed_loads_; }
  /// Why the first of them did; empty without one.
  [[nodiscard]] const std::string& first_failed_load() const noexcept { return first_failed_load_; }

 private:
  /// A block that is compared.
  struct Read {
    BlockKey key;
    BlockId id;
    TierId tier;  ///< that it came from
  };

  Status compute(const std::vector<MutableBlock>& writes, const std::vector<uint64_t>& write_seeds,
                 const std::vector<ImmutableBlock>& reads, std::vector<Read> read_from);

  BlockManager& manager_;
  PretendEngineOptions options_;
  std::vector<Identity> identities_;
  KvPatternRun running_;     // the launch before this one
  std::vector<Read> reads_;  // of it
  uint64_t verified_blocks_ = 0;
  uint64_t mismatches_ = 0;
  std::optional<Error> first_mismatch_;
  uint64_t failed_loads_ = 0;
  std::string first_failed_load_;
};

}  // namespace kvbm
