#include "kernels/core/arena.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "absl/strings/str_cat.h"

namespace longhaul {

namespace {
constexpr int64_t kAlignment = 64;
int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
}  // namespace

Arena::Arena(std::string name, int64_t capacity, bool measuring)
    : name_(std::move(name)), capacity_(capacity), measuring_(measuring) {
  if (measuring) return;
  try {
    memory_ = Tensor(DType::kF64, {aligned(capacity) / size_of(DType::kF64)});
  } catch (const std::bad_alloc&) {
    fail(ErrorCode::kEnvironment,
         absl::StrCat("cannot reserve ", capacity, " bytes for ", name_,
                      "; use more ranks, a shorter sequence or memory { activations: RECOMPUTE }"));
  }
}

TensorView Arena::allocate(DType dtype, const Shape& shape) {
  const int64_t begin = used_;
  used_ += aligned(shape.elements() * size_of(dtype));
  peak_ = std::max(peak_, used_);
  if (measuring_) return TensorView(nullptr, dtype, shape);
  LONGHAUL_CHECK(used_ <= aligned(capacity_),
                 absl::StrCat("arena ", name_, " of ", capacity_, " bytes cannot hold ",
                              shape.to_string(), " at ", begin));
  return TensorView(memory_.view().raw() + begin, dtype, shape);
}

void Arena::release(int64_t mark) {
  LONGHAUL_CHECK(mark <= used_, name_);
  used_ = mark;
}

void Arena::poison() {
  if (measuring_ || memory_.view().empty()) return;
  std::memset(memory_.view().raw() + used_, 0xff, static_cast<size_t>(aligned(capacity_) - used_));
}

}  // namespace longhaul
