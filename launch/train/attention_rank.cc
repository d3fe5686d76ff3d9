#include "launch/train/attention_rank.h"

#include <algorithm>
#include <cstdlib>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/cli/signals.h"
#include "launch/config/cluster.h"
#include "launch/train/device.h"
#include "launch/train/engine.h"
#include "launch/train/peak.h"
#include "launch/train/server_buffers.h"
#include "parallel/layout/joint.h"
#include "parallel/layout/segments.h"

namespace longhaul::launch {

namespace {

// What each rank says in a call; numbers, of which all are gathered.
enum HeaderField : size_t {
  kDuty,
  kDropoutSample,
  kDocuments,
  kNextDocuments,
  kStep,
  kStopRequested,
  kFields
};
constexpr int64_t kNone = SampleExchange::kNone;

}  // namespace

// Files may differ between nodes: all ranks go by rank 0's.
static void read_costs(dist::Group& world, const Config& config, SettledStrategies& settled) {
  const std::string& path = config.parallel().cluster();
  if (path.empty()) {
    settled.lines.emplace_back(
        "strategy disaggregated: tasks weigh their (query, key) pairs; a cluster description "
        "(parallel.cluster) gives them costs");
    return;
  }
  std::string text;
  world.agree(attempt([&] {
                if (world.rank() == 0) text = list_text(to_message(load_cluster(path)));
              }),
              "reading the cluster description");
  const parallel::Cluster cluster =
      parse_cluster(world.broadcast(text, 0, "cluster description"), path);
  const int64_t dim = attention_options(config).heads.head_dim;
  const parallel::KernelProfile* profile = cluster.profile(dtype(config), dim);
  if (profile != nullptr) settled.profile = *profile;
  settled.lines.push_back(absl::StrCat(
      "strategy disaggregated: tasks weigh ",
      profile != nullptr
          ? "what the attention kernel takes by "
          : absl::StrCat("their (query, key) pairs: no kernel for ",
                         std::string(name(dtype(config))), " and heads of ", dim, " is in "),
      path));
}

dist::MeshShape mesh_shape(const Config& config) {
  return {.data = config.parallel().data(),
          .sequence = config.parallel().sequence(),
          .servers = config.parallel().servers()};
}

SettledStrategies settle_on(dist::Mesh& mesh, const Stream& stream, ThreadPool& pool,
                            const Config& config, const EngineOptions& options) {
  const parallel::Documents documents =
      options.documents.value_or(parallel::Documents::whole(config.data().sequence_length()));
  SettledStrategies settled{.forward = config.parallel().strategy(),
                            .backward = config.parallel().backward_strategy(),
                            .linear_method = config.parallel().linear_method(),
                            .lines = {},
                            .record = {}};
  const auto work = [&] {
    Arena none("nothing", 0, stream.device);
    const Context ctx{.stream = stream, .pool = &pool, .scratch = &none};
    settled = settle_strategies(mesh.trainers(), mesh.sequence(), ctx, config,
                                {.layout =
                                     [&](double row_price) {
                                       return make_layout(config, config.parallel().sequence(),
                                                          documents, row_price);
                                     },
                                 .documents = documents,
                                 .options = attention_options(config),
                                 .record_path = options.strategy_record,
                                 .softmax = model_config(config).softmax_layers() > 0,
                                 .linear = first_linear_attention(config),
                                 .linear_slopes = first_linear_slopes(config)});
  };
  if (mesh.shape().servers == 0) {
    work();
    if (is_disaggregated(config)) read_costs(mesh.world(), config, settled);
    return settled;
  }
  // Servers lay out samples as trainers do.
  mesh.share(mesh.is_trainer() ? mesh.agreed(work) : std::nullopt, "choosing strategies");
  const std::string price =
      mesh.world().broadcast(absl::StrFormat("%a", settled.row_price), 0, "price of a row");
  settled.row_price = std::strtod(price.c_str(), nullptr);
  read_costs(mesh.world(), config, settled);
  return settled;
}

AttentionRank::AttentionRank(dist::Group& world, const Config& config, const EngineOptions& options)
    : config_(config),
      disaggregated_(is_disaggregated(config)),
      stream_(open_device(world, config)),
      mesh_(world, mesh_shape(config)),
      pool_(config.parallel().threads()),
      strategies_(settle_on(mesh_, stream_.get(), pool_, config, options)),
      samples_(world, mesh_.shape(), config.data().sequence_length()),
      attention_(group(), attention_layout(config), attention_options(config, strategies_)) {
  if (disaggregated_ && mesh_.is_trainer()) {
    own_layout_ = make_layout(config_, config_.parallel().sequence());
  }
}

Context AttentionRank::context(Arena& scratch) {
  return {.stream = stream(),
          .pool = &pool_,
          .scratch = &scratch,
          // Waits for a GPU notice what has gone wrong elsewhere; work on CPUs has no such waits.
          .poll = stream().device == kCpu ? std::function<void()>()
                                          : [&world = mesh_.world()] { world.progress(); }};
}

// Memory may be missing on one node only.
RankMemory AttentionRank::reserve(const std::function<RankMemory()>& measure) {
  std::optional<RankMemory> memory;
  mesh_.world().agree(attempt([&] {
                        if (disaggregated_) require_buffers();
                        memory.emplace(RankMemory::reserve(measure()));
                      }),
                      "reserving memory");
  return std::move(*memory);
}

void AttentionRank::require_buffers() {
  Arena nothing = Arena::measure("workspace", stream().device);
  const std::vector<parallel::Documents> whole(
      static_cast<size_t>(config_.parallel().data()),
      parallel::Documents::whole(config_.data().sequence_length()));
  const auto require = [](int64_t needed, int64_t available) {
    if (needed <= available) return;
    constexpr double kMiB = 1 << 20;
    fail(ErrorCode::kConfig,
         absl::StrFormat("parallel.server_buffer_mib: rows of other ranks take up to %.1f MiB of a "
                         "rank, %.1f more than there are; raise it by as much, or leave it unset",
                         static_cast<double>(needed) / kMiB,
                         static_cast<double>(needed - available) / kMiB));
  };
  require(least_server_buffer_bytes(config_), server_buffer_bytes(config_));
  // Samples of one document are those whose tasks need most keys.
  require(attention_.buffer_bytes(context(nothing), parallel::side_by_side(whole)),
          attention_.reserved_bytes());
}

int64_t AttentionRank::own_area() {
  if (!disaggregated_) return attention_.forward_area();
  if (!own_documents_) return 0;
  const parallel::CoreAttentionOptions options = attention_options(config_);
  const parallel::RunList& mine = layout().runs(mesh_.sequence_rank());
  int64_t pairs = 0;
  for (int owner = 0; owner < layout().ranks(); ++owner) {
    for (const Segment& segment :
         parallel::cut_segments(mine, layout().runs(owner), *own_documents_, options.mask)) {
      pairs += area(segment);
    }
  }
  return pairs * options.heads.q_heads;
}

double AttentionRank::sum_of_peaks(const Context& ctx, DType dtype) {
  return mesh_.world().sum(measured_peak(ctx, dtype), "peak");
}

void AttentionRank::call(const Call& call, const parallel::Documents* sample,
                         const parallel::Documents* next) {
  if (disaggregated_) {
    exchange(call, sample, next);
    return;
  }
  if (sample != nullptr) attention_.prepare(*sample);
  if (next != nullptr) attention_.prefetch(*next);
}

Call AttentionRank::await() {
  LONGHAUL_CHECK(!mesh_.is_trainer());
  mesh_.world().job().place = "waiting for trainers";
  return exchange({}, nullptr, nullptr);
}

Call AttentionRank::exchange(const Call& mine, const parallel::Documents* sample,
                             const parallel::Documents* next) {
  dist::Group& world = mesh_.world();
  const bool trainer = mesh_.is_trainer();
  std::vector<int64_t> header(kFields);
  header[kDuty] = trainer ? static_cast<int64_t>(mine.duty) : kNone;
  header[kDropoutSample] = mine.dropout_sample.value_or(kNone);
  header[kDocuments] = samples_.count_of(sample);
  header[kNextDocuments] = SampleExchange::count_of_next(next);
  header[kStep] = world.job().step;
  header[kStopRequested] = !trainer && StopRequest::requested() ? 1 : 0;
  const std::vector<int64_t> all = gather_numbers(world, header);
  const auto said = [&](int rank, HeaderField field) {
    return all[static_cast<size_t>(rank) * kFields + field];
  };

  const int trainers = mesh_.shape().trainers();
  servers_asked_to_stop_ = false;
  for (int rank = trainers; rank < world.size(); ++rank) {
    servers_asked_to_stop_ = servers_asked_to_stop_ || said(rank, kStopRequested) != 0;
  }
  for (int rank = 1; rank < trainers; ++rank) {
    LONGHAUL_CHECK(said(rank, kDuty) == said(0, kDuty),
                   absl::StrCat("trainer ", rank, " calls for ", said(rank, kDuty),
                                ", trainer 0 for ", said(0, kDuty)));
  }
  if (!trainer) world.job().step = said(0, kStep);
  Call call{.duty = static_cast<Duty>(said(0, kDuty)), .dropout_sample = {}};
  if (said(0, kDropoutSample) != kNone) call.dropout_sample = said(0, kDropoutSample);
  if (call.duty == Duty::kForward || call.duty == Duty::kForwardAndBackward) {
    std::vector<int64_t> counts, next_counts;
    for (int rank = 0; rank < trainers; ++rank) {
      counts.push_back(said(rank, kDocuments));
      next_counts.push_back(said(rank, kNextDocuments));
    }
    samples_.tell(counts, sample, next_counts, next);
    prepare(sample);
    if (std::ranges::max(next_counts) != kNone) attention_.prefetch(samples_.next());
  }
  return call;
}

void AttentionRank::prepare(const parallel::Documents* sample) {
  attention_.prepare(samples_.now());
  if (sample == nullptr) return;
  own_documents_ = *sample;
  own_layout_ = make_layout(config_, config_.parallel().sequence(), *sample, strategies_.row_price);
}

void AttentionRank::lead(const std::function<void()>& work) {
  if (mesh_.shape().servers == 0) {
    work();
    return;
  }
  const std::optional<Error> error = mesh_.agreed(work);
  call({.duty = Duty::kEnd, .dropout_sample = {}}, nullptr);
  end(error);
}

}  // namespace longhaul::launch
