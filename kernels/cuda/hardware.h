// What kernels need beyond CUDA C++: PTX instructions and the launch's shared memory. From sm_80
// on. (tests/cuda_emulator has this header once more, for the CPU.)
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace longhaul::kernels::cuda {

// The shared memory that the launch asked for, aligned to 128 bytes.
__device__ __forceinline__ std::byte* dynamic_shared() {
  extern __shared__ __align__(128) std::byte longhaul_dynamic_shared[];
  return longhaul_dynamic_shared;
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// d += a b, for the whole warp: a 16x16 by rows, b 16x8 by columns, both bf16, d 16x8 f32. In lane
// l, with g = l / 4 and t = l % 4, registers hold pairs of neighbouring elements:
//   a[0] (g, 2t)  a[1] (g+8, 2t)  a[2] (g, 2t+8)  a[3] (g+8, 2t+8)      row, first column
//   b[0] (2t, g)  b[1] (2t+8, g)                                       first row, column
//   d[0] (g, 2t)  d[1] (g, 2t+1)  d[2] (g+8, 2t)  d[3] (g+8, 2t+1)
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
      "{%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8x8 matrices of 16-bit elements: lane 8 m + r brings the address of row r of matrix m (16
// bytes, aligned, in shared memory); register m then holds elements (l / 4, 2 (l % 4)) and the next
// one of matrix m. Transposed: (2 (l % 4), l / 4) and the one below.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// 16 bytes from global to shared memory, both aligned, in the background; zeros if !take (the
// address is then not read).
__device__ __forceinline__ void copy_16_async(void* shared, const void* global, bool take) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)),
               "l"(global), "r"(take ? 16 : 0)
               : "memory");
}
// What was asked for since the last commit is a group; waits until at most kGroups are under way.
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}
template <int kGroups>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroups) : "memory");
}

// Two f32 rounded to a pair of bf16, the first in the low half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// 2^x, flushing what is below 2^-126 to zero.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace longhaul::kernels::cuda
