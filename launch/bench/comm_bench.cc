// Latency and bandwidth between the ranks of a job, under mpirun or as threads:
//
//   ping_pong   between the first two ranks on a node, and on two nodes; half of a round trip
//   shift       every rank to the next one at once, as in a ring
//   all_gather  of every rank's bytes
//   read        of a neighbour's memory in place, into this rank's
//   link        the figures of a cluster description: seconds a message, bytes a second, and the
//               share of that time in which the processor cannot compute
//
// Bytes a second are those that a rank receives. The limit is memcpy of as many bytes on all ranks
// at once, measured before and after each case.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/bench/kernel_bench.h"
#include "launch/bench/kernel_benches.h"
#include "launch/cli/ranks.h"
#include "launch/config/cluster.h"
#include "parallel/cost/measure.h"

namespace longhaul::launch {

namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;
constexpr const char* kWhat = "bench comm";

struct Options {
  std::optional<int64_t> ranks;
  std::vector<int64_t> bytes = {8, 4096, int64_t{256} << 10, int64_t{4} << 20};
  std::string file;
  std::vector<std::string> dtypes = {"f32", "bf16"};
  std::vector<int64_t> head_dims = {64, 128};
  bool json = false;
};

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Seconds of `work` on the slowest rank, the best of several rounds in which all start together.
double slowest_of_best(dist::Group& world, const std::function<void()>& work) {
  constexpr int kTries = 5;
  constexpr double kLongEnough = 2e-3;
  int64_t calls = 1;
  double best = 0;
  for (int i = 0; i <= kTries; ++i) {
    world.barrier(kWhat);
    const auto begin = Clock::now();
    for (int64_t call = 0; call < calls; ++call) work();
    const double mine = seconds_since(begin) / static_cast<double>(calls);
    const double slowest = 1e-9 * static_cast<double>(world.max(std::llround(mine * 1e9), kWhat));
    if (i == 0) {
      calls = static_cast<int64_t>(std::clamp(kLongEnough / std::max(slowest, 1e-8), 1., 1000.));
      continue;
    }
    best = i == 1 ? slowest : std::min(best, slowest);
  }
  return best;
}

class CommBench {
 public:
  CommBench(dist::Group& world, const Options& options, int threads)
      : world_(world),
        options_(options),
        pool_(threads),
        ctx_{.stream = {}, .pool = &pool_, .scratch = &none_},
        node_of_(parallel::nodes_of(world)) {}

  void run() {
    if (!options_.file.empty()) put("", std::ios::app);  // before half a minute of measuring
    for (const bool same : {true, false}) {
      if (!pair(same)) continue;
      for (int64_t bytes : options_.bytes) ping_pong(same, bytes);
      for (int64_t bytes : options_.bytes) shift(same, bytes);
    }
    for (int64_t bytes : options_.bytes) all_gather(bytes);
    if (pair(true)) {
      for (int64_t bytes : options_.bytes) read_in_place(bytes);
    }
    const parallel::LinkCosts links = parallel::measure_links(world_, ctx_, node_of_);
    if (links.within_rank) print_link("within_rank", *links.within_rank);
    if (links.within_node) print_link("within_node", *links.within_node);
    if (links.between_nodes) print_link("between_nodes", *links.between_nodes);
    if (!options_.file.empty()) write(links);
  }

 private:
  std::optional<std::pair<int, int>> pair(bool same) const {
    for (int b = 1; b < world_.size(); ++b) {
      if ((node_of_[0] == node_of_[static_cast<size_t>(b)]) == same) return std::pair(0, b);
    }
    return std::nullopt;
  }
  static const char* where(bool same) { return same ? "within_node" : "between_nodes"; }

  double memcpy_speed(int64_t bytes) {
    const std::vector<char> from(static_cast<size_t>(bytes), 1);
    std::vector<char> to(static_cast<size_t>(bytes));
    return static_cast<double>(bytes) / slowest_of_best(world_, [&] {
             std::memcpy(to.data(), from.data(), to.size());
             // The copy is wanted even though nobody looks at it.
             asm volatile("" : : "r"(to.data()) : "memory");
           });
  }

