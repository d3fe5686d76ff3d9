#include "launch/train/device.h"

#include "absl/strings/str_cat.h"
#include "dist/mpi/mpi.h"
#include "dist/nccl/nccl.h"
#include "kernels/core/cuda_runtime.h"

namespace longhaul::launch {

Device device_of(const dist::Group& world, const Config& config) {
  if (config.device() == Config::CPU) return kCpu;
  const int count = cuda::device_count();
  if (count == 0) fail(ErrorCode::kEnvironment, cuda::why_no_device());
  const dist::Launch launch = dist::detect_launch();
  // Ranks that no launcher started are threads of this process.
  const int local = launch.under_launcher ? launch.local_rank : world.rank();
  if (local < count) return {.kind = DeviceKind::kCuda, .index = local};
  if (config.parallel().gpu_transport() == Parallel::HOST) {
    return {.kind = DeviceKind::kCuda, .index = local % count};
  }
  fail(ErrorCode::kEnvironment,
       absl::StrCat("rank ", world.rank(), " is number ", local, " of its node, which has ", count,
                    count == 1 ? " GPU" : " GPUs",
                    ": NCCL wants one for each rank; start fewer ranks per node or set "
                    "parallel { gpu_transport: HOST }"));
}

// A GPU may be missing on one node only.
OwnedStream open_device(dist::Group& world, const Config& config) {
  OwnedStream stream;
  world.agree(attempt([&] { stream = OwnedStream(device_of(world, config)); }), "finding the GPU");
  const Device device = stream.get().device;
  if (device != kCpu && world.size() > 1 && config.parallel().gpu_transport() == Parallel::NCCL) {
    world.use(dist::make_nccl_transport(world, device));
  }
  return stream;
}

}  // namespace longhaul::launch
