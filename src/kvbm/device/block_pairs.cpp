// SPDX-License-Identifier: Apache-2.0
#include "kvbm/device/block_pairs.hpp"

#include <algorithm>
#include <array>
#include <functional>
#include <numeric>

#include "kvbm/base/contract.hpp"

namespace kvbm {

namespace {

/// Ids that are looked at side by side.
constexpr size_t kLanes = 8;

}  // namespace

BlockIdRange range_of(std::span<const BlockId> ids) noexcept {
  if (ids.empty()) return {};
  std::array<uint32_t, kLanes> least{};
  std::array<uint32_t, kLanes> most{};
  least.fill(ids[0].value());
  most.fill(ids[0].value());
  size_t i = 0;
  for (; i + kLanes <= ids.size(); i += kLanes) {
    for (size_t k = 0; k < kLanes; ++k) {
      least[k] = std::min(least[k], ids[i + k].value());
      most[k] = std::max(most[k], ids[i + k].value());
    }
  }
  for (; i < ids.size(); ++i) {
    least[0] = std::min(least[0], ids[i].value());
    most[0] = std::max(most[0], ids[i].value());
  }
  return {.lowest = *std::min_element(least.begin(), least.end()),
          .highest = *std::max_element(most.begin(), most.end())};
}

size_t count_rows(std::span<const BlockId> from, std::span<const BlockId> to,
                  size_t first) noexcept {
  const auto step = [](std::span<const BlockId> ids, size_t i) {
    return int64_t{ids[i + 1].value()} - int64_t{ids[i].value()};
  };
  if (first + 1 == from.size()) return 1;
  const int64_t from_step = step(from, first);
  const int64_t to_step = step(to, first);
  if (from_step <= 0 || to_step <= 0) return 1;
  size_t last = first + 1;
  const auto from_bits = static_cast<uint32_t>(from_step);
  const auto to_bits = static_cast<uint32_t>(to_step);
  constexpr size_t kPairs = 8 * kLanes;  // so that adding up the lanes is little of the work
  while (last + kPairs < from.size()) {
    std::array<uint32_t, kLanes> differ{};
    for (size_t i = last; i < last + kPairs; i += kLanes) {
      const std::span next_from = from.subspan(i, kLanes + 1);
      const std::span next_to = to.subspan(i, kLanes + 1);
      for (size_t k = 0; k < kLanes; ++k) {
        differ[k] |= ((next_from[k + 1].value() - next_from[k].value()) ^ from_bits) |
                     ((next_to[k + 1].value() - next_to[k].value()) ^ to_bits);
      }
    }
    const uint32_t any = std::accumulate(differ.begin(), differ.end(), 0U, std::bit_or());
    // Steps that are alike but for 2^32 do not add up.
    const auto adds_up = [&](std::span<const BlockId> ids, int64_t each) {
      return int64_t{ids[last + kPairs].value()} - int64_t{ids[last].value()} ==
             int64_t{kPairs} * each;
    };
    if (any != 0 || !adds_up(from, from_step) || !adds_up(to, to_step)) break;
    last += kPairs;
  }
  while (last + 1 < from.size() && step(from, last) == from_step && step(to, last) == to_step) {
    ++last;
  }
  const size_t length = last - first + 1;
  return length == 2 && (from_step != 1 || to_step != 1) ? 1 : length;
}

void BlockPairs::assign(std::span<const BlockId> from, std::span<const BlockId> to) {
  KVBM_CONTRACT(from.size() == to.size(), "lists of pairs have different lengths");
  from_.assign(from.begin(), from.end());
  to_.assign(to.begin(), to.end());
  in_equal_steps_ = !from_.empty() && kvbm::count_rows(from_, to_, 0) == from_.size();
  if (in_equal_steps_) {
    from_range_ = {.lowest = from_.front().value(), .highest = from_.back().value()};
    to_range_ = {.lowest = to_.front().value(), .highest = to_.back().value()};
  } else {
    from_range_ = range_of(from_);
    to_range_ = range_of(to_);
  }
}

size_t BlockPairs::capacity() const noexcept { return std::max(from_.capacity(), to_.capacity()); }

size_t BlockPairs::count_groups() const noexcept {
  size_t groups = 0;
  for (size_t i = 0; i < size(); i += count_rows(i)) ++groups;
  return groups;
}

BlockPairList make_block_pairs(const std::vector<BlockId>& from, const std::vector<BlockId>& to) {
  return std::make_shared<const BlockPairs>(from, to);
}

BlockPairList make_block_pairs(const std::vector<BlockId>& both) {
  return make_block_pairs(both, both);
}

}  // namespace kvbm
