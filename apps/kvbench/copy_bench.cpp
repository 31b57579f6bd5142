// SPDX-License-Identifier: Apache-2.0
#include "apps/kvbench/copy_bench.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "kvbm/base/text.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/runtime/calibration_cache.hpp"
#include "kvbm/runtime/devices.hpp"
#include "kvbm/transfer/copy_choice.hpp"
#include "kvbm/transfer/transfer_manager.hpp"
#include "kvbm/transfer/transfer_plan.hpp"
#include "kvbm/transfer/transfer_strategy.hpp"

#include "apps/kvbench/bench_place.hpp"
#include "apps/kvbench/raw_copies.hpp"

namespace kvbm {
namespace {

using WallClock = std::chrono::steady_clock;
using Milliseconds = std::chrono::duration<double, std::milli>;

/// Above, single copies take seconds, and say nothing that fewer do not. With the event behind them
/// they fit into a stream of the host.
constexpr uint64_t kMostSingleCopies = 65535;
/// Of a plain copy, for the peak.
constexpr uint32_t kPlainCopies = 20;

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

double gbps(uint64_t bytes, double ms) { return static_cast<double>(bytes) / ms * 1e-6; }

/// Milliseconds of one copy, to its end.
using TimeCopy = std::function<Result<double>()>;

/// By what the formats say, not by the plan, which is measured beside them.
CopyPairs pairs_of(const BenchPlaces& places, const BenchCell& cell, const CellSizes& sizes) {
  const PhysicalLayout& src = places.source();
  const PhysicalLayout& dst = places.destination();
  const LayoutConfig& config = src.config();
  CopyPairs pairs{.bytes = sizes.copy};
  pairs.src.reserve(sizes.num_copies);
  pairs.dst.reserve(sizes.num_copies);
  const auto add = [&pairs](const MemoryRegion& from, const MemoryRegion& to) {
    pairs.src.push_back(from.base());
    pairs.dst.push_back(to.base());
  };
  for (size_t i = 0; i < places.source_ids().size(); ++i) {
    const BlockId from = places.source_ids()[i];
    const BlockId to = places.destination_ids()[i];
    if (cell.pattern == CopyPattern::kFcToFc) {
      add(src.region(from, LayerId(0), 0), dst.region(to, LayerId(0), 0));
      continue;
    }
    for (uint32_t l = 0; l < config.num_layers; ++l) {
      const LayerId layer(static_cast<uint16_t>(l));
      for (uint32_t outer = 0; outer < config.outer_dim; ++outer) {
        if (!cell.permutes()) {
          add(src.region(from, layer, outer), dst.region(to, layer, outer));
          continue;
        }
        for (uint32_t head = 0; head < *config.num_heads; ++head) {
          for (uint32_t token = 0; token < config.page_size; ++token) {
            add(src.head_region(from, layer, outer, head, token),
                dst.head_region(to, layer, outer, head, token));
          }
        }
      }
    }
  }
  return pairs;
}

PermutedBlocks permuted_of(const BenchPlaces& places, const BenchCell& cell) {
  const bool to_universal = cell.pattern == CopyPattern::kNhdToUniversal;
  const PhysicalLayout& universal = to_universal ? places.destination() : places.source();
  const PhysicalLayout& stack = to_universal ? places.source() : places.destination();
  const auto universal_ids = to_universal ? places.destination_ids() : places.source_ids();
  const auto stack_ids = to_universal ? places.source_ids() : places.destination_ids();
  const LayoutConfig& config = stack.config();
  PermutedBlocks blocks{.num_heads = *config.num_heads,
                        .num_layers = config.num_layers,
                        .outer_dim = config.outer_dim,
                        .page_size = config.page_size,
                        .head_dim = config.inner_dim / *config.num_heads,
                        .dtype_width_bytes = config.dtype_width_bytes,
                        .to_universal = to_universal};
  for (size_t i = 0; i < stack_ids.size(); ++i) {
    blocks.universal.push_back(universal.head_region(universal_ids[i], LayerId(0), 0, 0, 0).base());
    for (uint32_t l = 0; l < config.num_layers; ++l) {
      for (uint32_t outer = 0; outer < config.outer_dim; ++outer) {
        blocks.chunks.push_back(
            stack.region(stack_ids[i], LayerId(static_cast<uint16_t>(l)), outer).base());
      }
    }
  }
  return blocks;
}

class CopyBench {
 public:
  CopyBench(const KvbenchOptions& options, LogSink& log, const BenchOutput& output)
      : options_(options), log_(log), output_(output) {}
  ~CopyBench() {
    if (device_.device) static_cast<void>(device_.device->destroy_stream(own_stream_));
  }
  CopyBench(const CopyBench&) = delete;
  CopyBench& operator=(const CopyBench&) = delete;

