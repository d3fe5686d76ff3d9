#include "kernels/core/transfer.h"

#include <cstring>

#include "kernels/core/cuda_runtime.h"

namespace longhaul {

namespace {

// Whether anything is to be copied.
bool check(const ConstTensorView& from, const TensorView& to) {
  LONGHAUL_CHECK(from.contiguous() && to.contiguous() && from.dtype() == to.dtype() &&
                     from.elements() == to.elements(),
                 from.shape().to_string() + " to " + to.shape().to_string());
  return from.bytes() > 0 && from.raw() != to.raw();
}

void start(const Stream& stream, const ConstTensorView& from, const TensorView& to) {
  if (stream.device.kind == DeviceKind::kCpu) {
    LONGHAUL_CHECK(from.device() == kCpu && to.device() == kCpu);
    std::memmove(to.raw(), from.raw(), static_cast<size_t>(to.bytes()));
  } else {
    cuda::copy(stream.native, from.raw(), to.raw(), to.bytes());
  }
}

}  // namespace

void upload(const Stream& stream, ConstTensorView from, TensorView to) {
  if (check(from, to)) start(stream, from, to);
}

void download(const Stream& stream, ConstTensorView from, TensorView to,
              const std::function<void()>& poll) {
  LONGHAUL_CHECK(to.device() == kCpu);
  if (!check(from, to)) return;
  start(stream, from, to);
  wait_until_idle(stream, poll);
}

Tensor on_host(const Stream& stream, ConstTensorView x, const std::function<void()>& poll) {
  Tensor copy(x.dtype(), x.shape());
  download(stream, x, copy, poll);
  return copy;
}

}  // namespace longhaul
