#include "parallel/plan/digest.h"

#include <xxhash.h>

namespace longhaul::parallel {

uint64_t digest_of(std::span<const int64_t> numbers) {
  return XXH3_64bits(numbers.data(), numbers.size_bytes());
}

}  // namespace longhaul::parallel
