// SPDX-License-Identifier: Apache-2.0
#include "kvbm/base/metrics.hpp"

#include <limits>
#include <sstream>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvbm/base/contract.hpp"

namespace kvbm {
namespace {

using ::testing::ElementsAre;

std::string text_of(const MetricsRegistry& registry) {
  std::ostringstream out;
  write_prometheus_text(registry, out);
  return out.str();
}

TEST(Counter, AddsUpOverThreads) {
  Counter counter;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&counter] {
      for (int i = 0; i < 1000; ++i) counter.add();
    });
  }
  for (std::thread& thread : threads) thread.join();
  counter.add(5);
  EXPECT_EQ(counter.value(), 4005U);
}

TEST(Gauge, GoesUpAndDown) {
  Gauge gauge;
  gauge.set(3);
  gauge.add(4);
  gauge.sub(10);
  EXPECT_EQ(gauge.value(), -3);
}

TEST(Histogram, BoundsAreInclusive) {
  Histogram histogram({1, 10});
  for (const double value : {0.5, 1.0, 1.5, 10.0, 11.0}) histogram.observe(value);
  histogram.observe(std::numeric_limits<double>::quiet_NaN());
  const HistogramSnapshot snapshot = histogram.snapshot();
  EXPECT_THAT(snapshot.bounds, ElementsAre(1, 10));
  EXPECT_THAT(snapshot.counts, ElementsAre(2, 2, 1));
  EXPECT_EQ(snapshot.count, 5U);
  EXPECT_DOUBLE_EQ(snapshot.sum, 24.0);
}

TEST(Histogram, BoundsMustAscend) {
  EXPECT_THROW(Histogram({1, 1}), ContractViolation);
  EXPECT_THROW(Histogram({2, 1}), ContractViolation);
  EXPECT_THROW(Histogram({std::numeric_limits<double>::infinity()}), ContractViolation);
  EXPECT_THAT(exponential_bounds(1, 4, 3), ElementsAre(1, 4, 16));
  EXPECT_THROW(static_cast<void>(exponential_bounds(0, 2, 3)), ContractViolation);
}

TEST(MetricsRegistry, TheSameNameAndLabelsAreTheSameSeries) {
  MetricsRegistry registry;
  Counter& a = registry.counter({.name = "x", .labels = {{"tier", "G1"}, {"rank", "0"}}});
  Counter& b = registry.counter({.name = "x", .labels = {{"rank", "0"}, {"tier", "G1"}}});
  Counter& c = registry.counter({.name = "x", .labels = {{"rank", "1"}, {"tier", "G1"}}});
  EXPECT_EQ(&a, &b);
  EXPECT_NE(&a, &c);
}

TEST(MetricsRegistry, ReferencesStayValidAsItGrows) {
  MetricsRegistry registry;
  Counter& first = registry.counter({.name = "m_first"});
  for (int i = 0; i < 200; ++i) {
    registry.gauge({.name = "g" + std::to_string(i)}).set(i);
  }
  first.add(3);
  EXPECT_EQ(registry.counter({.name = "m_first"}).value(), 3U);
}

TEST(MetricsRegistry, ANameHasOneMeaning) {
  MetricsRegistry registry;
  static_cast<void>(registry.counter({.name = "x", .help = "h", .unit = "u"}));
  EXPECT_THROW(static_cast<void>(registry.gauge({.name = "x", .help = "h", .unit = "u"})),
               ContractViolation);
  EXPECT_THROW(static_cast<void>(registry.counter({.name = "x", .help = "other", .unit = "u"})),
               ContractViolation);
  EXPECT_THROW(static_cast<void>(registry.counter(
                   {.name = "x", .help = "h", .unit = "v", .labels = {{"a", "b"}}})),
               ContractViolation);
  static_cast<void>(registry.histogram({.name = "h"}, {1, 2}));
  EXPECT_THROW(static_cast<void>(registry.histogram({.name = "h"}, {1, 3})), ContractViolation);
}

TEST(MetricsRegistry, BadNamesAndLabelsAreRefused) {
  MetricsRegistry registry;
  for (const char* name : {"", "1x", "a-b", "a b", "ä"}) {
    EXPECT_THROW(static_cast<void>(registry.counter({.name = name})), ContractViolation) << name;
  }
  for (const char* key : {"", "le", "__x", "a:b", "9"}) {
    EXPECT_THROW(static_cast<void>(registry.counter({.name = "x", .labels = {{key, "v"}}})),
                 ContractViolation)
        << key;
  }
  EXPECT_THROW(
      static_cast<void>(registry.counter({.name = "x", .labels = {{"a", "1"}, {"a", "2"}}})),
      ContractViolation);
  EXPECT_EQ(text_of(registry), "");
}

