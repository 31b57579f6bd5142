// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/calibration.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <span>
#include <thread>
#include <utility>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/device/block_image.hpp"
#include "kvbm/memory/pinned_memory.hpp"
#include "kvbm/memory/system_memory.hpp"

namespace kvbm {
namespace {

/// What one measured batch moves over a link, if its runs are not longer: long beside what a batch
/// costs by itself.
constexpr uint64_t kLinkBytes = 16 * kMiB;
/// That a copy engine takes one by one.
constexpr uint32_t kMostRuns = 512;
/// Of longer runs a copy engine has its full rate.
constexpr uint64_t kRunBytes[] = {128, 512, 4 * kKiB, 32 * kKiB, 256 * kKiB, 2 * kMiB};
/// One by one it comes near its full rate before, and by a bend: between 32 and 256 KiB the line
/// would be 7 % below it. A device may begin slowly with many of them, so more are measured.
constexpr uint64_t kLinkBytesOfRuns = 32 * kMiB;
constexpr uint64_t kEngineRunBytes[] = {128,        512,        4 * kKiB, 32 * kKiB,
                                        128 * kKiB, 256 * kKiB, 2 * kMiB};
/// How much shorter the batch is that a longer one is compared with.
constexpr uint32_t kShare = 8;
/// Blocks through the ring are so long that an engine moves them at its full rate. Their runs
/// matter as far as the device is slower with them than the link. One block is compared with so
/// many.
constexpr uint64_t kRingRunBytes[] = {128, 4 * kKiB};
constexpr uint64_t kRingBlockBytes = 2 * kMiB;
constexpr uint32_t kRingBlocks = 16;
constexpr uint64_t kRingBytes = kRingBlocks * kRingBlockBytes;
/// What a batch of the longest runs moves, and as many bytes lie between them at the source. Runs
/// for a copy engine lie there side by side.
constexpr uint64_t kScratchBytes = kShare * std::end(kRunBytes)[-1];
constexpr uint64_t kSrcBytes = 2 * kScratchBytes;
constexpr uint64_t kDstBytes = std::max({kScratchBytes, kRingBytes, kLinkBytesOfRuns});
static_assert(kSrcBytes >= kRingBytes && kSrcBytes >= kLinkBytesOfRuns);
constexpr uint32_t kRowsOfAStep = 8;
/// The shortest of so many counts, of fewer where they take longer than kEnoughTime.
constexpr size_t kLeastRepetitions = 3;
constexpr size_t kLeastOfRing = 5;
constexpr size_t kMostRepetitions = 9;
constexpr Duration kEnoughTime = std::chrono::milliseconds(1);
/// A thread that sleeps until a copy ends is woken some microseconds later, the later the longer it
/// has slept; so it looks, unless a copy takes very long.
constexpr Duration kPatience = std::chrono::milliseconds(20);

struct BatchShape {
  uint32_t num_pieces = 1;
  uint32_t num_blocks = 1;
  uint32_t num_rows = 1;  ///< of a piece, one axis
  uint64_t run_bytes = 0;

  [[nodiscard]] uint64_t bytes() const {
    return uint64_t{num_pieces} * num_blocks * num_rows * run_bytes;
  }
};

CopyMethod method_of(CopyForm form) {
  if (form == CopyForm::kRing) return CopyMethod::kRing;
  return form == CopyForm::kKernel ? CopyMethod::kKernel : CopyMethod::kEngine;
}

std::span<const uint64_t> run_sizes_of(CopyForm form) {
  if (form == CopyForm::kRing) return kRingRunBytes;
  if (form == CopyForm::kEngineRuns) return kEngineRunBytes;
  return kRunBytes;
}

/// Offsets and strides of a side, of runs in (piece, block, row).
struct SideShape {
  uint64_t piece = 0;
  uint64_t block = 0;
  uint64_t row = 0;
};

class Measurement {
 public:
  Measurement(const CalibrationOptions& options, StreamRef stream, TimePoint end)
      : options_(options), stream_(stream), end_(end) {}

