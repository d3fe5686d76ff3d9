// Arithmetic of the naive models, on whole vectors in fp64.
#pragma once

#include <cstdint>
#include <vector>

namespace longhaul::test {

using Vector = std::vector<double>;

inline size_t index(int64_t i) { return static_cast<size_t>(i); }

// y = W x, W [out, in] row-major.
Vector times(const Vector& w, const Vector& x);
Vector norm(const Vector& x, const Vector& weight, double eps);
// ALiBi's slopes as the paper's code makes them, by recursion.
Vector naive_alibi_slopes(int64_t heads);

}  // namespace longhaul::test
