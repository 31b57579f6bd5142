// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/kvbm_worker.hpp"

#include <limits>
#include <utility>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/memory/host_memory.hpp"
#include "kvbm/memory/posix_file_engine.hpp"
#include "kvbm/runtime/calibration_cache.hpp"
#include "kvbm/runtime/internal/rank_link.hpp"

namespace kvbm {

/// Members go in reverse order, the hooks first.
struct KvbmWorker::Impl {
  explicit Impl(LogSink& the_log) : log(the_log), executor(the_log) {}

  LogSink& log;
  ThreadExecutor executor;
  MetricsRegistry metrics;
  OpenedDevice device;
  std::unique_ptr<PosixFileEngine> files;
  StreamRef compute;
  std::unique_ptr<Worker> worker;
  std::unique_ptr<ConnectorWorker> hooks;
  std::vector<PlaceSpec> places;
  RankId rank;
  std::unique_ptr<internal::WorkerLink> leader;
};

namespace {

/// A block as opaque bytes: what its runs are called in the engine is the engine's affair.
LayoutConfig layout_of(const EngineGroup& group, uint32_t num_blocks) {
  return {.num_blocks = num_blocks,
          .num_layers = static_cast<uint32_t>(group.runs.size()),
          .outer_dim = 1,
          .page_size = 1,
          .inner_dim = static_cast<uint32_t>(group.run_bytes),
          .dtype_width_bytes = 1};
}

Result<PhysicalLayout> tensors_of(const EngineGroup& group, const LayoutConfig& config,
                                  StorageKind kind) {
  std::vector<PageMap> maps;
  for (size_t i = 0; i < group.runs.size(); ++i) {
    const EngineRun& run = group.runs[i];
    const uint64_t extent = (config.num_blocks - 1) * run.block_stride + group.run_bytes;
    KVBM_ASSIGN_OR_RETURN(PageMap map,
                          PageMap::create({.region = MemoryRegion::of_bytes(kind, run.base, extent),
                                           .base_offset = 0,
                                           .num_blocks = config.num_blocks,
                                           .block_stride = run.block_stride,
                                           .layers = {LayerId(static_cast<uint16_t>(i)), 1},
                                           .layer_stride = 0,
                                           .outer_dim = 1,
                                           .outer_stride = 0,
                                           .run_bytes = group.run_bytes}));
    maps.push_back(std::move(map));
  }
  return PhysicalLayout::from_page_maps(config, std::move(maps));
}

/// Has a kernel copy the first and the last byte of every run: a device looks up what its kernels
/// are to touch, and refuses an address that is not its own. Nothing else would tell before a copy
/// of the engine's bytes goes wrong.
Status check_reach(const OpenedDevice& opened, const PhysicalLayout& tensors) {
  Device& device = *opened.device;
  if (!device.info().capabilities.kernel_copies) return {};
  KVBM_ASSIGN_OR_RETURN(const HostMemory landing,
                        HostMemory::create({.executor = device.executor(),
                                            .pinner = opened.pinner,
                                            .size_bytes = 2 * tensors.page_maps().size()}));
  std::vector<StridedPiece> ends;
  std::byte* to = landing.bytes().data();
  for (const PageMap& map : tensors.page_maps()) {
    const MemoryRegion& region = map.region();
    for (const uint64_t at : {uint64_t{0}, region.size_bytes() - 1}) {
      ends.push_back({.src = region.base() + at, .dst = to++, .bytes = 1});
    }
  }
  KVBM_ASSIGN_OR_RETURN(const StreamRef stream, device.create_stream("check"));
  Status reached = device.copy(stream, {.pairs = make_block_pairs({BlockId(0)}),
                                        .pieces = std::move(ends),
                                        .method = CopyMethod::kKernel});
  if (reached) reached = device.synchronize(stream);
  KVBM_TRY(device.destroy_stream(stream));
  if (reached) return {};
  return make_error(std::move(reached).error().with_context("the tensors of the engine"));
}

Status check(const KvbmWorkerOptions& options) {
  const auto invalid = [](std::string message) {
    return make_error(ErrorCode::kInvalidArgument, std::move(message));
  };
  if (options.num_blocks == 0) return invalid("the engine has no blocks");
  if (options.groups.empty()) return invalid("the engine has no layer group");
  for (size_t i = 0; i < options.groups.size(); ++i) {
    const EngineGroup& group = options.groups[i];
    if (group.runs.empty() || group.run_bytes == 0 ||
        group.run_bytes > std::numeric_limits<uint32_t>::max()) {
      return invalid(format_text("layer group {} has {} runs of {} bytes", i, group.runs.size(),
                                 group.run_bytes));
    }
    for (const EngineRun& run : group.runs) {
      if (run.base == nullptr) return invalid(format_text("layer group {} has no memory", i));
      if (run.block_stride > std::numeric_limits<uint64_t>::max() / 2 / options.num_blocks) {
        return invalid(
            format_text("layer group {} has blocks {} bytes apart", i, run.block_stride));
      }
    }
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<KvbmWorker>> KvbmWorker::create(KvbmWorkerOptions options, LogSink& log) {
  KVBM_TRY(check(options));
  auto impl = std::make_unique<Impl>(log);
  impl->rank = RankId(options.rank);
  const std::string suffix = "-" + std::to_string(options.rank);
  const auto open = options.open_device ? options.open_device : open_device;
  KVBM_ASSIGN_OR_RETURN(impl->device, open({.name = options.device,
                                            .executor = impl->executor,
                                            .num_threads = options.copy_threads,
                                            .queue_name = "kvbm-copy" + suffix,
                                            .host_ordinal = options.rank,
                                            .cuda_ring_size = options.cuda_ring_size}));
  Device& device = *impl->device.device;
  const bool on_gpu = device.info().kind != DeviceKind::kHost;
  if (!on_gpu && options.compute_stream) {
    return make_error(ErrorCode::kInvalidArgument,
                      "compute_stream is a stream of a GPU: device = host has none");
  }
  if (!options.disk_directory.empty()) {
    KVBM_ASSIGN_OR_RETURN(impl->files, PosixFileEngine::create({.executor = impl->executor,
                                                                .num_threads = options.disk_threads,
                                                                .name = "kvbm-disk" + suffix}));
  }
  if (on_gpu) {
    KVBM_ASSIGN_OR_RETURN(impl->compute,
                          impl->device.adopt_stream(options.compute_stream.value_or(0), "compute"));
  } else {
    KVBM_ASSIGN_OR_RETURN(impl->compute, device.create_stream("compute"));
  }
  KVBM_ASSIGN_OR_RETURN(CalibrationFound costs,
                        calibrate({.device = device,
                                   .executor = impl->executor,
                                   .log = log,
                                   .pinner = impl->device.pinner,
                                   .identity = impl->device.identity,
                                   .folder = calibration_folder(options.calibration_dir)}));
  ModelLayout model;
  for (size_t i = 0; i < options.groups.size(); ++i) {
    model.groups.push_back({.id = GroupId(static_cast<uint16_t>(i)),
                            .config = layout_of(options.groups[i], options.num_blocks)});
  }
  KVBM_ASSIGN_OR_RETURN(impl->worker,
                        Worker::create({.rank = RankId(options.rank),
                                        .worker = WorkerId(options.rank),
                                        .model = model,
                                        .disk_directory = options.disk_directory,
                                        .direct_io = options.direct_io,
                                        .zero_fill = options.zero_fill,
                                        .metrics = &impl->metrics,
                                        .pinner = impl->device.pinner,
                                        .calibration = std::move(costs.calibration)},
                                       device, impl->files.get(), impl->executor, log));
  for (size_t i = 0; i < options.groups.size(); ++i) {
    KVBM_ASSIGN_OR_RETURN(PhysicalLayout tensors,
                          tensors_of(options.groups[i], model.groups[i].config,
                                     on_gpu ? StorageKind::kDevice : StorageKind::kSystem));
    if (on_gpu) KVBM_TRY(check_reach(impl->device, tensors));
    KVBM_ASSIGN_OR_RETURN(
        PlaceSpec place, impl->worker->attach({TierId::kG1, model.groups[i].id}, std::move(tensors),
                                              options.groups[i].runs_per_layer));
    impl->places.push_back(place);
  }
  impl->hooks =
      std::make_unique<ConnectorWorker>(*impl->worker, device, impl->compute,
                                        on_gpu ? EngineCompute::kOnStream : EngineCompute::kOnHost);
  return std::unique_ptr<KvbmWorker>(new KvbmWorker(std::move(impl)));
}

KvbmWorker::KvbmWorker(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
KvbmWorker::~KvbmWorker() = default;

Worker& KvbmWorker::worker() noexcept { return *impl_->worker; }
ConnectorWorker& KvbmWorker::hooks() noexcept { return *impl_->hooks; }
const std::vector<PlaceSpec>& KvbmWorker::engine_places() const noexcept { return impl_->places; }

Status KvbmWorker::connect(const std::string& endpoint, const std::string& secret) {
  KVBM_CONTRACT(!impl_->leader, "a worker has one leader");
  KVBM_ASSIGN_OR_RETURN(impl_->leader,
                        internal::connect_to_leader({.endpoint = endpoint,
                                                     .rank = impl_->rank,
                                                     .secret = secret,
                                                     .engine_places = impl_->places},
                                                    *impl_->worker, impl_->executor, impl_->log));
  return {};
}

MetricsRegistry& KvbmWorker::metrics() noexcept { return impl_->metrics; }

Status KvbmWorker::stop(TimePoint deadline) {
  impl_->hooks->end_step();
  KVBM_TRY(impl_->worker->stop(deadline));
  impl_->leader.reset();
  return {};
}

}  // namespace kvbm
