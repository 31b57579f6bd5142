// SPDX-License-Identifier: Apache-2.0
// kvbm config: what the sources of a configuration come to.
#include <algorithm>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kvbm/runtime/config.hpp"
#include "kvbm/runtime/config_doc.hpp"
#include "kvbm/runtime/config_schema.hpp"

#include "apps/kvbm/command.hpp"

namespace kvbm {
namespace {

struct ConfigArguments {
  std::optional<std::string> file;
  std::vector<ConfigSetting> settings;
};

Result<ExitCode> show(const ConfigArguments& arguments, Console& console) {
  ConfigSources sources{.environment = process_environment(), .settings = arguments.settings};
  std::ranges::move(connector_environment(), std::back_inserter(sources.environment));
  if (arguments.file) {
    KVBM_ASSIGN_OR_RETURN(sources.file, read_config_file(*arguments.file));
  }
  KVBM_ASSIGN_OR_RETURN(const Config config, Config::read(sources));
  // Who sets a connector alone has no block manager, whose keys lack defaults.
  const bool has_block_manager = std::ranges::any_of(config_schema(), [&](const ConfigKey& key) {
    return config.origin(key.name).kind != ConfigSourceKind::kDefault;
  });
  if (has_block_manager) KVBM_TRY(config.check());
  console.print(config.to_toml() + "\n" + config.connector_to_toml());
  return ExitCode::kSuccess;
}

Command add_show(CLI::App& parent, Console& console) {
  CLI::App* app = add_subcommand(
      parent, "show", "Prints every value as TOML, each with the source that set it last");
  auto arguments = std::make_shared<ConfigArguments>();
  app->add_option("--config", arguments->file,
                  "A TOML file (default: the one that KVBM_CONFIG names)")
      ->type_name("FILE");
  for (const ConfigKey& key : config_schema()) {
    const std::string name = option_of(key);
    app->add_option_function<std::string>(
           name,
           [arguments, name, key = std::string(key.name)](const std::string& value) {
             arguments->settings.push_back({.key = key, .value = value, .where = name});
           },
           std::string(key.doc))
        ->type_name("VALUE");
  }
  return {app, [arguments, &console] { return show(*arguments, console); }};
}

Command add_schema(CLI::App& parent, Console& console) {
  CLI::App* app = add_subcommand(parent, "schema", "Prints a JSON Schema of what TOML may say");
  return {app, [&console]() -> Result<ExitCode> {
            console.print(config_json_schema());
            return ExitCode::kSuccess;
          }};
}

}  // namespace

std::vector<Command> add_config_commands(CLI::App& program, Console& console) {
  CLI::App* app = add_subcommand(program, "config", "Shows and describes the configuration");
  app->require_subcommand(1);
  return {add_show(*app, console), add_schema(*app, console)};
}

}  // namespace kvbm
