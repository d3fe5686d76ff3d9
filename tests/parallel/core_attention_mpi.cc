// The executor under mpirun: real processes, shared-memory windows and messages. Every rank checks;
// a deviation on one ends all with a non-zero status.
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "dist/mpi/mpi.h"
#include "tests/parallel/core_attention_cases.h"

namespace longhaul::test {
namespace {

void run(dist::Group& world) {
  int cases = 0;
  for (const parallel::Strategy& strategy : parallel::strategies()) {
    for (const parallel::LayoutKind& layout : parallel::layout_kinds()) {
      for (bool packed : {false, true}) {
        for (bool in_place : {false, true}) {
          const AttentionCase c{
              .strategy = std::string(strategy.name),
              .layout = std::string(layout.name),
              .tokens = 61,
              .heads = {4, 2, 8, 6},
              .mask = {true, packed ? 11 : 0, packed ? 4 : 0},
              .documents = packed ? random_documents(61, 9, 7) : parallel::Documents::whole(61),
              .dtype = DType::kF64,
              .in_place = in_place,
              .ranks_per_node = world.size() % 2 == 0 ? 2 : world.size(),
              .options = packed ? score_options(4).back().options : ScoreOptions{}};
          if (refusal(c, world.size())) continue;
          const AttentionTruth truth = truth_of(c, 5);
          for (double e : errors(world, c, truth, run_core_attention(world, c, truth))) {
            if (!(e <= 1e-12)) {
              world.agree(Error(ErrorCode::kInternal, absl::StrCat(c.name(), ": error ", e)),
                          "test");
            }
          }
          ++cases;
        }
      }
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
  std::fprintf(stderr, "%s\n", error->what());
  session.world().abort(1, error->what());
  return 1;
}
