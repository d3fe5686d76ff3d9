// Loss and gradients under mpirun against one rank, which every process also computes for itself.
#include <cmath>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "dist/mpi/mpi.h"
#include "tests/model/hybrid_cases.h"
#include "tests/model/model_run.h"

namespace longhaul::test {
namespace {

void compare(dist::Group& world, const ModelCase& c) {
  const ModelRun one = run_on_one_rank(c);
  const ModelRun many = run_model(world, c);
  const double deviation = largest_deviation(one, many);
  if (!(deviation <= 1e-10) || !(std::abs(many.loss - one.loss) <= 1e-12 * one.loss)) {
    fail(ErrorCode::kInternal, absl::StrCat(c.config.pattern, " ", c.layout, ": loss ", one.loss,
                                            " and ", many.loss, ", deviation ", deviation));
  }
}

void run(dist::Group& world) {
  int cases = 0;
  const parallel::Documents documents(61, {0, 7, 8, 40});
  for (const auto policy : {model::ActivationPolicy::kKeep, model::ActivationPolicy::kRecompute}) {
    for (const char* layout : {"contiguous", "zigzag", "striped", "balanced"}) {
      for (bool in_place : {false, true}) {
        compare(world, {.config = small_model(),
                        .options = {.dtype = DType::kF64, .activations = policy},
                        .layout = layout,
                        .in_place = in_place,
                        .documents = documents});
        ++cases;
      }
    }
    for (const HybridCase& hybrid : hybrid_cases()) {
      compare(world, {.config = hybrid.config,
                      .options = {.dtype = DType::kF64, .activations = policy},
                      .documents = documents});
      ++cases;
    }
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
