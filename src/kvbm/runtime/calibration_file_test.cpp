// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/calibration_file.hpp"

#include <sys/stat.h>

#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/error_code.hpp"
#include "tests/support/temporary_folder.hpp"

namespace kvbm {
namespace {

using testing::code_of;
using ::testing::HasSubstr;

SavedCalibration sample() {
  const FormCost runs{.submission = CopyCost(9.5),
                      .step = CopyCost(0),
                      .rates = {{512, 1.5e8}, {4096, 1.25e9}, {262'144, 5.4e10}}};
  const FormCost kernel{
      .submission = CopyCost(21.25), .step = CopyCost(0.125), .rates = {{512, 5.1e10}}};
  SavedCalibration saved{.identity = {.cpu = "A CPU",
                                      .device = {.name = "NVIDIA H200",
                                                 .pci_address = "0000:19:00.0",
                                                 .driver = "580.95.05",
                                                 .driver_version = 13000,
                                                 .runtime_version = 12080}},
                         .calibration = {}};
  const FormCost ring{
      .submission = CopyCost(24.5), .step = CopyCost(0.25), .rates = {{1024, 5.4e10}}};
  saved.calibration.set(TransferRoute::kHostToDevice, {runs, runs, kernel, ring});
  saved.calibration.set(TransferRoute::kDeviceToDevice, {runs, kernel, kernel});
  return saved;
}

/// `text` with the first `from` replaced.
std::string with(std::string text, std::string_view from, std::string_view to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(CalibrationFile, ReadsBackWhatItWrites) {
  const SavedCalibration saved = sample();
  const auto read = parse_calibration(format_calibration(saved));
  ASSERT_TRUE(read) << read.error();
  EXPECT_EQ(read->identity, saved.identity);
  EXPECT_EQ(read->calibration.find(TransferRoute::kDeviceToHost), nullptr);
  for (const TransferRoute route : {TransferRoute::kHostToDevice, TransferRoute::kDeviceToDevice}) {
    const RouteCost* const cost = read->calibration.find(route);
    ASSERT_NE(cost, nullptr) << to_string(route);
    for (size_t form = 0; form < kNumCopyForms; ++form) {
      const FormCost& before = (*saved.calibration.find(route))[form];
      EXPECT_EQ((*cost)[form].submission, before.submission);
      EXPECT_EQ((*cost)[form].step, before.step);
      ASSERT_EQ((*cost)[form].rates.size(), before.rates.size());
      for (size_t i = 0; i < before.rates.size(); ++i) {
        EXPECT_EQ((*cost)[form].rates[i].run_bytes, before.rates[i].run_bytes);
        EXPECT_EQ((*cost)[form].rates[i].bytes_per_second, before.rates[i].bytes_per_second);
      }
    }
  }
}

TEST(CalibrationFile, NamesThatAreNoUtf8OrTooLongAreWrittenAllTheSame) {
  SavedCalibration saved = sample();
  saved.identity.device.name = "GPU \xff";
  saved.identity.cpu = std::string(5000, 'x');
  const auto read = parse_calibration(format_calibration(saved));
  ASSERT_TRUE(read) << read.error();
  EXPECT_EQ(read->identity.device.name, "GPU \xef\xbf\xbd");
}

TEST(CalibrationFile, RefusesAnotherVersionAsSuch) {
  const auto read =
      parse_calibration(with(format_calibration(sample()), "\"version\": 3", "\"version\": 4"));
  EXPECT_EQ(code_of(read), ErrorCode::kUnsupported);
  EXPECT_THAT(read.error().message(), HasSubstr("version 4"));
}

TEST(CalibrationFile, RefusesWhatIsDamaged) {
  const std::string good = format_calibration(sample());
  const std::pair<std::string, std::string_view> bad[] = {
      {"", "no JSON object"},
      {"[]", "no JSON object"},
      {good.substr(0, good.size() / 2), "no JSON object"},
      {std::string(kMaxCalibrationBytes, ' '), "longer"},
      {with(good, "kvbm-calibration", "kvbm-trace"), "\"format\""},
      {with(good, "\"A CPU\"", "7"), "\"cpu\""},
      {with(good, "\"A CPU\"", "\"" + std::string(300, 'x') + "\""), "\"cpu\""},
      {with(good, "\"driver_cuda\": 13000", "\"driver_cuda\": -1"), "\"driver_cuda\""},
      {with(good, "\"cpu\"", "\"gpu\""), "\"cpu\""},
      {with(good, "host_to_device", "host_to_moon"), "not measured"},
      {with(good, "\"kernel\"", "\"colonel\""), "\"kernel\""},
      {with(good, "\"ring\"", "\"wring\""), "\"host_to_device\""},
      {with(good, "1024", "\"1024\""), "\"rates\""},
      {with(good, "9.5", "-9.5"), "\"submission_us\""},
      {with(good, "9.5", "\"9.5\""), "\"submission_us\""},
      {with(good, "9.5", "1e300"), "\"submission_us\""},
      {with(good, "9.5", "1e999"), "no JSON object"},
      {with(good, "512", "5120"), "rise"},
      {with(good, "512", "0"), "rise"},
      {with(good, "512", "99999999999999"), "rise"},
      {with(good, "512", "512.5"), "\"rates\""},
      {with(good, "150000000.0", "0"), "\"rates\""},
      {with(good, "\"routes\": {", "\"more\": 1, \"routes\": {"), "\"routes\""},
  };
  for (const auto& [text, reason] : bad) {
    const auto read = parse_calibration(text);
    ASSERT_EQ(code_of(read), ErrorCode::kInvalidArgument) << reason;
    EXPECT_THAT(read.error().message(), HasSubstr(reason));
  }
}

TEST(CalibrationFile, IsReadFromFilesAlone) {
  const testing::TemporaryFolder folder;
  const auto good = read_calibration_file(folder.write("good", format_calibration(sample())));
  ASSERT_TRUE(good) << good.error();
  EXPECT_EQ(good->identity, sample().identity);
  EXPECT_EQ(code_of(read_calibration_file(folder.path() / "none")), ErrorCode::kNotFound);
  EXPECT_EQ(code_of(read_calibration_file(folder.path())), ErrorCode::kInvalidArgument);
  const std::filesystem::path pipe = folder.path() / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(code_of(read_calibration_file(pipe)), ErrorCode::kInvalidArgument)
      << "nobody writes to it";
  const auto bad = read_calibration_file(folder.write("bad", "{"));
  ASSERT_FALSE(bad);
  EXPECT_THAT(bad.error().message(), HasSubstr("bad: it is no JSON object"));
}

}  // namespace
}  // namespace kvbm
