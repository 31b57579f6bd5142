// SPDX-License-Identifier: Apache-2.0
// The strides of an engine's tensors are their format.
#include "kvbm/layout/layout_builder.hpp"

kvbm::LayoutBuildStage attach(kvbm::LayoutTensorStage stage) {
#ifdef KVBM_POSITIVE_CONTROL
  return std::move(stage).with_external_device_regions({});
#else
  return std::move(stage)
      .with_block_layout(kvbm::KvBlockLayout::kOperationalNHD)
      .with_external_device_regions({});
#endif
}
