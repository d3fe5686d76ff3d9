// What a pass did and when: sums by kind, and traces that readers of JSON accept.
#include "parallel/attention/activity.h"

#include <gtest/gtest.h>

#include <chrono>
#include <ctime>
#include <nlohmann/json.hpp>
#include <thread>

namespace longhaul::parallel {
namespace {

using Kind = Activity::Kind;

void sleep() { std::this_thread::sleep_for(std::chrono::milliseconds(5)); }
void work() {  // some processor time, whoever else has the machine
  const auto spent = [] { return static_cast<double>(clock()) / CLOCKS_PER_SEC; };
  for (const double begin = spent(); spent() < begin + 2e-3;) {
  }
}

TEST(ActivityLog, RecordsForAsLongAsTheRecordingLives) {
  ActivityLog log;
  const double before = ActivityLog::now();
  {
    const ActivityLog::Recording waiting(&log, Kind::kWait, Direction::kBackward, 3);
    sleep();
  }
  {
    const ActivityLog::Recording computing(&log, Kind::kCompute, Direction::kForward, 4);
    work();
  }
  const double after = ActivityLog::now();
  ASSERT_EQ(log.activities().size(), 2u);
  const Activity &wait = log.activities()[0], &compute = log.activities()[1];
  EXPECT_EQ(wait.kind, Kind::kWait);
  EXPECT_EQ(wait.direction, Direction::kBackward);
  EXPECT_EQ(wait.step, 3);
  EXPECT_LE(before, wait.begin);
  EXPECT_GE(wait.end - wait.begin, 5e-3);
  EXPECT_LE(wait.end, compute.begin);
  EXPECT_LE(compute.end, after);
  // Who sleeps has no processor.
  EXPECT_LT(wait.processor, wait.end - wait.begin);
  EXPECT_GE(compute.processor, 1.9e-3);
  EXPECT_EQ(log.seconds(Kind::kWait), wait.end - wait.begin);
  EXPECT_EQ(log.processor(Kind::kCompute), compute.processor);
  EXPECT_EQ(log.seconds(Kind::kCopy), 0);
  log.forget();
  EXPECT_TRUE(log.activities().empty());
  EXPECT_EQ(log.processor(Kind::kCompute), 0);
}

// Letting messages progress in the midst of a kernel is no work of the kernel.
TEST(ActivityLog, PollingIsCountedOnItsOwn) {
  ActivityLog log;
  {
    const ActivityLog::Recording computing(&log, Kind::kCompute, Direction::kForward, 0);
    const ActivityLog::Polling polling(&log);
    work();
  }
  EXPECT_GE(log.polling(), 1.9e-3);
  EXPECT_LT(log.processor(Kind::kCompute), log.polling());
  log.forget();
  EXPECT_EQ(log.polling(), 0);
}

TEST(ActivityLog, NothingIsRecordedWithoutOne) {
  const ActivityLog::Recording recording(nullptr, Kind::kCopy, Direction::kForward, 0);
  const ActivityLog::Polling polling(nullptr);
}

TEST(ActivityLog, TracesAreTraceEvents) {
  ActivityLog log;
  const auto add = [&](Kind kind, Direction direction, int step, double begin, double end) {
    log.add({.kind = kind,
             .direction = direction,
             .step = step,
             .begin = begin,
             .end = end,
             .processor = 0});
  };
  add(Kind::kCopy, Direction::kForward, 0, 1.0, 1.25);
  add(Kind::kCompute, Direction::kForward, 0, 1.25, 2.0);
  add(Kind::kMessages, Direction::kForward, 1, 1.125, 2.5);
  add(Kind::kWait, Direction::kBackward, 2, 2.0, 2.5);
  const auto events = nlohmann::json::parse(log.chrome_trace(7))["traceEvents"];
  ASSERT_EQ(events.size(), 6u);
  EXPECT_EQ(events[0]["ph"], "M");
  EXPECT_EQ(events[0]["args"]["name"], "rank 7");
  for (const auto& event : events) EXPECT_EQ(event["pid"], 7);
  EXPECT_EQ(events[1]["name"], "forward copy, step 0");
  EXPECT_EQ(events[2]["name"], "forward compute, step 0");
  EXPECT_EQ(events[2]["ph"], "X");
  EXPECT_EQ(events[2]["ts"], 1.25e6);  // in microseconds
  EXPECT_EQ(events[2]["dur"], 0.75e6);
  // Messages are under way beside what is computed: a pair of events with an id of its own.
  EXPECT_EQ(events[3]["ph"], "b");
  EXPECT_EQ(events[4]["ph"], "e");
  EXPECT_EQ(events[3]["id"], events[4]["id"]);
  EXPECT_EQ(events[3]["name"], "forward messages, step 1");
  EXPECT_EQ(events[4]["ts"], 2.5e6);
  EXPECT_EQ(events[5]["name"], "backward wait, step 2");
  EXPECT_EQ(nlohmann::json::parse(ActivityLog().chrome_trace(0))["traceEvents"].size(), 1u);
}

}  // namespace
}  // namespace longhaul::parallel
