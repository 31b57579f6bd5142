// SPDX-License-Identifier: Apache-2.0
#include "kvbm/adapters/cufile/internal/cufile_library.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <utility>

#include "kvbm/base/text.hpp"

namespace kvbm::internal {
namespace {

constexpr int kAlreadyOpen = 5026;
constexpr int kCudaError = 5011;
constexpr uint32_t kP2pBit =
    4;  // of CufileProperties::feature_flags: PCI P2PDMA, without nvidia-fs

/// Codes that say more than that something failed.
struct CodeWords {
  int code;
  ErrorCode meaning;
  std::string_view words;
};

constexpr std::string_view kNoDriver =
    "nvidia-fs is not loaded: load it, or set allow_compat_mode in cufile.json";
constexpr std::string_view kVersions =
    "nvidia-fs and libcufile are of different releases: install those of one";
/// Of a file that is open for direct I/O it opens another descriptor by its path.
constexpr std::string_view kNoName =
    "cuFile cannot open the file once more by its path: take one that has a name";
constexpr std::string_view kFileKind =
    "cuFile takes regular files that have a name and are open for direct I/O";
/// What versions 1.14 and 1.20 say of a file on a disk of which udev tells nothing.
constexpr std::string_view kUnknownStorage =
    "libcufile cannot tell what the file lies on: see the cufile.log that it writes";
constexpr std::string_view kBadMemory =
    "the memory is not one allocation of a GPU that this process has";
constexpr std::string_view kNoMemory = "cuFile has no memory left: try later, or see cufile.json";

constexpr CodeWords kWords[] = {
    {5001, ErrorCode::kUnsupported, kNoDriver},
    {5004, ErrorCode::kUnsupported, kVersions},
    {5005, ErrorCode::kUnsupported, kVersions},
    {5006, ErrorCode::kUnavailable, "cuFile is being closed"},
    {5007, ErrorCode::kUnsupported, "cuFile does not run on this machine"},
    {5008, ErrorCode::kUnsupported,
     "cuFile does not support the file system: take ext4 or xfs on NVMe, or set "
     "allow_compat_mode in cufile.json"},
    {5009, ErrorCode::kUnsupported, "cuFile does not support this GPU"},
    {kCudaError, ErrorCode::kDevice, "the driver of CUDA failed"},
    {5012, ErrorCode::kInvalidArgument, kBadMemory},
    {5013, ErrorCode::kInvalidArgument, kBadMemory},
    {5014, ErrorCode::kInvalidArgument, kBadMemory},
    {5015, ErrorCode::kDevice, "the memory is of another context of CUDA"},
    {5016, ErrorCode::kInvalidArgument, kBadMemory},
    {5017, ErrorCode::kInvalidArgument, kBadMemory},
    {5018, ErrorCode::kUnsupported, kFileKind},
    {5019, ErrorCode::kUnsupported, kFileKind},
    {5020, ErrorCode::kUnsupported, kFileKind},
    {5022, ErrorCode::kInvalidArgument, "cuFile calls the arguments wrong"},
    {5025, ErrorCode::kUnsupported,
     "this user may not open the file or /dev/nvidia-fs*: see their permissions"},
    {5027, ErrorCode::kUnsupported, kUnknownStorage},
    {5029, ErrorCode::kUnsupported, "cuFile finds no GPU"},
    {5030, ErrorCode::kUnsupported, kUnknownStorage},
    {5031, ErrorCode::kUnsupported, kNoName},
    {5033, ErrorCode::kUnsupported, "nvidia-fs does not come up: see the log of the kernel"},
    {5034, ErrorCode::kUnsupported, "cufile.json turns GPU Direct Storage off for this file"},
    {5036, ErrorCode::kExhausted, kNoMemory},
    {5043, ErrorCode::kExhausted, kNoMemory},
    {5047, ErrorCode::kDevice, "no context of CUDA is current"},
};

/// False if it lacks it.
template <class F>
bool find_symbol(void* library, const char* name, F*& entry) {
  entry = reinterpret_cast<F*>(::dlsym(library, name));
  return entry != nullptr;
}

std::string version_of(const CufileCalls& calls) {
  int version = 0;
  if (calls.get_version == nullptr || calls.get_version(&version).cufile != 0 || version <= 0) {
    return "libcufile";
  }
  return format_text("libcufile {}.{}", version / 1000, version % 1000 / 10);
}

}  // namespace

Error cufile_error(std::string message, CufileCode code) {
  const auto* const found = std::ranges::find(kWords, code.cufile, &CodeWords::code);
  const bool known = found != std::end(kWords);
  if (known) message.append(": ").append(found->words);
  const ErrorCode meaning = known ? found->meaning : ErrorCode::kIo;
  const bool is_cuda = code.cufile == kCudaError && code.cuda != 0;
  return {meaning, std::move(message), is_cuda ? NativeDomain::kCuda : NativeDomain::kCufile,
          is_cuda ? code.cuda : code.cufile};
}

Result<std::unique_ptr<const CufileLibrary>> CufileLibrary::open(const std::string& path) {
  // It starts threads and registers functions of its own end, so it stays in the process.
  void* const library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (library == nullptr) {
    const char* const why = ::dlerror();
    return make_error(ErrorCode::kUnsupported,
                      format_text("libcufile is not found ({}): install NVIDIA's package libcufile "
                                  "or the Python package nvidia-cufile, or name its path",
                                  why != nullptr ? why : path));
  }
  auto opened = std::unique_ptr<CufileLibrary>(new CufileLibrary());
  CufileCalls& calls = opened->calls_;
  const bool complete = find_symbol(library, "cuFileDriverOpen", calls.driver_open) &&
                        (find_symbol(library, "cuFileDriverClose_v2", calls.driver_close) ||
                         find_symbol(library, "cuFileDriverClose", calls.driver_close)) &&
                        find_symbol(library, "cuFileDriverGetProperties", calls.get_properties) &&
                        find_symbol(library, "cuFileHandleRegister", calls.register_handle) &&
                        find_symbol(library, "cuFileHandleDeregister", calls.deregister_handle) &&
                        find_symbol(library, "cuFileRead", calls.read) &&
                        find_symbol(library, "cuFileWrite", calls.write);
  if (!complete) {
    const char* const why = ::dlerror();
    return make_error(ErrorCode::kUnsupported,
                      format_text("{} is too old or no libcufile ({}): install 1.8 or later", path,
                                  why != nullptr ? why : "an entry point is missing"));
  }
  static_cast<void>(find_symbol(library, "cuFileGetVersion", calls.get_version));
  opened->version_ = version_of(calls);
  const CufileCode code = calls.driver_open();
  if (code.cufile != 0 && code.cufile != kAlreadyOpen) {
    return make_error(cufile_error(format_text("{} does not start", opened->version_), code));
  }
  opened->is_open_ = code.cufile == 0;
  CufileProperties properties;
  if (const CufileCode told = calls.get_properties(&properties); told.cufile != 0) {
    return make_error(
        cufile_error(format_text("{} tells nothing of itself", opened->version_), told));
  }
  opened->is_direct_ = properties.major > 0 || (properties.feature_flags >> kP2pBit & 1U) != 0;
  return std::unique_ptr<const CufileLibrary>(std::move(opened));
}

CufileLibrary::~CufileLibrary() {
  if (is_open_) static_cast<void>(calls_.driver_close());
}

}  // namespace kvbm::internal
