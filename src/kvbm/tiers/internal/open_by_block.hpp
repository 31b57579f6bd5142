// SPDX-License-Identifier: Apache-2.0
// OpenByBlock: which open operations read or write an engine block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvbm/base/ids.hpp"

namespace kvbm::internal {

/// A multimap from block to operation, as one flat table with linear probing. Memory and cost are
/// in proportion to the entries that are in it, however many blocks the engine has: the table grows
/// and shrinks with them, and is not there without any.
/// Threads: one thread at a time.
class OpenByBlock {
 public:
  /// Contract: `op` is not 0. The same pair may be added again, and is then there twice.
  void add(BlockId block, OpId op);
  /// Removes one such entry. Contract: it was added.
  void remove(BlockId block, OpId op);
  /// Appends the operations of a block to `found`, in no order.
  void find(BlockId block, std::vector<OpId>& found) const;

  [[nodiscard]] size_t size() const noexcept { return size_; }
  [[nodiscard]] size_t memory_bytes() const noexcept { return table_.capacity() * sizeof(Entry); }

 private:
  struct Entry {
    BlockId block;
    OpId op;  // 0: an empty place
  };
  [[nodiscard]] size_t home_of(BlockId block) const noexcept;
  [[nodiscard]] size_t after(size_t place) const noexcept {
    return (place + 1) & (table_.size() - 1);
  }
  void insert(const Entry& entry) noexcept;
  void resize(size_t num_places);

  std::vector<Entry> table_;  // none, or a power of two
  size_t size_ = 0;
};

}  // namespace kvbm::internal
