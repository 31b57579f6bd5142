// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/fill.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kvbm/base/random.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm {

namespace internal {

/// The bytes of one run of a view.
class PatternBytes {
 public:
  PatternBytes(const LayoutView& view, const FillPattern& pattern)
      : config_(view.layout().config()), pattern_(pattern), bytes_(view.run_bytes()) {}

  /// `first_element` counts in the canonical order of the chunk.
  std::span<const std::byte> of(BlockId block, LayerId layer, uint32_t outer,
                                uint64_t first_element) {
    const uint64_t width = config_.dtype_width_bytes;
    const uint64_t chunk = uint64_t{layer.value()} * config_.outer_dim + outer;
    switch (pattern_.kind_) {
      case FillPattern::Kind::kConstant:
        std::ranges::fill(bytes_, static_cast<std::byte>(pattern_.value_));
        break;
      case FillPattern::Kind::kSequential: {
        uint64_t next = block.value() + chunk * config_.chunk_bytes() + first_element * width;
        for (std::byte& byte : bytes_) byte = static_cast<std::byte>(next++);
        break;
      }
      case FillPattern::Kind::kPosition: {
        uint64_t of_chunk = hashed(0, pattern_.value_);
        for (const uint64_t coordinate :
             {uint64_t{block.value()}, uint64_t{layer.value()}, uint64_t{outer}}) {
          of_chunk = hashed(of_chunk, coordinate);
        }
        for (uint64_t i = 0; i < bytes_.size() / width; ++i) {
          const uint64_t value = hashed(of_chunk, first_element + i);
          std::memcpy(bytes_.data() + i * width, &value, width);
        }
        break;
      }
    }
    return bytes_;
  }

 private:
  static uint64_t hashed(uint64_t before, uint64_t coordinate) {
    uint64_t state = before ^ coordinate;
    return splitmix64(state);
  }

  const LayoutConfig& config_;
  const FillPattern pattern_;
  std::vector<std::byte> bytes_;
};

}  // namespace internal

namespace {

Status check(const LayoutView& view, std::span<const BlockId> ids) {
  const StorageKind kind = view.layout().storage_kind();
  if (kind != StorageKind::kSystem && kind != StorageKind::kPinned) {
    return make_error(ErrorCode::kUnsupported,
                      format_text("the host fills and compares its own memory, not {} memory: copy "
                                  "the blocks",
                                  kind));
  }
  const uint32_t num_blocks = view.layout().config().num_blocks;
  for (const BlockId id : ids) {
    if (id.value() >= num_blocks) {
      return make_error(ErrorCode::kInvalidArgument,
                        format_text("block {} of a layout of {} blocks", id, num_blocks));
    }
  }
  return {};
}

/// Calls visit(position, address, first element in the chunk) for each run of a block that the view
/// has, in canonical order, until it returns false.
template <class F>
bool for_each_run(const LayoutView& view, BlockId block, F&& visit) {
  const LayoutConfig& config = view.layout().config();
  const bool known = view.kv_block_layout().is_known();
  const uint64_t head_dim = known ? config.inner_dim / *config.num_heads : 0;
  for (uint64_t index = view.layers().begin(); index < view.layers().end(); ++index) {
    const LayerId layer(static_cast<uint16_t>(index));
    const uint32_t map_index = view.layout().page_map_of(layer);
    const PageMap& map = view.layout().page_maps()[map_index];
    const BlockStrides strides = view.strides(map_index);
    std::byte* base =
        map.region().base() + view.offset(layer, strides) + block.value() * map.block_stride();
    for (uint32_t outer = 0; outer < config.outer_dim; ++outer) {
      for (uint32_t page = 0; page < view.page_size(); ++page) {
        for (uint32_t head = 0; head < view.heads().count; ++head) {
          const FillMismatch at{.block = block,
                                .layer = layer,
                                .outer = outer,
                                .head = view.heads().first + head,
                                .page = page};
          std::byte* run = base + outer * strides.outer + page * strides.page + head * strides.head;
          const uint64_t element =
              known ? uint64_t{page} * config.inner_dim + at.head * head_dim : 0;
          if (!visit(at, run, element)) return false;
        }
      }
    }
  }
  return true;
}

}  // namespace

Status fill(const LayoutView& view, std::span<const BlockId> ids, const FillPattern& pattern) {
  KVBM_TRY(check(view, ids));
  internal::PatternBytes bytes(view, pattern);
  for (const BlockId id : ids) {
    for_each_run(view, id, [&](const FillMismatch& at, std::byte* run, uint64_t element) {
      std::ranges::copy(bytes.of(id, at.layer, at.outer, element), run);
      return true;
    });
  }
  return {};
}

Result<std::optional<FillMismatch>> find_fill_mismatch(const LayoutView& view,
                                                       std::span<const BlockId> ids,
                                                       std::span<const BlockId> pattern_of,
                                                       const FillPattern& pattern) {
  if (ids.size() != pattern_of.size()) {
    return make_error(ErrorCode::kInvalidArgument, format_text("{} blocks and the patterns of {}",
                                                               ids.size(), pattern_of.size()));
  }
  KVBM_TRY(check(view, ids));
  internal::PatternBytes bytes(view, pattern);
  std::optional<FillMismatch> found;
  for (size_t i = 0; i < ids.size() && !found; ++i) {
    for_each_run(view, ids[i], [&](const FillMismatch& at, const std::byte* run, uint64_t element) {
      const std::span<const std::byte> expected =
          bytes.of(pattern_of[i], at.layer, at.outer, element);
      if (std::memcmp(run, expected.data(), expected.size()) == 0) return true;
      found = at;
      return false;
    });
  }
  return found;
}

}  // namespace kvbm
