// SPDX-License-Identifier: Apache-2.0
// ConnectorStep: what the scheduler half tells the worker half with each step of the engine.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "kvbm/base/ids.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/protocol/messages.hpp"

namespace kvbm {

/// A load between steps that has ended on every rank: the engine may schedule the request.
struct EndedLoad {
  std::string request;
  std::vector<BlockId> failed;  ///< engine blocks of any group that did not get their content

  friend bool operator==(const EndedLoad&, const EndedLoad&) = default;
};

/// Travels in the engine's own step metadata, the same bytes to every rank.
struct ConnectorStep {
  StepPlan plan;
  std::vector<EndedLoad> ended_loads;

  friend bool operator==(const ConnectorStep&, const ConnectorStep&) = default;
};

/// Format: docs/formats/connector-step.md.
[[nodiscard]] std::vector<std::byte> encode(const ConnectorStep& step);

/// `message` is exactly one step and may be hostile. Errors: kUnsupported (another version),
/// kCorrupt (anything else, with the reason).
[[nodiscard]] Result<ConnectorStep> decode_connector_step(std::span<const std::byte> message);

}  // namespace kvbm
