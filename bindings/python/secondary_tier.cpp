// SPDX-License-Identifier: Apache-2.0
#include "bindings/python/secondary_tier.hpp"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "kvbm/runtime/secondary_tier.hpp"

#include "bindings/python/errors.hpp"
#include "bindings/python/log.hpp"
#include "bindings/python/process_bound.hpp"
#include "bindings/python/statistics.hpp"
#include "bindings/python/waiting.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvbm {
namespace {

[[nodiscard]] Error closed() { return {ErrorCode::kUnavailable, "the secondary tier is closed"}; }

/// kvbm._core.SecondaryTier. Calls of several threads take turns; drain() lets others in between
/// its slices. A turn is waited for without the GIL, so that who has it may wait for the GIL.
/// Threads: any, with the GIL.
class Tier {
 public:
  explicit Tier(std::unique_ptr<SecondaryTier> tier) : tier_(std::move(tier)) {}

  /// One call that does not wait. Raises kvbm.UnavailableError once it is closed.
  template <class Call>
  auto use(Call&& call) {
    check_here();
    const std::unique_lock turn = take_turn();
    if (!tier_.has_value()) raise(closed());
    return call(*tier_);
  }
  /// Raises kvbm.TimeoutError, kvbm.UnavailableError once it is closed.
  void drain(std::optional<double> timeout) {
    check_here();
    check(drain_until(deadline_after(timeout)));
  }
  /// Without a timeout it is the end that waits. Raises kvbm.TimeoutError, and it is still open.
  void close(std::optional<double> timeout) {
    check_here();
    if (timeout) {
      Status drained = drain_until(deadline_after(timeout));
      if (!drained && drained.error().code() == ErrorCode::kTimeout) check(std::move(drained));
    }
    const nb::gil_scoped_release released;
    const std::scoped_lock turn(turn_);
    tier_.reset();
  }

 private:
  void check_here() const { check_process("SecondaryTier", tier_.process()); }
  Status drain_until(TimePoint deadline) {
    Status drained;
    (void)wait_in_slices(deadline, [&](TimePoint end) {
      // Who comes back at once would take the turn before those who wait for it are awake.
      while (num_waiting_ > 0 && now() < end) std::this_thread::yield();
      const std::scoped_lock turn(turn_);
      drained = tier_.has_value() ? tier_->drain(end) : tl::unexpected(closed());
      return drained || drained.error().code() != ErrorCode::kTimeout;
    });
    return drained;
  }
  /// Lets go of the GIL only if somebody else has the turn.
  std::unique_lock<std::mutex> take_turn() {
    std::unique_lock turn(turn_, std::try_to_lock);
    if (turn.owns_lock()) return turn;
    const nb::gil_scoped_release released;
    ++num_waiting_;
    turn.lock();
    --num_waiting_;
    return turn;
  }

  std::atomic<uint32_t> num_waiting_{0};  // for their turn in use()
  std::mutex turn_;                       // not a Mutex: it is held over calls
  ProcessBound<SecondaryTier> tier_;      // none once it is closed
};

std::unique_ptr<Tier> make_tier(uint64_t address, uint32_t num_chunks, uint64_t chunk_bytes,
                                uint64_t chunk_stride, const std::string& model,
                                uint64_t disk_bytes, uint32_t disk_blocks,
                                const std::string& disk_directory, bool disk_direct_io,
                                bool disk_zero_fill) {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): a buffer comes as the address of its data.
  auto* const memory = reinterpret_cast<std::byte*>(address);
  const SecondaryTierOptions options{
      .memory = memory,
      .num_chunks = num_chunks,
      .chunk_bytes = chunk_bytes,
      .chunk_stride = chunk_stride,
      .model = model,
      .disk_blocks = disk_blocks,
      .disk_bytes = disk_bytes,
      .disk_directory = disk_directory,
      .direct_io = disk_direct_io ? DirectIo::kTry : DirectIo::kOff,
      .zero_fill = disk_zero_fill,
  };
  Result<std::unique_ptr<SecondaryTier>> created = [&options] {
    const nb::gil_scoped_release released;
    return SecondaryTier::create(options, log_sink());
  }();
  return std::make_unique<Tier>(take(std::move(created)));
}

