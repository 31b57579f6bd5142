// SPDX-License-Identifier: Apache-2.0
// KeyIndex: a hash table from keys to nodes, and the slab that the nodes live in.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvbm/base/ids.hpp"
#include "kvbm/blocks/block_key.hpp"
#include "kvbm/blocks/internal/eviction_policy.hpp"

namespace kvbm::internal {

/// A key that is resident in some tier, or the ghost of one that has resident children. What a
/// match reads of it: one cache line.
struct alignas(64) Node {
  BlockKey key;
  std::array<uint32_t, kNumTiers> slots;  ///< the block of each tier, or kNone

  [[nodiscard]] bool is_resident() const noexcept {
    return (slots[0] & slots[1] & slots[2] & slots[3]) != kNone;
  }
};

/// The rest of a node, which only registration and eviction read.
struct NodeLinks {
  uint32_t parent;  ///< a node, if the key is resident and has one; or kNone
  std::array<uint32_t, kNumTiers> num_children;  ///< direct children that are resident in each tier
  uint32_t fragment;                             ///< of the hash; of a free node: the next free one

  [[nodiscard]] bool has_children() const noexcept {
    return (num_children[0] | num_children[1] | num_children[2] | num_children[3]) != 0;
  }
};
static_assert(kNumTiers == 4 && sizeof(Node) == 64 && sizeof(NodeLinks) == 24);

/// Open addressing with linear probing. An entry is the index of a node and 32 bits of its key's
/// hash, which both pick the home of the entry (so that entries are sorted by them along a run) and
/// spare most comparisons; the key itself is always compared before a node is found. Nodes never
/// move. reserve() allocates; nothing else does.
/// Threads: one thread at a time, except node() of a node that its caller knows to stay.
class KeyIndex {
 public:
  KeyIndex() = default;
  KeyIndex(const KeyIndex&) = delete;
  KeyIndex& operator=(const KeyIndex&) = delete;
  ~KeyIndex();

  /// Room for `num_nodes` in all.
  void reserve(size_t num_nodes);

  [[nodiscard]] Node& node(uint32_t index) noexcept { return *node_at(index); }
  [[nodiscard]] const Node& node(uint32_t index) const noexcept { return *node_at(index); }
  [[nodiscard]] NodeLinks& links(uint32_t index) noexcept { return *links_at(index); }
  [[nodiscard]] const NodeLinks& links(uint32_t index) const noexcept { return *links_at(index); }

  /// The node of a key, or kNone. `hash` is hash_of(key).
  [[nodiscard]] uint32_t find(const BlockKey& key, uint64_t hash) const noexcept;
  /// The nodes of up to kBatch keys at once: memory is asked for ahead.
  static constexpr size_t kBatch = 32;
  void find_batch(std::span<const BlockKey> keys, std::span<uint32_t> nodes) const noexcept;
  void prefetch(uint64_t hash) const noexcept {
    __builtin_prefetch(&table_[home_of(fragment_of(hash))]);
  }

  /// A node for a key that has none: no parent, no slot, no children. Requires: room is reserved.
  [[nodiscard]] uint32_t insert(const BlockKey& key, uint64_t hash) noexcept;
  void erase(uint32_t index) noexcept;

  [[nodiscard]] size_t size() const noexcept { return size_; }
  /// Written so far: nodes that were never used cost no page.
  [[nodiscard]] size_t memory_bytes() const noexcept {
    return fresh_ * (sizeof(Node) + sizeof(NodeLinks)) + table_.capacity() * sizeof(Entry);
  }

 private:
  struct Entry {
    uint32_t fragment;
    uint32_t node;  // kNone: empty
  };
  // Segment i holds kFirstSegment << i nodes, uninitialised: what is never used costs no page.
  static constexpr uint32_t kFirstSegment = 1024;
  static constexpr uint32_t kFirstSegmentBits = std::bit_width(kFirstSegment) - 1;
  static constexpr size_t kNumSegments = 22;

  struct Place {
    uint32_t segment;
    uint32_t offset;
  };
  [[nodiscard]] static Place place_of(uint32_t index) noexcept {
    const uint32_t biased = index + kFirstSegment;
    const auto top_bit = static_cast<uint32_t>(std::bit_width(biased)) - 1;
    return {top_bit - kFirstSegmentBits, biased ^ (1U << top_bit)};
  }
  [[nodiscard]] Node* node_at(uint32_t index) const noexcept {
    const Place place = place_of(index);
    return nodes_[place.segment] + place.offset;
  }
  [[nodiscard]] NodeLinks* links_at(uint32_t index) const noexcept {
    const Place place = place_of(index);
    return links_[place.segment] + place.offset;
  }

  [[nodiscard]] static uint32_t fragment_of(uint64_t hash) noexcept {
    return static_cast<uint32_t>(hash >> 32);
  }
  [[nodiscard]] size_t home_of(uint32_t fragment) const noexcept {
    return static_cast<size_t>((uint64_t{fragment} * table_.size()) >> 32);
  }
  [[nodiscard]] size_t after(size_t position) const noexcept {
    return ++position == table_.size() ? 0 : position;
  }
  void put(Entry entry) noexcept;

  std::vector<Entry> table_;
  std::array<Node*, kNumSegments> nodes_{};
  std::array<NodeLinks*, kNumSegments> links_{};
  size_t capacity_ = 0;
  size_t size_ = 0;
  uint32_t fresh_ = 0;     // nodes from here on were never used
  uint32_t free_ = kNone;  // the first of the used ones that are free
};

}  // namespace kvbm::internal
