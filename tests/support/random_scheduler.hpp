// SPDX-License-Identifier: Apache-2.0
// RandomScheduler: an engine's scheduler that makes requests up, and calls a connector as it must.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvbm/base/random.hpp"
#include "kvbm/connector/connector_step.hpp"
#include "kvbm/connector/scheduler_half.hpp"

namespace kvbm::testing {

/// Requests share prefixes, are computed in chunks, preempted, aborted in the middle of a load, and
/// end. What the blocks hold is nobody's concern.
/// Ownership: borrows the half, which outlives it.
class RandomScheduler {
 public:
  struct Options {
    std::vector<uint32_t> block_tokens = {4};  ///< by layer group
    uint32_t engine_blocks = 64;               ///< one pool for all groups
    uint32_t num_chains = 5;                   ///< families of requests with a common prefix
  };
  /// Runs a step on the workers; gives the loads that have ended with it.
  using RunStep = std::function<std::vector<EndedLoad>(std::span<const std::byte> step)>;

  RandomScheduler(SchedulerHalf& half, const Options& options, uint64_t seed, RunStep run_step)
      : half_(half), options_(options), random_(seed), run_step_(std::move(run_step)) {
    for (uint32_t i = 0; i < options_.engine_blocks; ++i) free_.emplace_back(i);
  }

  void act() {
    const uint64_t choice = random_.uniform(100);
    if (choice < 20) {
      arrive();
    } else if (choice < 35) {
      admit();
    } else if (choice < 80) {
      step();
    } else if (choice < 90) {
      end_one();
    } else if (choice < 94) {
      preempt();
    } else if (choice < 99) {
      half_.poll();
    } else {
      half_.reset();
    }
  }

  uint64_t num_loads = 0;
  uint64_t num_held = 0;  ///< requests that ended during their load
  uint64_t num_preempted = 0;

 private:
  enum class State { kWaiting, kLoading, kRunning };
  struct Request {
    uint64_t chain = 0;
    uint32_t num_tokens = 0;
    uint32_t num_computed = 0;
    State state = State::kWaiting;
    bool is_new = true;     // to the next step
    bool is_known = false;  // to the half
    std::vector<std::vector<BlockId>> blocks;
  };

  static Identity identity(uint64_t chain, uint32_t position) {
    return Identity::from_hashes(SequenceHash(chain), BlockHash(position), SequenceHash(0),
                                 position);
  }

  void extend(const std::string& name, const Request& request) {
    std::vector<Identity> next;
    const uint32_t end = request.num_tokens / std::ranges::min(options_.block_tokens);
    for (uint32_t i = half_.num_identities(name); i < end; ++i) {
      next.push_back(identity(request.chain, i));
    }
    std::optional<uint32_t> priority;
    if (random_.chance(0.1)) priority = static_cast<uint32_t>(random_.uniform(101));
    if (!next.empty()) half_.extend(name, next, priority);
  }

  void arrive() {
    Request request;
    request.chain = 1 + random_.uniform(options_.num_chains);
    request.num_tokens = static_cast<uint32_t>(random_.uniform_between(1, 40));
    requests_.emplace("request-" + std::to_string(++num_requests_), request);
    admit();
  }

  Request* any(State state, std::string& name) {
    std::vector<std::string> names;
    for (const auto& [each, request] : requests_) {
      if (request.state == state) names.push_back(each);
    }
    if (names.empty()) return nullptr;
    name = names[random_.uniform(names.size())];
    return &requests_.at(name);
  }

  void admit() {
    std::string name;
    Request* request = any(State::kWaiting, name);
    if (request == nullptr) return;
    request->is_known = true;
    extend(name, *request);
    const ExternalMatch offer = half_.match(name, 0, request->num_tokens);
    request->blocks.assign(num_groups(), {});
    if (random_.chance(0.05) || !take(*request, request->num_tokens)) return;  // asked again later
    const uint32_t external = random_.chance(0.9) ? offer.num_tokens : 0;
    const bool begun = half_.allocated(name, request->blocks, external).has_value();
    request->num_computed = begun ? external : 0;
    request->is_new = true;
    request->state =
        begun && external > 0 && offer.between_steps ? State::kLoading : State::kRunning;
    if (external > 0) ++num_loads;
  }

