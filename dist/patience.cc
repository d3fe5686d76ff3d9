#include "dist/patience.h"

#include <absl/strings/str_cat.h>

#include <thread>

#include "kernels/core/error.h"

namespace longhaul::dist {
namespace {

using std::chrono::duration;
using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr int kEagerPauses = 64;  // a message between two cores arrives within some microseconds

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

void Patience::fail(const std::string& of) const {
  std::string where;
  if (job_.step >= 0) absl::StrAppend(&where, " at step ", job_.step);
  if (!job_.place.empty()) absl::StrAppend(&where, " in ", job_.place);
  longhaul::fail(
      ErrorCode::kCommunication,
      absl::StrCat("rank ", job_.world_rank, " waited ", duration<double>(job_.deadline).count(),
                   " s", where, " for '", what_, "'", of.empty() ? "" : " from ", of,
                   ": the peer is dead, hung or slower than the deadline "
                   "(parallel.timeout_seconds)"));
}

}  // namespace longhaul::dist
