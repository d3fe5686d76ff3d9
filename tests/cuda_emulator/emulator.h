// Runs CUDA kernels on the CPU, so that they can be tested where there is no GPU. Each thread of a
// block is a fiber that runs until it waits for others; blocks run one after the other on the
// thread that launches them. Nothing here is linked into the product.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#include "cuda_runtime_api.h"

namespace longhaul::cuda_emulator {

struct Dim3 {
  constexpr Dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  unsigned x, y, z;
};
inline thread_local Dim3 threadIdx{0, 0, 0}, blockIdx{0, 0, 0}, blockDim, gridDim;

// Does the work, or takes it down if the stream is being captured.
cudaError_t submit(cudaStream_t stream, std::function<cudaError_t()> work);

// Of a block of compute capability 8.0, static and dynamic together.
inline constexpr size_t kMostSharedBytes = size_t{163} << 10;

// The dynamic shared memory that a kernel has been allowed. A GPU allows what its static memory
// leaves of 48 KiB unasked; here nothing is known of static memory, and nothing allowed unasked.
void allow_shared_memory(const void* kernel, size_t bytes);
size_t allowed_shared_memory(const void* kernel);

// Calls `body` once per thread of the grid.
cudaError_t run_grid(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& body);

// Memory of the block, all bits set when it starts.
std::byte* shared_memory();

int lane();
void meet_block();              // __syncthreads
void meet_warp();               // __syncwarp of a whole warp
bool any_of_block(bool value);  // __syncthreads_or

// What the lanes of a warp show each other; valid until the lane's next meeting but one.
inline constexpr size_t kSlotBytes = 64;
using Slot = std::array<std::byte, kSlotBytes>;
Slot& slot_of(int lane);

template <class T>
T from_lane(const T& value, int source) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= kSlotBytes);
  std::memcpy(slot_of(lane()).data(), &value, sizeof(T));
  meet_warp();
  T result;
  std::memcpy(&result, slot_of(source).data(), sizeof(T));
  meet_warp();
  return result;
}

// One bit per lane. All lanes must take part.
unsigned ballot(bool value);

// Copies in the background (cp.async) happen as late as they may, so that code which does not wait
// for them fails.
void copy_later(void* to, const void* from, size_t bytes);  // from null: zeros
void commit_copies();
void wait_copies(size_t groups_left);

}  // namespace longhaul::cuda_emulator
