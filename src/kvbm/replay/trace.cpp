// SPDX-License-Identifier: Apache-2.0
#include "kvbm/replay/trace.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include <nlohmann/json.hpp>

#include "kvbm/base/text.hpp"
#include "kvbm/memory/file.hpp"
#include "kvbm/replay/interruptible.hpp"
#include "kvbm/replay/output_file.hpp"

namespace kvbm {
namespace {

// Timestamps fit a Duration, and sums of token counts over any trace fit 64 bits.
constexpr uint64_t kMaxTimestampMs =
    static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) / 1'000'000;
constexpr uint64_t kMaxTokens = uint64_t{1} << 32;
constexpr uint64_t kMaxHashId = std::numeric_limits<uint64_t>::max();

constexpr size_t kReadBytes = 256 * kKiB;
constexpr size_t kWriteBytes = 256 * kKiB;

enum class Field : uint8_t { kTimestamp, kInputLength, kOutputLength, kHashIds, kOther };
constexpr size_t kNumFields = 4;
constexpr std::array<std::string_view, kNumFields> kFieldNames{"timestamp", "input_length",
                                                               "output_length", "hash_ids"};
constexpr std::array<uint64_t, kNumFields> kFieldLimits{kMaxTimestampMs, kMaxTokens, kMaxTokens,
                                                        kMaxHashId};

// Takes the events of one line. Every handler returns whether to go on; `reason` says why not.
class LineHandler {
 public:
  using json = nlohmann::json;

  void reset() {
    values_.fill(0);
    seen_.fill(false);
    hash_ids_.clear();
    reason_.clear();
    depth_ = 0;
    field_ = Field::kOther;
  }

  [[nodiscard]] const std::string& reason() const noexcept { return reason_; }
  [[nodiscard]] bool fail(std::string reason) {
    reason_ = std::move(reason);
    return false;
  }

  bool null() { return scalar("null"); }
  bool boolean(bool /*value*/) { return scalar("a boolean"); }
  bool string(json::string_t& /*value*/) { return scalar("a text"); }
  bool binary(json::binary_t& /*value*/) { return scalar("binary"); }
  // The parser calls this for numbers with a minus sign alone.
  bool number_integer(json::number_integer_t /*value*/) { return scalar("a negative number"); }

  bool number_unsigned(json::number_unsigned_t value) {
    if (depth_ == 0) return not_an_object();
    if (field_ == Field::kOther) return true;
    const auto index = static_cast<size_t>(field_);
    if (value > kFieldLimits[index]) return too_large();
    if (field_ != Field::kHashIds) {
      values_[index] = value;
    } else if (depth_ == 2) {
      hash_ids_.push_back(value);
    } else {
      return not_a_list("a number");
    }
    return true;
  }

  bool number_float(json::number_float_t /*value*/, const json::string_t& text) {
    if (text.find_first_not_of("0123456789") != std::string::npos) {
      return scalar(text.front() == '-' ? "a negative number"
                                        : "a number with a fraction or exponent");
    }
    if (depth_ == 0) return not_an_object();
    if (field_ == Field::kOther) return true;
    if (field_ == Field::kHashIds && depth_ == 1) return not_a_list("a number");
    return too_large();
  }

  bool start_object(size_t /*size*/) {
    if (depth_ > 0 && field_ != Field::kOther) return scalar("an object");
    ++depth_;
    return true;
  }

  bool end_object() {
    --depth_;
    return true;
  }

  bool key(json::string_t& name) {
    if (depth_ != 1) return true;  // inside a field that nobody reads
    const auto* found = std::find(kFieldNames.begin(), kFieldNames.end(), name);
    const auto index = static_cast<size_t>(found - kFieldNames.begin());
    field_ = static_cast<Field>(index);
    if (field_ == Field::kOther) return true;
    if (seen_[index]) return fail(format_text("field '{}' appears twice", *found));
    seen_[index] = true;
    return true;
  }

  bool start_array(size_t /*size*/) {
    if (depth_ == 0) return not_an_object();
    const bool starts_hash_ids = field_ == Field::kHashIds && depth_ == 1;
    if (field_ != Field::kOther && !starts_hash_ids) return scalar("a list");
    ++depth_;
    return true;
  }

  bool end_array() {
    --depth_;
    return true;
  }

