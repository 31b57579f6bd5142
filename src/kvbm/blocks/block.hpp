// SPDX-License-Identifier: Apache-2.0
// The guards of a block. The state of a block is the type of its guard:
//
//   allocate            complete(key)            register_blocks
//   ─────────▶ MutableBlock ─────────▶ CompleteBlock ─────────▶ ImmutableBlock ⇄ WeakBlock
//                           ◀───────── reset()
//
// A dropped MutableBlock or CompleteBlock goes back to the free list. When the last ImmutableBlock
// of a block is dropped, the block becomes idle: it keeps its content and can be matched until it
// is evicted.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "kvbm/base/ids.hpp"
#include "kvbm/blocks/block_key.hpp"

namespace kvbm {

class CompleteBlock;
class ImmutableBlock;
class WeakBlock;

namespace internal {
struct PoolState;
struct GuardAccess;

/// What a guard holds: a slot of a pool, and a share of the state that keeps both alive. 16 bytes.
/// `extra` belongs to the guard that uses it.
class SlotRef {
 public:
  SlotRef(PoolState* pool, uint32_t block, uint32_t extra = 0) noexcept
      : pool_(pool), block_(block), extra_(extra) {}
  SlotRef(SlotRef&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)), block_(other.block_), extra_(other.extra_) {}
  SlotRef& operator=(SlotRef&&) = delete;

  void swap(SlotRef& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(block_, other.block_);
    std::swap(extra_, other.extra_);
  }
  [[nodiscard]] PoolState* take() noexcept { return std::exchange(pool_, nullptr); }
  [[nodiscard]] bool has_value() const noexcept { return pool_ != nullptr; }
  /// Contract: not moved from.
  [[nodiscard]] PoolState& pool() const {
    KVBM_CONTRACT(pool_ != nullptr, "the guard was moved from");
    return *pool_;
  }
  [[nodiscard]] BlockId block_id() const {
    KVBM_CONTRACT(pool_ != nullptr, "the guard was moved from");
    return BlockId(block_);
  }
  [[nodiscard]] uint32_t block() const noexcept { return block_; }
  [[nodiscard]] uint32_t extra() const noexcept { return extra_; }

 private:
  PoolState* pool_;
  uint32_t block_;
  uint32_t extra_;
};
}  // namespace internal

/// A block that its holder may fill. Nobody else can see it.
/// Ownership: move-only; dropping it frees the block. Every guard keeps the state of its pool
/// alive, so it may outlive the BlockPool and the BlockRegistry.
/// Errors: use after a move is a ContractViolation (true of every guard).
/// Threads: guards may be moved to, and dropped on, any thread; one guard, one thread at a time.
class [[nodiscard]] MutableBlock {
 public:
  MutableBlock(MutableBlock&&) noexcept = default;
  MutableBlock& operator=(MutableBlock&& other) noexcept {
    MutableBlock(std::move(other)).slot_.swap(slot_);
    return *this;
  }
  ~MutableBlock() {
    if (slot_.has_value()) drop();
  }

  [[nodiscard]] BlockId block_id() const { return slot_.block_id(); }
  [[nodiscard]] TierId tier() const;
  [[nodiscard]] GroupId group() const;

  /// Says what the block now holds. `parent` is the key of the block before it, if it has one.
  /// Takes no lock; nobody can find the block before it is registered. Contract: `key` is of the
  /// pool's group, `parent` is of the same namespace and group, and not `key`.
  [[nodiscard]] CompleteBlock complete(const BlockKey& key,
                                       const std::optional<BlockKey>& parent) &&;

 private:
  friend struct internal::GuardAccess;
  explicit MutableBlock(internal::SlotRef slot) noexcept : slot_(std::move(slot)) {}
  void drop() noexcept;

  internal::SlotRef slot_;
};

/// A filled block with a key, ready for BlockPool::register_blocks. Carries the keys itself.
/// Ownership, Errors, Threads: as MutableBlock.
class [[nodiscard]] CompleteBlock {
 public:
  CompleteBlock(CompleteBlock&&) noexcept = default;
  CompleteBlock& operator=(CompleteBlock&& other) noexcept {
    block_ = std::move(other.block_);
    key_ = other.key_;
    parent_ = other.parent_;
    return *this;
  }
  ~CompleteBlock() = default;

  [[nodiscard]] BlockId block_id() const { return block_.block_id(); }
  [[nodiscard]] TierId tier() const { return block_.tier(); }
  [[nodiscard]] const BlockKey& key() const noexcept { return key_; }
  [[nodiscard]] std::optional<BlockKey> parent() const {
    if (!parent_) return std::nullopt;
    return BlockKey{key_.ns, key_.group, *parent_};
  }

  /// Forgets the key.
  [[nodiscard]] MutableBlock reset() && { return std::move(block_); }

 private:
  friend class MutableBlock;
  friend struct internal::GuardAccess;
  CompleteBlock(MutableBlock block, const BlockKey& key, const std::optional<BlockKey>& parent)
      : block_(std::move(block)), key_(key) {
    if (parent) parent_ = parent->identity;
  }

  MutableBlock block_;
  BlockKey key_;
  std::optional<Identity> parent_;
};

/// A registered block that cannot be evicted while this is held: a pin. Its content does not
/// change.
/// Ownership, Errors, Threads: as MutableBlock; clone() makes another pin.
class [[nodiscard]] ImmutableBlock {
 public:
  ImmutableBlock(ImmutableBlock&&) noexcept = default;
  ImmutableBlock& operator=(ImmutableBlock&& other) noexcept {
    ImmutableBlock(std::move(other)).slot_.swap(slot_);
    return *this;
  }
  ~ImmutableBlock() {
    if (slot_.has_value()) drop();
  }

  /// The slot. A duplicate has its own.
  [[nodiscard]] BlockId block_id() const { return slot_.block_id(); }
  /// Stays valid as long as a guard of the block is held. Takes no lock.
  [[nodiscard]] const BlockKey& key() const;
  [[nodiscard]] TierId tier() const;
  /// Whether this is a second block with the same key in the same tier: it cannot be found, and is
  /// freed by its last drop.
  [[nodiscard]] bool is_duplicate() const;

  [[nodiscard]] ImmutableBlock clone() const;
  [[nodiscard]] WeakBlock downgrade() const;

 private:
  friend struct internal::GuardAccess;
  explicit ImmutableBlock(internal::SlotRef slot) noexcept : slot_(std::move(slot)) {}
  void drop() noexcept;

  internal::SlotRef slot_;
};

/// Remembers one registration of a block without keeping it.
/// Ownership, Errors, Threads: as MutableBlock, except that it pins nothing.
class WeakBlock {
 public:
  WeakBlock(WeakBlock&&) noexcept = default;
  WeakBlock& operator=(WeakBlock&& other) noexcept {
    WeakBlock(std::move(other)).slot_.swap(slot_);
    return *this;
  }
  ~WeakBlock() {
    if (slot_.has_value()) drop();
  }

  /// A pin, unless that very registration has ended: a block that was evicted since is not found
  /// even if its slot, or its key, is in use again.
  [[nodiscard]] std::optional<ImmutableBlock> upgrade() const;
  [[nodiscard]] WeakBlock clone() const;

 private:
  friend struct internal::GuardAccess;
  explicit WeakBlock(internal::SlotRef slot) noexcept : slot_(std::move(slot)) {}
  void drop() noexcept;

  internal::SlotRef slot_;  // extra: the generation
};

}  // namespace kvbm
