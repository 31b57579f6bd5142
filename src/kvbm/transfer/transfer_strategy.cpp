// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/transfer_strategy.hpp"

#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

tl::unexpected<Error> unsupported(std::string message) {
  return make_error(ErrorCode::kUnsupported, std::move(message));
}

bool is_file(const TransferEnd& end) { return end.storage == StorageKind::kFile; }
bool is_device(const TransferEnd& end) { return end.storage == StorageKind::kDevice; }
bool is_remote(const TransferEnd& end) { return end.locality == Locality::kRemote; }

/// Whether Device::copy takes the memory.
bool device_copies(const TransferEnd& end, const DeviceCapabilities& device) {
  return end.storage != StorageKind::kSystem || device.copies_pageable_host;
}

/// The copy between two places in memory, if one hop does it.
std::optional<TransferHop> copy_hop(const TransferEnd& from, const TransferEnd& to,
                                    const DeviceCapabilities& device) {
  TransferHop hop{.kind = HopKind::kDevice, .from = from, .to = to};
  if (device_copies(from, device) && device_copies(to, device)) return hop;
  if (is_device(from) || is_device(to)) return std::nullopt;
  hop.kind = HopKind::kHost;
  return hop;
}

TransferHop hop_of(HopKind kind, const TransferEnd& from, const TransferEnd& to) {
  return {.kind = kind, .from = from, .to = to};
}

/// What the bounce blocks are in: memory that whoever takes part in both hops reaches.
TransferEnd bounce(const StrategyQuestion& question) {
  const bool with_device = is_device(question.src) || is_device(question.dst);
  return {.storage = with_device && !question.device.copies_pageable_host ? StorageKind::kPinned
                                                                          : StorageKind::kSystem};
}

/// First a copy into bounce blocks, then what `last` does with them.
TransferStrategy copy_then(HopKind last, const StrategyQuestion& question,
                           std::string_view reason) {
  const TransferEnd via = bounce(question);
  return {.first = copy_hop(question.src, via, question.device).value(),
          .second = hop_of(last, via, question.dst),
          .reason = reason};
}

/// First `begin` fills the bounce blocks, then they are copied.
TransferStrategy then_copy(HopKind begin, const StrategyQuestion& question,
                           std::string_view reason) {
  const TransferEnd via = bounce(question);
  return {.first = hop_of(begin, question.src, via),
          .second = copy_hop(via, question.dst, question.device).value(),
          .reason = reason};
}

bool files_take(const TransferEnd& end, const StrategyQuestion& question) {
  return !is_device(end) || question.device.host_accessible ||
         (question.allowed.allow_gds && question.not_direct.empty());
}

std::string_view why_no_file(const StrategyQuestion& question) {
  return question.allowed.allow_gds
             ? question.not_direct
             : "the host cannot address this device memory, and allow_gds is off";
}

constexpr std::string_view kOtherBytes =
    "a slot of a file is read and written as a whole and in its own format";

Result<TransferStrategy> with_file(const StrategyQuestion& question) {
  const bool same = question.match == BlockMatch::kSameBytes;
  if (is_file(question.dst) && question.match == BlockMatch::kPartOfBlock) {
    return unsupported(
        "a slot of a file is written and checked as a whole: transfer all layers and heads of it");
  }
  if (is_file(question.src) && is_file(question.dst)) {
    if (!same) {
      return unsupported(
          "file to file takes whole blocks of one format: copy them to memory of the other format, "
          "then write them");
    }
    const TransferEnd via = bounce(question);
    return TransferStrategy{.first = hop_of(HopKind::kFile, question.src, via),
                            .second = hop_of(HopKind::kFile, via, question.dst),
                            .reason = "file to file goes through memory"};
  }
  const TransferEnd& memory = is_file(question.src) ? question.dst : question.src;
  const bool takes = files_take(memory, question);
  if (same && takes) {
    return TransferStrategy{.first = hop_of(HopKind::kFile, question.src, question.dst),
                            .reason = "the file engine reaches the memory of the blocks"};
  }
  const std::string_view reason = takes ? kOtherBytes : why_no_file(question);
  return is_file(question.src) ? then_copy(HopKind::kFile, question, reason)
                               : copy_then(HopKind::kFile, question, reason);
}

