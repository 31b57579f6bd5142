// SPDX-License-Identifier: Apache-2.0
// SIGINT and SIGTERM as a flag, so that a command ends by itself and cleans up.
#pragma once

#include <atomic>

namespace kvbm {

/// The first signal sets the flag; a second one ends the program at once, as it does by default.
/// A system call that waits is interrupted.
void catch_interrupts();

[[nodiscard]] const std::atomic<bool>& interrupted() noexcept;

/// 128 + the signal that set the flag, 0 before.
[[nodiscard]] int interrupt_status() noexcept;

}  // namespace kvbm
