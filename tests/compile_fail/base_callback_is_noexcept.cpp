// SPDX-License-Identifier: Apache-2.0
// What runs when an operation ends must not throw: nobody is there to catch it.
#include "kvbm/base/completion.hpp"

void watch(const kvbm::Completion& completion) {
#ifdef KVBM_POSITIVE_CONTROL
  completion.on_done([](const kvbm::Status&) noexcept {});
#else
  completion.on_done([](const kvbm::Status&) {});
#endif
}
