// SPDX-License-Identifier: Apache-2.0
// Runs a fuzz target without libFuzzer: every file of a corpus, then seeded random mutations of
// those files. The same seed gives the same inputs; a crash prints the input as hex.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <span>
#include <string_view>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
// Present in sanitizer builds, where a report ends the process without a signal.
extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));

namespace {

using Input = std::vector<uint8_t>;

constexpr size_t kMaxSizeBytes = 64 * 1024;

// What the handler of a crash prints: plain globals, since a signal handler can reach nothing else.
const Input* g_running = nullptr;

void print_running_input() {
  static constexpr char kHex[] = "0123456789abcdef";
  if (g_running == nullptr) {
    return;
  }
  const auto put = [](std::string_view text) {
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text.data(), text.size());
  };
  put("\nThe input that failed, as hex:\n");
  for (const uint8_t byte : *g_running) {
    const char digits[] = {kHex[byte >> 4], kHex[byte & 15]};
    put({digits, 2});
  }
  put("\n");
  g_running = nullptr;
}

extern "C" void on_crash(int signal_number) {
  print_running_input();
  signal(signal_number, SIG_DFL);
  raise(signal_number);
}

void run(const Input& input) {
  // A copy of exactly the input's size, so that a sanitizer sees a read past its end.
  const std::vector<uint8_t> exact(input.begin(), input.end());
  g_running = &input;
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
  g_running = nullptr;
}

class Mutator {
 public:
  Mutator(std::span<const Input> corpus, uint64_t seed) : corpus_(corpus), random_(seed) {}

  Input next() {
    Input input = corpus_[below(corpus_.size())];
    for (size_t edits = 1 + below(4); edits > 0; --edits) {
      edit(input);
    }
    if (input.size() > kMaxSizeBytes) {
      input.resize(kMaxSizeBytes);
    }
    return input;
  }

 private:
  size_t below(size_t bound) {
    return std::uniform_int_distribution<size_t>(0, bound - 1)(random_);
  }
  uint8_t byte() { return static_cast<uint8_t>(below(256)); }
  static auto at(Input& input, size_t index) {
    return input.begin() + static_cast<ptrdiff_t>(index);
  }

  void edit(Input& input) {
    if (input.empty()) {
      input.push_back(byte());
      return;
    }
    const size_t index = below(input.size());
    switch (below(7)) {
      case 0:
        input[index] = static_cast<uint8_t>(input[index] ^ (1U << below(8)));
        break;
      case 1:
        input[index] = byte();
        break;
      case 2:
        overwrite_integer(input, index);
        break;
      case 3:
        input.resize(index);
        break;
      case 4:
        input.erase(at(input, index), at(input, index + 1 + below(input.size() - index)));
        break;
      case 5:
        input.insert(at(input, index), 1 + below(8), byte());
        break;
      default:
        splice(input, index);
        break;
    }
  }

  // Lengths, counts and enumerators at their edges, in both byte orders.
  void overwrite_integer(Input& input, size_t index) {
    static constexpr uint64_t kEdges[] = {0,
                                          1,
                                          0x7f,
                                          0x80,
                                          0xff,
                                          0x7fff,
                                          0xffff,
                                          0x7fffffff,
                                          0x80000000,
                                          0xffffffff,
                                          0x7fffffffffffffff,
                                          0xffffffffffffffff};
    const uint64_t value = kEdges[below(std::size(kEdges))];
    const size_t width = size_t{1} << below(4);
    const bool little = below(2) == 0;
    for (size_t i = 0; i < width && index + i < input.size(); ++i) {
      const size_t shift = 8 * (little ? i : width - 1 - i);
      input[index + i] = static_cast<uint8_t>(value >> shift);
    }
  }

  // The head of one input and the tail of another.
  void splice(Input& input, size_t index) {
    const Input& other = corpus_[below(corpus_.size())];
    input.resize(index);
    if (!other.empty()) {
      const size_t from = below(other.size());
      input.insert(input.end(), other.begin() + static_cast<ptrdiff_t>(from), other.end());
    }
  }

  std::span<const Input> corpus_;
  std::mt19937_64 random_;
};

bool parse(const char* text, uint64_t& value) {
  const char* end = text + std::strlen(text);
  return std::from_chars(text, end, value).ptr == end && end != text;
}

std::vector<std::filesystem::path> files_under(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error)) {
    if (it->is_regular_file()) {
      files.push_back(it->path());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t num_mutations = 20000;
  uint64_t seed = 1;
  std::vector<Input> corpus;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--mutations" || argument == "--seed") {
      uint64_t& value = argument == "--seed" ? seed : num_mutations;
      if (++i == argc || !parse(argv[i], value)) {
        std::fprintf(stderr, "%s needs a number\n", argument.data());
        return 2;
      }
      continue;
    }
    for (const auto& file : files_under(argv[i])) {
      std::ifstream in(file, std::ios::binary);
      corpus.emplace_back(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
    }
  }
  if (corpus.empty()) {
    // An empty corpus would make this pass without having tried anything.
    std::fprintf(stderr,
                 "usage: %s [--mutations N] [--seed N] FOLDER...   (no corpus file was found)\n",
                 argv[0]);
    return 2;
  }

  signal(SIGABRT, on_crash);
  if (__sanitizer_set_death_callback != nullptr) {
    __sanitizer_set_death_callback(
        print_running_input);  // The sanitizer handles the other signals.
  } else {
    for (const int signal_number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP}) {
      signal(signal_number, on_crash);
    }
  }
  for (const Input& input : corpus) {
    run(input);
  }
  Mutator mutator(corpus, seed);
  for (uint64_t i = 0; i < num_mutations; ++i) {
    run(mutator.next());
  }
  std::printf("%zu corpus files and %llu mutations (seed %llu) passed\n", corpus.size(),
              static_cast<unsigned long long>(num_mutations),
              static_cast<unsigned long long>(seed));
  return 0;
}
