// SPDX-License-Identifier: Apache-2.0
#include "tests/support/allocation_meter.hpp"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>

namespace {
std::atomic<size_t> of_all_threads = 0;
thread_local size_t allocations = 0;
thread_local size_t largest = 0;
thread_local bool failing = false;
thread_local size_t left = 0;     // while failing: allocations that still succeed
thread_local size_t refused = 0;  // while failing

void* allocate(size_t size, size_t alignment) {
  if (failing && left == 0) {
    ++refused;
    throw std::bad_alloc();
  }
  if (failing) --left;
  ++allocations;
  of_all_threads.fetch_add(1, std::memory_order_relaxed);
  largest = std::max(largest, size);
  const size_t rounded = (std::max<size_t>(size, 1) + alignment - 1) / alignment * alignment;
  if (void* memory = std::aligned_alloc(alignment, rounded)) return memory;
  throw std::bad_alloc();
}
}  // namespace

void* operator new(size_t size) { return allocate(size, alignof(std::max_align_t)); }
void* operator new(size_t size, std::align_val_t alignment) {
  return allocate(size, static_cast<size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t /*size*/) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t /*alignment*/) noexcept { std::free(memory); }
void operator delete(void* memory, size_t /*size*/, std::align_val_t /*alignment*/) noexcept {
  std::free(memory);
}

namespace kvbm::testing {

AllocationMeter::AllocationMeter() noexcept {
  allocations = 0;
  largest = 0;
}

size_t AllocationMeter::count() const noexcept { return allocations; }
size_t AllocationMeter::largest_bytes() const noexcept { return largest; }

ProcessAllocationMeter::ProcessAllocationMeter() noexcept
    : before_(of_all_threads.load(std::memory_order_relaxed)) {}

size_t ProcessAllocationMeter::count() const noexcept {
  return of_all_threads.load(std::memory_order_relaxed) - before_;
}

AllocationFailure::AllocationFailure(size_t after) noexcept {
  left = after;
  refused = 0;
  failing = true;
}

AllocationFailure::~AllocationFailure() { failing = false; }

size_t AllocationFailure::num_refused() const noexcept { return refused; }

}  // namespace kvbm::testing
