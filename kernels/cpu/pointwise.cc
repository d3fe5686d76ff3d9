#include "kernels/pointwise.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/pointwise_rows.h"
#include "kernels/cpu/tables.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/pointwise.cc"
#include "hwy/foreach_target.h"
//
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

// The type between two floating types without loss.
template <class X, class Y>
using Wider =
    std::conditional_t<std::is_same_v<X, double> || std::is_same_v<Y, double>, double, float>;

template <class T>
const T* as(const std::byte* p) {
  return reinterpret_cast<const T*>(p);
}
template <class T>
T* as(std::byte* p) {
  return reinterpret_cast<T*>(p);
}

template <class X, class Y>
void copy_row(const std::byte* x, std::byte* y, int64_t n) {
  if constexpr (std::is_same_v<X, Y>) {
    std::memcpy(y, x, static_cast<size_t>(n) * sizeof(X));
  } else {
    const VectorOf<Wider<X, Y>> d;
    for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
      store(d, load(d, as<X>(x) + i, part), as<Y>(y) + i, part);
    });
  }
}

template <class X, class Y>
void add_to_row(const std::byte* x, std::byte* y, int64_t n) {
  const VectorOf<Wider<X, Y>> d;
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    store(d, hn::Add(load(d, as<Y>(y) + i, part), load(d, as<X>(x) + i, part)), as<Y>(y) + i, part);
  });
}

template <class T>
void add_row(const std::byte* x, const std::byte* y, std::byte* z, int64_t n) {
  const VectorOf<Accumulator<T>> d;
  for_vectors(d, n, [&](int64_t i, auto part) HWY_ATTR {
    store(d, hn::Add(load(d, as<T>(x) + i, part), load(d, as<T>(y) + i, part)), as<T>(z) + i, part);
  });
}

// The sum of map(x) in kSumLanes partial sums, whatever the vectors' length.
constexpr int64_t kSumLanes = 32;
template <class T, class F>
double sum_row(const std::byte* x, int64_t n, F map) {
  const VectorOf<double> d;
  constexpr int64_t kVectorLanes = hn::MaxLanes(d);
  constexpr int64_t kVectors = kSumLanes / kVectorLanes;
  hn::Vec<VectorOf<double>> sums[kVectors];
#pragma GCC unroll 16
  for (auto& sum : sums) sum = hn::Zero(d);
  int64_t i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes) {
#pragma GCC unroll 16
    for (int64_t v = 0; v < kVectors; ++v) {
      sums[v] = hn::Add(sums[v], map(d, load(d, as<T>(x) + i + v * kVectorLanes, Whole{})));
    }
  }
  std::array<double, kSumLanes> lanes;
  for (int64_t v = 0; v < kVectors; ++v) {
    hn::StoreU(sums[v], d, lanes.data() + v * kVectorLanes);
  }
  double total = 0;
  for (double lane : lanes) total += lane;
  const hn::CappedTag<double, 1> one;
  for (; i < n; ++i) {
    total += hn::GetLane(map(one, hn::Set(one, static_cast<double>(as<T>(x)[i]))));
  }
  return total;
}

template <class T>
double plain_sum(const std::byte* x, int64_t n) {
  return sum_row<T>(x, n, [](auto, auto v) HWY_ATTR { return v; });
}
template <class T>
double squares(const std::byte* x, int64_t n) {
  return sum_row<T>(x, n, [](auto, auto v) HWY_ATTR { return hn::Mul(v, v); });
}

// A block is searched only if the sum of its elements, times zero, is not zero.
constexpr int64_t kSearchBlock = 4096;
template <class T>
int64_t non_finite(const std::byte* x, int64_t n) {
  using A = Accumulator<T>;
  const VectorOf<A> d;
  for (int64_t begin = 0; begin < n; begin += kSearchBlock) {
    const int64_t length = std::min(kSearchBlock, n - begin);
    const T* block = as<T>(x) + begin;
    const A zero = sum_vectors(d, length, [&](int64_t i, auto part) HWY_ATTR {
      return hn::Mul(hn::Zero(d), load(d, block + i, part));
    });
    if (zero == 0) continue;
    for (int64_t i = 0; i < length; ++i) {
      if (!std::isfinite(static_cast<A>(block[i]))) return begin + i;
    }
  }
  return -1;
}

template <template <class, class> class F>
constexpr auto pairs() {
  return std::array{
      std::array{F<bf16, bf16>::row, F<bf16, float>::row, F<bf16, double>::row},
      std::array{F<float, bf16>::row, F<float, float>::row, F<float, double>::row},
      std::array{F<double, bf16>::row, F<double, float>::row, F<double, double>::row}};
}
template <class X, class Y>
struct CopyRow {
  static constexpr PointwiseRows::Convert row = copy_row<X, Y>;
};
template <class X, class Y>
struct AddToRow {
  static constexpr PointwiseRows::Convert row = add_to_row<X, Y>;
};

