// SPDX-License-Identifier: Apache-2.0
//
// What the leader and the workers say to each other: plain values, no behaviour.
//
// The leader names blocks, places and order; it never names an address or a stream. A worker turns
// names into memory and events. codec.hpp gives these values a versioned wire form, but
// ShrunkPlace, which has that of the channel.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvbm/base/ids.hpp"

namespace kvbm {

/// Who allocates and evicts the block ids of a place.
enum class Owner : uint8_t { kKvbm, kEngine };

/// How a block lies over the ranks: a shard on each, or one copy striped over them.
enum class Spread : uint8_t { kSharded, kReplicated };

/// The blocks of one layer group in one tier.
struct Place {
  TierId tier = TierId::kG1;
  GroupId group{0};

  friend auto operator<=>(const Place&, const Place&) = default;
};

/// What a worker has to provide for a place.
/// Units: `rank_block_bytes` is the payload of one block on one rank.
struct PlaceSpec {
  Place place;
  Owner owner = Owner::kKvbm;
  Spread spread = Spread::kSharded;
  uint32_t num_blocks = 0;
  uint64_t rank_block_bytes = 0;

  friend bool operator==(const PlaceSpec&, const PlaceSpec&) = default;
};

/// A worker can provide less of a place than it was to: blocks from `num_blocks` on cannot be used,
/// and operations on them are cancelled. It gets less at most, never more again.
struct ShrunkPlace {
  RankId rank{0};
  Place place;
  uint32_t num_blocks = 0;

  friend bool operator==(const ShrunkPlace&, const ShrunkPlace&) = default;
};

/// Opaque identity of a block's content. Written into the slot header of a file place and compared
/// when the slot is read, so that a slot can never be taken for another block.
struct Tag {
  std::array<std::byte, 32> bytes{};

  friend bool operator==(const Tag&, const Tag&) = default;
};

/// A point in time by name. The worker turns it into an event. A gate whose operation, or whose
/// step, has already ended is open; so is every gate of step 0, as steps are numbered from 1.
struct Gate {
  enum class Kind : uint8_t {
    kStepEnd,   ///< the compute of step `id` has ended
    kLayerEnd,  ///< layer `layer` of step `id` has been written
    kOpDone,    ///< operation `id` has ended on this rank, whatever its outcome; one that has not
                ///< come yet is waited for
  };
  Kind kind = Kind::kStepEnd;
  uint64_t id = 0;
  LayerId layer{0};

  static Gate step_end(StepId step) { return {Kind::kStepEnd, step.value(), LayerId{0}}; }
  static Gate layer_end(StepId step, LayerId layer) {
    return {Kind::kLayerEnd, step.value(), layer};
  }
  static Gate op_done(OpId op) { return {Kind::kOpDone, op.value(), LayerId{0}}; }

  friend bool operator==(const Gate&, const Gate&) = default;
};

/// What a worker does first when it has a choice: smaller first.
enum class Priority : uint8_t { kOnboard, kOffload };

/// Copies block from[i] of `src` to block to[i] of `dst`, for every i, on every rank.
/// The operation starts when all gates in `after` are open. Where `src` or `dst` is a file place,
/// `tags` holds one tag a block; otherwise it may be empty.
/// Units: `timeout` counts from the moment the worker receives the operation; an operation that has
/// not started by then ends as cancelled. Zero means no limit.
struct CopyOp {
  OpId op{0};
  Place src;
  Place dst;
  std::vector<BlockId> from;
  std::vector<BlockId> to;
  std::vector<Tag> tags;
  std::vector<Gate> after;
  std::chrono::nanoseconds timeout{0};
  Priority priority = Priority::kOffload;

  friend bool operator==(const CopyOp&, const CopyOp&) = default;
};

/// One step of the engine's forward pass as a worker sees it. Its compute waits for `loads`, but
/// not for `stores`, among which are loads that it does not read, and must not overwrite anything
/// before the operations in `fences` have ended; `cancels` are given up if they have not started.
struct StepPlan {
  StepId step{0};
  std::vector<CopyOp> loads;
  std::vector<CopyOp> stores;
  std::vector<OpId> fences;
  std::vector<OpId> cancels;

  friend bool operator==(const StepPlan&, const StepPlan&) = default;
};

/// The one terminal state of an operation on one rank.
enum class Outcome : uint8_t { kSucceeded, kFailed, kCancelled };

/// The answer of one rank to one operation, given exactly once and only when no byte of the
/// operation's blocks can be touched any more.
/// `bytes` counts payload bytes that arrived. `failed` holds the positions in `from`/`to` whose
/// content did not arrive (kFailed only; empty with kFailed means all of them).
struct OpResult {
  OpId op{0};
  RankId rank{0};
  Outcome outcome = Outcome::kSucceeded;
  uint64_t bytes = 0;
  std::vector<uint32_t> failed;

  friend bool operator==(const OpResult&, const OpResult&) = default;
};

}  // namespace kvbm
