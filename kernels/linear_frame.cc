#include "kernels/linear_frame.h"

namespace longhaul::kernels {

LinearFrame::LinearFrame(std::string_view operation_, ConstTensorView key_like,
                         std::string_view key_name, ConstTensorView value_like,
                         std::string_view value_name)
    : LinearFrame(operation_, key_like, key_name, value_like.rank() == 3 ? value_like.dim(2) : 0) {
  expect_value_like(value_like, value_name);
}

LinearFrame::LinearFrame(std::string_view operation_, ConstTensorView key_like,
                         std::string_view key_name, int64_t value_dim_)
    : operation(operation_) {
  expect_float(key_like, label(key_name), 3);
  dtype = key_like.dtype();
  rows = key_like.dim(0);
  heads = key_like.dim(1);
  head_dim = key_like.dim(2);
  value_dim = value_dim_;
  LONGHAUL_CHECK(head_dim > 0 && value_dim > 0, absl::StrCat(operation, ": empty heads"));
}

void LinearFrame::expect_tokens(std::span<const LinearRun> of_tokens,
                                std::span<const int64_t> document_begins) {
  runs = static_cast<int64_t>(of_tokens.size());
  int64_t end = 0;
  for (const LinearRun& run : of_tokens) {
    LONGHAUL_CHECK(run.begin >= end && run.length >= 0 && run.begin + run.length <= rows,
                   absl::StrCat(operation, ": run [", run.begin, ", +", run.length,
                                ") overlaps another or lies outside the ", rows, " rows"));
    end = run.begin + run.length;
  }
  int64_t last = -1;
  for (const int64_t begin : document_begins) {
    LONGHAUL_CHECK(begin > last && begin < rows,
                   absl::StrCat(operation, ": a document begins at row ", begin, " after ", last,
                                " of ", rows, " rows"));
    last = begin;
  }
}

std::string LinearFrame::label(std::string_view name) const {
  return absl::StrCat(operation, ": ", std::string(name));
}
void LinearFrame::expect_key_like(ConstTensorView view, std::string_view name) const {
  expect_float(view, label(name), 3);
  expect(view, label(name), dtype, {rows, heads, head_dim});
}
void LinearFrame::expect_value_like(ConstTensorView view, std::string_view name) const {
  expect_float(view, label(name), 3);
  expect(view, label(name), dtype, {rows, heads, value_dim});
}
void LinearFrame::expect_sums(ConstTensorView view, std::string_view name, int64_t dim) const {
  expect_accumulators(view, name, {rows, heads, dim});
}
void LinearFrame::expect_accumulators(ConstTensorView view, std::string_view name,
                                      const Shape& shape) const {
  expect_dense(view, label(name), accumulator(dtype), shape);
}
void LinearFrame::expect_state(ConstTensorView view, std::string_view name) const {
  expect_accumulators(view, name, {runs, heads, head_dim, value_dim});
}
void LinearFrame::expect_state_if_present(ConstTensorView view, std::string_view name) const {
  if (view.rank() > 0) expect_state(view, name);
}

}  // namespace longhaul::kernels
