// SPDX-License-Identifier: Apache-2.0
// LayoutDirectory: which layout is which tier, of this worker and of those that it has imported.
#pragma once

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "kvbm/base/result.hpp"
#include "kvbm/transfer/serialized_layout.hpp"

namespace kvbm::internal {

/// Threads: one thread at a time.
class LayoutDirectory {
 public:
  explicit LayoutDirectory(const WorkerAddress& self) : self_(self) {}

  /// Own layouts. Again with the same tier and group is no change.
  /// Errors: kInvalidArgument (it is something else already; another layout is it).
  Status assign(LayoutHandle handle, LogicalLayoutHandle tier, GroupId group);
  /// No change if it has no tier.
  void forget(LayoutHandle handle);

  struct Entry {
    LayoutHandle handle;
    LogicalLayoutHandle tier;
    GroupId group;
  };
  /// Of own layouts, in the order of handles.
  [[nodiscard]] std::vector<Entry> own() const;

  /// Whether it could be imported. Errors: kInvalidArgument (a worker id or an agent name that is
  /// this worker's or was imported before).
  [[nodiscard]] Status check_import(const WorkerAddress& worker) const;
  /// All of it or nothing. Requires: it came from SerializedLayout::unpack.
  /// Errors: those of check_import.
  Status import(LayoutMetadata metadata);
  /// Errors: kNotFound.
  Status remove(WorkerId worker);

  /// Null if not imported.
  [[nodiscard]] std::shared_ptr<const LayoutMetadata> find(WorkerId worker) const;
  [[nodiscard]] std::shared_ptr<const LogicalLayoutDescriptor> find(LayoutHandle handle) const;
  [[nodiscard]] std::vector<WorkerAddress> imported() const;

  /// Errors: kNotFound (a worker that is not known; no such layout of it).
  [[nodiscard]] Result<LayoutHandle> resolve(WorkerId worker, LogicalLayoutHandle tier,
                                             GroupId group) const;

 private:
  const WorkerAddress self_;
  std::map<LayoutHandle, std::pair<LogicalLayoutHandle, GroupId>> own_;
  std::map<WorkerId, std::shared_ptr<const LayoutMetadata>> imports_;
};

}  // namespace kvbm::internal