  // Measures and prints: `seconds` for `received` bytes of a rank.
  void add(const char* op, const char* place, int64_t bytes, double received,
           const std::function<double()>& seconds) {
    const double before = memcpy_speed(std::max<int64_t>(1, std::llround(received)));
    const double taken = seconds();
    const double after = memcpy_speed(std::max<int64_t>(1, std::llround(received)));
    print(
        {{"op", op}, {"where", place}, {"bytes", bytes}}, received / taken, 0.5 * (before + after),
        {{"seconds", taken}, {"limit_drift", std::abs(after - before) / std::max(after, before)}});
  }

  void ping_pong(bool same, int64_t bytes) {
    const auto [a, b] = *pair(same);
    add("ping_pong", where(same), bytes, static_cast<double>(bytes), [&, from = a, to = b] {
      return parallel::ping_pong_seconds(world_, ctx_, from, to, bytes);
    });
  }

  void shift(bool same, int64_t bytes) {
    const std::vector<int> next = parallel::next_ranks(node_of_, same);
    add("shift", where(same), bytes, static_cast<double>(bytes),
        [&] { return parallel::shift_seconds(world_, ctx_, next, bytes); });
  }

  void all_gather(int64_t bytes) {
    if (world_.size() < 2) return;
    const int64_t elements = (bytes + 7) / 8;
    const Tensor mine(DType::kF64, {elements}), all(DType::kF64, {world_.size() * elements});
    Stream stream;
    add("all_gather", "all_ranks", bytes, static_cast<double>(bytes * (world_.size() - 1)), [&] {
      return slowest_of_best(world_,
                             [&] { world_.all_gather(stream, mine, all, kWhat).wait(stream); });
    });
  }

  // A neighbour's memory, read as attention does, and written into this rank's.
  void read_in_place(int64_t bytes) {
    const std::unique_ptr<dist::Window> window = world_.make_window(1, bytes);
    const auto me = static_cast<size_t>(world_.rank());
    const int from = parallel::next_ranks(node_of_, true)[me];
    std::memset(window->local(0).data(), 1, static_cast<size_t>(bytes));
    std::vector<char> to(static_cast<size_t>(bytes));
    add("read", "within_node", bytes, static_cast<double>(bytes), [&] {
      return slowest_of_best(world_, [&] {
        std::memcpy(to.data(), window->peer(from, 0).data(), to.size());
        asm volatile("" : : "r"(to.data()) : "memory");
      });
    });
    world_.barrier(kWhat);
  }

  void print_link(const char* place, const parallel::Link& link) {
    print({{"op", "link"}, {"where", place}}, link.bytes_per_second, memcpy_speed(int64_t{2} << 20),
          {{"seconds_per_message", link.seconds_per_message},
           {"processor_share", link.processor_share}});
  }

  void print(Json description, double value, double limit, const Json& further) {
    if (world_.rank() != 0) return;
    description["ranks"] = world_.size();
    description["ranks_per_node"] = parallel::ranks_per_node(node_of_);
    if (options_.json) {
      Json json = {{"bench", "comm"},       {"case", description},
                   {"value", value / 1e9},  {"unit", "GB/s"},
                   {"limit", limit / 1e9},  {"limit_name", "measured memcpy of all ranks at once"},
                   {"ratio", value / limit}};
      json.update(further);
      std::printf("%s\n", json.dump().c_str());
    } else {
      print_row(description, value, limit, further);
    }
    std::fflush(stdout);
  }

