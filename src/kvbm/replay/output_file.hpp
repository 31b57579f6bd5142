// SPDX-License-Identifier: Apache-2.0
// OutputFile: a file that appears whole or not at all.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "kvbm/base/result.hpp"
#include "kvbm/memory/file.hpp"

namespace kvbm {

/// Written under a temporary name in the same folder and renamed by commit(); without a commit, and
/// after any error, nothing is left and what was there before is untouched. A link is followed.
/// Something that is not a regular file (a pipe, a terminal, anything under /dev) is written to
/// directly.
/// Ownership: move-only.
/// Threads: one thread at a time.
class OutputFile {
 public:
  /// Errors: those of open(2), in words that name `path`; kInvalidArgument for a directory.
  [[nodiscard]] static Result<OutputFile> create(const std::filesystem::path& path);

  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&& other) noexcept;
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile();

  /// Errors: kIo, kExhausted (no space). Nothing else can be done with the file then.
  [[nodiscard]] Status append(std::string_view text);

  /// Contract: called once, with no error before it.
  [[nodiscard]] Status commit();

 private:
  OutputFile() = default;
  void discard() noexcept;

  File file_;
  std::filesystem::path asked_;      ///< as the caller wrote it, for messages
  std::filesystem::path target_;     ///< where links lead
  std::filesystem::path temporary_;  ///< empty: written directly, or nothing to clean up
};

/// Writes `text` as the whole of `path`, or leaves everything as it was.
[[nodiscard]] Status write_file(const std::filesystem::path& path, std::string_view text);

}  // namespace kvbm
