// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/kv_pattern.hpp"

#include <algorithm>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/hash.hpp"

namespace kvbm {
namespace {

uint64_t seed_of(RankId rank, LayerId layer, uint32_t outer) {
  const struct {
    uint32_t outer;
    uint16_t rank;
    uint16_t layer;
  } where{outer, rank.value(), layer.value()};
  return xxh3_64(std::as_bytes(std::span(&where, 1)), 0);
}

}  // namespace

uint64_t KvPatternRun::num_compared() const {
  KVBM_CONTRACT(ended_.done(), "the patterns are still being compared");
  uint64_t compared = 0;
  for (const Part& part : parts_) {
    size_t on_all = part.reads.size();
    for (const auto& findings : part.by_rank) on_all = std::min(on_all, findings->num_compared());
    compared += on_all;
  }
  return compared;
}

uint64_t KvPatternRun::num_wrong() const {
  KVBM_CONTRACT(ended_.done(), "the patterns are still being compared");
  uint64_t wrong = 0;
  for (const Part& part : parts_) {
    for (size_t i = 0; i < part.reads.size(); ++i) {
      wrong += std::ranges::any_of(
          part.by_rank, [i](const auto& findings) { return findings->first_wrong(i).has_value(); });
    }
  }
  return wrong;
}

std::optional<WrongBytes> KvPatternRun::first_wrong() const {
  KVBM_CONTRACT(ended_.done(), "the patterns are still being compared");
  std::optional<WrongBytes> first;
  for (const Part& part : parts_) {
    for (size_t i = 0; i < part.reads.size(); ++i) {
      if (first && part.reads[i] > first->read) break;
      for (size_t rank = 0; rank < part.by_rank.size(); ++rank) {
        const auto place = part.by_rank[rank]->first_wrong(i);
        if (!place) continue;
        first = {.read = part.reads[i],
                 .rank = RankId(static_cast<uint16_t>(rank)),
                 .layer = LayerId(static_cast<uint16_t>(place->piece / part.outer_dim)),
                 .outer = place->piece % part.outer_dim,
                 .offset = place->offset};
        break;
      }
    }
  }
  return first;
}

std::vector<PatternPiece> pattern_pieces(const PhysicalLayout& layout, RankId rank) {
  const LayoutConfig& config = layout.config();
  std::vector<PatternPiece> pieces;
  for (uint32_t l = 0; l < config.num_layers; ++l) {
    const LayerId layer(static_cast<uint16_t>(l));
    const uint64_t block_stride = layout.page_maps()[layout.page_map_of(layer)].block_stride();
    for (uint32_t outer = 0; outer < config.outer_dim; ++outer) {
      const MemoryRegion chunk = layout.region(BlockId(0), layer, outer);
      pieces.push_back({.data = chunk.base(),
                        .block_stride = block_stride,
                        .bytes = chunk.size_bytes(),
                        .seed = seed_of(rank, layer, outer)});
    }
  }
  return pieces;
}

}  // namespace kvbm
