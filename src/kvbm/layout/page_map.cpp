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

// The end of the last run; nothing if it leaves 63 bits.
std::optional<uint64_t> end_of(const PageMapSpec& spec) {
  std::optional<uint64_t> end = spec.base_offset;
  const auto add = [&end](uint64_t steps, uint64_t stride) {
    const std::optional<uint64_t> distance = internal::checked_mul(steps, stride);
    end = end && distance ? internal::checked_add(*end, *distance) : std::nullopt;
  };
  add(spec.num_blocks - 1, spec.block_stride);
  add(spec.layers.count - 1, spec.layer_stride);
  add(spec.outer_dim - 1, spec.outer_stride);
  add(spec.num_heads - 1, spec.head_stride);
  add(spec.page_size - 1, spec.page_stride);
  add(1, spec.run_bytes);
  if (end && *end > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
  return end;
}

Status check_counts(const PageMapSpec& spec) {
  if (spec.num_blocks == 0) return invalid("num_blocks is 0");
  if (spec.layers.count == 0) return invalid("it holds no layer");
  if (spec.layers.end() > 65536) {
    return invalid(format_text("layer {} is beyond the 65536 layers that have a LayerId",
                               spec.layers.end() - 1));
  }
  if (spec.outer_dim != 1 && spec.outer_dim != 2) {
    return invalid(format_text("outer_dim is {}, not 1 or 2", spec.outer_dim));
  }
  if (spec.num_heads == 0) return invalid("num_heads is 0");
  if (spec.page_size == 0) return invalid("page_size is 0");
  if (spec.run_bytes == 0) return invalid("run_bytes is 0");
  return {};
}

}  // namespace

uint64_t& BlockStrides::operator[](BlockAxis axis) noexcept {
  switch (axis) {
    case BlockAxis::kLayer:
      return layer;
    case BlockAxis::kOuter:
      return outer;
    case BlockAxis::kHead:
      return head;
    case BlockAxis::kPage:
      break;
  }
  return page;
}

uint64_t BlockStrides::operator[](BlockAxis axis) const noexcept {
  return const_cast<BlockStrides&>(*this)[axis];
}

Result<PageMap> PageMap::create(const PageMapSpec& spec) {
  internal::SearchSteps steps;
  return create(spec, steps);
}

Result<PageMap> PageMap::create(const PageMapSpec& spec, internal::SearchSteps& steps) {
  KVBM_TRY(check_counts(spec));
  const std::optional<uint64_t> end = end_of(spec);
  if (!end) return invalid("the strides lead beyond 2^63 bytes");
  if (*end > spec.region.size_bytes()) {
    return invalid(
        format_text("the last run ends at byte {} of a region of {} bytes ({} blocks, {} layers)",
                    *end, spec.region.size_bytes(), spec.num_blocks, spec.layers.count));
  }
  KVBM_ASSIGN_OR_RETURN(const std::optional<internal::RunDistance> found,
                        internal::find_overlap(spec, steps));
  if (found) {
    return invalid(
        format_text("runs overlap: two of {} bytes that are {} blocks, {} layers, {} outer, {} "
                    "heads and {} pages apart (strides {}, {}, {}, {}, {})",
                    spec.run_bytes, found->blocks, found->layers, found->outers, found->heads,
                    found->pages, spec.block_stride, spec.layer_stride, spec.outer_stride,
                    spec.head_stride, spec.page_stride));
  }
  PageMapSpec clean = spec;
  // Strides that are not used are zero, so that equal maps look equal.
  if (clean.num_blocks == 1) clean.block_stride = 0;
  if (clean.layers.count == 1) clean.layer_stride = 0;
  if (clean.outer_dim == 1) clean.outer_stride = 0;
  if (clean.num_heads == 1) clean.head_stride = 0;
  if (clean.page_size == 1) clean.page_stride = 0;
  return PageMap(clean);
}

uint32_t PageMap::count(BlockAxis axis) const noexcept {
  switch (axis) {
    case BlockAxis::kLayer:
      return spec_.layers.count;
    case BlockAxis::kOuter:
      return spec_.outer_dim;
    case BlockAxis::kHead:
      return spec_.num_heads;
    case BlockAxis::kPage:
      break;
  }
  return spec_.page_size;
}

bool PageMap::chunks_are_contiguous() const noexcept {
  const auto packed = [](uint32_t count, uint64_t stride, uint64_t bytes) {
    return count == 1 || stride == bytes;
  };
  const uint64_t run = spec_.run_bytes;
  const bool page_outermost = packed(spec_.num_heads, spec_.head_stride, run) &&
                              packed(spec_.page_size, spec_.page_stride, run * spec_.num_heads);
  const bool head_outermost = packed(spec_.page_size, spec_.page_stride, run) &&
                              packed(spec_.num_heads, spec_.head_stride, run * spec_.page_size);
  return page_outermost || head_outermost;
}

uint64_t PageMap::offset(BlockId block, LayerId layer, uint32_t outer, uint32_t head,
                         uint32_t page) const {
  KVBM_CONTRACT(block.value() < spec_.num_blocks,
                format_text("block {} of a page map of {} blocks", block, spec_.num_blocks));
  KVBM_CONTRACT(holds(layer), format_text("layer {} is not in layers {} to {} of the page map",
                                          layer, spec_.layers.begin(), spec_.layers.end()));
  KVBM_CONTRACT(outer < spec_.outer_dim,
                format_text("outer {} of a page map of {}", outer, spec_.outer_dim));
  KVBM_CONTRACT(head < spec_.num_heads,
                format_text("head {} of a page map of {}", head, spec_.num_heads));
  KVBM_CONTRACT(page < spec_.page_size,
                format_text("page {} of a page map of {}", page, spec_.page_size));
  return spec_.base_offset + block.value() * spec_.block_stride +
         (layer.value() - spec_.layers.begin()) * spec_.layer_stride + outer * spec_.outer_stride +
         head * spec_.head_stride + page * spec_.page_stride;
}

MemoryRegion PageMap::chunk(BlockId block, LayerId layer, uint32_t outer) const {
  KVBM_CONTRACT(chunks_are_contiguous(),
                "a chunk is asked of a page map in whose format it is not one run of bytes");
  return spec_.region.slice(offset(block, layer, outer), chunk_bytes());
}

uint64_t PageMap::end_byte() const noexcept {
  return spec_.base_offset + (spec_.num_blocks - 1) * spec_.block_stride +
         (spec_.layers.count - 1) * spec_.layer_stride +
         (spec_.outer_dim - 1) * spec_.outer_stride + (spec_.num_heads - 1) * spec_.head_stride +
         (spec_.page_size - 1) * spec_.page_stride + spec_.run_bytes;
}

}  // namespace kvbm
