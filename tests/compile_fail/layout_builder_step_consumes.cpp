// SPDX-License-Identifier: Apache-2.0
// A step takes the one before it away, so that no memory is handed out twice.
#include "kvbm/layout/layout_builder.hpp"

kvbm::LayoutBuildStage allocate(kvbm::LayoutMemoryStage<true>& stage) {
#ifdef KVBM_POSITIVE_CONTROL
  return std::move(stage).allocate_system();
#else
  return stage.allocate_system();
#endif
}
