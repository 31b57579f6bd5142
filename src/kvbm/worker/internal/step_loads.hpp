// SPDX-License-Identifier: Apache-2.0
// StepLoads: the loads of a step, and for which parts of them each stream has yet to wait.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kvbm/device/device.hpp"
#include "kvbm/device/stream.hpp"
#include "kvbm/worker/internal/worker_operation.hpp"
#include "kvbm/worker/load_parts.hpp"

namespace kvbm::internal {

/// A stream waits for a part once: for its end when the first of its layers is needed.
/// Threads: one thread at a time, with the worker's lock.
class StepLoads {
 public:
  using PartSet = uint8_t;  ///< a bit each; a load that goes as a whole has one
  static_assert(kMaxLoadParts <= 8);

  /// What a stream has to wait for.
  // NOLINTNEXTLINE(bugprone-exception-escape): moving an Event does not throw.
  struct Wait {
    size_t load;
    PartSet parts;
    Event event;
  };

  [[nodiscard]] bool empty() const noexcept { return loads_.empty(); }
  void clear();
  /// Contract: no stream has asked for layers yet.
  void add(std::shared_ptr<WorkerOperation> load);

  /// The ends of the loads that the stream may run ahead of in some part.
  [[nodiscard]] std::vector<Event> missed_by(StreamRef stream, Device& device);
  /// Before the stream touches the layer of each group, or all layers.
  [[nodiscard]] std::vector<Wait> waits_of(StreamRef stream, std::optional<LayerId> layer,
                                           Device& device);
  /// The stream waits for these. Whether there is more that it does not wait for.
  bool note(StreamRef stream, std::span<const Wait> waits);

 private:
  struct OfStream {
    StreamRef stream;
    std::vector<PartSet> missing;  // of each load: what the stream has not been made to wait for
    bool waits_for_all = false;
  };

  [[nodiscard]] const OfStream* find(StreamRef stream) const;
  OfStream& of(StreamRef stream);

  std::vector<std::shared_ptr<WorkerOperation>> loads_;
  std::vector<OfStream> streams_;  // that ask for layers
};

}  // namespace kvbm::internal
