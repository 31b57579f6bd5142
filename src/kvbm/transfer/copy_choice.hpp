// SPDX-License-Identifier: Apache-2.0
// choose_method: what moves the bytes of a batch, and why.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "kvbm/base/ids.hpp"
#include "kvbm/device/device.hpp"
#include "kvbm/device/strided_copy.hpp"
#include "kvbm/transfer/calibration.hpp"
#include "kvbm/transfer/transfer_route.hpp"

namespace kvbm {

struct MethodQuestion {
  std::span<const StridedPiece> pieces;
  size_t num_blocks = 0;
  /// Groups of blocks in equal steps, as BlockPairs counts them; 0: as many as blocks.
  size_t num_groups = 0;
  TransferRoute route = TransferRoute::kHostToHost;
  const DeviceCapabilities& capabilities;
  const Calibration& calibration;
};

struct MethodChoice {
  enum class Reason : uint8_t {
    kOnlyMethod,  ///< the device has one
    kNothingToMove,
    kOneRun,         ///< nothing is as good at one run of bytes as an engine, whatever was measured
    kNotMeasured,    ///< the route is not in the calibration
    kCheaper,        ///< by the costs below
    kEngineInDoubt,  ///< a kernel, or the ring, would gain too little: both take SMs from compute
  };

  CopyMethod method = CopyMethod::kEngine;
  uint32_t max_ctas = 0;              ///< of StridedCopyBatch
  uint64_t max_bytes_per_second = 0;  ///< of StridedCopyBatch
  Reason reason = Reason::kOnlyMethod;
  CopyCost engine{0};  ///< estimated; of the last two reasons
  CopyCost kernel{0};
  std::optional<CopyCost> ring = std::nullopt;  ///< where it takes the batch, and was measured
};

/// Below this share of the engine's time a kernel, or the ring, is taken; below this share of the
/// ring's a kernel, where a batch fills so many slots of the ring: such batches go both ways at a
/// time, and kernels together have two thirds of what the ring has.
inline constexpr double kKernelMustSave = 0.95;
inline constexpr uint64_t kSlotsOfALongBatch = 4;
/// An engine that saves no time is not taken for more copies: each costs the caller half a
/// microsecond, a rectangle more.
inline constexpr double kMostCopiesInDoubt = 512;

/// Of the rate that kernels reach alone on the way to the host, what they are held to there: at
/// full speed they stall the memory accesses of all other kernels.
inline constexpr double kPaceToHost = 0.99;

/// A pure function: no device is asked, and nothing is allocated. A copy engine gets rows where an
/// axis, or a group of blocks, has eight and more in equal steps. The ring takes what is one run of
/// bytes in each block of the host, and needs no pace: its kernels do not touch the host.
/// Requires: planned_bytes() takes pieces and blocks.
[[nodiscard]] MethodChoice choose_method(const MethodQuestion& question) noexcept;

/// The choice in words: "kernel, at most 2 CTAs and 49.9 GB/s: 95 us, the engine would take 130
/// us".
[[nodiscard]] std::string describe(const MethodChoice& choice);

}  // namespace kvbm
