// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/bytes.hpp"

#include <bit>
#include <limits>

#include "kvbm/base/text.hpp"

namespace kvbm {
namespace {

template <class T>
void store(std::byte* to, T value) noexcept {
  for (size_t i = 0; i < sizeof(T); ++i) {
    to[i] = static_cast<std::byte>(value >> (8 * i) & 0xFFU);
  }
}

template <class T>
T load(const std::byte* from) noexcept {
  T value = 0;
  for (size_t i = sizeof(T); i-- > 0;) {
    value = static_cast<T>((uint64_t{value} << 8U) | std::to_integer<uint64_t>(from[i]));
  }
  return value;
}

template <class T>
void append(std::vector<std::byte>& buffer, T value) {
  const size_t at = buffer.size();
  buffer.resize(at + sizeof(T));
  store(buffer.data() + at, value);
}

template <class T>
void patch(std::span<std::byte> buffer, size_t offset, T value) {
  KVBM_CONTRACT(offset <= buffer.size() && buffer.size() - offset >= sizeof(T),
                format_text("a patch of {} bytes at {} in {} written bytes", sizeof(T), offset,
                            buffer.size()));
  store(buffer.data() + offset, value);
}

template <class T>
T read(ByteReader& reader) {
  const std::span<const std::byte> raw = reader.bytes(sizeof(T));
  return raw.empty() ? T{0} : load<T>(raw.data());
}

template <class T>
std::vector<T> read_array(ByteReader& reader) {
  const size_t count = reader.count(sizeof(T));
  const std::span<const std::byte> raw = reader.bytes(count * sizeof(T));
  std::vector<T> values(raw.size() / sizeof(T));
  for (size_t i = 0; i < values.size(); ++i) values[i] = load<T>(raw.data() + i * sizeof(T));
  return values;
}

}  // namespace

void ByteWriter::u8(uint8_t value) { append(buffer_, value); }
void ByteWriter::u16(uint16_t value) { append(buffer_, value); }
void ByteWriter::u32(uint32_t value) { append(buffer_, value); }
void ByteWriter::u64(uint64_t value) { append(buffer_, value); }
void ByteWriter::f64(double value) { append(buffer_, std::bit_cast<uint64_t>(value)); }

void ByteWriter::bytes(std::span<const std::byte> values) {
  buffer_.insert(buffer_.end(), values.begin(), values.end());
}

void ByteWriter::zeros(size_t count) { buffer_.resize(buffer_.size() + count); }

void ByteWriter::count(size_t value) {
  KVBM_CONTRACT(value <= std::numeric_limits<uint32_t>::max(), "a count takes 32 bits");
  u32(static_cast<uint32_t>(value));
}

void ByteWriter::string(std::string_view text) {
  count(text.size());
  bytes(std::as_bytes(std::span(text.data(), text.size())));
}

void ByteWriter::u32_array(std::span<const uint32_t> values) {
  count(values.size());
  for (const uint32_t value : values) u32(value);
}

void ByteWriter::u64_array(std::span<const uint64_t> values) {
  count(values.size());
  for (const uint64_t value : values) u64(value);
}

void ByteWriter::patch_u32(size_t offset, uint32_t value) { patch(buffer_, offset, value); }
void ByteWriter::patch_u64(size_t offset, uint64_t value) { patch(buffer_, offset, value); }

uint8_t ByteReader::u8() { return read<uint8_t>(*this); }
uint16_t ByteReader::u16() { return read<uint16_t>(*this); }
uint32_t ByteReader::u32() { return read<uint32_t>(*this); }
uint64_t ByteReader::u64() { return read<uint64_t>(*this); }
double ByteReader::f64() { return std::bit_cast<double>(u64()); }

std::span<const std::byte> ByteReader::bytes(size_t count) {
  if (!ok()) return {};
  if (count > remaining()) {
    fail(format_text("{} bytes are wanted, {} are left", count, remaining()));
    return {};
  }
  const std::span<const std::byte> taken = input_.subspan(offset_, count);
  offset_ += count;
  return taken;
}

size_t ByteReader::count(size_t min_element_bytes) {
  KVBM_CONTRACT(min_element_bytes > 0, "an element takes at least one byte");
  const size_t value = u32();
  if (value > remaining() / min_element_bytes) {
    fail(format_text("{} elements of at least {} bytes are announced, {} bytes are left", value,
                     min_element_bytes, remaining()));
    return 0;
  }
  return value;
}

std::string_view ByteReader::string() {
  const std::span<const std::byte> raw = bytes(count(1));
  return {reinterpret_cast<const char*>(raw.data()), raw.size()};
}

std::vector<uint32_t> ByteReader::u32_array() { return read_array<uint32_t>(*this); }
std::vector<uint64_t> ByteReader::u64_array() { return read_array<uint64_t>(*this); }

void ByteReader::fail(std::string_view reason) {
  if (!ok()) return;
  error_.emplace(ErrorCode::kCorrupt, format_text("at byte {}: {}", offset_, reason));
}

Status ByteReader::status() const {
  if (error_) return make_error(*error_);
  return {};
}

Status ByteReader::finish() {
  if (remaining() > 0) fail(format_text("{} bytes are left over", remaining()));
  return status();
}

}  // namespace kvbm