Result<TransferStrategy> with_remote(const StrategyQuestion& question) {
  if (is_remote(question.src) && is_remote(question.dst)) {
    return unsupported("both sides are of other workers: ask one of them for it");
  }
  const bool pulls = is_remote(question.src);
  const TransferEnd& here = pulls ? question.dst : question.src;
  const TransferEnd& there = pulls ? question.src : question.dst;
  if (question.remote_agent == nullptr) {
    return unsupported(
        "bytes of another worker are reached by a remote agent, and this transfer manager has "
        "none");
  }
  if (is_file(there)) {
    return unsupported(
        "a remote agent reaches memory, not the files of another worker: ask it to read them into "
        "memory first");
  }
  const RemoteAgentCapabilities& agent = *question.remote_agent;
  if (is_device(there) && !agent.device_memory) {
    return unsupported(
        "the remote agent does not reach the memory of another worker's device: name its host "
        "memory");
  }
  if (is_device(there) && !question.allowed.allow_gpu_rdma) {
    return unsupported(
        "the memory of another worker's device is reached with allow_gpu_rdma alone: name its "
        "host memory");
  }
  const bool same = question.match == BlockMatch::kSameBytes;
  if (is_file(here)) {
    if (!same) {
      return unsupported(
          "between a file and another worker go whole blocks of one format: copy them to memory "
          "of the other format first");
    }
    const TransferEnd via = bounce(question);
    return TransferStrategy{
        .first = hop_of(pulls ? HopKind::kRemote : HopKind::kFile, question.src, via),
        .second = hop_of(pulls ? HopKind::kFile : HopKind::kRemote, via, question.dst),
        .reason = "a remote agent reaches memory alone"};
  }
  const bool is_allowed = question.device.host_accessible || question.allowed.allow_gpu_rdma;
  const bool takes = !is_device(here) || (agent.device_memory && is_allowed);
  if (takes) {
    return TransferStrategy{.first = hop_of(HopKind::kRemote, question.src, question.dst),
                            .reason = "the remote agent reaches both sides"};
  }
  const std::string_view reason =
      is_allowed ? "the remote agent does not reach this device memory"
                 : "the host cannot address this device memory, and allow_gpu_rdma is off";
  return pulls ? then_copy(HopKind::kRemote, question, reason)
               : copy_then(HopKind::kRemote, question, reason);
}

TransferStrategy in_memory(const StrategyQuestion& question) {
  if (const auto hop = copy_hop(question.src, question.dst, question.device)) {
    return {.first = *hop,
            .reason = hop->kind == HopKind::kDevice
                          ? "the device copies memory of both kinds"
                          : "the device does not copy pageable host memory"};
  }
  const TransferEnd via = bounce(question);
  return {.first = copy_hop(question.src, via, question.device).value(),
          .second = copy_hop(via, question.dst, question.device).value(),
          .reason = "the device does not copy pageable host memory"};
}

std::string describe(const TransferHop& hop) {
  return format_text("{} to {} ({})", to_string(hop.from), to_string(hop.to), hop.kind);
}

}  // namespace

std::string_view to_string(NativeVsNixlPolicy policy) noexcept {
  switch (policy) {
    case NativeVsNixlPolicy::kPreferNative:
      return "prefer_native";
    case NativeVsNixlPolicy::kPreferNixl:
      return "prefer_nixl";
    case NativeVsNixlPolicy::kAutomatic:
      return "automatic";
  }
  return "unknown";
}

std::string to_string(const TransferEnd& end) {
  return format_text("{}{}", is_remote(end) ? "remote " : "", end.storage);
}

std::string_view to_string(HopKind kind) noexcept {
  switch (kind) {
    case HopKind::kDevice:
      return "device copy";
    case HopKind::kHost:
      return "host copy";
    case HopKind::kFile:
      return "file engine";
    case HopKind::kRemote:
      return "remote agent";
  }
  return "unknown";
}

TransferRoute TransferHop::route() const {
  if (is_remote(to)) return TransferRoute::kMemoryToRemote;
  if (is_remote(from)) return TransferRoute::kRemoteToMemory;
  if (is_file(to)) return TransferRoute::kMemoryToFile;
  if (is_file(from)) return TransferRoute::kFileToMemory;
  if (is_device(from)) {
    return is_device(to) ? TransferRoute::kDeviceToDevice : TransferRoute::kDeviceToHost;
  }
  return is_device(to) ? TransferRoute::kHostToDevice : TransferRoute::kHostToHost;
}

Result<TransferStrategy> choose_strategy(const StrategyQuestion& question) {
  Result<TransferStrategy> strategy = [&]() -> Result<TransferStrategy> {
    if (question.src.storage == StorageKind::kRemote ||
        question.dst.storage == StorageKind::kRemote) {
      return unsupported("the kind of another worker's memory is what that worker says it is");
    }
    if (is_remote(question.src) || is_remote(question.dst)) return with_remote(question);
    if (is_file(question.src) || is_file(question.dst)) return with_file(question);
    return in_memory(question);
  }();
  if (strategy && question.preferences.native_vs_nixl == NativeVsNixlPolicy::kPreferNixl) {
    strategy->note = "NIXL was preferred; without it the way is native";
  }
  return strategy;
}

std::string describe(const TransferStrategy& strategy) {
  std::string text = describe(strategy.first);
  if (strategy.second) text += format_text(", {}", describe(*strategy.second));
  text += format_text(": {}", strategy.reason);
  if (!strategy.note.empty()) text += format_text("; {}", strategy.note);
  return text;
}

}  // namespace kvbm
