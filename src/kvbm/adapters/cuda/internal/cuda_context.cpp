// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cuda/internal/cuda_context.hpp"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <utility>

#include "kvbm/base/text.hpp"

namespace kvbm::internal {

namespace {

#if CUDART_VERSION >= 12080
constexpr bool kBuiltWithMemcpyBatch = true;
#else
constexpr bool kBuiltWithMemcpyBatch = false;
#endif

template <class Function>
bool find_symbol(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  return function != nullptr;
}

std::string version_text(int version) {
  return format_text("{}.{}", version / 1000, version % 1000 / 10);
}

std::string too_old(int driver, int runtime) {
  return format_text(
      "the NVIDIA driver knows CUDA {}, this build needs {}: update the driver, or "
      "build with an older toolkit",
      version_text(driver), version_text(runtime));
}

/// The node that the kernel names for a PCI device; -1 says that there is none.
std::optional<uint32_t> numa_node_of(const std::string& pci_address) {
  std::ifstream in("/sys/bus/pci/devices/" + pci_address + "/numa_node");
  int64_t node = -1;
  if (!(in >> node) || node < 0) return std::nullopt;
  return static_cast<uint32_t>(node);
}

}  // namespace

Error cuda_error(std::string_view what, int code) {
  static_cast<void>(::cudaGetLastError());
  const auto error = static_cast<cudaError_t>(code);
  return {error == cudaErrorMemoryAllocation ? ErrorCode::kExhausted : ErrorCode::kDevice,
          format_text("{}: {} ({})", what, ::cudaGetErrorName(error), ::cudaGetErrorString(error)),
          NativeDomain::kCuda, code};
}

Result<CudaDriver> CudaDriver::load() {
  // Never closed: the runtime library holds it as well, to the end of the process.
  void* const library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const why = ::dlerror();
    return make_error(ErrorCode::kUnavailable,
                      format_text("no NVIDIA driver here ({}): install one, or use the host device",
                                  why != nullptr ? why : "libcuda.so.1 is not found"));
  }
  CudaDriver driver;
  const bool complete = find_symbol(library, "cuDeviceGet", driver.device) &&
                        find_symbol(library, "cuDevicePrimaryCtxRetain", driver.primary_context) &&
                        find_symbol(library, "cuCtxGetCurrent", driver.current_context) &&
                        find_symbol(library, "cuCtxPushCurrent_v2", driver.context_push) &&
                        find_symbol(library, "cuCtxPopCurrent_v2", driver.context_pop) &&
                        find_symbol(library, "cuStreamGetCtx", driver.stream_context) &&
                        find_symbol(library, "cuStreamWaitValue32_v2", driver.stream_wait_value) &&
                        find_symbol(library, "cuPointerGetAttributes", driver.pointer_attributes);
  if (!complete) {
    return make_error(ErrorCode::kUnsupported,
                      "the NVIDIA driver is older than CUDA 12: update it, or use the host device");
  }
  driver.has_memcpy_batch = ::dlsym(library, "cuMemcpyBatchAsync") != nullptr;
  return driver;
}

Result<int32_t> CudaGpu::count() {
  KVBM_TRY(CudaDriver::load());
  int count = 0;
  const cudaError_t code = ::cudaGetDeviceCount(&count);
  if (code == cudaErrorInsufficientDriver) {
    int driver = 0;
    static_cast<void>(::cudaDriverGetVersion(&driver));
    static_cast<void>(::cudaGetLastError());
    return make_error(ErrorCode::kUnsupported, too_old(driver, CUDART_VERSION));
  }
  if (code == cudaErrorNoDevice || (code == cudaSuccess && count == 0)) {
    static_cast<void>(::cudaGetLastError());
    return make_error(ErrorCode::kUnavailable,
                      "the NVIDIA driver shows no GPU to this process: look at nvidia-smi and "
                      "CUDA_VISIBLE_DEVICES");
  }
  if (code != cudaSuccess) return make_error(cuda_error("the CUDA runtime does not start", code));
  return count;
}

Result<CudaGpu> CudaGpu::find(int32_t ordinal) {
  KVBM_ASSIGN_OR_RETURN(const int32_t number, count());
  if (ordinal < 0 || ordinal >= number) {
    return make_error(ErrorCode::kNotFound,
                      format_text("asked for cuda:{}, and there are {} GPUs", ordinal, number));
  }
  KVBM_ASSIGN_OR_RETURN(const CudaDriver driver, CudaDriver::load());
  CudaGpu gpu{.ordinal = ordinal};
  cudaDeviceProp properties{};
  if (const cudaError_t code = ::cudaGetDeviceProperties(&properties, ordinal)) {
    return make_error(cuda_error(format_text("cuda:{} does not describe itself", ordinal), code));
  }
  gpu.name = properties.name;
  gpu.sm = properties.major * 10 + properties.minor;
  gpu.total_bytes = properties.totalGlobalMem;
  std::string address(32, '\0');
  if (::cudaDeviceGetPCIBusId(address.data(), static_cast<int>(address.size()), ordinal) ==
      cudaSuccess) {
    address.resize(address.find('\0'));
    std::ranges::transform(address, address.begin(),
                           [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    gpu.pci_address = std::move(address);
    gpu.numa_node = numa_node_of(gpu.pci_address);
  }
  static_cast<void>(::cudaDriverGetVersion(&gpu.driver_version));
  static_cast<void>(::cudaRuntimeGetVersion(&gpu.runtime_version));
  gpu.has_memcpy_batch = kBuiltWithMemcpyBatch && driver.has_memcpy_batch;
  return gpu;
}

Result<std::shared_ptr<const CudaContext>> CudaContext::open(int32_t ordinal) {
  KVBM_ASSIGN_OR_RETURN(CudaGpu gpu, CudaGpu::find(ordinal));
  KVBM_ASSIGN_OR_RETURN(const CudaDriver driver, CudaDriver::load());
  // Not by cudaSetDevice: what it sets stays with the thread, and the engine's next call on it
  // would be for this GPU.
  int device = 0;
  CUctx_st* handle = nullptr;
  int code = driver.device(&device, ordinal);
  if (code == 0) code = driver.primary_context(&handle, device);
  if (code != 0 || handle == nullptr) {
    return make_error(cuda_error(format_text("no context on cuda:{}", ordinal), code));
  }
  return std::shared_ptr<const CudaContext>(new CudaContext(std::move(gpu), driver, handle));
}

CudaContext::Scope::Scope(const CudaContext& context) noexcept : driver_(context.driver_) {
  CUctx_st* current = nullptr;
  static_cast<void>(driver_.current_context(&current));
  pushed_ = current != context.handle_;
  if (pushed_) static_cast<void>(driver_.context_push(context.handle_));
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  static_cast<void>(::cudaThreadExchangeStreamCaptureMode(&mode));
  capture_mode_ = mode;
}

CudaContext::Scope::~Scope() {
  auto mode = static_cast<cudaStreamCaptureMode>(capture_mode_);
  static_cast<void>(::cudaThreadExchangeStreamCaptureMode(&mode));
  if (!pushed_) return;
  CUctx_st* popped = nullptr;
  static_cast<void>(driver_.context_pop(&popped));
}

}  // namespace kvbm::internal
