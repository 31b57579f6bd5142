// SPDX-License-Identifier: Apache-2.0
// Coroutine: the return type of a coroutine that nobody waits for.
#pragma once

#include <coroutine>
#include <exception>

namespace kvbm::testing {

/// Starts at once and is gone at its end. What it throws ends the process.
struct Coroutine {
  struct promise_type {  // NOLINT(readability-identifier-naming): the language's name
    Coroutine get_return_object() noexcept { return {}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_void() noexcept {}
    void unhandled_exception() noexcept { std::terminate(); }
  };
};

}  // namespace kvbm::testing
