// Launches kernels in a context's stream, with every error checked.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/core/context.h"
#include "kernels/core/cuda/check.h"

namespace longhaul::kernels::cuda {

inline constexpr int kWarp = 32;

struct Grid {
  dim3 blocks;
  dim3 threads;
  size_t shared_bytes = 0;  // of dynamic_shared()
};

// Blocks of `threads` for n items, at most `most`: kernels walk on by grid_stride().
inline Grid grid_for(int64_t n, int threads = 256, int64_t most = int64_t{1} << 16) {
  const int64_t blocks = std::clamp<int64_t>((n + threads - 1) / threads, 1, most);
  return {.blocks = dim3(static_cast<unsigned>(blocks)),
          .threads = dim3(static_cast<unsigned>(threads))};
}

// Lets a kernel have `bytes` of dynamic shared memory on the current device: unasked, it may have
// 48 KiB less its static memory. (It gets all there is at once, since ranks that are threads would
// change each other's sizes.) Throws Error(kEnvironment) if that is less.
void allow_shared_memory(const char* name, const void* kernel, size_t bytes);

// `name` is for errors. Does nothing on an empty grid.
template <class... Parameters, class... Arguments>
void launch(const Context& ctx, const char* name, void (*kernel)(Parameters...), const Grid& grid,
            const Arguments&... arguments) {
  if (grid.blocks.x == 0 || grid.blocks.y == 0 || grid.blocks.z == 0) return;
  if (grid.shared_bytes > 0) {
    allow_shared_memory(name, reinterpret_cast<const void*>(kernel), grid.shared_bytes);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = static_cast<cudaStream_t>(ctx.stream.native);
  longhaul::cuda::check(
      cudaLaunchKernelEx(&config, kernel,
                         static_cast<std::remove_cvref_t<Parameters>>(arguments)...),
      name);
}

}  // namespace longhaul::kernels::cuda
