// SPDX-License-Identifier: Apache-2.0
// LoopbackAgent: a remote agent whose peers are in its own process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/transfer/remote_agent.hpp"

namespace kvbm {

/// Connects the agents that are made with it. Ownership: agents keep what they need of it.
/// Threads: any thread.
class LoopbackNetwork {
 public:
  LoopbackNetwork();
  ~LoopbackNetwork();
  LoopbackNetwork(const LoopbackNetwork&) = delete;
  LoopbackNetwork& operator=(const LoopbackNetwork&) = delete;

 private:
  friend class LoopbackAgent;
  class Core;

  std::shared_ptr<Core> core_;
};

struct LoopbackAgentOptions {
  LoopbackNetwork& network;
  Executor& executor;
  std::string name;
  size_t num_threads = 1;
  size_t max_pending = 4096;         ///< operations
  size_t max_notifications = 65536;  ///< that nobody has taken; beyond it the sender is told
  uint64_t bytes_per_turn = uint64_t{1} << 20;  ///< of an operation, before others get the thread
  /// Whether the host reaches memory of the devices by address, as that of a HostDevice.
  bool device_memory = false;
};

/// The agent that asks copies, on threads of its own, by turns of some blocks. Each turn looks
/// whether the peer still has the memory registered, and keeps it so until the turn ends; so a peer
/// that goes away waits for one turn at most.
/// Errors: see RemoteAgent. Metadata is of this network alone: elsewhere it is kUnavailable.
class LoopbackAgent final : public RemoteAgent {
 public:
  /// Errors: kInvalidArgument (no name; a name that an agent of the network has; an option that is
  /// zero), kExhausted (no thread).
  [[nodiscard]] static Result<std::unique_ptr<LoopbackAgent>> create(
      const LoopbackAgentOptions& options);
  ~LoopbackAgent() override;

  [[nodiscard]] const std::string& name() const noexcept override;
  [[nodiscard]] RemoteAgentCapabilities capabilities() const override;
  [[nodiscard]] Result<AgentMemoryId> register_memory(
      const AgentMemory& memory, std::span<const MemoryRegion> regions) override;
  [[nodiscard]] Result<Completion> unregister_memory(AgentMemoryId id) override;
  [[nodiscard]] Result<AgentMetadata> metadata() const override;
  Status add_peer(std::string_view peer, std::span<const std::byte> metadata) override;
  Status remove_peer(std::string_view peer) override;
  [[nodiscard]] Result<Completion> submit(RemoteRequest request) override;
  [[nodiscard]] std::vector<RemoteNotification> take_notifications() override;

 private:
  class Core;

  explicit LoopbackAgent(std::unique_ptr<Core> core);

  std::unique_ptr<Core> core_;
};

}  // namespace kvbm
