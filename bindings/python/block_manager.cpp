// SPDX-License-Identifier: Apache-2.0
#include "bindings/python/block_manager.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "kvbm/base/text.hpp"
#include "kvbm/runtime/config.hpp"

#include "bindings/python/blocks.hpp"
#include "bindings/python/held_block.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvbm {

LiveObjects& live_objects() noexcept {
  static LiveObjects the_objects;
  return the_objects;
}

TimePoint deadline_after(std::optional<double> timeout) {
  if (!timeout) return kNever;
  if (!(*timeout >= 0)) {
    raise(Error(ErrorCode::kInvalidArgument,
                format_text("timeout is {}: allowed are seconds from 0 on, or None", *timeout)));
  }
  constexpr double kYear = 365.0 * 24 * 3600;
  if (*timeout > kYear) return kNever;
  return now() + std::chrono::duration_cast<Duration>(std::chrono::duration<double>(*timeout));
}

void SharedManager::check_process() const {
  kvbm::check_process("BlockManager", manager_.process());
}

namespace {

[[noreturn]] void raise(ErrorCode code, std::string message) {
  kvbm::raise(Error(code, std::move(message)));
}

std::string quoted(const std::string& text) { return '"' + text + '"'; }

// --- element types ------------------------------------------------------------------------------

struct ElementType {
  std::string_view name;
  nb::dlpack::dtype dtype;
};
constexpr uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kFloat8E4m3fn = 10,
                  kFloat8E5m2 = 12;
constexpr ElementType kElementTypes[] = {
    {"uint8", {kUInt, 8, 1}},
    {"uint16", {kUInt, 16, 1}},
    {"uint32", {kUInt, 32, 1}},
    {"uint64", {kUInt, 64, 1}},
    {"int8", {kInt, 8, 1}},
    {"int16", {kInt, 16, 1}},
    {"int32", {kInt, 32, 1}},
    {"int64", {kInt, 64, 1}},
    {"float16", {kFloat, 16, 1}},
    {"float32", {kFloat, 32, 1}},
    {"float64", {kFloat, 64, 1}},
    {"bfloat16", {kBfloat, 16, 1}},
    {"float8_e4m3fn", {kFloat8E4m3fn, 8, 1}},
    {"float8_e5m2", {kFloat8E5m2, 8, 1}},
};

nb::dlpack::dtype element_type(const std::string& name) {
  std::string known;
  for (const ElementType& type : kElementTypes) {
    if (type.name == name) return type.dtype;
    known += (known.empty() ? "" : ", ") + std::string(type.name);
  }
  raise(ErrorCode::kInvalidArgument,
        format_text("dtype = {}: allowed is one of {}", quoted(name), known));
}

std::string_view name_of(nb::dlpack::dtype dtype) {
  return std::ranges::find(kElementTypes, dtype, &ElementType::dtype)->name;
}

// --- keys, hits, onboarding ---------------------------------------------------------------------

/// kvbm.SequenceKeys
struct Keys {
  std::shared_ptr<SharedManager> manager;
  SequenceKeys keys;
};

/// kvbm.PrefixHit
struct Hit {
  Alive alive{live_objects().hits};
  std::shared_ptr<SharedManager> manager;
  ProcessBound<PrefixHit> value;

  [[nodiscard]] PrefixHit& hit() const {
    manager->check_process();
    KVBM_CONTRACT(value.has_value(), "the hit was released or onboarded");
    return *value;
  }
};

/// kvbm.Onboarded
struct OnboardedBlocks {
  uint32_t num_blocks = 0;
  std::vector<Blocks> groups;
  std::vector<uint32_t> first;
  Status status;
};

/// kvbm.Onboarding. Dropped without a result, what it copied can be matched later.
struct Onboarding {
  Alive alive{live_objects().onboardings};
  std::shared_ptr<SharedManager> manager;
  OnboardingId id;
  enum class State : uint8_t { kRunning, kEnded, kTaken } state = State::kRunning;
  ProcessBound<Onboarded> result;

