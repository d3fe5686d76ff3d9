#include "kernels/embedding.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/tables.h"

namespace longhaul::kernels::cpu {

namespace {

constexpr int64_t kElementsPerTask = 16384;
constexpr int64_t kColumnsPerTask = 32;

void check_tokens(const int32_t* tokens, int64_t count, int64_t vocabulary) {
  for (int64_t t = 0; t < count; ++t) {
    if (tokens[t] < 0 || tokens[t] >= vocabulary) {
      fail(ErrorCode::kData, absl::StrCat("token ", tokens[t], " at row ", t,
                                          " lies outside the vocabulary [0, ", vocabulary,
                                          "); tokenize the data for this model or raise "
                                          "model.vocabulary"));
    }
  }
}

template <class T>
void forward(const Context& ctx, const EmbeddingForward& args) {
  if (ctx.measuring() || args.out.empty()) return;
  const int32_t* tokens = args.tokens.data<int32_t>();
  const int64_t count = args.tokens.dim(0), channels = args.table.dim(1);
  check_tokens(tokens, count, args.table.dim(0));
  const T* table = args.table.data<T>();
  T* out = args.out.data<T>();
  const int64_t table_stride = args.table.stride(0), out_stride = args.out.stride(0);
  ctx.parallel_for(
      count, std::max<int64_t>(1, kElementsPerTask / channels), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          std::copy_n(table + tokens[t] * table_stride, channels, out + t * out_stride);
        }
      });
}

// Tasks own columns, so that each element of dtable is summed in token order.
template <class T>
void backward(const Context& ctx, const EmbeddingBackward& args) {
  if (ctx.measuring() || args.dout.empty()) return;
  using A = Accumulator<T>;
  const int32_t* tokens = args.tokens.data<int32_t>();
  const int64_t count = args.tokens.dim(0), channels = args.dout.dim(1);
  check_tokens(tokens, count, args.dtable.dim(0));
  const T* dout = args.dout.data<T>();
  A* dtable = args.dtable.data<A>();
  const int64_t table_stride = args.dtable.stride(0), dout_stride = args.dout.stride(0);
  ctx.parallel_for(channels, kColumnsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < count; ++t) {
      const T* from = dout + t * dout_stride;
      A* to = dtable + tokens[t] * table_stride;
      for (int64_t c = begin; c < end; ++c) to[c] += static_cast<A>(from[c]);
    }
  });
}

constexpr EmbeddingKernel kTable[] = {
    {"cpu", DType::kBF16, always_available, forward<bf16>, backward<bf16>},
    {"cpu", DType::kF32, always_available, forward<float>, backward<float>},
    {"cpu", DType::kF64, always_available, forward<double>, backward<double>}};

}  // namespace

std::span<const EmbeddingKernel> embedding_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