  Status set_up(std::string device_name);
  Result<BenchReport> run();

 private:
  Status measure_plain(const std::vector<BenchCell>& cells);
  Result<double> plain_rate(const MemoryRegion& src, const MemoryRegion& dst, uint64_t bytes);
  Status run_cell(const BenchCell& cell);
  Status run_test(const BenchCell& cell, CopyBackend backend, BenchPlaces& places);
  Result<TimeCopy> make_copy(const BenchCell& cell, CopyBackend backend, const BenchPlaces& places,
                             std::string& chosen);
  Result<TimeCopy> make_raw(const BenchCell& cell, CopyBackend backend, const BenchPlaces& places);
  Result<TimeCopy> make_auto(const BenchPlaces& places, std::string& chosen);
  Result<TimeCopy> make_managed(const BenchPlaces& places);
  void leave_out(const BenchCell& cell, CopyBackend backend, const Error& error);
  [[nodiscard]] bool interrupted() const {
    return output_.interrupted != nullptr && *output_.interrupted;
  }
  [[nodiscard]] const PlainCopy* plain_of(CopyDirection direction, uint64_t bytes) const;

  const KvbenchOptions& options_;
  LogSink& log_;
  const BenchOutput& output_;
  BenchReport report_;
  size_t num_tests_ = 0;
  size_t tests_done_ = 0;

