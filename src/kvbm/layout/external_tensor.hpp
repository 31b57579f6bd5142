// SPDX-License-Identifier: Apache-2.0
// ExternalTensor: a tensor of an engine, as its framework describes it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvbm/base/result.hpp"
#include "kvbm/layout/layout_config.hpp"
#include "kvbm/layout/page_map.hpp"
#include "kvbm/memory/memory_region.hpp"

namespace kvbm {

/// What a dimension of a tensor is.
enum class TensorAxis : uint8_t {
  kBlock,
  kLayer,
  kOuter,
  kPage,
  kHead,
  kHeadDim,  ///< of one head; of all, if the tensor has no axis of heads
};

/// "block", "layer", "outer", "page", "head", "head_dim".
[[nodiscard]] std::string_view to_string(TensorAxis axis) noexcept;

/// Element [i0, i1, …] starts i0 * strides[0] + i1 * strides[1] + … elements after the start of
/// `region`. Units: elements, apart from `region`.
struct ExternalTensor {
  MemoryRegion region = {};  ///< from the first element on, as far as the tensor's storage goes
  uint32_t dtype_width_bytes = 2;
  std::vector<TensorAxis> axes = {};  ///< one for each dimension
  std::vector<uint64_t> shape = {};
  std::vector<int64_t> strides = {};
};

/// One page map a tensor. Without an axis of layers a tensor is one layer; layers are numbered
/// through in the order of the tensors. Outer and page may be missing where they have one entry.
/// If the config has num_heads, heads and tokens keep their own strides; else each chunk has to be
/// one run of bytes.
/// Errors: kInvalidArgument, naming the tensor and what is wrong: lists of different lengths, an
/// axis twice or missing, a size that is not the config's, another width, a stride below zero, head
/// dimensions that are not side by side, and what PageMap::create refuses.
[[nodiscard]] Result<std::vector<PageMap>> page_maps_of(const LayoutConfig& config,
                                                        std::span<const ExternalTensor> tensors);

}  // namespace kvbm