  void print_row(const Json& description, double value, double limit, const Json& further) {
    if (!header_printed_) {
      std::printf("# %d ranks, %d to a node\n%-11s %-14s %10s %12s %9s %9s %7s\n", world_.size(),
                  parallel::ranks_per_node(node_of_), "op", "where", "bytes", "us", "GB/s",
                  "memcpy", "ratio");
      header_printed_ = true;
    }
    const bool link = description["op"] == "link";
    const double seconds = further[link ? "seconds_per_message" : "seconds"].get<double>();
    std::string notes;
    if (link) {
      notes = absl::StrFormat("  processor busy %.0f%%",
                              100 * further["processor_share"].get<double>());
    } else if (further["limit_drift"].get<double>() > 0.05) {
      notes = absl::StrFormat("  (limit moved %.0f%%)", 100 * further["limit_drift"].get<double>());
    }
    std::printf("%-11s %-14s %10s %12.2f %9.3f %9.3f %6.1f%%%s\n",
                description["op"].get<std::string>().c_str(),
                description["where"].get<std::string>().c_str(),
                link ? "" : description["bytes"].dump().c_str(), 1e6 * seconds, value / 1e9,
                limit / 1e9, 100 * value / limit, notes.c_str());
  }

  // The description, with what rank 0 measured of kernels and memory.
  void write(const parallel::LinkCosts& links) {
    parallel::Cluster cluster{.within_rank = links.within_rank,
                              .within_node = links.within_node,
                              .between_nodes = links.between_nodes,
                              .ranks_per_node = parallel::ranks_per_node(node_of_),
                              .seconds_to_publish = links.seconds_to_publish,
                              .memory_bytes_per_second = parallel::measure_memory(ctx_),
                              .profiles = {}};
    for (const std::string& dtype : options_.dtypes) {
      for (int64_t d : options_.head_dims) {
        world_.barrier(kWhat);
        constexpr int64_t kHeads = 64, kRows = 1024;
        parallel::KernelCosts kernel = parallel::measure_kernel(
            ctx_, {.q_heads = kHeads, .kv_heads = kHeads, .head_dim = d, .value_dim = d},
            dtype == "bf16" ? DType::kBF16 : DType::kF32, kRows);
        cluster.seconds_per_task = kernel.seconds_per_task;
        cluster.profiles.push_back(std::move(kernel.profile));
      }
    }
    put(absl::StrCat("# Written by `longhaul bench comm` on ", world_.size(), " ranks with ",
                     pool_.threads(), " threads each.\n", list_text(to_message(cluster))),
        std::ios::trunc);
  }

  // Rank 0 writes the file; every rank throws if it cannot.
  void put(const std::string& text, std::ios::openmode mode) {
    world_.agree(attempt([&] {
                   if (world_.rank() != 0) return;
                   std::ofstream out(options_.file, std::ios::out | mode);
                   out << text;
                   if (!out.flush()) {
                     fail(ErrorCode::kEnvironment,
                          absl::StrCat("cannot write ", options_.file,
                                       " (--write); give a path in a folder that is there"));
                   }
                 }),
                 "writing the cluster description");
  }

  dist::Group& world_;
  const Options& options_;
  ThreadPool pool_;
  Arena none_{"nothing", 0, kCpu};
  Context ctx_;
  std::vector<int> node_of_;
  bool header_printed_ = false;
};

int run(const Options& options) {
  check_positive("--bytes", options.bytes);
  check_positive("--head-dim", options.head_dims);
  check_known("--dtype", options.dtypes, {"f32", "bf16"});
  if (options.ranks) check_ranks_option(*options.ranks);
  const int ranks = static_cast<int>(options.ranks.value_or(0));
  return run_ranks(ranks, std::chrono::minutes(2), [&](dist::Group& world) {
    CommBench(world, options, threads_per_rank(ranks)).run();
  });
}

}  // namespace

Action add_comm_bench(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("--ranks", options->ranks, "Ranks as threads of this process, without MPI")
      ->type_name("N");
  add_list(app, "--bytes", options->bytes, "Bytes of a message, a case each");
  app.add_option("--write", options->file,
                 "Writes a cluster description (parallel.cluster), with kernels of --dtype and "
                 "--head-dim")
      ->type_name("FILE");
  add_list(app, "--dtype", options->dtypes, "Types of the kernels that --write measures");
  add_list(app, "--head-dim", options->head_dims, "Head dimensions that --write measures");
  app.add_flag("--json", options->json, "One JSON object a line instead of the table");
  return [options] { return run(*options); };
}

}  // namespace longhaul::launch
