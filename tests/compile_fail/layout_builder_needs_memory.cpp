// SPDX-License-Identifier: Apache-2.0
// A layout without memory cannot be built.
#include "kvbm/layout/layout_builder.hpp"

kvbm::Result<kvbm::PhysicalLayout> build(kvbm::LayoutMemoryStage<true> stage) {
#ifdef KVBM_POSITIVE_CONTROL
  return std::move(stage).allocate_system().build();
#else
  return std::move(stage).build();
#endif
}