  ThreadExecutor executor_{log_};
  OpenedDevice device_;
  Calibration calibration_;
  std::optional<BenchMemory> memory_;
  StreamRef own_stream_;  ///< for what the stream of the raw copies does not take
  std::unique_ptr<TransferManager> manager_;
  std::unique_ptr<RawCopies> raw_;  ///< last: it gives its stream back to the device
};

Status CopyBench::set_up(std::string device_name) {
  KVBM_ASSIGN_OR_RETURN(
      device_,
      open_device({.name = device_name, .executor = executor_, .queue_name = "kvbench-host"}));
  const DeviceInfo info = device_.device->info();
  KVBM_ASSIGN_OR_RETURN(own_stream_, device_.device->create_stream("kvbench"));
  KVBM_ASSIGN_OR_RETURN(raw_, RawCopies::create(device_));
  KVBM_ASSIGN_OR_RETURN(CalibrationFound found,
                        calibrate({.device = *device_.device,
                                   .executor = executor_,
                                   .log = log_,
                                   .pinner = device_.pinner,
                                   .identity = device_.identity,
                                   .folder = calibration_folder(options_.calibration_dir)}));
  calibration_ = std::move(found.calibration);
  KVBM_ASSIGN_OR_RETURN(manager_, TransferManager::create({.device = *device_.device,
                                                           .executor = executor_,
                                                           .log = log_,
                                                           .calibration = calibration_}));
  report_.device = {.name = std::move(device_name),
                    .model = info.name,
                    .driver = device_.identity.driver,
                    .driver_version = device_.identity.driver_version,
                    .has_batch = raw_->has_batch()};
  return {};
}

Result<BenchReport> CopyBench::run() {
  const std::vector<BenchCell> cells = options_.cells();
  num_tests_ = cells.size() * options_.backends.size();
  output_.note(header_text(options_, report_.device));
  KVBM_TRY(measure_plain(cells));
  output_.row(csv_header());
  uint32_t tokens = 0;
  for (const BenchCell& cell : cells) {
    if (cell.tokens_per_block != tokens) {
      tokens = cell.tokens_per_block;
      output_.note(block_text(options_.shape, tokens));
    }
    KVBM_TRY(run_cell(cell));
  }
  output_.note("\nDone.\n");
  output_.note(auto_text(compare_auto(report_.results)));
  output_.note(not_run_text(report_.not_run));
  return std::move(report_);
}

/// One copy of each total of the grid, in each direction.
Status CopyBench::measure_plain(const std::vector<BenchCell>& cells) {
  std::set<uint64_t> totals;
  for (const BenchCell& cell : cells) totals.insert(sizes_of(options_.shape, cell).total);
  const uint64_t most = *totals.rbegin();
  memory_.emplace(device_, executor_, host_bytes_of(options_.shape, most));
  const auto wants = [this](CopyDirection direction) {
    return std::ranges::find(options_.directions, direction) != options_.directions.end();
  };
  Device& device = *device_.device;
  KVBM_ASSIGN_OR_RETURN(const DeviceMemory near, device.allocate(most, 4096));
  DeviceMemory other;
  if (wants(CopyDirection::kD2d)) {
    KVBM_ASSIGN_OR_RETURN(other, device.allocate(most, 4096));
  }
  OwnedRegion host;
  if (wants(CopyDirection::kH2d) || wants(CopyDirection::kD2h)) {
    KVBM_ASSIGN_OR_RETURN(host, memory_->take_host(most));
    std::memset(host.region.base(), 1, host.region.size_bytes());  // pages of their own
  }
  for (const CopyDirection direction : options_.directions) {
    const MemoryRegion gpu = MemoryRegion::of(near);
    const MemoryRegion src = direction == CopyDirection::kH2d ? host.region : gpu;
    MemoryRegion dst = direction == CopyDirection::kH2d ? gpu : host.region;
    if (direction == CopyDirection::kD2d) dst = MemoryRegion::of(other);
    for (const uint64_t bytes : totals) {
      KVBM_ASSIGN_OR_RETURN(const double rate, plain_rate(src, dst, bytes));
      report_.plain.push_back({.direction = direction, .bytes = bytes, .gbps = rate});
    }
  }
  return {};
}

Result<double> CopyBench::plain_rate(const MemoryRegion& src, const MemoryRegion& dst,
                                     uint64_t bytes) {
  const BlockPairList one = make_block_pairs({BlockId(0)});
  const SubmitCopy submit = [&] {
    return device_.device->copy(
        raw_->stream(),
        {.pairs = one, .pieces = {{.src = src.base(), .dst = dst.base(), .bytes = bytes}}});
  };
  std::vector<double> ms;
  for (uint32_t i = 0; i < 2 + std::min(options_.iters, kPlainCopies); ++i) {
    if (interrupted()) return make_error(ErrorCode::kCancelled, "interrupted");
    KVBM_ASSIGN_OR_RETURN(const double each, raw_->time(submit));
    if (i >= 2) ms.push_back(each);
  }
  return gbps(bytes, median(std::move(ms)));
}

const PlainCopy* CopyBench::plain_of(CopyDirection direction, uint64_t bytes) const {
  const auto found = std::ranges::find_if(report_.plain, [&](const PlainCopy& each) {
    return each.direction == direction && each.bytes == bytes;
  });
  return &*found;
}

Status CopyBench::run_cell(const BenchCell& cell) {
  auto places =
      BenchPlaces::create(*memory_, options_.shape.config(cell.tokens_per_block, cell.num_blocks),
                          cell, options_.sequential_ids);
  if (!places && places.error().code() != ErrorCode::kExhausted) {
    return make_error(std::move(places).error());
  }
  for (const CopyBackend backend : options_.backends) {
    output_.note(progress_text(++tests_done_, num_tests_, cell, backend));
    if (places) {
      KVBM_TRY(run_test(cell, backend, *places));
    } else {
      leave_out(cell, backend, places.error());
    }
  }
  return {};
}

void CopyBench::leave_out(const BenchCell& cell, CopyBackend backend, const Error& error) {
  output_.note("not run\n");
  report_.not_run.push_back({.cell = cell, .backend = backend, .reason = error.message()});
}

Status CopyBench::run_test(const BenchCell& cell, CopyBackend backend, BenchPlaces& places) {
  TestResult result{.cell = cell, .backend = backend, .sizes = sizes_of(options_.shape, cell)};
  auto copy = make_copy(cell, backend, places, result.chosen);
  if (!copy) {
    if (copy.error().code() != ErrorCode::kUnsupported) return make_error(std::move(copy).error());
    leave_out(cell, backend, copy.error());
    return {};
  }
  KVBM_TRY(places.clear());
  KVBM_TRY((*copy)());
  if (Status checked = places.check(); !checked) {
    return make_error(Error(std::move(checked).error()).with_context(to_string(backend)));
  }
  std::vector<double> ms;
  const auto start = WallClock::now();
  for (uint32_t i = 0; i < options_.warmup + options_.iters; ++i) {
    if (interrupted()) return make_error(ErrorCode::kCancelled, "interrupted");
    KVBM_ASSIGN_OR_RETURN(const double each, (*copy)());
    const bool late = options_.test_ms > 0 && Milliseconds(WallClock::now() - start).count() >
                                                  static_cast<double>(options_.test_ms);
    if (i >= options_.warmup || late) ms.push_back(each);
    if (late && ms.size() >= kLeastTimed) break;
  }
  result.timed = static_cast<uint32_t>(ms.size());
  result.min_ms = *std::ranges::min_element(ms);
  result.median_ms = median(std::move(ms));
  result.bandwidth_gbps = gbps(result.sizes.total, result.median_ms);
  result.plain_gbps = plain_of(cell.direction, result.sizes.total)->gbps;
  const auto largest = std::ranges::max_element(report_.plain, {}, &PlainCopy::bytes);
  result.peak_gbps = plain_of(cell.direction, largest->bytes)->gbps;
  output_.row(csv_row(result));
  output_.note(outcome_text(result));
  report_.results.push_back(std::move(result));
  return {};
}

Result<TimeCopy> CopyBench::make_copy(const BenchCell& cell, CopyBackend backend,
                                      const BenchPlaces& places, std::string& chosen) {
  if (backend == CopyBackend::kAuto) return make_auto(places, chosen);
  if (backend == CopyBackend::kTransferMgr) return make_managed(places);
  return make_raw(cell, backend, places);
}

Result<TimeCopy> CopyBench::make_raw(const BenchCell& cell, CopyBackend backend,
                                     const BenchPlaces& places) {
  const CellSizes sizes = sizes_of(options_.shape, cell);
  if (backend != CopyBackend::kVectorized && sizes.num_copies > kMostSingleCopies) {
    return make_error(
        ErrorCode::kUnsupported,
        format_text("more than {} copies take too long one by one", kMostSingleCopies));
  }
  const auto make = [&]() -> Result<SubmitCopy> {
    if (backend == CopyBackend::kVectorized) {
      if (cell.permutes()) return raw_->permuted(permuted_of(places, cell));
      return raw_->vectorized(pairs_of(places, cell, sizes));
    }
    if (backend == CopyBackend::kBatched) return raw_->batched(pairs_of(places, cell, sizes));
    return raw_->one_by_one(pairs_of(places, cell, sizes));
  };
  KVBM_ASSIGN_OR_RETURN(SubmitCopy submit, make());
  return TimeCopy([this, submit = std::move(submit)] { return raw_->time(submit); });
}

Result<TimeCopy> CopyBench::make_auto(const BenchPlaces& places, std::string& chosen) {
  const PhysicalLayout& src = places.source();
  const PhysicalLayout& dst = places.destination();
  const DeviceCapabilities capabilities = device_.device->info().capabilities;
  KVBM_ASSIGN_OR_RETURN(const TransferPlan plan, TransferPlan::create(src, dst));
  const bool reshaped = src.kv_block_layout().requires_transform(dst.kv_block_layout());
  KVBM_ASSIGN_OR_RETURN(
      const TransferStrategy strategy,
      choose_strategy({.src = {.storage = src.storage_kind()},
                       .dst = {.storage = dst.storage_kind()},
                       .match = reshaped ? BlockMatch::kReshaped : BlockMatch::kSameBytes,
                       .device = capabilities}));
  StridedCopyBatch batch{
      .pairs = std::make_shared<const BlockPairs>(places.source_ids(), places.destination_ids()),
      .pieces = plan.with_addresses(src, dst)};
  const MethodChoice choice = choose_method({.pieces = batch.pieces,
                                             .num_blocks = batch.pairs->size(),
                                             .num_groups = batch.pairs->count_groups(),
                                             .route = strategy.first.route(),
                                             .capabilities = capabilities,
                                             .calibration = calibration_});
  batch.method = choice.method;
  batch.max_ctas = choice.max_ctas;
  batch.max_bytes_per_second = choice.max_bytes_per_second;
  chosen = describe(choice);
  // A stream with events of others is not for the ring.
  const bool by_ring = choice.method == CopyMethod::kRing;
  const StreamRef stream = by_ring ? own_stream_ : raw_->stream();
  SubmitCopy submit = [this, stream, batch = std::move(batch)] {
    return device_.device->copy(stream, batch);
  };
  return TimeCopy([this, by_ring, stream, submit = std::move(submit)] {
    return by_ring ? time_on_host(*device_.device, stream, submit) : raw_->time(submit);
  });
}

Result<TimeCopy> CopyBench::make_managed(const BenchPlaces& places) {
  // Registered for as long as the copy is there.
  struct Registered {
    Registered(TransferManager& the_manager, LayoutHandle the_src, LayoutHandle the_dst)
        : manager(the_manager), src(the_src), dst(the_dst) {}
    Registered(const Registered&) = delete;
    Registered& operator=(const Registered&) = delete;
    ~Registered() {
      static_cast<void>(manager.unregister_layout(src));
      static_cast<void>(manager.unregister_layout(dst));
    }
    TransferManager& manager;
    LayoutHandle src;
    LayoutHandle dst;
  };
  KVBM_ASSIGN_OR_RETURN(const LayoutHandle src, manager_->register_layout(places.source()));
  KVBM_ASSIGN_OR_RETURN(const LayoutHandle dst, manager_->register_layout(places.destination()));
  auto layouts = std::make_shared<const Registered>(*manager_, src, dst);
  return TimeCopy([layouts = std::move(layouts), from = places.source_ids(),
                   to = places.destination_ids()]() -> Result<double> {
    const auto start = WallClock::now();
    KVBM_ASSIGN_OR_RETURN(
        const TransferCompleteNotification done,
        layouts->manager.execute_transfer(
            {.src = layouts->src, .src_ids = from, .dst = layouts->dst, .dst_ids = to}));
    KVBM_TRY(done.wait());
    return Milliseconds(WallClock::now() - start).count();
  });
}

}  // namespace

Result<BenchReport> run_copy_bench(const KvbenchOptions& options, LogSink& log,
                                   const BenchOutput& output) {
  CopyBench bench(options, log, output);
  KVBM_TRY(bench.set_up(options.device));
  return bench.run();
}

}  // namespace kvbm
