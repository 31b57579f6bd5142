// SPDX-License-Identifier: Apache-2.0
// SerializedLayout: the layouts of a worker as bytes, for other workers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kvbm/base/result.hpp"
#include "kvbm/transfer/logical_layout.hpp"

namespace kvbm {

/// The version that pack() writes and the newest that unpack() reads.
inline constexpr uint16_t kLayoutMetadataVersion = 1;

/// What one worker tells others of itself.
struct LayoutMetadata {
  WorkerAddress worker = {};
  std::vector<std::byte> agent_metadata = {};  ///< of its remote agent; opaque here
  std::vector<LogicalLayoutDescriptor> layouts = {};

  friend bool operator==(const LayoutMetadata&, const LayoutMetadata&) = default;
};

/// Source: docs/formats/layout-metadata.md
/// Threads: a value.
class SerializedLayout {
 public:
  /// What it returns, unpack() takes back as it was.
  /// Errors: kInvalidArgument (a worker without agent name; a layout of another worker, one handle
  /// or one tier and group twice, a layout that is none: see LayoutDescriptor::validate; 2^32 bytes
  /// and more).
  [[nodiscard]] static Result<SerializedLayout> pack(const LayoutMetadata& metadata);

  /// Any bytes: unpack() says whether they are metadata.
  [[nodiscard]] static SerializedLayout from_bytes(std::vector<std::byte> bytes) noexcept {
    return SerializedLayout(std::move(bytes));
  }

  /// The bytes may be hostile: memory is allocated only for what they can hold. What is accepted is
  /// what pack() would have written, byte for byte. Errors: kUnsupported (a newer version),
  /// kCorrupt (anything else, with the reason).
  [[nodiscard]] Result<LayoutMetadata> unpack() const;

  [[nodiscard]] std::span<const std::byte> as_bytes() const noexcept { return bytes_; }
  [[nodiscard]] size_t size_bytes() const noexcept { return bytes_.size(); }
  [[nodiscard]] bool is_empty() const noexcept { return bytes_.empty(); }

  friend bool operator==(const SerializedLayout&, const SerializedLayout&) = default;

 private:
  explicit SerializedLayout(std::vector<std::byte> bytes) noexcept : bytes_(std::move(bytes)) {}

  std::vector<std::byte> bytes_;
};

}  // namespace kvbm
