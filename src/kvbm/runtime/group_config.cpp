// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/group_config.hpp"

#include <algorithm>
#include <set>

#include "kvbm/base/text.hpp"
#include "kvbm/runtime/config_schema.hpp"
#include "kvbm/runtime/internal/nearest_name.hpp"
#include "kvbm/runtime/internal/parse_number.hpp"

namespace kvbm {
namespace {

using internal::nearest_name;
using internal::shown_text;

constexpr uint32_t kMaxWindowBlocks = 1U << 31;

// The keys that a group may set for itself.
struct Override {
  std::string_view name;
  std::optional<uint32_t> GroupConfig::*in_group;
  uint32_t KvBlockManagerConfig::*in_config;
};
constexpr Override kOverrides[] = {
    {"outer_dim", &GroupConfig::outer_dim, &KvBlockManagerConfig::outer_dim},
    {"num_heads", &GroupConfig::num_heads, &KvBlockManagerConfig::num_heads},
    {"head_dim", &GroupConfig::head_dim, &KvBlockManagerConfig::head_dim},
    {"dtype_width_bytes", &GroupConfig::dtype_width_bytes,
     &KvBlockManagerConfig::dtype_width_bytes},
};

bool is_word_letter(char letter) {
  return (letter >= 'a' && letter <= 'z') || (letter >= 'A' && letter <= 'Z') ||
         (letter >= '0' && letter <= '9') || letter == '_' || letter == '-';
}

bool is_word(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, is_word_letter);
}

// The key of a whole configuration as it holds for a group, which cannot have 0 of what 0 means
// "not set" there.
ConfigKey key_in_group(std::string_view name) {
  ConfigKey key = *config_schema().find(name);
  key.min = std::max<uint64_t>(key.min, 1);
  return key;
}

Status check_override(const Override& key, uint32_t value) {
  KvBlockManagerConfig config;
  config.*key.in_config = value;
  return key_in_group(key.name).check(config);
}

Status check_layers(uint32_t num_layers) {
  KvBlockManagerConfig config;
  config.num_layers = num_layers;
  return key_in_group("num_layers").check(config);
}

Status check_group(const GroupConfig& group) {
  if (!is_word(group.name)) {
    return make_error(ErrorCode::kInvalidArgument,
                      "a name has letters, digits, _ and -, at least one");
  }
  if (Status status = check_layers(group.num_layers); !status) {
    return make_error(
        std::move(status).error().with_context(format_text("num_layers = {}", group.num_layers)));
  }
  for (const Override& key : kOverrides) {
    const std::optional<uint32_t>& value = group.*key.in_group;
    if (!value) continue;
    if (Status status = check_override(key, *value); !status) {
      return make_error(
          std::move(status).error().with_context(format_text("{} = {}", key.name, *value)));
    }
  }
  return {};
}

/// Reads a SPEC from left to right; the first error ends it.
class SpecReader {
 public:
  explicit SpecReader(std::string_view spec) : spec_(spec) {}

  Result<std::vector<GroupConfig>> read() {
    std::vector<GroupConfig> groups;
    skip_spaces();
    if (at_ == spec_.size()) return groups;
    do {
      if (groups.size() == kMaxGroups) {
        return fail(at_, format_text("there are more than {} groups", kMaxGroups));
      }
      KVBM_ASSIGN_OR_RETURN(GroupConfig group, read_group());
      groups.push_back(std::move(group));
    } while (take(';'));
    if (at_ < spec_.size()) return fail(at_, "a ; or the end is expected");
    return groups;
  }

 private:
  // What a group has said so far.
  struct Draft {
    GroupConfig group;
    std::optional<uint32_t> window;
    std::set<std::string_view> keys;
    bool is_window = false;
  };

  Result<GroupConfig> read_group() {
    skip_spaces();
    const size_t start = at_;
    const std::string_view kind = read_word();
    Draft draft;
    draft.is_window = kind == "window";
    if (kind.empty()) return fail(start, "a group is expected: full or window");
    if (!draft.is_window && kind != "full") {
      return fail(
          start, format_text("there is no kind of group {}: say full or window", shown_text(kind)));
    }
    if (take(':')) {
      do {
        KVBM_TRY(read_option(draft));
      } while (take(','));
    }
    if (draft.group.num_layers == 0) return fail(start, "this group needs layers=N");
    if (draft.is_window) {
      if (!draft.window) return fail(start, "this window needs blocks=N");
      draft.group.retention = Retention::last_window(*draft.window);
    }
    if (draft.group.name.empty()) {
      draft.group.name = kind;
      for (int n = 2; names_.contains(draft.group.name); ++n) {
        draft.group.name = format_text("{}_{}", kind, n);
      }
    }
    names_.insert(draft.group.name);
    return std::move(draft.group);
  }

