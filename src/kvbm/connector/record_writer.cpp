// SPDX-License-Identifier: Apache-2.0
#include "kvbm/connector/record_writer.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <exception>
#include <string>
#include <system_error>
#include <utility>

#include "kvbm/base/contract.hpp"
#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

constexpr uint64_t kMinFileBytes = 4096;

Status write_all(int fd, std::span<const std::byte> bytes, const std::filesystem::path& path) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      return errno_error(format_text("cannot write the record {}", path.native()),
                         written < 0 ? errno : EIO);
    }
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return {};
}

}  // namespace

std::string record_file_name(uint64_t number) {
  std::string digits = std::to_string(number);
  if (digits.size() < 8) digits.insert(0, 8 - digits.size(), '0');
  return "record-" + digits + ".kvbr";
}

Result<std::unique_ptr<RecordWriter>> RecordWriter::create(RecordWriterOptions options,
                                                           RecordHeader header, Executor& executor,
                                                           MetricsRegistry& metrics, LogSink& log) {
  const auto split = split_groups(header.connector.groups);
  KVBM_CONTRACT(split && split->specs() == header.tiers.groups,
                "the tiers have the groups of the connector, or their parts");
  if (options.max_files == 0 || options.max_file_bytes < kMinFileBytes) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("a record has at least one file of {} bytes", kMinFileBytes));
  }
  // What exists, if only as a link, is somebody else's.
  if (::mkdir(options.folder.c_str(), 0700) != 0) {
    return errno_error(
        format_text("cannot make the folder {} for the record", options.folder.native()), errno);
  }
  std::unique_ptr<RecordWriter> writer(
      new RecordWriter(std::move(options), std::move(header), metrics, log));
  KVBM_ASSIGN_OR_RETURN(writer->queue_, executor.create_queue({.name = "kvbm-record"}));
  std::vector<std::byte> bytes = encode(writer->header_);
  writer->file_bytes_ = bytes.size();
  KVBM_TRY(writer->write({.file = writer->header_.file, .begins_file = true, .bytes = bytes}));
  return writer;
}

RecordWriter::RecordWriter(RecordWriterOptions options, RecordHeader header,
                           MetricsRegistry& metrics, LogSink& log)
    : options_(std::move(options)),
      log_(log),
      recorded_(metrics.counter(
          {"kvbm_recorded_calls_total", "Calls that the flight recorder has taken.", "", {}})),
      dropped_(metrics.counter({"kvbm_record_dropped_calls_total",
                                "Calls that the flight recorder has not written.",
                                "",
                                {}})),
      header_(std::move(header)) {}

RecordWriter::~RecordWriter() {
  if (queue_) queue_->stop();
}

void RecordWriter::append(RecordedCall&& call, const RecordCounts& counts) {
  call.number = next_call_++;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] != header_.counts[i]) {
      call.counts.push_back({static_cast<RecordCounter>(i), counts[i]});
    }
  }
  std::vector<std::byte> bytes = encode(call);
  const bool begins_file = file_bytes_ + bytes.size() > options_.max_file_bytes;
  if (begins_file) {
    RecordHeader next = header_;
    ++next.file;
    next.first_call = call.number;
    std::vector<std::byte> beginning = encode(next);
    beginning.insert(beginning.end(), bytes.begin(), bytes.end());
    bytes = std::move(beginning);
  }
  // Of a call that is dropped too: nothing else will tell.
  shrink_places(header_.tiers, call.inputs);
  const uint64_t num_bytes = bytes.size();
  if (!accept(header_.file + (begins_file ? 1 : 0), begins_file, std::move(bytes), 1)) {
    dropped_.add();
    return;
  }
  recorded_.add();
  if (begins_file) {
    ++header_.file;
    file_bytes_ = 0;
  }
  file_bytes_ += num_bytes;
  header_.counts = counts;
}

/// Whether there was room.
bool RecordWriter::accept(uint64_t file, bool begins_file, std::vector<std::byte>&& bytes,
                          uint64_t num_calls) {
  {
    const MutexLock lock(mutex_);
    if (has_failed_ || buffered_bytes_ + bytes.size() > options_.max_buffer_bytes) return false;
    buffered_bytes_ += bytes.size();
    if (!begins_file && !pending_.empty()) {
      Chunk& last = pending_.back();
      last.bytes.insert(last.bytes.end(), bytes.begin(), bytes.end());
      last.num_calls += num_calls;
    } else {
      pending_.push_back({file, begins_file, num_calls, std::move(bytes)});
    }
    if (is_writing_) return true;
    is_writing_ = true;
  }
  // One task at a time, so that there is room in the queue.
  static_cast<void>(queue_->post([this] { write_pending(); }));
  return true;
}

void RecordWriter::write_pending() noexcept {
  for (;;) {
    std::vector<Chunk> chunks;
    bool failed = false;
    {
      const MutexLock lock(mutex_);
      chunks.swap(pending_);
      failed = has_failed_;
      if (chunks.empty()) {
        is_writing_ = false;
        return;
      }
    }
    uint64_t num_bytes = 0;
    for (const Chunk& chunk : chunks) {
      num_bytes += chunk.bytes.size();
      if (failed) {
        dropped_.add(chunk.num_calls);
      } else if (const Status written = write(chunk); !written) {
        failed = true;
        dropped_.add(chunk.num_calls);
        KVBM_LOG_ERROR(log_, "connector", "nothing is recorded from now on: {}",
                       written.error().describe());
      }
    }
    const MutexLock lock(mutex_);
    buffered_bytes_ -= num_bytes;
    has_failed_ = failed;
  }
}

Status RecordWriter::write(const Chunk& chunk) {
  const std::filesystem::path path = path_of(chunk.file);
  if (chunk.begins_file) {
    if (chunk.file >= options_.max_files) {
      std::error_code ignored;  // somebody else may have taken it away
      std::filesystem::remove(path_of(chunk.file - options_.max_files), ignored);
    }
    file_ = File(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!file_) {
      return errno_error(format_text("cannot make the record {}", path.native()), errno);
    }
  }
  return write_all(file_.fd(), chunk.bytes, path);
}

std::filesystem::path RecordWriter::path_of(uint64_t file) const {
  return options_.folder / record_file_name(file);
}

}  // namespace kvbm