  ~Onboarding() {
    if (state == State::kRunning && manager->is_here()) manager->forget(id);
  }
  /// Whether it has ended, at the latest at `deadline`.
  bool wait(TimePoint deadline) {
    KVBM_CONTRACT(state != State::kTaken, "the result of the onboarding was taken");
    if (state == State::kEnded) return true;
    return manager->until(deadline, [&](BlockManager& with, TimePoint slice_end) {
      if (state != State::kRunning) return true;
      std::optional<Onboarded> ended = with.finish_onboard(id, slice_end);
      if (!ended) return false;
      result = ProcessBound(std::make_unique<Onboarded>(*std::move(ended)));
      state = State::kEnded;
      return true;
    });
  }
};

OnboardedBlocks take_result(Onboarding& onboarding) {
  KVBM_CONTRACT(onboarding.state == Onboarding::State::kEnded,
                "the result of the onboarding was taken");
  onboarding.state = Onboarding::State::kTaken;
  const ProcessBound<Onboarded> result = std::move(onboarding.result);
  OnboardedBlocks blocks;
  blocks.num_blocks = result->num_blocks;
  blocks.status = result->status;
  for (uint32_t group = 0; group < result->groups.size(); ++group) {
    GpuBlocks& of_group = result->groups[group];
    blocks.first.push_back(of_group.first);
    blocks.groups.push_back(to_list(onboarding.manager, std::move(of_group.blocks), group));
  }
  return blocks;
}

OnboardedBlocks wait_for(Onboarding& onboarding, std::optional<double> timeout) {
  if (!onboarding.wait(deadline_after(timeout))) {
    raise(ErrorCode::kTimeout, "the blocks did not arrive in time; they are still under way");
  }
  return take_result(onboarding);
}

// --- the manager --------------------------------------------------------------------------------

/// kvbm.BlockManager
struct Manager {
  std::shared_ptr<SharedManager> shared;
  std::string toml;

