// SPDX-License-Identifier: Apache-2.0
// The table of all configuration keys of a block manager.
#pragma once

#include <string>

#include "kvbm/runtime/kv_block_manager_config.hpp"
#include "kvbm/runtime/setting.hpp"

namespace kvbm {

using ConfigKey = Setting<KvBlockManagerConfig>;

[[nodiscard]] const SettingTable<KvBlockManagerConfig>& config_schema();

/// "--block-size"
[[nodiscard]] std::string option_of(const ConfigKey& key);
/// "KVBM_BLOCK_SIZE"
[[nodiscard]] std::string environment_variable_of(const ConfigKey& key);

}  // namespace kvbm
