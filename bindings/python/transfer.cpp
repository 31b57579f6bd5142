// SPDX-License-Identifier: Apache-2.0
#include "bindings/python/transfer.hpp"

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/base/thread_executor.hpp"
#include "kvbm/device/host_device.hpp"
#include "kvbm/transfer/transfer_manager.hpp"

#include "bindings/python/errors.hpp"
#include "bindings/python/layout.hpp"
#include "bindings/python/live_objects.hpp"
#include "bindings/python/log.hpp"
#include "bindings/python/process_bound.hpp"
#include "bindings/python/waiting.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvbm {
namespace {

/// What copies. Members go in reverse order.
struct Engine {
  ThreadExecutor executor{log_sink()};
  std::unique_ptr<HostDevice> device;
  std::unique_ptr<TransferManager> transfers;
};

/// A manager that Python's objects share, with the memory under all that it may touch.
/// Threads: with the GIL.
class SharedTransfers {
 public:
  explicit SharedTransfers(std::unique_ptr<Engine> engine) : engine_(std::move(engine)) {}
  SharedTransfers(const SharedTransfers&) = delete;
  SharedTransfers& operator=(const SharedTransfers&) = delete;
  /// Memory goes last.
  ~SharedTransfers() { end(); }

  /// Raises kvbm.UnsupportedError in a forked child, kvbm.UnavailableError once it is closed.
  [[nodiscard]] TransferManager& open() const {
    check_here();
    if (!engine_.has_value()) {
      raise(Error(ErrorCode::kUnavailable, "the TransferManager is closed"));
    }
    return *engine_->transfers;
  }
  void check_here() const { check_process("TransferManager", process_); }
  [[nodiscard]] bool is_open() const noexcept { return engine_.has_value(); }

  LayoutHandle add(std::shared_ptr<const HeldLayout> layout) {
    const LayoutHandle handle = take(open().register_layout(layout->layout));
    layouts_.emplace(handle, std::move(layout));
    return handle;
  }

  TransferCompleteNotification execute(const TransferRequest& request) {
    TransferManager& transfers = open();
    if (num_closing_ > 0) {
      raise(Error(ErrorCode::kUnavailable, "the TransferManager is being closed"));
    }
    std::erase_if(running_, is_done);
    running_.reserve(running_.size() + 1);  // nothing fails once it runs
    TransferCompleteNotification notification = take(transfers.execute_transfer(request));
    running_.push_back({notification, layouts_.at(request.src), layouts_.at(request.dst)});
    return notification;
  }

  /// Whether it has ended, at the latest at `deadline`.
  bool wait(const TransferCompleteNotification& notification, TimePoint deadline) {
    check_here();
    if (notification.done()) return true;
    const Counted waiting(num_waiting_);
    return wait_in_slices(deadline, [&](TimePoint slice_end) {
      (void)notification.wait(slice_end);
      return notification.done();
    });
  }

  /// Takes no transfer meanwhile. False at `deadline`: something still runs.
  bool close(TimePoint deadline) {
    const Counted closing(num_closing_);
    while (!running_.empty()) {
      // A copy: other threads change the list while this one waits.
      const TransferCompleteNotification last = running_.back().notification;
      if (!wait(last, deadline)) return false;
      std::erase_if(running_, is_done);
    }
    // Who waits in another thread still refers to the executor, and leaves with the GIL. It is held
    // from the last look on until nobody finds the engine any more.
    while (num_waiting_ > 0) {
      if (now() >= deadline) return false;
      const nb::gil_scoped_release released;
      std::this_thread::yield();
    }
    end();
    return true;
  }

 private:
  struct Running {
    TransferCompleteNotification notification;
    std::shared_ptr<const HeldLayout> src;
    std::shared_ptr<const HeldLayout> dst;
  };
  static bool is_done(const Running& transfer) { return transfer.notification.done(); }
  /// Counts a thread while it lives.
  class Counted {
   public:
    explicit Counted(uint32_t& count) noexcept : count_(count) { ++count_; }
    Counted(const Counted&) = delete;
    Counted& operator=(const Counted&) = delete;
    ~Counted() { --count_; }

   private:
    uint32_t& count_;
  };

  void end() {
    if (!engine_.has_value()) return;  // another thread ends it
    ProcessBound<Engine> ending = std::move(engine_);
    if (ending.is_here()) {
      const nb::gil_scoped_release released;
      ending.reset();
    }
    running_.clear();
    layouts_.clear();
  }

