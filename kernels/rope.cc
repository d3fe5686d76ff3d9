#include "kernels/rope.h"

#include "kernels/angle_table.h"
#include "kernels/backend.h"
#include "kernels/checks.h"

namespace longhaul::kernels {

void rope_table(const Stream& stream, const RopeOptions& options,
                std::span<const int64_t> positions, int64_t head_dim, TensorView cos,
                TensorView sin) {
  LONGHAUL_CHECK(head_dim >= 0 && head_dim % 2 == 0, "rope: head_dim is even");
  angle_table(stream, rope_frequencies(options, head_dim), positions, cos, sin,
              rope_amplitude(options));
}

void rope(const Context& ctx, const Rope& args) {
  expect_float(args.x, "rope: x", 3);
  LONGHAUL_CHECK(args.x.dim(2) % 2 == 0, "rope: the head dimension is even");
  const DType dtype = args.x.dtype();
  const Shape shape{args.x.dim(0), args.x.dim(2) / 2};
  expect_dense(args.cos, "rope: cos", accumulator(dtype), shape);
  expect_dense(args.sin, "rope: sin", accumulator(dtype), shape);
  select(backend(ctx.device()).rope, "rope", ctx.device(), dtype).run(ctx, args);
}

}  // namespace longhaul::kernels
