#include "kernels/backend.h"

#include "absl/strings/str_cat.h"

namespace longhaul::kernels {

const Backend& backend(Device device) {
  return device.kind == DeviceKind::kCpu ? cpu_backend() : cuda_backend();
}

void no_kernel(std::string_view operation, Device device, DType dtype) {
  const bool no_backend = backend(device).gemm.empty();
  fail(ErrorCode::kEnvironment,
       absl::StrCat("no implementation of ", std::string(operation), " for ",
                    std::string(name(dtype)), " on ", to_string(device),
                    no_backend ? ": this binary was built without that backend; rebuild with the "
                                 "preset `cuda` or set device: CPU"
                               : ": choose another train.dtype, or see `longhaul doctor`"));
}

}  // namespace longhaul::kernels