  bool parse_error(size_t position, const std::string& last_token,
                   const nlohmann::detail::exception& /*error*/) {
    // What the parser saw last may be as long as the line.
    constexpr size_t kShownBytes = 40;
    std::string shown = last_token.size() <= kShownBytes
                            ? last_token
                            : "..." + last_token.substr(last_token.size() - kShownBytes);
    for (char& c : shown) {
      if (c < ' ' || c > '~') c = '?';
    }
    return fail(format_text("not JSON at byte {}, near '{}'", position, shown));
  }

  // The request, after a line was parsed to its end.
  [[nodiscard]] bool finish(TraceRequest& request) {
    for (size_t i = 0; i < kNumFields; ++i) {
      if (!seen_[i]) return fail(format_text("field '{}' is missing", kFieldNames[i]));
    }
    const auto value = [this](Field field) { return values_[static_cast<size_t>(field)]; };
    request.timestamp = std::chrono::milliseconds(static_cast<int64_t>(value(Field::kTimestamp)));
    request.input_length = value(Field::kInputLength);
    request.output_length = value(Field::kOutputLength);
    request.hash_ids.assign(hash_ids_.begin(), hash_ids_.end());
    return true;
  }

 private:
  bool not_an_object() { return fail("not a JSON object"); }
  bool not_a_list(std::string_view found) {
    return fail(format_text("field 'hash_ids' is {}, not a list of whole numbers", found));
  }
  bool too_large() {
    const auto index = static_cast<size_t>(field_);
    return fail(format_text("a number in field '{}' is too large: at most {} is possible",
                            kFieldNames[index], kFieldLimits[index]));
  }

  // A value that no field may have.
  bool scalar(std::string_view found) {
    if (depth_ == 0) return not_an_object();
    if (field_ == Field::kOther) return true;
    if (field_ == Field::kHashIds) {
      if (depth_ == 1) return not_a_list(found);
      return fail(format_text("field 'hash_ids' holds {}, not whole numbers alone", found));
    }
    return fail(format_text("field '{}' is {}, not a whole number",
                            kFieldNames[static_cast<size_t>(field_)], found));
  }

  std::array<uint64_t, kNumFields> values_{};
  std::array<bool, kNumFields> seen_{};
  std::vector<uint64_t> hash_ids_;
  std::string reason_;
  size_t depth_ = 0;  // of open objects and lists
  Field field_ = Field::kOther;
};

tl::unexpected<Error> cannot_read(std::string_view name, int error_number) {
  if (error_number == EINTR) {
    return make_error(ErrorCode::kCancelled, format_text("reading {} was interrupted", name));
  }
  return errno_error(format_text("cannot read {}", name), error_number);
}

bool is_blank(std::string_view line) noexcept {
  return line.find_first_not_of(" \t\r") == std::string_view::npos;
}

// The value that appears twice, if one does.
std::optional<uint64_t> find_repeated(const std::vector<uint64_t>& ids,
                                      std::vector<uint64_t>& scratch) {
  const auto falls = [](uint64_t a, uint64_t b) { return a >= b; };
  if (std::adjacent_find(ids.begin(), ids.end(), falls) == ids.end()) return std::nullopt;
  scratch.assign(ids.begin(), ids.end());
  std::sort(scratch.begin(), scratch.end());
  const auto repeated = std::adjacent_find(scratch.begin(), scratch.end());
  if (repeated == scratch.end()) return std::nullopt;
  return *repeated;
}

// What a request needs beyond its types; `last` is the timestamp of the request before. Nothing if
// all is well, else the reason.
std::optional<std::string> find_fault(const TraceRequest& request, std::chrono::milliseconds last,
                                      std::vector<uint64_t>& scratch) {
  if (request.hash_ids.empty() && request.input_length > 0) {
    return format_text("'hash_ids' is empty, but the input has {} tokens", request.input_length);
  }
  if (request.timestamp < last) {
    return format_text("timestamp {} comes after {}: sort the requests by time",
                       request.timestamp.count(), last.count());
  }
  if (const auto repeated = find_repeated(request.hash_ids, scratch)) {
    return format_text(
        "'hash_ids' names block {} twice: ids stand for a block and its whole prefix", *repeated);
  }
  return std::nullopt;
}

void append_number(std::string& out, uint64_t value) {
  std::array<char, 20> digits;
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
  out.append(digits.data(), end);
}

}  // namespace

