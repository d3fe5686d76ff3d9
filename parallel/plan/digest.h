// What ranks compare in place of long lists.
#pragma once

#include <cstdint>
#include <span>

namespace longhaul::parallel {

// XXH3 of the numbers.
uint64_t digest_of(std::span<const int64_t> numbers);

}  // namespace longhaul::parallel
