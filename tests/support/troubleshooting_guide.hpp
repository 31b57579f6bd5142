// SPDX-License-Identifier: Apache-2.0
// TroubleshootingGuide: the messages that docs/guides/troubleshooting.md quotes.
#pragma once

#include <fstream>
#include <istream>
#include <iterator>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

namespace kvbm::testing {

/// What stands in `code` in the second column of the tables of some sections.
/// Threads: one thread at a time.
class TroubleshootingGuide {
 public:
  /// `wanted(heading)` says which sections of the guide.
  template <class F>
  TroubleshootingGuide(std::istream& guide, F&& wanted) {
    bool inside = false;
    for (std::string line; std::getline(guide, line);) {
      if (line.starts_with("## ")) inside = wanted(line.substr(3));
      if (!inside || !line.starts_with("| ") || line.starts_with("| symptom")) continue;
      const size_t begin = line.find(" | ") + 3;
      read_quotes(line.substr(begin, line.find(" | ", begin) - begin));
    }
    EXPECT_FALSE(quotes_.empty());
  }

  /// That kvbm has said this: a message, a log record, a line of the program.
  void said(const std::string& text) {
    bool quoted = false;
    for (const std::string& quote : quotes_) {
      if (!has(text, quote)) continue;
      quoted = true;
      provoked_.insert(quote);
    }
    EXPECT_TRUE(quoted) << "the guide does not quote: " << text;
  }

  /// Of a build that this is not: that its source has the words.
  void written_in(const std::string& path, const std::string& words) {
    std::ifstream in(path);
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    EXPECT_NE(text.find(words), std::string::npos) << path << " does not say: " << words;
    said(words);
  }

  /// Of another build: quotes with a word of it.
  void leave_out(std::string_view word) {
    std::erase_if(quotes_,
                  [&](const std::string& quote) { return quote.find(word) != std::string::npos; });
  }

  void expect_all_were_said() const {
    for (const std::string& quote : quotes_) {
      EXPECT_TRUE(provoked_.contains(quote)) << "nothing said: " << quote;
    }
  }

 private:
  static constexpr std::string_view kGap = "…";

  void read_quotes(std::string_view cell) {
    for (size_t begin = cell.find('`'); begin != std::string_view::npos;) {
      const size_t end = cell.find('`', begin + 1);
      if (end == std::string_view::npos) break;
      const std::string quote(cell.substr(begin + 1, end - begin - 1));
      // Names of the program and of functions are no messages.
      const bool is_message =
          quote.find(' ') != std::string::npos || quote.find("KERNELS") != std::string::npos;
      if (is_message && quote != "kvbm doctor") quotes_.push_back(quote);
      begin = cell.find('`', end + 1);
    }
  }

  /// Whether the parts of the quote are there, one after the other.
  static bool has(std::string_view text, std::string_view quote) {
    size_t at = 0;
    while (true) {
      const size_t gap = quote.find(kGap);
      const std::string_view part = quote.substr(0, gap);
      at = text.find(part, at);
      if (at == std::string_view::npos) return false;
      if (gap == std::string_view::npos) return true;
      at += part.size();
      quote.remove_prefix(gap + kGap.size());
    }
  }

  std::vector<std::string> quotes_;
  std::set<std::string> provoked_;
};

}  // namespace kvbm::testing
