#include "kernels/cuda/launch.h"

#include <map>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::kernels::cuda {

namespace {

// Gives the kernel all that its static memory leaves of a block's, and says how much that is.
size_t allow_all(const char* name, const void* kernel, int device) {
  int most = 0;
  longhaul::cuda::check(
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), name);
  cudaFuncAttributes attributes{};
  longhaul::cuda::check(cudaFuncGetAttributes(&attributes, kernel), name);
  const int rest = most - static_cast<int>(attributes.sharedSizeBytes);
  longhaul::cuda::check(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, rest), name);
  return static_cast<size_t>(rest);
}

}  // namespace

void allow_shared_memory(const char* name, const void* kernel, size_t bytes) {
  static std::mutex mutex;
  static auto& allowed = *new std::map<std::pair<const void*, int>, size_t>;
  int device = 0;
  longhaul::cuda::check(cudaGetDevice(&device), name);
  const std::lock_guard lock(mutex);
  auto found = allowed.find({kernel, device});
  if (found == allowed.end()) {
    found = allowed.insert({{kernel, device}, allow_all(name, kernel, device)}).first;
  }
  if (bytes > found->second) {
    fail(ErrorCode::kEnvironment,
         absl::StrCat(name, " needs ", bytes, " bytes of a block's shared memory; GPU ", device,
                      " has ", found->second, " (compute capability 8.0 and 9.0 have enough)"));
  }
}

}  // namespace longhaul::kernels::cuda
