// SPDX-License-Identifier: Apache-2.0
#include "kvbm/transfer/internal/file_transfer.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <numeric>
#include <utility>

#include "kvbm/base/hash.hpp"
#include "kvbm/base/text.hpp"
#include "kvbm/transfer/internal/failure.hpp"

namespace kvbm::internal {
namespace {

/// Blocks that one turn prepares: few, so that the engine gets work early and other transfers a
/// turn.
constexpr size_t kBlocksPerTurn = 8;
constexpr size_t kLoggedFailures = 4;
/// When the engine is full of other people's requests.
constexpr Duration kEngineFullPause = std::chrono::milliseconds(1);
/// When all streams are held: each for as long as a submission takes.
constexpr Duration kHeldPause = std::chrono::microseconds(50);
/// Of one transfer, for whole slots.
constexpr uint64_t kMaxBufferBytes = uint64_t{16} << 20;

uint64_t buffer_bytes(const SlotGeometry& slots, bool through_buffers) {
  return through_buffers ? slots.slot_bytes : slots.header_bytes;
}

bool is_aligned(uint64_t value, uint64_t unit) { return value % unit == 0; }

}  // namespace

std::vector<AddressedRun> addressed_runs(const PhysicalLayout& layout) {
  std::vector<AddressedRun> runs;
  for (const BlockRun& run : layout.runs()) {
    const PageMap& map = layout.page_maps()[run.page_map];
    runs.push_back({.base = map.region().base() + run.offset,
                    .block_stride = map.block_stride(),
                    .bytes = run.bytes,
                    .count = run.count,
                    .stride = run.stride});
  }
  return runs;
}

Status check_slot_alignment(const PhysicalLayout& file) {
  const MemoryRegion& region = file.page_maps().front().region();
  const FileAlignment alignment = region.file().alignment;
  const SlotGeometry& slots = *file.slots();
  if (!is_aligned(region.file_offset(), alignment.offset) ||
      !is_aligned(slots.slot_bytes, alignment.offset) ||
      !is_aligned(slots.header_bytes, alignment.offset)) {
    return make_error(
        ErrorCode::kUnsupported,
        format_text("a direct file asks for multiples of {} bytes, its slots have headers of "
                    "{} bytes, {} bytes in all: choose SlotOptions accordingly",
                    alignment.offset, slots.header_bytes, slots.slot_bytes));
  }
  return {};
}

bool takes_runs(const PhysicalLayout& file, const std::vector<AddressedRun>& runs) {
  const FileAlignment alignment = file.page_maps().front().region().file().alignment;
  return std::ranges::all_of(runs, [&](const AddressedRun& run) {
    return is_aligned(run.bytes, alignment.offset) &&
           is_aligned(reinterpret_cast<uintptr_t>(run.base), alignment.memory) &&
           is_aligned(run.block_stride, alignment.memory) &&
           is_aligned(run.stride, alignment.memory);
  });
}

Status check_device_runs(const PhysicalLayout& file, const std::vector<AddressedRun>& runs) {
  if (!file.page_maps().front().region().file().alignment.direct()) {
    return make_error(ErrorCode::kUnsupported,
                      "GPU Direct Storage takes files that are open for direct I/O, which this one "
                      "is not: try DirectIo::kTry on a file system that has it");
  }
  const bool fits = std::ranges::all_of(runs, [](const AddressedRun& run) {
    return is_aligned(run.bytes, kChecksumUnit) &&
           is_aligned(reinterpret_cast<uintptr_t>(run.base), kChecksumAlignment) &&
           is_aligned(run.block_stride, kChecksumAlignment) &&
           is_aligned(run.stride, kChecksumAlignment);
  });
  if (fits && takes_runs(file, runs)) return {};
  return make_error(ErrorCode::kUnsupported,
                    "the runs of the blocks in device memory are not what direct I/O and checksums "
                    "of the device take: choose a format with runs of multiples of 4 KiB");
}

/// Some blocks of which the device computes checksums.
struct FileTransfer::Round {
  explicit Round(size_t num_blocks) : sums(std::make_shared<BlockChecksums>(num_blocks)) {}

