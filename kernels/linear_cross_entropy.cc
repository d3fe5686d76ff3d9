#include "kernels/linear_cross_entropy.h"

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"
#include "kernels/checks.h"

namespace longhaul::kernels {

void check_labels(std::span<const int32_t> labels, int64_t vocabulary) {
  for (size_t t = 0; t < labels.size(); ++t) {
    if (labels[t] >= -1 && labels[t] < vocabulary) continue;
    fail(ErrorCode::kData, absl::StrCat("label ", labels[t], " at row ", t,
                                        " is neither -1 nor in the vocabulary [0, ", vocabulary,
                                        "); tokenize the data for this model"));
  }
}

void linear_cross_entropy(const Context& ctx, const LinearCrossEntropy& args) {
  expect_float(args.x, "linear_cross_entropy: x", 2);
  const DType dtype = args.x.dtype(), acc = accumulator(dtype);
  const int64_t tokens = args.x.dim(0), channels = args.x.dim(1);
  LONGHAUL_CHECK(args.weight.rank() == 2, "linear_cross_entropy: weight");
  const int64_t vocabulary = args.weight.dim(0);
  expect_rows(args.weight, "linear_cross_entropy: weight", dtype, {vocabulary, channels});
  expect_dense(args.labels, "linear_cross_entropy: labels", DType::kI32, {tokens});
  expect_dense(args.row_loss, "linear_cross_entropy: row_loss", acc, {tokens});
  LONGHAUL_CHECK(args.tile_rows >= 0);
  if (args.with_gradients) {
    expect_rows(args.dx, "linear_cross_entropy: dx", dtype, {tokens, channels});
    if (args.dweight.rank() > 0) {
      expect_rows(args.dweight, "linear_cross_entropy: dweight", acc, {vocabulary, channels});
    }
  }
  select(backend(ctx.device()).linear_cross_entropy, "linear_cross_entropy", ctx.device(), dtype)
      .run(ctx, args);
}

}  // namespace longhaul::kernels
