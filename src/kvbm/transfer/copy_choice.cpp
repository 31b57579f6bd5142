// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/copy_choice.hpp"

#include <algorithm>
#include <cmath>

#include "kvbm/base/text.hpp"
#include "kvbm/device/block_image.hpp"

namespace kvbm {
namespace {

/// Beyond these a link gets no faster; on the device all that there are are best.
uint32_t ctas_for(TransferRoute route) {
  switch (route) {
    case TransferRoute::kHostToDevice:
      return 4;
    case TransferRoute::kDeviceToHost:
      return 2;
    default:
      return 0;
  }
}

double pace_on(TransferRoute route) {
  return route == TransferRoute::kDeviceToHost ? kPaceToHost : 1;
}

const FormCost& cost_of(const RouteCost& route, CopyForm form) {
  return route[static_cast<size_t>(form)];
}

std::string pace_in_words(uint64_t bytes_per_second) {
  if (bytes_per_second == 0) return {};
  const uint64_t tenths = (bytes_per_second + 50'000'000) / 100'000'000;
  return format_text(" and {}.{} GB/s", tenths / 10, tenths % 10);
}

bool has_ring(const RouteCost& cost) { return !cost_of(cost, CopyForm::kRing).rates.empty(); }

int64_t whole(CopyCost cost) { return std::llround(cost.count()); }

struct Estimate {
  CopyCost engine{0};
  CopyCost kernel{0};
  CopyCost on_device{0};  ///< of the ring's kernels, with the link at its best
  bool has_rows = false;
  bool has_runs = false;
  double engine_copies = 0;
  double kernel_rate = 0;  ///< bytes per second, of the slowest piece
  double bytes = 0;
};

/// Of one piece for all blocks, without submissions.
Estimate estimate_piece(const StridedPiece& piece, uint64_t num_blocks, uint64_t num_groups,
                        const RouteCost& cost, double pace) {
  uint64_t steps = 1;
  uint64_t longest = 1;
  for (const StridedAxis& axis : piece.axes) {
    steps *= axis.count;
    longest = std::max(longest, axis.count);
  }
  Estimate estimate;
  if (steps == 0 || piece.bytes == 0) return estimate;
  estimate.bytes = static_cast<double>(steps) * static_cast<double>(num_blocks) *
                   static_cast<double>(piece.bytes);
  const auto time = [&](CopyForm form, double num_steps, double bytes_per_second) {
    return cost_of(cost, form).step * num_steps + CopyCost(estimate.bytes / bytes_per_second * 1e6);
  };
  const auto rate = [&](CopyForm form) {
    return cost_of(cost, form).bytes_per_second(piece.bytes);
  };
  const double inside = static_cast<double>(steps);
  const bool rows_of_blocks = num_blocks / num_groups > longest;
  const uint64_t rows = rows_of_blocks ? num_blocks / num_groups : longest;
  if (rows >= kLeastRows) {
    estimate.has_rows = true;
    const double num_rects =
        rows_of_blocks ? inside * static_cast<double>(num_groups)
                       : inside / static_cast<double>(longest) * static_cast<double>(num_blocks);
    estimate.engine_copies = num_rects;
    estimate.engine = time(CopyForm::kEngineRows, num_rects, rate(CopyForm::kEngineRows));
  } else {
    estimate.has_runs = true;
    estimate.engine_copies = inside * static_cast<double>(num_blocks);
    estimate.engine =
        time(CopyForm::kEngineRuns, estimate.engine_copies, rate(CopyForm::kEngineRuns));
  }
  estimate.kernel_rate = rate(CopyForm::kKernel) * pace;
  estimate.kernel = time(CopyForm::kKernel, 1, estimate.kernel_rate);
  if (has_ring(cost)) estimate.on_device = time(CopyForm::kRing, 1, rate(CopyForm::kRing));
  return estimate;
}

Estimate estimate_all(const MethodQuestion& question, const RouteCost& cost, double pace) {
  const uint64_t num_groups = question.num_groups == 0 ? question.num_blocks : question.num_groups;
  Estimate sum;
  Estimate one;
  const StridedPiece* last = nullptr;
  for (const StridedPiece& piece : question.pieces) {
    // Layers are alike.
    if (last == nullptr || piece.bytes != last->bytes || piece.axes != last->axes) {
      one = estimate_piece(piece, question.num_blocks, num_groups, cost, pace);
      last = &piece;
    }
    sum.engine += one.engine;
    sum.engine_copies += one.engine_copies;
    sum.kernel += one.kernel;
    sum.on_device += one.on_device;
    sum.bytes += one.bytes;
    sum.has_rows = sum.has_rows || one.has_rows;
    sum.has_runs = sum.has_runs || one.has_runs;
    const bool is_slowest = sum.kernel_rate == 0 || one.kernel_rate < sum.kernel_rate;
    if (one.kernel_rate > 0 && is_slowest) sum.kernel_rate = one.kernel_rate;
  }
  CopyCost submission{0};
  if (sum.has_rows) submission = cost_of(cost, CopyForm::kEngineRows).submission;
  if (sum.has_runs) {
    submission = std::max(submission, cost_of(cost, CopyForm::kEngineRuns).submission);
  }
  sum.engine += submission;
  sum.kernel += cost_of(cost, CopyForm::kKernel).submission;
  return sum;
}

/// None where the ring does not take the batch.
std::optional<CopyCost> estimate_ring(const MethodQuestion& question, const RouteCost& cost,
                                      const Estimate& estimate) {
  const bool to_device = question.route == TransferRoute::kHostToDevice;
  if (!to_device && question.route != TransferRoute::kDeviceToHost) return std::nullopt;
  if (!question.capabilities.ring_copies || !has_ring(cost)) return std::nullopt;
  const auto image =
      find_image(question.pieces, to_device ? CopySide::kSource : CopySide::kDestination);
  if (!image || image->bytes > question.capabilities.ring_block_bytes) return std::nullopt;
  const bool rows =
      question.num_groups > 0 && question.num_blocks / question.num_groups >= kLeastRows;
  const FormCost& link = cost_of(cost, rows ? CopyForm::kEngineRows : CopyForm::kEngineRuns);
  const CopyCost on_link(estimate.bytes / link.bytes_per_second(image->bytes) * 1e6);
  return std::max(estimate.on_device, on_link) + cost_of(cost, CopyForm::kRing).submission;
}

/// Whether source and destination are one run of bytes each.
bool is_one_run(const MethodQuestion& question) {
  if (question.pieces.size() != 1) return false;
  const StridedPiece piece = fold(question.pieces.front());
  if (piece.bytes == 0 ||
      std::ranges::any_of(piece.axes, [](const StridedAxis& axis) { return axis.count != 1; })) {
    return false;
  }
  return question.num_blocks == 1 ||
         (question.num_groups == 1 && piece.src_block_stride == piece.bytes &&
          piece.dst_block_stride == piece.bytes);
}

}  // namespace

MethodChoice choose_method(const MethodQuestion& question) noexcept {
  using Reason = MethodChoice::Reason;
  if (!question.capabilities.kernel_copies) return {.reason = Reason::kOnlyMethod};
  if (question.num_blocks == 0) return {.reason = Reason::kNothingToMove};
  if (is_one_run(question)) return {.reason = Reason::kOneRun};
  const RouteCost* const cost = question.calibration.find(question.route);
  if (cost == nullptr) return {.reason = Reason::kNotMeasured};
  const double pace = pace_on(question.route);
  const Estimate estimate = estimate_all(question, *cost, pace);
  if (!estimate.has_rows && !estimate.has_runs) return {.reason = Reason::kNothingToMove};
  MethodChoice choice{.reason = Reason::kCheaper,
                      .engine = estimate.engine,
                      .kernel = estimate.kernel,
                      .ring = estimate_ring(question, *cost, estimate)};
  const bool is_long =
      estimate.bytes >=
      static_cast<double>(kSlotsOfALongBatch * question.capabilities.ring_block_bytes);
  const CopyCost to_beat =
      estimate.engine * (estimate.engine_copies <= kMostCopiesInDoubt ? kKernelMustSave : 1);
  const bool by_ring = choice.ring && *choice.ring < to_beat &&
                       *choice.ring * (is_long ? kKernelMustSave : 1) < estimate.kernel;
  if (!by_ring && estimate.kernel >= to_beat) {
    const CopyCost least = std::min(estimate.kernel, choice.ring.value_or(estimate.kernel));
    if (least < estimate.engine) choice.reason = Reason::kEngineInDoubt;
  } else if (by_ring) {
    choice.method = CopyMethod::kRing;
  } else {
    choice.method = CopyMethod::kKernel;
    choice.max_ctas = ctas_for(question.route);
    if (pace < 1) {
      // At least one: 0 would be no limit.
      choice.max_bytes_per_second = static_cast<uint64_t>(std::max(estimate.kernel_rate, 1.0));
    }
  }
  return choice;
}

std::string describe(const MethodChoice& choice) {
  switch (choice.reason) {
    case MethodChoice::Reason::kOnlyMethod:
      return "engine: the device has no other method";
    case MethodChoice::Reason::kNothingToMove:
      return "engine: there is nothing to move";
    case MethodChoice::Reason::kOneRun:
      return "engine: it is one run of bytes";
    case MethodChoice::Reason::kNotMeasured:
      return "engine: nothing was measured on this route";
    case MethodChoice::Reason::kCheaper:
    case MethodChoice::Reason::kEngineInDoubt:
      break;
  }
  if (choice.method == CopyMethod::kRing) {
    return format_text("ring: {} us, the engine would take {} us, a kernel {} us",
                       whole(*choice.ring), whole(choice.engine), whole(choice.kernel));
  }
  const std::string ring =
      choice.ring ? format_text(", the ring {} us", whole(*choice.ring)) : std::string();
  if (choice.method == CopyMethod::kKernel) {
    return format_text("kernel, {}{}: {} us, the engine would take {} us{}",
                       choice.max_ctas == 0 ? std::string("as many CTAs as fit")
                                            : format_text("at most {} CTAs", choice.max_ctas),
                       pace_in_words(choice.max_bytes_per_second), whole(choice.kernel),
                       whole(choice.engine), ring);
  }
  return format_text("engine: {} us, a kernel would take {} us{}{}", whole(choice.engine),
                     whole(choice.kernel), ring,
                     choice.reason == MethodChoice::Reason::kEngineInDoubt
                         ? ", too little less for the SMs that it holds"
                         : "");
}

}  // namespace kvbm
