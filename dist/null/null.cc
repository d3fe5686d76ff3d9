#include "dist/null/null.h"

#include "kernels/core/error.h"

namespace longhaul::dist {
namespace {

class NullTransport final : public Transport {
 public:
  NullTransport(int rank, int size) : rank_(rank), size_(size) {
    LONGHAUL_CHECK(rank >= 0 && rank < size);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  // Nobody knows the job around a group that was split off; its own numbers serve.
  int world_rank(int rank) const override { return rank; }
  bool moves_data() const override { return false; }

  std::unique_ptr<Messages> start(Stream&, std::span<const Send>, std::span<const Recv>,
                                  int64_t) override {
    return std::make_unique<Done>();
  }
  void progress() override {}
  std::unique_ptr<Transport> split(int, int) override {
    fail(ErrorCode::kInternal,
         "a measuring group cannot be split, since it does not know the other ranks' colors: make "
         "one null_group per axis");
  }
  std::unique_ptr<Window> make_window(int, int64_t) override { return nullptr; }
  void abort(int exit_status, const std::string& message) override {
    throw Error(static_cast<ErrorCode>(exit_status), message);
  }

 private:
  class Done final : public Messages {
   public:
    bool test() override { return true; }
    std::vector<int> missing() const override { return {}; }
  };

  const int rank_;
  const int size_;
};

}  // namespace

std::unique_ptr<Group> null_group(int rank, int size) {
  auto job = std::make_shared<Job>();
  job->world_rank = rank;
  job->world_size = size;
  return std::make_unique<Group>(std::make_unique<NullTransport>(rank, size), std::move(job));
}

}  // namespace longhaul::dist