class TraceReader::Impl {
 public:
  Impl(File file, std::string name, TraceLimits limits)
      : file_(std::move(file)), name_(std::move(name)), limits_(limits) {}
  Impl(std::string_view text, std::string_view name, TraceLimits limits)
      : pending_(text), at_end_(true), name_(name), limits_(limits) {}

  Result<bool> next(TraceRequest& request) {
    if (error_) return make_error(*error_);
    Result<bool> result = parse_next(request);
    if (!result) error_ = result.error();
    return result;
  }

 private:
  Result<bool> parse_next(TraceRequest& request) {
    if (limits_.max_requests && num_requests_ >= *limits_.max_requests) return false;
    std::optional<uint64_t> blank_line;
    while (true) {
      KVBM_ASSIGN_OR_RETURN(const auto line, next_line());
      if (!line) return false;
      if (is_blank(*line)) {
        if (!blank_line) blank_line = line_number_;
        continue;
      }
      // Blank lines end a file; among the requests they tell of a file that was damaged or put
      // together badly.
      if (blank_line) return broken(*blank_line, "the line is empty, and requests follow");
      handler_.reset();
      const bool parsed = nlohmann::json::sax_parse(line->begin(), line->end(), &handler_);
      if (!parsed || !handler_.finish(request)) return broken(line_number_, handler_.reason());
      if (const auto fault = find_fault(request, last_timestamp_, scratch_)) {
        return broken(line_number_, *fault);
      }
      last_timestamp_ = request.timestamp;
      ++num_requests_;
      return true;
    }
  }

  tl::unexpected<Error> broken(uint64_t line_number, std::string_view reason) const {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("{}, line {}: {}", name_, line_number, reason));
  }

  // The next line without its end; nothing after the last. Valid until the next call.
  Result<std::optional<std::string_view>> next_line() {
    size_t searched = 0;
    while (true) {
      const size_t end = pending_.find('\n', searched);
      const bool complete = end != std::string_view::npos;
      const size_t length = complete ? end : pending_.size();
      if (length > limits_.max_line_bytes) {
        return broken(line_number_ + 1, format_text("the line is longer than {}",
                                                    format_size(limits_.max_line_bytes)));
      }
      if (complete || (at_end_ && length > 0)) {
        const std::string_view line = pending_.substr(0, length);
        pending_.remove_prefix(complete ? length + 1 : length);
        ++line_number_;
        return line;
      }
      if (at_end_) return std::nullopt;
      searched = length;
      KVBM_TRY(read_more());
    }
  }

  // Appends to pending_, which moves to the front of the buffer.
  Status read_more() {
    const size_t kept = pending_.size();
    if (kept > 0 && pending_.data() != buffer_.data()) {
      std::memmove(buffer_.data(), pending_.data(), kept);
    }
    if (buffer_.size() < kept + kReadBytes) buffer_.resize(std::max(kept + kReadBytes, 2 * kept));
    ssize_t count = -1;
    while (count < 0) {
      if (const int failed = wait_unless_interrupted(file_.fd(), POLLIN, limits_.interrupted)) {
        return cannot_read(name_, failed);
      }
      count = ::read(file_.fd(), buffer_.data() + kept, buffer_.size() - kept);
      if (count < 0 && errno != EINTR && errno != EAGAIN) return cannot_read(name_, errno);
    }
    at_end_ = count == 0;
    pending_ = std::string_view(buffer_.data(), kept + static_cast<size_t>(count));
    return {};
  }

  File file_;
  std::vector<char> buffer_;
  std::string_view pending_;  // what was read and not yet handed out
  bool at_end_ = false;       // nothing can be read any more

  std::string name_;
  TraceLimits limits_;
  LineHandler handler_;
  std::vector<uint64_t> scratch_;
  std::chrono::milliseconds last_timestamp_{0};
  uint64_t line_number_ = 0;
  uint64_t num_requests_ = 0;
  std::optional<Error> error_;
};

TraceReader::TraceReader(std::unique_ptr<Impl> impl) noexcept : impl_(std::move(impl)) {}
TraceReader::TraceReader(TraceReader&&) noexcept = default;
TraceReader& TraceReader::operator=(TraceReader&&) noexcept = default;
TraceReader::~TraceReader() = default;

