#include "kernels/pointwise.h"

#include <array>
#include <type_traits>

#include "kernels/core/cuda/check.h"
#include "kernels/cuda/pieces.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/tables.h"

namespace longhaul::kernels::cuda {

namespace {

// The type between two floating types without loss.
template <class X, class Y>
using Wider =
    std::conditional_t<std::is_same_v<X, double> || std::is_same_v<Y, double>, double, float>;
template <class X, class Y>
using Narrower = std::conditional_t<(sizeof(X) < sizeof(Y)), X, Y>;

// To bf16 by way of f32, as on CPUs.
template <class T, class W>
__device__ T round_to(W x) {
  return T(static_cast<Accumulator<T>>(x));
}

template <class X, class Y>
struct Copy {
  Rows<const X> x;
  Rows<Y> y;

  template <int kN>
  __device__ void run(int64_t row, int64_t column, int64_t count) const {
    const Pack<X, kN> from = load<kN>(x.at(row, column), count);
    Pack<Y, kN> to;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      if constexpr (std::is_same_v<X, Y>) {
        to.e[i] = from.e[i];
      } else {
        to.e[i] = round_to<Y>(static_cast<Wider<X, Y>>(from.e[i]));
      }
    }
    store(to, y.at(row, column), count);
  }
};

template <class X, class Y>
struct AddTo {
  const X* x;
  Y* y;

  template <int kN>
  __device__ void run(int64_t, int64_t column, int64_t count) const {
    using W = Wider<X, Y>;
    const Pack<X, kN> from = load<kN>(x + column, count);
    Pack<Y, kN> to = load<kN>(y + column, count);
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      to.e[i] = round_to<Y>(static_cast<W>(to.e[i]) + static_cast<W>(from.e[i]));
    }
    store(to, y + column, count);
  }
};

template <class T>
struct Add {
  const T *x, *y;
  T* z;

  template <int kN>
  __device__ void run(int64_t, int64_t column, int64_t count) const {
    using A = Accumulator<T>;
    const Pack<T, kN> a = load<kN>(x + column, count), b = load<kN>(y + column, count);
    Pack<T, kN> sum;
#pragma unroll
    for (int i = 0; i < kN; ++i) sum.e[i] = T(static_cast<A>(a.e[i]) + static_cast<A>(b.e[i]));
    store(sum, z + column, count);
  }
};

void fill_zero(const Context& ctx, TensorView x) {
  if (ctx.measuring() || x.empty()) return;
  longhaul::cuda::check(cudaMemsetAsync(x.raw(), 0, static_cast<size_t>(x.bytes()),
                                        static_cast<cudaStream_t>(ctx.stream.native)),
                        "fill_zero");
}

void copy(const Context& ctx, ConstTensorView x, TensorView y) {
  if (ctx.measuring() || x.empty()) return;
  // Without gaps it is one row.
  const bool dense = x.contiguous() && y.contiguous();
  const int64_t rows = dense ? 1 : x.dim(0), width = x.elements() / rows;
  const auto aligned = [&](const ConstTensorView& view) {
    return vectors_allowed({dense ? view.reshape({width}) : view});
  };
  visit_float(x.dtype(), [&]<class X>() {
    visit_float(y.dtype(), [&]<class Y>() {
      for_pieces<Narrower<X, Y>>(ctx, "copy", rows, width, aligned(x) && aligned(y),
                                 Copy<X, Y>{rows_of<X>(x), rows_to<Y>(y)});
    });
  });
}

void add_to(const Context& ctx, ConstTensorView x, TensorView y) {
  if (ctx.measuring() || x.empty()) return;
  const Shape flat{x.elements()};
  const bool vectors = vectors_allowed({x.reshape(flat), y.reshape(flat)});
  visit_float(x.dtype(), [&]<class X>() {
    visit_float(y.dtype(), [&]<class Y>() {
      for_pieces<Narrower<X, Y>>(ctx, "add_to", 1, x.elements(), vectors,
                                 AddTo<X, Y>{x.data<X>(), y.data<Y>()});
    });
  });
}

void add(const Context& ctx, ConstTensorView x, ConstTensorView y, TensorView z) {
  if (ctx.measuring() || x.empty()) return;
  const Shape flat{x.elements()};
  const bool vectors = vectors_allowed({x.reshape(flat), y.reshape(flat), z.reshape(flat)});
  visit_float(x.dtype(), [&]<class T>() {
    for_pieces<T>(ctx, "add", 1, x.elements(), vectors,
                  Add<T>{x.data<T>(), y.data<T>(), z.data<T>()});
  });
}

struct Sum {
  using Value = double;
  __device__ static Value start() { return 0; }
  __device__ static Value of(double x, int64_t) { return x; }
  __device__ static Value combine(Value a, Value b) { return a + b; }
};
struct SumOfSquares : Sum {
  __device__ static Value of(double x, int64_t) { return x * x; }
};
struct FirstNonFinite {
  using Value = int64_t;
  static constexpr int64_t kNone = INT64_MAX;
  __device__ static Value start() { return kNone; }
  // Their difference with themselves is not zero.
  __device__ static Value of(double x, int64_t at) { return x - x == 0 ? kNone : at; }
  __device__ static Value combine(Value a, Value b) { return a < b ? a : b; }
};

double sum_of_squares(const Context& ctx, ConstTensorView x) {
  return reduce<SumOfSquares>(ctx, "sum_of_squares", x).value_or(0.0);
}
double sum(const Context& ctx, ConstTensorView x) {
  return reduce<Sum>(ctx, "sum", x).value_or(0.0);
}
int64_t find_non_finite(const Context& ctx, ConstTensorView x) {
  const int64_t at =
      reduce<FirstNonFinite>(ctx, "find_non_finite", x).value_or(FirstNonFinite::kNone);
  return at == FirstNonFinite::kNone ? -1 : at;
}

constexpr PointwiseKernel kTable[] = {{"cuda", DeviceKind::kCuda, fill_zero, copy, add_to, add,
                                       sum_of_squares, sum, find_non_finite}};

}  // namespace

std::span<const PointwiseKernel> pointwise_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
