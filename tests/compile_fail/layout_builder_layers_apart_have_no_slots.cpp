// SPDX-License-Identifier: Apache-2.0
// A slot of a file holds a whole block, so there is no file whose layers lie apart.
#include "kvbm/layout/layout_builder.hpp"

kvbm::LayoutBuildStage on_disk(kvbm::LayoutKindStage stage) {
#ifdef KVBM_POSITIVE_CONTROL
  return std::move(stage).fully_contiguous().allocate_disk({.directory = "/tmp"});
#else
  return std::move(stage)
      .layer_separate(kvbm::BlockDimension::kBlockIsFirst)
      .allocate_disk({.directory = "/tmp"});
#endif
}
