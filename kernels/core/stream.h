// An in-order queue of device work. On CPUs every operation has finished when its call returns, so
// a CPU stream is empty; on CUDA `native` is a cudaStream_t. Passed explicitly: there is no current
// stream.
#pragma once

namespace longhaul {

struct Stream {
  void* native = nullptr;
};

}  // namespace longhaul
