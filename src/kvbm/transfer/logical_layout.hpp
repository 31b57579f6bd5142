// SPDX-License-Identifier: Apache-2.0
// LogicalLayoutDescriptor: which tier of its worker a layout is, and where its bytes are.
#pragma once

#include <string>

#include "kvbm/base/ids.hpp"
#include "kvbm/layout/layout_descriptor.hpp"
#include "kvbm/transfer/layout_handle.hpp"

namespace kvbm {

/// G1 to G4, whichever worker: what a caller says who means "from G1 to G2" on each of them.
using LogicalLayoutHandle = TierId;

/// A worker on the network.
struct WorkerAddress {
  WorkerId worker{0};
  std::string agent_name = {};  ///< of its remote agent; one worker each

  friend bool operator==(const WorkerAddress&, const WorkerAddress&) = default;
};

struct LogicalLayoutDescriptor {
  LayoutHandle handle = {};
  LogicalLayoutHandle tier = LogicalLayoutHandle::kG1;
  GroupId group{0};  ///< of layers; a worker has one layout for each tier and group
  LayoutDescriptor layout = {};

  friend bool operator==(const LogicalLayoutDescriptor&, const LogicalLayoutDescriptor&) = default;
};

}  // namespace kvbm
