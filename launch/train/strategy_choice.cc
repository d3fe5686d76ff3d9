#include "launch/train/strategy_choice.h"

#include <google/protobuf/text_format.h>

#include <filesystem>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/config/text.h"
#include "parallel/cost/measure.h"
#include "parallel/cost/row_price.h"

namespace longhaul::launch {

namespace {

namespace pb = google::protobuf;
using parallel::Direction;

bool is_auto(const std::string& strategy) { return strategy == kAutoStrategy; }

// Whether the layout goes by documents, at a price that is left open.
bool is_price_open(const Config& config) {
  return parallel::layout_kind(config.parallel().layout()).make_for != nullptr &&
         !config.parallel().has_row_price();
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
bool usable(const SavedChoice& saved, bool price_open) {
  if (price_open && !(saved.row_price().has_pairs() && saved.row_price().pairs() >= 0))
    return false;
  for (const auto& [choice, given] :
       {std::pair(&saved.forward(), &saved.problem().strategy()),
        std::pair(&saved.backward(), &saved.problem().backward_strategy())}) {
    const std::string& strategy = choice->strategy();
    if (attempt([&] { parallel::strategy(strategy); })) return false;
    if (is_auto(*given) && choice->candidates().empty()) return false;
  }
  return true;
}

// What rank 0 finds in the record of an earlier run.
struct Earlier {
  std::optional<SavedChoice> choice;  // to be used again
  std::string why_not;                // one that is there does not fit
};
Earlier look_up(const std::string& path, const ChoiceProblem& problem, bool price_open) {
  if (path.empty() || !std::filesystem::exists(path)) return {};
  SavedChoice saved;
  parse_text(read_text(path, "strategies chosen by an earlier run", "remove it to choose anew"),
             absl::StrCat(path, " (remove it to choose anew)"), saved);
  if (const auto differs = difference(problem, saved.problem())) {
    return {std::nullopt, *differs};
  }
  if (!usable(saved, price_open)) {
    return {std::nullopt, "it names a strategy that there is no longer, or lacks a choice"};
  }
  return {std::move(saved), ""};
}

parallel::Cluster costs(dist::Group& world, dist::Group& sequence, const Context& ctx,
                        const Config& config, const StrategySetting& setting,
                        const std::vector<int>& node_of) {
  const parallel::HeadShape& heads = setting.options.heads;
  const DType type = setting.options.dtype;
  const int64_t rows = rows_of(setting, sequence.size());
  const std::string& path = config.parallel().cluster();
  if (path.empty()) {
    return parallel::measure_cluster(sequence, ctx, node_of, heads, type, rows);
  }
  parallel::Cluster cluster;
  world.agree(attempt([&] { cluster = load_cluster(path); }), "reading the cluster description");
  const bool complete = cluster.profile(type, heads.head_dim) != nullptr;
  // Files may differ between nodes: all ranks do as rank 0.
  if (world.broadcast(complete ? "complete" : "", 0, "cluster description").empty()) {
    parallel::KernelCosts kernel = parallel::measure_kernel(ctx, heads, type, rows);
    if (cluster.seconds_per_task == 0) cluster.seconds_per_task = kernel.seconds_per_task;
    cluster.profiles.push_back(std::move(kernel.profile));
  }
  return cluster;
}

void add_direction(const char* name, const DirectionChoice& choice, const std::string& given,
                   bool reused, const std::string& path, std::vector<std::string>& lines) {
  if (!is_auto(given)) return;
  lines.push_back(absl::StrCat(
      "strategy auto, ", name, ": ", choice.strategy(), " (",
      reused ? absl::StrCat("as chosen before, see ", path) : choice.why(),
      absl::StrFormat("; predicted %.3g ms a layer)", 1e3 * choice.candidates(0).seconds())));
}

// measured: none where nothing needs costs.
SavedChoice choose_now(const Config& config, const StrategySetting& setting,
                       const ChoiceProblem& key, const std::optional<parallel::Cluster>& measured,
                       const std::vector<int>& node_of) {
  const parallel::CoreAttentionOptions& options = setting.options;
  const parallel::Cluster cluster = measured.value_or(parallel::Cluster{});
  SavedChoice saved;
  *saved.mutable_problem() = key;
  double price = config.parallel().row_price();
  if (is_price_open(config)) {
    const parallel::RowPrice chosen =
        parallel::row_price(cluster, options.heads, options.dtype, rows_of(setting, key.ranks()),
                            node_of, options.in_place);
    price = chosen.pairs;
    saved.mutable_row_price()->set_pairs(chosen.pairs);
    saved.mutable_row_price()->set_why(chosen.why);
  }
  const parallel::TokenLayout layout = setting.layout(price);
  const parallel::Problem problem = problem_of(setting, layout, key.ranks_per_node());
  const auto direction = [&](Direction which, const std::string& given) {
    if (!is_auto(given)) {
      DirectionChoice fixed;
      fixed.set_strategy(given);
      fixed.set_why("it is configured");
      return fixed;
    }
    return to_message(
        parallel::choose(problem, which, options.dtype, cluster, node_of, options.in_place));
  };
  *saved.mutable_forward() = direction(Direction::kForward, config.parallel().strategy());
  *saved.mutable_backward() =
      direction(Direction::kBackward, config.parallel().backward_strategy());
  if (measured) *saved.mutable_cluster() = to_message(cluster);
  return saved;
}

// What only this configuration and model together rule out; every rank finds the same.
void refuse_impossible(dist::Group& world, const SettledStrategies& settled,
                       const StrategySetting& setting) {
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
  SettledStrategies settled{.forward = forward,
                            .backward = backward,
                            .ranks_per_node = config.parallel().ranks_per_node(),
                            .row_price = config.parallel().row_price(),
                            .lines = {},
                            .record = {}};
  if (settled.ranks_per_node == 0) settled.ranks_per_node = parallel::ranks_per_node(node_of);
  const bool choose = is_auto(forward) || is_auto(backward), price_open = is_price_open(config);
  if (!choose && !price_open) {
    refuse_impossible(world, settled, setting);
    return settled;
  }

  // Rank 0 looks and decides; all others do as it says.
  const ChoiceProblem key =
      choice_problem(config, setting, sequence.size(), settled.ranks_per_node);
  Earlier earlier;
  world.agree(attempt([&] {
                if (world.rank() == 0) earlier = look_up(setting.record_path, key, price_open);
              }),
              "reading the strategies of an earlier run");
  SavedChoice choice;
  const bool reused =
      !world.broadcast(earlier.choice ? "reused" : "", 0, "strategies of an earlier run").empty();
  if (reused) {
    choice = earlier.choice.value_or(SavedChoice());
  } else {
    std::optional<parallel::Cluster> cluster;
    if (choose || !parallel::all_in_place(node_of, setting.options.in_place)) {
      cluster = costs(world, sequence, ctx, config, setting, node_of);
    }
    world.agree(attempt([&] {
                  if (world.rank() == 0)
                    choice = choose_now(config, setting, key, cluster, node_of);
                }),
                "choosing strategies");
  }
  settled.record = world.broadcast(list_text(choice), 0, "strategies");
  parse_text(settled.record, "the strategies that rank 0 chose", choice);
  settled.forward = choice.forward().strategy();
  settled.backward = choice.backward().strategy();
  if (price_open) settled.row_price = choice.row_price().pairs();
  if (!earlier.why_not.empty()) {
    settled.lines.push_back(absl::StrCat(choose ? "strategy auto" : "price of a row",
                                         ": chosen anew, since ", earlier.why_not, " in ",
                                         setting.record_path));
  }
  add_direction("forward", choice.forward(), forward, reused, setting.record_path, settled.lines);
  add_direction("backward", choice.backward(), backward, reused, setting.record_path,
                settled.lines);
  if (price_open) {
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
