// SPDX-License-Identifier: Apache-2.0
#include "kvbm/blocks/eviction_policy.hpp"

#include <array>
#include <ostream>
#include <string>

#include "kvbm/blocks/internal/eviction_policy.hpp"

namespace kvbm {
namespace {

constexpr std::array<std::string_view, 3> kNames = {"lineage", "lru", "fifo"};

}  // namespace

std::string_view to_string(PolicyKind policy) noexcept {
  const auto index = static_cast<size_t>(policy);
  return index < kNames.size() ? kNames[index] : "unknown";
}

std::ostream& operator<<(std::ostream& out, PolicyKind policy) { return out << to_string(policy); }

std::span<const std::string_view> policy_names() noexcept { return kNames; }

Result<PolicyKind> parse_policy(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<PolicyKind>(i);
  }
  std::string message = "no eviction policy '" + std::string(name) + "'; there are:";
  for (const std::string_view known : kNames) (message += ' ') += known;
  return make_error(ErrorCode::kInvalidArgument, std::move(message));
}

namespace internal {

std::unique_ptr<EvictionPolicy> make_policy(PolicyKind kind, Retention retention,
                                            uint32_t num_blocks) {
  switch (kind) {
    case PolicyKind::kLineage:
      return retention.is_full_prefix() ? make_lineage_policy(num_blocks)
                                        : make_lru_policy(num_blocks);
    case PolicyKind::kLru:
      return make_lru_policy(num_blocks);
    case PolicyKind::kFifo:
      return make_fifo_policy(num_blocks);
  }
  KVBM_CONTRACT(false, "an eviction policy of no known kind");
  return nullptr;
}

}  // namespace internal
}  // namespace kvbm
