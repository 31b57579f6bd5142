// SPDX-License-Identifier: Apache-2.0
// kvbm plan: how a copy between two layouts is planned, and why.
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "kvbm/base/thread_executor.hpp"
#include "kvbm/base/units.hpp"
#include "kvbm/layout/layout_view.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/runtime/calibration_cache.hpp"
#include "kvbm/runtime/calibration_file.hpp"
#include "kvbm/runtime/devices.hpp"
#include "kvbm/transfer/copy_choice.hpp"
#include "kvbm/transfer/transfer_plan.hpp"
#include "kvbm/transfer/transfer_strategy.hpp"

#include "apps/kvbench/bench_cell.hpp"
#include "apps/kvbench/kvbench_options.hpp"
#include "apps/kvbm/command.hpp"

namespace kvbm {
namespace {

/// "pinned:lw:hnd": where, how, and in which order of axes.
struct PlannedSide {
  StorageKind memory = StorageKind::kPinned;
  LayoutKind kind = LayoutKind::kFullyContiguous;
  KvBlockLayout format = KvBlockLayout::kOperationalNHD;
};

struct PlanArguments {
  PlannedSide src = {};
  PlannedSide dst = {.memory = StorageKind::kDevice, .kind = LayoutKind::kLayerSeparateBlockSecond};
  BenchShape shape = {};
  uint32_t tokens_per_block = 16;
  uint32_t num_blocks = 128;
  bool sequential_ids = false;
  std::string device;
  std::string calibration_dir;
  std::optional<std::string> calibration_file;
};

template <class T>
struct Word {
  std::string_view word;
  T value;
};

constexpr Word<StorageKind> kMemories[] = {{"system", StorageKind::kSystem},
                                           {"pinned", StorageKind::kPinned},
                                           {"device", StorageKind::kDevice}};
constexpr Word<LayoutKind> kKinds[] = {{"fc", LayoutKind::kFullyContiguous},
                                       {"lw", LayoutKind::kLayerSeparateBlockSecond},
                                       {"lw_block_first", LayoutKind::kLayerSeparateBlockFirst}};
constexpr Word<KvBlockLayout> kFormats[] = {{"nhd", KvBlockLayout::kOperationalNHD},
                                            {"hnd", KvBlockLayout::kOperationalHND},
                                            {"universal_tp", KvBlockLayout::kUniversalTP},
                                            {"universal_pp", KvBlockLayout::kUniversalPP},
                                            {"unknown", KvBlockLayout::kUnknown}};
constexpr char kSideHelp[] =
    "MEMORY:LAYOUT:FORMAT, of system, pinned, device; fc, lw, lw_block_first; nhd, hnd, "
    "universal_tp, universal_pp, unknown (nhd if left out)";

template <class T>
T value_of(const std::string& option, std::span<const Word<T>> words, const std::string& text) {
  std::string all;
  for (const Word<T>& each : words) {
    if (each.word == text) return each.value;
    all.append(all.empty() ? "" : ", ").append(each.word);
  }
  throw CLI::ValidationError(option, fmt::format("'{}' is none of {}", text, all));
}

PlannedSide parse_side(const std::string& option, const std::string& text) {
  const std::vector<std::string> words = CLI::detail::split(text, ':');
  if (words.size() < 2 || words.size() > 3) {
    throw CLI::ValidationError(option, fmt::format("'{}' is not MEMORY:LAYOUT:FORMAT", text));
  }
  PlannedSide side;
  side.memory = value_of<StorageKind>(option, kMemories, words[0]);
  side.kind = value_of<LayoutKind>(option, kKinds, words[1]);
  if (words.size() == 3) side.format = value_of<KvBlockLayout>(option, kFormats, words[2]);
  return side;
}

/// Gives out addresses that nobody follows: a plan is arithmetic.
class PlannedMemory {
 public:
  MemoryRegion take(StorageKind kind, uint64_t size_bytes) {
    const uint64_t base = next_;
    next_ += (size_bytes / kStep + 2) * kStep;
    // NOLINTNEXTLINE(performance-no-int-to-ptr)
    return MemoryRegion::of_bytes(kind, reinterpret_cast<std::byte*>(base), size_bytes);
  }

