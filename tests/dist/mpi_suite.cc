// The shared suite over MPI. Run by all ranks; an unmet expectation on one ends all with a non-zero
// status. Arguments:
//   --chunk-bytes=N    messages travel in chunks of N bytes (default: the transport's own)
//   --large            only: one message of more than 2^31 bytes
//   --device           only: tensors of GPU 0, which all ranks share; status 77 if there is none
//   --end=abort|throw|agree|silent|hang   how a failing job ends; see CMakeLists.txt
#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/strip.h>
#include <mpi.h>

#include <cstdio>
#include <string>
#include <thread>

#include "dist/mpi/mpi.h"
#include "dist/mpi/transport.h"
#include "kernels/core/cuda_runtime.h"
#include "tests/dist/large_message.h"
#include "tests/dist/suite.h"

namespace longhaul::dist {
namespace {

using namespace std::chrono_literals;

constexpr int kSkipped = 77;

// More than any machine has: refused on every rank, before anything is used.
void window_too_large(Group& group) {
  const std::string message = testing::expect_error(
      ErrorCode::kEnvironment, [&] { group.make_window(4, int64_t{1} << 50); });
  testing::expect_contains(message, "does not fit the available memory");
  testing::expect(group.make_window(1, 8) != nullptr, "still in step");
}

void run_cases(Group& world, Group& group, const std::vector<testing::Case>& cases) {
  for (const testing::Case& test : cases) {
    if (world.rank() == 0) std::printf("%s\n", test.name.c_str());
    try {
      testing::run_case(group, test);
    } catch (const std::exception& error) {
      world.abort(1, absl::StrCat("case ", test.name, ": ", error.what()));
    }
  }
  if (world.rank() == 0) std::printf("%zu cases passed\n", cases.size());
}

int run_device_suite(Group& world) {
  if (cuda::device_count() == 0) {
    if (world.rank() == 0) std::printf("skipped: %s\n", cuda::why_no_device().c_str());
    return kSkipped;
  }
  const Device device{DeviceKind::kCuda, 0};
  std::vector<testing::Case> cases = testing::device_cases(device);
  const std::vector<testing::Case> staging = testing::staging_cases(device);
  cases.insert(cases.end(), staging.begin(), staging.end());
  run_cases(world, world, cases);
  return 0;
}

void run_suite(Group& world, int64_t chunk_bytes) {
  std::vector<testing::Case> cases = testing::all_cases();
  cases.push_back({"window_too_large", window_too_large});
  // With very many chunks MPI keeps some for later, and would read what a given-up send has left.
  if (chunk_bytes < mpi::kChunkBytes) {
    std::erase_if(cases, [](const testing::Case& test) { return test.name == "deadline"; });
  }
  const auto job = std::make_shared<Job>(world.job());
  Group chunked(mpi::make_transport(MPI_COMM_WORLD, chunk_bytes), job);
  run_cases(world, chunked, cases);
}

// Ways in which jobs fail. None of them may hang or look like success.
void end(Group& world, const std::string& how) {
  const Error error(ErrorCode::kData, "this rank has failed");
  const bool failing = world.rank() == world.size() - 1;
  if (how == "agree") world.agree(failing ? std::optional(error) : std::nullopt, "agree");
  if (how == "abort" && failing) world.abort(error.exit_status(), error.what());
  if (how == "throw" && failing) throw error;
  if (how == "silent" && failing) std::_Exit(9);
  if (how == "hang" && failing) {
    for (;;) std::this_thread::sleep_for(1s);
  }
  if (how == "hang") {
    // As the program does it: the rank that finds out reports it and ends all.
    world.job().deadline = 1s;
    Stream stream;
    Tensor data(DType::kF32, {5'000'000});  // more than MPI sends ahead of the receive
    const Send send{world.size() - 1, data};
    const auto found = attempt([&] { world.exchange(stream, {&send, 1}, {}, "kv").wait(stream); });
    testing::expect(found.has_value());
    world.abort(found->exit_status(), found->what());
  }
  world.barrier("a rank that does not come");
}

int run(int argc, char** argv) {
  int64_t chunk_bytes = mpi::kChunkBytes;
  bool large = false, device = false;
  std::string ending;
  for (int i = 1; i < argc; ++i) {
    absl::string_view argument = argv[i];
    if (absl::ConsumePrefix(&argument, "--chunk-bytes=")) {
      LONGHAUL_CHECK(absl::SimpleAtoi(argument, &chunk_bytes));
    } else if (absl::ConsumePrefix(&argument, "--end=")) {
      ending = std::string(argument);
    } else {
      LONGHAUL_CHECK(argument == "--large" || argument == "--device", argv[i]);
      (argument == "--large" ? large : device) = true;
    }
  }
  MpiSession session(detect_launch(), 60s);
  if (device) return run_device_suite(session.world());
  if (!ending.empty()) {
    end(session.world(), ending);
  } else if (large) {
    testing::large_message(session.world());
  } else {
    run_suite(session.world(), chunk_bytes);
  }
  return 0;
}

}  // namespace
}  // namespace longhaul::dist

int main(int argc, char** argv) {
  try {
    return longhaul::dist::run(argc, argv);
  } catch (const longhaul::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return error.exit_status();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
