// Argument checks that the doors of linear attention, gated linear attention and the delta rule
// share: all are about tensors [T, H, D] and [T, H, Dv] of one dtype, runs and documents.
#pragma once

#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"
#include "kernels/checks.h"

namespace longhaul::kernels {

struct LinearFrame {
  // operation: its name in messages. One operand along D and one along Dv say what T, H, D, Dv are.
  LinearFrame(std::string_view operation, ConstTensorView key_like, std::string_view key_name,
              ConstTensorView value_like, std::string_view value_name);
  LinearFrame(std::string_view operation, ConstTensorView key_like, std::string_view key_name,
              int64_t value_dim);

  // Also sets the number of runs.
  void expect_tokens(std::span<const LinearRun> runs, std::span<const int64_t> document_begins);

  void expect_key_like(ConstTensorView view, std::string_view name) const;
  void expect_value_like(ConstTensorView view, std::string_view name) const;
  // Dense, of the accumulator type; dim: D or Dv.
  void expect_sums(ConstTensorView view, std::string_view name, int64_t dim) const;
  void expect_accumulators(ConstTensorView view, std::string_view name, const Shape& shape) const;
  void expect_state(ConstTensorView view, std::string_view name) const;
  void expect_state_if_present(ConstTensorView view, std::string_view name) const;

  // The first row that fits.
  template <class Kernel>
  const Kernel& choose(const Context& ctx, std::span<const Kernel> Backend::*table) const {
    for (const Kernel& row : backend(ctx.device()).*table) {
      if (row.dtype == dtype && row.available() && row.supports(head_dim, value_dim)) return row;
    }
    no_kernel(absl::StrCat(operation, " with head dimensions ", head_dim, " and ", value_dim),
              ctx.device(), dtype);
  }

  std::string operation;
  DType dtype = DType::kF32;
  int64_t rows = 0, heads = 0, head_dim = 0, value_dim = 0, runs = 0;

 private:
  std::string label(std::string_view name) const;
};

}  // namespace longhaul::kernels
