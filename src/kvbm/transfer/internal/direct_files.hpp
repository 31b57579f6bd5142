// SPDX-License-Identifier: Apache-2.0
// DirectFiles: between which files and memory of the device the host is left out.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>
#include <string_view>

#include "kvbm/base/mutex.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/transfer/transfer_manager.hpp"

namespace kvbm::internal {

/// Asks the file engine once for itself and once for each file, and tells the log each reason once.
/// Threads: any thread.
class DirectFiles {
 public:
  DirectFiles(const TransferConfig& config, const DeviceCapabilities& device);

  /// A layout of the manager, which keeps its address. What is in no file is left alone. May take
  /// milliseconds.
  void enter(const PhysicalLayout& layout);
  void leave(const PhysicalLayout& layout);

  /// Why blocks do not go directly, or nothing if they do; one of `src` and `dst` is in a file, the
  /// other one in memory of a device that the host cannot address, or nobody asks. Lives as long as
  /// this.
  [[nodiscard]] std::string_view why_not(const PhysicalLayout& src,
                                         const PhysicalLayout& dst) const;

 private:
  [[nodiscard]] std::string_view keep(std::string words) const;

  const bool is_asked_;  ///< allowed, and there is something to be gained
  FileEngine* const files_;
  LogSink& log_;
  mutable Mutex mutex_{LockRank::kTransfer, "transfer.direct_files"};
  /// Of reasons that were given away: few, as each is of the engine, a file or a rule.
  mutable std::set<std::string, std::less<>> words_ KVBM_GUARDED_BY(mutex_);
  std::map<const PhysicalLayout*, std::string_view> refused_ KVBM_GUARDED_BY(mutex_);
  std::string_view all_refused_;  ///< empty: it depends; of the constructor
};

}  // namespace kvbm::internal
