// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/agent_link.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "kvbm/base/text.hpp"

namespace kvbm::internal {

AgentLink::AgentLink(RemoteAgent& agent) : agent_(agent), capabilities_(agent.capabilities()) {}

Result<std::optional<AgentMemoryId>> AgentLink::enter(const PhysicalLayout& layout) const {
  const RegistrationMetadata& wanted = layout.registration();
  if (!wanted.agent_name.empty() && wanted.agent_name != agent_.name()) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("the layout was made for the agent {}, that of this manager is "
                                  "{}",
                                  wanted.agent_name, agent_.name()));
  }
  const StorageKind storage = layout.storage_kind();
  const bool reaches = storage != StorageKind::kFile &&
                       (storage != StorageKind::kDevice || capabilities_.device_memory);
  if (!reaches) return std::nullopt;
  std::vector<MemoryRegion> regions;
  for (const PageMap& map : layout.page_maps()) {
    // Layers of one tensor have one region.
    if (regions.empty() || regions.back() != map.region()) regions.push_back(map.region());
  }
  KVBM_ASSIGN_OR_RETURN(
      const AgentMemoryId memory,
      agent_.register_memory({.type = wanted.memory_type, .device_id = wanted.device_id}, regions));
  return memory;
}

void AgentLink::keep(uint16_t layout, AgentMemoryId memory) {
  const MutexLock lock(mutex_);
  memory_.emplace(layout, memory);
}

void AgentLink::withdraw(AgentMemoryId memory, std::shared_ptr<const PhysicalLayout> layout) const {
  const Result<Completion> left = agent_.unregister_memory(memory);
  if (left) left->on_done([layout = std::move(layout)](const Status&) noexcept {});
}

Result<Completion> AgentLink::leave(uint16_t layout, std::shared_ptr<const PhysicalLayout> last) {
  AgentMemoryId memory{};
  {
    const MutexLock lock(mutex_);
    const auto found = memory_.find(layout);
    if (found == memory_.end()) return Completion::ready();
    memory = found->second;
    memory_.erase(found);
  }
  KVBM_ASSIGN_OR_RETURN(Completion left, agent_.unregister_memory(memory));
  left.on_done([last = std::move(last)](const Status&) noexcept {});
  return left;
}

Status AgentLink::enter(const std::shared_ptr<BounceMemory>& memory) {
  {
    const MutexLock lock(mutex_);
    if (bounce_.contains(memory)) return {};
  }
  std::vector<MemoryRegion> slots;
  for (uint32_t i = 0; i < memory->ring().num_slots(); ++i) slots.push_back(memory->slot(i));
  KVBM_ASSIGN_OR_RETURN(const AgentMemoryId id, agent_.register_memory({}, slots));
  bool is_first = false;
  {
    const MutexLock lock(mutex_);
    is_first = bounce_.emplace(memory, id).second;
  }
  // Another thread may have done the same.
  if (!is_first) static_cast<void>(agent_.unregister_memory(id));
  return {};
}

Status AgentLink::connect(const LayoutMetadata& metadata) {
  if (metadata.agent_metadata.empty()) return {};  // it has no agent
  Peer peer{.agent_name = metadata.worker.agent_name, .layouts = {}};
  for (const LogicalLayoutDescriptor& logical : metadata.layouts) {
    if (logical.layout.storage == StorageKind::kFile) continue;
    KVBM_ASSIGN_OR_RETURN(PhysicalLayout layout, logical.layout.as_remote(peer.agent_name));
    peer.layouts.emplace(logical.handle, std::make_shared<const PhysicalLayout>(std::move(layout)));
  }
  KVBM_TRY(agent_.add_peer(peer.agent_name, metadata.agent_metadata));
  const MutexLock lock(mutex_);
  peers_.emplace(metadata.worker.worker, std::move(peer));
  return {};
}

void AgentLink::disconnect(WorkerId worker) {
  Peer peer;
  {
    const MutexLock lock(mutex_);
    const auto found = peers_.find(worker);
    if (found == peers_.end()) return;
    peer = std::move(found->second);
    peers_.erase(found);
  }
  static_cast<void>(agent_.remove_peer(peer.agent_name));
}

std::shared_ptr<const PhysicalLayout> AgentLink::find(LayoutHandle handle) const {
  const MutexLock lock(mutex_);
  const auto peer = peers_.find(handle.worker);
  if (peer == peers_.end()) return nullptr;
  const auto layout = peer->second.layouts.find(handle);
  return layout == peer->second.layouts.end() ? nullptr : layout->second;
}

void AgentLink::close() {
  std::map<uint16_t, AgentMemoryId> memory;
  std::map<std::shared_ptr<BounceMemory>, AgentMemoryId> bounce;
  std::map<WorkerId, Peer> peers;
  {
    const MutexLock lock(mutex_);
    memory.swap(memory_);
    bounce.swap(bounce_);
    peers.swap(peers_);
  }
  for (const auto& [worker, peer] : peers) {
    static_cast<void>(agent_.remove_peer(peer.agent_name));
  }
  const auto leave = [this](AgentMemoryId id) {
    const Result<Completion> left = agent_.unregister_memory(id);
    if (left) static_cast<void>(left->wait());
  };
  for (const auto& [layout, id] : memory) leave(id);
  for (const auto& [slots, id] : bounce) leave(id);
}

}  // namespace kvbm::internal
