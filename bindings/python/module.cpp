// SPDX-License-Identifier: Apache-2.0
// kvbm._core: the connector's two sides for Python. Bytes, numbers and names; no torch.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "kvbm/base/text.hpp"
#include "kvbm/runtime/config.hpp"
#include "kvbm/runtime/kvbm_leader.hpp"
#include "kvbm/runtime/kvbm_worker.hpp"

#include "bindings/python/block_manager.hpp"
#include "bindings/python/errors.hpp"
#include "bindings/python/layout.hpp"
#include "bindings/python/live_objects.hpp"
#include "bindings/python/log.hpp"
#include "bindings/python/metrics_reader.hpp"
#include "bindings/python/process_bound.hpp"
#include "bindings/python/replay.hpp"
#include "bindings/python/secondary_tier.hpp"
#include "bindings/python/statistics.hpp"
#include "bindings/python/tokens.hpp"
#include "bindings/python/transfer.hpp"
#include "bindings/python/waiting.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvbm {
namespace {

std::vector<std::vector<BlockId>> block_ids(const std::vector<std::vector<uint32_t>>& groups) {
  std::vector<std::vector<BlockId>> ids(groups.size());
  for (size_t group = 0; group < groups.size(); ++group) {
    ids[group].reserve(groups[group].size());
    for (const uint32_t block : groups[group]) ids[group].emplace_back(block);
  }
  return ids;
}

ConfigSetting setting_of(std::string_view key, nb::handle value, const std::string& where) {
  ConfigSetting setting{.key = "connector." + std::string(key), .where = where};
  if (PyBool_Check(value.ptr())) {
    setting.literal = ConfigLiteral::kBoolean;
    setting.value = value.is(Py_True) ? "true" : "false";
  } else if (PyLong_Check(value.ptr())) {
    setting.literal = ConfigLiteral::kInteger;
    setting.value = nb::str(value).c_str();
  } else if (PyFloat_Check(value.ptr())) {
    setting.literal = ConfigLiteral::kReal;
    setting.value = nb::str(value).c_str();
  } else if (PyUnicode_Check(value.ptr())) {
    setting.literal = ConfigLiteral::kText;
    setting.value = nb::cast<std::string>(value);
  } else {
    raise(Error(ErrorCode::kInvalidArgument,
                format_text("{}: {} = {}: a setting is a number, a text, True or False", where, key,
                            nb::repr(value).c_str())));
  }
  return setting;
}

/// Of the file that KVBM_CONFIG names, the variables DYN_KVBM_* and `settings`, which win.
ConnectorConfig connector_config(const nb::dict& settings, const std::string& where) {
  ConfigSources sources{.environment = connector_environment()};
  for (const auto& [key, value] : settings) {
    sources.settings.push_back(setting_of(nb::cast<std::string>(key), value, where));
  }
  return take(Config::read(sources)).connector();
}

/// kvbm.KvbmWorker
struct LocalWorker {
  Alive alive{live_objects().workers};
  ProcessBound<KvbmWorker> worker;
  uint32_t page_size = 0;        // tokens of a block; 0: it was not told
  std::vector<nb::object> kept;  // tensors

