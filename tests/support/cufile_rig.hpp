// SPDX-License-Identifier: Apache-2.0
// CufileRig: a CufileFileEngine over a fake libcufile.
#pragma once

#include <dlfcn.h>

#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "kvbm/adapters/cufile/cufile_file_engine.hpp"
#include "kvbm/memory/posix_file_engine.hpp"

#include "tests/support/fake_cufile.hpp"

namespace kvbm::testing {

/// Loads the fake by the very call that the engine makes, and as it was before any test.
/// KVBM_FAKE_CUFILE: its path, from CMake.
[[nodiscard]] inline FakeCufile& fresh_fake_cufile(const std::string& path = KVBM_FAKE_CUFILE) {
  void* const library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  auto* const symbol =
      library == nullptr ? nullptr
                         : reinterpret_cast<FakeCufileSymbol*>(::dlsym(library, kFakeCufileSymbol));
  if (symbol == nullptr) throw std::runtime_error("no fake libcufile at " + path);
  FakeCufile& fake = *symbol();
  fake.open_code = fake.properties_code = fake.register_code = fake.cuda_code = 0;
  fake.nvidia_fs_major = 2;
  fake.features = 0xf;
  fake.version = 1140;
  fake.before_io = nullptr;
  fake.behind = nullptr;
  fake.num_registrations = 0;
  fake.num_misuses = 0;
  const std::lock_guard lock(fake.mutex);
  fake.asked.clear();
  return fake;
}

struct CufileRigOptions {
  std::string library = KVBM_FAKE_CUFILE;
  CufileCompatibility compatibility = CufileCompatibility::kRefuse;
  size_t num_threads = 4;
  size_t max_pending = 32;
};

[[nodiscard]] inline std::unique_ptr<CufileFileEngine> cufile_engine(
    Executor& executor, const CufileRigOptions& options = {}) {
  return CufileFileEngine::create(
             {.executor = executor,
              .host = PosixFileEngine::create(
                          {.executor = executor, .max_pending = options.max_pending})
                          .value(),
              .library = options.library,
              .compatibility = options.compatibility,
              .num_threads = options.num_threads,
              .max_pending = options.max_pending})
      .value();
}

}  // namespace kvbm::testing
