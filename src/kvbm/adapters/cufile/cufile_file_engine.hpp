// SPDX-License-Identifier: Apache-2.0
// CufileFileEngine: GPU Direct Storage: requests whose memory is a GPU's, by NVIDIA's libcufile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/memory/file_engine.hpp"

namespace kvbm {

/// Without nvidia-fs, or on a file system that it does not know, libcufile reads into host memory
/// of its own and copies. That is what a transfer manager does by itself, with less to go wrong.
enum class CufileCompatibility : uint8_t {
  kRefuse,  ///< the engine reaches no device then
  kTake,
};

/// What `kvbm doctor` tells.
struct CufileInfo {
  std::string version = {};  ///< "libcufile 1.14"
  bool is_direct = false;    ///< GPU Direct Storage; else the compatibility mode
};

struct CufileFileEngineOptions {
  Executor& executor;
  std::unique_ptr<FileEngine> host;        ///< serves what is in host memory alone
  std::string library = "libcufile.so.0";  ///< as dlopen takes it
  CufileCompatibility compatibility = CufileCompatibility::kRefuse;
  size_t num_threads = 4;
  size_t max_pending = 4096;    ///< requests; full: submit fails with kExhausted
  std::string name = "cufile";  ///< of the task queue
  /// Makes a context of CUDA the calling thread's own for as long as what it gives back lives.
  /// Null: every thread has one.
  std::function<std::shared_ptr<const void>()> enter_device = nullptr;
};

/// A request that names memory of a device goes to cuFileRead or cuFileWrite, buffer by buffer, on
/// a thread of this engine; buffers of the host in between go by preadv and pwritev there. A batch
/// without any goes to the engine beneath as it is.
///
/// Where libcufile is missing or refuses, this is the engine beneath with a reason in the
/// capabilities.
/// Files: registered with cuFile while requests on them are pending. Buffers are not registered:
///   nobody tells this engine when memory ends, and cuFile then copies inside of the GPU.
/// Errors: beside those of FileEngine: kUnsupported in a process forked after the engine was made.
/// Native codes: NativeDomain::kCufile (CUfileOpError), kCuda where the driver is the cause,
/// kErrno.
class CufileFileEngine final : public FileEngine {
 public:
  /// Errors: kInvalidArgument (an option that is zero or empty, no engine beneath), kExhausted (no
  /// thread).
  [[nodiscard]] static Result<std::unique_ptr<CufileFileEngine>> create(
      CufileFileEngineOptions options);
  ~CufileFileEngine() override;

  /// Opens the library and closes it again. Errors: kUnsupported, kDevice; with what to do.
  [[nodiscard]] static Result<CufileInfo> find(const std::string& library = "libcufile.so.0");

  [[nodiscard]] FileEngineCapabilities capabilities() const override;
  [[nodiscard]] Status reach_device(const FileRef& file) override;
  [[nodiscard]] Result<FileBatch> submit(std::vector<FileRequest> requests) override;

 private:
  class Core;

  explicit CufileFileEngine(std::unique_ptr<Core> core);

  std::unique_ptr<Core> core_;
};

}  // namespace kvbm
