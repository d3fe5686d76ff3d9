// What code for an instruction set offers for each type of elements. It is exported as one set, of
// which a kernel takes what is for its type:
//
//     std::get<RopeRows<T>>(HWY_DYNAMIC_DISPATCH(rope_rows)())
#pragma once

#include <tuple>

#include "kernels/core/dtype.h"

namespace longhaul::kernels::cpu {

template <template <class> class Code>
using ByDType = std::tuple<Code<bf16>, Code<float>, Code<double>>;

}  // namespace longhaul::kernels::cpu
