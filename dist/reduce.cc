#include "dist/reduce.h"

#include <algorithm>
#include <type_traits>

#include "kernels/core/error.h"

namespace longhaul::dist {
namespace {

// Large enough that the inner loops vectorise, small enough to stay in the first cache.
constexpr int64_t kBlock = 1024;

template <class T>
using Sum = std::conditional_t<std::is_same_v<T, bf16>, float, T>;

template <class T, ReduceOp op>
void reduce(std::span<const std::byte* const> inputs, std::byte* out, int64_t elements) {
  Sum<T> sums[kBlock];
  T* const target = reinterpret_cast<T*>(out);
  for (int64_t begin = 0; begin < elements; begin += kBlock) {
    const int64_t n = std::min(kBlock, elements - begin);
    const T* first = reinterpret_cast<const T*>(inputs[0]) + begin;
    for (int64_t i = 0; i < n; ++i) sums[i] = first[i];
    for (size_t rank = 1; rank < inputs.size(); ++rank) {
      const T* values = reinterpret_cast<const T*>(inputs[rank]) + begin;
      for (int64_t i = 0; i < n; ++i) {
        const Sum<T> value = values[i];
        if constexpr (op == ReduceOp::kSum) {
          sums[i] += value;
        } else {
          sums[i] = value > sums[i] || value != value ? value : sums[i];
        }
      }
    }
    for (int64_t i = 0; i < n; ++i) target[begin + i] = static_cast<T>(sums[i]);
  }
}

template <class T>
void reduce(ReduceOp op, std::span<const std::byte* const> inputs, std::byte* out, int64_t n) {
  if (op == ReduceOp::kSum) return reduce<T, ReduceOp::kSum>(inputs, out, n);
  return reduce<T, ReduceOp::kMax>(inputs, out, n);
}

}  // namespace

void reduce_in_order(ReduceOp op, DType dtype, std::span<const std::byte* const> inputs,
                     std::byte* out, int64_t elements) {
  LONGHAUL_CHECK(!inputs.empty());
  switch (dtype) {
    case DType::kBF16:
      return reduce<bf16>(op, inputs, out, elements);
    case DType::kF32:
      return reduce<float>(op, inputs, out, elements);
    case DType::kF64:
      return reduce<double>(op, inputs, out, elements);
    case DType::kI32:
      return reduce<int32_t>(op, inputs, out, elements);
    case DType::kI64:
      return reduce<int64_t>(op, inputs, out, elements);
    default:
      check_failed(__FILE__, __LINE__, "dtype can be reduced", std::string(name(dtype)));
  }
}

}  // namespace longhaul::dist