TEST(PrometheusText, ListsEverySeriesByNameAndLabels) {
  MetricsRegistry registry;
  registry.gauge({.name = "kvbm_free_blocks", .labels = {{"tier", "G2"}}}).set(-1);
  registry.counter({.name = "kvbm_loads", .help = "Loads\nthat \\ ended"}).add(12);
  registry.gauge({.name = "kvbm_free_blocks", .labels = {{"tier", "G1"}}}).set(7);
  Histogram& seconds = registry.histogram(
      {.name = "kvbm_load_seconds", .help = "Time", .labels = {{"path", "a\"b\\c\nd"}}}, {0.25, 1});
  seconds.observe(0.25);
  seconds.observe(0.5);
  seconds.observe(4);
  EXPECT_EQ(text_of(registry),
            "# TYPE kvbm_free_blocks gauge\n"
            "kvbm_free_blocks{tier=\"G1\"} 7\n"
            "kvbm_free_blocks{tier=\"G2\"} -1\n"
            "# HELP kvbm_load_seconds Time\n"
            "# TYPE kvbm_load_seconds histogram\n"
            "kvbm_load_seconds_bucket{path=\"a\\\"b\\\\c\\nd\",le=\"0.25\"} 1\n"
            "kvbm_load_seconds_bucket{path=\"a\\\"b\\\\c\\nd\",le=\"1\"} 2\n"
            "kvbm_load_seconds_bucket{path=\"a\\\"b\\\\c\\nd\",le=\"+Inf\"} 3\n"
            "kvbm_load_seconds_sum{path=\"a\\\"b\\\\c\\nd\"} 4.75\n"
            "kvbm_load_seconds_count{path=\"a\\\"b\\\\c\\nd\"} 3\n"
            "# HELP kvbm_loads Loads\\nthat \\\\ ended\n"
            "# TYPE kvbm_loads counter\n"
            "kvbm_loads 12\n");
}

TEST(PrometheusText, WritesNumbersWithAFraction) {
  MetricsRegistry registry;
  RealGauge& share = registry.real_gauge({.name = "share"});
  share.set(0.125);
  EXPECT_EQ(&registry.real_gauge({.name = "share"}), &share);
  EXPECT_THROW(static_cast<void>(registry.gauge({.name = "share"})), ContractViolation);
  EXPECT_EQ(text_of(registry), "# TYPE share gauge\nshare 0.125\n");
}

TEST(PrometheusText, OfSeveralRegistriesAddsUpWhatIsAlike) {
  MetricsRegistry one;
  MetricsRegistry other;
  one.counter({.name = "c", .help = "Help", .labels = {{"k", "v"}}}).add(1);
  other.counter({.name = "c", .help = "Help", .labels = {{"k", "v"}}}).add(2);
  other.counter({.name = "c", .help = "Help", .labels = {{"k", "w"}}}).add(4);
  one.gauge({.name = "g"}).set(-5);
  other.gauge({.name = "g"}).set(2);
  one.histogram({.name = "h"}, {1}).observe(0.5);
  other.histogram({.name = "h"}, {1}).observe(2);
  other.real_gauge({.name = "a"}).set(0.5);
  const MetricsRegistry* const registries[] = {&one, &other};
  std::ostringstream text;
  write_prometheus_text(registries, text);
  EXPECT_EQ(text.str(),
            "# TYPE a gauge\na 0.5\n"
            "# HELP c Help\n# TYPE c counter\nc{k=\"v\"} 3\nc{k=\"w\"} 4\n"
            "# TYPE g gauge\ng -3\n"
            "# TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 2.5\n"
            "h_count 2\n");
}

TEST(PrometheusText, OfOneRegistryIsThatOfSeveralThatAreOne) {
  MetricsRegistry registry;
  registry.counter({.name = "c", .help = "Help", .labels = {{"k", "v"}}}).add(3);
  registry.gauge({.name = "g"}).set(-5);
  registry.real_gauge({.name = "a"}).set(0.5);
  registry.histogram({.name = "h"}, {1, 2.5}).observe(1.5);
  const MetricsRegistry* const one = &registry;
  std::ostringstream text;
  write_prometheus_text({&one, 1}, text);
  EXPECT_EQ(text_of(registry), text.str());
  EXPECT_EQ(text_of(MetricsRegistry()), "");
}

TEST(PrometheusText, MayBeWrittenWhileSeriesAreAddedAndUpdated) {
  MetricsRegistry registry;
  std::thread writer([&registry] {
    for (int i = 0; i < 100; ++i) static_cast<void>(text_of(registry));
  });
  for (int i = 0; i < 100; ++i) {
    registry.histogram({.name = "h", .labels = {{"i", std::to_string(i)}}}, {1, 2}).observe(i);
  }
  writer.join();
}

}  // namespace
}  // namespace kvbm
