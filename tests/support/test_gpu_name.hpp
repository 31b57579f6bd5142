// SPDX-License-Identifier: Apache-2.0
// test_gpu_name: the GPU that tests use where there are several, by its name. For every build.
#pragma once

#include <string>

#include "kvbm/runtime/devices.hpp"

namespace kvbm::testing {

/// "cuda:1": the last one, so that nothing passes that takes the first for granted. "cuda:0" where
/// there is none.
inline std::string test_gpu_name() {
  static const std::string name = [] {
    const auto all = find_accelerators();
    return all && !all->empty() ? all->back().device : std::string("cuda:0");
  }();
  return name;
}

}  // namespace kvbm::testing
