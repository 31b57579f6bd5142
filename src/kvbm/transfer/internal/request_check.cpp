// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/request_check.hpp"

#include <algorithm>
#include <bit>
#include <string>
#include <utility>
#include <vector>

#include "kvbm/base/text.hpp"

namespace kvbm::internal {
namespace {

tl::unexpected<Error> invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, std::move(message));
}

tl::unexpected<Error> unsupported(std::string message) {
  return make_error(ErrorCode::kUnsupported, std::move(message));
}

/// A set of block ids of one layout: a table of twice as many places as ids, so that its cost is
/// that of the ids, however large the layout is.
/// Ownership: borrows the table's memory.
class BlockSet {
 public:
  BlockSet(size_t num_ids, std::vector<uint32_t>& table) : places_(table) {
    table.assign(std::bit_ceil(std::max<size_t>(2 * num_ids, 2)), kFree);
    shift_ = static_cast<uint32_t>(64 - std::countr_zero(table.size()));
  }

  /// False if it was there. Requires: no more of them than it was made for.
  bool insert(BlockId id) {
    uint32_t& place = places_[place_of(id)];
    return std::exchange(place, id.value()) != id.value();
  }
  [[nodiscard]] bool contains(BlockId id) const { return places_[place_of(id)] == id.value(); }

 private:
  static constexpr uint32_t kFree = 0xffff'ffff;  // no layout has a block of this id

  /// Where the id is or would be.
  [[nodiscard]] size_t place_of(BlockId id) const {
    // 2^64 / the golden ratio: the high bits of the product are far apart for ids that are near.
    size_t at = (id.value() * 0x9e37'79b9'7f4a'7c15) >> shift_;
    while (places_[at] != kFree && places_[at] != id.value()) at = (at + 1) & (places_.size() - 1);
    return at;
  }

  std::vector<uint32_t>& places_;
  uint32_t shift_ = 0;
};

/// Whether each id is higher than the one before, so that none is there twice.
bool rises(std::span<const BlockId> ids) {
  bool does = true;
  for (size_t i = 1; i < ids.size(); ++i) does &= ids[i - 1] < ids[i];
  return does;
}

Status check_range(const PhysicalLayout& layout, const std::vector<BlockId>& ids,
                   const BlockIdRange& range, const char* name) {
  const uint32_t num_blocks = layout.config().num_blocks;
  if (range.highest < num_blocks) return {};
  const auto outside =
      std::ranges::find_if(ids, [&](BlockId id) { return id.value() >= num_blocks; });
  return invalid(format_text("{} block {} of a layout of {} blocks", name, *outside, num_blocks));
}

}  // namespace

Status check_pairs(const PhysicalLayout& src, const PhysicalLayout& dst, const BlockPairs& pairs,
                   std::vector<uint32_t>& scratch) {
  if (pairs.empty()) return {};
  KVBM_TRY(check_range(src, pairs.from(), pairs.from_range(), "source"));
  KVBM_TRY(check_range(dst, pairs.to(), pairs.to_range(), "destination"));
  const bool same_layout = &src == &dst;
  if (!same_layout && (pairs.in_equal_steps() || rises(pairs.to()))) return {};
  BlockSet destinations(pairs.size(), scratch);
  for (const BlockId id : pairs.to()) {
    if (!destinations.insert(id))
      return invalid(format_text("block {} is a destination twice", id));
  }
  if (!same_layout) return {};
  for (const BlockId id : pairs.from()) {
    if (destinations.contains(id)) {
      return invalid(format_text("block {} is a source and a destination", id));
    }
  }
  return {};
}

Result<LayoutView> view_of(const PhysicalLayout& layout, const std::optional<KvBlockLayout>& format,
                           const std::optional<LayerRange>& layers,
                           const std::optional<HeadRange>& heads) {
  LayoutView view(layout);
  if (format) KVBM_TRY(view.as(*format).map([&](const LayoutView& other) { view = other; }));
  if (layers) KVBM_TRY(view.slice(*layers).map([&](const LayoutView& part) { view = part; }));
  if (heads) KVBM_TRY(view.slice(*heads).map([&](const LayoutView& part) { view = part; }));
  return view;
}

namespace {

bool is_whole(const LayoutView& view) {
  return view.block_bytes() == view.layout().config().block_bytes();
}

}  // namespace

BlockMatch match_of(const LayoutView& src, const LayoutView& dst) {
  if (!is_whole(dst)) return BlockMatch::kPartOfBlock;
  if (!is_whole(src) || src.kv_block_layout().requires_transform(dst.kv_block_layout())) {
    return BlockMatch::kReshaped;
  }
  return BlockMatch::kSameBytes;
}

Result<TransferStrategy> with_bounce_in(StorageKind kind, const TransferStrategy& strategy,
                                        const DeviceCapabilities& device) {
  TransferStrategy with = strategy;
  with.first.to.storage = kind;
  with.second->from.storage = kind;
  for (const TransferHop& hop : {with.first, *with.second}) {
    const bool device_reaches = kind != StorageKind::kSystem || device.copies_pageable_host;
    const bool host_reaches = kind != StorageKind::kDevice || device.host_accessible;
    const bool reaches = kind != StorageKind::kFile &&
                         (hop.kind == HopKind::kDevice ? device_reaches : host_reaches);
    if (reaches) continue;
    return unsupported(format_text(
        "bounce blocks of kind {} are not reached by the hop from {} to "
        "{} ({}): take blocks of kind {}",
        kind, to_string(hop.from), to_string(hop.to), hop.kind, strategy.first.to.storage));
  }
  return with;
}

Status check_options(const TransferOptions& options, const TransferStrategy& strategy,
                     size_t num_blocks) {
  const bool has_file = strategy.first.kind == HopKind::kFile ||
                        (strategy.second && strategy.second->kind == HopKind::kFile);
  if (!has_file && !options.tags.empty()) {
    return invalid("tags are kept in files; memory has no place for them");
  }
  if (has_file && options.tags.size() != num_blocks) {
    return invalid(format_text("{} tags for {} blocks; a file asks for one each",
                               options.tags.size(), num_blocks));
  }
  const bool has_remote = strategy.first.kind == HopKind::kRemote ||
                          (strategy.second && strategy.second->kind == HopKind::kRemote);
  if (options.write_notification && !has_remote) {
    return unsupported(
        "a write notification tells another worker; both sides of this transfer are here: wait "
        "for its notification");
  }
  if (options.write_notification && strategy.is_staged() && num_blocks > 0) {
    return unsupported(
        "a transfer through bounce blocks ends here: tell the other worker by a transfer without "
        "blocks once this one is done");
  }
  if (options.bounce_buffer && !strategy.is_staged()) {
    return unsupported(
        format_text("no bounce blocks are between the ends of this transfer ({}): "
                    "leave the bounce buffer out",
                    describe(strategy)));
  }
  if (!options.stream) return {};
  if (has_file) {
    return unsupported(
        "file transfers do not run on a stream: give events to wait for, and let the stream wait "
        "for the event of the notification");
  }
  if (strategy.is_staged() || strategy.first.kind != HopKind::kDevice) {
    return unsupported(format_text(
        "this way takes the host, so it does not run on a stream ({}): give events to wait for, "
        "and let the stream wait for the event of the notification",
        describe(strategy)));
  }
  if (options.priority != TransferPriority::kNormal) {
    return unsupported("on a caller's stream the order is the stream's: leave the priority out");
  }
  return {};
}

}  // namespace kvbm::internal