const PointwiseRows* pointwise_rows() {
  static constexpr PointwiseRows kRows{
      .copy = pairs<CopyRow>(),
      .add_to = pairs<AddToRow>(),
      .add = {add_row<bf16>, add_row<float>, add_row<double>},
      .sum = {plain_sum<bf16>, plain_sum<float>, plain_sum<double>},
      .sum_of_squares = {squares<bf16>, squares<float>, squares<double>},
      .find_non_finite = {non_finite<bf16>, non_finite<float>, non_finite<double>}};
  return &kRows;
}

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels::cpu {

HWY_EXPORT(pointwise_rows);

namespace {

constexpr int64_t kGrain = 16384;  // elements
constexpr int64_t kChunks = 64;    // of a reduction: a constant, so that the order is too

const PointwiseRows& rows() { return *HWY_DYNAMIC_DISPATCH(pointwise_rows)(); }
size_t index(DType dtype) { return static_cast<size_t>(dtype); }

void fill_zero(const Context& ctx, TensorView x) {
  const int64_t size = size_of(x.dtype());
  ctx.parallel_for(x.elements(), kGrain, [&](int64_t begin, int64_t end) {
    std::memset(x.raw() + begin * size, 0, static_cast<size_t>((end - begin) * size));
  });
}

void copy(const Context& ctx, ConstTensorView x, TensorView y) {
  const int64_t count = x.dim(0), length = x.elements() / count;
  const int64_t x_stride = x.stride(0) * size_of(x.dtype());
  const int64_t y_stride = y.stride(0) * size_of(y.dtype());
  const auto row = rows().copy[index(x.dtype())][index(y.dtype())];
  if (x.contiguous() && y.contiguous()) {
    return ctx.parallel_for(x.elements(), kGrain, [&](int64_t begin, int64_t end) {
      row(x.raw() + begin * size_of(x.dtype()), y.raw() + begin * size_of(y.dtype()), end - begin);
    });
  }
  ctx.parallel_for(count, std::max<int64_t>(1, kGrain / length), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      row(x.raw() + r * x_stride, y.raw() + r * y_stride, length);
  });
}

void add_to(const Context& ctx, ConstTensorView x, TensorView y) {
  const auto row = rows().add_to[index(x.dtype())][index(y.dtype())];
  const int64_t x_size = size_of(x.dtype()), y_size = size_of(y.dtype());
  ctx.parallel_for(x.elements(), kGrain, [&](int64_t begin, int64_t end) {
    row(x.raw() + begin * x_size, y.raw() + begin * y_size, end - begin);
  });
}

void add(const Context& ctx, ConstTensorView x, ConstTensorView y, TensorView z) {
  const auto row = rows().add[index(x.dtype())];
  const int64_t size = size_of(x.dtype());
  ctx.parallel_for(x.elements(), kGrain, [&](int64_t begin, int64_t end) {
    row(x.raw() + begin * size, y.raw() + begin * size, z.raw() + begin * size, end - begin);
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

double reduce(const Context& ctx, ConstTensorView x, PointwiseRows::Sum row) {
  if (ctx.measuring()) return 0.0;
  const auto parts = for_chunks<double>(ctx, x.elements(), [&](int64_t begin, int64_t end) {
    return row(x.raw() + begin * size_of(x.dtype()), end - begin);
  });
  double total = 0;
  for (double part : parts) total += part;
  return total;
}

double sum_of_squares(const Context& ctx, ConstTensorView x) {
  return reduce(ctx, x, rows().sum_of_squares[index(x.dtype())]);
}

double sum(const Context& ctx, ConstTensorView x) {
  return reduce(ctx, x, rows().sum[index(x.dtype())]);
}

int64_t find_non_finite(const Context& ctx, ConstTensorView x) {
  if (ctx.measuring()) return -1;
  const auto row = rows().find_non_finite[index(x.dtype())];
  const auto found = for_chunks<int64_t>(ctx, x.elements(), [&](int64_t begin, int64_t end) {
    const int64_t at = row(x.raw() + begin * size_of(x.dtype()), end - begin);
    return at < 0 ? at : begin + at;
  });
  for (int64_t index : found) {
    if (index >= 0) return index;
  }
  return -1;
}

constexpr PointwiseKernel kTable[] = {{"vector", DeviceKind::kCpu, fill_zero, copy, add_to, add,
                                       sum_of_squares, sum, find_non_finite}};

}  // namespace

std::span<const PointwiseKernel> pointwise_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
#endif  // HWY_ONCE
