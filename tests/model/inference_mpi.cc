// A prompt and the tokens that follow it under mpirun, against the naive model.
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "dist/mpi/mpi.h"
#include "tests/model/inference_run.h"

namespace longhaul::test {
namespace {

void run(dist::Group& world) {
  int cases = 0;
  for (const InferenceCase& c : inference_cases(world.size())) {
    const double difference =
        largest_difference(naive_log_probabilities(c), log_softmax(run_inference(world, c)));
    if (!(difference <= 1e-10)) {
      fail(ErrorCode::kInternal, absl::StrCat(c.config.pattern, " ", c.layout, " ", c.strategy,
                                              " prompt ", c.prompt, ": off by ", difference));
    }
    ++cases;
  }
  if (world.rank() == 0) std::printf("%d cases passed\n", cases);
}

}  // namespace
}  // namespace longhaul::test

int main() {
  using namespace longhaul;
  dist::MpiSession session(dist::detect_launch(), std::chrono::seconds(60));
  const auto error = attempt([&] { test::run(session.world()); });
  if (!error) return 0;
  session.world().abort(1, error->what());
  return 1;
}
