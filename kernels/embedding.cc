#include "kernels/embedding.h"

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"
#include "kernels/checks.h"

namespace longhaul::kernels {

void check_tokens(std::span<const int32_t> tokens, int64_t vocabulary) {
  for (size_t t = 0; t < tokens.size(); ++t) {
    if (tokens[t] >= 0 && tokens[t] < vocabulary) continue;
    fail(ErrorCode::kData,
         absl::StrCat("token ", tokens[t], " at row ", t, " lies outside the vocabulary [0, ",
                      vocabulary, "); tokenize the data for this model or raise model.vocabulary"));
  }
}

void embedding_forward(const Context& ctx, const EmbeddingForward& args) {
  expect_float(args.table, "embedding: table", 2);
  const DType dtype = args.table.dtype();
  LONGHAUL_CHECK(args.tokens.rank() == 1, "embedding: tokens");
  const int64_t tokens = args.tokens.dim(0), channels = args.table.dim(1);
  expect_dense(args.tokens, "embedding: tokens", DType::kI32, {tokens});
  expect_rows(args.out, "embedding: out", dtype, {tokens, channels});
  select(backend(ctx.device()).embedding, "embedding", ctx.device(), dtype).forward(ctx, args);
}

void embedding_backward(const Context& ctx, const EmbeddingBackward& args) {
  expect_float(args.dout, "embedding: dout", 2);
  const DType dtype = args.dout.dtype();
  const int64_t tokens = args.dout.dim(0), channels = args.dout.dim(1);
  expect_dense(args.tokens, "embedding: tokens", DType::kI32, {tokens});
  LONGHAUL_CHECK(args.dtable.rank() == 2, "embedding: dtable");
  expect_rows(args.dtable, "embedding: dtable", accumulator(dtype), {args.dtable.dim(0), channels});
  select(backend(ctx.device()).embedding, "embedding", ctx.device(), dtype).backward(ctx, args);
}

}  // namespace longhaul::kernels
