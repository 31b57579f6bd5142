// SPDX-License-Identifier: Apache-2.0
// WorkerOperation: a copy that a worker was asked for, from its gates to its end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/device.hpp"
#include "kvbm/device/event.hpp"
#include "kvbm/layout/layout_config.hpp"
#include "kvbm/protocol/messages.hpp"
#include "kvbm/transfer/transfer_manager.hpp"

namespace kvbm::internal {

/// Threads: one thread at a time, with the worker's lock.
struct WorkerOperation {
  /// A range of layers of a load, which is a transfer of its own.
  struct Part {
    LayerRange layers;  ///< of the engine
    LayerRange pieces;  ///< the same in the layouts
    bool done = false;  ///< of the last one to end nobody says so: the load has ended
    std::optional<EventSource> ended = std::nullopt;  ///< made when somebody wants to wait
  };
  /// What the end of a part brings.
  struct PartEnd {
    std::optional<EventSource> ended;     ///< to be signalled
    std::optional<TransferResult> whole;  ///< of the operation, if this was the last part
  };

  CopyOp op;
  uint32_t closed_gates = 0;
  bool running = false;
  bool over = false;
  TimePoint start_by = kNever;
  std::vector<Event> outcomes = {};                 ///< of the gates: they must have succeeded
  std::optional<EventSource> ended = std::nullopt;  ///< made when somebody wants to wait
  std::vector<Part> parts = {};                     ///< none: it goes as a whole
  size_t open_parts = 0;
  uint64_t part_bytes = 0;                          ///< that arrived
  std::optional<Error> part_failed = std::nullopt;  ///< the first that did

  [[nodiscard]] bool reads_engine() const noexcept { return op.src.tier == TierId::kG1; }

  /// Done with the operation.
  [[nodiscard]] Event end_event(Device& device) {
    if (!ended) ended.emplace(device.create_event());
    return ended->event();
  }
  /// Done with the part. Contract: it is not done.
  [[nodiscard]] Event end_event(Device& device, size_t part) {
    if (!parts[part].ended) parts[part].ended.emplace(device.create_event());
    return parts[part].ended->event();
  }

  /// Its blocks have arrived if all parts have.
  [[nodiscard]] PartEnd end_part(size_t part, const TransferResult& result) {
    PartEnd end;
    part_bytes += result.bytes;
    if (!result.status && !part_failed) part_failed = result.status.error();
    if (--open_parts > 0) {
      parts[part].done = true;
      end.ended.swap(parts[part].ended);
      return end;
    }
    end.whole.emplace();
    if (part_failed) {
      end.whole->status = tl::unexpected(*part_failed);
    } else {
      end.whole->bytes = part_bytes;
    }
    return end;
  }
};

}  // namespace kvbm::internal
