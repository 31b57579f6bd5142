// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/error.hpp"

#include <cerrno>
#include <set>
#include <sstream>

#include <gtest/gtest.h>

namespace kvbm {
namespace {

TEST(Error, SaysWhatHappened) {
  const Error error(ErrorCode::kNotFound, "no block 7 in G2");
  EXPECT_EQ(error.code(), ErrorCode::kNotFound);
  EXPECT_EQ(error.message(), "no block 7 in G2");
  EXPECT_EQ(error.native_domain(), NativeDomain::kNone);
  EXPECT_EQ(error.native_code(), 0);
  EXPECT_EQ(error.describe(), "not_found: no block 7 in G2");
  std::ostringstream out;
  out << error << " / " << error.code();
  EXPECT_EQ(out.str(), "not_found: no block 7 in G2 / not_found");
}

TEST(Error, ShowsTheNativeCodeWithItsDomain) {
  EXPECT_EQ(Error(ErrorCode::kDevice, "copy failed", NativeDomain::kCuda, 700).describe(),
            "device: copy failed (cuda 700)");
  EXPECT_EQ(Error(ErrorCode::kUnavailable, "peer gone", NativeDomain::kUcx, -80).describe(),
            "unavailable: peer gone (ucx -80)");
  EXPECT_EQ(Error::from_errno("cannot write slot 3", EIO).describe(),
            "io: cannot write slot 3 (errno 5: Input/output error)");
}

TEST(Error, ErrnoGivesTheCodeThatTheCallerActsOn) {
  const auto code_of = [](int number) { return Error::from_errno("x", number).code(); };
  EXPECT_EQ(code_of(ENOENT), ErrorCode::kNotFound);
  EXPECT_EQ(code_of(ENOSPC), ErrorCode::kExhausted);
  EXPECT_EQ(code_of(ENOMEM), ErrorCode::kExhausted);
  EXPECT_EQ(code_of(EINVAL), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of(ECONNRESET), ErrorCode::kUnavailable);
  EXPECT_EQ(code_of(ETIMEDOUT), ErrorCode::kTimeout);
  EXPECT_EQ(code_of(ECANCELED), ErrorCode::kCancelled);
  EXPECT_EQ(code_of(ENOSYS), ErrorCode::kUnsupported);
  EXPECT_EQ(code_of(EACCES), ErrorCode::kIo);
  EXPECT_EQ(Error::from_errno("x", ENOENT).native_code(), ENOENT);
}

TEST(Error, ContextComesBeforeTheMessage) {
  const Error error = Error::from_errno("cannot open", ENOENT).with_context("disk store");
  EXPECT_EQ(error.message(), "disk store: cannot open");
  EXPECT_EQ(error.native_code(), ENOENT);
}

TEST(ErrorCode, EachHasItsOwnName) {
  std::set<std::string_view> names;
  for (int i = 0; i <= static_cast<int>(ErrorCode::kInternal); ++i) {
    names.insert(to_string(static_cast<ErrorCode>(i)));
  }
  EXPECT_EQ(names.size(), 12U);
  EXPECT_FALSE(names.contains("unknown"));
}

}  // namespace
}  // namespace kvbm
