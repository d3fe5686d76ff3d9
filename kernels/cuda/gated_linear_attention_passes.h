// Gated linear attention as passes over rows, to the right or to the left
// (linear_attention_passes.h has those of a scalar decay). With gates g, Gij the product of those
// of rows j + 1 to i, F(i) of a chunk's first row to i, T(j) of row j + 1 to its last, for each key
// dimension:
//
//   values   out  right   sum over j <= i of P(i, j) v(j)  +  (F . q)(i) S
//            dv   left    sum over i >= j of P(i, j) dout(i)  +  (T . k)(j) G
//   keys     dq   right   sum over j <= i of dP(i, j) Gij . k(j)  +  F(i) . (S dout(i))
//            dk   left    sum over i >= j of dP(i, j) Gij . q(i)  +  T(j) . (G v(j))
//
//            S <- F(last) S + (T . k)^T v          G <- F(last) G + (F . q)^T dout
//
// with P(i, j) = q(i) . Gij . k(j) and dP(i, j) = dout(i) . v(j). A chunk is a sub-block of
// kGatedSubBlock rows: within it gates are multiplied one by one, and all beyond goes through the
// state at its border. Without tensor cores longer chunks would need more products, not fewer.
#pragma once

#include "kernels/cuda/linear_attention_passes.h"
#include "kernels/gated_linear_attention.h"

namespace longhaul::kernels::cuda {

inline constexpr int kGatedRows = static_cast<int>(kGatedSubBlock);  // of a chunk

enum class GatedUse : uint8_t {
  kFollow,  // all of the above
  kSums,    // of the values: only the states that pieces leave if nothing enters them
  kAdd      // only what the states that enter the runs add to results
};

template <class T>
struct GatedPass {
  using A = Accumulator<T>;

  Operand<T> q{}, k{}, v{}, dout{};  // those that the pass has
  const A* log_gate = nullptr;       // [T, H, D]
  int head_dim = 0, value_dim = 0;
  LinearStates<const A> entering{};
  LinearStates<A> leaving{};          // kSums: of pieces
  bool all = false;                   // kSums: also of pieces that nothing follows
  const double* gate_sums = nullptr;  // kAdd: [P, H, D], of pieces
  A* result = nullptr;
  bool add = false;  // to what is there
};

template <class T>
struct GatedPasses {
  template <bool kRight, GatedUse kUse>
  static void values(const Context&, const LinearWork&, const GatedPass<T>&);
  // Not of kSums.
  template <bool kRight, GatedUse kUse>
  static void keys(const Context&, const LinearWork&, const GatedPass<T>&);
};

// Sums of the gates of pieces, [P, H, D], and e^ them if wanted.
template <class A>
void sum_gates(const Context&, const LinearWork&, const A* log_gate, int head_dim, double* sums,
               double* decays);
// Of runs, [R, H, D].
template <class A>
void write_log_decay(const Context&, const LinearWork&, const double* sums, int head_dim,
                     A* log_decay);

template <class T>
void gated_gate_gradient(const Context&, const GatedLinearAttentionGateGradient&);

// The same to all operations.
struct GatedCall {
  GatedCall(const Context& ctx, const GatedTokens& tokens, int64_t value_dim, int64_t chunk_rows);

  // Scratch for T x heads x D numbers of pieces, f64.
  TensorView allocate_gates() const;
  LinearWork start();  // after all scratch was allocated

  const Context& ctx;
  std::vector<double> slopes;  // zeros, one a head
  LinearTokens tokens;
  int64_t rows, heads, head_dim, value_dim, chunk_rows, piece_rows;
  TensorView memory;
  bool chained = false;
};

}  // namespace longhaul::kernels::cuda
