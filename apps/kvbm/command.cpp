// SPDX-License-Identifier: Apache-2.0
#include "apps/kvbm/command.hpp"

#include <algorithm>
#include <charconv>
#include <string_view>
#include <system_error>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/runtime/devices.hpp"

#include "apps/kvbm/build_info.hpp"

namespace kvbm {
namespace {

uint64_t parse_count(const std::string& name, const std::string& text, CountRange range) {
  uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, value);
  const bool digits = !text.empty() && parsed.ptr == end;
  if (parsed.ec == std::errc::invalid_argument || !digits) {
    throw CLI::ValidationError(name, format_text("'{}' is no whole number", text));
  }
  if (parsed.ec != std::errc() || value < range.low || value > range.high) {
    const std::string possible = range.high == CountRange().high
                                     ? format_text("{} and more", range.low)
                                     : format_text("from {} to {}", range.low, range.high);
    throw CLI::ValidationError(name,
                               format_text("{} is out of range: {} is possible", text, possible));
  }
  return value;
}

uint64_t parse_bytes(const std::string& name, const std::string& text) {
  const auto size = parse_size(text);
  if (!size) throw CLI::ValidationError(name, explain(size.error()));
  if (*size == 0) throw CLI::ValidationError(name, "a size of 0 bytes is of no use");
  return *size;
}

// "--out,--output" is called "--out" in messages.
std::string first_name(const std::string& names) { return names.substr(0, names.find(',')); }

template <class Parse>
CLI::Option* add_parsed(CLI::App& app, const std::string& name, const std::string& help,
                        const char* kind, Parse parse) {
  CLI::Option* option = app.add_option(
      name,
      [parse = std::move(parse)](const CLI::results_t& results) {
        parse(results.back());
        return true;
      },
      help);
  return option->type_name(kind);
}

template <class T>
CLI::Option* add_count_to(CLI::App& app, const std::string& name, T& target,
                          const std::string& help, CountRange range) {
  return add_parsed(app, name, help, "N",
                    [&target, range, shown = first_name(name)](const std::string& text) {
                      target = static_cast<T>(parse_count(shown, text, range));
                    });
}

template <class T>
CLI::Option* add_size_to(CLI::App& app, const std::string& name, T& target,
                         const std::string& help) {
  return add_parsed(app, name, help, "SIZE",
                    [&target, shown = first_name(name)](const std::string& text) {
                      target = parse_bytes(shown, text);
                    });
}

}  // namespace

CLI::App* add_subcommand(CLI::App& parent, const std::string& name,
                         const std::string& description) {
  CLI::App* app = parent.add_subcommand(name, description);
  app->set_version_flag("--version", kProgramVersion, "Print the version and exit");
  app->get_formatter()->column_width(34);
  return app;
}

CLI::Option* add_count(CLI::App& app, const std::string& name, uint64_t& target,
                       const std::string& help, CountRange range) {
  return add_count_to(app, name, target, help, range)->default_str(std::to_string(target));
}

CLI::Option* add_count(CLI::App& app, const std::string& name, uint32_t& target,
                       const std::string& help, CountRange range) {
  range.high = std::min<uint64_t>(range.high, std::numeric_limits<uint32_t>::max());
  return add_count_to(app, name, target, help, range)->default_str(std::to_string(target));
}

CLI::Option* add_count(CLI::App& app, const std::string& name, std::optional<uint64_t>& target,
                       const std::string& help, CountRange range) {
  return add_count_to(app, name, target, help, range);
}

CLI::Option* add_milliseconds(CLI::App& app, const std::string& name,
                              std::chrono::milliseconds& target, const std::string& help) {
  static constexpr CountRange kOneDay{0, 86'400'000};
  return add_parsed(app, name, help, "MS",
                    [&target, shown = first_name(name)](const std::string& text) {
                      const uint64_t count = parse_count(shown, text, kOneDay);
                      target = std::chrono::milliseconds(static_cast<int64_t>(count));
                    })
      ->default_str(std::to_string(target.count()));
}

CLI::Option* add_size(CLI::App& app, const std::string& name, uint64_t& target,
                      const std::string& help) {
  return add_size_to(app, name, target, help)->default_str(format_size(target));
}

CLI::Option* add_size(CLI::App& app, const std::string& name, std::optional<uint64_t>& target,
                      const std::string& help) {
  return add_size_to(app, name, target, help);
}

CLI::Option* add_device(CLI::App& app, std::string& target) {
  return app
      .add_option("--device", target, "host, or cuda:N (default: the first GPU, else the host)")
      ->type_name("NAME");
}

std::string device_or_default(const std::string& asked) {
  return asked.empty() ? default_device() : asked;
}

CLI::Option* add_calibration_dir(CLI::App& app, std::string& target) {
  return app
      .add_option("--calibration-dir", target,
                  "Keeps what was measured; off: nowhere (default: kvbm in XDG_CACHE_HOME or "
                  "~/.cache)")
      ->type_name("DIR")
      ->envname("KVBM_CALIBRATION_DIR");
}

}  // namespace kvbm
