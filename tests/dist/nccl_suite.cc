// Device tensors over NCCL, one GPU a rank. Run by all ranks, by itself or under mpirun; an unmet
// expectation on one ends all with a non-zero status. Status 77, with the reason: too few GPUs.
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "dist/mpi/mpi.h"
#include "dist/nccl/nccl.h"
#include "kernels/core/cuda_runtime.h"
#include "kernels/core/transfer.h"
#include "tests/dist/suite.h"

namespace longhaul::dist {
namespace {

using namespace std::chrono_literals;
using testing::expect;

constexpr int kSkipped = 77;

// The device is kept busy, so that whatever does not wait for the stream comes too early.
void order_under_load(Group& group, Device device) {
  const OwnedStream owned(device);
  Stream stream = owned.get();
  constexpr int64_t kElements = 100'000, kLoad = int64_t{64} << 20;
  const Tensor from(DType::kF64, {kLoad / 8}, device), to(DType::kF64, {kLoad / 8}, device);
  const auto dawdle = [&] {
    for (int i = 0; i < 40; ++i) upload(stream, from, to);
  };
  const auto on_device = [&](const Tensor& host) {
    Tensor result(host.view().dtype(), host.shape(), device);
    upload(stream, host, result);
    return result;
  };
  const int next = (group.rank() + 1) % group.size();
  const int previous = (group.rank() + group.size() - 1) % group.size();
  const Tensor out(DType::kI32, {kElements}, device), in(DType::kI32, {kElements}, device);
  const Tensor sum(DType::kI32, {kElements}, device);
  for (int round = 0; round < 10; ++round) {
    const Tensor value = on_device(testing::filled<int32_t>(group.rank() + round, kElements));
    const Tensor noise = on_device(testing::filled<int32_t>(99, kElements));
    const Tensor arrived(DType::kI32, {kElements}, device);
    wait_until_idle(stream);
    dawdle();
    upload(stream, value, out);
    upload(stream, value, sum);
    const Send send{next, out};
    const Recv recv{previous, in};
    Request ring = group.exchange(stream, {&send, 1}, {&recv, 1}, "ring");
    Request reduction = group.all_reduce(stream, sum, ReduceOp::kSum, "sum");
    ring.wait(stream);
    upload(stream, in, arrived);
    upload(stream, noise, out);
    upload(stream, noise, in);
    reduction.wait(stream);
    const Tensor got = on_host(stream, arrived), total = on_host(stream, sum);
    for (int64_t i = 0; i < kElements; ++i) {
      const size_t at = static_cast<size_t>(i);
      int expected = 0;
      for (int r = 0; r < group.size(); ++r) expected += testing::predictable(r + round, i);
      expect(got.span<int32_t>()[at] == testing::predictable(previous + round, i),
             absl::StrCat("element ", i, " of round ", round));
      expect(total.span<int32_t>()[at] == expected, absl::StrCat("sum ", i, " of round ", round));
    }
  }
}

int skip(Group& world, const std::string& why) {
  if (world.rank() == 0) std::printf("skipped: %s\n", why.c_str());
  return kSkipped;
}

int run() {
  const Launch launch = detect_launch();
  MpiSession session(launch, 60s);
  Group& world = session.world();
  if (const std::string why = why_no_nccl(); !why.empty()) return skip(world, why);
  if (world.rank() == 0) std::printf("%s\n", nccl_version().c_str());
  if (world.size() > 1) {
    // All on one GPU, on each node: refused.
    const std::string message = testing::expect_error(ErrorCode::kEnvironment, [&] {
      make_nccl_transport(world, Device{DeviceKind::kCuda, 0});
    });
    testing::expect_contains(message, "both use GPU 0");
    testing::expect_contains(message, "parallel.gpu_transport: HOST");
    if (world.rank() == 0) std::printf("two ranks on one GPU are refused\n");
  }
  const int64_t needed = world.max(launch.local_rank, "local ranks") + 1;
  const int64_t too_few = world.max(cuda::device_count() < needed ? 1 : 0, "GPUs");
  if (too_few != 0) {
    return skip(world, absl::StrCat(needed, " ranks of a node need as many GPUs; there are ",
                                    cuda::device_count()));
  }

  const Device device{DeviceKind::kCuda, launch.local_rank};
  const auto group = world.split(0, world.rank());
  group->use(make_nccl_transport(*group, device));
  std::vector<testing::Case> cases = testing::device_cases(device);
  cases.push_back({"order_under_load", [&](Group& part) { order_under_load(part, device); }});
  const std::vector<testing::Case> native = testing::native_cases(device);
  cases.insert(cases.end(), native.begin(), native.end());
  for (const testing::Case& test : cases) {
    if (world.rank() == 0) std::printf("%s\n", test.name.c_str());
    try {
      testing::run_case(*group, test);
    } catch (const std::exception& error) {
      world.abort(1, absl::StrCat("case ", test.name, ": ", error.what()));
    }
  }
  if (world.rank() == 0) std::printf("%zu cases passed\n", cases.size());
  return 0;
}

}  // namespace
}  // namespace longhaul::dist

int main() {
  try {
    return longhaul::dist::run();
  } catch (const longhaul::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return error.exit_status();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
