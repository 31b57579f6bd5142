// SPDX-License-Identifier: Apache-2.0
#include "kvbm/cluster/inproc_channel.hpp"

#include <utility>

#include "kvbm/base/latch.hpp"
#include "kvbm/base/mutex.hpp"

namespace kvbm {

struct InprocChannel::Inbox {
  template <class T>
  void take(std::vector<T> ChannelInbox::*list, T value) {
    std::shared_ptr<Latch> next;
    {
      MutexLock lock(mutex);
      (content.*list).push_back(std::move(value));
      next = std::exchange(arrival, nullptr);
    }
    if (next) next->set();
  }

  Mutex mutex{LockRank::kCluster, "cluster.inbox"};
  ChannelInbox content KVBM_GUARDED_BY(mutex);
  std::shared_ptr<Latch> arrival KVBM_GUARDED_BY(mutex);  // set by what comes next
};

InprocChannel::InprocChannel(Executor& executor, std::vector<Worker*> workers)
    : executor_(executor), workers_(std::move(workers)), inbox_(std::make_shared<Inbox>()) {
  for (Worker* worker : workers_) {
    worker->on_result([inbox = inbox_](OpResult&& result) {
      inbox->take(&ChannelInbox::results, std::move(result));
    });
    worker->on_shrunk([inbox = inbox_](const ShrunkPlace& shrunk) {
      inbox->take(&ChannelInbox::shrunk, shrunk);
    });
  }
}

InprocChannel::~InprocChannel() {
  for (Worker* worker : workers_) {
    worker->on_result(nullptr);
    worker->on_shrunk(nullptr);
  }
}

void InprocChannel::send(std::span<const CopyOp> ops, std::span<const OpId> cancels) {
  for (Worker* worker : workers_) {
    if (!ops.empty()) worker->submit(ops);
    if (!cancels.empty()) worker->cancel(cancels);
  }
}

ChannelInbox InprocChannel::receive() {
  MutexLock lock(inbox_->mutex);
  return std::exchange(inbox_->content, {});
}

bool InprocChannel::wait(TimePoint deadline) {
  auto arrival = std::make_shared<Latch>();
  {
    MutexLock lock(inbox_->mutex);
    if (!inbox_->content.empty()) return true;
    inbox_->arrival = arrival;
  }
  return executor_.wait(*arrival, deadline);
}

}  // namespace kvbm
