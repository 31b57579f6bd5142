// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/kv_block_manager_config.hpp"

#include <numeric>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/runtime/config_schema.hpp"
#include "kvbm/runtime/devices.hpp"
#include "kvbm/runtime/internal/config_check.hpp"
#include "kvbm/runtime/internal/nearest_name.hpp"

namespace kvbm {

std::vector<GroupConfig> KvBlockManagerConfig::effective_groups() const {
  std::vector<GroupConfig> effective = groups;
  if (effective.empty()) {
    GroupConfig& whole = effective.emplace_back();
    whole.name = "full";
    whole.num_layers = num_layers;
  }
  for (GroupConfig& group : effective) {
    group.outer_dim = group.outer_dim.value_or(outer_dim);
    group.num_heads = group.num_heads.value_or(num_heads);
    group.head_dim = group.head_dim.value_or(head_dim);
    group.dtype_width_bytes = group.dtype_width_bytes.value_or(dtype_width_bytes);
  }
  return effective;
}

Status KvBlockManagerConfig::validate() const {
  return internal::check_config(*this, [](std::string_view /*key*/) { return std::string(); });
}

namespace internal {
namespace {

/// The rules between keys. Each function gives the first rule that is broken.
class Checker {
 public:
  Checker(const KvBlockManagerConfig& config, const WhereOf& where_of)
      : config_(config), where_of_(where_of) {}

  Status check() const {
    KVBM_TRY(check_ranges());
    KVBM_TRY(check_layers());
    KVBM_TRY(check_shape());
    KVBM_TRY(check_tiers());
    return check_effect();
  }

 private:
  Status check_ranges() const {
    for (const ConfigKey& key : config_schema()) {
      if (const Status status = key.check(config_); !status) {
        return make_error(
            ErrorCode::kInvalidArgument,
            config_message(key.name, shown(key), where_of_(key.name), status.error().message()));
      }
    }
    return {};
  }

  Status check_layers() const {
    const uint64_t sum = std::accumulate(
        config_.groups.begin(), config_.groups.end(), uint64_t{0},
        [](uint64_t layers, const GroupConfig& group) { return layers + group.num_layers; });
    const uint64_t most = config_schema().find("num_layers")->max;
    if (sum > most) {
      return invalid(
          format_text("{}: {} layers together are more than {}", named("groups"), sum, most));
    }
    if (config_.groups.empty() && config_.num_layers == 0) {
      return invalid("num_layers is not set: set it to the layers of the model, or set groups");
    }
    if (!config_.groups.empty() && config_.num_layers != 0 && config_.num_layers != sum) {
      return invalid(format_text("{} is not the {} layers of {}: drop num_layers",
                                 named("num_layers"), sum, named("groups")));
    }
    return {};
  }

  Status check_shape() const {
    for (const GroupConfig& group : config_.effective_groups()) {
      for (const auto& [key, value] :
           {std::pair("num_heads", group.num_heads), std::pair("head_dim", group.head_dim)}) {
        if (*value > 0) continue;
        return invalid(format_text("{} is not set: set it, or set it in every group; {} has none",
                                   key, shown_text(group.name)));
      }
    }
    return {};
  }

  Status check_tiers() const {
    if (config_.host_blocks > 0 && config_.host_bytes > 0) {
      return invalid(format_text("{} and {} both size host memory: drop one", named("host_blocks"),
                                 named("host_bytes")));
    }
    if (config_.disk_blocks > 0 && config_.disk_bytes > 0) {
      return invalid(format_text("{} and {} both size the disk tier: drop one",
                                 named("disk_blocks"), named("disk_bytes")));
    }
    if (!config_.enable_offload) {
      for (const std::string_view key :
           {"host_blocks", "host_bytes", "disk_blocks", "disk_bytes"}) {
        if (!is_changed(key)) continue;
        return invalid(
            format_text("{} needs enable_offload = true: set that, or drop {}", named(key), key));
      }
    } else if (!config_.has_host_tier() && !config_.has_disk_tier()) {
      return invalid(
          format_text("{} has nowhere to offload to: set host_blocks, host_bytes, disk_blocks or "
                      "disk_bytes, or drop enable_offload",
                      named("enable_offload")));
    }
    if (config_.has_disk_tier() && config_.offload_path.empty()) {
      return invalid(
          format_text("{} is no directory for the disk tier: name one", named("offload_path")));
    }
    return {};
  }

  // What is set, but would have no effect. A value that equals the default may always be written.
  Status check_effect() const {
    if (config_.num_blocks > 0 && is_changed("gpu_memory_fraction")) {
      return invalid(format_text("{} has no effect beside {}: drop one",
                                 named("gpu_memory_fraction"), named("num_blocks")));
    }
    for (const std::string_view key : {"gpu_memory_fraction", "cuda_ring_size"}) {
      if (gpu_ordinal(config_.device) || !is_changed(key)) continue;
      return invalid(format_text("{} has no effect with {}, which is no GPU: drop one", named(key),
                                 named("device")));
    }
    if (config_.cuda_ring_size > 0 && config_.cuda_ring_size < kLeastRingBytes) {
      return invalid(format_text("{} has no slots: give it {} and more, or 0 for no ring",
                                 named("cuda_ring_size"), format_size(kLeastRingBytes)));
    }
    for (const std::string_view key : {"offload_path", "disk_zero_fill", "disk_threads"}) {
      if (config_.has_disk_tier() || !is_changed(key)) continue;
      return invalid(format_text(
          "{} has no effect without a disk tier: set disk_blocks or disk_bytes, or drop it",
          named(key)));
    }
    if (!config_.enable_offload && is_changed("transfer_timeout")) {
      return invalid(
          format_text("{} has no effect without enable_offload = true: set that, or drop it",
                      named("transfer_timeout")));
    }
    return {};
  }

  bool is_changed(std::string_view key) const {
    return !config_schema().find(key)->is_default_in(config_);
  }

  // `key = value (where)`
  std::string named(std::string_view key) const {
    return config_message(key, shown(*config_schema().find(key)), where_of_(key), {});
  }

  // Texts may hold anything.
  std::string shown(const ConfigKey& key) const {
    if (const auto* text = std::get_if<std::string KvBlockManagerConfig::*>(&key.member)) {
      return shown_text(config_.**text);
    }
    if (key.name == "groups") return shown_text(format_groups(config_.groups));
    return key.value_in(config_);
  }

  static tl::unexpected<Error> invalid(std::string message) {
    return make_error(ErrorCode::kInvalidArgument, std::move(message));
  }

  const KvBlockManagerConfig& config_;
  const WhereOf& where_of_;
};

}  // namespace

Status check_config(const KvBlockManagerConfig& config, const WhereOf& where_of) {
  return Checker(config, where_of).check();
}

std::string config_message(std::string_view key, std::string_view value, std::string_view where,
                           std::string_view reason) {
  std::string text = format_text("{} = {}", key, value);
  if (!where.empty()) text += format_text(" ({})", where);
  if (!reason.empty()) text += format_text(": {}", reason);
  return text;
}

}  // namespace internal
}  // namespace kvbm
