// Errors of the CUDA runtime as Error.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "kernels/core/error.h"

namespace longhaul::cuda {

inline void check(cudaError_t code, const char* call, ErrorCode kind = ErrorCode::kInternal) {
  if (code == cudaSuccess) return;
  // Errors of kernels stay, and are everybody's; those of a call alone must not be found later.
  cudaGetLastError();
  fail(kind,
       std::string(call) + ": " + cudaGetErrorString(code) + " (" + cudaGetErrorName(code) + ")");
}

}  // namespace longhaul::cuda
