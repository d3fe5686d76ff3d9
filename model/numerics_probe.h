// Finds where a NaN or infinity first appears.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "kernels/core/context.h"

namespace longhaul::model {

class NumericsProbe {
 public:
  // Looks at a tensor unless something was found before.
  void look(const Context&, ConstTensorView tensor, int64_t layer, std::string_view name);

  // "layer 3, attention output, row 17": the first tensor that was not finite.
  const std::optional<std::string>& finding() const { return finding_; }

 private:
  std::optional<std::string> finding_;
};

}  // namespace longhaul::model
