// SPDX-License-Identifier: Apache-2.0
// CufileLibrary: libcufile as this process finds it, opened at run time.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "kvbm/base/result.hpp"

namespace kvbm::internal {

// What cufile.h declares (1.8 and later), under names of our own: the header is in no package that
// this is built with.
// Source: https://docs.nvidia.com/gpudirect-storage/api-reference-guide/index.html

using CufileHandle = void*;

/// CUfileError_t: a code of cuFile (5001 and up), and one of the driver where that is the cause.
struct CufileCode {
  int cufile = 0;
  int cuda = 0;
};

/// CUfileDescr_t of a descriptor of Linux (type 1).
struct CufileDescriptor {
  int type = 1;
  union {
    int fd = -1;
    void* other;
  };
  const void* file_system = nullptr;
};

/// CUfileDrvProps_t, and room for what later versions add.
struct CufileProperties {
  uint32_t major = 0;  ///< of nvidia-fs; 0: it is not loaded
  uint32_t minor = 0;
  size_t poll_threshold = 0;
  size_t max_direct_io = 0;
  uint32_t status_flags = 0;
  uint32_t control_flags = 0;
  uint32_t feature_flags = 0;
  uint32_t rest[64] = {};
};

/// Entry points, as the library has them.
struct CufileCalls {
  CufileCode (*driver_open)() = nullptr;
  CufileCode (*driver_close)() = nullptr;
  CufileCode (*get_properties)(CufileProperties*) = nullptr;
  CufileCode (*register_handle)(CufileHandle*, CufileDescriptor*) = nullptr;
  void (*deregister_handle)(CufileHandle) = nullptr;
  ssize_t (*read)(CufileHandle, void* base, size_t size, off_t in_file, off_t in_buffer) = nullptr;
  ssize_t (*write)(CufileHandle, const void* base, size_t size, off_t in_file,
                   off_t in_buffer) = nullptr;
  CufileCode (*get_version)(int*) = nullptr;  ///< null before 1.9
};

/// What a code means to the caller, and what to do about it, where anything is known.
[[nodiscard]] Error cufile_error(std::string message, CufileCode code);

/// Ownership: the library stays in the process; what open() opened in it is closed again.
/// Threads: any thread (immutable).
class CufileLibrary {
 public:
  /// `path` as dlopen takes it. Errors: kUnsupported (no such library, or one that lacks what is
  /// needed; no driver of CUDA; a machine that it does not run on), kDevice.
  [[nodiscard]] static Result<std::unique_ptr<const CufileLibrary>> open(const std::string& path);
  ~CufileLibrary();
  CufileLibrary(const CufileLibrary&) = delete;
  CufileLibrary& operator=(const CufileLibrary&) = delete;

  [[nodiscard]] const CufileCalls& calls() const noexcept { return calls_; }
  /// Whether storage and GPU may talk to each other; else all goes through the library's own host
  /// memory (its compatibility mode).
  [[nodiscard]] bool is_direct() const noexcept { return is_direct_; }
  [[nodiscard]] const std::string& version() const noexcept { return version_; }

 private:
  CufileLibrary() = default;

  CufileCalls calls_;
  bool is_open_ = false;
  bool is_direct_ = false;
  std::string version_;
};

}  // namespace kvbm::internal