  std::vector<uint32_t> positions = {};
  const std::shared_ptr<BlockChecksums> sums;
  Status refusal = {};         ///< of the call
  std::optional<Event> event;  ///< behind them, if they were queued
  /// Who may still touch it: the device, the event, and whoever asks the device.
  std::atomic<int> parts{3};
};

Result<std::shared_ptr<FileTransfer>> FileTransfer::create(TransferFrame frame,
                                                           FileTransferSpec spec) {
  const FileEngineCapabilities engine = frame.context->config().files->capabilities();
  const bool through_buffers =
      spec.place == BufferPlace::kHost && !takes_runs(spec.file, spec.runs);
  const uint64_t each = buffer_bytes(*spec.file.slots(), through_buffers);
  size_t window = std::min(
      {frame.context->config().file_requests_per_transfer, engine.max_pending, frame.num_blocks});
  if (through_buffers) window = std::min<size_t>(window, kMaxBufferBytes / each);
  window = std::max<size_t>(window, 1);
  // A page's address is one that direct files take.
  KVBM_ASSIGN_OR_RETURN(PooledPages buffers, frame.context->pages().take(window * each));
  return std::shared_ptr<FileTransfer>(new FileTransfer(std::move(frame), std::move(spec), window,
                                                        through_buffers, std::move(buffers)));
}

FileTransfer::FileTransfer(TransferFrame frame, FileTransferSpec spec, size_t window,
                           bool through_buffers, PooledPages buffers)
    : Transfer(std::move(frame)),
      spec_(std::move(spec)),
      geometry_(*spec_.file.slots()),
      through_buffers_(through_buffers),
      buffers_(std::move(buffers)),
      free_buffers_(window) {
  std::iota(free_buffers_.rbegin(), free_buffers_.rend(), 0U);
  // Answers arrive where nothing may fail: there is room for all that can be outstanding.
  prepared_.reserve(window);
  answers_.reserve(window);
  if (on_device()) {
    checksums_.resize(spec_.blocks.size());
    unchecked_.reserve(spec_.blocks.size());
  }
  const MutexLock lock(mutex_);
  inbox_.reserve(window);
}

void FileTransfer::run() noexcept {
  bool stopped = false;
  {
    const MutexLock lock(mutex_);
    stopped = stopped_;
    if (num_taken_ == answers_.size()) {
      num_taken_ = 0;
      answers_.clear();
      answers_.swap(inbox_);
    }
  }
  if (round_ != nullptr) take_round();
  bool engine_full = false;
  try {
    if (on_device() && spec_.op == FileOp::kWrite && !knows_checksums_ && !stopped && next_ == 0 &&
        context().now() < deadline()) {
      std::vector<uint32_t> all(num_blocks());
      std::iota(all.begin(), all.end(), 0U);
      return begin_round(std::move(all));
    }
    turn(stopped, engine_full);
  } catch (...) {
    give_up(current_failure());
  }
  if (num_submitted_ == 0 && prepared_.empty() && next_ == num_blocks()) {
    if (!unchecked_.empty()) return begin_round(std::exchange(unchecked_, {}));
    conclude();
  } else {
    go_on(engine_full, stopped);
  }
}

void FileTransfer::turn(bool stopped, bool& engine_full) {
  for (size_t i = 0; i < kBlocksPerTurn && num_taken_ < answers_.size(); ++i) {
    take_answer(answers_[num_taken_++]);
  }
  if (stopped) {
    give_up(Error(ErrorCode::kCancelled, "the transfer manager was destroyed before its turn"));
  } else if (context().now() >= deadline()) {
    give_up(Error(ErrorCode::kTimeout, "the deadline passed before its turn"));
  }
  for (size_t i = 0; i < kBlocksPerTurn && next_ < num_blocks() && !free_buffers_.empty(); ++i) {
    prepare_next();
  }
  engine_full = !submit_prepared();
}

/// Arranges for the next run(): at once, after a pause, or with the next answer.
void FileTransfer::go_on(bool engine_full, bool knows_of_stop) {
  const bool can_prepare = !engine_full && next_ < num_blocks() && !free_buffers_.empty();
  bool now = can_prepare || num_taken_ < answers_.size();
  bool later = false;
  {
    const MutexLock lock(mutex_);
    now = now || !inbox_.empty() || (stopped_ && !knows_of_stop);
    if (!now) {
      later = retrying_ = num_submitted_ == 0;  // then no answer will come
      running_ = later;
    }
  }
  const auto self = std::static_pointer_cast<FileTransfer>(shared_from_this());
  if (now) return context().schedule(self);
  if (!later) return;
  const Status posted = guarded([&] {
    return context().post_after(kEngineFullPause, [weak = std::weak_ptr<FileTransfer>(self)] {
      if (const std::shared_ptr<FileTransfer> waiting = weak.lock()) waiting->retry();
    });
  });
  if (!posted) retry();
}

/// Ends the pause, unless stop() has.
void FileTransfer::retry() {
  {
    const MutexLock lock(mutex_);
    if (!std::exchange(retrying_, false)) return;
  }
  context().schedule(shared_from_this());
}

void FileTransfer::stop() noexcept {
  {
    const MutexLock lock(mutex_);
    stopped_ = true;
  }
  retry();
}

void FileTransfer::prepare_next() {
  const Prepared block{next_, free_buffers_.back()};
  if (spec_.op == FileOp::kWrite) {
    if (through_buffers_) {
      std::byte* to = payload_of(block).data();
      for_each_piece(spec_.blocks[block.position], [&to](const std::byte* data, uint64_t bytes) {
        std::memcpy(to, data, bytes);
        to += bytes;
      });
      // No byte of what the buffer held before goes to the disk.
      const uint64_t used = geometry_.header_bytes + geometry_.payload_bytes;
      std::ranges::fill(buffer_of(block).subspan(used), std::byte{0});
    }
    encode_slot_header({.header_bytes = geometry_.header_bytes,
                        .payload_bytes = geometry_.payload_bytes,
                        .tag = spec_.tags[block.position],
                        .payload_checksum = payload_checksum(block)},
                       header_of(block));
  }
  ++next_;
  free_buffers_.pop_back();
  prepared_.push_back(block);
}

/// Hands over as many as the engine takes. False if it is full.
bool FileTransfer::submit_prepared() {
  size_t count = prepared_.size();
  while (count > 0) {
    std::vector<FileRequest> requests;
    requests.reserve(count);
    for (size_t i = 0; i < count; ++i) requests.push_back(request_for(prepared_[i]));
    Result<FileBatch> batch = context().config().files->submit(std::move(requests));
    if (batch) {
      submitted(*batch);
      return prepared_.empty();
    }
    if (batch.error().code() != ErrorCode::kExhausted) {
      give_up(std::move(batch).error());
      return true;
    }
    count /= 2;
  }
  return prepared_.empty();
}

void FileTransfer::submitted(const FileBatch& batch) noexcept {
  const auto self = std::static_pointer_cast<FileTransfer>(shared_from_this());
  num_submitted_ += batch.size();
  for (size_t index = 0; index < batch.size(); ++index) {
    const auto answer = [self, batch, index, block = prepared_[index]](const Status&) noexcept {
      const FileResult& result = batch.result(index);
      self->deliver({block, {.status = copy_of(result.status), .bytes = result.bytes}});
    };
    const Completion& done = batch.completion(index);
    const Status heard = guarded([&]() -> Status {
      done.on_done(answer);
      return {};
    });
    if (heard) continue;
    // No memory to be called back, so it is waited for: its memory is in use until then.
    static_cast<void>(guarded([&] { return done.wait(); }));
    if (done.done()) answer({});
  }
  prepared_.erase(prepared_.begin(), prepared_.begin() + static_cast<ptrdiff_t>(batch.size()));
}

/// On a thread of the engine.
void FileTransfer::deliver(Answer answer) noexcept {
  {
    const MutexLock lock(mutex_);
    inbox_.push_back(std::move(answer));
    if (std::exchange(running_, true)) return;
  }
  context().schedule(shared_from_this());
}

void FileTransfer::take_answer(const Answer& answer) noexcept {
  --num_submitted_;
  const Status status = guarded([&] { return check_answer(answer); });
  if (status && on_device() && spec_.op == FileOp::kRead) {
    unchecked_.push_back(answer.block.position);  // has room
  } else if (status) {
    bytes_ += geometry_.payload_bytes;
  } else {
    fail(answer.block.position, status.error());
  }
  free_buffers_.push_back(answer.block.buffer);
}

Status FileTransfer::check_answer(const Answer& answer) {
  if (!answer.result.status) return copy_of(answer.result.status);
  const uint64_t planned =
      through_buffers_ ? geometry_.slot_bytes : geometry_.header_bytes + geometry_.payload_bytes;
  if (answer.result.bytes != planned) {
    return make_error(ErrorCode::kInternal,
                      format_text("the file engine moved {} of {} bytes and reported no failure",
                                  answer.result.bytes, planned));
  }
  return spec_.op == FileOp::kRead ? check_read(answer.block) : Status();
}

/// Whatever the header says instead of what it should, the block is not there: kCorrupt.
Status FileTransfer::check_read(const Prepared& block) {
  const Result<SlotHeader> header = decode_slot_header(header_of(block));
  if (!header) return make_error(ErrorCode::kCorrupt, header.error().message());
  KVBM_TRY(check_slot_header(*header, geometry_, spec_.tags[block.position]));
  if (on_device()) {
    checksums_[block.position] = header->payload_checksum;
    return {};
  }
  if (payload_checksum(block) != header->payload_checksum) {
    return make_error(ErrorCode::kCorrupt, "the checksum of the block does not match its bytes");
  }
  if (through_buffers_) {
    const std::byte* from = payload_of(block).data();
    for_each_piece(spec_.blocks[block.position], [&from](std::byte* data, uint64_t bytes) {
      std::memcpy(data, from, bytes);
      from += bytes;
    });
  }
  return {};
}

void FileTransfer::begin_round(std::vector<uint32_t> positions) noexcept {
  const Status begun = guarded([&]() -> Status {
    auto round = std::make_shared<Round>(positions.size());
    round->positions.swap(positions);
    round_ = std::move(round);
    return put_round_on_stream();
  });
  if (begun) return;
  // Not on its way, and none will come.
  if (round_ != nullptr) {
    round_->refusal = copy_of(begun);
    take_round();
  } else if (spec_.op == FileOp::kWrite) {
    give_up(begun.error());
  } else {
    for (const uint32_t position : positions) fail(position, begun.error());
  }
  conclude();
}

/// Errors: only if it is not on its way.
Status FileTransfer::put_round_on_stream() {
  const Result<StreamPool::Held> held = context().streams().take(frame().route);
  if (!held) {
    return context().post_after(kHeldPause, [weak = weak_from_this()] {
      const auto self = std::static_pointer_cast<FileTransfer>(weak.lock());
      if (self == nullptr) return;
      const Status again = guarded([&] { return self->put_round_on_stream(); });
      if (again) return;
      self->round_->refusal = copy_of(again);
      self->run();
    });
  }
  const std::shared_ptr<Round> round = round_;
  bool has_event = false;
  round->refusal = put_round_on(round, held->stream, has_event);
  context().streams().give_back(*held);
  leave_round(*round, has_event ? 1 : 2);
  return {};
}

/// The device keeps its share of the checksums until it has computed or dropped them, so their end
/// is known even where no event can be recorded.
Status FileTransfer::put_round_on(const std::shared_ptr<Round>& round, StreamRef stream,
                                  bool& has_event) noexcept {
  return guarded([&]() -> Status {
    const auto self = std::static_pointer_cast<FileTransfer>(shared_from_this());
    ChecksumBatch batch;
    // First of all: from here on this part is left, whatever happens; without memory for the share
    // at once.
    batch.checksums = std::shared_ptr<BlockChecksums>(
        round->sums.get(),
        [self, round](BlockChecksums*) noexcept { self->leave_round(*round, 1); });
    for (const uint32_t position : round->positions) {
      batch.blocks.push_back(spec_.blocks[position]);
    }
    for (const AddressedRun& run : spec_.runs) {
      batch.pieces.push_back({.data = run.base,
                              .block_stride = run.block_stride,
                              .bytes = run.bytes,
                              .count = run.count,
                              .stride = run.stride});
    }
    KVBM_TRY(context().device().checksum(stream, std::move(batch)));
    // Closes the group, so that its failure does not fail whoever comes next.
    round->event = context().device().record(stream);
    round->event->on_done([self, round](const Status&) noexcept { self->leave_round(*round, 1); });
    has_event = true;
    return {};
  });
}

void FileTransfer::leave_round(Round& round, int parts) noexcept {
  if (round.parts.fetch_sub(parts, std::memory_order_acq_rel) == parts) {
    context().schedule(shared_from_this());
  }
}

void FileTransfer::take_round() noexcept {
  const std::shared_ptr<Round> round = std::exchange(round_, nullptr);
  const size_t num_known = round->sums->num_known();
  const Status missing = guarded([&]() -> Status {
    if (num_known == round->positions.size()) return {};
    if (!round->refusal) return copy_of(round->refusal);
    if (round->event && round->event->done() && !round->event->status()) {
      return round->event->status();
    }
    return make_error(ErrorCode::kDevice, "the device dropped the checksums of the blocks");
  });
  if (spec_.op == FileOp::kWrite) {
    if (!missing) return give_up(missing.error());
    for (size_t i = 0; i < num_known; ++i) checksums_[round->positions[i]] = round->sums->at(i);
    knows_checksums_ = true;
    return;
  }
  const Error differs = failure(ErrorCode::kCorrupt,
                                "the checksum of the block does not match its bytes in the device");
  for (size_t i = 0; i < round->positions.size(); ++i) {
    const uint32_t position = round->positions[i];
    if (i >= num_known) {
      fail(position, missing.error());
    } else if (round->sums->at(i) != checksums_[position]) {
      fail(position, differs);
    } else {
      bytes_ += geometry_.payload_bytes;
    }
  }
}

void FileTransfer::give_up(const Error& error) noexcept {
  for (const Prepared& block : prepared_) {
    free_buffers_.push_back(block.buffer);
    fail(block.position, error);
  }
  prepared_.clear();
  while (next_ < num_blocks()) fail(next_++, error);
}

void FileTransfer::fail(uint32_t position, const Error& error) noexcept {
  if (error.code() == ErrorCode::kCorrupt) context().metrics().corrupt_blocks().add();
  if (failed().size() < kLoggedFailures) {
    static_cast<void>(guarded([&]() -> Status {
      KVBM_LOG_WARNING(context().log(), "transfer", "{}: block {}, slot {}: {}", frame().route,
                       spec_.blocks[position], spec_.slots[position], error.describe());
      return {};
    }));
  }
  failed().push_back(position);
  if (!first_failure_ || position < first_failed_) {
    first_failed_ = position;
    first_failure_ = copy_of(error);
  }
}

void FileTransfer::conclude() noexcept {
  TransferResult result;
  result.bytes = bytes_;
  result.failed = std::move(failed());
  std::ranges::sort(result.failed);
  if (first_failure_) {
    try {
      result.status =
          make_error(Error(*first_failure_)
                         .with_context(format_text("{} of {} blocks failed, first slot {}",
                                                   result.failed.size(), num_blocks(),
                                                   spec_.slots[first_failed_])));
    } catch (...) {
      result.status = make_error(std::move(*first_failure_));
    }
  }
  finish(std::move(result));
}

template <class F>
void FileTransfer::for_each_piece(BlockId block, F&& piece) const {
  for (const AddressedRun& run : spec_.runs) {
    for (uint32_t k = 0; k < run.count; ++k) {
      piece(run.base + block.value() * run.block_stride + k * run.stride, run.bytes);
    }
  }
}

FileRequest FileTransfer::request_for(const Prepared& block) const {
  const MemoryRegion slot = spec_.file.slot(spec_.slots[block.position]);
  const std::span<std::byte> buffer = buffer_of(block);
  FileRequest request{
      .op = spec_.op, .file = slot.file(), .offset = slot.file_offset(), .buffers = {}};
  request.buffers.push_back({buffer.data(), buffer.size()});
  if (through_buffers_) return request;
  for_each_piece(spec_.blocks[block.position], [&](std::byte* data, uint64_t bytes) {
    request.buffers.push_back({data, bytes, spec_.place});
  });
  return request;
}

uint64_t FileTransfer::payload_checksum(const Prepared& prepared) const {
  if (through_buffers_) return checksum(payload_of(prepared));
  if (on_device()) return checksums_[prepared.position];
  const BlockId block = spec_.blocks[prepared.position];
  if (spec_.runs.size() == 1 && spec_.runs.front().count == 1) {
    const AddressedRun& run = spec_.runs.front();
    return checksum({run.base + block.value() * run.block_stride, run.bytes});
  }
  Xxh3Stream stream(kChecksumSeed);
  for_each_piece(block, [&](const std::byte* data, uint64_t bytes) {
    stream.update({data, bytes});
  });
  return stream.digest();
}

std::span<std::byte> FileTransfer::buffer_of(const Prepared& block) const {
  const uint64_t each = buffer_bytes(geometry_, through_buffers_);
  return {buffers_.data() + block.buffer * each, each};
}

std::span<std::byte> FileTransfer::header_of(const Prepared& block) const {
  return buffer_of(block).first(geometry_.header_bytes);
}

std::span<std::byte> FileTransfer::payload_of(const Prepared& block) const {
  return buffer_of(block).subspan(geometry_.header_bytes, geometry_.payload_bytes);
}

}  // namespace kvbm::internal
