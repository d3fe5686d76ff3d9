#include "dist/nccl/nccl.h"

#include <absl/strings/str_cat.h>
#include <cuda_runtime_api.h>
#include <nccl.h>
#include <unistd.h>

#include <cstring>

#include "dist/nccl/transport.h"
#include "dist/seats.h"
#include "kernels/core/cuda/check.h"
#include "kernels/core/cuda_runtime.h"

namespace longhaul::dist {
namespace {

Seat seat_of(Device device) {
  cudaDeviceProp properties;
  cuda::check(cudaGetDeviceProperties(&properties, device.index), "cudaGetDeviceProperties",
              ErrorCode::kEnvironment);
  Seat seat;
  static_assert(sizeof(properties.uuid.bytes) == sizeof(seat.gpu));
  std::memcpy(seat.gpu.data(), properties.uuid.bytes, seat.gpu.size());
  gethostname(seat.node.data(), seat.node.size() - 1);
  std::string(properties.name).copy(seat.model.data(), seat.model.size() - 1);
  seat.index = device.index;
  seat.visible = cuda::device_count();
  return seat;
}

}  // namespace

std::string nccl_version() {
  int version = 0;
  if (ncclGetVersion(&version) != ncclSuccess) return "NCCL of unknown version";
  return absl::StrCat("NCCL ", version / 10000, ".", version / 100 % 100, ".", version % 100);
}

std::string why_no_nccl() { return cuda::why_no_device(); }

std::unique_ptr<DeviceTransport> make_nccl_transport(Group& group, Device device) {
  Seat seat;
  group.agree(attempt([&] {
                if (const std::string why = why_no_nccl(); !why.empty()) {
                  fail(ErrorCode::kEnvironment, why);
                }
                LONGHAUL_CHECK(device.kind == DeviceKind::kCuda, to_string(device));
                seat = seat_of(device);
              }),
              "GPUs");
  std::vector<int> world_ranks;
  for (int rank = 0; rank < group.size(); ++rank) world_ranks.push_back(group.world_rank(rank));
  const std::string conflict = doubly_taken(gather_seats(group, seat), world_ranks);
  group.agree(attempt([&] {
                if (!conflict.empty()) fail(ErrorCode::kEnvironment, conflict);
              }),
              "GPUs");
  return nccl::connect(group, device);
}

}  // namespace longhaul::dist
