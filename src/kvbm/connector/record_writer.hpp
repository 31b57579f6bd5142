// SPDX-License-Identifier: Apache-2.0
// RecordWriter: appends recorded calls to a ring of files, off the caller's thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "kvbm/base/executor.hpp"
#include "kvbm/base/log.hpp"
#include "kvbm/base/metrics.hpp"
#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/connector/record.hpp"
#include "kvbm/memory/file.hpp"

namespace kvbm {

/// Units: bytes.
struct RecordWriterOptions {
  std::filesystem::path folder{};  ///< is made, for this user alone
  uint32_t max_files = 8;          ///< the oldest one goes when another is begun; at least 1
  uint64_t max_file_bytes = uint64_t{64} << 20;    ///< the last call of a file ends below it
  uint64_t max_buffer_bytes = uint64_t{16} << 20;  ///< not yet written
};

/// The name of a file in a record's folder: "record-00000007.kvbr".
[[nodiscard]] std::string record_file_name(uint64_t number);

/// append() puts bytes into memory and never waits for the disk. When the buffer is full, or the
/// disk has failed, calls are dropped and counted; their numbers are missing in the record.
///
/// Ownership: owns its thread and its files; borrows metrics and log, which outlive it, as the
/// executor does. Destruction writes what is in the buffer.
/// Threads: one thread at a time.
class RecordWriter {
 public:
  /// Makes the folder and begins the first file. Errors: kInvalidArgument, those of mkdir(2) and
  /// open(2), those of Executor::create_queue.
  [[nodiscard]] static Result<std::unique_ptr<RecordWriter>> create(RecordWriterOptions options,
                                                                    RecordHeader header,
                                                                    Executor& executor,
                                                                    MetricsRegistry& metrics,
                                                                    LogSink& log);
  ~RecordWriter();
  RecordWriter(const RecordWriter&) = delete;
  RecordWriter& operator=(const RecordWriter&) = delete;

  /// Numbers the call, notes which counts have changed, and appends it.
  void append(RecordedCall&& call, const RecordCounts& counts);

 private:
  // Bytes for one file; the first of a file begins with its header.
  struct Chunk {
    uint64_t file = 0;
    bool begins_file = false;
    uint64_t num_calls = 0;
    std::vector<std::byte> bytes;
  };

  RecordWriter(RecordWriterOptions options, RecordHeader header, MetricsRegistry& metrics,
               LogSink& log);
  bool accept(uint64_t file, bool begins_file, std::vector<std::byte>&& bytes, uint64_t num_calls);
  void write_pending() noexcept;
  Status write(const Chunk& chunk);
  [[nodiscard]] std::filesystem::path path_of(uint64_t file) const;

  const RecordWriterOptions options_;
  LogSink& log_;
  Counter& recorded_;
  Counter& dropped_;

  // Of the caller's thread.
  RecordHeader header_;  // of the next file: counts, places and first call go along
  uint64_t next_call_ = 1;
  uint64_t file_bytes_ = 0;  // of the file that was begun last

  // Of the writing thread.
  File file_;

  Mutex mutex_{LockRank::kConnector, "connector.record"};
  std::vector<Chunk> pending_ KVBM_GUARDED_BY(mutex_);
  uint64_t buffered_bytes_ KVBM_GUARDED_BY(mutex_) = 0;
  bool is_writing_ KVBM_GUARDED_BY(mutex_) = false;
  bool has_failed_ KVBM_GUARDED_BY(mutex_) = false;

  std::unique_ptr<TaskQueue> queue_;
};

}  // namespace kvbm
