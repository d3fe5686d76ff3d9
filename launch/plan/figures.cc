#include "launch/plan/figures.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/config/cluster.h"
#include "parallel/cost/measure.h"
#include "parallel/cost/measure_linear.h"

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

// What this machine's device does for a kernel.
class Here {
 public:
  explicit Here(const Config& config)
      : cuda_(config.device() == Config::CUDA),
        stream_(cuda_ ? Device{.kind = DeviceKind::kCuda, .index = 0} : kCpu),
        pool_(config.parallel().threads()),
        none_("nothing", 0, stream_.get().device) {}

  Context context() { return {.stream = stream_.get(), .pool = &pool_, .scratch = &none_}; }
  std::string source(const char* of) const {
    return absl::StrCat(
        of, ": measured here, ",
        cuda_ ? "on one GPU" : absl::StrCat("on ", pool_.threads(), " threads of a CPU"),
        ", with nothing else running");
  }

 private:
  bool cuda_;
  OwnedStream stream_;
  ThreadPool pool_;
  Arena none_;
};

}  // namespace

parallel::Cluster figures(const Config& config, int64_t rows,
                          const std::optional<parallel::CoreAttentionOptions>& softmax,
                          const std::optional<parallel::LinearAttentionOptions>& linear,
                          std::vector<std::string>& sources) {
  const std::string& path = config.parallel().cluster();
  parallel::Cluster cluster;
  if (!path.empty()) {
    cluster = load_cluster(path);
    sources.push_back(absl::StrCat("links and memory: ", path));
  }
  std::optional<Here> here;
  const auto measured = [&](const char* of) {
    if (!here) here.emplace(config);
    sources.push_back(here->source(of));
    return here->context();
  };
  if (softmax && cluster.profile(softmax->dtype, softmax->heads.head_dim) == nullptr) {
    parallel::KernelCosts kernel =
        parallel::measure_kernel(measured("kernels"), softmax->heads, softmax->dtype, rows);
    if (cluster.seconds_per_task == 0) cluster.seconds_per_task = kernel.seconds_per_task;
    cluster.profiles.push_back(std::move(kernel.profile));
  } else if (softmax) {
    sources.push_back(absl::StrCat("kernels: ", path));
  }
  if (linear &&
      cluster.linear_profile(linear->dtype, parallel::scanned_heads(*linear)) == nullptr) {
    cluster.linear_profiles.push_back(
        parallel::measure_linear(measured("kernels of linear attention"), *linear, rows));
  } else if (linear) {
    sources.push_back(absl::StrCat("kernels of linear attention: ", path));
  }
  if (cluster.memory_bytes_per_second == 0) {
    cluster.memory_bytes_per_second = parallel::measure_memory(measured("memory"));
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

}  // namespace longhaul::launch
