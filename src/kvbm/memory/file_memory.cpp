// SPDX-License-Identifier: Apache-2.0
#include "kvbm/memory/file_memory.hpp"

#include <utility>

#include "kvbm/memory/internal/anonymous_file.hpp"

namespace kvbm {

Result<FileMemory> FileMemory::create(const FileOptions& options) {
  KVBM_ASSIGN_OR_RETURN(internal::AnonymousFile made,
                        internal::create_anonymous_file(options, internal::FileCalls::system()));
  return FileMemory(std::move(made.file), options.size_bytes, made.reserved);
}

}  // namespace kvbm
