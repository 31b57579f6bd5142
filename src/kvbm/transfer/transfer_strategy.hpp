// SPDX-License-Identifier: Apache-2.0
// choose_strategy: by which hops bytes go from one kind of place to another, and why.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "kvbm/base/result.hpp"
#include "kvbm/device/device.hpp"
#include "kvbm/memory/memory_region.hpp"
#include "kvbm/transfer/remote_agent.hpp"
#include "kvbm/transfer/transfer_preferences.hpp"
#include "kvbm/transfer/transfer_route.hpp"

namespace kvbm {

enum class Locality : uint8_t {
  kHere,
  kRemote,  ///< of another worker; its kind of storage is what that worker says
};

/// Where one side of a transfer, or of a hop, is.
struct TransferEnd {
  StorageKind storage = StorageKind::kSystem;
  Locality locality = Locality::kHere;

  friend bool operator==(const TransferEnd&, const TransferEnd&) = default;
};

/// "pinned", "remote device".
[[nodiscard]] std::string to_string(const TransferEnd& end);

/// Who moves the bytes of a hop.
enum class HopKind : uint8_t {
  kDevice,  ///< Device::copy
  kHost,    ///< threads of the transfer manager
  kFile,    ///< the file engine
  kRemote,  ///< a remote agent
};

/// "device copy", "host copy", "file engine", "remote agent".
[[nodiscard]] std::string_view to_string(HopKind kind) noexcept;

struct TransferHop {
  HopKind kind = HopKind::kDevice;
  TransferEnd from = {};
  TransferEnd to = {};

  /// Contract: not kRemote.
  [[nodiscard]] TransferRoute route() const;

  friend bool operator==(const TransferHop&, const TransferHop&) = default;
};

/// What the blocks are on both sides.
enum class BlockMatch : uint8_t {
  kSameBytes,    ///< whole blocks in one format: a block is the same bytes on both sides
  kReshaped,     ///< another format, or a part of the source's blocks
  kPartOfBlock,  ///< a part of the destination's blocks is written, in whatever format
};

struct StrategyQuestion {
  TransferEnd src;
  TransferEnd dst;
  BlockMatch match = BlockMatch::kSameBytes;
  const DeviceCapabilities& device;
  TransferCapabilities allowed = {};
  TransferPreferences preferences = {};
  /// Why these blocks do not go between a file and memory of a device that the host cannot address
  /// in one hop, if allow_gds lets them; empty: they do. Outlives the strategy.
  std::string_view not_direct = "the file engine does not reach it";
  /// Null: there is none.
  const RemoteAgentCapabilities* remote_agent = nullptr;
};

/// One hop, or two with a ring of bounce blocks between them, which are of first.to.
struct TransferStrategy {
  TransferHop first;
  std::optional<TransferHop> second = std::nullopt;
  std::string_view reason = {};  ///< why it is staged, or not; a literal, or not_direct
  std::string_view note = {};    ///< which wish was not met; a literal, empty if there is none

  [[nodiscard]] bool is_staged() const noexcept { return second.has_value(); }
};

/// Total: every question has a strategy or a reason. A pure function; with a strategy it allocates
/// nothing.
/// Errors: kUnsupported, with what to do instead (no remote agent; both sides remote; a file of
/// another worker, or memory of its device without allow_gpu_rdma; part of the slots of a file; a
/// file and another file, or another worker, if blocks are not the same bytes).
[[nodiscard]] Result<TransferStrategy> choose_strategy(const StrategyQuestion& question);

/// In words: "device to system (device copy), system to file (file engine): a file takes …".
[[nodiscard]] std::string describe(const TransferStrategy& strategy);

}  // namespace kvbm
