// SPDX-License-Identifier: Apache-2.0
// RemoteAgent: reads and writes of memory of other workers, one side taking part.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/completion.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/strided_copy.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/memory/memory_region.hpp"

namespace kvbm {

struct RemoteAgentCapabilities {
  std::string backend = {};  ///< "loopback"
  bool device_memory =
      false;               ///< reaches memory of devices, of both sides; host memory it always does
  size_t max_pending = 0;  ///< operations that it holds
};

/// Which memory an address is of, in the words of agents.
struct AgentMemory {
  MemoryType type = MemoryType::kDram;
  uint64_t device_id = 0;  ///< the ordinal of a device, else 0

  friend bool operator==(const AgentMemory&, const AgentMemory&) = default;
};

/// What one register_memory() registered.
enum class AgentMemoryId : uint64_t {};

/// Opaque, for others to load.
using AgentMetadata = std::vector<std::byte>;

enum class RemoteOp : uint8_t { kRead, kWrite };

/// "read", "write".
[[nodiscard]] std::string_view to_string(RemoteOp op) noexcept;

/// One loop of a RemotePiece. Units: bytes, apart from `count`.
struct RemoteAxis {
  uint64_t count = 1;
  uint64_t local_stride = 0;   ///< not used if count is 1
  uint64_t remote_stride = 0;  ///< not used if count is 1

  friend bool operator==(const RemoteAxis&, const RemoteAxis&) = default;
};
using RemoteAxes = std::array<RemoteAxis, kStridedAxes>;

/// A part of every block, as a StridedPiece has it, with one end in another process. That end is a
/// number and no pointer, so that no copy of this process takes it.
/// Units: bytes.
struct RemotePiece {
  std::byte* local = nullptr;
  uint64_t remote = 0;
  uint64_t local_block_stride = 0;
  uint64_t remote_block_stride = 0;
  uint64_t bytes = 0;
  RemoteAxes axes = {};

  friend bool operator==(const RemotePiece&, const RemotePiece&) = default;
};

/// Block ids of one side.
using BlockList = std::shared_ptr<const std::vector<BlockId>>;

[[nodiscard]] BlockList make_block_list(std::vector<BlockId> ids);

/// Every piece for every pair (local[i], remote[i]): to here with kRead, to the peer with kWrite.
/// Requires: what is written overlaps neither itself nor what is read.
struct RemoteRequest {
  RemoteOp op = RemoteOp::kRead;
  std::string peer = {};
  AgentMemory local_memory = {};
  AgentMemory remote_memory = {};
  BlockList local = nullptr;
  BlockList remote = nullptr;
  std::vector<RemotePiece> pieces = {};
  /// The peer is told once all bytes are where they should be, and only then. Without blocks this
  /// is all that happens.
  std::optional<uint64_t> notification = std::nullopt;
  /// What has not ended by then is stopped and fails with kTimeout.
  TimePoint deadline = kNever;
  /// If set, grows by the bytes that arrived, not later than the operation is done.
  std::shared_ptr<std::atomic<uint64_t>> bytes_moved = nullptr;
};

struct RemoteNotification {
  std::string peer = {};  ///< the agent that sent it
  uint64_t value = 0;

  friend bool operator==(const RemoteNotification&, const RemoteNotification&) = default;
};

/// The memory of both sides is registered with their agents; the agent that asks knows the other
/// one's metadata. The peer's threads take no part: it learns of an operation by its notification.
///
/// Operations, also to one peer, run in any order and side by side.
/// Errors: of an operation, from its completion unless the call refuses it: kInvalidArgument (an
///   address outside of what is registered: metadata is no proof of it, so it is checked against
///   what the peer has registered), kUnavailable (the peer is gone, or has unregistered the
///   memory), kTimeout, kExhausted (the peer has no room for the notification; the bytes are
///   there), kCancelled (the agent was destroyed before its end), kIo. What was written of one that
///   failed is undefined, and the peer is told nothing.
/// Ownership: the executor outlives the agent. An operation that is done, however it ended, touches
///   memory of neither side any more; until then both are left alone. Destruction: operations that
///   run are stopped, peers reach nothing any more, and when it returns no memory is touched.
///   Completions may outlive the agent.
/// Threads: any thread (with a SteppedExecutor: its owner thread). Destruction: not inside a
///   callback of one of its own operations.
class RemoteAgent {
 public:
  virtual ~RemoteAgent() = default;
  RemoteAgent(const RemoteAgent&) = delete;
  RemoteAgent& operator=(const RemoteAgent&) = delete;

  /// By which peers know it.
  [[nodiscard]] virtual const std::string& name() const noexcept = 0;
  [[nodiscard]] virtual RemoteAgentCapabilities capabilities() const = 0;

  /// Memory that operations of this agent and of its peers may touch. Ranges may overlap those of
  /// other registrations. Errors: kInvalidArgument (no region, an empty one, one of a file),
  /// kUnsupported (memory of a device; see capabilities), kExhausted.
  [[nodiscard]] virtual Result<AgentMemoryId> register_memory(
      const AgentMemory& memory, std::span<const MemoryRegion> regions) = 0;

  /// No new operation takes it, and those of peers are cut off. Done once nothing touches it:
  /// operations of this agent are finished first. Errors: kNotFound.
  [[nodiscard]] virtual Result<Completion> unregister_memory(AgentMemoryId id) = 0;

  /// What peers load to reach what is registered by now. Memory that is registered later may need
  /// another exchange.
  [[nodiscard]] virtual Result<AgentMetadata> metadata() const = 0;

  /// The bytes may be hostile. Errors: kInvalidArgument (known already; this agent itself),
  /// kCorrupt (no metadata of an agent of this name), kUnsupported (of another backend or version),
  /// kUnavailable (it cannot be reached).
  virtual Status add_peer(std::string_view peer, std::span<const std::byte> metadata) = 0;
  /// New operations do not know it; those that run go on. Errors: kNotFound.
  virtual Status remove_peer(std::string_view peer) = 0;

  /// Never waits. Takes the operation or nothing, also if it throws (std::bad_alloc alone).
  /// Errors: kNotFound (a peer that was not added), kInvalidArgument (lists or pieces that make no
  /// sense), kExhausted (max_pending: wait for something to end and try again), kUnavailable (being
  /// destroyed), and those of operations.
  [[nodiscard]] virtual Result<Completion> submit(RemoteRequest request) = 0;

  /// Those that have come since the last call, in the order in which they came.
  [[nodiscard]] virtual std::vector<RemoteNotification> take_notifications() = 0;

 protected:
  RemoteAgent() = default;
};

}  // namespace kvbm
