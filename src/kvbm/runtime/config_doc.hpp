// SPDX-License-Identifier: Apache-2.0
// What people read about the configuration, written from the schema.
#pragma once

#include <string>

namespace kvbm {

/// docs/configuration.md. A unit test compares; the target `config_doc` writes the file anew.
[[nodiscard]] std::string config_doc();

/// One paragraph an option, for --help.
[[nodiscard]] std::string config_help();

/// A JSON Schema (draft 2020-12) of what a TOML file may say, for editors and other programs.
[[nodiscard]] std::string config_json_schema();

}  // namespace kvbm
