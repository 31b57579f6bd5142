// SPDX-License-Identifier: Apache-2.0
// MemoryPool: memory for small objects that come and go, so that a steady state allocates nothing.
#pragma once

#include <cstddef>
#include <memory>
#include <memory_resource>
#include <utility>

namespace kvbm {

/// Null: operator new. What is freed stays for the next object; all of it goes with the last holder
/// of the pool, which every object made from it is. Threads: any thread.
using MemoryPool = std::shared_ptr<std::pmr::memory_resource>;

[[nodiscard]] MemoryPool make_memory_pool();

/// Takes from a pool, and keeps it.
template <class T>
class PoolAllocator {
 public:
  using value_type = T;

  explicit PoolAllocator(MemoryPool pool) noexcept : pool_(std::move(pool)) {}
  template <class U>
  PoolAllocator(const PoolAllocator<U>& other) noexcept  // NOLINT(google-explicit-constructor)
      : pool_(other.pool()) {}

  // A container may ask for pointers, which is what is meant then.
  // NOLINTBEGIN(bugprone-sizeof-expression)
  [[nodiscard]] T* allocate(size_t count) {
    return static_cast<T*>(resource().allocate(count * sizeof(T), alignof(T)));
  }
  void deallocate(T* data, size_t count) noexcept {
    resource().deallocate(data, count * sizeof(T), alignof(T));
  }
  // NOLINTEND(bugprone-sizeof-expression)

  [[nodiscard]] const MemoryPool& pool() const noexcept { return pool_; }
  friend bool operator==(const PoolAllocator&, const PoolAllocator&) = default;

 private:
  [[nodiscard]] std::pmr::memory_resource& resource() const noexcept {
    return pool_ ? *pool_ : *std::pmr::new_delete_resource();
  }

  MemoryPool pool_;
};

/// An object and its count, in one piece of the pool's memory.
template <class T, class... Args>
[[nodiscard]] std::shared_ptr<T> make_pooled(const MemoryPool& pool, Args&&... args) {
  return std::allocate_shared<T>(PoolAllocator<T>(pool), std::forward<Args>(args)...);
}

}  // namespace kvbm