  [[nodiscard]] KvbmWorker& running() const {
    check_process("KvbmWorker", worker.process());
    return *worker;
  }
  void stop(std::optional<double> timeout) {
    KvbmWorker& to_stop = running();
    Status stopped;
    (void)wait_in_slices(deadline_after(timeout), [&](TimePoint end) {
      stopped = to_stop.stop(end);
      return stopped || stopped.error().code() != ErrorCode::kTimeout;
    });
    check(stopped);
    kept.clear();
  }
};

/// Per layer group (run_bytes, [(address, block_stride), ...]).
using Groups = std::vector<std::pair<uint64_t, std::vector<std::pair<uint64_t, uint64_t>>>>;

std::unique_ptr<LocalWorker> create_worker(uint16_t rank, uint32_t num_blocks, const Groups& groups,
                                           const std::string& disk_directory, bool disk_direct_io,
                                           bool disk_zero_fill,
                                           const std::vector<uint32_t>& runs_per_layer) {
  if (!runs_per_layer.empty() && runs_per_layer.size() != groups.size()) {
    raise(Error(ErrorCode::kInvalidArgument,
                format_text("runs_per_layer has {} numbers for {} layer groups",
                            runs_per_layer.size(), groups.size())));
  }
  KvbmWorkerOptions options{.rank = rank, .num_blocks = num_blocks};
  options.disk_directory = disk_directory;
  options.direct_io = disk_direct_io ? DirectIo::kTry : DirectIo::kOff;
  options.zero_fill = disk_zero_fill;
  for (const auto& [run_bytes, runs] : groups) {
    EngineGroup& group = options.groups.emplace_back();
    group.run_bytes = run_bytes;
    if (!runs_per_layer.empty()) group.runs_per_layer = runs_per_layer[options.groups.size() - 1];
    for (const auto& [address, stride] : runs) {
      // NOLINTNEXTLINE(performance-no-int-to-ptr): an engine's tensor comes as its data_ptr().
      group.runs.push_back({reinterpret_cast<std::byte*>(address), stride});
    }
  }
  auto created = [&] {
    const nb::gil_scoped_release released;
    return KvbmWorker::create(std::move(options), log_sink());
  }();
  auto made = std::make_unique<LocalWorker>();
  made->worker = ProcessBound(take(std::move(created)));
  return made;
}

/// Refuses what Dynamo's constructors take and nothing here acts on.
void check_unused(std::string_view name, bool is_unused, std::string_view reason) {
  if (is_unused) return;
  raise(Error(ErrorCode::kUnsupported, format_text("{}: {}", name, reason)));
}

void check_runtime(nb::handle drt) {
  check_unused("drt", drt.is_none(), "leader and workers need no runtime; leave it out");
}

void construct_worker(LocalWorker* self, uint32_t num_device_blocks, uint32_t page_size,
                      nb::list tensors, uint32_t device_id,
                      std::optional<uint32_t> dtype_width_bytes, nb::handle drt,
                      bool layout_blocking, nb::handle device_layout_type,
                      nb::handle host_layout_type, nb::handle disk_layout_type, uint16_t rank,
                      std::optional<uint32_t> world_size, nb::handle nccl_comm_ptr,
                      const nb::kwargs& settings) {
  check_unused("device_id", device_id == 0, "the tensors are in host memory, which is device 0");
  check_runtime(drt);
  check_unused("layout_blocking", !layout_blocking, "the tensors are registered when it returns");
  check_unused("device_layout_type", device_layout_type.is_none(),
               "it is read from the strides of the tensors");
  for (const auto& [name, type] :
       {std::pair("host_layout_type", host_layout_type), {"disk_layout_type", disk_layout_type}}) {
    check_unused(name, type.is_none(), "the layout of a tier is kvbm's own");
  }
  check_unused("nccl_comm_ptr", nccl_comm_ptr.is_none(), "no copy goes through NCCL");
  if (world_size && rank >= *world_size) {
    raise(Error(ErrorCode::kInvalidArgument, format_text("rank {} of {}", rank, *world_size)));
  }
  const auto groups = nb::cast<Groups>(
      nb::module_::import_("kvbm._tensors")
          .attr("groups_of")(tensors, num_device_blocks, page_size, dtype_width_bytes));
  const ConnectorConfig found = connector_config(settings, "KvbmWorker()");
  std::unique_ptr<LocalWorker> made = create_worker(
      rank, num_device_blocks, groups, found.has_disk_tier() ? found.disk_directory : "",
      found.disk_direct_io, found.disk_zero_fill, {});
  made->page_size = page_size;
  for (nb::handle tensor : tensors) made->kept.push_back(nb::borrow(tensor));
  new (self) LocalWorker(std::move(*made));
}

/// kvbm.KvbmLeader, and the workers that it borrows.
struct Leader {
  Alive alive{live_objects().leaders};
  std::vector<nb::object> kept;  // the workers' Python objects
  uint32_t page_size = 0;        // tokens of a block, of the largest ones
  size_t num_groups = 0;
  ProcessBound<KvbmLeader> leader;

