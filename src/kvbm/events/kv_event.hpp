// SPDX-License-Identifier: Apache-2.0
// KvEvent: a block came to, or left, a tier.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <map>
#include <string>
#include <string_view>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/ids.hpp"
#include "kvbm/blocks/block_key.hpp"

namespace kvbm {

/// Said per tier, so that created + migrated − deleted is what is resident there.
enum class KvEventType : uint8_t {
  kCreated,   ///< the block became readable in `tier`, from compute
  kDeleted,   ///< the block can no longer be found in `tier`
  kMigrated,  ///< the block became readable in `tier`, as a copy from `from_tier`; leaving that is
              ///< kDeleted
};

/// "created", "deleted", "migrated".
[[nodiscard]] std::string_view to_string(KvEventType type) noexcept;
std::ostream& operator<<(std::ostream& out, KvEventType type);

/// A value. Allocates nothing while `metadata` is empty.
struct KvEvent {
  KvEventType type = KvEventType::kCreated;
  uint64_t block_id = 0;  ///< the slot in `tier`
  WorkerId worker_id = {};
  WallTime timestamp{};
  std::map<std::string, std::string> metadata = {};
  BlockKey key = {};
  TierId tier = TierId::kG1;
  TierId from_tier = TierId::kG1;  ///< kMigrated only

  friend bool operator==(const KvEvent&, const KvEvent&) = default;
};

/// One line, for logs and failed tests.
std::ostream& operator<<(std::ostream& out, const KvEvent& event);

}  // namespace kvbm
