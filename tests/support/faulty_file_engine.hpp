// SPDX-License-Identifier: Apache-2.0
// FaultyFileEngine: a file engine that fails, tears, lies, dawdles and flips bits, as a seed says.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/device/host_pages.hpp"
#include "kvbm/memory/file_engine.hpp"

namespace kvbm::testing {

/// The chances of each fault, request by request. One request has one of the first four at most.
struct FileFaults {
  uint64_t seed = 1;
  double fail = 0;      ///< nothing moves; kIo
  double torn = 0;      ///< a part moves; kIo, with the bytes of the part
  double lie = 0;       ///< a part moves; success, with the bytes of the part: against the contract
  double bit_flip = 0;  ///< all moves, one bit of it wrong; success
  double delay = 0;     ///< the answer comes late, up to max_delay
  Duration max_delay = std::chrono::milliseconds(2);
};

struct FileFaultCounts {
  uint64_t failed = 0;
  uint64_t torn = 0;
  uint64_t lies = 0;
  uint64_t bit_flips = 0;
  uint64_t delays = 0;
};

/// The same seed and the same requests in the same order give the same faults.
/// Ownership: owns the inner engine.
/// Threads: as the inner engine.
class FaultyFileEngine final : public FileEngine {
 public:
  FaultyFileEngine(std::unique_ptr<FileEngine> inner, Executor& executor, FileFaults faults)
      : executor_(executor),
        faults_(faults),
        random_(faults.seed),
        late_(executor.create_queue({.name = "late answers", .capacity = 1 << 20}).value()),
        inner_(std::move(inner)) {}

  [[nodiscard]] FileFaultCounts counts() const {
    const MutexLock lock(mutex_);
    return counts_;
  }

  [[nodiscard]] FileEngineCapabilities capabilities() const override {
    FileEngineCapabilities capabilities = inner_->capabilities();
    capabilities.name = "faulty " + capabilities.name;
    return capabilities;
  }

  [[nodiscard]] Status reach_device(const FileRef& file) override {
    return inner_->reach_device(file);
  }

  [[nodiscard]] Result<FileBatch> submit(std::vector<FileRequest> requests) override {
    if (requests.empty()) return inner_->submit({});
    const auto work = std::make_shared<Work>(executor_, std::move(requests));
    std::vector<FileRequest> passed;
    std::vector<size_t> passed_index;
    for (size_t i = 0; i < work->items.size(); ++i) {
      Item& item = work->items[i];
      item.fate = draw(item.request);
      if (item.fate.kind == Kind::kFail) continue;
      passed.push_back(altered(item));
      passed_index.push_back(i);
    }
    KVBM_ASSIGN_OR_RETURN(work->inner, inner_->submit(std::move(passed)));
    FileBatch batch = work->source.batch();
    for (size_t i = 0; i < work->items.size(); ++i) {
      if (work->items[i].fate.kind == Kind::kFail) answer(work, i, {injected("failed"), 0});
    }
    for (size_t j = 0; j < passed_index.size(); ++j) {
      work->inner.completion(j).on_done(
          [this, work, i = passed_index[j], j](const Status&) noexcept {
            answer(work, i, outcome(work->items[i], work->inner.result(j)));
          });
    }
    return batch;
  }

 private:
  enum class Kind { kNone, kFail, kTorn, kLie, kBitFlip };

  struct Fate {
    Kind kind = Kind::kNone;
    uint64_t where = 0;  ///< bytes that move, or the bit that is flipped
    std::optional<Duration> delay = std::nullopt;
  };

  struct Item {
    FileRequest request;
    Fate fate = {};
    HostPages flipped = {};  ///< what is written in place of the request's own bytes
  };

  struct Work {
    Work(Executor& executor, std::vector<FileRequest> requests)
        : source(executor, requests.size()) {
      items.reserve(requests.size());
      for (FileRequest& request : requests) items.push_back({.request = std::move(request)});
    }
    std::vector<Item> items;
    const FileBatchSource source;
    FileBatch inner;
  };

