#include "kernels/checks.h"

#include "absl/strings/str_cat.h"

namespace longhaul::kernels {

namespace {

std::string describe(ConstTensorView view) {
  return absl::StrCat(std::string(name(view.dtype())), " ", view.shape().to_string());
}

[[noreturn]] void reject(ConstTensorView view, std::string_view what, const std::string& wanted) {
  fail(ErrorCode::kInternal,
       absl::StrCat(std::string(what), " is ", describe(view), " and must be ", wanted));
}

// Dimensions from `first` on have no gaps between their elements.
bool dense_from(ConstTensorView view, int first) {
  int64_t stride = 1;
  for (int i = view.rank() - 1; i >= first; --i) {
    if (view.dim(i) > 1 && view.stride(i) != stride) return false;
    stride *= view.dim(i);
  }
  return true;
}

}  // namespace

void expect(ConstTensorView view, std::string_view what, DType dtype, const Shape& shape) {
  if (view.dtype() != dtype || view.shape() != shape) {
    reject(view, what, absl::StrCat(std::string(name(dtype)), " ", shape.to_string()));
  }
}

void expect_dense(ConstTensorView view, std::string_view what, DType dtype, const Shape& shape) {
  expect(view, what, dtype, shape);
  if (!view.empty() && !dense_from(view, 0)) reject(view, what, "contiguous");
}

void expect_rows(ConstTensorView view, std::string_view what, DType dtype, const Shape& shape) {
  expect(view, what, dtype, shape);
  if (!view.empty() && !dense_from(view, 1)) reject(view, what, "dense within each row");
}

void expect_float(ConstTensorView view, std::string_view what, int rank) {
  const bool is_float =
      view.dtype() == DType::kBF16 || view.dtype() == DType::kF32 || view.dtype() == DType::kF64;
  if (!is_float || view.rank() != rank) {
    reject(view, what, absl::StrCat("of a floating type and rank ", rank));
  }
  if (!view.empty() && !dense_from(view, rank - 1))
    reject(view, what, "dense in its last dimension");
}

}  // namespace longhaul::kernels
