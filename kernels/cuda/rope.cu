#include "kernels/rope.h"

#include "kernels/cuda/pieces.h"
#include "kernels/cuda/tables.h"

namespace longhaul::kernels::cuda {

namespace {

// Heads of a token that one thread turns: they share cos and sin.
constexpr int64_t kHeads = 4;

template <class T>
struct Rotate {
  using A = Accumulator<T>;
  const A *cos, *sin;  // [T, half]
  A sign;              // of sin
  int64_t half, heads, groups;
  Divisor by_groups;
  T* x;
  int64_t token_stride, head_stride;

  // A row is a group of heads of one token, its columns are the first halves'.
  template <int kN>
  __device__ void run(int64_t row, int64_t column, int64_t count) const {
    const int64_t token = by_groups.quotient(row), head = (row - token * groups) * kHeads;
    const Pack<A, kN> c = load<kN>(cos + token * half + column, count);
    const Pack<A, kN> s = load<kN>(sin + token * half + column, count);
    const int64_t end = std::min(head + kHeads, heads);
    for (int64_t h = head; h < end; ++h) {
      T* first = x + token * token_stride + h * head_stride + column;
      T* second = first + half;
      Pack<T, kN> a = load<kN>(first, count), b = load<kN>(second, count);
#pragma unroll
      for (int i = 0; i < kN; ++i) {
        const A from_a = static_cast<A>(a.e[i]), from_b = static_cast<A>(b.e[i]);
        const A turn = sign * s.e[i];
        a.e[i] = T(from_a * c.e[i] - from_b * turn);
        b.e[i] = T(from_b * c.e[i] + from_a * turn);
      }
      store(a, first, count);
      store(b, second, count);
    }
  }
};

template <class T>
void run(const Context& ctx, const Rope& args) {
  using A = Accumulator<T>;
  if (ctx.measuring() || args.x.empty()) return;
  const int64_t tokens = args.x.dim(0), heads = args.x.dim(1), half = args.x.dim(2) / 2;
  const int64_t groups = (heads + kHeads - 1) / kHeads;
  const bool vectors = vectors_allowed({args.x, args.cos, args.sin}) &&
                       half * int64_t{sizeof(T)} % kVectorBytes == 0 &&
                       args.x.stride(1) * int64_t{sizeof(T)} % kVectorBytes == 0;
  for_pieces<T>(ctx, "rope", tokens * groups, half, vectors,
                Rotate<T>{.cos = args.cos.data<A>(),
                          .sin = args.sin.data<A>(),
                          .sign = args.inverse ? A(-1) : A(1),
                          .half = half,
                          .heads = heads,
                          .groups = groups,
                          .by_groups = Divisor(groups),
                          .x = args.x.data<T>(),
                          .token_stride = args.x.stride(0),
                          .head_stride = args.x.stride(1)});
}

constexpr RopeKernel kTable[] = {{"cuda", DType::kBF16, available, run<bf16>},
                                 {"cuda", DType::kF32, available, run<float>},
                                 {"cuda", DType::kF64, available, run<double>}};

}  // namespace

std::span<const RopeKernel> rope_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
