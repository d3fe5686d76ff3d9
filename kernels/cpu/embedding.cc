#include "kernels/embedding.h"

#include <algorithm>

#include "hwy/cache_control.h"
#include "kernels/cpu/by_dtype.h"
#include "kernels/cpu/embedding_columns.h"
#include "kernels/cpu/tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/embedding.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

template <class T>
void add_columns(const EmbeddingColumns<T>& c) {
  using A = Accumulator<T>;
  const VectorOf<A> d;
  for (int64_t t = 0; t < c.count; ++t) {
    const T* from = c.dout + t * c.dout_stride;
    A* to = c.dtable + c.tokens[t] * c.dtable_stride;
    // Pieces of rows are too short for the hardware to foresee: ask for the next token's here.
    const int64_t after = std::min(t + 1, c.count - 1);
    const T* next_from = c.dout + after * c.dout_stride;
    const A* next_to = c.dtable + c.tokens[after] * c.dtable_stride;
    for_vectors(d, c.columns, [&](int64_t i, auto part) HWY_ATTR {
      hwy::Prefetch(next_from + i);
      hwy::Prefetch(next_to + i);
      store(d, hn::Add(load(d, to + i, part), load(d, from + i, part)), to + i, part);
    });
  }
}

ByDType<AddColumns> add_embedding_columns() {
  return {add_columns<bf16>, add_columns<float>, add_columns<double>};
}

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(add_embedding_columns);

namespace {

constexpr int64_t kElementsPerTask = 16384;
constexpr int64_t kLine = 64;             // bytes of a cache line
constexpr int64_t kColumnsPerTask = 128;  // at least: short pieces of rows waste memory speed
constexpr int64_t kElementsPerPoll = 1'000'000;  // about a millisecond

template <class T>
void forward(const Context& ctx, const EmbeddingForward& args) {
  if (ctx.measuring() || args.out.empty()) return;
  const int32_t* tokens = args.tokens.data<int32_t>();
  const int64_t count = args.tokens.dim(0), channels = args.table.dim(1);
  check_tokens(args.tokens.span<int32_t>(), args.table.dim(0));
  const T* table = args.table.data<T>();
  T* out = args.out.data<T>();
  const int64_t table_stride = args.table.stride(0), out_stride = args.out.stride(0);
  ctx.parallel_for(
      count, std::max<int64_t>(1, kElementsPerTask / channels), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          // The next row is anywhere in the table: ask for it before this one is copied.
          const T* next = table + tokens[std::min(t + 1, end - 1)] * table_stride;
          for (int64_t c = 0; c < channels; c += kLine / int64_t{sizeof(T)})
            hwy::Prefetch(next + c);
          std::copy_n(table + tokens[t] * table_stride, channels, out + t * out_stride);
        }
      });
}

// Threads own columns, as wide as possible, so that each element of dtable is summed in token
// order. Blocks of tokens let the caller poll.
template <class T>
void backward(const Context& ctx, const EmbeddingBackward& args) {
  if (ctx.measuring() || args.dout.empty()) return;
  using A = Accumulator<T>;
  const int32_t* tokens = args.tokens.data<int32_t>();
  const int64_t count = args.tokens.dim(0), channels = args.dout.dim(1);
  check_tokens(args.tokens.span<int32_t>(), args.dtable.dim(0));
  const T* dout = args.dout.data<T>();
  A* dtable = args.dtable.data<A>();
  const auto add_columns = std::get<AddColumns<T>>(HWY_DYNAMIC_DISPATCH(add_embedding_columns)());
  const int64_t parts =
      std::clamp<int64_t>(channels / kColumnsPerTask, 1, int64_t{ctx.pool->threads()});
  const int64_t block = std::max<int64_t>(1, parts * kElementsPerPoll / channels);
  for (int64_t t = 0; t < count; t += block) {
    ctx.pool->run(
        parts,
        [&](int64_t p, int) {
          const Range columns = part_of(channels, p, parts);
          add_columns({.tokens = tokens + t,
                       .count = std::min(block, count - t),
                       .columns = columns.size(),
                       .dout = dout + t * args.dout.stride(0) + columns.begin,
                       .dout_stride = args.dout.stride(0),
                       .dtable = dtable + columns.begin,
                       .dtable_stride = args.dtable.stride(0)});
        },
        ctx.poll);
  }
}

constexpr EmbeddingKernel kTable[] = {
    {"vector", DType::kBF16, always_available, forward<bf16>, backward<bf16>},
    {"vector", DType::kF32, always_available, forward<float>, backward<float>},
    {"vector", DType::kF64, always_available, forward<double>, backward<double>}};

}  // namespace

std::span<const EmbeddingKernel> embedding_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
