// SPDX-License-Identifier: Apache-2.0
// FaultyRemoteAgent: an agent whose operations fail, stop half-way, lie or answer late, as a seed
// says.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kvbm/base/clock.hpp"
#include "kvbm/base/executor.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/random.hpp"
#include "kvbm/transfer/remote_agent.hpp"

namespace kvbm::testing {

/// Chances from 0 to 1, for each operation that has blocks; at most one of the first three.
struct RemoteFaults {
  uint64_t seed = 1;
  double fail = 0;   ///< kUnavailable, nothing is moved
  double torn = 0;   ///< kUnavailable, some blocks are moved
  double lie = 0;    ///< some blocks are moved, and it says that it succeeded
  double delay = 0;  ///< answered later
  Duration max_delay = std::chrono::milliseconds(1);
};

struct RemoteFaultCounts {
  uint64_t failed = 0;
  uint64_t torn = 0;
  uint64_t lies = 0;
  uint64_t delays = 0;
};

/// Ownership: owns the inner agent; the executor outlives it. Threads: as any agent.
class FaultyRemoteAgent final : public RemoteAgent {
 public:
  FaultyRemoteAgent(std::unique_ptr<RemoteAgent> inner, Executor& executor,
                    const RemoteFaults& faults)
      : executor_(executor),
        faults_(faults),
        random_(faults.seed),
        late_(executor
                  .create_queue(
                      {.name = "late-agent", .capacity = inner->capabilities().max_pending + 1})
                  .value()),
        inner_(std::move(inner)) {}

  [[nodiscard]] RemoteFaultCounts counts() const {
    const MutexLock lock(mutex_);
    return counts_;
  }

  [[nodiscard]] const std::string& name() const noexcept override { return inner_->name(); }
  [[nodiscard]] RemoteAgentCapabilities capabilities() const override {
    return inner_->capabilities();
  }
  [[nodiscard]] Result<AgentMemoryId> register_memory(
      const AgentMemory& memory, std::span<const MemoryRegion> regions) override {
    return inner_->register_memory(memory, regions);
  }
  [[nodiscard]] Result<Completion> unregister_memory(AgentMemoryId id) override {
    return inner_->unregister_memory(id);
  }
  [[nodiscard]] Result<AgentMetadata> metadata() const override { return inner_->metadata(); }
  Status add_peer(std::string_view peer, std::span<const std::byte> metadata) override {
    return inner_->add_peer(peer, metadata);
  }
  Status remove_peer(std::string_view peer) override { return inner_->remove_peer(peer); }
  [[nodiscard]] std::vector<RemoteNotification> take_notifications() override {
    return inner_->take_notifications();
  }

  [[nodiscard]] Result<Completion> submit(RemoteRequest request) override {
    const Fate fate = draw(request);
    if (fate.kind != Kind::kNone) {
      request.notification = std::nullopt;
      request.local = first(*request.local, fate.blocks);
      request.remote = first(*request.remote, fate.blocks);
    }
    CompletionSource source(executor_);
    Completion completion = source.completion();
    KVBM_ASSIGN_OR_RETURN(const Completion inner, inner_->submit(std::move(request)));
    inner.on_done([this, fate, source = std::make_shared<CompletionSource>(std::move(source))](
                      const Status& status) mutable noexcept {
      Answer answer(std::move(source), outcome(fate, status));
      if (!fate.delay) return;
      static_cast<void>(late_->post_after(*fate.delay, [answer = std::move(answer)] {}));
    });
    return completion;
  }

 private:
  enum class Kind { kNone, kFail, kTorn, kLie };

  struct Fate {
    Kind kind = Kind::kNone;
    size_t blocks = 0;
    std::optional<Duration> delay = std::nullopt;
  };

  /// Answers when it is destroyed: in time, or early with the agent.
  class Answer {
   public:
    Answer(std::shared_ptr<CompletionSource> source, Status status)
        : source_(std::move(source)), status_(std::move(status)) {}
    Answer(Answer&&) noexcept = default;
    Answer& operator=(Answer&&) = delete;
    ~Answer() {
      if (source_ != nullptr) source_->try_resolve(std::move(status_));
    }

   private:
    std::shared_ptr<CompletionSource> source_;
    Status status_;
  };

  static BlockList first(const std::vector<BlockId>& ids, size_t count) {
    return make_block_list({ids.begin(), ids.begin() + static_cast<ptrdiff_t>(count)});
  }

  static Status outcome(const Fate& fate, const Status& inner) {
    if (!inner || fate.kind == Kind::kNone || fate.kind == Kind::kLie) return inner;
    return make_error(ErrorCode::kUnavailable, "injected: the peer was lost");
  }

  Fate draw(const RemoteRequest& request) {
    const size_t blocks = request.local && request.remote
                              ? std::min(request.local->size(), request.remote->size())
                              : 0;
    Fate fate;
    if (blocks == 0) return fate;
    const MutexLock lock(mutex_);
    if (random_.chance(faults_.fail)) {
      fate.kind = Kind::kFail;
      ++counts_.failed;
    } else if (random_.chance(faults_.torn)) {
      fate = {.kind = Kind::kTorn, .blocks = random_.uniform(blocks)};
      ++counts_.torn;
    } else if (random_.chance(faults_.lie)) {
      fate = {.kind = Kind::kLie, .blocks = random_.uniform(blocks)};
      ++counts_.lies;
    }
    if (random_.chance(faults_.delay)) {
      fate.delay =
          Duration(random_.uniform_between(0, static_cast<uint64_t>(faults_.max_delay.count())));
      ++counts_.delays;
    }
    return fate;
  }

  Executor& executor_;
  const RemoteFaults faults_;
  mutable Mutex mutex_{LockRank::kTransfer, "tests.faulty_remote_agent"};
  Random random_ KVBM_GUARDED_BY(mutex_);
  RemoteFaultCounts counts_ KVBM_GUARDED_BY(mutex_);
  std::unique_ptr<TaskQueue> late_;
  std::unique_ptr<RemoteAgent> inner_;  // first to go: what it still answers may go to late_
};

}  // namespace kvbm::testing
