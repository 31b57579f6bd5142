// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/layout_config.hpp"

#include <bit>
#include <limits>

#include "kvbm/base/text.hpp"

namespace kvbm {
namespace internal {

std::optional<uint64_t> checked_add(uint64_t a, uint64_t b) noexcept {
  uint64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

std::optional<uint64_t> checked_mul(uint64_t a, uint64_t b) noexcept {
  uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

std::optional<uint64_t> checked_round_up(uint64_t value, uint64_t alignment) noexcept {
  const std::optional<uint64_t> sum = checked_add(value, alignment - 1);
  if (!sum) return std::nullopt;
  return *sum & ~(alignment - 1);
}

}  // namespace internal

namespace {

// What fits a signed 64-bit file offset.
constexpr uint64_t kMaxBytes = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());

Status invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, std::move(message));
}

}  // namespace

Status LayoutConfig::validate() const {
  if (num_blocks == 0) return invalid("layout config: num_blocks is 0");
  if (num_layers == 0 || num_layers > 65536) {
    return invalid(format_text("layout config: num_layers is {}, not 1 to 65536", num_layers));
  }
  if (outer_dim != 1 && outer_dim != 2) {
    return invalid(format_text("layout config: outer_dim is {}, not 1 or 2", outer_dim));
  }
  if (page_size == 0) return invalid("layout config: page_size is 0");
  if (inner_dim == 0) return invalid("layout config: inner_dim is 0");
  if (dtype_width_bytes > 8 || !std::has_single_bit(dtype_width_bytes)) {
    return invalid(
        format_text("layout config: dtype_width_bytes is {}, not 1, 2, 4 or 8", dtype_width_bytes));
  }
  if (num_heads && (*num_heads == 0 || inner_dim % *num_heads != 0)) {
    return invalid(format_text("layout config: num_heads is {}, which does not divide inner_dim {}",
                               *num_heads, inner_dim));
  }
  if (!std::has_single_bit(alignment)) {
    return invalid(format_text("layout config: alignment is {}, not a power of two", alignment));
  }

  // The largest layout of all kinds: every chunk stored apart and aligned.
  std::optional<uint64_t> bytes = internal::checked_mul(page_size, inner_dim);
  if (bytes) bytes = internal::checked_mul(*bytes, dtype_width_bytes);
  if (bytes) bytes = internal::checked_round_up(*bytes, alignment);
  if (bytes) bytes = internal::checked_mul(*bytes, outer_dim);
  if (bytes) bytes = internal::checked_mul(*bytes, num_layers);
  if (bytes) bytes = internal::checked_mul(*bytes, num_blocks);
  if (!bytes || *bytes > kMaxBytes) {
    return invalid(format_text(
        "layout config: num_blocks {} x num_layers {} x outer_dim {} x page_size {} x "
        "inner_dim {} x dtype_width_bytes {} with alignment {} is 2^63 bytes or more",
        num_blocks, num_layers, outer_dim, page_size, inner_dim, dtype_width_bytes, alignment));
  }
  return {};
}

Status check_same_block_shape(const LayoutConfig& src, const LayoutConfig& dst) {
  std::string differences;
  const auto compare = [&](const char* field, uint32_t a, uint32_t b) {
    if (a == b) return;
    if (!differences.empty()) differences += ", ";
    differences += format_text("{} {} and {}", field, a, b);
  };
  compare("num_layers", src.num_layers, dst.num_layers);
  compare("outer_dim", src.outer_dim, dst.outer_dim);
  compare("page_size", src.page_size, dst.page_size);
  compare("inner_dim", src.inner_dim, dst.inner_dim);
  compare("dtype_width_bytes", src.dtype_width_bytes, dst.dtype_width_bytes);
  if (src.num_heads && dst.num_heads) compare("num_heads", *src.num_heads, *dst.num_heads);
  if (differences.empty()) return {};
  return invalid("blocks of source and destination differ: " + differences);
}

Status check_layer_range(const LayoutConfig& config, LayerRange range) {
  if (range.count > 0 && range.begin() < config.num_layers &&
      range.count <= config.num_layers - range.begin()) {
    return {};
  }
  return invalid(
      format_text("{} layers from layer {} on are not inside the {} layers of the layout",
                  range.count, range.first, config.num_layers));
}

Status check_head_range(const LayoutConfig& config, HeadRange range) {
  if (!config.num_heads) {
    return invalid("heads are asked of a layout whose num_heads is not set");
  }
  if (range.count > 0 && range.end() <= *config.num_heads) return {};
  return invalid(format_text("{} heads from head {} on are not inside the {} heads of the layout",
                             range.count, range.first, *config.num_heads));
}

Status check_kv_block_layout(const LayoutConfig& config, const KvBlockLayout& format) {
  if (!format.is_known() || config.num_heads) return {};
  return invalid(
      format_text("the format {} needs the number of heads: set num_heads", to_string(format)));
}

Status ModelLayout::validate() const {
  if (groups.empty()) return invalid("a model layout needs a layer group");
  for (size_t i = 0; i < groups.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (groups[j].id == groups[i].id) {
        return invalid(format_text("layer group {} is there twice", groups[i].id));
      }
    }
    if (Status status = groups[i].config.validate(); !status) {
      return make_error(
          std::move(status).error().with_context(format_text("layer group {}", groups[i].id)));
    }
  }
  return {};
}

const LayoutConfig* ModelLayout::find(GroupId group) const noexcept {
  for (const Group& candidate : groups) {
    if (candidate.id == group) return &candidate.config;
  }
  return nullptr;
}

}  // namespace kvbm
