// SPDX-License-Identifier: Apache-2.0
// A layout has a config before it has a kind.
#include "kvbm/layout/layout_builder.hpp"

kvbm::LayoutMemoryStage<true> choose_kind(const kvbm::LayoutConfig& config) {
#ifdef KVBM_POSITIVE_CONTROL
  return kvbm::PhysicalLayout::builder("worker-0").with_config(config).fully_contiguous();
#else
  static_cast<void>(config);
  return kvbm::PhysicalLayout::builder("worker-0").fully_contiguous();
#endif
}
