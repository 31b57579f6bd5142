// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/metrics_page.hpp"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "kvbm/base/text.hpp"
#include "kvbm/runtime/internal/parse_number.hpp"

namespace kvbm {
namespace {

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// One line, read from the front.
class Line {
 public:
  explicit Line(std::string_view text) : rest_(text) {}

  [[nodiscard]] bool at_end() const { return rest_.empty(); }
  void skip_space() {
    while (!rest_.empty() && (rest_[0] == ' ' || rest_[0] == '\t')) rest_.remove_prefix(1);
  }
  bool take(char c) {
    if (rest_.empty() || rest_[0] != c) return false;
    rest_.remove_prefix(1);
    return true;
  }
  [[nodiscard]] bool starts_with(char c) const { return rest_.starts_with(c); }

  /// Empty if there is none.
  std::string take_name(bool may_have_colon) {
    size_t size = 0;
    while (size < rest_.size() &&
           (is_letter(rest_[size]) || (may_have_colon && rest_[size] == ':') ||
            (size > 0 && is_digit(rest_[size])))) {
      ++size;
    }
    std::string name(rest_.substr(0, size));
    rest_.remove_prefix(size);
    return name;
  }
  /// The rest of a text in quotes, the closing one included.
  std::optional<std::string> take_quoted() {
    std::string value;
    while (!rest_.empty()) {
      const char c = rest_[0];
      rest_.remove_prefix(1);
      if (c == '"') return value;
      if (c != '\\') {
        value.push_back(c);
        continue;
      }
      if (rest_.empty()) return std::nullopt;
      value.push_back(rest_[0] == 'n' ? '\n' : rest_[0]);
      rest_.remove_prefix(1);
    }
    return std::nullopt;
  }
  std::optional<double> take_number() {
    take('+');
    const std::string_view word = rest_.substr(0, rest_.find_first_of(" \t"));
    const auto value = internal::parse_number<double>(word);
    if (value) rest_.remove_prefix(word.size());
    return value;
  }

 private:
  std::string_view rest_;
};

/// What is wrong, or nothing.
std::string_view read_sample(Line& line, MetricSample& sample) {
  sample.name = line.take_name(true);
  if (sample.name.empty()) return "the name of a series is missing";
  line.skip_space();
  if (line.take('{')) {
    line.skip_space();
    while (!line.take('}')) {
      MetricLabel label;
      label.key = line.take_name(false);
      line.skip_space();
      if (label.key.empty() || !line.take('=')) return "a label has no name";
      line.skip_space();
      std::optional<std::string> value;
      if (line.take('"')) value = line.take_quoted();
      if (!value) return "a label has no value in quotes";
      label.value = *std::move(value);
      sample.labels.push_back(std::move(label));
      line.skip_space();
      const bool goes_on = line.take(',');
      line.skip_space();
      if (!goes_on && !line.starts_with('}')) return "the labels do not end";
    }
    line.skip_space();
  }
  const std::optional<double> value = line.take_number();
  if (!value) return "the value is no number";
  sample.value = *value;
  line.skip_space();
  if (!line.at_end() && !line.starts_with('#') && !line.take_number()) {
    return "there is something behind the value that is no timestamp";
  }
  line.skip_space();
  if (!line.at_end() && !line.starts_with('#')) return "there is something behind the timestamp";
  return {};
}

bool is_named(const MetricSample& sample, std::string_view name) {
  constexpr std::string_view kEngine = "vllm:";
  constexpr std::string_view kTotal = "_total";
  std::string_view found = sample.name;
  if (found == name) return true;
  if (!found.starts_with(kEngine)) return false;
  found.remove_prefix(kEngine.size());
  if (found == name) return true;
  return found.ends_with(kTotal) && found.substr(0, found.size() - kTotal.size()) == name;
}

}  // namespace

Result<MetricsPage> MetricsPage::parse(std::string_view text) {
  MetricsPage page;
  for (uint64_t number = 1; !text.empty(); ++number) {
    const size_t end = text.find('\n');
    std::string_view line_text = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (line_text.ends_with('\r')) line_text.remove_suffix(1);
    Line line(line_text);
    line.skip_space();
    if (line.at_end() || line.starts_with('#')) continue;
    MetricSample sample;
    const std::string_view wrong = read_sample(line, sample);
    if (!wrong.empty()) {
      return make_error(
          ErrorCode::kCorrupt,
          format_text("line {} is not in the Prometheus text format: {}", number, wrong));
    }
    page.samples_.push_back(std::move(sample));
  }
  return page;
}

bool MetricsPage::has(std::string_view name) const {
  return std::ranges::any_of(samples_,
                             [&](const MetricSample& sample) { return is_named(sample, name); });
}

double MetricsPage::sum(std::string_view name, const MetricLabel& label) const {
  double sum = 0;
  for (const MetricSample& sample : samples_) {
    if (!is_named(sample, name)) continue;
    if (label.key.empty() || std::ranges::find(sample.labels, label) != sample.labels.end()) {
      sum += sample.value;
    }
  }
  return sum;
}

}  // namespace kvbm
