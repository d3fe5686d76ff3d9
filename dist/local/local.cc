#include "dist/local/local.h"

#include <absl/strings/str_cat.h>

#include <numeric>
#include <thread>
#include <vector>

#include "dist/local/hub.h"
#include "dist/local/transport.h"
#include "kernels/core/error.h"

namespace longhaul::dist {
namespace {

void run_rank(const std::shared_ptr<local::Hub>& hub, int rank, int ranks,
              std::chrono::milliseconds deadline, const std::function<void(Group& world)>& body) {
  const auto failed = [&](const std::string& message) {
    hub->abort(std::current_exception(), absl::StrCat("rank ", rank, " failed: ", message));
  };
  try {
    auto job = std::make_shared<Job>();
    job->world_rank = rank;
    job->world_size = ranks;
    job->deadline = deadline;
    std::vector<int> members(static_cast<size_t>(ranks));
    std::iota(members.begin(), members.end(), 0);
    Group world(local::make_transport(hub, 0, std::move(members), rank), std::move(job));
    body(world);
  } catch (const std::exception& error) {
    failed(error.what());
  } catch (...) {
    failed("an exception of unknown type");
  }
  hub->end(rank);
}

}  // namespace

void run_local(int ranks, std::chrono::milliseconds deadline,
               const std::function<void(Group& world)>& body) {
  if (ranks < 1) fail(ErrorCode::kConfig, absl::StrCat(ranks, " ranks: there must be at least 1"));
  const auto hub = std::make_shared<local::Hub>(ranks);
  {
    std::vector<std::jthread> threads;
    try {
      for (int rank = 0; rank < ranks; ++rank) {
        threads.emplace_back(
            [&hub, rank, ranks, deadline, &body] { run_rank(hub, rank, ranks, deadline, body); });
      }
    } catch (const std::system_error& error) {
      const Error cause(ErrorCode::kEnvironment,
                        absl::StrCat("cannot start a thread for rank ", threads.size(), " of ",
                                     ranks, ": ", error.what()));
      hub->abort(std::make_exception_ptr(cause), cause.what());
    }
  }
  if (const auto error = hub->error()) std::rethrow_exception(error);
}

}  // namespace longhaul::dist
