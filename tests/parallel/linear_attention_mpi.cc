// Linear attention under mpirun: real processes and messages. Every rank checks; a deviation on one
// ends all with a non-zero status.
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "dist/mpi/mpi.h"
#include "tests/parallel/linear_attention_cases.h"

namespace longhaul::test {
namespace {

void run(dist::Group& world) {
  int cases = 0;
  for (const parallel::ScanMethod& method : parallel::scan_methods()) {
    for (const parallel::LayoutKind& layout : parallel::layout_kinds()) {
      for (const parallel::LinearKind kind :
           {parallel::LinearKind::kDecay, parallel::LinearKind::kGated,
            parallel::LinearKind::kDeltaRule}) {
        const bool packed = kind != parallel::LinearKind::kDecay;
        const LinearCase c{.kind = kind,
                           .method = std::string(method.name),
                           .layout = std::string(layout.name),
                           .tokens = 61,
                           .heads = 5,
                           .head_dim = 8,
                           .value_dim = 6,
                           .documents = packed ? parallel::Documents(61, {0, 19, 26, 27, 50})
                                               : parallel::Documents::whole(61),
                           .dtype = DType::kF64,
                           .initial_state = packed,
                           .final_state = packed};
        const auto x = inputs_of(c, 5);
        const auto result = run_linear_attention(world, c, x);
        for (const double e : errors(world, c, truth_of(c, x), result)) {
          if (!(e <= 1e-12)) {
            world.agree(Error(ErrorCode::kInternal, absl::StrCat(c.name(), ": error ", e)), "test");
          }
        }
        ++cases;
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
