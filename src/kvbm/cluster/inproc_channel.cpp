// SPDX-License-Identifier: Apache-2.0
#include "kvbm/cluster/inproc_channel.hpp"

#include <utility>

#include "kvbm/base/latch.hpp"
#include "kvbm/base/mutex.hpp"

namespace kvbm {

struct InprocChannel::Inbox {
  Mutex mutex{LockRank::kCluster, "cluster.inbox"};
  std::vector<OpResult> results KVBM_GUARDED_BY(mutex);
  std::shared_ptr<Latch> arrival KVBM_GUARDED_BY(mutex);  // set by the next result
};

InprocChannel::InprocChannel(Executor& executor, std::vector<Worker*> workers)
    : executor_(executor), workers_(std::move(workers)), inbox_(std::make_shared<Inbox>()) {
  for (Worker* worker : workers_) {
    worker->on_result([inbox = inbox_](OpResult&& result) {
      std::shared_ptr<Latch> arrival;
      {
        MutexLock lock(inbox->mutex);
        inbox->results.push_back(std::move(result));
        arrival = std::exchange(inbox->arrival, nullptr);
      }
      if (arrival) arrival->set();
    });
  }
}

InprocChannel::~InprocChannel() {
  for (Worker* worker : workers_) worker->on_result(nullptr);
}

void InprocChannel::send(std::span<const CopyOp> ops, std::span<const OpId> cancels) {
  for (Worker* worker : workers_) {
    if (!ops.empty()) worker->submit(ops);
    if (!cancels.empty()) worker->cancel(cancels);
  }
}

ChannelInbox InprocChannel::receive() {
  ChannelInbox inbox;
  MutexLock lock(inbox_->mutex);
  inbox.results.swap(inbox_->results);
  return inbox;
}

bool InprocChannel::wait(TimePoint deadline) {
  auto arrival = std::make_shared<Latch>();
  {
    MutexLock lock(inbox_->mutex);
    if (!inbox_->results.empty()) return true;
    inbox_->arrival = arrival;
  }
  return executor_.wait(*arrival, deadline);
}

}  // namespace kvbm
