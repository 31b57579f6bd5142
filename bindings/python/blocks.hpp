// SPDX-License-Identifier: Apache-2.0
// kvbm.Block, kvbm.Layer and kvbm.BlockList: blocks that Python holds, and their tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include <nanobind/nanobind.h>

#include "kvbm/base/contract.hpp"
#include "kvbm/layout/layout_config.hpp"

#include "bindings/python/held_block.hpp"

namespace kvbm {

/// What Block objects of one block share: empty once it was released or registered.
struct BlockHandle {
  std::shared_ptr<HeldBlock> held;
};

/// kvbm.Block: one rank's view of a block.
struct Block {
  std::shared_ptr<BlockHandle> handle;
  uint16_t rank = 0;

  /// By value: other threads may release it while a call goes on.
  [[nodiscard]] std::shared_ptr<HeldBlock> held() const {
    KVBM_CONTRACT(handle->held != nullptr, "the block was released or registered");
    return handle->held;
  }
  [[nodiscard]] const LayoutConfig& layout() const {
    return held()->manager->fixed().layout(held()->group);
  }
};

/// kvbm.BlockList
struct Blocks {
  std::vector<Block> blocks;
};

template <class Guard>
Blocks to_list(const std::shared_ptr<SharedManager>& manager, std::vector<Guard> guards,
               uint32_t group) {
  Blocks list;
  list.blocks.reserve(guards.size());
  for (Guard& guard : guards) {
    auto held = std::make_shared<HeldBlock>(manager, std::move(guard), group);
    list.blocks.push_back({std::make_shared<BlockHandle>(BlockHandle{std::move(held)})});
  }
  return list;
}

/// Counts as a writer of a block while it lives.
class Writer {
 public:
  explicit Writer(std::shared_ptr<HeldBlock> held) : held_(std::move(held)) {
    ++held_->num_writers;
  }
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;
  ~Writer() { --held_->num_writers; }

 private:
  std::shared_ptr<HeldBlock> held_;
};

/// Waits for copies that still read what the slot held before.
[[nodiscard]] std::shared_ptr<Writer> writer_of(const std::shared_ptr<HeldBlock>& held);

/// An index of Python's, where -1 is the last. Raises IndexError.
[[nodiscard]] size_t index_in(Py_ssize_t index, size_t size);

void bind_blocks(nanobind::module_& module);

}  // namespace kvbm
