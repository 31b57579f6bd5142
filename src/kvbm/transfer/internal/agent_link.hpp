// SPDX-License-Identifier: Apache-2.0
// AgentLink: what a transfer manager has with its remote agent: its own memory there, and the
// layouts of peers.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "kvbm/base/completion.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/transfer/internal/bounce_ring.hpp"
#include "kvbm/transfer/layout_handle.hpp"
#include "kvbm/transfer/remote_agent.hpp"
#include "kvbm/transfer/serialized_layout.hpp"

namespace kvbm::internal {

/// The layouts of a worker that its agent gives access to, as remote ones.
using RemoteLayouts = std::map<LayoutHandle, std::shared_ptr<const PhysicalLayout>>;

/// Ownership: borrows the agent. Threads: any thread; apart from that, connect() and disconnect()
/// of one worker one at a time.
class AgentLink {
 public:
  explicit AgentLink(RemoteAgent& agent);
  AgentLink(const AgentLink&) = delete;
  AgentLink& operator=(const AgentLink&) = delete;

  [[nodiscard]] RemoteAgent& agent() const noexcept { return agent_; }
  [[nodiscard]] const RemoteAgentCapabilities& capabilities() const noexcept {
    return capabilities_;
  }

  /// Registers what the agent reaches of a layout; none: it reaches nothing of it.
  /// Errors: kInvalidArgument (a layout that was made for another agent), those of the agent.
  [[nodiscard]] Result<std::optional<AgentMemoryId>> enter(const PhysicalLayout& layout) const;
  /// Remembers it for leave().
  void keep(uint16_t layout, AgentMemoryId memory);
  /// After an enter() without keep(). The layout stays until nothing touches it.
  void withdraw(AgentMemoryId memory, std::shared_ptr<const PhysicalLayout> layout) const;
  /// Done once no other worker touches the layout, which is kept until then.
  /// Errors: those of the agent.
  [[nodiscard]] Result<Completion> leave(uint16_t layout,
                                         std::shared_ptr<const PhysicalLayout> last);

  /// Registers bounce blocks, which stay to the end of the manager. Again is no change.
  /// Errors: those of the agent.
  Status enter(const std::shared_ptr<BounceMemory>& memory);

  /// Makes the layouts of a worker that has an agent known. Errors: those of RemoteAgent::add_peer
  /// and of LayoutDescriptor::as_remote.
  Status connect(const LayoutMetadata& metadata);
  /// No change if it is not connected.
  void disconnect(WorkerId worker);

  /// Null: the worker is not connected, or the layout is slots of a file.
  [[nodiscard]] std::shared_ptr<const PhysicalLayout> find(LayoutHandle handle) const;

  /// Lets go of all memory and all peers; returns when no other worker touches the memory.
  void close();

 private:
  struct Peer {
    std::string agent_name;
    RemoteLayouts layouts;
  };

  RemoteAgent& agent_;
  const RemoteAgentCapabilities capabilities_;
  mutable Mutex mutex_{LockRank::kTransfer, "transfer.agent_link"};
  std::map<uint16_t, AgentMemoryId> memory_ KVBM_GUARDED_BY(mutex_);  // by own layouts
  std::map<std::shared_ptr<BounceMemory>, AgentMemoryId> bounce_ KVBM_GUARDED_BY(mutex_);
  std::map<WorkerId, Peer> peers_ KVBM_GUARDED_BY(mutex_);
};

}  // namespace kvbm::internal
