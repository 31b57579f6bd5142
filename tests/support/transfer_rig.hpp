// SPDX-License-Identifier: Apache-2.0
// TransferRig: a TransferManager and everything under it, on threads or hand-stepped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvbm/base/metrics.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/base/stepped_executor.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/device/host_device.hpp"
#include "kvbm/memory/posix_file_engine.hpp"
#include "kvbm/transfer/loopback_agent.hpp"
#include "kvbm/transfer/transfer_manager.hpp"

#include "tests/support/recording_log_sink.hpp"

namespace kvbm::testing {

[[nodiscard]] inline std::vector<BlockId> block_ids(const std::vector<uint32_t>& values) {
  std::vector<BlockId> ids;
  for (const uint32_t value : values) ids.emplace_back(value);
  return ids;
}

/// A tag that depends on every bit of the number.
[[nodiscard]] inline SlotTag tag_of(uint64_t number) {
  SlotTag tag;
  for (size_t i = 0; i < tag.size(); i += 8) {
    const uint64_t word = splitmix64(number);
    for (size_t k = 0; k < 8; ++k) tag[i + k] = static_cast<std::byte>(word >> (8 * k));
  }
  return tag;
}

/// The sum of the counters of a name, over all labels.
[[nodiscard]] inline uint64_t counter_value(const MetricsRegistry& registry,
                                            std::string_view name) {
  struct Sum final : StatisticsVisitor {
    explicit Sum(std::string_view counter) : name(counter) {}
    void visit_counter(const MetricInfo& info, uint64_t value) override {
      if (info.name == name) total += value;
    }
    void visit_gauge(const MetricInfo&, int64_t) override {}
    void visit_real_gauge(const MetricInfo&, double) override {}
    void visit_histogram(const MetricInfo&, const HistogramSnapshot&) override {}
    std::string_view name;
    uint64_t total = 0;
  } sum(name);
  registry.visit(sum);
  return sum.total;
}

struct TransferRigOptions {
  uint64_t worker = 7;
  LoopbackNetwork* network = nullptr;           ///< set: with a remote agent on it
  std::optional<uint64_t> seed = std::nullopt;  ///< hand-stepped; else on threads
  size_t max_waiting_streams = 8;
  size_t file_requests_per_transfer = 64;
  size_t max_transfers = 4096;
  size_t max_file_requests = 4096;
  size_t file_threads = 4;
  uint32_t bounce_slots = 4;
  uint64_t bounce_slot_bytes = uint64_t{1} << 20;
  std::shared_ptr<HostPinner> pinner = nullptr;
  TransferCapabilities capabilities = {};
};

/// Members go in reverse order, as the rules of ownership ask; tests may reset them earlier.
struct TransferRig {
  explicit TransferRig(const TransferRigOptions& options = {}) : config(options) {
    if (options.seed) {
      auto owned = std::make_unique<SteppedExecutor>(*options.seed, log);
      stepped = owned.get();
      executor = std::move(owned);
    } else {
      executor = std::make_unique<ThreadExecutor>(log);
    }
    device = HostDevice::create({.executor = *executor}).value();
    files = PosixFileEngine::create({.executor = *executor,
                                     .num_threads = options.file_threads,
                                     .max_pending = options.max_file_requests})
                .value();
    if (options.network != nullptr) {
      agent = LoopbackAgent::create({.network = *options.network,
                                     .executor = *executor,
                                     .name = "agent-" + std::to_string(options.worker)})
                  .value();
    }
    start();
  }

  /// Makes the manager anew.
  void start() {
    manager.reset();
    manager = TransferManager::create(
                  {.worker = WorkerId{config.worker},
                   .device = other_device ? *other_device : static_cast<Device&>(*device),
                   .executor = *executor,
                   .log = log,
                   .files = other_files ? other_files.get() : files.get(),
                   .metrics = &metrics,
                   .max_waiting_streams = config.max_waiting_streams,
                   .file_requests_per_transfer = config.file_requests_per_transfer,
                   .max_transfers = config.max_transfers,
                   .capabilities = config.capabilities,
                   .bounce_slots = config.bounce_slots,
                   .bounce_slot_bytes = config.bounce_slot_bytes,
                   .pinner = config.pinner,
                   .remote_agent = agent.get()})
                  .value();
  }

  /// Puts a device of type T in front of the host device, and makes the manager anew.
  template <class T, class... Args>
  T& use_device(Args&&... args) {
    manager.reset();
    auto owned = std::make_unique<T>(*device, std::forward<Args>(args)...);
    T& used = *owned;
    other_device = std::move(owned);
    start();
    return used;
  }

  /// Replaces the file engine by one of type T, and makes the manager anew.
  template <class T, class... Args>
  T& use_files(Args&&... args) {
    manager.reset();
    auto owned = std::make_unique<T>(std::forward<Args>(args)...);
    T& used = *owned;
    other_files = std::move(owned);
    start();
    return used;
  }

  [[nodiscard]] Result<TransferCompleteNotification> execute(LayoutHandle src,
                                                             std::span<const BlockId> src_ids,
                                                             LayoutHandle dst,
                                                             std::span<const BlockId> dst_ids,
                                                             TransferOptions options = {}) {
    return manager->execute_transfer({.src = src,
                                      .src_ids = src_ids,
                                      .dst = dst,
                                      .dst_ids = dst_ids,
                                      .options = std::move(options)});
  }

  [[nodiscard]] TimePoint after(Duration delay) const { return executor->clock().now() + delay; }

  TransferRigOptions config;
  RecordingLogSink log;
  MetricsRegistry metrics;
  std::unique_ptr<Executor> executor;
  SteppedExecutor* stepped = nullptr;  ///< null on threads
  std::unique_ptr<HostDevice> device;
  std::unique_ptr<FileEngine> files;
  std::unique_ptr<Device> other_device;
  std::unique_ptr<FileEngine> other_files;
  std::unique_ptr<RemoteAgent> agent;  ///< null unless it has a network
  std::unique_ptr<TransferManager> manager;
};

}  // namespace kvbm::testing
