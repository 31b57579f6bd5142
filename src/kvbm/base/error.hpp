// SPDX-License-Identifier: Apache-2.0
// Error: what a failed operation says about itself.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <string_view>
#include <utility>

namespace kvbm {

/// Each code is defined by what the caller does next.
enum class ErrorCode : uint8_t {
  kInvalidArgument,  ///< fix the request; trying it again cannot help
  kNotFound,         ///< the named thing does not exist; create it or treat it as a miss
  kExhausted,        ///< no room now (blocks, memory, file space, queue); free some or try later
  kRejected,         ///< a policy refused (admission, budget, version); go on without the operation
  kUnavailable,      ///< the peer or service is gone or stopped; reconnect or do without it
  kTimeout,          ///< the deadline passed; the operation may still touch what it was given
  kCancelled,        ///< stopped on request or at shutdown; nothing to repair
  kIo,               ///< a file, disk or network operation failed; retry elsewhere
  kDevice,           ///< the accelerator failed; its context may be lost
  kCorrupt,          ///< bytes are not what was written; drop them, treat as a miss
  kUnsupported,      ///< this build or machine cannot; choose another way or turn the option on
  kInternal,         ///< a defect of kvbm; report it
};

/// The code in lower case words with underscores: "invalid_argument".
[[nodiscard]] std::string_view to_string(ErrorCode code) noexcept;

/// Which library the native code of an error belongs to.
enum class NativeDomain : uint8_t { kNone, kErrno, kCuda, kCufile, kUcx, kNixl };

[[nodiscard]] std::string_view to_string(NativeDomain domain) noexcept;

/// A code, a short message (what was asked, what was found, what to do) and, where a foreign
/// library or the kernel failed, its own number. Threads: a value; one thread at a time.
class Error {
 public:
  Error(ErrorCode code, std::string message) : message_(std::move(message)), code_(code) {}
  Error(ErrorCode code, std::string message, NativeDomain domain, int64_t native_code)
      : message_(std::move(message)), native_code_(native_code), code_(code), domain_(domain) {}

  /// An error of a system call: the code follows from `error_number`, kIo where nothing fits
  /// better.
  [[nodiscard]] static Error from_errno(std::string message, int error_number);

  [[nodiscard]] ErrorCode code() const noexcept { return code_; }
  [[nodiscard]] const std::string& message() const noexcept { return message_; }
  [[nodiscard]] int64_t native_code() const noexcept { return native_code_; }
  [[nodiscard]] NativeDomain native_domain() const noexcept { return domain_; }

  /// One line for a log: "io: cannot write slot 3 (errno 5: Input/output error)".
  [[nodiscard]] std::string describe() const;

  /// The same error with `context` before its message: "context: message".
  [[nodiscard]] Error with_context(std::string_view context) &&;

  friend bool operator==(const Error&, const Error&) = default;

 private:
  std::string message_;
  int64_t native_code_ = 0;
  ErrorCode code_;
  NativeDomain domain_ = NativeDomain::kNone;
};

std::ostream& operator<<(std::ostream& out, ErrorCode code);
std::ostream& operator<<(std::ostream& out, const Error& error);

}  // namespace kvbm
