// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/direct_files.hpp"

#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/transfer/internal/file_transfer.hpp"

namespace kvbm::internal {
namespace {

bool is_file(const PhysicalLayout& layout) { return layout.storage_kind() == StorageKind::kFile; }

}  // namespace

DirectFiles::DirectFiles(const TransferConfig& config, const DeviceCapabilities& device)
    : is_asked_(config.capabilities.allow_gds && config.files != nullptr &&
                !device.host_accessible),
      files_(config.files),
      log_(config.log) {
  if (!is_asked_) return;
  const FileEngineCapabilities engine = files_->capabilities();
  if (!engine.device_memory) {
    all_refused_ = keep(format_text("no GPU Direct Storage: {}", engine.device_memory_note));
  } else if (!device.checksums) {
    all_refused_ = "no GPU Direct Storage: the device computes no checksums, and slots have them";
  }
  if (all_refused_.empty()) return;
  KVBM_LOG_WARNING(log_, "transfer",
                   "allow_gds is on, and files and device memory go through host memory: {}",
                   all_refused_);
}

void DirectFiles::enter(const PhysicalLayout& layout) {
  if (!is_asked_ || !all_refused_.empty() || !is_file(layout)) return;
  const Status reached = files_->reach_device(layout.page_maps().front().region().file());
  if (reached) return;
  const std::string_view why =
      keep(format_text("no GPU Direct Storage for this file: {}", reached.error().message()));
  {
    const MutexLock lock(mutex_);
    refused_.insert_or_assign(&layout, why);
  }
  KVBM_LOG_WARNING(log_, "transfer",
                   "allow_gds is on, and a file and device memory go through host memory: {}", why);
}

void DirectFiles::leave(const PhysicalLayout& layout) {
  const MutexLock lock(mutex_);
  refused_.erase(&layout);
}

std::string_view DirectFiles::why_not(const PhysicalLayout& src, const PhysicalLayout& dst) const {
  if (!is_asked_ || is_file(src) == is_file(dst)) return "no GPU Direct Storage is asked for";
  if (!all_refused_.empty()) return all_refused_;
  const PhysicalLayout& file = is_file(src) ? src : dst;
  const PhysicalLayout& memory = is_file(src) ? dst : src;
  {
    const MutexLock lock(mutex_);
    if (const auto found = refused_.find(&file); found != refused_.end()) return found->second;
  }
  if (memory.storage_kind() != StorageKind::kDevice) return "the memory is no device's";
  const Status fits = check_device_runs(file, addressed_runs(memory));
  return fits ? std::string_view() : keep(fits.error().message());
}

std::string_view DirectFiles::keep(std::string words) const {
  const MutexLock lock(mutex_);
  return *words_.insert(std::move(words)).first;
}

}  // namespace kvbm::internal
