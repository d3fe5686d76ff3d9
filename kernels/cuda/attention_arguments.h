// What attention kernels are launched with.
#pragma once

#include <algorithm>

#include "kernels/cuda/attention_scores.h"
#include "kernels/cuda/attention_work.h"

namespace longhaul::kernels::cuda {

// Rows of one head of q, k, v or dout.
template <class T>
struct HeadRows {
  const T* p;
  int64_t stride;
  __device__ const T* row(int64_t t) const { return p + t * stride; }
};

template <class T>
struct Operand {
  const T* p = nullptr;
  int64_t token = 0, head = 0;  // strides
  int dim = 0;
  bool in_16_bytes = false;  // rows start at multiples of 16 bytes and are made of whole ones

  __device__ HeadRows<T> of_head(int64_t h) const { return {p + h * head, token}; }
};
template <class T>
Operand<T> operand(const ConstTensorView& x) {
  const T* p = x.data<T>();
  constexpr int64_t kElements = 16 / sizeof(T);
  const bool whole = x.dim(2) % kElements == 0 && x.stride(0) % kElements == 0 &&
                     x.stride(1) % kElements == 0 && reinterpret_cast<uintptr_t>(p) % 16 == 0;
  return {p, x.stride(0), x.stride(1), static_cast<int>(x.dim(2)), whole};
}

template <class T>
struct AttentionArguments {
  using A = Accumulator<T>;

  int64_t queries = 0, q_heads = 0, kv_heads = 0;
  HeadMap heads{};
  ScoreOptions<A> options{};
  Operand<T> q{}, k{}, v{}, dout{};
  A *out = nullptr, *lse = nullptr;                // forward
  const A *final_lse = nullptr, *delta = nullptr;  // backward
  A *dq = nullptr, *dk = nullptr, *dv = nullptr;
  int64_t out_stride = 0, dq_stride = 0;  // between rows; their heads are dense

  // Query heads [begin, end) that use a kv head.
  __device__ IndexRange group_of(int64_t kv_head) const {
    const int64_t begin = (kv_head + heads.kv_begin) * heads.group - heads.q_begin;
    const int64_t end = begin + heads.group;
    return {begin > 0 ? begin : 0, end < q_heads ? end : q_heads};
  }
};

template <class T, class Args>
AttentionArguments<T> shared_arguments(const Args& args) {
  AttentionArguments<T> result;
  result.queries = args.q.dim(0);
  result.q_heads = args.q.dim(1);
  result.kv_heads = args.k.dim(1);
  result.heads = args.heads;
  result.options = score_options<Accumulator<T>>(args.options);
  result.q = operand<T>(args.q);
  result.k = operand<T>(args.k);
  result.v = operand<T>(args.v);
  return result;
}
template <class T>
AttentionArguments<T> arguments(const AttentionForward& args) {
  using A = Accumulator<T>;
  AttentionArguments<T> result = shared_arguments<T>(args);
  result.out = args.out_acc.data<A>();
  result.out_stride = args.out_acc.stride(0);
  result.lse = args.lse.data<A>();
  return result;
}
template <class T>
AttentionArguments<T> arguments(const AttentionBackward& args) {
  using A = Accumulator<T>;
  AttentionArguments<T> result = shared_arguments<T>(args);
  result.dout = operand<T>(args.dout);
  result.final_lse = args.lse.data<A>();
  result.delta = args.delta.data<A>();
  result.dq = args.dq_acc.data<A>();
  result.dq_stride = args.dq_acc.stride(0);
  result.dk = args.dk_acc.data<A>();
  result.dv = args.dv_acc.data<A>();
  return result;
}

// The tile and head of a block: heads next to each other, as they share keys and are as heavy.
struct TileOfHead {
  const AttentionTile& tile;  // read again where it is needed: registers are dear
  int64_t head;
};
__device__ __forceinline__ TileOfHead tile_of_block(const AttentionWork& work, int64_t heads) {
  const int64_t block = blockIdx.x;
  return {work.tiles[block / heads], block % heads};
}
inline dim3 blocks_of(const AttentionWork& work, int64_t heads) {
  return dim3(static_cast<unsigned>(work.count * heads));
}

}  // namespace longhaul::kernels::cuda
