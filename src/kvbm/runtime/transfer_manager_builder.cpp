// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/transfer_manager_builder.hpp"

#include <utility>

#include "kvbm/base/log_spdlog.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/memory/pinned_memory.hpp"
#include "kvbm/memory/posix_file_engine.hpp"
#include "kvbm/memory/system_memory.hpp"
#include "kvbm/runtime/calibration_cache.hpp"
#include "kvbm/runtime/devices.hpp"

namespace kvbm {

/// Members go in reverse order.
struct OwnedTransferManager::Parts {
  explicit Parts(LogSink* given)
      : own_log(given != nullptr ? nullptr : SpdlogSink::to_stderr(LogLevel::kWarning)),
        log(given != nullptr ? *given : *own_log) {}

  std::unique_ptr<LogSink> own_log;  // null: another is borrowed
  LogSink& log;
  ThreadExecutor executor{log};
  OpenedDevice device;
  std::unique_ptr<FileEngine> files;
  std::unique_ptr<TransferManager> transfers;
};

OwnedTransferManager::OwnedTransferManager(std::unique_ptr<Parts> parts) noexcept
    : parts_(std::move(parts)) {}
OwnedTransferManager::~OwnedTransferManager() = default;

TransferManager& OwnedTransferManager::operator*() const noexcept { return *parts_->transfers; }
Device& OwnedTransferManager::device() const noexcept { return *parts_->device.device; }
Executor& OwnedTransferManager::executor() const noexcept { return parts_->executor; }

LayoutBuilder OwnedTransferManager::layout() const {
  return PhysicalLayout::builder(parts_->transfers->worker_address().agent_name);
}

RegionAllocator OwnedTransferManager::pinned_memory() const {
  if (!parts_->device.pinner) {
    return [](uint64_t size_bytes, uint64_t alignment) -> Result<OwnedRegion> {
      KVBM_ASSIGN_OR_RETURN(SystemMemory memory, SystemMemory::create({.size_bytes = size_bytes,
                                                                       .alignment = alignment}));
      OwnedRegion owned = OwnedRegion::of(std::move(memory));
      owned.region = MemoryRegion::of_bytes(StorageKind::kPinned, owned.region.base(),
                                            owned.region.size_bytes());
      return owned;
    };
  }
  // Its pages are aligned to more than a layout asks for; what is not, the layout refuses.
  return [&executor = parts_->executor, pinner = parts_->device.pinner](
             uint64_t size_bytes, uint64_t /*alignment*/) -> Result<OwnedRegion> {
    KVBM_ASSIGN_OR_RETURN(
        PinnedMemory memory,
        PinnedMemory::create({.executor = executor, .pinner = pinner, .size_bytes = size_bytes}));
    KVBM_TRY(memory.wait_for(size_bytes));
    return OwnedRegion::of(std::move(memory));
  };
}

Result<StreamRef> OwnedTransferManager::adopt_stream(uintptr_t native_stream,
                                                     std::string_view name) const {
  if (!parts_->device.adopt_stream) {
    return make_error(ErrorCode::kUnsupported,
                      "the host knows no streams of others: take one of context()");
  }
  return parts_->device.adopt_stream(native_stream, name);
}

TransferManagerBuilder& TransferManagerBuilder::cuda_device_id(int32_t ordinal) {
  device_ = format_text("cuda:{}", ordinal);
  return *this;
}
TransferManagerBuilder& TransferManagerBuilder::device(std::string name) {
  device_ = std::move(name);
  return *this;
}
TransferManagerBuilder& TransferManagerBuilder::cuda_pool_reserve_size(uint64_t size_bytes) {
  cuda_pool_reserve_size_ = size_bytes;
  return *this;
}
TransferManagerBuilder& TransferManagerBuilder::cuda_pool_release_threshold(uint64_t size_bytes) {
  cuda_pool_release_threshold_ = size_bytes;
  return *this;
}
TransferManagerBuilder& TransferManagerBuilder::cuda_ring_size(uint64_t size_bytes) {
  cuda_ring_size_ = size_bytes;
  return *this;
}
TransferManagerBuilder& TransferManagerBuilder::nixl_backend(std::string name) {
  nixl_backends_.push_back(std::move(name));
  return *this;
}
TransferManagerBuilder& TransferManagerBuilder::remote_agent(RemoteAgent& agent) {
  remote_agent_ = &agent;
  return *this;
}
TransferManagerBuilder& TransferManagerBuilder::worker_id(WorkerId worker) {
  worker_ = worker;
  return *this;
}
TransferManagerBuilder& TransferManagerBuilder::agent_name(std::string name) {
  agent_name_ = std::move(name);
  return *this;
}
TransferManagerBuilder& TransferManagerBuilder::capabilities(const TransferCapabilities& allowed) {
  capabilities_ = allowed;
  return *this;
}
TransferManagerBuilder& TransferManagerBuilder::gds(GdsOptions options) {
  gds_ = std::move(options);
  return *this;
}
TransferManagerBuilder& TransferManagerBuilder::preferences(const TransferPreferences& wishes) {
  preferences_ = wishes;
  return *this;
}
TransferManagerBuilder& TransferManagerBuilder::streams_per_direction(size_t count) {
  streams_per_direction_ = count;
  return *this;
}
TransferManagerBuilder& TransferManagerBuilder::file_threads(size_t count) {
  file_threads_ = count;
  return *this;
}
TransferManagerBuilder& TransferManagerBuilder::calibration_dir(std::string folder) {
  calibration_dir_ = std::move(folder);
  return *this;
}
TransferManagerBuilder& TransferManagerBuilder::log(LogSink& sink) {
  log_ = &sink;
  return *this;
}

Result<std::unique_ptr<OwnedTransferManager>> TransferManagerBuilder::build() const {
  if (gds_ && !capabilities_.allow_gds) {
    return make_error(
        ErrorCode::kInvalidArgument,
        "options of GPU Direct Storage have no effect: set allow_gds of capabilities()");
  }
  auto parts = std::make_unique<OwnedTransferManager::Parts>(log_);
  KVBM_ASSIGN_OR_RETURN(parts->device,
                        open_device({.name = device_.empty() ? default_device() : device_,
                                     .executor = parts->executor,
                                     .queue_name = format_text("w{}-copy", worker_),
                                     .cuda_pool_reserve_size = cuda_pool_reserve_size_,
                                     .cuda_pool_release_threshold = cuda_pool_release_threshold_,
                                     .cuda_ring_size = cuda_ring_size_}));
  KVBM_ASSIGN_OR_RETURN(CalibrationFound costs,
                        calibrate({.device = *parts->device.device,
                                   .executor = parts->executor,
                                   .log = parts->log,
                                   .pinner = parts->device.pinner,
                                   .identity = parts->device.identity,
                                   .folder = calibration_folder(calibration_dir_)}));
  KVBM_ASSIGN_OR_RETURN(parts->files,
                        PosixFileEngine::create({.executor = parts->executor,
                                                 .num_threads = file_threads_,
                                                 .name = format_text("w{}-file", worker_)}));
  // The host addresses the memory of any other device.
  if (capabilities_.allow_gds && parts->device.device->info().kind == DeviceKind::kCuda) {
    KVBM_ASSIGN_OR_RETURN(parts->files, with_gds({.files = std::move(parts->files),
                                                  .device = parts->device,
                                                  .executor = parts->executor,
                                                  .gds = gds_.value_or(GdsOptions{}),
                                                  .num_threads = file_threads_,
                                                  .name = format_text("w{}-cufile", worker_)}));
  }
  TransferConfig config{.worker = worker_,
                        .device = *parts->device.device,
                        .executor = parts->executor,
                        .log = parts->log,
                        .files = parts->files.get(),
                        .calibration = std::move(costs.calibration),
                        .agent_name = agent_name_,
                        .capabilities = capabilities_,
                        .preferences = preferences_,
                        .pinner = parts->device.pinner};
  config.remote_agent = remote_agent_;
  if (streams_per_direction_) config.streams_per_direction = *streams_per_direction_;
  for (const std::string& name : nixl_backends_) KVBM_TRY(config.nixl_backend(name));
  KVBM_ASSIGN_OR_RETURN(parts->transfers, TransferManager::create(config));
  return std::unique_ptr<OwnedTransferManager>(new OwnedTransferManager(std::move(parts)));
}

}  // namespace kvbm
