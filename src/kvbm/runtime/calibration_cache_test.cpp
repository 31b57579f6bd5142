// SPDX-License-Identifier: Apache-2.0
#include "kvbm/runtime/calibration_cache.hpp"

#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/thread_executor.hpp"
#include "kvbm/device/host_device.hpp"

#include "tests/support/recording_log_sink.hpp"
#include "tests/support/temporary_folder.hpp"
#include "tests/support/two_method_device.hpp"

namespace kvbm {
namespace {

using Source = CalibrationFound::Source;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TemporaryFolder;

struct Machine {
  testing::RecordingLogSink log{LogLevel::kWarning};
  ThreadExecutor executor{log};
  std::unique_ptr<HostDevice> host = HostDevice::create({.executor = executor}).value();
  testing::TwoMethodDevice device{*host};
  TemporaryFolder folder;

  CalibrationFound find(bool measure_anew = false, std::string driver = "1.0",
                        Duration budget = std::chrono::minutes(1)) {
    return calibrate({.device = device,
                      .executor = executor,
                      .log = log,
                      .identity = {.name = "two", .driver = std::move(driver)},
                      .folder = folder.path() / "made" / "for it",
                      .measure_anew = measure_anew,
                      .budget = budget})
        .value();
  }
  [[nodiscard]] int copies() const { return device.engine_copies + device.kernel_copies; }
  [[nodiscard]] std::vector<std::string> warnings() const {
    return log.messages(LogLevel::kWarning);
  }
};

TEST(CalibrationCache, MeasuresOnceAndReadsFromThenOn) {
  Machine machine;
  const CalibrationFound first = machine.find();
  EXPECT_EQ(first.source, Source::kMeasured);
  ASSERT_TRUE(std::filesystem::exists(first.file));
  const int copies = machine.copies();
  EXPECT_GT(copies, 0);

  const CalibrationFound second = machine.find();
  EXPECT_EQ(second.source, Source::kRead);
  EXPECT_EQ(second.file, first.file);
  EXPECT_EQ(machine.copies(), copies) << "measured again";
  EXPECT_EQ(format_calibration({second.identity, second.calibration}),
            format_calibration({first.identity, first.calibration}));

  EXPECT_EQ(machine.find(/*measure_anew=*/true).source, Source::kMeasured);
  EXPECT_GT(machine.copies(), copies);
  EXPECT_THAT(machine.warnings(), IsEmpty());
}

TEST(CalibrationCache, AnotherDriverHasAFileOfItsOwn) {
  Machine machine;
  const CalibrationFound first = machine.find(false, "1.0");
  const CalibrationFound second = machine.find(false, "2.0");
  EXPECT_EQ(second.source, Source::kMeasured);
  EXPECT_NE(first.file, second.file);
  EXPECT_EQ(machine.find(false, "1.0").source, Source::kRead);
}

TEST(CalibrationCache, AMeasurementThatRanOutOfTimeIsNotKept) {
  Machine machine;
  const CalibrationFound found = machine.find(false, "1.0", Duration::zero());
  EXPECT_EQ(found.source, Source::kMeasured);
  EXPECT_TRUE(found.file.empty());
  EXPECT_EQ(machine.folder.num_entries(), 0u);
}

TEST(CalibrationCache, WithARingThatWasNotMeasuredItIsMeasuredAnew) {
  Machine machine;
  EXPECT_EQ(machine.find().source, Source::kMeasured);
  machine.device.ring_block_bytes = 2 << 20;
  EXPECT_EQ(machine.find().source, Source::kMeasured);
  EXPECT_EQ(machine.find().source, Source::kRead);
  machine.device.ring_block_bytes = 0;
  EXPECT_EQ(machine.find().source, Source::kRead) << "a ring too much is no harm";
}

TEST(CalibrationCache, ADamagedFileIsOneWarningAndMeasuredAnew) {
  Machine machine;
  const std::filesystem::path file = machine.find().file;
  std::string text = TemporaryFolder::read(file);
  for (const std::string& bad : {text.substr(0, 100), std::string("\0\x1b[2J", 5),
                                 std::string(text).replace(text.find("two"), 3, "six")}) {
    machine.folder.write("made/for it/" + file.filename().string(), bad);
    const size_t warnings = machine.warnings().size();
    EXPECT_EQ(machine.find().source, Source::kMeasured);
    ASSERT_EQ(machine.warnings().size(), warnings + 1);
    EXPECT_THAT(machine.warnings().back(), HasSubstr(file.native()));
    EXPECT_EQ(machine.find().source, Source::kRead) << "it was not written anew";
  }
}

TEST(CalibrationCache, AFolderThatCannotBeMadeIsAWarning) {
  Machine machine;
  machine.folder.write("made", "a file");
  const CalibrationFound found = machine.find();
  EXPECT_EQ(found.source, Source::kMeasured);
  EXPECT_TRUE(found.file.empty());
  EXPECT_THAT(machine.warnings(), ::testing::Not(IsEmpty()));
  EXPECT_THAT(machine.warnings().back(), HasSubstr("not kept"));
}

TEST(CalibrationCache, WithoutAFolderNothingIsKept) {
  Machine machine;
  for (int i = 0; i < 2; ++i) {
    const auto found =
        calibrate({.device = machine.device, .executor = machine.executor, .log = machine.log});
    ASSERT_TRUE(found);
    EXPECT_EQ(found->source, Source::kMeasured);
    EXPECT_TRUE(found->file.empty());
  }
}

TEST(CalibrationCache, ADeviceOfOneMethodNeedsNone) {
  Machine machine;
  const auto found = calibrate({.device = *machine.host,
                                .executor = machine.executor,
                                .log = machine.log,
                                .folder = machine.folder.path() / "x"});
  ASSERT_TRUE(found);
  EXPECT_EQ(found->source, Source::kNotNeeded);
  EXPECT_EQ(machine.folder.num_entries(), 0u);
}

/// Sets a variable of the environment for the time of a test.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    value != nullptr ? ::setenv(name, value, 1) : ::unsetenv(name);
  }
  ~Variable() { before_ ? ::setenv(name_, before_->c_str(), 1) : ::unsetenv(name_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
  std::optional<std::string> before_;
};

TEST(CalibrationCache, TheFolderIsTheOneNamedOrThatOfTheUsersCaches) {
  using Path = std::filesystem::path;
  const Variable home("HOME", "/home/somebody");
  {
    const Variable cache("XDG_CACHE_HOME", "/var/caches");
    EXPECT_EQ(calibration_folder(""), Path("/var/caches/kvbm"));
    EXPECT_EQ(calibration_folder("/else"), Path("/else"));
    EXPECT_EQ(calibration_folder("off"), std::nullopt);
  }
  for (const char* useless : {"relative/path", "", static_cast<const char*>(nullptr)}) {
    const Variable cache("XDG_CACHE_HOME", useless);
    EXPECT_EQ(calibration_folder(""), Path("/home/somebody/.cache/kvbm"));
  }
  const Variable cache("XDG_CACHE_HOME", nullptr);
  const Variable homeless("HOME", nullptr);
  EXPECT_EQ(calibration_folder(""), std::nullopt);
}

}  // namespace
}  // namespace kvbm