  [[nodiscard]] KvbmLeader& running() const {
    check_process("KvbmLeader", leader.process());
    if (!leader.has_value()) raise(Error(ErrorCode::kUnavailable, "the leader was stopped"));
    return *leader;
  }
  [[nodiscard]] SchedulerHalf& requests() const { return running().requests(); }
  void stop() {
    check_process("KvbmLeader", leader.process());
    // Out of the way first: without the GIL other threads come and look for it.
    ProcessBound<KvbmLeader> ending = std::move(leader);
    const std::vector<nb::object> workers = std::move(kept);
    const nb::gil_scoped_release released;
    ending.reset();
  }
};

Duration timeout_of(double seconds) {
  if (!(seconds > 0 && seconds < 1e9)) {
    raise(Error(ErrorCode::kInvalidArgument, "a timeout has to be above 0 s and below 1e9 s"));
  }
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

Leader start_leader(const KvbmLeaderOptions& options, nb::list workers, RemoteWorkers remote) {
  if (remote.endpoint.empty() == (nb::len(workers) == 0)) {
    raise(Error(ErrorCode::kInvalidArgument,
                "a leader has either workers of this process or an endpoint to which they come"));
  }
  Leader made;
  std::optional<nb::python_error> raised;
  remote.keep_waiting = [&raised] {
    const nb::gil_scoped_acquire acquired;
    if (PyErr_CheckSignals() == 0) return true;
    raised.emplace();
    return false;
  };
  std::vector<KvbmWorker*> local;
  for (nb::handle worker : workers) {
    local.push_back(&nb::cast<LocalWorker&>(worker).running());
    made.kept.push_back(nb::borrow(worker));
  }
  auto created = [&] {
    const nb::gil_scoped_release released;
    return remote.endpoint.empty() ? KvbmLeader::create(options, local, log_sink())
                                   : KvbmLeader::create(options, remote, log_sink());
  }();
  if (raised) throw nb::python_error(std::move(*raised));
  made.leader = ProcessBound(take(std::move(created)));
  for (const LayerGroup& group : options.groups) {
    made.page_size = std::max(made.page_size, group.block_tokens);
  }
  made.num_groups = options.groups.size();
  return made;
}

/// Tokens of a block: of every layer group, or of each.
using BlockTokens = std::variant<uint32_t, std::vector<uint32_t>>;

/// window_blocks: by layer group, in its own blocks; 0: the whole prefix.
std::vector<LayerGroup> layer_groups(const BlockTokens& block_tokens,
                                     const std::vector<uint32_t>& window_blocks) {
  const auto* const alike = std::get_if<uint32_t>(&block_tokens);
  const auto sizes = alike != nullptr ? std::vector<uint32_t>(window_blocks.size(), *alike)
                                      : std::get<std::vector<uint32_t>>(block_tokens);
  if (sizes.size() != window_blocks.size()) {
    raise(Error(ErrorCode::kInvalidArgument,
                format_text("block_tokens has {} layer groups and window_blocks {}", sizes.size(),
                            window_blocks.size())));
  }
  std::vector<LayerGroup> groups;
  for (size_t i = 0; i < sizes.size(); ++i) {
    groups.push_back({sizes[i], window_blocks[i] == 0 ? Retention::full_prefix()
                                                      : Retention::last_window(window_blocks[i])});
  }
  return groups;
}

/// What an engine's own hashes do not tell.
Namespace namespace_of(const std::string& model, const std::string& dtype, std::string scheme,
                       std::span<const LayerGroup> groups, uint64_t weights_epoch) {
  const SplitGroups split = take(split_groups(groups));
  if (split.identity_tokens != split.position_tokens) {
    // The groups of keys are parts, and which ones depends on all of this.
    for (const LayerGroup& group : groups) {
      const Retention retention = group.retention;
      scheme += format_text("/{}:{}", group.block_tokens,
                            retention.is_full_prefix() ? 0 : retention.window_blocks());
    }
  }
  return {.model = model,
          .weights_epoch = weights_epoch,
          .dtype = dtype,
          .num_heads = 0,
          .num_layers = 0,
          .tokens_per_block = split.position_tokens,
          .identity_scheme = std::move(scheme),
          .tenant_salt = ""};
}

std::vector<size_t> group_parts(const std::vector<uint32_t>& block_tokens,
                                const std::vector<uint32_t>& window_blocks) {
  std::vector<size_t> counts(block_tokens.size());
  const SplitGroups split = take(split_groups(layer_groups(block_tokens, window_blocks)));
  for (const GroupPart& part : split.parts) ++counts[part.group];
  return counts;
}

LoadMode load_mode_of(const std::string& name) {
  if (name == "auto") return LoadMode::kAuto;
  if (name == "between_steps") return LoadMode::kBetweenSteps;
  raise(Error(ErrorCode::kInvalidArgument, "load_mode is auto or between_steps, not " + name));
}

std::unique_ptr<Leader> create_leader(
    nb::list workers, const std::string& endpoint, uint16_t num_ranks, const std::string& secret,
    double init_timeout_secs, double place_timeout_secs, const std::string& model,
    const std::string& dtype, const std::string& scheme, const BlockTokens& block_tokens,
    const std::vector<uint32_t>& window_blocks, const std::string& load_mode, uint64_t host_bytes,
    uint64_t disk_bytes, uint32_t host_blocks, uint32_t disk_blocks, bool disk_filter,
    uint32_t min_priority, std::optional<double> store_budget, uint64_t weights_epoch,
    double timeout_seconds, size_t max_events, std::optional<uint16_t> metrics_port,
    const std::string& record_directory) {
  KvbmLeaderOptions options;
  options.groups = layer_groups(block_tokens, window_blocks);
  options.ns = namespace_of(model, dtype, scheme, options.groups, weights_epoch);
  options.load_mode = load_mode_of(load_mode);
  options.host_bytes = host_bytes;
  options.disk_bytes = disk_bytes;
  options.host_blocks = host_blocks;
  options.disk_blocks = disk_blocks;
  options.disk_filter = disk_filter;
  options.min_priority = min_priority;
  options.store_budget = store_budget;
  options.timeout = timeout_of(timeout_seconds);
  options.max_events = max_events;
  options.metrics_port = metrics_port;
  options.record_directory = record_directory;
  return std::make_unique<Leader>(start_leader(options, workers,
                                               {.endpoint = endpoint,
                                                .num_ranks = num_ranks,
                                                .secret = secret,
                                                .init_timeout = timeout_of(init_timeout_secs),
                                                .place_timeout = timeout_of(place_timeout_secs),
                                                .keep_waiting = nullptr}));
}

void construct_leader(Leader* self, uint16_t world_size, nb::handle drt, nb::list workers,
                      const std::string& endpoint, const std::string& secret, uint32_t page_size,
                      const std::string& model, const std::string& dtype, const std::string& scheme,
                      const nb::kwargs& settings) {
  check_runtime(drt);
  if (endpoint.empty() && nb::len(workers) != world_size) {
    raise(Error(
        ErrorCode::kInvalidArgument,
        format_text("world_size is {}, and there are {} workers", world_size, nb::len(workers))));
  }
  for (nb::handle worker : workers) {
    const uint32_t of_worker = nb::cast<LocalWorker&>(worker).page_size;
    if (page_size == 0) page_size = of_worker;
    if (of_worker == 0 || of_worker == page_size) continue;
    raise(Error(ErrorCode::kInvalidArgument,
                format_text("a block has {} tokens, and {} on a worker", page_size, of_worker)));
  }
  if (page_size == 0) {
    raise(Error(ErrorCode::kInvalidArgument,
                "page_size is missing: how many tokens a block has, which no worker tells"));
  }
  const ConnectorConfig found = connector_config(settings, "KvbmLeader()");
  KvbmLeaderOptions options;
  options.groups = {{.block_tokens = page_size}};
  options.ns = namespace_of(model, dtype, scheme, options.groups, found.weights_epoch);
  options.load_mode = load_mode_of(found.load_mode);
  options.host_bytes = found.host_bytes;
  options.disk_bytes = found.disk_bytes;
  options.host_blocks = found.host_blocks;
  options.disk_blocks = found.disk_blocks;
  options.disk_filter = found.disk_filter;
  options.min_priority = found.min_priority;
  options.store_budget = found.store_budget;
  options.timeout = found.transfer_timeout;
  options.metrics_port = found.served_port();
  if (found.record) options.record_directory = found.disk_directory;
  new (self) Leader(start_leader(options, workers,
                                 {.endpoint = endpoint,
                                  .num_ranks = world_size,
                                  .secret = secret,
                                  .init_timeout = found.init_timeout,
                                  .place_timeout = found.place_timeout,
                                  .keep_waiting = nullptr}));
}

Identity identity_of(nb::handle hash) {
  char* data = nullptr;
  Py_ssize_t size = 0;
  if (PyBytes_AsStringAndSize(hash.ptr(), &data, &size) != 0) throw nb::python_error();
  return take(Identity::from_bytes(std::as_bytes(std::span(data, static_cast<size_t>(size)))));
}

void extend(Leader& leader, const std::string& request, nb::list hashes,
            std::optional<uint32_t> priority) {
  std::vector<Identity> identities;
  identities.reserve(nb::len(hashes));
  for (nb::handle hash : hashes) identities.push_back(identity_of(hash));
  leader.requests().extend(request, identities, priority);
}

struct Scheduled {
  std::string request;
  std::vector<std::vector<BlockId>> blocks;
  bool replaces_blocks = false;
  uint32_t num_computed_tokens = 0;
  uint32_t num_scheduled_tokens = 0;
};

nb::bytes build_step(Leader& leader, nb::list requests) {
  std::vector<Scheduled> kept;
  kept.reserve(nb::len(requests));
  for (nb::handle entry : requests) {
    const nb::tuple fields = nb::cast<nb::tuple>(entry);
    kept.push_back({nb::cast<std::string>(fields[0]),
                    block_ids(nb::cast<std::vector<std::vector<uint32_t>>>(fields[1])),
                    nb::cast<bool>(fields[2]), nb::cast<uint32_t>(fields[3]),
                    nb::cast<uint32_t>(fields[4])});
  }
  std::vector<ScheduledRequest> scheduled;
  scheduled.reserve(kept.size());
  for (Scheduled& request : kept) {
    scheduled.push_back({.request = request.request,
                         .blocks = std::move(request.blocks),
                         .replaces_blocks = request.replaces_blocks,
                         .num_computed_tokens = request.num_computed_tokens,
                         .num_scheduled_tokens = request.num_scheduled_tokens});
  }
  const std::vector<std::byte> step = leader.requests().build_step(scheduled);
  return nb::bytes(step.data(), step.size());
}

std::vector<uint32_t> numbers(const std::vector<BlockId>& blocks) {
  std::vector<uint32_t> ids;
  ids.reserve(blocks.size());
  for (const BlockId block : blocks) ids.push_back(block.value());
  return ids;
}

}  // namespace
}  // namespace kvbm