  const Alive alive_{live_objects().transfer_managers};
  ProcessBound<Engine> engine_;
  const pid_t process_ = engine_.process();
  std::map<LayoutHandle, std::shared_ptr<const HeldLayout>> layouts_;
  std::vector<Running> running_;  // perhaps done
  uint32_t num_waiting_ = 0;      // threads in wait()
  uint32_t num_closing_ = 0;      // threads in close()
};

/// kvbm.TransferManager
struct Transfers {
  std::shared_ptr<SharedTransfers> shared;
};

/// kvbm.TransferCompleteNotification
struct Notification {
  Alive alive{live_objects().notifications};
  std::shared_ptr<SharedTransfers> manager;
  TransferCompleteNotification value;
};

void construct(Transfers* self, uint64_t worker_id, size_t copy_threads, size_t max_transfers) {
  auto engine = std::make_unique<Engine>();
  Status made;
  {
    const nb::gil_scoped_release released;
    made = [&]() -> Status {
      KVBM_ASSIGN_OR_RETURN(engine->device,
                            HostDevice::create({.executor = engine->executor,
                                                .num_threads = copy_threads,
                                                .name = format_text("w{}-copy", worker_id)}));
      KVBM_ASSIGN_OR_RETURN(engine->transfers,
                            TransferManager::create({.worker = WorkerId(worker_id),
                                                     .device = *engine->device,
                                                     .executor = engine->executor,
                                                     .log = log_sink(),
                                                     .max_transfers = max_transfers}));
      return {};
    }();
  }
  check(made);
  new (self) Transfers{std::make_shared<SharedTransfers>(std::move(engine))};
}

std::vector<BlockId> to_ids(const std::vector<uint32_t>& numbers) {
  std::vector<BlockId> ids;
  ids.reserve(numbers.size());
  for (const uint32_t number : numbers) ids.emplace_back(number);
  return ids;
}

std::unique_ptr<Notification> execute(Transfers& self, const LayoutHandle& src,
                                      const std::vector<uint32_t>& src_ids, const LayoutHandle& dst,
                                      const std::vector<uint32_t>& dst_ids,
                                      std::optional<std::pair<uint16_t, uint32_t>> layer_range) {
  const std::vector<BlockId> from = to_ids(src_ids);
  const std::vector<BlockId> to = to_ids(dst_ids);
  TransferRequest request{.src = src, .src_ids = from, .dst = dst, .dst_ids = to};
  if (layer_range) {
    request.options.layer_range = LayerRange{LayerId(layer_range->first), layer_range->second};
  }
  auto notification = std::make_unique<Notification>();
  notification->manager = self.shared;
  notification->value = self.shared->execute(request);
  return notification;
}

uint64_t wait_for(const Notification& self, std::optional<double> timeout) {
  if (!self.manager->wait(self.value, deadline_after(timeout))) {
    raise(Error(ErrorCode::kTimeout, "the transfer is still under way"));
  }
  const TransferResult& result = self.value.result();
  check(result.status);
  return result.bytes;
}

void close(Transfers& self, std::optional<double> timeout) {
  const TimePoint deadline = deadline_after(timeout);
  self.shared->check_here();
  if (self.shared->is_open() && !self.shared->close(deadline)) {
    raise(Error(ErrorCode::kTimeout, "transfers are still under way"));
  }
}

void bind_handle(nb::module_& module) {
  nb::class_<LayoutHandle>(
      module, "LayoutHandle",
      "The name of a registered layout, in 128 bits: 64 of the worker, 16 of its layout, zeros.")
      .def_static(
          "from_bits",
          [](uint64_t low, uint64_t high) { return take(LayoutHandle::from_bits(low, high)); },
          "low"_a, "high"_a, "Raises kvbm.InvalidArgumentError if a bit above 79 is set.")
      .def_prop_ro("worker_id", [](const LayoutHandle& self) { return self.worker.value(); })
      .def_ro("layout", &LayoutHandle::layout, "Counted by each worker.")
      .def_prop_ro("low", &LayoutHandle::low)
      .def_prop_ro("high", &LayoutHandle::high)
      .def(
          "__eq__",
          [](const LayoutHandle& self, nb::handle other) {
            return nb::isinstance<LayoutHandle>(other) && self == nb::cast<LayoutHandle&>(other);
          },
          "other"_a.none(), nb::sig("def __eq__(self, other: object, /) -> bool"))
      .def("__hash__", [](const LayoutHandle& self) { return self.low() * 65537 + self.high(); })
      .def("__repr__",
           [](const LayoutHandle& self) { return "<kvbm.LayoutHandle " + to_string(self) + ">"; });
}

}  // namespace

