#include "kernels/state_maps.h"

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"
#include "kernels/checks.h"

namespace longhaul::kernels {

void state_maps_compose(const Context& ctx, const StateMapsCompose& args) {
  expect_float(args.sums, "state maps: sums", 3);
  const DType dtype = args.sums.dtype();
  const int64_t rows = args.sums.dim(0), heads = args.sums.dim(1);
  LONGHAUL_CHECK(args.head_dim > 0 && args.sums.dim(2) % args.head_dim == 0,
                 absl::StrCat("state maps: ", args.sums.dim(2), " sums for ", args.head_dim,
                              " rows of a state"));
  const Shape decay{rows, heads, decay_elements(args.kind, args.head_dim)};
  expect(args.earlier_sums, "state maps: earlier_sums", dtype, args.sums.shape());
  expect_float(args.earlier_sums, "state maps: earlier_sums", 3);
  expect(args.decay, "state maps: decay", dtype, decay);
  expect_float(args.decay, "state maps: decay", 3);
  if (args.earlier_decay.rank() > 0) {
    expect(args.earlier_decay, "state maps: earlier_decay", dtype, decay);
    expect_float(args.earlier_decay, "state maps: earlier_decay", 3);
  }
  select(backend(ctx.device()).state_maps, "linear attention's composition of states", ctx.device(),
         dtype)
      .compose(ctx, args);
}

}  // namespace longhaul::kernels
