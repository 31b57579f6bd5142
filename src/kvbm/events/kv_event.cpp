// SPDX-License-Identifier: Apache-2.0
#include "kvbm/events/kv_event.hpp"

#include <ostream>

namespace kvbm {

std::string_view to_string(KvEventType type) noexcept {
  switch (type) {
    case KvEventType::kCreated:
      return "created";
    case KvEventType::kDeleted:
      return "deleted";
    case KvEventType::kMigrated:
      return "migrated";
  }
  return "unknown";
}

std::ostream& operator<<(std::ostream& out, KvEventType type) { return out << to_string(type); }

std::ostream& operator<<(std::ostream& out, const KvEvent& event) {
  out << event.type << ' ' << event.key << " in " << event.tier;
  if (event.type == KvEventType::kMigrated) out << " from " << event.from_tier;
  out << ", block " << event.block_id << ", worker " << event.worker_id << ", "
      << event.timestamp.time_since_epoch().count() << " ns";
  for (const auto& [name, value] : event.metadata) out << ", " << name << '=' << value;
  return out;
}

}  // namespace kvbm
