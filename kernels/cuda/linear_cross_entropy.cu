// A label outside the vocabulary, which check_labels() would have named on the host, makes a loss
// and gradients of NaN.
#include <limits>

#include "kernels/cuda/pieces.h"
#include "kernels/cuda/tables.h"
#include "kernels/linear_cross_entropy_tiles.h"

namespace longhaul::kernels::cuda {

namespace {

// Products of few rows would wait for the weights' memory.
constexpr int64_t kTileBytes = int64_t{256} << 20;
constexpr int64_t kPadding = 64;  // elements that the rows of a tile are rounded up to
constexpr int kMostThreads = 512;

// A sum of exponentials, relative to the largest exponent so far (the online softmax of Milakov &
// Gimelshein 2018). NaN reaches the sum.
template <class A>
struct LogSum {
  A max = std::numeric_limits<A>::lowest();
  A sum = 0;

  __device__ void add(A other_max, A other_sum) {
    const A larger = max > other_max ? max : other_max;
    sum = sum * exp(max - larger) + other_sum * exp(other_max - larger);
    max = larger;
  }
};

template <class A>
__device__ LogSum<A> warp_log_sum(LogSum<A> x) {
  // Both lanes of a pair must get the same bits: the lower one's comes first.
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const LogSum<A> other{__shfl_xor_sync(kAllLanes, x.max, mask),
                          __shfl_xor_sync(kAllLanes, x.sum, mask)};
    const bool lower = (threadIdx.x & static_cast<unsigned>(mask)) == 0;
    LogSum<A> first = lower ? x : other;
    const LogSum<A>& second = lower ? other : x;
    first.add(second.max, second.sum);
    x = first;
  }
  return x;
}

// One block per row of logits, whose place the gradient (in the storage type) takes: element i is
// never written before what it covers has been read.
template <class T>
__global__ void __launch_bounds__(kMostThreads)
    loss_kernel(int64_t vocabulary, int64_t stride, Accumulator<T>* tile, const int32_t* labels,
                Accumulator<T>* row_loss, bool gradients, Accumulator<T> factor) {
  using A = Accumulator<T>;
  constexpr int kN = kPiece<A>;
  __shared__ LogSum<A> of_warps[kMostThreads / kWarp];
  A* logits = tile + blockIdx.x * stride;
  T* gradient = reinterpret_cast<T*>(logits);
  const int64_t label = labels[blockIdx.x];
  const int64_t first = int64_t{threadIdx.x} * kN, step = int64_t{blockDim.x} * kN;
  if (label < 0 || label >= vocabulary) {
    const A nothing = label == -1 ? A(0) : std::numeric_limits<A>::quiet_NaN();
    if (threadIdx.x == 0) row_loss[blockIdx.x] = nothing;
    if (!gradients) return;
    for (int64_t i = threadIdx.x; i < vocabulary; i += blockDim.x) gradient[i] = T(nothing);
    return;
  }
  const A target = logits[label];
  LogSum<A> mine;
  for (int64_t i = first; i < vocabulary; i += step) {
    const int64_t count = std::min<int64_t>(kN, vocabulary - i);
    const Pack<A, kN> x = load<kN>(static_cast<const A*>(logits + i), count);
    A largest = mine.max;
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      if (k < count && x.e[k] > largest) largest = x.e[k];
    }
    if (largest > mine.max) {
      mine.sum *= exp(mine.max - largest);
      mine.max = largest;
    }
#pragma unroll
    for (int k = 0; k < kN; ++k) mine.sum += k < count ? exp(x.e[k] - largest) : A(0);
  }
  const LogSum<A> all =
      block_reduce(warp_log_sum(mine), of_warps, [](LogSum<A> a, const LogSum<A>& b) {
        a.add(b.max, b.sum);
        return a;
      });
  const A lse = all.max + log(all.sum);
  if (threadIdx.x == 0) row_loss[blockIdx.x] = lse - target;
  if (!gradients) return;
  // All threads go through all steps, for the barrier between reading and writing one.
  for (int64_t begin = 0; begin < vocabulary; begin += step) {
    const int64_t i = begin + first, count = std::min<int64_t>(kN, vocabulary - i);
    Pack<A, kN> x{};
    if (count > 0) x = load<kN>(static_cast<const A*>(logits + i), count);
    __syncthreads();
    Pack<T, kN> g;
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      const A relative = x.e[k] - lse;
      g.e[k] = T((i + k == label ? expm1(relative) : exp(relative)) * factor);
    }
    if (count > 0) store(g, gradient + i, count);
  }
}

template <class T>
void run(const Context& ctx, const LinearCrossEntropy& args) {
  using A = Accumulator<T>;
  const auto losses = [&](const TensorView& logits, int64_t first) {
    constexpr int64_t kPerWarp = kWarp * kPiece<A>;
    const int64_t vocabulary = logits.dim(1);
    const int64_t threads = (vocabulary + kPerWarp - 1) / kPerWarp * kWarp;
    launch(
        ctx, "linear_cross_entropy", loss_kernel<T>,
        {.blocks = dim3(static_cast<unsigned>(logits.dim(0))),
         .threads = dim3(static_cast<unsigned>(std::clamp<int64_t>(threads, kWarp, kMostThreads)))},
        vocabulary, logits.stride(0), logits.data<A>(), args.labels.data<int32_t>() + first,
        args.row_loss.data<A>() + first, args.with_gradients, static_cast<A>(args.grad_scale));
  };
  for_loss_tiles<T>(ctx, args, {.bytes = kTileBytes, .padding = kPadding}, losses);
}

constexpr LinearCrossEntropyKernel kTable[] = {{"cuda", DType::kBF16, available, run<bf16>},
                                               {"cuda", DType::kF32, available, run<float>},
                                               {"cuda", DType::kF64, available, run<double>}};

}  // namespace

std::span<const LinearCrossEntropyKernel> linear_cross_entropy_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
