#include "model/numerics_probe.h"

#include "absl/strings/str_cat.h"
#include "kernels/pointwise.h"

namespace longhaul::model {

void NumericsProbe::look(const Context& ctx, ConstTensorView tensor, int64_t layer,
                         std::string_view name) {
  if (finding_) return;
  const int64_t index = kernels::find_non_finite(ctx, tensor);
  if (index < 0 || ctx.measuring()) return;
  const int64_t width = tensor.dim(0) == 0 ? 1 : tensor.elements() / tensor.dim(0);
  finding_ = absl::StrCat(layer < 0 ? "" : absl::StrCat("layer ", layer, ", "), std::string(name),
                          ", row ", index / width, ", column ", index % width);
}

}  // namespace longhaul::model