 private:
  static constexpr uint64_t kStep = uint64_t{1} << 21;
  uint64_t next_ = uint64_t{1} << 32;
};

Result<PhysicalLayout> layout_of(const PlannedSide& side, const LayoutConfig& config,
                                 PlannedMemory& memory) {
  KVBM_ASSIGN_OR_RETURN(const MemoryNeed need, required_memory(config, side.kind));
  std::vector<MemoryRegion> regions;
  regions.reserve(need.num_regions);
  for (size_t i = 0; i < need.num_regions; ++i) {
    regions.push_back(memory.take(side.memory, need.region_bytes));
  }
  if (side.kind == LayoutKind::kFullyContiguous) {
    return PhysicalLayout::fully_contiguous(config, regions.front(), side.format);
  }
  return PhysicalLayout::layer_separate(config,
                                        side.kind == LayoutKind::kLayerSeparateBlockFirst
                                            ? BlockDimension::kBlockIsFirst
                                            : BlockDimension::kBlockIsSecond,
                                        regions, side.format);
}

/// Of a device that need not be here: as GPUs are opened.
constexpr uint64_t kUsualRingBlock = 40 * kMiB;

/// What is known of the device that copies.
struct PlannedDevice {
  DeviceCapabilities capabilities;
  Calibration calibration;
  std::string origin;
};

Result<PlannedDevice> device_of(const PlanArguments& arguments, Console& console) {
  if (arguments.calibration_file) {
    KVBM_ASSIGN_OR_RETURN(SavedCalibration saved,
                          read_calibration_file(*arguments.calibration_file));
    return PlannedDevice{.capabilities = {.kernel_copies = true,
                                          .ring_copies = true,
                                          .ring_block_bytes = kUsualRingBlock},
                         .calibration = std::move(saved.calibration),
                         .origin = fmt::format("{}, of {}", *arguments.calibration_file,
                                               saved.identity.device.name)};
  }
  const std::string name = device_or_default(arguments.device);
  ThreadExecutor executor(console.log());
  KVBM_ASSIGN_OR_RETURN(const OpenedDevice opened,
                        open_device({.name = name, .executor = executor}));
  KVBM_ASSIGN_OR_RETURN(CalibrationFound found,
                        calibrate({.device = *opened.device,
                                   .executor = executor,
                                   .log = console.log(),
                                   .pinner = opened.pinner,
                                   .identity = opened.identity,
                                   .folder = calibration_folder(arguments.calibration_dir)}));
  const bool needed = found.source != CalibrationFound::Source::kNotNeeded;
  return PlannedDevice{.capabilities = opened.device->info().capabilities,
                       .calibration = std::move(found.calibration),
                       .origin = fmt::format("{} {}", name, needed ? "as measured" : "needs none")};
}

std::string side_text(const PhysicalLayout& layout) {
  return fmt::format("{} memory, {}, {}", to_string(layout.storage_kind()),
                     to_string(layout.kind()), to_string(layout.kv_block_layout()));
}

/// "2 x 8 runs of 4 KiB; steps from 64 KiB, 4 KiB to 1 MiB, 32 KiB".
std::string shape_text(const StridedPiece& piece) {
  std::string counts;
  std::string from;
  std::string to;
  for (const StridedAxis& axis : piece.axes) {
    if (axis.count == 1) continue;
    const std::string_view comma = counts.empty() ? "" : ", ";
    counts.append(counts.empty() ? "" : " x ").append(std::to_string(axis.count));
    from.append(comma).append(format_size(axis.src_stride));
    to.append(comma).append(format_size(axis.dst_stride));
  }
  if (counts.empty()) return fmt::format("one run of {}", format_size(piece.bytes));
  return fmt::format("{} runs of {}; from steps of {} to steps of {}", counts,
                     format_size(piece.bytes), from, to);
}

/// Equal shapes in one line.
std::string pieces_text(std::span<const StridedPiece> pieces) {
  std::string text = fmt::format("{} after folding, of every block\n", pieces.size());
  for (size_t begin = 0; begin < pieces.size();) {
    size_t end = begin + 1;
    while (end < pieces.size() && pieces[end].bytes == pieces[begin].bytes &&
           pieces[end].axes == pieces[begin].axes) {
      ++end;
    }
    text.append(
        fmt::format("  {:<11}{}\n", fmt::format("{} of", end - begin), shape_text(pieces[begin])));
    begin = end;
  }
  return text;
}

std::string estimate_text(CopyCost cost, uint64_t bytes) {
  return fmt::format("{:.3f} ms, {:.2f} GB/s", cost.count() * 1e-3,
                     static_cast<double>(bytes) / cost.count() * 1e-3);
}

Result<ExitCode> run_plan(const PlanArguments& arguments, Console& console) {
  const LayoutConfig config =
      arguments.shape.config(arguments.tokens_per_block, arguments.num_blocks);
  PlannedMemory memory;
  KVBM_ASSIGN_OR_RETURN(const PhysicalLayout src, layout_of(arguments.src, config, memory));
  KVBM_ASSIGN_OR_RETURN(const PhysicalLayout dst, layout_of(arguments.dst, config, memory));
  KVBM_ASSIGN_OR_RETURN(const TransferPlan plan, TransferPlan::create(src, dst));
  KVBM_ASSIGN_OR_RETURN(const PlannedDevice device, device_of(arguments, console));
  const bool reshaped = src.kv_block_layout().requires_transform(dst.kv_block_layout());
  KVBM_ASSIGN_OR_RETURN(
      const TransferStrategy strategy,
      choose_strategy({.src = {.storage = src.storage_kind()},
                       .dst = {.storage = dst.storage_kind()},
                       .match = reshaped ? BlockMatch::kReshaped : BlockMatch::kSameBytes,
                       .device = device.capabilities}));
  const std::vector<StridedPiece> pieces = plan.with_addresses(src, dst);
  const uint64_t bytes = plan.bytes_per_block() * arguments.num_blocks;
  std::string text;
  const auto line = [&text](std::string_view name, std::string_view value) {
    text.append(fmt::format("{:<13}{}\n", name, value));
  };
  line("from", side_text(src));
  line("to", side_text(dst));
  line("blocks", fmt::format("{} of {}, {} in all, {}", arguments.num_blocks,
                             format_size(plan.bytes_per_block()), format_size(bytes),
                             arguments.sequential_ids ? "one after another" : "in any order"));
  text.append(fmt::format("{:<13}{}", "pieces", pieces_text(pieces)));
  line("way", describe(strategy));
  if (strategy.is_staged() || strategy.first.kind != HopKind::kDevice) {
    console.print(text);
    return ExitCode::kSuccess;
  }
  const MethodChoice choice =
      choose_method({.pieces = pieces,
                     .num_blocks = arguments.num_blocks,
                     .num_groups = arguments.sequential_ids ? size_t{1} : arguments.num_blocks,
                     .route = strategy.first.route(),
                     .capabilities = device.capabilities,
                     .calibration = device.calibration});
  line("calibration", device.origin);
  if (choice.reason == MethodChoice::Reason::kCheaper ||
      choice.reason == MethodChoice::Reason::kEngineInDoubt) {
    line("engine", estimate_text(choice.engine, bytes));
    line("kernel", estimate_text(choice.kernel, bytes));
    if (choice.ring) line("ring", estimate_text(*choice.ring, bytes));
  }
  line("chosen", describe(choice));
  console.print(text);
  return ExitCode::kSuccess;
}

void add_side(CLI::App& app, const std::string& option, PlannedSide& side,
              const std::string& shown_default) {
  app.add_option(
         option,
         [&side, option](const CLI::results_t& words) {
           side = parse_side(option, words.back());
           return true;
         },
         kSideHelp)
      ->type_name("SIDE")
      ->default_str(shown_default);
}

}  // namespace

Command add_plan_command(CLI::App& program, Console& console) {
  CLI::App* app =
      add_subcommand(program, "plan", "Explains how blocks would be copied between two layouts");
  auto arguments = std::make_shared<PlanArguments>();
  add_side(*app, "--src", arguments->src, "pinned:fc:nhd");
  add_side(*app, "--dst", arguments->dst, "device:lw:nhd");
  add_count(*app, "--num-blocks", arguments->num_blocks, "Blocks of the copy",
            {.low = 1, .high = 1U << 20});
  add_count(*app, "--tokens-per-block", arguments->tokens_per_block, "Size of a block",
            {.low = 1, .high = 65536});
  add_shape_options(*app, arguments->shape);
  app->add_flag("--sequential-ids", arguments->sequential_ids,
                "Block i to block i, instead of any order");
  CLI::Option* device = add_device(*app, arguments->device);
  add_calibration_dir(*app, arguments->calibration_dir);
  app->add_option("--calibration", arguments->calibration_file,
                  "Plan by this file, of a GPU that need not be here; no device is asked")
      ->type_name("FILE")
      ->excludes(device);
  return {app, [arguments, &console] { return run_plan(*arguments, console); }};
}

}  // namespace kvbm
