#include "launch/plan/attention_plan.h"

#include <algorithm>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/config/cluster.h"
#include "launch/data/batch.h"
#include "launch/train/engine.h"
#include "parallel/cost/measure.h"

namespace longhaul::launch {

namespace {

// What is assumed of links that nobody has measured: a copy between processes, and an adapter of
// 100 Gbit/s.
constexpr parallel::Link kAssumedWithinNode{
    .seconds_per_message = 2e-6, .bytes_per_second = 10e9, .processor_share = 0};
constexpr parallel::Link kAssumedBetweenNodes{
    .seconds_per_message = 10e-6, .bytes_per_second = 12.5e9, .processor_share = 0};

std::string describe(const parallel::Link& link) {
  return absl::StrFormat("%.3g GB/s and %.3g us a message", link.bytes_per_second / 1e9,
                         link.seconds_per_message * 1e6);
}

parallel::Documents typical_documents(const Config& config, std::vector<std::string>& sources) {
  const int64_t tokens = config.data().sequence_length();
  if (!std::filesystem::exists(config.data().path() + ".idx")) {
    sources.push_back(absl::StrCat("documents: one of all ", tokens, " tokens; there is no corpus ",
                                   config.data().path(), ".idx"));
    return parallel::Documents::whole(tokens);
  }
  const TokenFile file = TokenFile::open(config.data().path());
  const DataLoader loader(file, {0, file.tokens()}, tokens, config.data().seed());
  parallel::Documents documents = loader.load(0).documents;
  sources.push_back(absl::StrCat("documents: ", documents.count(), " in the first sample of ",
                                 config.data().path()));
  return documents;
}

// Kernels and memory as they are on this machine.
void measure_here(const Config& config, const parallel::CoreAttentionOptions& options, int64_t rows,
                  parallel::Cluster& cluster, std::vector<std::string>& sources) {
  const bool cuda = config.device() == Config::CUDA;
  const OwnedStream stream(cuda ? Device{.kind = DeviceKind::kCuda, .index = 0} : kCpu);
  ThreadPool pool(config.parallel().threads());
  Arena none("nothing", 0, stream.get().device);
  const Context ctx{.stream = stream.get(), .pool = &pool, .scratch = &none};
  parallel::KernelCosts kernel = parallel::measure_kernel(ctx, options.heads, options.dtype, rows);
  if (cluster.seconds_per_task == 0) cluster.seconds_per_task = kernel.seconds_per_task;
  cluster.profiles.push_back(std::move(kernel.profile));
  if (cluster.memory_bytes_per_second == 0) {
    cluster.memory_bytes_per_second = parallel::measure_memory(ctx);
  }
  sources.push_back(absl::StrCat(
      "kernels: measured here, ",
      cuda ? "on one GPU" : absl::StrCat("on ", config.parallel().threads(), " threads of a CPU"),
      ", with nothing else running"));
}

parallel::Cluster figures(const Config& config, const parallel::CoreAttentionOptions& options,
                          int64_t rows, std::vector<std::string>& sources) {
  const std::string& path = config.parallel().cluster();
  parallel::Cluster cluster;
  if (!path.empty()) {
    cluster = load_cluster(path);
    sources.push_back(absl::StrCat("links and memory: ", path));
  }
  if (cluster.profile(options.dtype, options.heads.head_dim) != nullptr) {
    sources.push_back(absl::StrCat("kernels: ", path));
  } else {
    measure_here(config, options, rows, cluster, sources);
  }
  const auto assume = [&](std::optional<parallel::Link>& link, const parallel::Link& assumed,
                          const char* where) {
    if (link) return;
    link = assumed;
    sources.push_back(
        absl::StrCat("links ", where, ": ASSUMED, not measured: ", describe(assumed),
                     "; for others set parallel.cluster (`longhaul bench comm --write FILE`)"));
  };
  assume(cluster.within_node, kAssumedWithinNode, "within a node");
  assume(cluster.between_nodes, kAssumedBetweenNodes, "between nodes");
  return cluster;
}

int per_node(const Config& config, const parallel::Cluster& cluster, int ranks,
             std::vector<std::string>& sources) {
  int wanted = config.parallel().ranks_per_node();
  std::string source = "parallel.ranks_per_node";
  if (wanted == 0 && cluster.ranks_per_node > 0) {
    wanted = cluster.ranks_per_node;
    source = config.parallel().cluster();
  }
  if (wanted == 0) {
    sources.push_back(
        "nodes: ASSUMED, all ranks of a sample are on one; set parallel.ranks_per_node");
    return ranks;
  }
  sources.push_back(
      absl::StrCat("nodes: ", wanted, wanted == 1 ? " rank" : " ranks", " each, by ", source));
  return std::min(wanted, ranks);
}

std::optional<parallel::RowPrice> price_of_a_row(const Config& config, const AttentionPlan& plan,
                                                 const parallel::CoreAttentionOptions& options,
                                                 int64_t rows, const std::vector<int>& nodes) {
  if (layout_kind(config).make_for == nullptr) return std::nullopt;
  if (config.parallel().has_row_price()) {
    return parallel::RowPrice{config.parallel().row_price(), "as configured, parallel.row_price"};
  }
  return parallel::row_price(plan.cluster, options.heads, options.dtype, rows, nodes,
                             options.in_place);
}

// Pairs of the queries that the fullest rank owns, over the mean.
double area_balance(const parallel::Problem& problem) {
  double sum = 0, most = 0;
  const int ranks = problem.layout.ranks();
  for (int rank = 0; rank < ranks; ++rank) {
    double pairs = 0;
    for (int owner = 0; owner < ranks; ++owner) {
      for (const Segment& segment :
           parallel::cut_segments(problem.layout.runs(rank), problem.layout.runs(owner),
                                  problem.documents, problem.mask)) {
        pairs += static_cast<double>(area(segment));
      }
    }
    sum += pairs;
    most = std::max(most, pairs);
  }
  return sum > 0 ? most * ranks / sum : 1;
}

}  // namespace

AttentionPlan plan_attention(const Config& config) {
  AttentionPlan plan;
  plan.ranks = config.parallel().sequence();
  const parallel::CoreAttentionOptions options = attention_options(config);
  const parallel::Documents documents = typical_documents(config, plan.sources);
  const int64_t rows = make_layout(config, plan.ranks).most_rows();
  plan.documents = documents.count();
  plan.cluster = figures(config, options, rows, plan.sources);
  plan.ranks_per_node = per_node(config, plan.cluster, plan.ranks, plan.sources);
  const std::vector<int> nodes = parallel::nodes_in_order(plan.ranks, plan.ranks_per_node);
  plan.row_price = price_of_a_row(config, plan, options, rows, nodes);
  const parallel::TokenLayout layout =
      make_layout(config, plan.ranks, documents, plan.row_price ? plan.row_price->pairs : 0);
  const parallel::Problem problem{.layout = layout,
                                  .documents = documents,
                                  .mask = options.mask,
                                  .heads = options.heads,
                                  .ranks_per_node = plan.ranks_per_node,
                                  .gather_heads = options.gather_heads};
  plan.balance = area_balance(problem);
  const auto choose = [&](parallel::Direction direction) {
    return parallel::choose(problem, direction, options.dtype, plan.cluster, nodes,
                            options.in_place);
  };
  plan.forward = choose(parallel::Direction::kForward);
  plan.backward = choose(parallel::Direction::kBackward);
  return plan;
}

}  // namespace longhaul::launch
