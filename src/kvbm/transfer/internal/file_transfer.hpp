// SPDX-License-Identifier: Apache-2.0
// FileTransfer: blocks between a layout with addresses and the slots of a file, one request a
// block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "kvbm/base/mutex.hpp"
#include "kvbm/base/result.hpp"
#include "kvbm/device/checksum.hpp"
#include "kvbm/device/stream.hpp"
#include "kvbm/layout/physical_layout.hpp"
#include "kvbm/memory/file_engine.hpp"
#include "kvbm/transfer/internal/page_pool.hpp"
#include "kvbm/transfer/internal/transfer.hpp"

namespace kvbm::internal {

/// Memory that file requests read into or write from directly: a run of a layout with its address.
struct AddressedRun {
  std::byte* base = nullptr;  ///< of block 0
  uint64_t block_stride = 0;
  uint64_t bytes = 0;
  uint32_t count = 1;
  uint64_t stride = 0;
};

/// Contract: a layout with addresses.
[[nodiscard]] std::vector<AddressedRun> addressed_runs(const PhysicalLayout& layout);

/// Errors: kUnsupported (the file is direct and its slots are not multiples of what it asks).
[[nodiscard]] Status check_slot_alignment(const PhysicalLayout& file);
/// Whether the file takes these addresses and lengths; those of a direct file are to be aligned.
[[nodiscard]] bool takes_runs(const PhysicalLayout& file, const std::vector<AddressedRun>& runs);

/// The same for memory of a device that the host cannot address, which goes without buffers and has
/// its checksums computed by the device. Errors: kUnsupported (says what to choose).
[[nodiscard]] Status check_device_runs(const PhysicalLayout& file,
                                       const std::vector<AddressedRun>& runs);

struct FileTransferSpec {
  FileOp op = FileOp::kRead;
  BufferPlace place = BufferPlace::kHost;  ///< of the memory; kDevice: see check_device_runs()
  PhysicalLayout file;
  std::vector<AddressedRun> runs;
  std::vector<BlockId> slots;   ///< of the file
  std::vector<BlockId> blocks;  ///< of the memory
  std::vector<SlotTag> tags;
};

/// What a direct file does not take goes through buffers of whole slots.
///
/// Memory of a device that the host cannot address: before anything is written the device computes
/// all checksums, after everything is read it does again, and only then blocks have arrived.
///
/// Each turn takes the answers that have come, then prepares and submits some more blocks.
/// Checksums are computed in turns, so on the threads of the manager's queue, never on those of the
/// file engine, unless there is no memory for a task. Without memory, blocks that are not under way
/// fail. Threads: see Transfer.
class FileTransfer final : public Transfer {
 public:
  /// Errors: kExhausted (no memory for headers or slots).
  [[nodiscard]] static Result<std::shared_ptr<FileTransfer>> create(TransferFrame frame,
                                                                    FileTransferSpec spec);

  void run() noexcept override;

 private:
  struct Prepared {
    uint32_t position = 0;
    uint32_t buffer = 0;
  };
  struct Answer {
    Prepared block;
    FileResult result;
  };

  FileTransfer(TransferFrame frame, FileTransferSpec spec, size_t window, bool through_buffers,
               PooledPages buffers);

  void stop() noexcept override;

  void turn(bool stopped, bool& engine_full);
  void go_on(bool engine_full, bool knows_of_stop);
  void retry();
  void prepare_next();
  bool submit_prepared();
  void submitted(const FileBatch& batch) noexcept;
  void deliver(Answer answer) noexcept;
  void take_answer(const Answer& answer) noexcept;

  // Checksums of the device, for some positions at a time; meanwhile nothing else is under way.
  struct Round;
  void begin_round(std::vector<uint32_t> positions) noexcept;
  Status put_round_on_stream();
  Status put_round_on(const std::shared_ptr<Round>& round, StreamRef stream,
                      bool& has_event) noexcept;
  void leave_round(Round& round, int parts) noexcept;
  void take_round() noexcept;
  void give_up(const Error& error) noexcept;
  void fail(uint32_t position, const Error& error) noexcept;
  void conclude() noexcept;

  [[nodiscard]] bool on_device() const noexcept { return spec_.place == BufferPlace::kDevice; }
  [[nodiscard]] uint32_t num_blocks() const noexcept {
    return static_cast<uint32_t>(spec_.blocks.size());
  }
  [[nodiscard]] FileRequest request_for(const Prepared& block) const;
  [[nodiscard]] Status check_answer(const Answer& answer);
  [[nodiscard]] Status check_read(const Prepared& block);
  [[nodiscard]] uint64_t payload_checksum(const Prepared& block) const;
  [[nodiscard]] std::span<std::byte> buffer_of(const Prepared& block) const;
  [[nodiscard]] std::span<std::byte> header_of(const Prepared& block) const;
  [[nodiscard]] std::span<std::byte> payload_of(const Prepared& block) const;
  /// Calls piece(address, bytes) for a block, in canonical order.
  template <class F>
  void for_each_piece(BlockId block, F&& piece) const;

  const FileTransferSpec spec_;
  const SlotGeometry geometry_;
  const bool through_buffers_;
  const PooledPages buffers_;  ///< a header, or a whole slot, for each request in flight

  // Of whoever runs. Each position is, at any moment, in one of these: not below next_, prepared_,
  // submitted, answers_ or the inbox, ended. The vectors have room for all they will ever hold.
  uint32_t next_ = 0;               ///< the first position that is not prepared
  size_t num_submitted_ = 0;        ///< without an answer
  std::vector<Prepared> prepared_;  ///< oldest first
  std::vector<uint32_t> free_buffers_;
  std::vector<Answer> answers_;
  size_t num_taken_ = 0;  ///< of answers_
  uint64_t bytes_ = 0;
  /// Of a device's blocks by position: computed before a write, in the header after a read.
  std::vector<uint64_t> checksums_;
  bool knows_checksums_ = false;     ///< before a write
  std::vector<uint32_t> unchecked_;  ///< positions that were read, with checksums still to compare
  std::shared_ptr<Round> round_;     ///< null unless the device computes checksums
  std::optional<Error> first_failure_;
  uint32_t first_failed_ = 0;

  Mutex mutex_{LockRank::kTransfer, "transfer.file"};
  std::vector<Answer> inbox_ KVBM_GUARDED_BY(mutex_);
  bool running_ KVBM_GUARDED_BY(mutex_) = true;    ///< a run() is on its way
  bool retrying_ KVBM_GUARDED_BY(mutex_) = false;  ///< and it comes after a pause
  bool stopped_ KVBM_GUARDED_BY(mutex_) = false;
};

}  // namespace kvbm::internal
