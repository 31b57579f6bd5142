// SPDX-License-Identifier: Apache-2.0
// ReplayOptions: what a replay is run with.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/blocks/eviction_policy.hpp"
#include "kvbm/blocks/retention.hpp"
#include "kvbm/device/ring_size.hpp"

namespace kvbm {

/// A group of layers of the model that is played.
struct ReplayGroup {
  Retention retention = Retention::full_prefix();
  uint64_t block_bytes = 0;  ///< 0: ReplayOptions::block_bytes

  friend bool operator==(const ReplayGroup&, const ReplayGroup&) = default;
};

/// Reads "full", "window:8" (the last 8 blocks) and lists such as "full,window:8@64KiB", where the
/// size is that group's block_bytes. Errors: kInvalidArgument, with the form that is expected.
[[nodiscard]] Result<std::vector<ReplayGroup>> parse_replay_groups(std::string_view text);

/// The text that reads back to the same groups.
[[nodiscard]] std::string format_replay_groups(const std::vector<ReplayGroup>& groups);

struct ReplayOptions {
  /// Whether blocks hold bytes, which are checked after every move, or only names.
  enum class Bytes : uint8_t { kVerified, kNone };
  /// Whether the engine goes on with the next request while blocks are still being stored.
  enum class Overlap : uint8_t { kOff, kOn };

  std::string device = "host";                  ///< of G1, see KvBlockManagerConfig::device
  uint64_t cuda_ring_size = kDefaultRingBytes;  ///< see KvBlockManagerConfig; 0: no ring
  uint64_t g1_blocks = 4096;                    ///< blocks of each group; likewise below
  uint64_t g2_blocks = 0;                       ///< 0: the tier is left out
  uint64_t g3_blocks = 0;                       ///< 0: the tier is left out
  uint64_t block_bytes = 64 * kKiB;             ///< one block of one group, over all ranks
  uint32_t ranks = 1;
  std::vector<ReplayGroup> groups{ReplayGroup{}};
  std::filesystem::path disk_dir;  ///< where G3 lies; empty without G3 and without bytes
  PolicyKind policy = PolicyKind::kLineage;
  Bytes bytes = Bytes::kVerified;
  Overlap overlap = Overlap::kOff;
  uint64_t seed = 0;
  std::optional<uint64_t> limit;  ///< requests of the trace that were read; for the report alone

  /// Errors: kInvalidArgument: a device that is none, or a GPU without bytes; a size of zero or out
  /// of range, sizes that overflow, shards that do not come out even or have no shape (see
  /// block_shape_of), a disk tier without a folder or a folder without a disk tier. Looks at no
  /// file.
  [[nodiscard]] Status validate() const;

  /// One block position over all groups and ranks. Contract: validate() succeeds.
  [[nodiscard]] uint64_t position_bytes() const;
  /// All that a tier takes, on disk with the headers and the padding of its slots; 0 without bytes.
  /// Contract: validate() succeeds; G1, G2 or G3.
  [[nodiscard]] uint64_t tier_bytes(TierId tier) const;

  friend bool operator==(const ReplayOptions&, const ReplayOptions&) = default;
};

[[nodiscard]] std::string_view to_string(ReplayOptions::Bytes bytes) noexcept;
[[nodiscard]] std::string_view to_string(ReplayOptions::Overlap overlap) noexcept;

/// What the machine has left for a replay.
struct ReplayRoom {
  uint64_t memory_bytes = 0;             ///< of the host; what a GPU has is told by its allocation
  std::optional<uint64_t> disk_bytes{};  ///< of the folder of G3; nothing: not known
};

/// Whether the tiers fit. Errors: kExhausted, naming what is needed and what is free.
/// Contract: options.validate() succeeds.
[[nodiscard]] Status check_fits(const ReplayOptions& options, const ReplayRoom& room);

}  // namespace kvbm
