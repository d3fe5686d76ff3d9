// Linear attention as passes over rows. All of forward and backward is one recurrence, to the right
// or to the left, with other operands:
//
//   result_i  =  sum over j seen by i of a^|i-j| (x_i . y_j) z_j  +  a^enter(i) x_i S
//   S        <-  a^rows S + sum over j of a^leave(j) y_j z_j^T                  chunk by chunk
//
//             x     y     z     state              sees       enter         leave
//   out       q     k     v     S      right       j <= i     i + 1         rows - 1 - i
//   dq        dout  v     k     S^T    right       j <= i     i + 1         rows - 1 - i
//   dv        k     q     dout  G      left        j >= i     rows - 1 - i  i + 1
//   dk        v     dout  q     G^T    left        j >= i     rows - 1 - i  i + 1
//
// within documents, for rows i of a chunk. What is not seen is selected away, so that a NaN stays
// in its document. Three passes make backward, which read 9 operands where a fused kernel would
// read 4; none needs more memory than a state for each piece.
#pragma once

#include "kernels/cuda/attention_arguments.h"
#include "kernels/cuda/linear_attention_work.h"

namespace longhaul::kernels::cuda {

// Where states lie: element (c, n), c along x and y, n along z.
template <class A>
struct LinearStates {
  A* p = nullptr;       // none: zeros, or not wanted
  bool by_run = false;  // one for each run, else one for each piece
  bool turned = false;  // stored [dim of z, dim of x]

  __device__ A* of(const LinearPiece& piece, int64_t number, int64_t heads, int64_t head,
                   int64_t elements) const {
    return p + ((by_run ? piece.run : number) * heads + head) * elements;
  }
};

// S of every piece alone, but for those that nothing follows: the last of a run, to the left the
// first. Then `states` is by piece, and scan() makes of it what enters the pieces.
template <class T>
struct LinearSums {
  Operand<T> y, z;
  Accumulator<T>* states = nullptr;
  bool all = false;  // of all pieces
};

template <class T>
struct LinearFollow {
  Operand<T> x, y, z;
  LinearStates<const Accumulator<T>> entering;
  LinearStates<Accumulator<T>> leaving;  // of the run's last piece in the pass's direction
  Accumulator<T>* result = nullptr;      // [T, H, dim of z]
  bool add = false;                      // to what is there
};

// result_i += a^enter(i) x_i S with one state for each run and i counted within the run.
template <class T>
struct LinearAdd {
  Operand<T> x;
  int columns = 0;  // dim of z
  LinearStates<const Accumulator<T>> entering;
  Accumulator<T>* result = nullptr;
};

inline constexpr int64_t kMostLinearDim = 256;

// On the cores that compute in the accumulator's type: any dimensions up to kMostLinearDim.
template <class T>
struct LinearSimt {
  using Element = T;
  static constexpr int64_t kChunkRows = 32;

  template <bool kRight>
  static void sums(const Context&, const LinearWork&, const LinearSums<T>&);
  template <bool kRight>
  static void follow(const Context&, const LinearWork&, const LinearFollow<T>&);
  template <bool kRight>
  static void add(const Context&, const LinearWork&, const LinearAdd<T>&);
};

// On tensor cores: both dimensions up to kDim, 64 or 128.
template <int kDim>
struct LinearMma {
  using Element = bf16;
  static constexpr int64_t kChunkRows = 64;

  template <bool kRight>
  static void sums(const Context&, const LinearWork&, const LinearSums<bf16>&);
  template <bool kRight>
  static void follow(const Context&, const LinearWork&, const LinearFollow<bf16>&);
  template <bool kRight>
  static void add(const Context&, const LinearWork&, const LinearAdd<bf16>&);
};

}  // namespace longhaul::kernels::cuda
