// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/error.hpp"

#include <cerrno>
#include <ostream>
#include <system_error>

namespace kvbm {
namespace {

ErrorCode code_of_errno(int error_number) noexcept {
  switch (error_number) {
    case EINVAL:
    case ENAMETOOLONG:
      return ErrorCode::kInvalidArgument;
    case ENOENT:
    case ENXIO:
    case ENODEV:
      return ErrorCode::kNotFound;
    case ENOMEM:
    case ENOSPC:
    case EDQUOT:
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
      return ErrorCode::kExhausted;
    case EAGAIN:
    case EBUSY:
    case ECONNREFUSED:
    case ECONNRESET:
    case ECONNABORTED:
    case EHOSTUNREACH:
    case ENETUNREACH:
    case ENOTCONN:
    case EPIPE:
      return ErrorCode::kUnavailable;
    case ETIMEDOUT:
      return ErrorCode::kTimeout;
    case ECANCELED:
      return ErrorCode::kCancelled;
    case ENOSYS:
    case EOPNOTSUPP:
      return ErrorCode::kUnsupported;
    default:
      return ErrorCode::kIo;
  }
}

}  // namespace

std::string_view to_string(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "invalid_argument";
    case ErrorCode::kNotFound:
      return "not_found";
    case ErrorCode::kExhausted:
      return "exhausted";
    case ErrorCode::kRejected:
      return "rejected";
    case ErrorCode::kUnavailable:
      return "unavailable";
    case ErrorCode::kTimeout:
      return "timeout";
    case ErrorCode::kCancelled:
      return "cancelled";
    case ErrorCode::kIo:
      return "io";
    case ErrorCode::kDevice:
      return "device";
    case ErrorCode::kCorrupt:
      return "corrupt";
    case ErrorCode::kUnsupported:
      return "unsupported";
    case ErrorCode::kInternal:
      return "internal";
  }
  return "unknown";
}

std::string_view to_string(NativeDomain domain) noexcept {
  switch (domain) {
    case NativeDomain::kNone:
      return "none";
    case NativeDomain::kErrno:
      return "errno";
    case NativeDomain::kCuda:
      return "cuda";
    case NativeDomain::kCufile:
      return "cufile";
    case NativeDomain::kUcx:
      return "ucx";
    case NativeDomain::kNixl:
      return "nixl";
  }
  return "unknown";
}

Error Error::from_errno(std::string message, int error_number) {
  return Error(code_of_errno(error_number), std::move(message), NativeDomain::kErrno, error_number);
}

std::string Error::describe() const {
  std::string text(to_string(code_));
  text.append(": ").append(message_);
  if (domain_ == NativeDomain::kNone) return text;
  text.append(" (").append(to_string(domain_)).append(" ").append(std::to_string(native_code_));
  if (domain_ == NativeDomain::kErrno) {
    text.append(": ").append(std::generic_category().message(static_cast<int>(native_code_)));
  }
  text.append(")");
  return text;
}

Error Error::with_context(std::string_view context) && {
  message_.insert(0, ": ").insert(0, context);
  return std::move(*this);
}

std::ostream& operator<<(std::ostream& out, ErrorCode code) { return out << to_string(code); }
std::ostream& operator<<(std::ostream& out, const Error& error) { return out << error.describe(); }

}  // namespace kvbm
