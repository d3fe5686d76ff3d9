// kernels/cuda/hardware.h on the CPU; what each function does is written there.
#pragma once

#include <cuda_runtime.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/core/dtype.h"

namespace longhaul::kernels::cuda {

namespace emulator = longhaul::cuda_emulator;

inline std::byte* dynamic_shared() { return emulator::shared_memory(); }

inline float bf16_element(uint32_t pair, int n) {
  return std::bit_cast<float>((n == 0 ? pair << 16 : pair & 0xffff0000u));
}

inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  uint32_t mine[6];
  std::memcpy(mine, a, sizeof(a));
  std::memcpy(mine + 4, b, sizeof(b));
  const int lane = emulator::lane(), group = lane / 4, pair = lane % 4;
  std::memcpy(emulator::slot_of(lane).data(), mine, sizeof(mine));
  emulator::meet_warp();
  const emulator::Slot* const slots = &emulator::slot_of(0);
  // 8 elements of a row of a, or of a column of b.
  const auto gather = [&](int lane_of_row, int word, float* to) {
    for (int pair_of_lane = 0; pair_of_lane < 4; ++pair_of_lane) {
      uint32_t value;
      std::memcpy(&value, slots[lane_of_row * 4 + pair_of_lane].data() + 4 * word, sizeof(value));
      to[2 * pair_of_lane] = bf16_element(value, 0);
      to[2 * pair_of_lane + 1] = bf16_element(value, 1);
    }
  };
  float left[2][16], right[2][16];
  for (int n = 0; n < 2; ++n) {
    for (int half = 0; half < 2; ++half) {
      gather(group, 2 * half + n, left[n] + 8 * half);
      gather(2 * pair + n, 4 + half, right[n] + 8 * half);
    }
  }
  for (int i = 0; i < 4; ++i) {
    for (int k = 0; k < 16; ++k) d[i] += left[i / 2][k] * right[i % 2][k];
  }
  emulator::meet_warp();
}

template <bool kTransposed>
void load_matrices_as(uint32_t (&r)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) std::abort();
  const int lane = emulator::lane();
  std::memcpy(emulator::slot_of(lane).data(), &row, sizeof(row));
  emulator::meet_warp();
  const emulator::Slot* const slots = &emulator::slot_of(0);
  const auto element = [&](int matrix, int i, int j) {
    const uint16_t* from;
    std::memcpy(&from, slots[8 * matrix + i].data(), sizeof(from));
    return uint32_t{from[j]};
  };
  const int i = lane / 4, j = 2 * (lane % 4);
  for (int m = 0; m < 4; ++m) {
    r[m] = kTransposed ? element(m, j, i) | element(m, j + 1, i) << 16
                       : element(m, i, j) | element(m, i, j + 1) << 16;
  }
  emulator::meet_warp();
}
inline void load_matrices(uint32_t (&r)[4], const void* row) { load_matrices_as<false>(r, row); }
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  load_matrices_as<true>(r, row);
}

inline void copy_16_async(void* shared, const void* global, bool take) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0) std::abort();
  if (take && reinterpret_cast<uintptr_t>(global) % 16 != 0) std::abort();
  emulator::copy_later(shared, take ? global : nullptr, 16);
}
inline void commit_copies() { emulator::commit_copies(); }
template <int kGroups>
void wait_copies() {
  emulator::wait_copies(kGroups);
}

inline uint32_t pack_bf16(float low, float high) {
  return uint32_t{bf16(low).bits} | uint32_t{bf16(high).bits} << 16;
}
inline float fast_exp2(float x) { return std::exp2(x); }

}  // namespace longhaul::kernels::cuda
