#include "dist/nccl/nccl.h"

#include "kernels/core/error.h"

namespace longhaul::dist {

std::string why_no_nccl() {
  return "this binary was built without NCCL; rebuild with the preset `cuda` or set "
         "parallel.gpu_transport: HOST";
}
std::string nccl_version() { return ""; }
std::unique_ptr<DeviceTransport> make_nccl_transport(Group&, Device) {
  fail(ErrorCode::kEnvironment, why_no_nccl());
}

}  // namespace longhaul::dist
