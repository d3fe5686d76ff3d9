#include "kernels/core/arena.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "absl/strings/str_cat.h"
#include "kernels/core/cuda_runtime.h"

namespace longhaul {

Arena::Arena(std::string name, int64_t capacity, Device device, bool measuring)
    : name_(std::move(name)), device_(device), capacity_(capacity), measuring_(measuring) {
  if (measuring) return;
  const auto failed = [&](const std::string& why) {
    fail(ErrorCode::kEnvironment,
         absl::StrCat("cannot reserve ", capacity, " bytes for ", name_, why,
                      "; use more ranks, a shorter sequence or memory { activations: RECOMPUTE }"));
  };
  try {
    memory_ = Tensor(DType::kF64, {aligned(capacity) / size_of(DType::kF64)}, device);
  } catch (const std::bad_alloc&) {
    failed("");
  } catch (const Error& error) {
    failed(absl::StrCat(": ", error.what()));
  }
}

int64_t Arena::aligned(int64_t bytes) const {
  // Cache lines; on GPUs, what vector loads and matrix products like best.
  const int64_t alignment = device_.kind == DeviceKind::kCpu ? 64 : 256;
  return (bytes + alignment - 1) / alignment * alignment;
}

TensorView Arena::allocate(DType dtype, const Shape& shape) {
  const int64_t begin = used_;
  used_ += aligned(shape.elements() * size_of(dtype));
  peak_ = std::max(peak_, used_);
  if (measuring_) return TensorView(nullptr, dtype, shape, device_);
  LONGHAUL_CHECK(used_ <= aligned(capacity_),
                 absl::StrCat("arena ", name_, " of ", capacity_, " bytes cannot hold ",
                              shape.to_string(), " at ", begin));
  return TensorView(memory_.view().raw() + begin, dtype, shape, device_);
}

void Arena::release(int64_t mark) {
  LONGHAUL_CHECK(mark <= used_, name_);
  used_ = mark;
}

void Arena::poison() {
  if (measuring_ || memory_.view().empty()) return;
  std::byte* begin = memory_.view().raw() + used_;
  const int64_t bytes = aligned(capacity_) - used_;
  constexpr int kAllBits = 0xff;
  if (device_.kind == DeviceKind::kCuda) {
    cuda::fill_bytes(device_.index, begin, kAllBits, bytes);
  } else {
    std::memset(begin, kAllBits, static_cast<size_t>(bytes));
  }
}

}  // namespace longhaul
