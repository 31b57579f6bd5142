// SPDX-License-Identifier: Apache-2.0
// What the tables of configuration keys share: texts of values and of what is allowed.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace kvbm::internal {

/// "a, b or c"
[[nodiscard]] std::string alternatives(std::span<const std::string_view> words);

[[nodiscard]] bool has_control_character(std::string_view text);

/// A text without control characters, as TOML.
[[nodiscard]] std::string toml_text(std::string_view text);

}  // namespace kvbm::internal
