// A pass over memory, but for matrices, whose products are small beside those of attention: plain
// loops, in parallel over maps.
#include "kernels/state_maps.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/tables.h"

namespace longhaul::kernels::cpu {

namespace {

constexpr int64_t kOperationsPerTask = 16384;

// The map of a row and head in a view [R, H, x]; null if the view is absent.
template <class A, class View>
auto map_at(const View& view, int64_t row, int64_t head) {
  return view.rank() == 0 ? nullptr
                          : view.template data<A>() + row * view.stride(0) + head * view.stride(1);
}

// to += e^log_decay * earlier
template <class A>
void add_decayed(A log_decay, const A* earlier, A* to, int64_t count) {
  if (log_decay == -std::numeric_limits<A>::infinity()) return;
  const A factor = std::exp(log_decay);
  for (int64_t i = 0; i < count; ++i) to[i] += factor * earlier[i];
}

// to += a * earlier, with a row of a matrix and all rows of `earlier`.
template <class A>
void add_product(const A* a, int64_t count, const A* earlier, A* to, int64_t width) {
  if (std::all_of(a, a + count, [](A factor) { return factor == A(0); })) return;
  for (int64_t k = 0; k < count; ++k) {
    const A factor = a[k];
    for (int64_t j = 0; j < width; ++j) to[j] += factor * earlier[k * width + j];
  }
}

// One map. `row`: D elements of scratch, for matrices.
template <class A>
void compose_one(const StateMapsCompose& args, const A* earlier_sums, const A* earlier_decay,
                 A* sums, A* decay, A* row) {
  const int64_t dim = args.head_dim, width = args.sums.dim(2) / dim;
  if (args.kind == StateDecay::kDense) {
    for (int64_t i = 0; i < dim; ++i) {
      A* a = decay + i * dim;
      add_product(a, dim, earlier_sums, sums + i * width, width);
      if (earlier_decay == nullptr) continue;
      std::fill(row, row + dim, A(0));
      add_product(a, dim, earlier_decay, row, dim);
      std::copy(row, row + dim, a);
    }
    return;
  }
  // A logarithm for `span` elements of the state each.
  const int64_t logarithms = decay_elements(args.kind, dim), span = dim * width / logarithms;
  for (int64_t i = 0; i < logarithms; ++i) {
    add_decayed(decay[i], earlier_sums + i * span, sums + i * span, span);
    const bool forgets = decay[i] == -std::numeric_limits<A>::infinity();
    if (earlier_decay != nullptr && !forgets) decay[i] += earlier_decay[i];
  }
}

template <class A>
void compose(const Context& ctx, const StateMapsCompose& args) {
  const int64_t heads = args.sums.dim(1), maps = args.sums.dim(0) * heads, dim = args.head_dim;
  const Arena::Scope scope(*ctx.scratch);
  const bool matrices = args.kind == StateDecay::kDense && args.earlier_decay.rank() > 0;
  const TensorView rows = ctx.scratch->allocate(dtype_of<A>, {matrices ? maps : 0, dim});
  if (ctx.measuring() || args.sums.empty()) return;
  const int64_t operations = args.sums.dim(2) * (args.kind == StateDecay::kDense ? dim : 1);
  const int64_t grain = std::max<int64_t>(1, kOperationsPerTask / operations);
  ctx.parallel_for(maps, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / heads, head = i % heads;
      compose_one<A>(args, map_at<A>(args.earlier_sums, row, head),
                     map_at<A>(args.earlier_decay, row, head), map_at<A>(args.sums, row, head),
                     map_at<A>(args.decay, row, head),
                     matrices ? rows.data<A>() + i * dim : nullptr);
    }
  });
}

template <class A>
constexpr StateMapsKernel row() {
  return {
      .name = "loops", .dtype = dtype_of<A>, .available = always_available, .compose = compose<A>};
}
constexpr StateMapsKernel kTable[] = {row<float>(), row<double>()};

}  // namespace

std::span<const StateMapsKernel> state_maps_table() { return kTable; }

}  // namespace longhaul::kernels::cpu
