// Composition of affine maps of a state, S -> A S + B: what ranks do with the maps that runs of
// tokens are in linear attention.
//
//   sums   [R, H, D * Dv]   B, one per row and head
//   decay  [R, H, c]        A: c = 1, a logarithm for the whole state (kScalar); c = D, a logarithm
//                           for each row of the state (kDiagonal); c = D * D, a matrix (kDense)
//
// A later map after an earlier one, S -> A (A' S + B') + B, takes the place of the later one.
// Gradients go through maps S -> A^T S + B, of the same matrices. Where A is zero (a logarithm of
// -inf, a matrix without another value), the earlier map is not looked at and may hold anything.
//
// Sums over a matrix have a fixed order: the same arguments give the same bits, whatever the number
// of threads. Throws Error(kInternal) for shapes that contradict each other.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/core/context.h"

namespace longhaul::kernels {

enum class StateDecay : uint8_t { kScalar, kDiagonal, kDense };

// Elements of A for one head.
constexpr int64_t decay_elements(StateDecay kind, int64_t head_dim) {
  switch (kind) {
    case StateDecay::kScalar:
      return 1;
    case StateDecay::kDiagonal:
      return head_dim;
    case StateDecay::kDense:
      return head_dim * head_dim;
  }
  return 0;
}

// One dtype, f32 or f64; rows and heads may have any stride, the last dimension is dense. The
// earlier maps share no memory with the later ones.
struct StateMapsCompose {
  StateDecay kind = StateDecay::kScalar;
  int64_t head_dim = 0;           // D
  bool transposed = false;        // kDense: the maps are A^T S + B
  ConstTensorView earlier_sums;   // B'
  ConstTensorView earlier_decay;  // A'; or rank 0: B' is a state, and only sums are wanted
  TensorView sums;                // B; becomes A B' + B, transposed A^T B' + B
  TensorView decay;               // A; becomes A A', transposed A' A, unless A' is absent
};

void state_maps_compose(const Context&, const StateMapsCompose&);

struct StateMapsKernel {
  std::string_view name;
  DType dtype;  // of sums and decay
  bool (*available)();
  void (*compose)(const Context&, const StateMapsCompose&);
};

}  // namespace longhaul::kernels
