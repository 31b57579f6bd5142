// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/replay_options.hpp"

#include <charconv>
#include <limits>
#include <system_error>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/layout/slot_format.hpp"
#include "kvbm/replay/block_shape.hpp"
#include "kvbm/runtime/devices.hpp"
#include "kvbm/runtime/kv_block_manager_config.hpp"

namespace kvbm {
namespace {

constexpr uint64_t kMaxWindow = std::numeric_limits<BlockId::Representation>::max() - 1;
constexpr uint32_t kMaxRanks = 1024;
constexpr size_t kMostGroups = 64;
constexpr uint64_t kMaxBytes = uint64_t{1} << 62;  // sums of the tiers stay below 2^64
constexpr std::string_view kFull = "full";
constexpr std::string_view kWindow = "window:";

tl::unexpected<Error> invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, std::move(message));
}

tl::unexpected<Error> bad_group(std::string_view text) {
  return invalid(
      format_text("'{}' is no layer group: write full or window:BLOCKS, perhaps with "
                  "@SIZE, and commas between groups",
                  text));
}

Result<ReplayGroup> parse_group(std::string_view text) {
  ReplayGroup group;
  std::string_view rule = text;
  if (const size_t at = text.find('@'); at != std::string_view::npos) {
    rule = text.substr(0, at);
    const auto size = parse_size(text.substr(at + 1));
    if (!size) return make_error(Error(size.error()).with_context(format_text("group '{}'", text)));
    if (*size == 0) return invalid(format_text("group '{}' has blocks of 0 bytes", text));
    group.block_bytes = *size;
  }
  if (rule == kFull) return group;
  if (!rule.starts_with(kWindow)) return bad_group(text);
  const std::string_view digits = rule.substr(kWindow.size());
  uint32_t blocks = 0;
  const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), blocks);
  const bool whole = parsed.ec == std::errc() && parsed.ptr == digits.data() + digits.size();
  if (!whole || blocks == 0 || blocks > kMaxWindow) return bad_group(text);
  group.retention = Retention::last_window(blocks);
  return group;
}

// a * b, nothing if that is more than kMaxBytes.
std::optional<uint64_t> product(uint64_t a, uint64_t b) {
  if (b != 0 && a > kMaxBytes / b) return std::nullopt;
  return a * b;
}

uint64_t bytes_of_group(const ReplayOptions& options, const ReplayGroup& group) {
  return group.block_bytes != 0 ? group.block_bytes : options.block_bytes;
}

uint64_t blocks_of(const ReplayOptions& options, TierId tier) {
  KVBM_CONTRACT(tier <= TierId::kG3, "a replay has the tiers G1 to G3");
  return tier == TierId::kG1   ? options.g1_blocks
         : tier == TierId::kG2 ? options.g2_blocks
                               : options.g3_blocks;
}

}  // namespace

Result<std::vector<ReplayGroup>> parse_replay_groups(std::string_view text) {
  std::vector<ReplayGroup> groups;
  while (true) {
    const size_t comma = text.find(',');
    KVBM_ASSIGN_OR_RETURN(auto group, parse_group(text.substr(0, comma)));
    groups.push_back(group);
    if (comma == std::string_view::npos) return groups;
    text.remove_prefix(comma + 1);
  }
}

std::string format_replay_groups(const std::vector<ReplayGroup>& groups) {
  std::string text;
  for (const ReplayGroup& group : groups) {
    if (!text.empty()) text.push_back(',');
    if (group.retention.is_full_prefix()) {
      text.append(kFull);
    } else {
      text.append(kWindow).append(std::to_string(group.retention.window_blocks()));
    }
    if (group.block_bytes != 0) text.append("@").append(std::to_string(group.block_bytes));
  }
  return text;
}

