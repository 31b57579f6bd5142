// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/cuda_device.hpp"

#include <bit>
#include <utility>

#include "kvbm/adapters/cuda/internal/cuda_context.hpp"
#include "kvbm/adapters/cuda/internal/cuda_memory.hpp"
#include "kvbm/adapters/cuda/internal/cuda_pinner.hpp"
#include "kvbm/adapters/cuda/internal/cuda_streams.hpp"
#include "kvbm/adapters/cuda/internal/kernel_copy.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm {

using internal::CudaContext;
using internal::CudaGpu;
using internal::CudaMemory;
using internal::CudaPinner;
using internal::CudaStreams;
using internal::KernelSupport;

Result<std::unique_ptr<CudaDevice>> CudaDevice::create(const CudaDeviceOptions& options) {
  if (options.num_threads == 0 || options.max_streams == 0 || options.max_queued == 0) {
    return make_error(
        ErrorCode::kInvalidArgument,
        "a CUDA device needs at least one thread, one stream and one queued operation");
  }
  if (options.ring_bytes != 0 && options.ring_bytes < kLeastRingBytes) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("a ring of {} bytes has no slots; give it {} and more, or 0",
                                  options.ring_bytes, kLeastRingBytes));
  }
  KVBM_ASSIGN_OR_RETURN(auto context, CudaContext::open(options.ordinal));
  KVBM_ASSIGN_OR_RETURN(
      auto memory,
      CudaMemory::create(context, {.reserve_bytes = options.pool_reserve_bytes,
                                   .release_threshold = options.pool_release_threshold}));
  auto pinner = std::make_shared<CudaPinner>(context);
  KVBM_ASSIGN_OR_RETURN(auto streams, CudaStreams::create({.executor = options.executor,
                                                           .num_threads = options.num_threads,
                                                           .max_streams = options.max_streams,
                                                           .max_queued = options.max_queued,
                                                           .ring_bytes = options.ring_bytes},
                                                          context, pinner));
  return std::unique_ptr<CudaDevice>(
      new CudaDevice(std::move(context), std::move(memory), std::move(pinner), std::move(streams)));
}

CudaDevice::CudaDevice(std::shared_ptr<const CudaContext> context,
                       std::shared_ptr<CudaMemory> memory, std::shared_ptr<CudaPinner> pinner,
                       std::shared_ptr<CudaStreams> streams)
    : context_(std::move(context)),
      memory_(std::move(memory)),
      pinner_(std::move(pinner)),
      streams_(std::move(streams)) {}

CudaDevice::~CudaDevice() { streams_->close(); }

Result<std::vector<CudaDeviceInfo>> CudaDevice::find_all() {
  KVBM_ASSIGN_OR_RETURN(const int32_t count, CudaGpu::count());
  std::vector<CudaDeviceInfo> all;
  for (int32_t ordinal = 0; ordinal < count; ++ordinal) {
    KVBM_ASSIGN_OR_RETURN(CudaGpu gpu, CudaGpu::find(ordinal));
    const KernelSupport kernels = internal::kernel_support(gpu.sm);
    all.push_back({.ordinal = ordinal,
                   .name = std::move(gpu.name),
                   .sm = gpu.sm,
                   .total_bytes = gpu.total_bytes,
                   .pci_address = std::move(gpu.pci_address),
                   .numa_node = gpu.numa_node,
                   .driver_version = gpu.driver_version,
                   .runtime_version = gpu.runtime_version,
                   .has_memcpy_batch = gpu.has_memcpy_batch,
                   .has_kernels = kernels != KernelSupport::kNone,
                   .kernels_from_ptx = kernels == KernelSupport::kFromPtx});
  }
  return all;
}

Result<StreamRef> CudaDevice::adopt_stream(uintptr_t native_stream, std::string_view name) {
  return streams_->adopt_stream(native_stream, name);
}

std::shared_ptr<HostPinner> CudaDevice::pinner() const { return pinner_; }

std::shared_ptr<const void> CudaDevice::enter() const {
  return std::make_shared<CudaContext::Scope>(*context_);
}

