#include "launch/train/strategy_choice.h"

#include <google/protobuf/text_format.h>

#include <filesystem>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/config/text.h"
#include "parallel/cost/choose_scan.h"
#include "parallel/cost/measure.h"
#include "parallel/cost/measure_linear.h"
#include "parallel/cost/row_price.h"
#include "parallel/plan/decayed_scan.h"
#include "parallel/scan/runs.h"

namespace longhaul::launch {

namespace {

namespace pb = google::protobuf;
using parallel::Direction;

bool is_auto(const std::string& strategy) { return strategy == kAutoStrategy; }

// What costs decide.
struct Open {
  bool forward = false, backward = false;  // strategies of softmax attention
  bool price = false;                      // the layout goes by documents, at a price left open
  bool linear = false;
  bool softmax() const { return forward || backward; }
  bool any() const { return softmax() || price || linear; }
};

Open left_open(const Config& config, const StrategySetting& setting) {
  const Parallel& parallel = config.parallel();
  const bool by_documents = parallel::layout_kind(parallel.layout()).make_for != nullptr;
  return {.forward = setting.softmax && is_auto(parallel.strategy()),
          .backward = setting.softmax && is_auto(parallel.backward_strategy()),
          .price = setting.softmax && by_documents && !parallel.has_row_price(),
          .linear = setting.linear && is_auto(parallel.linear_method())};
}

// Most rows of a rank.
int64_t rows_of(const StrategySetting& setting, int ranks) {
  return (setting.documents.tokens() + ranks - 1) / ranks;
}

parallel::Problem problem_of(const StrategySetting& setting, const parallel::TokenLayout& layout,
                             int ranks_per_node) {
  return {.layout = layout,
          .documents = setting.documents,
          .mask = setting.options.mask,
          .heads = setting.options.heads,
          .ranks_per_node = ranks_per_node,
          .gather_heads = setting.options.gather_heads};
}

ChoiceProblem choice_problem(const Config& config, const StrategySetting& setting, int ranks,
                             int ranks_per_node) {
  const parallel::CoreAttentionOptions& options = setting.options;
  ChoiceProblem problem;
  problem.set_ranks(ranks);
  problem.set_ranks_per_node(ranks_per_node);
  problem.set_sequence_length(setting.documents.tokens());
  problem.set_layout(config.parallel().layout());
  problem.set_heads(options.heads.q_heads);
  problem.set_kv_heads(options.heads.kv_heads);
  problem.set_head_dim(options.heads.head_dim);
  problem.set_dtype(std::string(name(options.dtype)));
  problem.set_mask(describe(options.mask));
  problem.set_in_place(options.in_place);
  problem.set_strategy(config.parallel().strategy());
  problem.set_backward_strategy(config.parallel().backward_strategy());
  problem.set_cluster(config.parallel().cluster());
  problem.set_gather_heads(options.gather_heads);
  if (config.parallel().has_row_price()) problem.set_row_price(config.parallel().row_price());
  if (left_open(config, setting).linear) {
    problem.set_linear_kind(std::string(name(setting.linear->kind)));
    problem.set_linear_heads(setting.linear->heads);
    problem.set_linear_head_dim(setting.linear->head_dim);
    problem.set_linear_value_dim(setting.linear->value_dim);
    problem.set_linear_decay_bound(setting.linear->decay_bound);
  }
  return problem;
}

// "ranks is 2 and was 4", of the first field that differs.
std::optional<std::string> difference(const ChoiceProblem& now, const ChoiceProblem& before) {
  const pb::Descriptor& type = *ChoiceProblem::descriptor();
  for (int i = 0; i < type.field_count(); ++i) {
    const pb::FieldDescriptor* field = type.field(i);
    const auto text = [&](const ChoiceProblem& problem) -> std::string {
      if (!problem.GetReflection()->HasField(problem, field)) return "unset";
      std::string value;
      pb::TextFormat::PrintFieldValueToString(problem, field, -1, &value);
      return value;
    };
    const std::string mine = text(now), other = text(before);
    if (mine != other) return absl::StrCat(field->name(), " is ", mine, " and was ", other);
  }
  return std::nullopt;
}

// Whether a record of the same problem has all that was left open, of this program.
bool usable(const SavedChoice& saved, const Open& open) {
  if (open.price && !(saved.row_price().has_pairs() && saved.row_price().pairs() >= 0))
    return false;
  if (open.linear) {
    const std::string& method = saved.linear().strategy();
    if (attempt([&] { parallel::scan_method(method); })) return false;
    if (saved.linear().candidates().empty()) return false;
  }
  for (const auto& [choice, chosen] :
       {std::pair(&saved.forward(), open.forward), std::pair(&saved.backward(), open.backward)}) {
    const std::string& strategy = choice->strategy();
    if (open.softmax() && attempt([&] { parallel::strategy(strategy); })) return false;
    if (chosen && choice->candidates().empty()) return false;
  }
  return true;
}

// What rank 0 finds in the record of an earlier run.
struct Earlier {
  std::optional<SavedChoice> choice;  // to be used again
  std::string why_not;                // one that is there does not fit
};
Earlier look_up(const std::string& path, const ChoiceProblem& problem, const Open& open) {
  if (path.empty() || !std::filesystem::exists(path)) return {};
  SavedChoice saved;
  parse_text(read_text(path, "strategies chosen by an earlier run", "remove it to choose anew"),
             absl::StrCat(path, " (remove it to choose anew)"), saved);
  if (const auto differs = difference(problem, saved.problem())) {
    return {std::nullopt, *differs};
  }
  if (!usable(saved, open)) {
    return {std::nullopt,
            "it names a strategy or method that there is no longer, or lacks a choice"};
  }
  return {std::move(saved), ""};
}

// Links, memory and the kernels that the choices rest on.
parallel::Cluster costs(dist::Group& world, dist::Group& sequence, const Context& ctx,
                        const Config& config, const StrategySetting& setting,
                        const std::vector<int>& node_of, const Open& open) {
  const parallel::HeadShape& heads = setting.options.heads;
  const DType type = setting.options.dtype;
  const int64_t rows = rows_of(setting, sequence.size());
  const std::string& path = config.parallel().cluster();
  parallel::Cluster cluster;
  if (path.empty()) {
    cluster = parallel::measure_links_and_memory(sequence, ctx, node_of);
  } else {
    world.agree(attempt([&] { cluster = load_cluster(path); }), "reading the cluster description");
  }
  // Files may differ between nodes: all ranks do as rank 0.
  const auto lacks = [&](bool here) {
    return !world.broadcast(here ? "lacks" : "", 0, "cluster description").empty();
  };
  if ((open.softmax() || open.price) && lacks(cluster.profile(type, heads.head_dim) == nullptr)) {
    parallel::KernelCosts kernel = parallel::measure_kernel(ctx, heads, type, rows);
    if (cluster.seconds_per_task == 0) cluster.seconds_per_task = kernel.seconds_per_task;
    cluster.profiles.push_back(std::move(kernel.profile));
  }
  if (open.linear &&
      lacks(cluster.linear_profile(type, parallel::scanned_heads(*setting.linear)) == nullptr)) {
    sequence.barrier("measuring kernels");
    cluster.linear_profiles.push_back(parallel::measure_linear(ctx, *setting.linear, rows));
  }
  return cluster;
}

void add_choice(const char* of, const DirectionChoice& choice, bool reused, const std::string& path,
                std::vector<std::string>& lines) {
  lines.push_back(absl::StrCat(
      of, ": ", choice.strategy(), " (",
      reused ? absl::StrCat("as chosen before, see ", path) : choice.why(),
      absl::StrFormat("; predicted %.3g ms a layer)", 1e3 * choice.candidates(0).seconds())));
}

// measured: none where nothing needs costs.
SavedChoice choose_now(const Config& config, const StrategySetting& setting,
                       const ChoiceProblem& key, const std::optional<parallel::Cluster>& measured,
                       const std::vector<int>& node_of, bool polls) {
  const parallel::CoreAttentionOptions& options = setting.options;
  const parallel::Cluster cluster = measured.value_or(parallel::Cluster{});
  SavedChoice saved;
  *saved.mutable_problem() = key;
  const Open open = left_open(config, setting);
  double price = config.parallel().row_price();
  if (open.price) {
    const parallel::RowPrice chosen =
        parallel::row_price(cluster, options.heads, options.dtype, rows_of(setting, key.ranks()),
                            node_of, options.in_place);
    price = chosen.pairs;
    saved.mutable_row_price()->set_pairs(chosen.pairs);
    saved.mutable_row_price()->set_why(chosen.why);
  }
  const parallel::TokenLayout layout = setting.layout(price);
  const parallel::Problem problem = problem_of(setting, layout, key.ranks_per_node());
  const auto direction = [&](Direction which, const std::string& given, bool chosen) {
    if (!chosen) {
      DirectionChoice fixed;
      fixed.set_strategy(given);
      fixed.set_why("it is configured");
      return fixed;
    }
    return to_message(
        parallel::choose(problem, which, options.dtype, cluster, node_of, options.in_place));
  };
  if (setting.softmax) {
    *saved.mutable_forward() =
        direction(Direction::kForward, config.parallel().strategy(), open.forward);
    *saved.mutable_backward() =
        direction(Direction::kBackward, config.parallel().backward_strategy(), open.backward);
  }
  if (open.linear) {
    const parallel::TokenLayout runs = parallel::scanned_runs(layout, setting.linear->most_runs);
    *saved.mutable_linear() = to_message(
        parallel::choose_scan({.layout = runs,
                               .heads = parallel::scanned_heads(*setting.linear),
                               .dtype = setting.linear->dtype,
                               .seconds_between_polls = polls ? parallel::kSecondsBetweenPolls : 0,
                               .forgets = parallel::forgetting_heads(runs, setting.linear_slopes,
                                                                     setting.linear->decay_bound)},
                              cluster, node_of)
            .both);
  }
  if (measured) *saved.mutable_cluster() = to_message(cluster);
  return saved;
}

// What only this configuration and model together rule out; every rank finds the same.
void refuse_impossible(dist::Group& world, const SettledStrategies& settled,
                       const StrategySetting& setting) {
  if (!setting.softmax) return;
  world.agree(attempt([&] {
                const parallel::TokenLayout layout = setting.layout(settled.row_price);
                for (const std::string& name : {settled.forward, settled.backward}) {
                  const auto why = parallel::strategy(name).refusal(
                      problem_of(setting, layout, settled.ranks_per_node));
                  if (why) fail(ErrorCode::kConfig, *why);
                }
              }),
              "checking the strategy");
}

}  // namespace

std::string describe(const parallel::Mask& mask) {
  std::string text = mask.causal ? "causal" : "full";
  if (mask.window > 0) absl::StrAppend(&text, ", window ", mask.window);
  if (mask.prefix > 0) absl::StrAppend(&text, ", prefix ", mask.prefix);
  return text;
}

SettledStrategies settle_strategies(dist::Group& world, dist::Group& sequence, const Context& ctx,
                                    const Config& config, const StrategySetting& setting) {
  const std::string& forward = config.parallel().strategy();
  const std::string& backward = config.parallel().backward_strategy();
  const std::vector<int> node_of = parallel::nodes_of(sequence);
  // Without layers that attend with softmax nothing will run a strategy.
  SettledStrategies settled{.forward = setting.softmax ? forward : "ring",
                            .backward = setting.softmax ? backward : "ring",
                            .linear_method = config.parallel().linear_method(),
                            .ranks_per_node = config.parallel().ranks_per_node(),
                            .row_price = config.parallel().row_price(),
                            .lines = {},
                            .record = {}};
  if (settled.ranks_per_node == 0) settled.ranks_per_node = parallel::ranks_per_node(node_of);
  const Open open = left_open(config, setting);
  if (!open.any()) {
    refuse_impossible(world, settled, setting);
    return settled;
  }

  // Rank 0 looks and decides; all others do as it says.
  const ChoiceProblem key =
      choice_problem(config, setting, sequence.size(), settled.ranks_per_node);
  Earlier earlier;
  world.agree(attempt([&] {
                if (world.rank() == 0) earlier = look_up(setting.record_path, key, open);
              }),
              "reading the strategies of an earlier run");
  SavedChoice choice;
  const bool reused =
      !world.broadcast(earlier.choice ? "reused" : "", 0, "strategies of an earlier run").empty();
  if (reused) {
    choice = earlier.choice.value_or(SavedChoice());
  } else {
    std::optional<parallel::Cluster> cluster;
    const bool free = parallel::all_in_place(node_of, setting.options.in_place);
    if (open.softmax() || open.linear || !free) {
      cluster = costs(world, sequence, ctx, config, setting, node_of, open);
    }
    world.agree(attempt([&] {
                  if (world.rank() != 0) return;
                  choice = choose_now(config, setting, key, cluster, node_of, ctx.device() == kCpu);
                }),
                "choosing strategies");
  }
  settled.record = world.broadcast(list_text(choice), 0, "strategies");
  parse_text(settled.record, "the strategies that rank 0 chose", choice);
  if (setting.softmax) {
    settled.forward = choice.forward().strategy();
    settled.backward = choice.backward().strategy();
  }
  if (open.linear) settled.linear_method = choice.linear().strategy();
  if (open.price) settled.row_price = choice.row_price().pairs();
  if (!earlier.why_not.empty()) {
    settled.lines.push_back(absl::StrCat(open.softmax() ? "strategy auto"
                                         : open.linear  ? "linear_method auto"
                                                        : "price of a row",
                                         ": chosen anew, since ", earlier.why_not, " in ",
                                         setting.record_path));
  }
  for (const auto& [of, chosen, of_choice] :
       {std::tuple("strategy auto, forward", open.forward, &choice.forward()),
        std::tuple("strategy auto, backward", open.backward, &choice.backward()),
        std::tuple("linear_method auto", open.linear, &choice.linear())}) {
    if (chosen) add_choice(of, *of_choice, reused, setting.record_path, settled.lines);
  }
  if (open.price) {
    settled.lines.push_back(absl::StrCat(
        "layout ", config.parallel().layout(), ": a row of another rank costs ",
        absl::StrFormat("%.3g", settled.row_price), " pairs of attention (",
        reused ? absl::StrCat("as before, see ", setting.record_path) : choice.row_price().why(),
        ")"));
  }
  refuse_impossible(world, settled, setting);
  return settled;
}

}  // namespace longhaul::launch
