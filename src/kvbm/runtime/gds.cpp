// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/gds.hpp"

#include <utility>

#include "kvbm/adapters/cufile/cufile_file_engine.hpp"

namespace kvbm {

Result<GdsInfo> find_gds(const std::string& library) {
  KVBM_ASSIGN_OR_RETURN(CufileInfo found, CufileFileEngine::find(library));
  return GdsInfo{.version = std::move(found.version), .is_direct = found.is_direct};
}

Result<std::unique_ptr<FileEngine>> with_gds(GdsEngineOptions options) {
  const bool take = options.gds.compatibility == GdsCompatibility::kTake;
  const size_t max_pending = options.files->capabilities().max_pending;
  KVBM_ASSIGN_OR_RETURN(
      auto engine, CufileFileEngine::create({.executor = options.executor,
                                             .host = std::move(options.files),
                                             .library = std::move(options.gds.library),
                                             .compatibility = take ? CufileCompatibility::kTake
                                                                   : CufileCompatibility::kRefuse,
                                             .num_threads = options.num_threads,
                                             .max_pending = max_pending,
                                             .name = std::move(options.name),
                                             .enter_device = options.device.enter}));
  return std::unique_ptr<FileEngine>(std::move(engine));
}

}  // namespace kvbm
