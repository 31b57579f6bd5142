// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/memory_pool.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <new>

#include <sanitizer/asan_interface.h>

#include "kvbm/base/mutex.hpp"

namespace kvbm {
namespace {

/// Lists of free pieces by size, powers of two; what is larger or oddly aligned goes by. One for
/// all threads: what one of them frees is the next object of any other. Freeing needs no memory.
/// (The pools of libstdc++ 12 end the program at the allocation after one that failed.)
class FreeLists final : public std::pmr::memory_resource {
 public:
  FreeLists() = default;
  FreeLists(const FreeLists&) = delete;
  FreeLists& operator=(const FreeLists&) = delete;
  ~FreeLists() override {
    for (Piece* piece : lists_) {
      while (piece != nullptr) ::operator delete(std::exchange(piece, piece->next));
    }
  }

 private:
  struct Piece {
    Piece* next = nullptr;
  };
  static constexpr size_t kLeast = 5;  // 32 bytes
  static constexpr size_t kMost = 12;  // 4 KiB

  static bool goes_by(size_t bytes, size_t alignment) noexcept {
    return bytes > size_t{1} << kMost || alignment > alignof(std::max_align_t);
  }
  static size_t list_of(size_t bytes) noexcept {
    return static_cast<size_t>(std::bit_width((std::max<size_t>(bytes, 1) - 1) >> kLeast));
  }
  static constexpr size_t piece_bytes(size_t list) noexcept { return size_t{1} << (kLeast + list); }

  void* do_allocate(size_t bytes, size_t alignment) override {
    if (goes_by(bytes, alignment)) return ::operator new(bytes, std::align_val_t(alignment));
    const size_t list = list_of(bytes);
    const MutexLock lock(mutex_);
    Piece* const piece = lists_[list];
    if (piece == nullptr) return ::operator new(piece_bytes(list));
    lists_[list] = piece->next;
    ASAN_UNPOISON_MEMORY_REGION(piece, piece_bytes(list));
    return piece;
  }
  void do_deallocate(void* data, size_t bytes, size_t alignment) override {
    if (goes_by(bytes, alignment)) return ::operator delete(data, std::align_val_t(alignment));
    const size_t list = list_of(bytes);
    const MutexLock lock(mutex_);
    auto* const piece = new (data) Piece{.next = lists_[list]};
    lists_[list] = piece;
    // A sanitizer sees who uses it from now on.
    ASAN_POISON_MEMORY_REGION(piece + 1, piece_bytes(list) - sizeof(Piece));
  }
  [[nodiscard]] bool do_is_equal(const memory_resource& other) const noexcept override {
    return this == &other;
  }

  Mutex mutex_{LockRank::kPool, "base.memory_pool"};
  std::array<Piece*, kMost - kLeast + 1> lists_ KVBM_GUARDED_BY(mutex_) = {};
};

}  // namespace

MemoryPool make_memory_pool() { return std::make_shared<FreeLists>(); }

}  // namespace kvbm
