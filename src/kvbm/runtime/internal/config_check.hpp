// SPDX-License-Identifier: Apache-2.0
// The checks of a whole configuration, with or without knowing where its values came from.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "kvbm/base/result.hpp"
#include "kvbm/runtime/kv_block_manager_config.hpp"

namespace kvbm::internal {

/// Where the value of a key came from, or nothing if that is not known.
using WhereOf = std::function<std::string(std::string_view key)>;

[[nodiscard]] Status check_config(const KvBlockManagerConfig& config, const WhereOf& where_of);

/// The whole message about one wrong value: `key = value (where): reason`.
[[nodiscard]] std::string config_message(std::string_view key, std::string_view value,
                                         std::string_view where, std::string_view reason);

}  // namespace kvbm::internal
