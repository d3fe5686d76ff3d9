// Argument checks that the doors of all operations share. A wrong shape is a broken promise between
// parts of the program, never user input, so it is Error(kInternal).
#pragma once

#include <string_view>

#include "kernels/core/context.h"

namespace longhaul::kernels {

// `what` names the operand in messages, such as "rms_norm: dy".
void expect(ConstTensorView view, std::string_view what, DType dtype, const Shape& shape);
// Like expect(), and without gaps.
void expect_dense(ConstTensorView view, std::string_view what, DType dtype, const Shape& shape);
// Like expect(); rows may have any stride, each is dense: every dimension but the first.
void expect_rows(ConstTensorView view, std::string_view what, DType dtype, const Shape& shape);

// A floating type, given rank, last dimension dense.
void expect_float(ConstTensorView view, std::string_view what, int rank);

}  // namespace longhaul::kernels
