#include "launch/bench/packed_documents.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/core/random.h"

namespace longhaul::launch {

parallel::Documents packed_documents(int64_t tokens, int64_t mean_length) {
  const double mu = std::log(static_cast<double>(mean_length)) - 0.5;
  std::vector<int64_t> begins;
  int64_t begin = 0;
  for (uint64_t i = 0; begin < tokens; ++i) {
    begins.push_back(begin);
    const double length = std::exp(mu + random_normal({.seed = 1, .stream = 0}, i));
    begin += std::max<int64_t>(1, std::llround(length));
  }
  return {tokens, begins};
}

}  // namespace longhaul::launch
