#include "dist/patience.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <thread>

#include "kernels/core/error.h"

namespace longhaul::dist {
namespace {

using std::chrono::duration;
using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr int kEagerPauses = 64;  // a message between two cores arrives within some microseconds

constexpr size_t kNamedRanks = 8;  // more are only counted in a message

// For operations whose buffers are about to go.
constexpr milliseconds kLastChance{5000};

}  // namespace

Patience::Patience(Job& job, std::string_view what) : job_(job), what_(what) {}

Patience::~Patience() { job_.traffic[what_].waited_seconds += duration<double>(waited()).count(); }

steady_clock::duration Patience::waited() const { return steady_clock::now() - begin_; }

void Patience::pause() {
  if (++pauses_ <= kEagerPauses) return;
  const auto time = waited();
  if (time < milliseconds(1)) {
    std::this_thread::yield();
  } else if (time < milliseconds(500)) {
    std::this_thread::sleep_for(microseconds(5));
  } else {
    std::this_thread::sleep_for(microseconds(200));
  }
}

bool Patience::exhausted() const { return waited() > job_.deadline; }

void Patience::fail(const std::string& of) const { fail_waiting(job_, what_, of); }

void fail_waiting(const Job& job, std::string_view what, const std::string& of) {
  std::string where;
  if (job.step >= 0) absl::StrAppend(&where, " at step ", job.step);
  if (!job.place.empty()) absl::StrAppend(&where, " in ", job.place);
  longhaul::fail(
      ErrorCode::kCommunication,
      absl::StrCat("rank ", job.world_rank, " waited ", duration<double>(job.deadline).count(),
                   " s", where, " for '", std::string(what), "'", of.empty() ? "" : " from ", of,
                   ": the peer is dead, hung or slower than the deadline "
                   "(parallel.timeout_seconds)"));
}

std::string name_ranks(std::vector<int> ranks) {
  if (ranks.empty()) return "";
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  std::string names = absl::StrCat(ranks.size() == 1 ? "rank " : "ranks ", ranks[0]);
  for (size_t i = 1; i < std::min(ranks.size(), kNamedRanks); ++i) {
    absl::StrAppend(&names, i + 1 == ranks.size() ? " and " : ", ", ranks[i]);
  }
  if (ranks.size() > kNamedRanks) {
    absl::StrAppend(&names, " and ", ranks.size() - kNamedRanks, " more");
  }
  return names;
}

void finish_dropped(const Job& job, std::string_view what, const std::function<bool()>& test) {
  std::fprintf(stderr, "longhaul: internal error: %s: operation '%s' was dropped unfinished\n",
               whereabouts(job).c_str(), std::string(what).c_str());
  try {
    const auto end = steady_clock::now() + std::min(job.deadline, kLastChance);
    while (!test() && steady_clock::now() < end) std::this_thread::yield();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "longhaul: %s\n", error.what());
  }
}

}  // namespace longhaul::dist