  Status read_option(Draft& draft) {
    skip_spaces();
    const size_t start = at_;
    const std::string_view key = read_word();
    if (key.empty()) return fail(start, "an option is expected, such as layers=4");
    const auto override_of =
        std::ranges::find(kOverrides, key, [](const Override& each) { return each.name; });
    const bool is_override = override_of != std::ranges::end(kOverrides);
    if (!is_override && key != "layers" && key != "blocks" && key != "name") {
      std::vector<std::string_view> known;
      for (const Override& each : kOverrides) known.push_back(each.name);
      known.insert(known.end(), {"layers", "blocks", "name"});
      return fail(start, format_text("a group has no option {}; the nearest is {}", shown_text(key),
                                     nearest_name(key, known)));
    }
    if (!draft.keys.insert(key).second) {
      return fail(start, format_text("this group has {} already", key));
    }
    if (key == "blocks" && !draft.is_window) {
      return fail(start, "a full group keeps all blocks; blocks=N is for a window");
    }
    if (!take('=')) return fail(at_, format_text("a = is expected after {}", key));
    skip_spaces();
    const size_t value_start = at_;
    const std::string_view word = read_word();
    if (word.empty()) return fail(value_start, format_text("a value is expected after {}=", key));
    if (key == "name") {
      if (names_.contains(word)) {
        return fail(value_start, format_text("there is a group {} already", shown_text(word)));
      }
      draft.group.name = word;
      return {};
    }
    const std::optional<uint32_t> number = internal::parse_number<uint32_t>(word);
    if (key == "layers") {
      if (const Status status = check_layers(number.value_or(0)); !status) {
        return fail(value_start, status.error().message());
      }
      draft.group.num_layers = *number;
    } else if (key == "blocks") {
      if (!number || *number == 0 || *number > kMaxWindowBlocks) {
        return fail(value_start,
                    format_text("allowed is an integer from 1 to {}", kMaxWindowBlocks));
      }
      draft.window = number;
    } else {
      if (const Status status = check_override(*override_of, number.value_or(0)); !status) {
        return fail(value_start, status.error().message());
      }
      draft.group.*override_of->in_group = number;
    }
    return {};
  }

  void skip_spaces() {
    while (at_ < spec_.size() && (spec_[at_] == ' ' || spec_[at_] == '\t')) ++at_;
  }

  std::string_view read_word() {
    const size_t start = at_;
    while (at_ < spec_.size() && is_word_letter(spec_[at_])) ++at_;
    return spec_.substr(start, at_ - start);
  }

  bool take(char sign) {
    skip_spaces();
    if (at_ == spec_.size() || spec_[at_] != sign) return false;
    ++at_;
    return true;
  }

  static tl::unexpected<Error> fail(size_t at, std::string_view reason) {
    return make_error(ErrorCode::kInvalidArgument, format_text("character {}: {}", at + 1, reason));
  }

  std::string_view spec_;
  size_t at_ = 0;
  std::set<std::string, std::less<>> names_;
};

}  // namespace

Status check_groups(std::span<const GroupConfig> groups) {
  if (groups.size() > kMaxGroups) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("{} groups are more than {}", groups.size(), kMaxGroups));
  }
  std::set<std::string_view> names;
  for (const GroupConfig& group : groups) {
    Status status = check_group(group);
    if (status && !names.insert(group.name).second) {
      status = make_error(ErrorCode::kInvalidArgument, "another group has that name");
    }
    if (!status) {
      return make_error(
          std::move(status).error().with_context(format_text("group {}", shown_text(group.name))));
    }
  }
  return {};
}

Result<std::vector<GroupConfig>> parse_groups(std::string_view spec) {
  return SpecReader(spec).read();
}

std::string format_groups(std::span<const GroupConfig> groups) {
  std::string spec;
  for (const GroupConfig& group : groups) {
    if (!spec.empty()) spec += ';';
    const bool is_window = !group.retention.is_full_prefix();
    spec += format_text("{}:name={},layers={}", is_window ? "window" : "full", group.name,
                        group.num_layers);
    if (is_window) spec += format_text(",blocks={}", group.retention.window_blocks());
    for (const Override& key : kOverrides) {
      if (const auto& value = group.*key.in_group) spec += format_text(",{}={}", key.name, *value);
    }
  }
  return spec;
}

}  // namespace kvbm
