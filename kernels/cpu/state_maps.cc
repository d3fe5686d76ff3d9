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

// to += a * earlier for rows of `width`; a[k] has the given stride.
template <class A>
void add_product(const A* a, int64_t stride, int64_t count, const A* earlier, A* to,
                 int64_t width) {
  for (int64_t k = 0; k < count; ++k) {
    const A factor = a[k * stride];
    for (int64_t j = 0; j < width; ++j) to[j] += factor * earlier[k * width + j];
  }
}

// Matrices. `product`: D * D elements of scratch.
template <class A>
void compose_dense(const StateMapsCompose& args, const A* earlier_sums, const A* earlier_decay,
                   A* sums, A* decay, A* product) {
  const int64_t dim = args.head_dim, width = args.sums.dim(2) / dim;
  if (std::all_of(decay, decay + dim * dim, [](A value) { return value == A(0); })) return;
  const int64_t row = args.transposed ? 1 : dim, column = args.transposed ? dim : 1;
  for (int64_t i = 0; i < dim; ++i) {
    add_product(decay + i * row, column, dim, earlier_sums, sums + i * width, width);
  }
  if (earlier_decay == nullptr) return;
  // In the order of the matrices: the earlier one comes last, or transposed first.
  const A* left = args.transposed ? earlier_decay : decay;
  const A* right = args.transposed ? decay : earlier_decay;
  std::fill(product, product + dim * dim, A(0));
  for (int64_t i = 0; i < dim; ++i) {
    add_product(left + i * dim, 1, dim, right, product + i * dim, dim);
  }
  std::copy(product, product + dim * dim, decay);
}

// Logarithms.
template <class A>
void compose_decays(const StateMapsCompose& args, const A* earlier_sums, const A* earlier_decay,
                    A* sums, A* decay) {
  const int64_t dim = args.head_dim, width = args.sums.dim(2) / dim;
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
  const int64_t products = matrices ? maps * dim * dim : 0;
  const TensorView scratch = ctx.scratch->allocate(dtype_of<A>, {products});
  if (ctx.measuring() || args.sums.empty()) return;
  const bool dense = args.kind == StateDecay::kDense;
  const int64_t operations = args.sums.dim(2) * (dense ? dim : 1);
  const int64_t grain = std::max<int64_t>(1, kOperationsPerTask / operations);
  ctx.parallel_for(maps, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto at = [&](const auto& view) { return map_at<A>(view, i / heads, i % heads); };
      if (dense) {
        A* product = matrices ? scratch.data<A>() + i * dim * dim : nullptr;
        compose_dense<A>(args, at(args.earlier_sums), at(args.earlier_decay), at(args.sums),
                         at(args.decay), product);
      } else {
        compose_decays<A>(args, at(args.earlier_sums), at(args.earlier_decay), at(args.sums),
                          at(args.decay));
      }
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
