// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/layout_directory.hpp"

#include <algorithm>
#include <string>

#include "kvbm/base/text.hpp"

namespace kvbm::internal {
namespace {

tl::unexpected<Error> invalid(std::string message) {
  return make_error(ErrorCode::kInvalidArgument, std::move(message));
}

}  // namespace

Status LayoutDirectory::assign(LayoutHandle handle, LogicalLayoutHandle tier, GroupId group) {
  const std::pair wanted{tier, group};
  for (const auto& [other, place] : own_) {
    if (other == handle && place != wanted) {
      return invalid(format_text("{} is {} of group {} already; it cannot be {} of group {} too",
                                 to_string(handle), place.first, place.second, tier, group));
    }
    if (other != handle && place == wanted) {
      return invalid(format_text("{} is {} of group {} already; {} cannot be it too",
                                 to_string(other), tier, group, to_string(handle)));
    }
  }
  own_.emplace(handle, wanted);
  return {};
}

void LayoutDirectory::forget(LayoutHandle handle) { own_.erase(handle); }

std::vector<LayoutDirectory::Entry> LayoutDirectory::own() const {
  std::vector<Entry> entries;
  entries.reserve(own_.size());
  for (const auto& [handle, place] : own_) entries.push_back({handle, place.first, place.second});
  return entries;
}

Status LayoutDirectory::check_import(const WorkerAddress& worker) const {
  if (worker.worker == self_.worker) {
    return invalid(
        format_text("worker {} ({}) has the id of this worker ({}): give each worker an id of its "
                    "own",
                    worker.worker, worker.agent_name, self_.agent_name));
  }
  if (worker.agent_name == self_.agent_name) {
    return invalid(
        format_text("worker {} has the agent name of this worker, {}: give each worker "
                    "an agent of its own",
                    worker.worker, worker.agent_name));
  }
  for (const auto& [id, other] : imports_) {
    if (id == worker.worker) {
      return invalid(
          format_text("worker {} ({}) was imported before, with the agent {}: two workers have one "
                      "id, or its import has to be removed first",
                      id, worker.agent_name, other->worker.agent_name));
    }
    if (other->worker.agent_name == worker.agent_name) {
      return invalid(format_text("workers {} and {} have one agent name, {}", id, worker.worker,
                                 worker.agent_name));
    }
  }
  return {};
}

Status LayoutDirectory::import(LayoutMetadata metadata) {
  KVBM_TRY(check_import(metadata.worker));
  const WorkerId id = metadata.worker.worker;
  imports_.emplace(id, std::make_shared<const LayoutMetadata>(std::move(metadata)));
  return {};
}

Status LayoutDirectory::remove(WorkerId worker) {
  if (imports_.erase(worker) > 0) return {};
  return make_error(ErrorCode::kNotFound, format_text("worker {} was not imported", worker));
}

std::shared_ptr<const LayoutMetadata> LayoutDirectory::find(WorkerId worker) const {
  const auto found = imports_.find(worker);
  return found == imports_.end() ? nullptr : found->second;
}

std::shared_ptr<const LogicalLayoutDescriptor> LayoutDirectory::find(LayoutHandle handle) const {
  const std::shared_ptr<const LayoutMetadata> metadata = find(handle.worker);
  if (!metadata) return nullptr;
  const auto found = std::ranges::find(metadata->layouts, handle, &LogicalLayoutDescriptor::handle);
  if (found == metadata->layouts.end()) return nullptr;
  return {metadata, &*found};
}

std::vector<WorkerAddress> LayoutDirectory::imported() const {
  std::vector<WorkerAddress> workers;
  workers.reserve(imports_.size());
  for (const auto& [id, metadata] : imports_) workers.push_back(metadata->worker);
  return workers;
}

Result<LayoutHandle> LayoutDirectory::resolve(WorkerId worker, LogicalLayoutHandle tier,
                                              GroupId group) const {
  const auto missing = [&] {
    return make_error(ErrorCode::kNotFound,
                      format_text("worker {} has no {} of group {}", worker, tier, group));
  };
  if (worker == self_.worker) {
    for (const auto& [handle, place] : own_) {
      if (place == std::pair{tier, group}) return handle;
    }
    return missing();
  }
  const std::shared_ptr<const LayoutMetadata> metadata = find(worker);
  if (!metadata) {
    return make_error(ErrorCode::kNotFound,
                      format_text("worker {} is not known here: import its metadata", worker));
  }
  for (const LogicalLayoutDescriptor& layout : metadata->layouts) {
    if (layout.tier == tier && layout.group == group) return layout.handle;
  }
  return missing();
}

}  // namespace kvbm::internal
