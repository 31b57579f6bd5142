// SPDX-License-Identifier: Apache-2.0
// GPU Direct Storage: files and memory of a GPU without host memory between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/memory/file_engine.hpp"
#include "kvbm/runtime/devices.hpp"

namespace kvbm {

/// Where libcufile does not reach the storage itself, it goes through host memory of its own (its
/// compatibility mode). Staging does that as well.
enum class GdsCompatibility : uint8_t {
  kRefuse,  ///< then blocks are staged, and the log says so
  kTake,    ///< for tests, and for comparing the two
};

struct GdsOptions {
  std::string library = "libcufile.so.0";  ///< as dlopen takes it
  GdsCompatibility compatibility = GdsCompatibility::kRefuse;
};

struct GdsInfo {
  std::string version = {};  ///< "libcufile 1.14"
  bool is_direct = false;    ///< else the compatibility mode alone
};

/// What this machine has. Starts libcufile, which takes tenths of a second and writes a cufile.log
/// into the working folder. Errors: kUnsupported, kDevice; each with what to do.
[[nodiscard]] Result<GdsInfo> find_gds(const std::string& library = GdsOptions().library);

struct GdsEngineOptions {
  std::unique_ptr<FileEngine> files;  ///< for host memory
  const OpenedDevice& device;         ///< outlives the engine
  Executor& executor;
  GdsOptions gds = {};
  size_t num_threads = 4;
  std::string name = "cufile";
};

/// The file engine with libcufile in front of it, for memory of the device. Without libcufile it is
/// as good as it was, and says why in its capabilities. Errors: kInvalidArgument, kExhausted.
[[nodiscard]] Result<std::unique_ptr<FileEngine>> with_gds(GdsEngineOptions options);

}  // namespace kvbm
