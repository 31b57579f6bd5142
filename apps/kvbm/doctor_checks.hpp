// SPDX-License-Identifier: Apache-2.0
// DoctorCheck: one line of `kvbm doctor`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace kvbm {

enum class DoctorStatus : uint8_t {
  kOk,
  kWarn,     ///< works, but slower or with less room than it could
  kMissing,  ///< something that kvbm can use is not here
};

[[nodiscard]] std::string_view to_string(DoctorStatus status) noexcept;

struct DoctorFinding {
  DoctorStatus status = DoctorStatus::kOk;
  std::string found;
  std::string mend;  ///< what to do about it; empty if there is nothing to do
};

struct DoctorOptions {
  std::filesystem::path disk_dir;  ///< where G3 would lie
};

/// Looks at one thing of this machine or this build. It changes nothing, or removes what it made.
struct DoctorCheck {
  std::string_view name;
  DoctorFinding (*look)(const DoctorOptions& options);
};

/// All of them, in the order of the lines. A new one is a function and a row in doctor_checks.cpp.
[[nodiscard]] std::span<const DoctorCheck> doctor_checks() noexcept;

}  // namespace kvbm
