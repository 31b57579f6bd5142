// SPDX-License-Identifier: Apache-2.0
#include "kvbm/blocks/internal/key_index.hpp"

#include <new>
#include <utility>

namespace kvbm::internal {

KeyIndex::~KeyIndex() {
  for (Node* const nodes : nodes_) ::operator delete(nodes, std::align_val_t(alignof(Node)));
  for (NodeLinks* const links : links_) ::operator delete(links);
}

void KeyIndex::reserve(size_t num_nodes) {
  for (size_t i = 0; capacity_ < num_nodes; ++i) {
    const size_t count = size_t{kFirstSegment} << i;
    if (nodes_[i] != nullptr && links_[i] != nullptr) continue;
    if (nodes_[i] == nullptr) {
      nodes_[i] =
          static_cast<Node*>(::operator new(count * sizeof(Node), std::align_val_t(alignof(Node))));
    }
    links_[i] = static_cast<NodeLinks*>(::operator new(count * sizeof(NodeLinks)));
    capacity_ += count;
  }
  // Four fifths full if every key had a ghost; two fifths full in practice.
  const size_t table_size = num_nodes + num_nodes / 4 + 1;
  if (table_size <= table_.size()) return;
  std::vector<Entry> old(table_size, Entry{0, kNone});
  old.swap(table_);
  for (const Entry& entry : old) {
    if (entry.node != kNone) put(entry);
  }
}

uint32_t KeyIndex::find(const BlockKey& key, uint64_t hash) const noexcept {
  if (table_.empty()) return kNone;
  const uint32_t fragment = fragment_of(hash);
  for (size_t position = home_of(fragment);; position = after(position)) {
    const Entry entry = table_[position];
    if (entry.node == kNone) return kNone;
    if (entry.fragment == fragment && node(entry.node).key == key) return entry.node;
  }
}

void KeyIndex::find_batch(std::span<const BlockKey> keys,
                          std::span<uint32_t> nodes) const noexcept {
  if (table_.empty()) {
    for (uint32_t& found : nodes) found = kNone;
    return;
  }
  std::array<uint64_t, kBatch> hashes;
  for (size_t i = 0; i < keys.size(); ++i) {
    hashes[i] = hash_of(keys[i]);
    prefetch(hashes[i]);
  }
  for (size_t i = 0; i < keys.size(); ++i) {
    const uint32_t fragment = fragment_of(hashes[i]);
    uint32_t candidate = kNone;
    for (size_t position = home_of(fragment);; position = after(position)) {
      const Entry entry = table_[position];
      if (entry.node == kNone) break;
      if (entry.fragment == fragment) {
        candidate = entry.node;
        __builtin_prefetch(node_at(candidate));
        break;
      }
    }
    nodes[i] = candidate;
  }
  for (size_t i = 0; i < keys.size(); ++i) {
    // Another key with the same fragment may come first.
    if (nodes[i] != kNone && !(node(nodes[i]).key == keys[i])) nodes[i] = find(keys[i], hashes[i]);
  }
}

uint32_t KeyIndex::insert(const BlockKey& key, uint64_t hash) noexcept {
  uint32_t index = free_;
  if (index != kNone) {
    free_ = links(index).fragment;
  } else {
    index = fresh_++;
  }
  Node* const added = ::new (static_cast<void*>(node_at(index))) Node;
  added->key = key;
  added->slots.fill(kNone);
  const uint32_t fragment = fragment_of(hash);
  ::new (static_cast<void*>(links_at(index))) NodeLinks{kNone, {}, fragment};
  put({fragment, index});
  ++size_;
  return index;
}

void KeyIndex::put(Entry entry) noexcept {
  size_t position = home_of(entry.fragment);
  while (table_[position].node != kNone) position = after(position);
  table_[position] = entry;
}

void KeyIndex::erase(uint32_t index) noexcept {
  NodeLinks& erased = links(index);
  size_t hole = home_of(erased.fragment);
  while (table_[hole].node != index) hole = after(hole);
  // Close the hole: every entry of the run that may stand there moves up.
  for (size_t position = after(hole); table_[position].node != kNone; position = after(position)) {
    const size_t home = home_of(table_[position].fragment);
    const bool home_is_between =
        hole < position ? (hole < home && home <= position) : (hole < home || home <= position);
    if (home_is_between) continue;
    table_[hole] = table_[position];
    hole = position;
  }
  table_[hole].node = kNone;
  erased.fragment = free_;
  free_ = index;
  --size_;
}

}  // namespace kvbm::internal
