// SPDX-License-Identifier: Apache-2.0
#include "kvbm/tiers/internal/open_by_block.hpp"

#include <utility>

#include "kvbm/base/result.hpp"

namespace kvbm::internal {
namespace {

constexpr size_t kLeastPlaces = 16;

}  // namespace

size_t OpenByBlock::home_of(BlockId block) const noexcept {
  // 2^64 divided by the golden ratio. The upper half is well mixed; a table has less than 2^32
  // places.
  const uint64_t mixed = block.value() * 0x9e3779b97f4a7c15;
  return static_cast<size_t>(mixed >> 32) & (table_.size() - 1);
}

void OpenByBlock::insert(const Entry& entry) noexcept {
  size_t place = home_of(entry.block);
  while (table_[place].op != OpId{}) place = after(place);
  table_[place] = entry;
}

void OpenByBlock::resize(size_t num_places) {
  std::vector<Entry> before = std::exchange(table_, std::vector<Entry>(num_places));
  for (const Entry& entry : before) {
    if (entry.op != OpId{}) insert(entry);
  }
}

void OpenByBlock::add(BlockId block, OpId op) {
  KVBM_CONTRACT(op != OpId{}, "operation 0 is none");
  // At most half full: a run of taken places stays short.
  if (2 * (size_ + 1) > table_.size()) {
    resize(table_.empty() ? kLeastPlaces : 2 * table_.size());
  }
  insert({block, op});
  ++size_;
}

void OpenByBlock::remove(BlockId block, OpId op) {
  KVBM_CONTRACT(size_ > 0, "the entry was not added");
  size_t place = home_of(block);
  while (table_[place].block != block || table_[place].op != op) {
    KVBM_CONTRACT(table_[place].op != OpId{}, "the entry was not added");
    place = after(place);
  }
  // What comes after in the same run moves up, unless that would be before its home.
  const size_t mask = table_.size() - 1;
  for (size_t next = after(place); table_[next].op != OpId{}; next = after(next)) {
    const size_t from_home = (next - home_of(table_[next].block)) & mask;
    if (from_home < ((next - place) & mask)) continue;
    table_[place] = table_[next];
    place = next;
  }
  table_[place] = Entry{};
  --size_;
  if (size_ == 0) {
    // One operation after the other is the common case: a small table stays for the next.
    if (table_.size() > kLeastPlaces) table_ = std::vector<Entry>();
  } else if (table_.size() > kLeastPlaces && 8 * size_ < table_.size()) {
    resize(table_.size() / 2);
  }
}

void OpenByBlock::find(BlockId block, std::vector<OpId>& found) const {
  if (size_ == 0) return;
  for (size_t place = home_of(block); table_[place].op != OpId{}; place = after(place)) {
    if (table_[place].block == block) found.push_back(table_[place].op);
  }
}

}  // namespace kvbm::internal
