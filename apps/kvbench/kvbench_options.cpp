// SPDX-License-Identifier: Apache-2.0
#include "apps/kvbench/kvbench_options.hpp"

#include <algorithm>
#include <charconv>
#include <span>
#include <string_view>

#include "kvbm/base/text.hpp"

#include "apps/kvbm/command.hpp"

namespace kvbm {
namespace {

constexpr uint32_t kMostBlocks = 1U << 20;
constexpr uint32_t kMostTokens = 65536;

template <class T>
std::string names_of(std::span<const T> all) {
  std::string names;
  for (const T each : all) {
    if (!names.empty()) names += ',';
    names += to_string(each);
  }
  return names;
}

/// An option that is a list with commas, or is given again and again; `parse` makes one of a word.
template <class T, class Parse>
CLI::Option* add_list(CLI::App& app, const std::string& name, std::vector<T>& target,
                      const std::string& help, const std::string& shown_default, Parse parse) {
  return app
      .add_option(
          name,
          [&target, name, parse](const CLI::results_t& words) {
            std::vector<T> values;
            for (const std::string& word : words) {
              const T value = parse(name, word);
              if (std::ranges::find(values, value) != values.end()) {
                throw CLI::ValidationError(name, format_text("'{}' is there twice", word));
              }
              values.push_back(value);
            }
            target = std::move(values);
            return true;
          },
          help)
      ->type_name("LIST")
      ->type_size(1)
      ->expected(1, 64)
      ->delimiter(',')
      ->default_str(shown_default);
}

void add_counts(CLI::App& app, const std::string& name, std::vector<uint32_t>& target,
                uint32_t most, const std::string& help) {
  std::string shown;
  for (const uint32_t each : target) shown += (shown.empty() ? "" : ",") + std::to_string(each);
  add_list(app, name, target, help, shown,
           [most](const std::string& option, const std::string& word) {
             uint32_t value = 0;
             const char* const end = word.data() + word.size();
             const auto parsed = std::from_chars(word.data(), end, value);
             if (parsed.ec != std::errc() || parsed.ptr != end || value == 0 || value > most) {
               throw CLI::ValidationError(
                   option, format_text("'{}' is no number from 1 to {}", word, most));
             }
             return value;
           });
}

template <class T>
void add_names(CLI::App& app, const std::string& name, std::vector<T>& target,
               std::span<const T> all, const std::string& help) {
  const std::string names = names_of(all);
  const std::string shown = names_of(std::span<const T>(target));
  add_list(app, name, target, help + (shown == names ? "" : "; one or more of " + names), shown,
           [all, names](const std::string& option, const std::string& word) {
             const auto found =
                 std::ranges::find(all, word, [](T each) { return std::string(to_string(each)); });
             if (found == all.end()) {
               throw CLI::ValidationError(option, format_text("'{}' is none of {}", word, names));
             }
             return *found;
           });
}

}  // namespace

std::vector<BenchCell> KvbenchOptions::cells() const {
  std::vector<BenchCell> all;
  for (const uint32_t tokens : tokens_per_block) {
    for (const uint32_t blocks : num_blocks) {
      for (const CopyPattern pattern : patterns) {
        for (const CopyDirection direction : directions) {
          all.push_back({.tokens_per_block = tokens,
                         .num_blocks = blocks,
                         .pattern = pattern,
                         .direction = direction});
        }
      }
    }
  }
  return all;
}

void add_shape_options(CLI::App& app, BenchShape& shape) {
  add_count(app, "--layers", shape.layers, "Layers of the model", {.low = 1, .high = 65535});
  add_count(app, "--kv-heads", shape.kv_heads, "KV heads of a layer", {.low = 1, .high = 8192});
  add_count(app, "--head-dim", shape.head_dim, "Elements of a head", {.low = 1, .high = 65536});
  add_count(app, "--outer-dim", shape.outer_dim, "2: keys and values; 1: one tensor (MLA)",
            {.low = 1, .high = 2});
  app.add_option("--dtype-width", shape.dtype_width_bytes, "Bytes of an element")
      ->capture_default_str()
      ->check(CLI::IsMember({1, 2, 4, 8}))
      ->type_name("1|2|4|8");
}

void add_kvbench_options(CLI::App& app, KvbenchOptions& options) {
  add_counts(app, "--num-blocks", options.num_blocks, kMostBlocks, "Blocks of a copy");
  add_counts(app, "--tokens-per-block", options.tokens_per_block, kMostTokens, "Sizes of a block");
  add_names<CopyBackend>(app, "--backend", options.backends, kCopyBackends, "What copies");
  add_names<CopyDirection>(app, "--direction", options.directions, kCopyDirections,
                           "Between host and device");
  add_names<CopyPattern>(app, "--pattern", options.patterns, kCopyPatterns,
                         "Layouts of source and destination");
  add_count(app, "--warmup", options.warmup, "Copies before the timed ones");
  add_count(app, "--iters", options.iters, "Timed copies", {.low = 1});
  add_shape_options(app, options.shape);
  app.add_flag("--sequential-ids", options.sequential_ids,
               "Block i to block i, instead of any order");
  add_count(app, "--test-ms", options.test_ms,
            "End a test after so many milliseconds, with 5 timed copies at least; 0: no limit");
  add_device(app, options.device);
  add_calibration_dir(app, options.calibration_dir);
  app.add_option("--json", options.json, "Write all results to a file too")->type_name("FILE");
}

}  // namespace kvbm
