// Tensors of `longhaul check`: random operands that are the same on every rank, results, and how
// far they are from the truth.
#pragma once

#include <cstdint>
#include <vector>

#include "dist/group.h"
#include "kernels/core/context.h"
#include "kernels/core/tensor.h"

namespace longhaul::launch {

// Values of a whole sample, or of a rank's rows: [token][head][dim].
struct Values {
  int64_t heads = 0, dim = 0;
  std::vector<double> data;

  const double* row(int64_t token) const {
    return data.data() + static_cast<size_t>(token * heads * dim);
  }
};

// Normal. The same on every rank, and representable in the dtype.
Values random_values(const char* name, int64_t tokens, int64_t heads, int64_t dim, DType dtype);

// On ctx's device. Rows of tokens at `positions`, [positions, heads, dim].
Tensor local(const Context& ctx, const Values& values, const std::vector<int64_t>& positions,
             DType dtype);
// What a plan forgets to clear or to compute must show.
Tensor poisoned(const Context& ctx, DType dtype, const Shape& shape);

// Of [rows, heads, dim], or with heads_first of [heads, rows].
Values on_host(const Context& ctx, const ConstTensorView& tensor, bool heads_first);

// Squared norms by head, summed over ranks: of the difference to the truth, and of the truth.
struct Norms {
  std::vector<double> difference, truth;

  double worst() const;
};

// Collective. Row r of `other` belongs to token positions[r]; `truth` has all tokens, `other` too
// if `whole`.
Norms compare(dist::Group& group, const Values& other, bool whole, const Values& truth,
              const std::vector<int64_t>& positions);

}  // namespace longhaul::launch