Result<TraceReader> TraceReader::open(const std::filesystem::path& path, TraceLimits limits) {
  struct stat found {};
  // The first writer of a pipe is waited for by next(), where a signal can end the wait.
  const bool regular = ::stat(path.c_str(), &found) == 0 && S_ISREG(found.st_mode);
  const int fd = open_unless_interrupted(path.c_str(), O_RDONLY | (regular ? 0 : O_NONBLOCK),
                                         limits.interrupted);
  if (fd < 0) return cannot_read(path.native(), errno);
  File file(fd);
  if (::fstat(fd, &found) != 0) return cannot_read(path.native(), errno);
  if (S_ISDIR(found.st_mode)) {
    return make_error(ErrorCode::kInvalidArgument,
                      format_text("cannot read {}: it is a directory", path.native()));
  }
  return TraceReader(std::make_unique<Impl>(std::move(file), path.native(), limits));
}

TraceReader TraceReader::over(std::string_view text, std::string_view name, TraceLimits limits) {
  return TraceReader(std::make_unique<Impl>(text, name, limits));
}

Result<bool> TraceReader::next(TraceRequest& request) { return impl_->next(request); }

namespace {

Result<Trace> read_all(TraceReader reader, std::string_view name) {
  Trace trace;
  while (true) {
    TraceRequest request;
    KVBM_ASSIGN_OR_RETURN(const bool found, reader.next(request));
    if (!found) break;
    trace.requests.push_back(std::move(request));
  }
  if (trace.requests.empty()) {
    return make_error(ErrorCode::kInvalidArgument, format_text("{} holds no request", name));
  }
  return trace;
}

}  // namespace

Result<Trace> read_trace(const std::filesystem::path& path, TraceLimits limits) {
  KVBM_ASSIGN_OR_RETURN(auto reader, TraceReader::open(path, limits));
  return read_all(std::move(reader), path.native());
}

Result<Trace> parse_trace(std::string_view text, std::string_view name, TraceLimits limits) {
  return read_all(TraceReader::over(text, name, limits), name);
}

void append_trace_line(std::string& out, const TraceRequest& request) {
  out.append("{\"timestamp\": ");
  append_number(out, static_cast<uint64_t>(request.timestamp.count()));
  out.append(", \"input_length\": ");
  append_number(out, request.input_length);
  out.append(", \"output_length\": ");
  append_number(out, request.output_length);
  out.append(", \"hash_ids\": [");
  for (size_t i = 0; i < request.hash_ids.size(); ++i) {
    if (i > 0) out.append(", ");
    append_number(out, request.hash_ids[i]);
  }
  out.append("]}\n");
}

Status write_trace(const Trace& trace, const std::filesystem::path& path,
                   const std::atomic<bool>* interrupted) {
  if (trace.requests.empty()) {
    return make_error(ErrorCode::kInvalidArgument, "a trace without requests is not written");
  }
  KVBM_ASSIGN_OR_RETURN(auto output, OutputFile::create(path, interrupted));
  std::string text;
  std::vector<uint64_t> scratch;
  std::chrono::milliseconds last{0};
  for (size_t i = 0; i < trace.requests.size(); ++i) {
    const TraceRequest& request = trace.requests[i];
    auto fault = find_fault(request, last, scratch);
    if (!fault && static_cast<uint64_t>(request.timestamp.count()) > kMaxTimestampMs) {
      fault = "the timestamp is too large";
    }
    if (!fault && std::max(request.input_length, request.output_length) > kMaxTokens) {
      fault = "a length is too large";
    }
    if (fault) {
      return make_error(ErrorCode::kInvalidArgument, format_text("request {}: {}", i, *fault));
    }
    last = request.timestamp;
    append_trace_line(text, request);
    if (text.size() >= kWriteBytes) {
      if (is_interrupted(interrupted)) {
        return make_error(ErrorCode::kCancelled,
                          format_text("writing {} was interrupted", path.native()));
      }
      KVBM_TRY(output.append(text));
      text.clear();
    }
  }
  KVBM_TRY(output.append(text));
  return output.commit();
}

}  // namespace kvbm
