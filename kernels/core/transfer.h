// Copies of bytes between the host's memory and a device's, in the order of a stream. Both views
// are contiguous, of one dtype and as many elements; either side may be on the host or on the
// stream's device. On CPUs: a copy at once.
#pragma once

#include <cstddef>
#include <functional>
#include <span>

#include "kernels/core/stream.h"
#include "kernels/core/tensor.h"

namespace longhaul {

// `from` on the host may be changed as soon as this returns, which it does without waiting for the
// stream (upload_buffers.h says when not). In a stream that is being recorded,
// what it holds now is what every replay uploads.
void upload(const Stream& stream, ConstTensorView from, TensorView to);

// The same for bytes whose type does not matter.
void upload(const Stream& stream, std::span<const std::byte> from, std::byte* to);

// Returns once `to`, on the host, holds the data: waits for the stream, calling `poll` meanwhile.
void download(const Stream& stream, ConstTensorView from, TensorView to,
              const std::function<void()>& poll = {});

// A copy in host memory.
Tensor on_host(const Stream& stream, ConstTensorView x, const std::function<void()>& poll = {});

}  // namespace longhaul