std::span<const std::byte> bytes_of(nb::handle object) {
  char* data = nullptr;
  Py_ssize_t size = 0;
  if (PyBytes_AsStringAndSize(object.ptr(), &data, &size) != 0) throw nb::python_error();
  return std::as_bytes(std::span(data, static_cast<size_t>(size)));
}

std::vector<std::span<const std::byte>> keys_of(nb::list keys) {
  std::vector<std::span<const std::byte>> raw;
  raw.reserve(nb::len(keys));
  for (nb::handle key : keys) raw.push_back(bytes_of(key));
  return raw;
}

/// job, succeeded, positions that arrived, bytes, seconds.
using FinishedJob = std::tuple<uint64_t, bool, std::vector<uint32_t>, uint64_t, double>;

std::vector<FinishedJob> take_finished(Tier& tier) {
  std::vector<FinishedJob> jobs;
  for (FinishedTierJob& job : tier.use([](SecondaryTier& open) { return open.take_finished(); })) {
    jobs.emplace_back(job.job, job.succeeded, std::move(job.arrived), job.bytes,
                      std::chrono::duration<double>(job.time).count());
  }
  return jobs;
}

}  // namespace

void bind_secondary_tier(nb::module_& module) {
  nb::class_<Tier>(module, "SecondaryTier",
                   "Chunks of an engine's host pool, copied to disk and back by key.\n\n"
                   "Threads: any; calls take turns, and what waits releases the GIL. In a forked "
                   "child every call raises kvbm.UnsupportedError.")
      .def("__init__",
           [](nb::pointer_and_handle<Tier>) { throw nb::type_error("use SecondaryTier.create"); })
      .def_static(
          "create", &make_tier, nb::kw_only(), "address"_a, "num_chunks"_a, "chunk_bytes"_a,
          "chunk_stride"_a, "model"_a = "", "disk_bytes"_a = 0, "disk_blocks"_a = 0,
          "disk_directory"_a = "/tmp/", "disk_direct_io"_a = true, "disk_zero_fill"_a = false,
          "Borrows the pool until close(): chunk i at address + i * chunk_stride, in bytes. "
          "Raises kvbm.Error if there is no such disk.")
      .def(
          "contains",
          [](Tier& tier, nb::bytes key) {
            return take(
                tier.use([&](SecondaryTier& open) { return open.contains(bytes_of(key)); }));
          },
          "key"_a, "Whether the chunk can be loaded; renews its recency.")
      .def(
          "store",
          [](Tier& tier, uint64_t job, nb::list keys, const std::vector<uint32_t>& chunks) {
            check(tier.use(
                [&](SecondaryTier& open) { return open.store(job, keys_of(keys), chunks); }));
          },
          "job"_a, "keys"_a, "chunks"_a, "Starts to copy chunks to disk; never waits.")
      .def(
          "load",
          [](Tier& tier, uint64_t job, nb::list keys, const std::vector<uint32_t>& chunks) {
            check(tier.use(
                [&](SecondaryTier& open) { return open.load(job, keys_of(keys), chunks); }));
          },
          "job"_a, "keys"_a, "chunks"_a, "Starts to copy what was stored to chunks; never waits.")
      .def("take_finished", &take_finished,
           "[(job, succeeded, positions of a load that arrived, bytes, seconds), ...]")
      .def_prop_ro("num_open_jobs",
                   [](Tier& tier) {
                     return tier.use([](SecondaryTier& open) { return open.num_open_jobs(); });
                   })
      .def_prop_ro("num_disk_blocks",
                   [](Tier& tier) {
                     return tier.use([](SecondaryTier& open) { return open.num_disk_blocks(); });
                   })
      .def_prop_ro("num_resident_blocks",
                   [](Tier& tier) {
                     return tier.use([](SecondaryTier& open) { return open.resident_blocks(); });
                   })
      .def(
          "statistics",
          [](Tier& tier) {
            return tier.use([](SecondaryTier& open) { return statistics_of(open.metrics()); });
          },
          "What there is and what was counted, by name and labels.")
      .def(
          "drain", &Tier::drain, "timeout"_a = nb::none(),
          "Waits until no copy is under way. timeout in seconds; raises kvbm.TimeoutError, then it "
          "may be called again.")
      .def("close", &Tier::close, "timeout"_a = nb::none(),
           "Waits for running copies; the pool may go afterwards. Nothing else works then. timeout "
           "in seconds; raises kvbm.TimeoutError: the tier is as before.");
}

}  // namespace kvbm
