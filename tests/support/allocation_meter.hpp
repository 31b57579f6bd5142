// SPDX-License-Identifier: Apache-2.0
// AllocationMeter: what this thread has asked of operator new. A program that uses it also compiles
// tests/support/allocation_meter.cpp, which replaces operator new and delete.
#pragma once

#include <cstddef>

namespace kvbm::testing {

/// Counts from its creation on. One at a time a thread.
class AllocationMeter {
 public:
  AllocationMeter() noexcept;

  [[nodiscard]] size_t count() const noexcept;
  [[nodiscard]] size_t largest_bytes() const noexcept;
};

}  // namespace kvbm::testing
