#include "kernels/pointwise.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/tables.h"

namespace longhaul::kernels::cpu {

namespace {

constexpr int64_t kGrain = 16384;  // elements
constexpr int64_t kChunks = 64;    // of a reduction: a constant, so that the order is too

// The type between two floating types without loss.
template <class X, class Y>
using Wider =
    std::conditional_t<std::is_same_v<X, double> || std::is_same_v<Y, double>, double, float>;

void fill_zero(const Context& ctx, TensorView x) {
  const int64_t size = size_of(x.dtype());
  ctx.parallel_for(x.elements(), kGrain, [&](int64_t begin, int64_t end) {
    std::memset(x.raw() + begin * size, 0, static_cast<size_t>((end - begin) * size));
  });
}

void copy(const Context& ctx, ConstTensorView x, TensorView y) {
  const int64_t rows = x.dim(0), length = x.elements() / rows;
  visit_float(x.dtype(), [&]<class X>() {
    visit_float(y.dtype(), [&]<class Y>() {
      const X* from = x.data<X>();
      Y* to = y.data<Y>();
      ctx.parallel_for(rows, std::max<int64_t>(1, kGrain / length),
                       [&](int64_t begin, int64_t end) {
                         for (int64_t r = begin; r < end; ++r) {
                           const X* source = from + r * x.stride(0);
                           Y* target = to + r * y.stride(0);
                           for (int64_t i = 0; i < length; ++i) {
                             target[i] = static_cast<Y>(static_cast<Wider<X, Y>>(source[i]));
                           }
                         }
                       });
    });
  });
}

void add_to(const Context& ctx, ConstTensorView x, TensorView y) {
  visit_float(x.dtype(), [&]<class X>() {
    visit_float(y.dtype(), [&]<class Y>() {
      using W = Wider<X, Y>;
      const X* from = x.data<X>();
      Y* to = y.data<Y>();
      ctx.parallel_for(x.elements(), kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          to[i] = static_cast<Y>(static_cast<W>(to[i]) + static_cast<W>(from[i]));
        }
      });
    });
  });
}

void add(const Context& ctx, ConstTensorView x, ConstTensorView y, TensorView z) {
  visit_float(x.dtype(), [&]<class T>() {
    using A = Accumulator<T>;
    const T *a = x.data<T>(), *b = y.data<T>();
    T* c = z.data<T>();
    ctx.parallel_for(x.elements(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        c[i] = static_cast<T>(static_cast<A>(a[i]) + static_cast<A>(b[i]));
      }
    });
  });
}

// chunk(begin, end) of each of kChunks equal parts of [0, n), in an array.
template <class R, class F>
std::array<R, kChunks> for_chunks(const Context& ctx, int64_t n, F chunk) {
  std::array<R, kChunks> results{};
  ctx.parallel_for(kChunks, std::max<int64_t>(1, kGrain * kChunks / n),
                   [&](int64_t first, int64_t last) {
                     for (int64_t c = first; c < last; ++c) {
                       const Range range = part_of(n, c, kChunks);
                       results[static_cast<size_t>(c)] = chunk(range.begin, range.end);
                     }
                   });
  return results;
}

template <class F>
double reduce(const Context& ctx, ConstTensorView x, F map) {
  return visit_float(x.dtype(), [&]<class T>() {
    const T* values = x.data<T>();
    const auto parts = for_chunks<double>(ctx, x.elements(), [&](int64_t begin, int64_t end) {
      std::array<double, 8> lanes{};
      int64_t i = begin;
      for (; i + 8 <= end; i += 8) {
        for (size_t l = 0; l < 8; ++l) {
          lanes[l] += map(static_cast<double>(values[i + static_cast<int64_t>(l)]));
        }
      }
      double total = 0;
      for (double lane : lanes) total += lane;
      for (; i < end; ++i) total += map(static_cast<double>(values[i]));
      return total;
    });
    double total = 0;
    for (double part : parts) total += part;
    return total;
  });
}

double sum_of_squares(const Context& ctx, ConstTensorView x) {
  return reduce(ctx, x, [](double value) { return value * value; });
}

double sum(const Context& ctx, ConstTensorView x) {
  return reduce(ctx, x, [](double value) { return value; });
}

int64_t find_non_finite(const Context& ctx, ConstTensorView x) {
  return visit_float(x.dtype(), [&]<class T>() -> int64_t {
    const T* values = x.data<T>();
    const auto found =
        for_chunks<int64_t>(ctx, x.elements(), [&](int64_t begin, int64_t end) -> int64_t {
          for (int64_t i = begin; i < end; ++i) {
            if (!std::isfinite(static_cast<Accumulator<T>>(values[i]))) return i;
          }
          return -1;
        });
    for (int64_t index : found) {
      if (index >= 0) return index;
    }
    return -1;
  });
}

constexpr PointwiseKernel kTable[] = {
    {"cpu", DeviceKind::kCpu, fill_zero, copy, add_to, add, sum_of_squares, sum, find_non_finite}};

}  // namespace

std::span<const PointwiseKernel> pointwise_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