  /// By value: close() in another thread may let go of it while a call goes on without the GIL.
  [[nodiscard]] std::shared_ptr<SharedManager> open() const {
    if (!shared) raise(ErrorCode::kUnavailable, "the BlockManager is closed");
    shared->check_process();
    return shared;
  }
};

std::string setting_text(const std::string& key, nb::handle value) {
  if (PyBool_Check(value.ptr())) return value.ptr() == Py_True ? "true" : "false";
  if (nb::isinstance<nb::str>(value) || PyLong_Check(value.ptr()) || PyFloat_Check(value.ptr())) {
    return nb::str(value).c_str();
  }
  raise(ErrorCode::kInvalidArgument, format_text("{} is a {}: allowed are bool, int, float and str",
                                                 key, nb::type_name(value.type()).c_str()));
}

Config load_config(const std::optional<std::string>& config_file,
                   const std::optional<nb::dlpack::dtype>& dtype, const nb::kwargs& values) {
  ConfigSources sources;
  if (config_file) sources.file = take(read_config_file(*config_file));
  sources.environment = process_environment();
  for (const auto& [name, value] : values) {
    const auto key = nb::cast<std::string>(name);
    sources.settings.push_back({key, setting_text(key, value), "BlockManager()"});
  }
  Config config = take(Config::load(sources));
  if (!dtype) return config;
  constexpr const char* kWidth = "dtype_width_bytes";
  if (config.origin(kWidth).kind == ConfigSourceKind::kDefault) {
    sources.settings.push_back({kWidth, std::to_string(dtype->bits / 8), "BlockManager(dtype=)"});
    return take(Config::load(sources));
  }
  if (config.values().dtype_width_bytes != dtype->bits / 8u) {
    raise(ErrorCode::kInvalidArgument,
          format_text("dtype has {} bytes, and dtype_width_bytes says {} ({})", dtype->bits / 8,
                      config.values().dtype_width_bytes, config.origin(kWidth).where));
  }
  return config;
}

void construct(Manager* self, const std::optional<std::string>& config_file,
               const std::optional<std::string>& dtype, size_t max_events,
               const nb::kwargs& values) {
  std::optional<nb::dlpack::dtype> element;
  if (dtype) element = element_type(*dtype);
  const Config config = load_config(config_file, element, values);
  if (!element) {
    element = {kUInt, static_cast<uint8_t>(config.values().dtype_width_bytes * 8), 1};
  }
  auto events = max_events > 0 ? std::make_unique<RecordingSink>(max_events) : nullptr;
  Result<std::unique_ptr<BlockManager>> created = [&] {
    const nb::gil_scoped_release released;
    return BlockManager::create(config.values(), {.events = events.get()});
  }();
  auto shared =
      std::make_shared<SharedManager>(take(std::move(created)), *element, std::move(events));
  new (self) Manager{std::move(shared), config.to_toml()};
}

Keys keys_of_tokens(Manager& self, const std::vector<uint32_t>& tokens, const std::string& salt) {
  const std::shared_ptr<SharedManager> shared = self.open();
  const uint32_t block_size = shared->fixed().config().block_size;
  return {shared, shared->fixed().keys(TokenBlockSequence(tokens, block_size, hash_salt(salt)))};
}

Keys keys_of_identities(Manager& self, nb::sequence identities) {
  const std::shared_ptr<SharedManager> shared = self.open();
  std::vector<Identity> found;
  for (nb::handle identity : identities) {
    char* data = nullptr;
    Py_ssize_t size = 0;
    if (PyBytes_AsStringAndSize(identity.ptr(), &data, &size) != 0) throw nb::python_error();
    found.push_back(
        take(Identity::from_bytes(std::as_bytes(std::span(data, static_cast<size_t>(size))))));
  }
  return {shared, shared->fixed().keys(found)};
}

void check_keys(const Manager& self, const Keys& keys) {
  KVBM_CONTRACT(keys.manager == self.open(), "keys of another manager");
}

std::unique_ptr<Hit> match(Manager& self, const Keys& keys) {
  check_keys(self, keys);
  auto hit = std::make_unique<Hit>();
  hit->manager = self.open();
  hit->value = hit->manager->use([&](BlockManager& manager) {
    return ProcessBound(std::make_unique<PrefixHit>(manager.match(keys.keys)));
  });
  return hit;
}

Blocks allocate_blocks(Manager& self, size_t num_blocks, size_t group) {
  const std::shared_ptr<SharedManager> shared = self.open();
  return to_list(shared, take(shared->use([&](BlockManager& manager) {
                   return manager.allocate_blocks(num_blocks, group);
                 })),
                 static_cast<uint32_t>(group));
}

/// Blocks that may be filled: of this manager, mutable, each once, and no tensor writes to them.
void check_fillable(const Manager& self, const Blocks& blocks) {
  for (size_t i = 0; i < blocks.blocks.size(); ++i) {
    const std::shared_ptr<HeldBlock> held = blocks.blocks[i].held();
    KVBM_CONTRACT(held->manager == self.open(), "a block of another manager");
    KVBM_CONTRACT(held->is_mutable, "a registered block is not written");
    for (size_t k = 0; k < i; ++k) {
      KVBM_CONTRACT(blocks.blocks[k].handle != blocks.blocks[i].handle, "a block comes twice");
    }
    if (held->num_writers > 0) {
      raise(ErrorCode::kInvalidArgument,
            format_text("block {} can still be written through a tensor: delete the tensor, and "
                        "what was made from it, before the block is filled",
                        to_string(held->block)));
    }
  }
}

/// Takes the blocks out of their list. Requires: check_fillable(), and only one group.
std::vector<MutableBlock> take_mutable(Blocks& blocks) {
  std::vector<MutableBlock> taken;
  taken.reserve(blocks.blocks.size());
  for (Block& block : blocks.blocks) {
    // Nobody shares it: there is no tensor of a mutable block without a writer.
    const std::shared_ptr<HeldBlock> held = std::move(block.handle->held);
    taken.push_back(std::get<MutableBlock>(std::move(*held->guard)));
  }
  return taken;
}

void check_destinations(const Manager& self, const PrefixHit& hit,
                        const std::vector<Blocks*>& into) {
  const size_t num_groups = self.open()->fixed().num_groups();
  if (into.size() != num_groups) {
    raise(ErrorCode::kInvalidArgument,
          format_text("into has {} lists of blocks for {} layer groups", into.size(), num_groups));
  }
  for (size_t group = 0; group < num_groups; ++group) {
    check_fillable(self, *into[group]);
    const size_t expected = hit.num_destinations(group);
    if (into[group]->blocks.size() != expected) {
      raise(ErrorCode::kInvalidArgument,
            format_text("into[{}] has {} blocks, and onboarding fills {}", group,
                        into[group]->blocks.size(), expected));
    }
    for (const Block& block : into[group]->blocks) {
      KVBM_CONTRACT(block.held()->group == group, "a block of another group");
    }
  }
}

std::unique_ptr<Onboarding> begin_onboard(Manager& self, Hit& hit,
                                          std::optional<std::vector<Blocks*>> destinations) {
  KVBM_CONTRACT(hit.manager == self.open(), "a hit of another manager");
  if (destinations) check_destinations(self, hit.hit(), *destinations);
  (void)hit.hit();
  std::vector<std::vector<MutableBlock>> given;
  if (destinations) {
    for (Blocks* of_group : *destinations) given.push_back(take_mutable(*of_group));
  }
  // Nobody else sees the hit while it is copied from.
  ProcessBound<PrefixHit> from = std::move(hit.value);
  auto onboarding = std::make_unique<Onboarding>();
  onboarding->state = Onboarding::State::kTaken;  // nothing to forget yet
  onboarding->manager = hit.manager;
  const Result<OnboardingId> begun =
      hit.manager->use([&](BlockManager& manager) -> Result<OnboardingId> {
        if (!given.empty()) return manager.begin_onboard(std::move(*from), std::move(given));
        std::vector<std::vector<MutableBlock>> into(manager.num_groups());
        for (size_t group = 0; group < into.size(); ++group) {
          KVBM_ASSIGN_OR_RETURN(into[group],
                                manager.allocate_blocks(from->num_destinations(group), group));
        }
        return manager.begin_onboard(std::move(*from), std::move(into));
      });
  if (!begun) {
    hit.value = std::move(from);
    kvbm::raise(begun.error());
  }
  onboarding->id = *begun;
  onboarding->state = Onboarding::State::kRunning;
  return onboarding;
}

Blocks register_blocks(Manager& self, Blocks& blocks, const Keys& keys, uint32_t first) {
  check_keys(self, keys);
  const std::shared_ptr<SharedManager> shared = self.open();
  if (blocks.blocks.empty()) return {};
  const uint32_t group = blocks.blocks.front().held()->group;
  if (first + uint64_t{blocks.blocks.size()} > keys.keys.num_blocks()) {
    raise(ErrorCode::kInvalidArgument,
          format_text("{} blocks from position {} on were to be registered, and there are keys of "
                      "{} blocks",
                      blocks.blocks.size(), first, keys.keys.num_blocks()));
  }
  for (size_t i = 0; i < blocks.blocks.size(); ++i) {
    const std::shared_ptr<HeldBlock> kept = blocks.blocks[i].held();
    const HeldBlock& held = *kept;
    KVBM_CONTRACT(held.manager == shared, "a block of another manager");
    KVBM_CONTRACT(held.group == group, "blocks of one group at a time");
    KVBM_CONTRACT(held.is_mutable, "the block is registered already");
    for (size_t k = 0; k < i; ++k) {
      KVBM_CONTRACT(blocks.blocks[k].handle != blocks.blocks[i].handle, "a block comes twice");
    }
    if (held.num_writers > 0) {
      raise(ErrorCode::kInvalidArgument,
            format_text("block {} can still be written through a tensor: delete the tensor, and "
                        "what was made from it, before the block is registered",
                        to_string(held.block)));
    }
  }
  const std::vector<BlockKey>& of_group = keys.keys.groups[group];
  std::vector<CompleteBlock> complete;
  complete.reserve(blocks.blocks.size());
  for (size_t i = 0; i < blocks.blocks.size(); ++i) {
    const size_t position = first + i;
    std::optional<BlockKey> parent;
    if (position > 0) parent = of_group[position - 1];
    // Nobody shares it: there is no tensor of a mutable block without a writer.
    const std::shared_ptr<HeldBlock> held = std::move(blocks.blocks[i].handle->held);
    complete.push_back(
        std::get<MutableBlock>(std::move(*held->guard)).complete(of_group[position], parent));
  }
  return to_list(shared, shared->use([&](BlockManager& manager) {
    return manager.register_blocks(std::move(complete));
  }),
                 group);
}

void store_kv(Manager& self, const Block& block, uint16_t layer, nb::handle data) {
  const std::shared_ptr<SharedManager> shared = self.open();
  const std::shared_ptr<HeldBlock> held = block.held();
  KVBM_CONTRACT(held->manager == shared, "a block of another manager");
  KVBM_CONTRACT(held->is_mutable, "a registered block is not written");
  // First: a __buffer__ of Python, or another thread meanwhile, could register the block.
  const std::shared_ptr<Writer> writer = writer_of(held);
  Py_buffer bytes;
  if (PyObject_GetBuffer(data.ptr(), &bytes, PyBUF_SIMPLE) != 0) throw nb::python_error();
  struct Released {
    Py_buffer* bytes;
    ~Released() { PyBuffer_Release(bytes); }
  } const released{&bytes};
  const uint64_t expected = block.layout().layer_bytes();
  if (layer >= block.layout().num_layers || static_cast<uint64_t>(bytes.len) != expected) {
    raise(ErrorCode::kInvalidArgument,
          format_text("layer {} of {} with {} bytes: a layer of a block has {} bytes", layer,
                      block.layout().num_layers, bytes.len, expected));
  }
  const MutableBlock& guard = std::get<MutableBlock>(*held->guard);
  check(shared->use([&](BlockManager& manager) {
    return manager.store_kv(
        guard, LayerId(layer),
        std::span(static_cast<const std::byte*>(bytes.buf), static_cast<size_t>(bytes.len)),
        RankId(block.rank));
  }));
}

nb::bytes load_kv(Manager& self, const Block& block, uint16_t layer) {
  const std::shared_ptr<SharedManager> shared = self.open();
  const std::shared_ptr<HeldBlock> held = block.held();
  KVBM_CONTRACT(held->manager == shared, "a block of another manager");
  KVBM_CONTRACT(!held->is_mutable, "only a registered block is read");
  if (layer >= block.layout().num_layers) {
    raise(ErrorCode::kInvalidArgument,
          format_text("layer {} of {}", layer, block.layout().num_layers));
  }
  const ImmutableBlock& guard = std::get<ImmutableBlock>(*held->guard);
  const std::vector<std::byte> bytes = take(shared->use([&](BlockManager& manager) {
    return manager.load_kv(guard, LayerId(layer), RankId(block.rank));
  }));
  return nb::bytes(bytes.data(), bytes.size());
}

void wait_idle(Manager& self, std::optional<double> timeout) {
  Status idle;
  const bool ended =
      self.open()->until(deadline_after(timeout), [&](BlockManager& manager, TimePoint slice_end) {
        idle = manager.wait_idle(slice_end);
        return idle || idle.error().code() != ErrorCode::kTimeout;
      });
  if (!ended || !idle) check(idle ? make_error(ErrorCode::kTimeout, "another call goes on") : idle);
}

void close(Manager& self, std::optional<double> timeout) {
  if (!self.shared) return;
  const std::shared_ptr<SharedManager> shared = self.open();
  Status stopped = make_error(ErrorCode::kTimeout, "another call of this manager goes on");
  (void)shared->until(deadline_after(timeout), [&](BlockManager& manager, TimePoint slice_end) {
    stopped = manager.stop(slice_end);
    return stopped || stopped.error().code() != ErrorCode::kTimeout;
  });
  check(stopped);
  self.shared.reset();
}

TierId tier_named(const std::string& name) {
  for (const TierId tier : {TierId::kG1, TierId::kG2, TierId::kG3}) {
    if (to_string(tier) == name) return tier;
  }
  raise(ErrorCode::kInvalidArgument,
        format_text("there is no tier {}: allowed are G1, G2 and G3", quoted(name)));
}

void bind_hits(nb::module_& module) {
  nb::class_<Keys>(module, "SequenceKeys",
                   "What names the full blocks of a token sequence, for one manager.")
      .def("__len__", [](const Keys& self) { return self.keys.num_blocks(); });

  nb::class_<Hit>(module, "PrefixHit",
                  "What a sequence has in all tiers, pinned until it is released or onboarded.")
      .def_prop_ro(
          "num_blocks", [](const Hit& self) { return self.hit().num_blocks(); },
          "Blocks of the prefix that are somewhere.")
      .def_prop_ro(
          "num_gpu_blocks", [](const Hit& self) { return self.hit().num_gpu_blocks(); },
          "Those at the front that are in G1.")
      .def(
          "tier",
          [](const Hit& self, Py_ssize_t position) {
            const auto at = static_cast<uint32_t>(index_in(position, self.hit().num_blocks()));
            return std::string(to_string(self.hit().tier(at)));
          },
          "position"_a, "G1, G2 or G3: the slowest tier that a position comes from.")
      .def("__len__", [](const Hit& self) { return self.hit().num_blocks(); })
      .def(
          "keep_gpu_part", [](Hit& self) { self.hit().keep_gpu_part(); },
          "Forgets what is below G1, and unpins it there.")
      .def(
          "release", [](Hit& self) { self.value = {}; }, "Unpins it. May be called again.");

  nb::class_<OnboardedBlocks>(
      module, "Onboarded",
      "Positions [0, num_blocks) of a prefix are in G1 and held; the rest is to be computed.")
      .def_ro("num_blocks", &OnboardedBlocks::num_blocks)
      .def_ro("groups", &OnboardedBlocks::groups, "A BlockList for each layer group.")
      .def_ro(
          "first", &OnboardedBlocks::first,
          "The position of each group's first block: not 0 where a sliding window starts later.")
      .def_prop_ro(
          "blocks", [](const OnboardedBlocks& self) { return self.groups.at(0); },
          "The blocks of the first group.")
      .def_prop_ro(
          "error",
          [](const OnboardedBlocks& self) -> nb::object {
            return self.status ? nb::none() : to_exception(self.status.error());
          },
          nb::sig("def error(self) -> Error | None"),
          "Why it is less than the hit, as an exception that was not raised.");

  nb::class_<Onboarding>(
      module, "Onboarding",
      "Copies into G1 that are under way: wait() or await gives the result, once.")
      .def(
          "done", [](Onboarding& self) { return self.wait(now()); },
          "Whether wait() returns at once.")
      .def("wait", &wait_for, "timeout"_a = nb::none(),
           "timeout in seconds. Raises kvbm.TimeoutError: the copies go on, and it may be asked "
           "again.")
      .def(
          "__await__",
          [](nb::handle self) {
            return nb::module_::import_("kvbm._awaiting")
                .attr("result_of")(self)
                .attr("__await__")();
          },
          nb::sig("def __await__(self) -> collections.abc.Generator[typing.Any, None, Onboarded]"));
}

void bind_events(nb::module_& module) {
  nb::class_<KvEvent>(module, "KvEvent", "A block came to, or left, a tier.")
      .def_prop_ro(
          "type", [](const KvEvent& self) { return std::string(to_string(self.type)); },
          "created (from compute), migrated (copied from from_tier) or deleted.")
      .def_prop_ro(
          "tier", [](const KvEvent& self) { return std::string(to_string(self.tier)); },
          "G1, G2 or G3.")
      .def_prop_ro(
          "from_tier",
          [](const KvEvent& self) -> std::optional<std::string> {
            if (self.type != KvEventType::kMigrated) return std::nullopt;
            return std::string(to_string(self.from_tier));
          },
          "Of a migrated block, else None.")
      .def_prop_ro(
          "block_id", [](const KvEvent& self) { return self.block_id; }, "Its slot in the tier.")
      .def_prop_ro(
          "group", [](const KvEvent& self) { return self.key.group.value(); },
          "Its layer group, by index.")
      .def_prop_ro(
          "identity",
          [](const KvEvent& self) {
            return nb::bytes(self.key.identity.bytes.data(), Identity::kSize);
          },
          "32 bytes: what keys_from_identities was given, with zeros behind it, or the hash of the "
          "tokens.")
      .def_prop_ro(
          "timestamp",
          [](const KvEvent& self) {
            return std::chrono::duration<double>(self.timestamp.time_since_epoch()).count();
          },
          "Seconds since 1970.")
      .def("__repr__", [](const KvEvent& self) {
        std::ostringstream text;
        text << self;
        return "<kvbm.KvEvent " + text.str() + ">";
      });
}

}  // namespace

