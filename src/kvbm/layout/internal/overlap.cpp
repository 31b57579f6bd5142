// SPDX-License-Identifier: Apache-2.0
#include "kvbm/layout/internal/overlap.hpp"

#include <algorithm>
#include <array>
#include <span>

namespace kvbm::internal {
namespace {

/// Steps of one search; far more than a sane grid takes.
constexpr uint64_t kMaxSteps = uint64_t{1} << 22;

/// What setting up a search takes, in steps.
constexpr uint64_t kSearchSteps = 16;

/// One term of a sum: a stride, and how often it may be taken.
struct Term {
  int64_t stride = 0;
  int64_t low = 0;
  int64_t high = 0;
  int64_t* taken = nullptr;
};

int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

/// Looks for a sum start + Σ n_i * stride_i with -below < sum < above. Terms by falling stride.
class SumSearch {
 public:
  SumSearch(std::span<const Term> terms, int64_t below, int64_t above, SearchSteps& steps)
      : terms_(terms), below_(below), above_(above), steps_(steps) {
    int64_t low = 0;
    int64_t high = 0;
    for (size_t i = terms.size(); i > 0; --i) {
      rest_[i - 1] = {low, high};
      low += terms[i - 1].low * terms[i - 1].stride;
      high += terms[i - 1].high * terms[i - 1].stride;
    }
  }

  /// `nonzero`: the sum in which nothing is taken does not count, nor does the mirror of another;
  /// `low` of each term is the mirror of its `high`.
  [[nodiscard]] bool find(int64_t start, bool nonzero) {
    return take_steps(kSearchSteps) && find(0, start, nonzero);
  }
  [[nodiscard]] bool gave_up() const noexcept { return gave_up_; }

 private:
  struct Reach {
    int64_t low = 0;
    int64_t high = 0;
  };

  bool take_steps(uint64_t count) {
    gave_up_ = steps_.left < count || taken_ >= kMaxSteps;
    if (gave_up_) return false;
    steps_.left -= count;
    taken_ += count;
    return true;
  }

  bool find(size_t index, int64_t at, bool nonzero) {
    if (index == terms_.size()) return !nonzero && -below_ < at && at < above_;
    const Term& term = terms_[index];
    // Where the rest can still bring the sum into the window.
    const int64_t least = -below_ + 1 - at - rest_[index].high;
    const int64_t most = above_ - 1 - at - rest_[index].low;
    int64_t low = nonzero ? 0 : term.low;
    int64_t high = term.high;
    if (term.stride > 0) {
      low = std::max(low, -floor_div(-least, term.stride));
      high = std::min(high, floor_div(most, term.stride));
    } else if (least > 0 || most < 0) {
      return false;
    }
    for (int64_t n = low; n <= high; ++n) {
      if (!take_steps(1)) return false;
      *term.taken = n;
      if (find(index + 1, at + n * term.stride, nonzero && n == 0)) return true;
      if (gave_up_) return false;
    }
    return false;
  }

  std::span<const Term> terms_;
  int64_t below_;
  int64_t above_;
  std::array<Reach, 10> rest_{};
  SearchSteps& steps_;
  uint64_t taken_ = 0;
  bool gave_up_ = false;
};

tl::unexpected<Error> too_entangled() {
  return make_error(ErrorCode::kUnsupported,
                    "the strides of page maps are too entangled, or too many maps interleaved, to "
                    "tell whether runs overlap: let each axis lie inside one step of another, and "
                    "give maps memory of their own");
}

/// A term for an axis of `count` entries; one with a single entry has no say, whatever its stride.
Term mirrored(uint64_t count, uint64_t stride, int64_t* taken) {
  const auto high = static_cast<int64_t>(count) - 1;
  return {.stride = high > 0 ? static_cast<int64_t>(stride) : 0,
          .low = -high,
          .high = high,
          .taken = taken};
}

void sort_by_falling_stride(std::span<Term> terms) {
  std::ranges::sort(terms, [](const Term& a, const Term& b) { return a.stride > b.stride; });
}

}  // namespace

Result<std::optional<RunDistance>> find_overlap(const PageMapSpec& map, SearchSteps& steps) {
  RunDistance found;
  std::array<Term, 5> terms{mirrored(map.num_blocks, map.block_stride, &found.blocks),
                            mirrored(map.layers.count, map.layer_stride, &found.layers),
                            mirrored(map.outer_dim, map.outer_stride, &found.outers),
                            mirrored(map.num_heads, map.head_stride, &found.heads),
                            mirrored(map.page_size, map.page_stride, &found.pages)};
  sort_by_falling_stride(terms);
  const auto run = static_cast<int64_t>(map.run_bytes);
  SumSearch search(terms, run, run, steps);
  if (search.find(0, true)) return found;
  if (search.gave_up()) return too_entangled();
  return std::nullopt;
}

Result<bool> overlap(const PageMap& a, const PageMap& b, int64_t distance, SearchSteps& steps) {
  std::array<Term, 10> terms;
  size_t size = 0;
  int64_t ignored = 0;
  const auto add = [&](int64_t count_a, uint64_t stride_a, int64_t count_b, uint64_t stride_b) {
    const auto term = [&](uint64_t stride, int64_t low, int64_t high) {
      if (low != high) terms[size++] = {static_cast<int64_t>(stride), low, high, &ignored};
    };
    if (stride_a == stride_b || count_a == 1 || count_b == 1) {
      term(count_a > 1 ? stride_a : stride_b, 1 - count_a, count_b - 1);
    } else {
      term(stride_a, 1 - count_a, 0);
      term(stride_b, 0, count_b - 1);
    }
  };
  add(a.num_blocks(), a.block_stride(), b.num_blocks(), b.block_stride());
  for (const BlockAxis axis :
       {BlockAxis::kLayer, BlockAxis::kOuter, BlockAxis::kHead, BlockAxis::kPage}) {
    add(a.count(axis), a.strides()[axis], b.count(axis), b.strides()[axis]);
  }
  const std::span<Term> used = std::span(terms).first(size);
  sort_by_falling_stride(used);
  SumSearch search(used, static_cast<int64_t>(b.run_bytes()), static_cast<int64_t>(a.run_bytes()),
                   steps);
  if (search.find(distance, false)) return true;
  if (search.gave_up()) return too_entangled();
  return false;
}

}  // namespace kvbm::internal