Status ReplayOptions::validate() const {
  if (!is_device_name(device)) {
    return invalid(format_text("device is {}: say host, cuda or cuda:N", device));
  }
  if (bytes == Bytes::kNone && device != ReplayOptions{}.device) {
    return invalid(
        format_text("without bytes nothing is put on device {}: leave the device out", device));
  }
  if (g1_blocks == 0) return invalid("g1-blocks is 0: the engine needs at least one block");
  for (const TierId tier : {TierId::kG1, TierId::kG2, TierId::kG3}) {
    const uint64_t blocks = blocks_of(*this, tier);
    if (blocks > kMaxTierBlocks) {
      return invalid(format_text("{} is given {} blocks: at most {} are possible", tier, blocks,
                                 kMaxTierBlocks));
    }
  }
  if (ranks == 0 || ranks > kMaxRanks) {
    return invalid(format_text("ranks is {}: between 1 and {} is possible", ranks, kMaxRanks));
  }
  if (groups.empty() || groups.size() > kMostGroups) {
    return invalid(format_text("there are {} layer groups: between 1 and {} are possible",
                               groups.size(), kMostGroups));
  }
  uint64_t position = 0;
  for (const ReplayGroup& group : groups) {
    const uint64_t size = bytes_of_group(*this, group);
    if (size == 0) return invalid("block-bytes is 0: a block has at least one byte");
    if (size % ranks != 0) {
      return invalid(
          format_text("a block of {} bytes cannot be shared evenly by {} ranks", size, ranks));
    }
    if (size > kMaxBytes - position) return invalid("block-bytes is too large");
    position += size;
  }
  for (const TierId tier : {TierId::kG1, TierId::kG2, TierId::kG3}) {
    const uint64_t blocks = blocks_of(*this, tier);
    if (!product(blocks, position)) {
      return invalid(format_text("{} blocks of {} in {} are more than any machine has", blocks,
                                 format_size(position), tier));
    }
  }
  for (const ReplayGroup& group : groups) {
    const uint64_t rank_bytes = bytes_of_group(*this, group) / ranks;
    if (block_shape_of(rank_bytes)) continue;
    return invalid(
        format_text("a block of {} bytes on one rank cannot be split into layers and heads: take a "
                    "multiple of 4 KiB, up to 256 MiB",
                    rank_bytes));
  }
  if (bytes == Bytes::kNone && !disk_dir.empty()) {
    return invalid("without bytes nothing is written to disk: leave the disk folder out");
  }
  if (bytes == Bytes::kVerified && g3_blocks > 0 && disk_dir.empty()) {
    return invalid("G3 lies on disk: name a folder for it (disk-dir)");
  }
  if (g3_blocks == 0 && !disk_dir.empty()) {
    return invalid(
        "a disk folder is given, but G3 has no blocks: give it some (g3-blocks) or leave "
        "the folder out");
  }
  return {};
}

uint64_t ReplayOptions::position_bytes() const {
  uint64_t position = 0;
  for (const ReplayGroup& group : groups) position += bytes_of_group(*this, group);
  return position;
}

uint64_t ReplayOptions::tier_bytes(TierId tier) const {
  const uint64_t blocks = blocks_of(*this, tier);
  if (bytes == Bytes::kNone) return 0;
  if (tier != TierId::kG3) return blocks * position_bytes();
  // On disk each rank has a slot for its share of a block.
  uint64_t position = 0;
  for (const ReplayGroup& group : groups) {
    const auto slot = slot_geometry(bytes_of_group(*this, group) / ranks);
    KVBM_CONTRACT(slot.has_value(), "blocks of a valid replay fit into slots");
    position += slot->slot_bytes * ranks;
  }
  return blocks * position;
}

std::string_view to_string(ReplayOptions::Bytes bytes) noexcept {
  return bytes == ReplayOptions::Bytes::kVerified ? "verified" : "none";
}

std::string_view to_string(ReplayOptions::Overlap overlap) noexcept {
  return overlap == ReplayOptions::Overlap::kOn ? "on" : "off";
}

Status check_fits(const ReplayOptions& options, const ReplayRoom& room) {
  const bool on_gpu = gpu_ordinal(options.device).has_value();
  const uint64_t memory =
      (on_gpu ? 0 : options.tier_bytes(TierId::kG1)) + options.tier_bytes(TierId::kG2);
  if (memory > room.memory_bytes) {
    return make_error(ErrorCode::kExhausted,
                      format_text("{} of memory and {} are free: ask for fewer or smaller blocks, "
                                  "or play without bytes",
                                  (on_gpu ? "G2 needs " : "G1 and G2 need ") + format_size(memory),
                                  format_size(room.memory_bytes)));
  }
  const uint64_t disk = options.tier_bytes(TierId::kG3);
  if (room.disk_bytes && disk > *room.disk_bytes) {
    return make_error(
        ErrorCode::kExhausted,
        format_text("G3 needs {} in {} and {} are free there: ask for fewer or "
                    "smaller blocks",
                    format_size(disk), options.disk_dir.native(), format_size(*room.disk_bytes)));
  }
  return {};
}

}  // namespace kvbm