void bind_block_manager(nb::module_& module) {
  bind_blocks(module);
  bind_hits(module);
  bind_events(module);

  nb::class_<Manager>(
      module, "BlockManager",
      "Finds, keeps and restores KV blocks over GPU (G1), host (G2) and disk (G3).\n\n"
      "Keywords are the keys of docs/configuration.md, with its defaults, over KVBM_* variables "
      "and a TOML file: the argument config_file, or else the one that KVBM_CONFIG names. Sizes "
      "are "
      "int, or a str such as \"16 GiB\". dtype names the elements of tensors (float16, bfloat16, "
      "float32, uint8, ...) and with it dtype_width_bytes; without it they are unsigned integers "
      "of that width.\n\n"
      "with closes it. Threads: any; calls take turns, and what waits releases the GIL. In a "
      "forked "
      "child every call raises kvbm.UnsupportedError.\n\n"
      "Raises kvbm.InvalidArgumentError, naming the key and for an unknown one the nearest, "
      "kvbm.ExhaustedError, kvbm.IoError, kvbm.NotFoundError.")
      .def(
          "__init__", &construct, nb::kw_only(), "config_file"_a = nb::none(),
          "dtype"_a = nb::none(), "max_events"_a = 0, "values"_a,
          nb::sig("def __init__(self, *, config_file: str | None = None, dtype: str | None = None, "
                  "max_events: int = 0, **values: bool | int | float | str) -> None"),
          "max_events: how many block events are kept for take_events().")
      .def(
          "__enter__", [](nb::object self) { return self; },
          nb::sig("def __enter__(self) -> BlockManager"))
      .def(
          "__exit__", [](Manager& self, nb::args /*exception*/) { close(self, std::nullopt); },
          nb::sig("def __exit__(self, *exception: object) -> None"))
      .def("close", &close, "timeout"_a = nb::none(),
           "Writes what is only in host memory to disk, if there is a disk tier, and stops. "
           "timeout in seconds; raises kvbm.TimeoutError, then it may be called again. Tensors and "
           "registered blocks keep the memory. May be called again.")
      .def_prop_ro("closed", [](const Manager& self) { return self.shared == nullptr; })
      .def("keys", &keys_of_tokens, "tokens"_a, "salt"_a = "",
           "The keys of the full blocks of tokens (32-bit unsigned); salt keeps caches apart.")
      .def("keys_from_identities", &keys_of_identities, "identities"_a,
           nb::sig("def keys_from_identities(self, identities: collections.abc.Sequence[bytes]) -> "
                   "SequenceKeys"),
           "The keys of blocks that the engine names itself, by 1 to 32 bytes each.")
      .def("match", &match, "keys"_a, "The longest prefix that is in any tier, pinned.")
      .def("allocate_blocks", &allocate_blocks, "num_blocks"_a, "group"_a = 0,
           "Blocks of G1 to fill, evicting idle ones. Raises kvbm.ExhaustedError, all or nothing.")
      .def(
          "begin_onboard", &begin_onboard, "hit"_a, "into"_a = nb::none(),
          "Begins to copy what the hit has below G1 into blocks of G1, and consumes the hit. into: "
          "the blocks, a list for each layer group, which are consumed too; without it they are "
          "allocated. Raises kvbm.ExhaustedError: the hit stays; kvbm.InvalidArgumentError if into "
          "does not fit the hit.")
      .def(
          "onboard",
          [](Manager& self, Hit& hit, std::optional<double> timeout) {
            const TimePoint deadline = deadline_after(timeout);
            const std::unique_ptr<Onboarding> onboarding = begin_onboard(self, hit, std::nullopt);
            if (!onboarding->wait(deadline)) {
              raise(ErrorCode::kTimeout,
                    "the blocks did not arrive in time; match again later to find them");
            }
            return take_result(*onboarding);
          },
          "hit"_a, "timeout"_a = nb::none(),
          "begin_onboard and wait, timeout in seconds. Raises kvbm.TimeoutError: the copies go on, "
          "and what arrives can be matched. A failed copy raises nothing: the result is shorter, "
          "and says why.")
      .def("register_blocks", &register_blocks, "blocks"_a, "keys"_a, "first"_a = 0,
           "Makes filled blocks findable: blocks[i] is position first + i of the keys. They are "
           "consumed, and copied down in the background. Returns the registered ones, held. Raises "
           "kvbm.InvalidArgumentError while a tensor could still write to one of them, or if there "
           "are fewer keys.")
      .def("store_kv", &store_kv, "block"_a, "layer"_a, "data"_a,
           nb::sig("def store_kv(self, block: Block, layer: int, data: bytes | bytearray | "
                   "memoryview | typing.Any) -> None"),
           "Writes one layer of a mutable block on its rank. data: a contiguous buffer of [outer, "
           "block_size, num_heads, head_dim] elements.")
      .def("load_kv", &load_kv, "block"_a, "layer"_a,
           "Reads one layer of a registered block on its rank, in the shape of store_kv.")
      .def("wait_idle", &wait_idle, "timeout"_a = nb::none(),
           "Waits until nothing is copied. timeout in seconds; raises kvbm.TimeoutError.")
      .def(
          "reset",
          [](Manager& self) {
            check(self.open()->use([](BlockManager& manager) { return manager.reset(); }));
          },
          "Empties all tiers. Raises kvbm.UnavailableError while a block of G1 is held or "
          "something "
          "is copied: nothing has changed; or where hits pin blocks below G1: all others are gone.")
      .def(
          "poll", [](Manager& self) { self.open()->use([](BlockManager& m) { m.poll(); }); },
          "Takes in what has ended; match, onboard and register_blocks do so too.")
      .def(
          "resident_blocks",
          [](Manager& self, const std::string& tier) {
            const TierId id = tier_named(tier);
            return self.open()->use([&](BlockManager& m) { return m.resident_blocks(id); });
          },
          "tier"_a, "Blocks that can be found in G1, G2 or G3, over all groups.")
      .def(
          "occupancy",
          [](Manager& self, size_t group) {
            const PoolOccupancy found =
                self.open()->use([&](BlockManager& m) { return m.gpu_occupancy(group); });
            return std::map<std::string, uint64_t>{{"free", found.num_free},
                                                   {"idle", found.num_idle},
                                                   {"active", found.num_active},
                                                   {"mutable", found.num_mutable}};
          },
          "group"_a = 0, "Blocks of G1 by what they are: free, idle, active or mutable.")
      .def(
          "take_events",
          [](Manager& self) {
            const std::shared_ptr<SharedManager> shared = self.open();
            // What has ended is told too.
            shared->use([](BlockManager& m) { m.poll(); });
            return shared->events() == nullptr ? std::vector<KvEvent>() : shared->events()->take();
          },
          "The block events since the last call, oldest first.")
      .def_prop_ro(
          "num_dropped_events",
          [](Manager& self) -> uint64_t {
            const std::shared_ptr<SharedManager> shared = self.open();
            return shared->events() == nullptr ? 0 : shared->events()->dropped();
          },
          "Events lost because more than max_events came between two calls: the oldest ones.")
      .def_prop_ro("num_groups", [](Manager& self) { return self.open()->fixed().num_groups(); })
      .def_prop_ro(
          "block_size", [](Manager& self) { return self.open()->fixed().config().block_size; },
          "Tokens of a block.")
      .def_prop_ro(
          "dtype", [](Manager& self) { return std::string(name_of(self.open()->dtype())); },
          "The element type of tensors.")
      .def(
          "config_toml", [](const Manager& self) { return self.toml; },
          "Every value as TOML, with where it comes from.");

  module.def(
      "live_objects",
      [] {
        const LiveObjects& live = live_objects();
        return std::map<std::string, int64_t>{{"managers", live.managers},
                                              {"blocks", live.blocks},
                                              {"tensors", live.tensors},
                                              {"hits", live.hits},
                                              {"onboardings", live.onboardings},
                                              {"workers", live.workers},
                                              {"leaders", live.leaders},
                                              {"layouts", live.layouts},
                                              {"transfer_managers", live.transfer_managers},
                                              {"notifications", live.notifications}};
      },
      "How many managers, held blocks, tensors, hits, onboardings, workers, leaders, layouts, "
      "transfer managers and notifications are alive in this process.");
}

}  // namespace kvbm