  /// None when there is no time left. `batch_bytes`: of one batch, kScratchBytes if that is more
  /// for its runs. `dst` has as many, `src` twice as many, and both have `runs_bytes`: of a batch
  /// of runs for the engine. `ring_host`: where the host is, if the ring is to be measured; both
  /// have kRingBytes then.
  Result<std::optional<RouteCost>> route(const std::byte* src, std::byte* dst, uint64_t batch_bytes,
                                         uint64_t runs_bytes,
                                         std::optional<CopySide> ring_host = std::nullopt) {
    batch_bytes_ = batch_bytes;
    runs_bytes_ = runs_bytes;
    ring_host_ = ring_host;
    RouteCost cost;
    for (size_t i = 0; i < kNumCopyForms; ++i) {
      if (static_cast<CopyForm>(i) == CopyForm::kRing && !ring_host) continue;
      KVBM_ASSIGN_OR_RETURN(const bool measured, form(static_cast<CopyForm>(i), src, dst, cost[i]));
      if (!measured) return std::nullopt;
    }
    return cost;
  }

 private:
  Result<bool> form(CopyForm form, const std::byte* src, std::byte* dst, FormCost& cost) {
    const bool is_ring = form == CopyForm::kRing;
    const bool is_runs = form == CopyForm::kEngineRuns;
    std::vector<CopyCost> submissions;
    for (const uint64_t run_bytes : run_sizes_of(form)) {
      const uint64_t all_runs =
          std::max<uint64_t>((is_runs ? runs_bytes_ : batch_bytes_) / run_bytes, kShare);
      const auto num_runs =
          static_cast<uint32_t>(is_runs ? std::min<uint64_t>(kMostRuns, all_runs) : all_runs);
      const auto ring_of = [&](uint32_t blocks) {
        return BatchShape{.num_blocks = blocks,
                          .num_rows = static_cast<uint32_t>(kRingBlockBytes / run_bytes),
                          .run_bytes = run_bytes};
      };
      const auto of = [&](uint32_t runs) {
        const uint32_t blocks = form == CopyForm::kEngineRows ? 1 : std::min(runs, kMostRuns);
        return BatchShape{.num_blocks = blocks, .num_rows = runs / blocks, .run_bytes = run_bytes};
      };
      const BatchShape few = is_ring ? ring_of(1) : of(num_runs / kShare);
      const BatchShape many = is_ring ? ring_of(kRingBlocks) : of(num_runs);
      KVBM_ASSIGN_OR_RETURN(const auto short_time, time_of(form, few, src, dst));
      KVBM_ASSIGN_OR_RETURN(const auto long_time, time_of(form, many, src, dst));
      if (!short_time || !long_time) return false;
      double rate = static_cast<double>(many.bytes()) / seconds(*long_time);
      if (*long_time > *short_time) {
        rate = static_cast<double>(many.bytes() - few.bytes()) / seconds(*long_time - *short_time);
      }
      // A longer run is not slower; where it seems to be, something has disturbed it.
      if (!cost.rates.empty()) rate = std::max(rate, cost.rates.back().bytes_per_second);
      cost.rates.push_back({run_bytes, rate});
      submissions.push_back(*short_time - CopyCost(static_cast<double>(few.bytes()) / rate * 1e6));
    }
    // Each is a difference of two measurements, too long or too short: the one in the middle.
    const auto middle = submissions.begin() + static_cast<ptrdiff_t>(submissions.size() / 2);
    std::ranges::nth_element(submissions, middle);
    cost.submission = std::max(*middle, CopyCost(0));
    if (is_runs) return true;

    constexpr uint64_t kStepRun = 4 * kKiB;
    const auto of = [&](uint32_t pieces) {
      return BatchShape{.num_pieces = pieces, .num_rows = kRowsOfAStep, .run_bytes = kStepRun};
    };
    const BatchShape few = of(8);
    const BatchShape many = of(64);
    KVBM_ASSIGN_OR_RETURN(const auto short_time, time_of(form, few, src, dst));
    KVBM_ASSIGN_OR_RETURN(const auto long_time, time_of(form, many, src, dst));
    if (!short_time || !long_time) return false;
    const CopyCost moving(static_cast<double>(many.bytes() - few.bytes()) /
                          cost.bytes_per_second(kStepRun) * 1e6);
    cost.step = std::max(CopyCost(0),
                         (*long_time - *short_time - moving) / (many.num_pieces - few.num_pieces));
    return true;
  }

  /// None when there is no time left.
  Result<std::optional<CopyCost>> time_of(CopyForm form, const BatchShape& shape,
                                          const std::byte* src, std::byte* dst) {
    const StridedCopyBatch batch = make_batch(form, shape, src, dst);
    std::vector<Duration> times;
    Duration spent{0};
    const size_t least = form == CopyForm::kRing ? kLeastOfRing : kLeastRepetitions;
    while (times.size() < least || (times.size() < kMostRepetitions && spent < kEnoughTime)) {
      const TimePoint start = now();
      if (start >= end_) return std::nullopt;
      KVBM_TRY(options_.device.copy(stream_, batch));
      const Event end = options_.device.record(stream_);
      while (!end.done() && now() - start < kPatience) std::this_thread::yield();
      KVBM_TRY(end.wait());
      times.push_back(std::max(now() - start, Duration(1)));
      spent += times.back();
    }
    return CopyCost(std::ranges::min(times));  // what disturbs a copy makes it longer
  }

