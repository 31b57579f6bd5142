// SPDX-License-Identifier: Apache-2.0
// OutputFile: a file that appears whole or not at all.
#pragma once

#include <atomic>
#include <filesystem>
#include <string>
#include <string_view>

#include "kvbm/base/result.hpp"
#include "kvbm/memory/file.hpp"

namespace kvbm {

/// Written under a temporary name in the same folder and renamed by commit(); without a commit, and
/// after any error, nothing is left and what was there before is untouched. A link is followed,
/// even to where nothing is yet. What is replaced passes on its owner and its rights.
/// Something that is not a regular file (a pipe, a terminal, anything under /dev) is written to
/// directly; create() waits for the reader of a named pipe.
/// Ownership: move-only; borrows the flag.
/// Threads: one thread at a time.
class OutputFile {
 public:
  /// `interrupted` is set by a signal handler and ends every wait; null: never.
  /// Errors: those of open(2), in words that name `path`; kInvalidArgument for a directory;
  /// kCancelled.
  [[nodiscard]] static Result<OutputFile> create(const std::filesystem::path& path,
                                                 const std::atomic<bool>* interrupted = nullptr);

  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&& other) noexcept;
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile();

  /// The canonical path of the file that commit() puts in place; empty where text is written
  /// directly.
  [[nodiscard]] const std::filesystem::path& target() const noexcept { return target_; }

  /// Errors: kIo, kExhausted (no space), kCancelled (a pipe stayed full until the flag was set).
  /// Nothing else can be done with the file then.
  [[nodiscard]] Status append(std::string_view text);

  /// Contract: called once, with no error before it.
  [[nodiscard]] Status commit();

 private:
  OutputFile() = default;
  void discard() noexcept;

  File file_;
  std::filesystem::path asked_;      ///< as the caller wrote it, for messages
  std::filesystem::path target_;     ///< where links lead; empty: written directly
  std::filesystem::path temporary_;  ///< empty: written directly, or nothing to clean up
  const std::atomic<bool>* interrupted_ = nullptr;
};

}  // namespace kvbm
