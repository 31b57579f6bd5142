// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/fill.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kvbm/base/random.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/transfer/internal/host_blocks.hpp"

namespace kvbm {

namespace internal {

/// The bytes of one run of a view.
class PatternBytes {
 public:
  PatternBytes(const LayoutView& view, const FillPattern& pattern)
      : config_(view.layout().config()), pattern_(pattern), bytes_(view.run_bytes()) {}

  /// `first_element` counts in the canonical order of the chunk.
  std::span<const std::byte> of(BlockId block, LayerId layer, uint32_t outer,
                                uint64_t first_element) {
    const uint64_t width = config_.dtype_width_bytes;
    const uint64_t chunk = uint64_t{layer.value()} * config_.outer_dim + outer;
    switch (pattern_.kind_) {
      case FillPattern::Kind::kConstant:
        std::ranges::fill(bytes_, static_cast<std::byte>(pattern_.value_));
        break;
      case FillPattern::Kind::kSequential: {
        uint64_t next = block.value() + chunk * config_.chunk_bytes() + first_element * width;
        for (std::byte& byte : bytes_) byte = static_cast<std::byte>(next++);
        break;
      }
      case FillPattern::Kind::kPosition: {
        uint64_t of_chunk = hashed(0, pattern_.value_);
        for (const uint64_t coordinate :
             {uint64_t{block.value()}, uint64_t{layer.value()}, uint64_t{outer}}) {
          of_chunk = hashed(of_chunk, coordinate);
        }
        for (uint64_t i = 0; i < bytes_.size() / width; ++i) {
          const uint64_t value = hashed(of_chunk, first_element + i);
          std::memcpy(bytes_.data() + i * width, &value, width);
        }
        break;
      }
    }
    return bytes_;
  }

 private:
  static uint64_t hashed(uint64_t before, uint64_t coordinate) {
    uint64_t state = before ^ coordinate;
    return splitmix64(state);
  }

  const LayoutConfig& config_;
  const FillPattern pattern_;
  std::vector<std::byte> bytes_;
};

}  // namespace internal

namespace {

constexpr const char* kVerb = "fills and compares";

FillMismatch mismatch_at(BlockId block, const internal::RunPosition& at) {
  return {.block = block, .layer = at.layer, .outer = at.outer, .head = at.head, .page = at.page};
}

}  // namespace

Status fill(const LayoutView& view, std::span<const BlockId> ids, const FillPattern& pattern) {
  KVBM_TRY(internal::check_host_blocks(view, ids, kVerb));
  internal::PatternBytes bytes(view, pattern);
  for (const BlockId id : ids) {
    internal::for_each_run(view, id, [&](const internal::RunPosition& at, std::byte* run) {
      std::ranges::copy(bytes.of(id, at.layer, at.outer, at.first_element), run);
      return true;
    });
  }
  return {};
}

Result<std::optional<FillMismatch>> find_fill_mismatch(const LayoutView& view,
                                                       std::span<const BlockId> ids,
                                                       std::span<const BlockId> pattern_of,
                                                       const FillPattern& pattern) {
  if (ids.size() != pattern_of.size()) {
    return make_error(ErrorCode::kInvalidArgument, format_text("{} blocks and the patterns of {}",
                                                               ids.size(), pattern_of.size()));
  }
  KVBM_TRY(internal::check_host_blocks(view, ids, kVerb));
  internal::PatternBytes bytes(view, pattern);
  std::optional<FillMismatch> found;
  for (size_t i = 0; i < ids.size() && !found; ++i) {
    internal::for_each_run(view, ids[i],
                           [&](const internal::RunPosition& at, const std::byte* run) {
                             const std::span<const std::byte> expected =
                                 bytes.of(pattern_of[i], at.layer, at.outer, at.first_element);
                             if (std::memcmp(run, expected.data(), expected.size()) == 0)
                               return true;
                             found = mismatch_at(ids[i], at);
                             return false;
                           });
  }
  return found;
}

}  // namespace kvbm