  [[nodiscard]] StridedCopyBatch make_batch(CopyForm form, const BatchShape& shape,
                                            const std::byte* src, std::byte* dst) const {
    std::vector<BlockId> from;
    std::vector<BlockId> to;
    for (uint32_t i = 0; i < shape.num_blocks; ++i) {
      from.emplace_back(i);
      to.emplace_back(i);
    }
    Random(1).shuffle(std::span(from));  // no equal steps
    const auto [src_side, dst_side] = sides_of(form, shape);
    std::vector<StridedPiece> pieces;
    pieces.reserve(shape.num_pieces);
    for (uint32_t i = 0; i < shape.num_pieces; ++i) {
      pieces.push_back({.src = src + i * src_side.piece,
                        .dst = dst + i * dst_side.piece,
                        .src_block_stride = src_side.block,
                        .dst_block_stride = dst_side.block,
                        .bytes = shape.run_bytes,
                        .axes = {}});
      pieces.back().axes.back() = {
          .count = shape.num_rows, .src_stride = src_side.row, .dst_stride = dst_side.row};
    }
    return {.pairs = make_block_pairs(from, to),
            .pieces = std::move(pieces),
            .method = method_of(form)};
  }

  [[nodiscard]] std::pair<SideShape, SideShape> sides_of(CopyForm form,
                                                         const BatchShape& shape) const {
    const uint64_t run = shape.run_bytes;
    const uint64_t rows = shape.num_rows * run;
    if (form == CopyForm::kRing) {
      // The host has whole blocks; on the device runs of so many blocks lie side by side.
      const SideShape host = {.piece = rows, .block = shape.num_pieces * rows, .row = run};
      const SideShape device = {
          .piece = kRingBlocks * rows, .block = run, .row = kRingBlocks * run};
      return ring_host_ == CopySide::kSource ? std::pair(host, device) : std::pair(device, host);
    }
    const SideShape dst = {.piece = shape.num_blocks * rows, .block = rows, .row = run};
    if (form == CopyForm::kEngineRuns) return {dst, dst};  // the order of blocks keeps them apart
    return {{.piece = 2 * dst.piece, .block = 2 * dst.block, .row = 2 * dst.row}, dst};
  }

  static double seconds(CopyCost cost) { return cost.count() * 1e-6; }
  [[nodiscard]] TimePoint now() const { return options_.executor.clock().now(); }

