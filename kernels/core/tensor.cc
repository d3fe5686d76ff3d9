#include "kernels/core/tensor.h"

#include <sys/mman.h>

#include <cstring>
#include <new>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/core/cuda_runtime.h"

namespace longhaul {

namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;

// An advice: a system without huge pages refuses it, and the memory is good all the same.
void ask_for_huge_pages(std::byte* p, size_t bytes) { madvise(p, bytes, MADV_HUGEPAGE); }

}  // namespace

Shape::Shape(std::initializer_list<int64_t> dims)
    : Shape(std::span<const int64_t>(dims.begin(), dims.size())) {}

Shape::Shape(std::span<const int64_t> dims) : rank_(static_cast<int>(dims.size())) {
  LONGHAUL_CHECK(dims.size() <= kMaxRank);
  for (size_t i = 0; i < dims.size(); ++i) {
    LONGHAUL_CHECK(dims[i] >= 0, absl::StrJoin(dims, ", "));
    dims_[i] = dims[i];
  }
}

int64_t Shape::elements() const {
  int64_t n = 1;
  for (int64_t d : dims()) n *= d;
  return n;
}

std::string Shape::to_string() const { return absl::StrCat("[", absl::StrJoin(dims(), ", "), "]"); }

Tensor::Memory Tensor::allocate(size_t bytes, Device device) {
  if (device.kind == DeviceKind::kCuda) {
    return Memory(cuda::allocate(device.index, static_cast<int64_t>(bytes)), Free{device, {}});
  }
  const bool large = bytes >= 2 * kHugePage;
  const std::align_val_t alignment{large ? kHugePage : kAlignment};
  auto* p = static_cast<std::byte*>(::operator new(bytes == 0 ? 1 : bytes, alignment));
  // Before the first touch, which decides.
  if (large) ask_for_huge_pages(p, bytes);
  std::memset(p, 0, bytes);
  return Memory(p, Free{device, alignment});
}

Tensor::Tensor(DType dtype, const Shape& shape, Device device)
    : memory_(allocate(static_cast<size_t>(shape.elements() * size_of(dtype)), device)),
      view_(memory_.get(), dtype, shape, device) {}

void Tensor::Free::operator()(std::byte* p) const {
  if (device.kind == DeviceKind::kCuda) {
    cuda::free(device.index, p);
  } else {
    ::operator delete(p, alignment);
  }
}

}  // namespace longhaul
