// Parts of dist that need no peer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <string>

#include "dist/local/local.h"
#include "dist/mpi/mpi.h"
#include "dist/null/null.h"
#include "dist/reduce.h"
#include "dist/seats.h"
#include "tests/dist/suite.h"

namespace longhaul::dist {
namespace {

using ::testing::HasSubstr;

// Sets the launchers' variables to exactly these for the life of the object.
class Environment {
 public:
  explicit Environment(const std::map<std::string, std::string>& variables) {
    for (const char* name : kNames) {
      if (const char* old = std::getenv(name)) before_[name] = old;
      unsetenv(name);
    }
    for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
  }
  ~Environment() {
    for (const char* name : kNames) {
      const auto old = before_.find(name);
      old == before_.end() ? unsetenv(name) : setenv(name, old->second.c_str(), 1);
    }
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  static constexpr const char* kNames[] = {"OMPI_COMM_WORLD_SIZE",
                                           "OMPI_COMM_WORLD_RANK",
                                           "OMPI_COMM_WORLD_LOCAL_RANK",
                                           "SLURM_PROCID",
                                           "SLURM_NTASKS",
                                           "SLURM_STEP_ID",
                                           "SLURM_LOCALID",
                                           "PMI_RANK",
                                           "PMI_SIZE",
                                           "PMIX_RANK",
                                           "MPI_LOCALRANKID"};
  std::map<std::string, std::string> before_;
};

void expect_launch(const std::map<std::string, std::string>& variables, const std::string& launcher,
                   std::optional<int> ranks, int local_rank) {
  const Environment environment(variables);
  const Launch launch = detect_launch();
  EXPECT_EQ(launch.under_launcher, !launcher.empty());
  EXPECT_EQ(launch.launcher, launcher);
  EXPECT_EQ(launch.expected_ranks, ranks);
  EXPECT_EQ(launch.local_rank, local_rank);
}

TEST(Launch, IsRead) {
  expect_launch({}, "", {}, 0);
  expect_launch({{"OMPI_COMM_WORLD_SIZE", "4"},
                 {"OMPI_COMM_WORLD_RANK", "3"},
                 {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}},
                "mpirun", 4, 1);
  expect_launch({{"SLURM_PROCID", "3"},
                 {"SLURM_NTASKS", "8"},
                 {"SLURM_STEP_ID", "0"},
                 {"SLURM_LOCALID", "2"},
                 {"PMIX_RANK", "3"}},
                "srun", 8, 2);
  // mpirun inside an allocation decides for itself.
  expect_launch({{"SLURM_PROCID", "0"},
                 {"SLURM_NTASKS", "8"},
                 {"OMPI_COMM_WORLD_SIZE", "2"},
                 {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}},
                "mpirun", 2, 1);
  // A shell inside salloc, without and with an interactive step; a batch script.
  expect_launch({{"SLURM_NTASKS", "8"}}, "", {}, 0);
  expect_launch({{"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "0"}, {"SLURM_STEP_ID", "4294967290"}}, "",
                {}, 0);
  expect_launch({{"SLURM_NTASKS", "1"}, {"SLURM_PROCID", "0"}}, "", {}, 0);
  // srun forgotten in a batch script with several tasks: to be refused.
  expect_launch({{"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "0"}}, "srun", 8, 0);
  // The launcher of another MPI.
  expect_launch({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "1"}}, "mpirun", 2, 1);
  expect_launch({{"PMIX_RANK", "1"}}, "mpirun", {}, 0);
}

TEST(Traffic, CountersByName) {
  Traffic traffic;
  traffic["a"].sent_bytes = 5;
  traffic["b"] = {.operations = 1,
                  .sent_bytes = 2,
                  .received_bytes = 3,
                  .in_place_bytes = 4,
                  .waited_seconds = 0.5};
  EXPECT_EQ(traffic.counters().size(), 2u);
  EXPECT_EQ(traffic.total(), (Traffic::Counter{1, 7, 3, 4, 0.5}));
  traffic.reset();
  EXPECT_EQ(traffic.total(), Traffic::Counter{});
}

TEST(Job, Whereabouts) {
  Job job;
  job.world_rank = 3;
  EXPECT_EQ(whereabouts(job), "rank 3");
  job.place = "loading data";
  EXPECT_EQ(whereabouts(job), "rank 3, loading data");
  job.step = 17;
  job.place = "layer 2 attention forward";
  EXPECT_EQ(whereabouts(job), "rank 3, step 17, layer 2 attention forward");
}

TEST(Reduce, OutputMayBeAnyInput) {
  for (size_t out = 0; out < 3; ++out) {
    std::vector<Tensor> inputs;
    std::vector<const std::byte*> pointers;
    for (int rank = 0; rank < 3; ++rank) {
      inputs.push_back(testing::filled<float>(rank, 2500));  // more than two blocks
      pointers.push_back(inputs.back().view().raw());
    }
    reduce_in_order(ReduceOp::kSum, DType::kF32, pointers, inputs[out].view().raw(), 2500);
    for (int64_t i = 0; i < 2500; ++i) {
      const int sum =
          testing::predictable(0, i) + testing::predictable(1, i) + testing::predictable(2, i);
      ASSERT_EQ(inputs[out].span<float>()[static_cast<size_t>(i)], static_cast<float>(sum));
    }
  }
}

Seat seat(char gpu, const std::string& node, int index, int visible) {
  Seat result{.index = index, .visible = visible};
  result.gpu.fill(gpu);
  node.copy(result.node.data(), node.size());
  std::string("NVIDIA H100").copy(result.model.data(), 11);
  return result;
}

TEST(Seats, OneRankPerGpu) {
  EXPECT_EQ(doubly_taken({seat('a', "n1", 0, 2), seat('b', "n1", 1, 2), seat('c', "n2", 0, 2)},
                         {0, 1, 2}),
            "");
  EXPECT_EQ(doubly_taken({seat('a', "n1", 0, 2), seat('b', "n1", 1, 2), seat('a', "n1", 0, 2)},
                         {4, 6, 8}),
            "ranks 4 and 8 both use GPU 0 (NVIDIA H100) of node n1, and NCCL takes one rank per "
            "GPU: start at most 2 ranks per node, or set parallel.gpu_transport: HOST");
}

TEST(Seats, AreGathered) {
  run_local(3, std::chrono::minutes(1), [](Group& world) {
    const Seat mine = seat(static_cast<char>('a' + world.rank()), "node", world.rank(), 3);
    const std::vector<Seat> all = gather_seats(world, mine);
    testing::expect(all.size() == 3);
    for (int rank = 0; rank < 3; ++rank) {
      const Seat& other = all[static_cast<size_t>(rank)];
      testing::expect(other.index == rank && other.gpu[15] == 'a' + rank && other.visible == 3);
    }
  });
}

// Views without memory, any rank of any size: bytes are counted, nothing is touched or allocated.
TEST(NullGroup, CountsWhatTheRealOneWould) {
  Stream stream;
  const auto group = null_group(700, 1024);
  EXPECT_EQ(group->rank(), 700);
  EXPECT_EQ(group->size(), 1024);
  const int64_t n = int64_t{1} << 33;  // elements of a piece
  const TensorView piece(nullptr, DType::kBF16, {n}), all(nullptr, DType::kBF16, {1024, n});
  group->all_gather(stream, piece, all, "gather").wait(stream);
  EXPECT_EQ(group->traffic()["gather"].received_bytes, 1023 * n * 2);
  const Send send{701, piece};
  const Recv recv{699, piece};
  Request request = group->exchange(stream, {&send, 1}, {&recv, 1}, "ring");
  EXPECT_TRUE(request.test());
  EXPECT_EQ(group->traffic()["ring"].sent_bytes, n * 2);

  const TensorView few(nullptr, DType::kF32, {1000}), some(nullptr, DType::kF32, {1024, 1000});
  group->reduce_scatter(stream, some, few, "scatter").wait(stream);
  EXPECT_EQ(group->traffic()["scatter"].sent_bytes, 1023 * 4000);
  group->all_reduce(stream, few, ReduceOp::kSum, "reduce").wait(stream);
  EXPECT_EQ(group->traffic()["reduce"].sent_bytes, 1023 * 4000);
  group->broadcast(stream, piece, 0, "broadcast").wait(stream);
  group->barrier("barrier");

  // Host values are this rank's own.
  EXPECT_EQ(group->max(-7, "max"), -7);
  EXPECT_EQ(group->sum(2.5, "sum"), 2.5);
  EXPECT_EQ(group->broadcast("text", 700, "text"), "text");
  group->agree(std::nullopt, "agree");
  EXPECT_THAT(
      testing::expect_error(ErrorCode::kNumerics,
                            [&] { group->agree(Error(ErrorCode::kNumerics, "mine"), "agree"); }),
      HasSubstr("mine"));
  EXPECT_EQ(group->make_window(2, 1 << 20), nullptr);
}

}  // namespace
}  // namespace longhaul::dist
