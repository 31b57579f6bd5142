// SPDX-License-Identifier: Apache-2.0
// SeenOps: which operations have come to a worker.
#pragma once

#include <cstdint>
#include <set>

#include "kvbm/protocol/messages.hpp"

namespace kvbm::internal {

/// Ids are given out in turn, so that only those that have come early take memory.
/// Threads: one thread at a time.
class SeenOps {
 public:
  [[nodiscard]] bool contains(OpId id) const {
    return id.value() <= up_to_ || beyond_.contains(id);
  }

  void insert(OpId id) {
    if (id.value() <= up_to_) return;
    beyond_.insert(id);
    while (!beyond_.empty() && beyond_.begin()->value() == up_to_ + 1) {
      ++up_to_;
      beyond_.erase(beyond_.begin());
    }
  }

 private:
  uint64_t up_to_ = 0;  // all operations up to it have come
  std::set<OpId> beyond_;
};

}  // namespace kvbm::internal