  [[nodiscard]] size_t num_groups() const { return options_.block_tokens.size(); }

  /// Gives the request blocks for so many tokens; false, and none, if there are too few.
  bool take(Request& request, uint32_t num_tokens) {
    std::vector<size_t> missing(num_groups());
    size_t all = 0;
    for (size_t group = 0; group < num_groups(); ++group) {
      const uint32_t size = options_.block_tokens[group];
      missing[group] = (num_tokens + size - 1) / size - request.blocks[group].size();
      all += missing[group];
    }
    if (free_.size() < all) return false;
    for (size_t group = 0; group < num_groups(); ++group) {
      const auto first = free_.end() - static_cast<std::ptrdiff_t>(missing[group]);
      request.blocks[group].insert(request.blocks[group].end(), first, free_.end());
      free_.erase(first, free_.end());
    }
    return true;
  }

  void give_back(Request& request) {
    for (const std::vector<BlockId>& blocks : request.blocks) {
      free_.insert(free_.begin(), blocks.begin(), blocks.end());
    }
    request.blocks.clear();
  }

  void step() {
    std::vector<ScheduledRequest> scheduled;
    for (auto& [name, request] : requests_) {
      if (request.state != State::kRunning || random_.chance(0.2)) continue;
      ScheduledRequest& next = scheduled.emplace_back();
      next.request = name;
      next.replaces_blocks = request.is_new;
      next.num_computed_tokens = request.num_computed;
      if (request.num_computed < request.num_tokens) {
        next.num_scheduled_tokens = static_cast<uint32_t>(
            random_.uniform_between(1, request.num_tokens - request.num_computed));
        next.blocks =
            request.is_new ? request.blocks : std::vector<std::vector<BlockId>>(num_groups());
      } else {
        // A token more, perhaps in new blocks.
        const std::vector<std::vector<BlockId>> had = request.blocks;
        if (!take(request, request.num_tokens + 1)) {
          scheduled.pop_back();
          continue;
        }
        next.num_scheduled_tokens = 1;
        ++request.num_tokens;
        next.blocks.resize(num_groups());
        for (size_t group = 0; group < num_groups(); ++group) {
          const size_t known = request.is_new ? 0 : had[group].size();
          next.blocks[group].assign(
              request.blocks[group].begin() + static_cast<std::ptrdiff_t>(known),
              request.blocks[group].end());
        }
        extend(name, request);
      }
      request.is_new = false;
      request.num_computed += next.num_scheduled_tokens;
    }
    for (const EndedLoad& ended : run_step_(half_.build_step(scheduled))) {
      const auto held = held_.find(ended.request);
      if (held != held_.end()) {
        give_back(held->second);
        held_.erase(held);
        continue;
      }
      Request& request = requests_.at(ended.request);
      request.state = State::kRunning;
      if (!ended.failed.empty()) request.num_computed = 0;
    }
  }

  void end_one() {
    if (requests_.empty()) return;
    auto it = requests_.begin();
    std::advance(it, static_cast<std::ptrdiff_t>(random_.uniform(requests_.size())));
    const bool holds = it->second.is_known && half_.finished(it->first);
    if (holds) {
      ++num_held;
      held_.insert(std::move(*it));
    } else {
      give_back(it->second);
    }
    requests_.erase(it);
  }

  void preempt() {
    std::string name;
    Request* request = any(State::kRunning, name);
    if (request == nullptr) return;
    give_back(*request);
    request->state = State::kWaiting;
    ++num_preempted;
  }

  SchedulerHalf& half_;
  const Options options_;
  Random random_;
  const RunStep run_step_;
  std::map<std::string, Request> requests_;
  std::map<std::string, Request> held_;  // ended, their load has not
  std::vector<BlockId> free_;
  uint64_t num_requests_ = 0;
};

}  // namespace kvbm::testing