void bind_transfer(nb::module_& module) {
  bind_handle(module);

  nb::class_<Notification>(module, "TransferCompleteNotification",
                           "How a transfer ended, once it has: then nothing touches its blocks any "
                           "more. May be dropped; "
                           "the transfer goes on.")
      .def(
          "done",
          [](const Notification& self) {
            self.manager->check_here();
            return self.value.done();
          },
          "Whether wait() returns at once.")
      .def(
          "wait", &wait_for, "timeout"_a = nb::none(),
          "The bytes that have arrived. timeout in seconds; raises kvbm.TimeoutError: the transfer "
          "goes on, and it may be asked again. Raises the kvbm.Error with which the transfer "
          "failed, whose blocks are then undefined at the destination.")
      .def(
          "__await__",
          [](nb::handle self) {
            return nb::module_::import_("kvbm._awaiting")
                .attr("result_of")(self)
                .attr("__await__")();
          },
          nb::sig("def __await__(self) -> collections.abc.Generator[typing.Any, None, int]"))
      .def_prop_ro(
          "failed",
          [](const Notification& self) {
            self.manager->check_here();
            if (!self.value.done()) {
              raise(Error(ErrorCode::kUnavailable, "the transfer is still under way"));
            }
            return self.value.result().failed;
          },
          "Positions in the lists of ids that did not arrive, ascending. Raises "
          "kvbm.UnavailableError before it is done.");

  nb::class_<Transfers>(
      module, "TransferManager",
      "Copies blocks between registered layouts, in the background.\n\n"
      "Keeps what is registered, and its memory or tensors, until it is closed or gone and nothing "
      "runs any more. with closes it. Threads: any. In a forked child every call raises "
      "kvbm.UnsupportedError.")
      .def("__init__", &construct, "worker_id"_a = 0, nb::kw_only(), "copy_threads"_a = 2,
           "max_transfers"_a = 4096,
           "worker_id: in the handles. max_transfers: that are not done yet. Raises "
           "kvbm.InvalidArgumentError, kvbm.ExhaustedError (threads).")
      .def(
          "__enter__", [](nb::object self) { return self; },
          nb::sig("def __enter__(self) -> TransferManager"))
      .def(
          "__exit__", [](Transfers& self, nb::args /*exception*/) { close(self, std::nullopt); },
          nb::sig("def __exit__(self, *exception: object) -> None"))
      .def("close", &close, "timeout"_a = nb::none(),
           "Waits for what runs, and lets go of all layouts. Nothing new is taken meanwhile. "
           "timeout "
           "in seconds; raises kvbm.TimeoutError: the manager is as before. May be called again.")
      .def_prop_ro("closed", [](const Transfers& self) { return !self.shared->is_open(); })
      .def(
          "register_layout",
          [](Transfers& self, const Layout& layout) { return self.shared->add(layout.held); },
          "layout"_a, "Raises kvbm.ExhaustedError if 65536 are registered.")
      .def(
          "execute_transfer", &execute, "src"_a, "src_ids"_a, "dst"_a, "dst_ids"_a, nb::kw_only(),
          "layer_range"_a = nb::none(),
          "Copies block src_ids[i] of src to block dst_ids[i] of dst, for every i: all layers, or "
          "those of layer_range, (first, count). Never waits. Until it is done the caller neither "
          "writes the blocks of src nor touches those of dst.\n\n"
          "Raises kvbm.NotFoundError (a handle), kvbm.InvalidArgumentError (lists of different "
          "lengths, an id out of range, a destination twice or that is also a source, block shapes "
          "that differ, a range outside), kvbm.UnsupportedError (layouts that may share bytes), "
          "kvbm.ExhaustedError (max_transfers), kvbm.UnavailableError (closed, or being closed).")
      .def_prop_ro(
          "in_flight", [](const Transfers& self) { return self.shared->open().in_flight(); },
          "Transfers that are not done.")
      .def_prop_ro("worker_id",
                   [](const Transfers& self) { return self.shared->open().worker_id().value(); });
}

}  // namespace kvbm
