// SPDX-License-Identifier: Apache-2.0
// How much memory a layout takes depends on its kind.
#include "kvbm/layout/layout_builder.hpp"

kvbm::LayoutBuildStage allocate(kvbm::LayoutKindStage stage) {
#ifdef KVBM_POSITIVE_CONTROL
  return std::move(stage).fully_contiguous().allocate_system();
#else
  return std::move(stage).allocate_system();
#endif
}
