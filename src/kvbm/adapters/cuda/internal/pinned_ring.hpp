// SPDX-License-Identifier: Apache-2.0
// PinnedRing: memory that the host writes and the GPU reads, lent for as long as a copy runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>

#include "kvbm/base/mutex.hpp"
#include "kvbm/base/ring.hpp"

namespace kvbm::internal {

/// Slices come from the front and are free again in whatever order their holders let go; the memory
/// of one can be lent again when all older ones are free as well. Nothing waits, and a ring of
/// steady use allocates nothing.
/// Ownership: borrows the memory. The ring outlives its slices.
/// Threads: any thread.
class PinnedRing {
 public:
  /// Ownership: move-only; lets go on destruction.
  class Slice {
   public:
    Slice() noexcept = default;
    Slice(Slice&& other) noexcept
        : ring_(std::exchange(other.ring_, nullptr)),
          ticket_(other.ticket_),
          bytes_(std::exchange(other.bytes_, {})) {}
    Slice& operator=(Slice&& other) noexcept {
      if (this != &other) {
        reset();
        ring_ = std::exchange(other.ring_, nullptr);
        ticket_ = other.ticket_;
        bytes_ = std::exchange(other.bytes_, {});
      }
      return *this;
    }
    Slice(const Slice&) = delete;
    Slice& operator=(const Slice&) = delete;
    ~Slice() { reset(); }

    /// Starts at a multiple of kAlignment.
    [[nodiscard]] std::span<std::byte> bytes() const noexcept { return bytes_; }
    void reset() noexcept;

   private:
    friend class PinnedRing;
    Slice(PinnedRing& ring, uint64_t ticket, std::span<std::byte> bytes) noexcept
        : ring_(&ring), ticket_(ticket), bytes_(bytes) {}

    PinnedRing* ring_ = nullptr;
    uint64_t ticket_ = 0;
    std::span<std::byte> bytes_;
  };

  static constexpr uint64_t kAlignment = 256;

  /// Requires: starts at a multiple of kAlignment.
  explicit PinnedRing(std::span<std::byte> memory) : memory_(memory) {}

  /// None if there is no room now: some of what is lent has to come back first.
  [[nodiscard]] std::optional<Slice> take(uint64_t size_bytes);

  [[nodiscard]] std::span<std::byte> memory() const noexcept { return memory_; }
  [[nodiscard]] uint64_t capacity_bytes() const noexcept { return memory_.size(); }

 private:
  struct Lent {
    uint64_t end = 0;  ///< offset behind it
    bool is_free = false;
  };

  void give_back(uint64_t ticket) noexcept;

  const std::span<std::byte> memory_;
  Mutex mutex_{LockRank::kDevice, "device.pinned_ring", 0};
  Ring<Lent> lent_ KVBM_GUARDED_BY(mutex_);  // the oldest first
  uint64_t first_ticket_ KVBM_GUARDED_BY(mutex_) = 0;
  uint64_t head_ KVBM_GUARDED_BY(mutex_) = 0;  // where the next slice may start
  uint64_t tail_ KVBM_GUARDED_BY(mutex_) = 0;  // where the oldest lent byte is
};

}  // namespace kvbm::internal