  /// Answers when it is destroyed: in time, or early with the engine.
  class Answer {
   public:
    Answer(std::shared_ptr<Work> work, size_t index, FileResult result)
        : work_(std::move(work)), index_(index), result_(std::move(result)) {}
    Answer(Answer&&) noexcept = default;
    Answer& operator=(Answer&&) = delete;
    ~Answer() {
      if (work_ != nullptr) work_->source.finish(index_, std::move(result_));
    }

   private:
    std::shared_ptr<Work> work_;
    size_t index_;
    FileResult result_;
  };

  static Status injected(const char* what) {
    return make_error(ErrorCode::kIo, std::string("injected: the request ") + what);
  }

  Fate draw(const FileRequest& request) {
    const uint64_t size = request.size_bytes();
    const uint64_t unit = request.file.alignment.offset;
    const MutexLock lock(mutex_);
    Fate fate;
    const auto part = [&] { return random_.uniform(size / unit) * unit; };
    if (random_.chance(faults_.fail)) {
      fate.kind = Kind::kFail;
      ++counts_.failed;
    } else if (size >= unit && random_.chance(faults_.torn)) {
      fate = {.kind = Kind::kTorn, .where = part()};
      ++counts_.torn;
    } else if (size >= unit && random_.chance(faults_.lie)) {
      fate = {.kind = Kind::kLie, .where = part()};
      ++counts_.lies;
    } else if (size > 0 && random_.chance(faults_.bit_flip)) {
      fate = {.kind = Kind::kBitFlip, .where = random_.uniform(size * 8)};
      ++counts_.bit_flips;
    }
    if (random_.chance(faults_.delay)) {
      fate.delay =
          Duration(random_.uniform_between(0, static_cast<uint64_t>(faults_.max_delay.count())));
      ++counts_.delays;
    }
    return fate;
  }

  /// What the inner engine is asked in place of the request.
  static FileRequest altered(Item& item) {
    FileRequest request = item.request;
    if (item.fate.kind == Kind::kTorn || item.fate.kind == Kind::kLie) {
      uint64_t left = item.fate.where;
      for (IoBuffer& buffer : request.buffers) {
        buffer.size = std::min<uint64_t>(buffer.size, left);
        left -= buffer.size;
      }
    } else if (item.fate.kind == Kind::kBitFlip && request.op == FileOp::kWrite) {
      item.flipped = HostPages::map({.size_bytes = request.size_bytes()}).value();
      std::byte* to = item.flipped.data();
      for (const IoBuffer& buffer : request.buffers) {
        if (buffer.size > 0) std::memcpy(to, buffer.data, buffer.size);
        to += buffer.size;
      }
      item.flipped.data()[item.fate.where / 8] ^= std::byte{1} << (item.fate.where % 8);
      request.buffers = {{.data = item.flipped.data(), .size = item.flipped.size_bytes()}};
    }
    return request;
  }

  static FileResult outcome(Item& item, FileResult inner) {
    if (!inner.status) return inner;
    if (item.fate.kind == Kind::kTorn) return {injected("was torn"), inner.bytes};
    if (item.fate.kind == Kind::kBitFlip && item.request.op == FileOp::kRead) {
      uint64_t at = item.fate.where / 8;
      for (const IoBuffer& buffer : item.request.buffers) {
        if (at < buffer.size) {
          buffer.data[at] ^= std::byte{1} << (item.fate.where % 8);
          break;
        }
        at -= buffer.size;
      }
    }
    return inner;
  }

  void answer(const std::shared_ptr<Work>& work, size_t index, FileResult result) noexcept {
    Answer answer(work, index, std::move(result));
    const std::optional<Duration> delay = work->items[index].fate.delay;
    if (delay.has_value()) {
      static_cast<void>(late_->post_after(*delay, [answer = std::move(answer)] {}));
    }
  }

  Executor& executor_;
  const FileFaults faults_;
  mutable Mutex mutex_{LockRank::kMemory, "tests.faulty_file_engine"};
  Random random_ KVBM_GUARDED_BY(mutex_);
  FileFaultCounts counts_ KVBM_GUARDED_BY(mutex_);
  std::unique_ptr<TaskQueue> late_;
  std::unique_ptr<FileEngine> inner_;  // first to go: what it still answers may go to late_
};

}  // namespace kvbm::testing
