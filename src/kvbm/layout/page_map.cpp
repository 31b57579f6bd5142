// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/page_map.hpp"

#include <limits>
#include <optional>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/layout/internal/overlap.hpp"

namespace kvbm {
namespace {

tl::unexpected<Error> invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, "page map: " + std::move(message));
}

// The end of the last chunk; nothing if it leaves 63 bits.
std::optional<uint64_t> end_of(const PageMapSpec& spec) {
  std::optional<uint64_t> end = spec.base_offset;
  const auto add = [&end](uint64_t steps, uint64_t stride) {
    const std::optional<uint64_t> distance = internal::checked_mul(steps, stride);
    end = end && distance ? internal::checked_add(*end, *distance) : std::nullopt;
  };
  add(spec.num_blocks - 1, spec.block_stride);
  add(spec.layers.count - 1, spec.layer_stride);
  add(spec.outer_dim - 1, spec.outer_stride);
  add(1, spec.chunk_bytes);
  if (end && *end > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
  return end;
}

}  // namespace

Result<PageMap> PageMap::create(const PageMapSpec& spec) {
  if (spec.num_blocks == 0) return invalid("num_blocks is 0");
  if (spec.layers.count == 0) return invalid("it holds no layer");
  if (spec.layers.end() > 65536) {
    return invalid(format_text("layer {} is beyond the 65536 layers that have a LayerId",
                               spec.layers.end() - 1));
  }
  if (spec.outer_dim != 1 && spec.outer_dim != 2) {
    return invalid(format_text("outer_dim is {}, not 1 or 2", spec.outer_dim));
  }
  if (spec.chunk_bytes == 0) return invalid("chunk_bytes is 0");

  const std::optional<uint64_t> end = end_of(spec);
  if (!end) return invalid("the strides lead beyond 2^63 bytes");
  if (*end > spec.region.size_bytes()) {
    return invalid(
        format_text("the last chunk ends at byte {} of a region of {} bytes ({} blocks, {} layers)",
                    *end, spec.region.size_bytes(), spec.num_blocks, spec.layers.count));
  }
  if (const auto found = internal::find_overlap(spec)) {
    return invalid(
        format_text("chunks overlap: two of {} bytes that are {} blocks, {} layers and {} outer "
                    "apart (strides {}, {}, {})",
                    spec.chunk_bytes, found->blocks, found->layers, found->outers,
                    spec.block_stride, spec.layer_stride, spec.outer_stride));
  }
  PageMapSpec clean = spec;
  // Strides that are not used are zero, so that equal maps look equal.
  if (clean.num_blocks == 1) clean.block_stride = 0;
  if (clean.layers.count == 1) clean.layer_stride = 0;
  if (clean.outer_dim == 1) clean.outer_stride = 0;
  return PageMap(clean);
}

uint64_t PageMap::offset(BlockId block, LayerId layer, uint32_t outer) const {
  KVBM_CONTRACT(block.value() < spec_.num_blocks,
                format_text("block {} of a page map of {} blocks", block, spec_.num_blocks));
  KVBM_CONTRACT(holds(layer), format_text("layer {} is not in layers {} to {} of the page map",
                                          layer, spec_.layers.begin(), spec_.layers.end()));
  KVBM_CONTRACT(outer < spec_.outer_dim,
                format_text("outer {} of a page map of {}", outer, spec_.outer_dim));
  return spec_.base_offset + block.value() * spec_.block_stride +
         (layer.value() - spec_.layers.begin()) * spec_.layer_stride + outer * spec_.outer_stride;
}

MemoryRegion PageMap::chunk(BlockId block, LayerId layer, uint32_t outer) const {
  return spec_.region.slice(offset(block, layer, outer), spec_.chunk_bytes);
}

uint64_t PageMap::end_byte() const noexcept {
  return spec_.base_offset + (spec_.num_blocks - 1) * spec_.block_stride +
         (spec_.layers.count - 1) * spec_.layer_stride +
         (spec_.outer_dim - 1) * spec_.outer_stride + spec_.chunk_bytes;
}

}  // namespace kvbm
