#include "kernels/core/transfer.h"

#include <cstring>

#include "kernels/core/cuda_runtime.h"
#include "kernels/core/recording.h"
#include "kernels/core/upload_buffers.h"

namespace longhaul {

namespace {

// Whether anything is to be copied.
bool check(const Stream& stream, const ConstTensorView& from, const TensorView& to) {
  for (const Device device : {from.device(), to.device()}) {
    LONGHAUL_CHECK(device == kCpu || device == stream.device, to_string(device));
  }
  LONGHAUL_CHECK(from.contiguous() && to.contiguous() && from.dtype() == to.dtype() &&
                     from.elements() == to.elements(),
                 from.shape().to_string() + " to " + to.shape().to_string());
  return from.bytes() > 0 && from.raw() != to.raw();
}

void start(const Stream& stream, const std::byte* from, std::byte* to, int64_t bytes) {
  if (stream.device.kind == DeviceKind::kCpu) {
    std::memmove(to, from, static_cast<size_t>(bytes));
  } else {
    cuda::copy(stream.native, from, to, bytes);
  }
}

}  // namespace

void upload(const Stream& stream, ConstTensorView from, TensorView to) {
  if (!check(stream, from, to)) return;
  if (from.device() == kCpu) {
    upload(stream, {from.raw(), static_cast<size_t>(from.bytes())}, to.raw());
  } else {
    start(stream, from.raw(), to.raw(), to.bytes());
  }
}

void upload(const Stream& stream, std::span<const std::byte> from, std::byte* to) {
  if (from.empty()) return;
  const auto bytes = static_cast<int64_t>(from.size());
  if (stream.recording != nullptr) {
    start(stream, stream.recording->keep(from), to, bytes);
  } else if (stream.uploads != nullptr) {
    stream.uploads->upload(stream.native, from, to);
  } else {
    start(stream, from.data(), to, bytes);
  }
}

void download(const Stream& stream, ConstTensorView from, TensorView to,
              const std::function<void()>& poll) {
  LONGHAUL_CHECK(to.device() == kCpu);
  if (!check(stream, from, to)) return;
  wait_until_idle(stream, poll);  // a copy to memory that is not pinned blocks without polling
  start(stream, from.raw(), to.raw(), to.bytes());
  wait_until_idle(stream, poll);
}

Tensor on_host(const Stream& stream, ConstTensorView x, const std::function<void()>& poll) {
  Tensor copy(x.dtype(), x.shape());
  download(stream, x, copy, poll);
  return copy;
}

}  // namespace longhaul
