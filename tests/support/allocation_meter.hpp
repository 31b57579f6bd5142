// SPDX-License-Identifier: Apache-2.0
// AllocationMeter: what this thread has asked of operator new; ProcessAllocationMeter: what all
// threads have; AllocationFailure: lets it fail. A program that uses them also compiles
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

/// What all threads have asked of operator new since its creation.
class ProcessAllocationMeter {
 public:
  ProcessAllocationMeter() noexcept;

  [[nodiscard]] size_t count() const noexcept;

 private:
  size_t before_;
};

/// While it lives, operator new on this thread gives `after` allocations and then none: it throws
/// std::bad_alloc. One at a time a thread.
class AllocationFailure {
 public:
  explicit AllocationFailure(size_t after = 0) noexcept;
  ~AllocationFailure();
  AllocationFailure(const AllocationFailure&) = delete;
  AllocationFailure& operator=(const AllocationFailure&) = delete;

  [[nodiscard]] size_t num_refused() const noexcept;
};

}  // namespace kvbm::testing
