// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/external_tensor.hpp"

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

tl::unexpected<Error> invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, std::move(message));
}

/// One dimension. Units: `stride` is bytes.
struct Dimension {
  uint64_t size = 1;
  uint64_t stride = 0;
};

/// The dimension of an axis; one of a single entry if the tensor has none.
/// Errors: kInvalidArgument (a stride below zero or beyond 63 bits).
Result<Dimension> dimension_of(const ExternalTensor& tensor, TensorAxis axis) {
  const auto found = std::ranges::find(tensor.axes, axis);
  if (found == tensor.axes.end()) return Dimension{};
  const auto index = static_cast<size_t>(found - tensor.axes.begin());
  Dimension dimension{.size = tensor.shape[index], .stride = 0};
  if (dimension.size == 1) return dimension;
  const int64_t stride = tensor.strides[index];
  const auto bytes =
      stride < 0 ? std::nullopt
                 : internal::checked_mul(static_cast<uint64_t>(stride), tensor.dtype_width_bytes);
  if (!bytes) return invalid(format_text("the axis {} has the stride {}", axis, stride));
  dimension.stride = *bytes;
  return dimension;
}

Status check_size(TensorAxis axis, uint64_t found, uint64_t expected) {
  if (found == expected) return {};
  return invalid(
      format_text("the axis {} has {} entries, the config asks for {}", axis, found, expected));
}

Status check_axes(const LayoutConfig& config, const ExternalTensor& tensor) {
  if (tensor.axes.size() != tensor.shape.size() || tensor.axes.size() != tensor.strides.size()) {
    return invalid(format_text("it has {} axes, {} sizes and {} strides", tensor.axes.size(),
                               tensor.shape.size(), tensor.strides.size()));
  }
  for (size_t i = 0; i < tensor.axes.size(); ++i) {
    if (std::count(tensor.axes.begin(), tensor.axes.end(), tensor.axes[i]) > 1) {
      return invalid(format_text("the axis {} is there twice", tensor.axes[i]));
    }
  }
  for (const TensorAxis needed : {TensorAxis::kBlock, TensorAxis::kHeadDim}) {
    if (std::ranges::find(tensor.axes, needed) == tensor.axes.end()) {
      return invalid(format_text("the axis {} is missing", needed));
    }
  }
  if (tensor.dtype_width_bytes != config.dtype_width_bytes) {
    return invalid(format_text("its elements have {} bytes, those of the config {}",
                               tensor.dtype_width_bytes, config.dtype_width_bytes));
  }
  return {};
}

/// Requires: a valid config. `first_layer` is that of the tensor.
Result<PageMap> page_map_of(const LayoutConfig& config, const ExternalTensor& tensor,
                            uint64_t first_layer) {
  KVBM_TRY(check_axes(config, tensor));
  KVBM_ASSIGN_OR_RETURN(const Dimension block, dimension_of(tensor, TensorAxis::kBlock));
  KVBM_ASSIGN_OR_RETURN(const Dimension layer, dimension_of(tensor, TensorAxis::kLayer));
  KVBM_ASSIGN_OR_RETURN(const Dimension outer, dimension_of(tensor, TensorAxis::kOuter));
  KVBM_ASSIGN_OR_RETURN(const Dimension page, dimension_of(tensor, TensorAxis::kPage));
  KVBM_ASSIGN_OR_RETURN(Dimension head, dimension_of(tensor, TensorAxis::kHead));
  KVBM_ASSIGN_OR_RETURN(const Dimension head_dim, dimension_of(tensor, TensorAxis::kHeadDim));

  KVBM_TRY(check_size(TensorAxis::kBlock, block.size, config.num_blocks));
  KVBM_TRY(check_size(TensorAxis::kOuter, outer.size, config.outer_dim));
  KVBM_TRY(check_size(TensorAxis::kPage, page.size, config.page_size));
  if (layer.size == 0 || layer.size > config.num_layers - first_layer) {
    return invalid(format_text("the axis layer has {} entries, from layer {} of {} on", layer.size,
                               first_layer, config.num_layers));
  }
  if (head_dim.size > 1 && head_dim.stride != config.dtype_width_bytes) {
    return invalid("the elements of a head are not side by side");
  }
  const bool has_heads = std::ranges::find(tensor.axes, TensorAxis::kHead) != tensor.axes.end();
  if (has_heads && !config.num_heads) {
    return invalid("it has an axis head, and the config has no num_heads");
  }
  if (has_heads) {
    KVBM_TRY(check_size(TensorAxis::kHead, head.size, *config.num_heads));
    KVBM_TRY(check_size(TensorAxis::kHeadDim, head_dim.size, config.inner_dim / *config.num_heads));
  } else {
    KVBM_TRY(check_size(TensorAxis::kHeadDim, head_dim.size, config.inner_dim));
  }

  PageMapSpec spec{
      .region = tensor.region,
      .num_blocks = config.num_blocks,
      .block_stride = block.stride,
      .layers = {LayerId(static_cast<uint16_t>(first_layer)), static_cast<uint32_t>(layer.size)},
      .layer_stride = layer.stride,
      .outer_dim = config.outer_dim,
      .outer_stride = outer.stride};
  if (config.num_heads) {
    spec.num_heads = *config.num_heads;
    spec.head_stride = has_heads ? head.stride : config.head_bytes();
    spec.page_size = config.page_size;
    spec.page_stride = page.stride;
    spec.run_bytes = config.head_bytes();
  } else {
    spec.run_bytes = config.chunk_bytes();
    const uint64_t token_bytes = uint64_t{config.inner_dim} * config.dtype_width_bytes;
    if (page.size > 1 && page.stride != token_bytes) {
      return invalid("the tokens of a chunk are not side by side: set num_heads in the config");
    }
  }
  return PageMap::create(spec);
}

}  // namespace

std::string_view to_string(TensorAxis axis) noexcept {
  switch (axis) {
    case TensorAxis::kBlock:
      return "block";
    case TensorAxis::kLayer:
      return "layer";
    case TensorAxis::kOuter:
      return "outer";
    case TensorAxis::kPage:
      return "page";
    case TensorAxis::kHead:
      return "head";
    case TensorAxis::kHeadDim:
      return "head_dim";
  }
  return "unknown";
}

Result<std::vector<PageMap>> page_maps_of(const LayoutConfig& config,
                                          std::span<const ExternalTensor> tensors) {
  KVBM_TRY(config.validate());
  if (tensors.empty()) return invalid("an engine's layout needs at least one tensor");
  std::vector<PageMap> maps;
  maps.reserve(tensors.size());
  uint64_t next_layer = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (next_layer == config.num_layers) {
      return invalid(format_text("{} tensors: the first {} have all {} layers already",
                                 tensors.size(), i, config.num_layers));
    }
    Result<PageMap> map = page_map_of(config, tensors[i], next_layer);
    if (!map) return make_error(std::move(map).error().with_context(format_text("tensor {}", i)));
    next_layer += map->layers().count;
    maps.push_back(*std::move(map));
  }
  return maps;
}

}  // namespace kvbm
