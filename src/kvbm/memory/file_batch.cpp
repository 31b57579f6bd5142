// SPDX-License-Identifier: Apache-2.0
#include "kvbm/memory/file_batch.hpp"

#include <atomic>
#include <utility>
#include <vector>

#include "kvbm/base/contract.hpp"

namespace kvbm {
namespace internal {

/// What the engine and the holders of a batch share.
class FileBatchState {
 public:
  FileBatchState(Executor& executor, size_t num_requests) : finished_(num_requests) {
    sources_.reserve(num_requests);
    parts_.reserve(num_requests);
    for (size_t i = 0; i < num_requests; ++i) {
      parts_.push_back(sources_.emplace_back(executor).completion());
    }
    results_.resize(num_requests);
    whole_ = Completion::all(parts_);
  }

  [[nodiscard]] size_t size() const noexcept { return parts_.size(); }
  [[nodiscard]] const Completion& whole() const noexcept { return whole_; }
  [[nodiscard]] const Completion& part(size_t index) const { return parts_.at(index); }
  [[nodiscard]] const FileResult& result(size_t index) const { return results_.at(index); }
  [[nodiscard]] uint64_t bytes() const noexcept { return bytes_.load(std::memory_order_acquire); }

  /// False if it was finished before.
  bool finish(size_t index, FileResult result) {
    if (finished_[index].exchange(true, std::memory_order_relaxed)) return false;
    bytes_.fetch_add(result.bytes, std::memory_order_release);
    results_[index] = std::move(result);
    sources_[index].resolve(results_[index].status);  // publishes the result
    return true;
  }

 private:
  std::vector<CompletionSource> sources_;
  std::vector<Completion> parts_;
  std::vector<FileResult> results_;
  std::vector<std::atomic<bool>> finished_;
  std::atomic<uint64_t> bytes_{0};
  Completion whole_ = Completion::ready();
};

}  // namespace internal

size_t FileBatch::size() const noexcept { return state_ == nullptr ? 0 : state_->size(); }

Completion FileBatch::completion() const {
  return state_ == nullptr ? Completion::ready() : state_->whole();
}

Completion FileBatch::completion(size_t index) const {
  KVBM_CONTRACT(index < size(), "the batch has no request of that index");
  return state_->part(index);
}

const FileResult& FileBatch::result(size_t index) const {
  KVBM_CONTRACT(index < size(), "the batch has no request of that index");
  KVBM_CONTRACT(state_->part(index).done(), "the result of a request was asked before it was done");
  return state_->result(index);
}

uint64_t FileBatch::bytes() const noexcept { return state_ == nullptr ? 0 : state_->bytes(); }

struct FileBatchSource::Keeper {
  explicit Keeper(std::shared_ptr<internal::FileBatchState> batch_state)
      : state(std::move(batch_state)) {}
  Keeper(const Keeper&) = delete;
  Keeper& operator=(const Keeper&) = delete;
  ~Keeper() {
    for (size_t i = 0; i < state->size(); ++i) {
      if (state->part(i).done()) continue;
      state->finish(i, {.status = make_error(ErrorCode::kInternal,
                                             "a file request was dropped before it had an outcome"),
                        .bytes = 0});
    }
  }

  const std::shared_ptr<internal::FileBatchState> state;
};

FileBatchSource::FileBatchSource(Executor& executor, size_t num_requests)
    : keeper_(std::make_shared<Keeper>(
          std::make_shared<internal::FileBatchState>(executor, num_requests))) {}

FileBatch FileBatchSource::batch() const { return FileBatch(keeper_->state); }

void FileBatchSource::finish(size_t index, FileResult result) const {
  KVBM_CONTRACT(index < keeper_->state->size(), "the batch has no request of that index");
  // A callback may drop the last copy of this source: keep the state until it has returned.
  const std::shared_ptr<Keeper> keeper = keeper_;
  const bool finished = keeper->state->finish(index, std::move(result));
  KVBM_CONTRACT(finished, "a file request was finished before");
}

}  // namespace kvbm