  const CalibrationOptions& options_;
  const StreamRef stream_;
  const TimePoint end_;
  uint64_t batch_bytes_ = 0;
  uint64_t runs_bytes_ = 0;
  std::optional<CopySide> ring_host_;
};

/// Host memory that the device copies.
struct HostScratch {
  PinnedMemory pinned;
  SystemMemory pageable;
  std::byte* data = nullptr;
};

Result<HostScratch> make_scratch(const CalibrationOptions& options, uint64_t size_bytes,
                                 TimePoint end) {
  HostScratch scratch;
  if (options.pinner == nullptr) {
    KVBM_ASSIGN_OR_RETURN(scratch.pageable, SystemMemory::create({.size_bytes = size_bytes}));
    scratch.data = scratch.pageable.data();
  } else {
    KVBM_ASSIGN_OR_RETURN(scratch.pinned, PinnedMemory::create({.executor = options.executor,
                                                                .pinner = options.pinner,
                                                                .size_bytes = size_bytes}));
    KVBM_TRY(scratch.pinned.wait_for(size_bytes, end));
    scratch.data = scratch.pinned.data();
  }
  std::memset(scratch.data, 0, size_bytes);
  return scratch;
}

}  // namespace

std::string_view to_string(CopyForm form) noexcept {
  switch (form) {
    case CopyForm::kEngineRuns:
      return "engine runs";
    case CopyForm::kEngineRows:
      return "engine rows";
    case CopyForm::kKernel:
      return "kernel";
    case CopyForm::kRing:
      return "ring";
  }
  return "unknown";
}

double FormCost::bytes_per_second(uint64_t run_bytes) const noexcept {
  const auto above = std::ranges::lower_bound(rates, run_bytes, {}, &RunRate::run_bytes);
  if (above == rates.end()) return rates.back().bytes_per_second;
  const double above_run = static_cast<double>(above->run_bytes);
  const double run = static_cast<double>(run_bytes);
  if (above == rates.begin()) return above->bytes_per_second * run / above_run;
  const RunRate& below = *std::prev(above);
  const double below_run = static_cast<double>(below.run_bytes);
  const double share = std::log(run / below_run) / std::log(above_run / below_run);
  return below.bytes_per_second + share * (above->bytes_per_second - below.bytes_per_second);
}

void Calibration::set(TransferRoute route, RouteCost cost) {
  for (const FormCost& form : cost) {
    const bool is_ring = &form == &cost[static_cast<size_t>(CopyForm::kRing)];
    KVBM_CONTRACT(is_ring || !form.rates.empty(), "a form without a rate");
    KVBM_CONTRACT(std::ranges::is_sorted(form.rates, std::less_equal<>(), &RunRate::run_bytes),
                  "rates do not rise by run_bytes");
    KVBM_CONTRACT(std::ranges::all_of(
                      form.rates, [](const RunRate& rate) { return rate.bytes_per_second > 0; }),
                  "a rate that is not positive");
  }
  routes_[static_cast<size_t>(route)] = std::move(cost);
}

const RouteCost* Calibration::find(TransferRoute route) const noexcept {
  const auto& cost = routes_[static_cast<size_t>(route)];
  return cost ? &*cost : nullptr;
}

bool measures_ring(const DeviceCapabilities& capabilities) noexcept {
  return capabilities.ring_copies && capabilities.ring_block_bytes >= kRingBlockBytes;
}

Result<Calibration> measure_calibration(const CalibrationOptions& options) {
  if (options.device_bytes < kScratchBytes) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("copies of {} on a device tell nothing; measure {} and more",
                                  format_size(options.device_bytes), format_size(kScratchBytes)));
  }
  Calibration calibration;
  const DeviceCapabilities capabilities = options.device.info().capabilities;
  if (!capabilities.kernel_copies) return calibration;
  if (options.pinner == nullptr && !capabilities.copies_pageable_host) return calibration;
  const TimePoint end = saturating_add(options.executor.clock().now(), options.budget);
  KVBM_ASSIGN_OR_RETURN(const DeviceMemory src, options.device.allocate(kSrcBytes, 4096));
  KVBM_ASSIGN_OR_RETURN(const DeviceMemory dst, options.device.allocate(kDstBytes, 4096));
  auto host = make_scratch(options, kSrcBytes, end);
  if (!host) {
    if (host.error().code() == ErrorCode::kTimeout) return calibration;
    return make_error(std::move(host).error());
  }
  KVBM_ASSIGN_OR_RETURN(const StreamRef stream, options.device.create_stream("calibration"));
  const auto measure = [&]() -> Status {
    Measurement measurement(options, stream, end);
    const auto measure_route = [&](TransferRoute route, const std::byte* from, std::byte* to,
                                   uint64_t batch_bytes, uint64_t runs_bytes,
                                   std::optional<CopySide> ring_host = std::nullopt) -> Status {
      if (!measures_ring(capabilities)) ring_host = std::nullopt;
      KVBM_ASSIGN_OR_RETURN(auto cost,
                            measurement.route(from, to, batch_bytes, runs_bytes, ring_host));
      if (cost) calibration.set(route, *std::move(cost));
      return {};
    };
    KVBM_TRY(measure_route(TransferRoute::kHostToDevice, host->data, dst.data(), kLinkBytes,
                           kLinkBytesOfRuns, CopySide::kSource));
    KVBM_TRY(measure_route(TransferRoute::kDeviceToHost, src.data(), host->data, kLinkBytes,
                           kLinkBytesOfRuns, CopySide::kDestination));
    const auto far_src = options.device.allocate(2 * options.device_bytes, 4096);
    const auto far_dst = options.device.allocate(options.device_bytes, 4096);
    if (!far_src || !far_dst) return {};
    return measure_route(TransferRoute::kDeviceToDevice, far_src->data(), far_dst->data(),
                         options.device_bytes, options.device_bytes);
  };
  const Status measured = measure();
  static_cast<void>(options.device.synchronize(stream));  // scratch memory goes after the copies
  static_cast<void>(options.device.destroy_stream(stream));
  KVBM_TRY(Status(measured));
  return calibration;
}

}  // namespace kvbm