DeviceInfo CudaDevice::info() const {
  return {.name = context_->gpu().name,
          .kind = DeviceKind::kCuda,
          .ordinal = context_->gpu().ordinal,
          .total_bytes = context_->gpu().total_bytes,
          .free_bytes = memory_->free_bytes(),
          .capabilities = {.kernel_copies = streams_->kernels() != KernelSupport::kNone,
                           .ring_copies = streams_->ring_block_bytes() > 0,
                           .ring_is_missing = !streams_->ring(),
                           .ring_block_bytes = streams_->ring_block_bytes(),
                           .patterns = streams_->patterns().has_value(),
                           .checksums = streams_->checksums().has_value(),
                           .kernels_from_ptx = streams_->kernels() == KernelSupport::kFromPtx,
                           .page_bytes = 256}};
}

Result<StreamRef> CudaDevice::create_stream(std::string_view name) {
  return streams_->create_stream(name);
}

Status CudaDevice::destroy_stream(StreamRef stream) { return streams_->destroy_stream(stream); }

Result<DeviceMemory> CudaDevice::allocate(uint64_t size_bytes, uint64_t alignment) {
  if (size_bytes == 0 || !std::has_single_bit(alignment)) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("asked for {} bytes aligned to {}; ask for at least one byte and "
                                  "a power of two",
                                  size_bytes, alignment));
  }
  KVBM_ASSIGN_OR_RETURN(std::byte* const data, memory_->allocate(size_bytes, alignment));
  return DeviceMemory(data, size_bytes, memory_);
}

Status CudaDevice::copy(StreamRef stream, StridedCopyBatch batch) {
  KVBM_ASSIGN_OR_RETURN(const uint64_t bytes, check(batch));
  return streams_->copy(stream, std::move(batch), bytes);
}

Result<Event> CudaDevice::copy_and_record(StreamRef stream, StridedCopyBatch batch) {
  KVBM_ASSIGN_OR_RETURN(const uint64_t bytes, check(batch));
  return streams_->copy_and_record(stream, std::move(batch), bytes);
}

Result<uint64_t> CudaDevice::check(const StridedCopyBatch& batch) const {
  KVBM_ASSIGN_OR_RETURN(const uint64_t bytes, planned_bytes(batch));
  if (batch.method == CopyMethod::kRing && streams_->ring_block_bytes() == 0) {
    return make_error(
        ErrorCode::kUnsupported,
        format_text("{} copies through no ring: {}; copy by the engine", context_->gpu().name,
                    streams_->ring() ? "it was given none, or has no kernels"
                                     : streams_->ring().error().message()));
  }
  if (batch.method == CopyMethod::kKernel && streams_->kernels() == KernelSupport::kNone) {
    return make_error(
        ErrorCode::kUnsupported,
        format_text("this build has no kernels for {} (SM {}.{}); copy by the engine",
                    context_->gpu().name, context_->gpu().sm / 10, context_->gpu().sm % 10));
  }
  return bytes;
}

Status CudaDevice::pattern(StreamRef stream, PatternBatch batch) {
  KVBM_TRY(planned_bytes(batch));
  KVBM_TRY(streams_->patterns());
  return streams_->pattern(stream, std::move(batch));
}

Status CudaDevice::checksum(StreamRef stream, ChecksumBatch batch) {
  KVBM_TRY(planned_bytes(batch));
  KVBM_TRY(streams_->checksums());
  return streams_->checksum(stream, std::move(batch));
}

Status CudaDevice::launch(StreamRef stream, StreamTask task) {
  if (!task) return make_error(ErrorCode::kInvalidArgument, "asked to launch no task");
  return streams_->launch(stream, std::move(task));
}

Event CudaDevice::record(StreamRef stream) { return streams_->record(stream); }

Status CudaDevice::wait(StreamRef stream, const Event& event) {
  return streams_->wait(stream, event);
}

Executor& CudaDevice::executor() const noexcept { return streams_->executor(); }

}  // namespace kvbm