NB_MODULE(_core, module) {
  using namespace kvbm;
  module.doc() = "kvbm's C++ library: the two sides of an engine's connector.";
  bind_errors(module);
  bind_block_manager(module);
  bind_replay(module);
  bind_secondary_tier(module);
  bind_tokens(module);
  bind_layout(module);
  bind_transfer(module);

  nb::class_<LocalWorker>(module, "KvbmWorker",
                          "One rank: an engine's KV tensors and what moves their bytes.\n\n"
                          "In a forked child every call raises kvbm.UnsupportedError.")
      .def("__init__", &construct_worker, "num_device_blocks"_a, "page_size"_a, "tensors"_a,
           "device_id"_a = 0, "dtype_width_bytes"_a = nb::none(), "drt"_a = nb::none(),
           "layout_blocking"_a = false, "device_layout_type"_a = nb::none(),
           "host_layout_type"_a = nb::none(), "disk_layout_type"_a = nb::none(), "rank"_a = 0,
           "world_size"_a = nb::none(), "nccl_comm_ptr"_a = nb::none(), "settings"_a,
           "As Dynamo's KvbmWorker: one group of layers that are alike. tensors: one a layer, each "
           "[num_device_blocks, ...] in host memory, of torch or NumPy, with strides of any kind; "
           "page_size tokens a block; kept until stop(). Where the disk tier lies and how it is "
           "read: see connector_config; settings are as the leader's. The arguments without an "
           "effect here take their defaults alone.\n\n"
           "Raises kvbm.InvalidArgumentError, naming the tensor, kvbm.UnsupportedError.")
      .def_static("create", &create_worker, "rank"_a, "num_blocks"_a, "groups"_a, nb::kw_only(),
                  "disk_directory"_a = "", "disk_direct_io"_a = true, "disk_zero_fill"_a = false,
                  "runs_per_layer"_a = std::vector<uint32_t>{},
                  "groups: per layer group (run_bytes, [(address, block_stride), ...]), in bytes, "
                  "layer by layer. Borrows the memory until stop(). runs_per_layer: of each group; "
                  "without it each layer needs all of a load.")
      .def(
          "connect",
          [](LocalWorker& worker, const std::string& endpoint, const std::string& secret) {
            check(worker.running().connect(endpoint, secret));
          },
          "endpoint"_a, "secret"_a = "",
          "Comes to a leader of another process, now or when it is there.")
      .def(
          "begin_step",
          [](LocalWorker& worker, nb::bytes step) {
            const auto bytes = std::as_bytes(std::span(step.c_str(), step.size()));
            ConnectorWorker& hooks = worker.running().hooks();
            Status begun;
            {
              const nb::gil_scoped_release released;
              begun = hooks.begin_step(bytes);
            }
            check(begun);
          },
          "step"_a, "Begins a step with the bytes of build_step.")
      .def_prop_ro("has_loads",
                   [](LocalWorker& worker) { return worker.running().hooks().has_loads(); })
      .def(
          "layer_needed",
          [](LocalWorker& worker, uint16_t layer) {
            ConnectorWorker& hooks = worker.running().hooks();
            Status loaded;
            {
              const nb::gil_scoped_release released;
              loaded = hooks.layer_needed(LayerId(layer));
            }
            check(loaded);
          },
          "layer"_a,
          "Waits for what the layer reads. Layers are counted in each layer group, from 0: layer i "
          "is that of every group.")
      .def(
          "all_layers_needed",
          [](LocalWorker& worker) {
            ConnectorWorker& hooks = worker.running().hooks();
            Status loaded;
            {
              const nb::gil_scoped_release released;
              loaded = hooks.all_layers_needed();
            }
            check(loaded);
          },
          "Waits for what all layers read.")
      .def(
          "statistics",
          [](LocalWorker& worker) { return statistics_of(worker.running().metrics()); },
          "What the copies of this rank have counted, by name and labels.")
      .def(
          "end_step",
          [](LocalWorker& worker) {
            ConnectorWorker& hooks = worker.running().hooks();
            const nb::gil_scoped_release released;
            hooks.end_step();
          },
          "Everything of the step is computed: its stores may begin. Waits for nothing.")
      .def(
          "take_ended_loads",
          [](LocalWorker& worker) {
            std::vector<std::pair<std::string, std::vector<uint32_t>>> loads;
            for (EndedLoad& load : worker.running().hooks().take_ended_loads()) {
              loads.emplace_back(std::move(load.request), numbers(load.failed));
            }
            return loads;
          },
          "[(request, blocks that did not get their content), ...]")
      .def(
          "take_failed_blocks",
          [](LocalWorker& worker) {
            return numbers(worker.running().hooks().take_failed_blocks());
          },
          "Blocks that a load within a step was to fill and has not, since the last call.")
      .def("stop", &LocalWorker::stop, "timeout"_a = nb::none(),
           "Starts no more copies and waits for those that run; the tensors may go afterwards.\n\n"
           "timeout: in seconds; None: no limit. Raises kvbm.TimeoutError while copies still touch "
           "the tensors: they stay, and stop may be called again.")
      .def(
          "__enter__", [](nb::object self) { return self; },
          nb::sig("def __enter__(self) -> KvbmWorker"))
      .def(
          "__exit__", [](LocalWorker& self, nb::args /*exception*/) { self.stop(std::nullopt); },
          nb::sig("def __exit__(self, *exception: object) -> None"));

  nb::class_<Leader>(module, "KvbmLeader",
                     "The scheduler's side: requests, tiers and steps.\n\n"
                     "In a forked child every call raises kvbm.UnsupportedError.")
      .def(
          "__init__", &construct_leader, "world_size"_a, "drt"_a = nb::none(), nb::kw_only(),
          "workers"_a = nb::list(), "endpoint"_a = "", "secret"_a = "", "page_size"_a = 0,
          "model"_a = "", "dtype"_a = "", "scheme"_a = "", "settings"_a,
          "As Dynamo's KvbmLeader, whose runtime brings the workers together; here they are given: "
          "world_size workers of this process, by rank, or the endpoint to which they come. Each "
          "has one layer group, kept as a whole prefix. page_size, tokens of a block, if the "
          "workers do not tell. Sizes, times and the metrics port: see connector_config; settings "
          "are "
          "those of docs/configuration.md, such as host_blocks=64. model, dtype, scheme: see "
          "create.")
      .def_static(
          "create", &create_leader, "workers"_a = nb::list(), nb::kw_only(), "endpoint"_a = "",
          "num_ranks"_a = 1, "secret"_a = "", "init_timeout_secs"_a = 120.0,
          "place_timeout_secs"_a = 1800.0, "model"_a, "dtype"_a, "scheme"_a, "block_tokens"_a,
          "window_blocks"_a, "load_mode"_a = "auto", "host_bytes"_a = 0, "disk_bytes"_a = 0,
          "host_blocks"_a = 0, "disk_blocks"_a = 0, "disk_filter"_a = false, "min_priority"_a = 0,
          "store_budget"_a = nb::none(), "weights_epoch"_a = 0, "timeout_seconds"_a = 30.0,
          "max_events"_a = 0, "metrics_port"_a = nb::none(), "record_directory"_a = "",
          "block_tokens: tokens of a block, of every layer group or of each. window_blocks: "
          "by layer group, how many of its last blocks it needs to go on; 0: all. Where "
          "sizes differ, each divides the larger ones, and the workers have every group as "
          "often as group_parts says.\n\n"
          "workers: of this process, by rank. Or endpoint, to which num_ranks workers of "
          "other processes come (KvbmWorker.connect), for how long to wait for them, and "
          "then for all of them to make one place; Ctrl-C ends the wait. "
          "store_budget: the share of the engine's blocks that stores under way may read at a "
          "time; None: 0.05, but not less than 1024 blocks. "
          "metrics_port: where http://…:port/metrics is served; None: nowhere, 0: any. "
          "record_directory: where a folder with a flight record is made; '': none.")
      .def(
          "num_identities",
          [](Leader& leader, const std::string& request) {
            return leader.requests().num_identities(request);
          },
          "How many hashes of a request were handed over.")
      .def("extend", &extend, "request"_a, "hashes"_a, "priority"_a = nb::none(),
           "hashes: of the next full blocks of a request, of the smallest size that a layer group "
           "has. priority: 0 to 100, how much they are worth keeping.")
      .def(
          "match",
          [](Leader& leader, const std::string& request, uint32_t num_computed_tokens,
             uint32_t num_tokens) {
            const ExternalMatch offer =
                leader.requests().match(request, num_computed_tokens, num_tokens);
            return std::pair(offer.num_tokens, offer.between_steps);
          },
          "request"_a, "num_computed_tokens"_a, "num_tokens"_a,
          "(tokens that can be loaded beyond those that are computed, whether that happens between "
          "steps) for a request of num_tokens tokens. Pins them until allocated, finished or the "
          "next match.")
      .def(
          "allocated",
          [](Leader& leader, const std::string& request,
             const std::vector<std::vector<uint32_t>>& blocks, uint32_t num_external_tokens) {
            check(leader.requests().allocated(request, block_ids(blocks), num_external_tokens));
          },
          "request"_a, "blocks"_a, "num_external_tokens"_a,
          "blocks: by layer group, all of the request. num_external_tokens: what match has "
          "offered, "
          "to be loaded into them, or 0. Raises kvbm.ContractViolation for another number.")
      .def("build_step", &build_step, "scheduled"_a,
           "scheduled: [(request, blocks by group, replaces_blocks, num_computed_tokens, "
           "num_scheduled_tokens), ...]")
      .def(
          "finished",
          [](Leader& leader, const std::string& request) {
            return leader.requests().finished(request);
          },
          "The request has ended. True if a load still writes to its blocks: they stay until "
          "take_ended_loads names it.")
      .def_prop_ro(
          "page_size", [](const Leader& leader) { return leader.page_size; },
          "Tokens of a block, of the largest where sizes differ.")
      .def_prop_ro(
          "num_groups", [](const Leader& leader) { return leader.num_groups; }, "Layer groups.")
      .def_prop_ro("num_requests", [](Leader& leader) { return leader.requests().num_requests(); })
      .def_prop_ro("num_open_loads",
                   [](Leader& leader) { return leader.requests().num_open_loads(); })
      .def_prop_ro(
          "num_host_blocks", [](Leader& leader) { return leader.running().num_host_blocks(); },
          "Of each layer group. Fewer than asked for once match or build_step has heard of a "
          "worker that could not have all of its memory.")
      .def_prop_ro("num_disk_blocks",
                   [](Leader& leader) { return leader.running().num_disk_blocks(); })
      .def(
          "reset", [](Leader& leader) { leader.requests().reset(); },
          "Empties the tiers; what requests have computed so far is not stored any more.")
      .def(
          "take_events",
          [](Leader& leader) {
            nb::list events;
            for (const KvEvent& event : leader.running().take_events()) {
              const Identity& identity = event.key.identity;
              events.append(nb::make_tuple(event.type != KvEventType::kDeleted,
                                           static_cast<int>(event.tier), event.key.group.value(),
                                           nb::bytes(identity.bytes.data(), Identity::kSize)));
            }
            return events;
          },
          "[(stored or removed, tier, layer group, identity of 32 bytes), ...] since the last "
          "call.")
      .def_prop_ro("metrics_port", [](Leader& leader) { return leader.running().metrics_port(); })
      .def(
          "statistics",
          [](Leader& leader) {
            leader.running().poll();
            return statistics_of(leader.running().metrics());
          },
          "What there is and what was counted, by name and labels.")
      .def("stop", &Leader::stop,
           "Lets go of the workers, and waits for none of their copies. Nothing else can be called "
           "afterwards.")
      .def(
          "__enter__", [](nb::object self) { return self; },
          nb::sig("def __enter__(self) -> KvbmLeader"))
      .def(
          "__exit__", [](Leader& self, nb::args /*exception*/) { self.stop(); },
          nb::sig("def __exit__(self, *exception: object) -> None"));

  nb::class_<MetricsReader>(module, "MetricsReader",
                            "What has changed in the series of a leader or a worker.")
      .def(
          "__init__",
          [](MetricsReader* self, Leader& leader) {
            new (self) MetricsReader(
                [&leader]() -> const MetricsRegistry& { return leader.running().metrics(); });
          },
          nb::keep_alive<1, 2>(), "leader"_a)
      .def(
          "__init__",
          [](MetricsReader* self, LocalWorker& worker) {
            new (self) MetricsReader(
                [&worker]() -> const MetricsRegistry& { return worker.running().metrics(); });
          },
          nb::keep_alive<1, 2>(), "worker"_a)
      .def("take", &MetricsReader::take,
           "(growth of counters, gauges), by name and labels, of what has changed since the last "
           "call. Raises kvbm.UnavailableError once the leader was stopped.");

  module.def("group_parts", &group_parts, "block_tokens"_a, "window_blocks"_a,
             "How many groups each layer group is to a worker: 1, or more where its blocks hold "
             "fewer tokens than another's. The worker gets its tensors as often, one after the "
             "other.\n\nArguments as of KvbmLeader.create, by layer group. Raises "
             "kvbm.InvalidArgumentError, kvbm.UnsupportedError for sizes that do not divide each "
             "other.");
  module.def(
      "connector_config",
      [](const nb::dict& settings, const std::string& where) {
        const ConnectorConfig found = connector_config(settings, where);
        const auto seconds = [](Duration time) {
          return std::chrono::duration<double>(time).count();
        };
        nb::dict values;
        values["host_bytes"] = found.host_bytes;
        values["disk_bytes"] = found.disk_bytes;
        values["host_blocks"] = found.host_blocks;
        values["disk_blocks"] = found.disk_blocks;
        values["disk_filter"] = found.disk_filter;
        values["min_priority"] = found.min_priority;
        values["load_mode"] = found.load_mode;
        values["store_budget"] = found.store_budget;
        values["endpoint"] = found.endpoint;
        values["weights_epoch"] = found.weights_epoch;
        values["timeout_seconds"] = seconds(found.transfer_timeout);
        values["record_directory"] = found.record ? found.disk_directory : std::string();
        values["disk_directory"] = found.disk_directory;
        values["disk_direct_io"] = found.disk_direct_io;
        values["disk_zero_fill"] = found.disk_zero_fill;
        values["metrics_port"] = found.served_port();
        values["init_timeout_secs"] = seconds(found.init_timeout);
        values["place_timeout_secs"] = seconds(found.place_timeout);
        return values;
      },
      "settings"_a = nb::dict(), "where"_a = "keyword",
      "What a connector is told, as arguments of KvbmLeader.create and KvbmWorker.create, and "
      "endpoint, where they meet ('ipc': in a folder of the user's own): from the defaults, the "
      "table [connector] of the file that KVBM_CONFIG names, the variables "
      "DYN_KVBM_* and settings, each over those before it. settings: by the names of "
      "docs/configuration.md. where: what messages call them.\n\n"
      "Raises kvbm.InvalidArgumentError with the name and what is allowed, kvbm.UnsupportedError "
      "for a variable that nothing here acts on.");
}
