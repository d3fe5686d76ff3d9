// Logarithms: a pass over memory, a thread for an element of a state, then one for each logarithm.
// Matrices: tiles of 32 x 32 in shared memory, a block for a tile of a map's product; small beside
// attention itself, so that they do without tensor cores.
#include <limits>

#include "kernels/cuda/simt_tiles.h"
#include "kernels/cuda/tables.h"
#include "kernels/state_maps.h"

namespace longhaul::kernels::cuda {

namespace {

// Maps [R, H, x] of any stride between rows and heads.
template <class A>
struct Maps {
  A* p = nullptr;  // none: absent
  int64_t row = 0, head = 0;

  __device__ A* of(int64_t map, int64_t heads) const {
    return p + map / heads * row + map % heads * head;
  }
};
template <class A>
Maps<const A> maps_of(const ConstTensorView& x) {
  if (x.rank() == 0) return {};
  return {x.data<A>(), x.stride(0), x.stride(1)};
}
template <class A>
Maps<A> maps_to(const TensorView& x) {
  return {x.data<A>(), x.stride(0), x.stride(1)};
}

template <class A>
__device__ __forceinline__ bool forgets(A log_decay) {
  return log_decay == -std::numeric_limits<A>::infinity();
}

// sums += e^decay earlier; `span` elements of the state have one logarithm.
template <class A>
__global__ void add_decayed_kernel(int64_t maps, int64_t heads, int64_t elements, int64_t span,
                                   Maps<const A> decay, Maps<const A> earlier, Maps<A> sums) {
  for (int64_t n = grid_first(); n < maps * elements; n += grid_stride()) {
    const int64_t map = n / elements, i = n - map * elements;
    const A log_decay = decay.of(map, heads)[i / span];
    if (forgets(log_decay)) continue;
    sums.of(map, heads)[i] += exp(log_decay) * earlier.of(map, heads)[i];
  }
}

template <class A>
__global__ void add_logarithms_kernel(int64_t maps, int64_t heads, int64_t elements,
                                      Maps<const A> earlier, Maps<A> decay) {
  for (int64_t n = grid_first(); n < maps * elements; n += grid_stride()) {
    const int64_t map = n / elements, i = n - map * elements;
    A& sum = decay.of(map, heads)[i];
    if (!forgets(sum)) sum += earlier.of(map, heads)[i];
  }
}

// Whether a map's matrix has a value other than 0. A block for a map.
template <class A>
__global__ void any_kernel(int64_t heads, int64_t elements, Maps<const A> matrices, int64_t* any) {
  const A* matrix = matrices.of(blockIdx.x, heads);
  bool found = false;
  for (int64_t i = threadIdx.x; i < elements; i += blockDim.x) found |= matrix[i] != A(0);
  found = __syncthreads_or(found);
  if (threadIdx.x == 0) any[blockIdx.x] = found ? 1 : 0;
}

template <class A>
struct Product {
  Maps<const A> left, right;  // [dim, dim], turned: its transpose; [dim, width]
  bool turned = false;
  Maps<A> to;  // [dim, width], where `any`
  bool add = false;
  int64_t heads = 0;
  int dim = 0, width = 0;
  const int64_t* any = nullptr;
};

// The tile at (row, column) of a matrix [rows, columns], zeros outside.
template <class A>
__device__ void load_square(const A* from, int row, int column, int rows, int columns,
                            Tile<A>& tile) {
  for (int r = warp(); r < kSide; r += kWarps) {
    const int i = row + r, j = column + lane();
    tile[r][lane()] = i < rows && j < columns ? from[int64_t{i} * columns + j] : A(0);
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    product_kernel(Product<A> product, int row_tiles, int column_tiles) {
  __shared__ Tile<A> a, b;
  const int64_t map = blockIdx.x / (row_tiles * column_tiles);
  if (product.any[map] == 0) return;
  const auto tile = static_cast<int>(blockIdx.x % (row_tiles * column_tiles));
  const int row = tile / column_tiles * kSide, column = tile % column_tiles * kSide;
  const A* left = product.left.of(map, product.heads);
  const A* right = product.right.of(map, product.heads);
  const int dim = product.dim;
  A sums[kRows] = {};
  for (int k = 0; k < dim; k += kSide) {
    __syncthreads();
    if (product.turned) {
      load_square(left, k, row, dim, dim, a);
    } else {
      load_square(left, row, k, dim, dim, a);
    }
    load_square(right, k, column, dim, product.width, b);
    __syncthreads();
    const int count = dim - k < kSide ? dim - k : kSide;
    for (int c = 0; c < count; ++c) {
      const A value = b[c][lane()];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int i = warp() * kRows + r;
        sums[r] += (product.turned ? a[c][i] : a[i][c]) * value;
      }
    }
  }
  const int j = column + lane();
  if (j >= product.width) return;
  A* to = product.to.of(map, product.heads);
  for (int r = 0; r < kRows; ++r) {
    const int i = row + warp() * kRows + r;
    if (i >= dim) break;
    A& at = to[int64_t{i} * product.width + j];
    at = product.add ? at + sums[r] : sums[r];
  }
}

template <class A>
__global__ void copy_matrices_kernel(int64_t maps, int64_t heads, int64_t elements, const A* from,
                                     const int64_t* any, Maps<A> to) {
  for (int64_t n = grid_first(); n < maps * elements; n += grid_stride()) {
    const int64_t map = n / elements;
    if (any[map] != 0) to.of(map, heads)[n - map * elements] = from[n];
  }
}

template <class A>
void multiply(const Context& ctx, int64_t maps, const Product<A>& product) {
  const int row_tiles = (product.dim + kSide - 1) / kSide;
  const int column_tiles = (product.width + kSide - 1) / kSide;
  launch(ctx, "state maps: product", product_kernel<A>,
         {.blocks = dim3(static_cast<unsigned>(maps * row_tiles * column_tiles)),
          .threads = dim3(kThreads)},
         product, row_tiles, column_tiles);
}

template <class A>
void compose_matrices(const Context& ctx, const StateMapsCompose& args) {
  const int64_t heads = args.sums.dim(1), maps = args.sums.dim(0) * heads, dim = args.head_dim;
  const bool decays = args.earlier_decay.rank() > 0;
  const Arena::Scope scope(*ctx.scratch);
  const TensorView any = ctx.scratch->allocate(DType::kI64, {maps});
  const TensorView products = ctx.scratch->allocate(
      dtype_of<A>, {maps / std::max<int64_t>(heads, 1), heads, decays ? dim * dim : 0});
  if (ctx.measuring() || args.sums.empty()) return;
  const Maps<const A> decay = maps_of<A>(args.decay);
  launch(ctx, "state maps: any", any_kernel<A>,
         {.blocks = dim3(static_cast<unsigned>(maps)), .threads = dim3(kThreads)}, heads, dim * dim,
         decay, any.data<int64_t>());
  Product<A> product{.left = decay,
                     .right = maps_of<A>(args.earlier_sums),
                     .turned = args.transposed,
                     .to = maps_to<A>(args.sums),
                     .add = true,
                     .heads = heads,
                     .dim = static_cast<int>(dim),
                     .width = static_cast<int>(args.sums.dim(2) / dim),
                     .any = any.data<int64_t>()};
  multiply(ctx, maps, product);
  if (!decays) return;
  // In the order of the matrices: the earlier one comes last, or transposed first.
  const Maps<const A> earlier = maps_of<A>(args.earlier_decay);
  product.left = args.transposed ? earlier : decay;
  product.right = args.transposed ? decay : earlier;
  product.turned = product.add = false;
  product.to = maps_to<A>(products);
  product.width = static_cast<int>(dim);
  multiply(ctx, maps, product);
  launch(ctx, "state maps: copy", copy_matrices_kernel<A>, grid_for(maps * dim * dim), maps, heads,
         dim * dim, products.data<A>(), any.data<int64_t>(), maps_to<A>(args.decay));
}

template <class A>
void compose(const Context& ctx, const StateMapsCompose& args) {
  if (args.kind == StateDecay::kDense) return compose_matrices<A>(ctx, args);
  if (ctx.measuring() || args.sums.empty()) return;
  const int64_t heads = args.sums.dim(1), maps = args.sums.dim(0) * heads;
  const int64_t elements = args.sums.dim(2);
  const int64_t logarithms = decay_elements(args.kind, args.head_dim);
  launch(ctx, "state maps: sums", add_decayed_kernel<A>, grid_for(maps * elements), maps, heads,
         elements, elements / logarithms, maps_of<A>(args.decay), maps_of<A>(args.earlier_sums),
         maps_to<A>(args.sums));
  if (args.earlier_decay.rank() == 0) return;
  launch(ctx, "state maps: decay", add_logarithms_kernel<A>, grid_for(maps * logarithms), maps,
         heads, logarithms, maps_of<A>(args.earlier_decay), maps_to<A>(args.decay));
}

template <class A>
constexpr StateMapsKernel row() {
  return {.name = "cuda-simt", .dtype = dtype_of<A>, .available = available, .compose = compose<A>};
}
constexpr StateMapsKernel kTable[] = {row<float>(), row<double>()};

}  // namespace

std::span<const StateMapsKernel> state_maps_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
