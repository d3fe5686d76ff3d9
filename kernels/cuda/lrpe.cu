#include "kernels/lrpe.h"

#include "kernels/cuda/pieces.h"
#include "kernels/cuda/tables.h"

namespace longhaul::kernels::cuda {

namespace {

// Heads of tokens: a row of for_pieces() is one head of one token.
template <class P>
struct Heads {
  P* p;
  int64_t heads, token_stride, head_stride;
  Divisor by_heads;
  __device__ P* at(int64_t row, int64_t column) const {
    const int64_t token = by_heads.quotient(row), head = row - token * heads;
    return p + token * token_stride + head * head_stride + column;
  }
};

template <class T>
struct Forward {
  using A = Accumulator<T>;
  int64_t dim;
  const A *cos, *sin;
  Heads<const T> x;
  Heads<T> y;

  template <int kN>
  __device__ void run(int64_t row, int64_t column, int64_t count) const {
    const Pack<A, kN> c = load<kN>(cos + row * dim + column, count);
    const Pack<A, kN> s = load<kN>(sin + row * dim + column, count);
    const Pack<T, kN> from = load<kN>(x.at(row, column), count);
    Pack<T, kN> along, across;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      along.e[i] = T(static_cast<A>(from.e[i]) * c.e[i]);
      across.e[i] = T(static_cast<A>(from.e[i]) * s.e[i]);
    }
    store(along, y.at(row, column), count);
    store(across, y.at(row, dim + column), count);
  }
};

template <class T>
struct Backward {
  using A = Accumulator<T>;
  int64_t dim;
  const A *cos, *sin;
  Heads<const T> dy;
  Heads<T> dx;

  template <int kN>
  __device__ void run(int64_t row, int64_t column, int64_t count) const {
    const Pack<A, kN> c = load<kN>(cos + row * dim + column, count);
    const Pack<A, kN> s = load<kN>(sin + row * dim + column, count);
    const Pack<T, kN> along = load<kN>(dy.at(row, column), count);
    const Pack<T, kN> across = load<kN>(dy.at(row, dim + column), count);
    Pack<T, kN> to;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      to.e[i] = T(static_cast<A>(along.e[i]) * c.e[i] + static_cast<A>(across.e[i]) * s.e[i]);
    }
    store(to, dx.at(row, column), count);
  }
};

template <class T>
Heads<const T> heads_of(const ConstTensorView& x) {
  return {x.data<T>(), x.dim(1), x.stride(0), x.stride(1), Divisor(x.dim(1))};
}
template <class T>
Heads<T> heads_to(const TensorView& x) {
  return {x.data<T>(), x.dim(1), x.stride(0), x.stride(1), Divisor(x.dim(1))};
}

// Whether the heads, and their halves, begin where vectors may.
template <class T>
bool vectors_in_heads(std::initializer_list<ConstTensorView> views, int64_t dim) {
  return vectors_allowed(views) && dim * int64_t{sizeof(T)} % kVectorBytes == 0;
}

template <class T>
void forward(const Context& ctx, const LrpeForward& args) {
  using A = Accumulator<T>;
  if (ctx.measuring() || args.x.empty()) return;
  const int64_t dim = args.x.dim(2);
  for_pieces<T>(ctx, "lrpe forward", args.x.dim(0) * args.x.dim(1), dim,
                vectors_in_heads<T>({args.cos, args.sin, args.x, args.y}, dim),
                Forward<T>{dim, args.cos.data<A>(), args.sin.data<A>(), heads_of<T>(args.x),
                           heads_to<T>(args.y)});
}

template <class T>
void backward(const Context& ctx, const LrpeBackward& args) {
  using A = Accumulator<T>;
  if (ctx.measuring() || args.dx.empty()) return;
  const int64_t dim = args.dx.dim(2);
  for_pieces<T>(ctx, "lrpe backward", args.dx.dim(0) * args.dx.dim(1), dim,
                vectors_in_heads<T>({args.cos, args.sin, args.dy, args.dx}, dim),
                Backward<T>{dim, args.cos.data<A>(), args.sin.data<A>(), heads_of<T>(args.dy),
                            heads_to<T>(args.dx)});
}

template <class T>
constexpr LrpeKernel row() {
  return {.name = "cuda",
          .dtype = dtype_of<T>,
          .available = available,
          .forward = forward<T>,
          .backward = backward<T>};
}
constexpr LrpeKernel kTable[] = {row<bf16>(), row<float>(), row<double>()};

}  // namespace

std::span<const LrpeKernel> lrpe_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
