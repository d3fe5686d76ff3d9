#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/plan/attention_plan.h"
#include "launch/train/engine.h"
#include "launch/train/metrics.h"
#include "launch/train/strategy_choice.h"

namespace longhaul::launch {

namespace {

using Json = nlohmann::ordered_json;

// "ring", or for "auto" the winner.
std::string used(const std::string& configured, const parallel::Choice& choice) {
  return configured == kAutoStrategy ? choice.winner().strategy : configured;
}

void print_why(const std::string& configured, const parallel::Choice& choice) {
  std::printf("%s\n", choice.why.c_str());
  if (configured != kAutoStrategy && configured != choice.winner().strategy) {
    std::printf("the configuration asks for %s; \"auto\" would take %s\n", configured.c_str(),
                choice.winner().strategy.c_str());
  }
}

void print_direction(const char* name, const std::string& configured,
                     const parallel::Choice& choice) {
  std::printf("\n%-14s %10s %11s %14s %14s %12s %6s %9s %8s\n", name, "ms", "exposed ms",
              "received mean", "received max", "of it read", "steps", "max/mean", "plan ms");
  for (const parallel::Candidate& c : choice.candidates) {
    if (c.refused()) {
      std::printf(
          "  %-12s refuses: %s%s\n", c.strategy.c_str(), c.refusal.c_str(),
          c.planning > 0 ? absl::StrFormat(" (planned in %.3g ms)", 1e3 * c.planning).c_str() : "");
      continue;
    }
    std::printf("%s %-12s %10.3f %11.3f %14s %14s %12s %6d %9.2f %8.3f\n",
                c.strategy == used(configured, choice) ? "*" : " ", c.strategy.c_str(),
                1e3 * c.seconds, 1e3 * c.exposed, human_bytes(c.received_mean).c_str(),
                human_bytes(static_cast<double>(c.received_max)).c_str(),
                human_bytes(c.in_place_mean).c_str(), c.steps, c.balance, 1e3 * c.planning);
  }
  print_why(configured, choice);
}

Json json_of(const std::string& configured, const parallel::Choice& choice) {
  Json candidates = Json::array();
  for (const parallel::Candidate& c : choice.candidates) {
    if (c.refused()) {
      candidates.push_back({{"strategy", c.strategy},
                            {"refusal", c.refusal},
                            {"planning_seconds", c.planning},
                            {"bands", c.bands}});
      continue;
    }
    candidates.push_back({{"strategy", c.strategy},
                          {"seconds", c.seconds},
                          {"exposed_seconds", c.exposed},
                          {"received_bytes", {{"mean", c.received_mean}, {"max", c.received_max}}},
                          {"in_place_bytes_mean", c.in_place_mean},
                          {"steps", c.steps},
                          {"area_max_over_mean", c.balance},
                          {"planning_seconds", c.planning},
                          {"bands", c.bands}});
  }
  return {{"configured", configured},
          {"used", used(configured, choice)},
          {"winner", choice.winner().strategy},
          {"why", choice.why},
          {"candidates", candidates}};
}

Json json_of(const std::optional<parallel::Link>& link) {
  if (!link) return nullptr;
  return {{"seconds_per_message", link->seconds_per_message},
          {"bytes_per_second", link->bytes_per_second},
          {"processor_share", link->processor_share}};
}

void print_softmax(const Config& config, const AttentionPlan& plan) {
  const parallel::CoreAttentionOptions options = attention_options(config);
  const std::string documents =
      plan.documents == 1 ? "1 document" : absl::StrCat(plan.documents, " documents");
  std::printf("%s\n",
              absl::StrFormat("attention of one layer and one sample: %d tokens, %s, %s, %s on %d "
                              "ranks (%d to a node), heads %d/%d of %d, %s",
                              config.data().sequence_length(), documents, describe(options.mask),
                              config.parallel().layout(), plan.ranks, plan.ranks_per_node,
                              options.heads.q_heads, options.heads.kv_heads, options.heads.head_dim,
                              std::string(name(options.dtype)))
                  .c_str());
  for (const std::string& source : plan.sources) std::printf("%s\n", source.c_str());
  if (plan.row_price) {
    std::printf("a row of another rank: costs %.3g pairs of attention (%s)\n",
                plan.row_price->pairs, plan.row_price->why.c_str());
  }
  std::printf("pairs of queries and keys by who owns the queries: largest rank / mean %.3f\n",
              plan.balance);
  print_direction("forward", config.parallel().strategy(), plan.forward);
  print_direction("backward", config.parallel().backward_strategy(), plan.backward);
}

void print_linear(const Config& config, const LinearPlan& plan) {
  std::printf("%s\n", absl::StrFormat(
                          "linear attention (%s) of one layer and one sample: %d tokens, %s on %d "
                          "ranks, %d heads with states of %d x %d, %s a state, %s",
                          plan.kind, config.data().sequence_length(), config.parallel().layout(),
                          config.parallel().sequence(), plan.heads, plan.key_dim, plan.value_dim,
                          human_bytes(static_cast<double>(plan.state_bytes)),
                          std::string(name(dtype(config))))
                          .c_str());
  if (plan.relayout) {
    std::printf("rows go to a contiguous layout first and results back; not counted below\n");
  }
  for (const std::string& source : plan.sources) std::printf("%s\n", source.c_str());
  for (const std::string& line : plan.left_out) std::printf("%s\n", line.c_str());
  const std::string method = used(config.parallel().linear_method(), plan.choice.both);
  for (const size_t direction : {0, 1}) {
    std::printf("\n%-14s %10s %11s %14s %14s %6s\n", direction == 0 ? "forward" : "backward", "ms",
                "exposed ms", "received mean", "received max", "chain");
    for (const parallel::Candidate& c : plan.choice.directions[direction]) {
      std::printf("%s %-12s %10.3f %11.3f %14s %14s %6d\n", c.strategy == method ? "*" : " ",
                  c.strategy.c_str(), 1e3 * c.seconds, 1e3 * c.exposed,
                  human_bytes(c.received_mean).c_str(),
                  human_bytes(static_cast<double>(c.received_max)).c_str(), c.steps);
    }
  }
  print_why(config.parallel().linear_method(), plan.choice.both);
}

Json json_of(const Config& config, const AttentionPlan& plan) {
  const parallel::CoreAttentionOptions options = attention_options(config);
  return {{"ranks_per_node", plan.ranks_per_node},
          {"documents", plan.documents},
          {"mask", describe(options.mask)},
          {"heads", options.heads.q_heads},
          {"kv_heads", options.heads.kv_heads},
          {"head_dim", options.heads.head_dim},
          {"area_max_over_mean", plan.balance},
          {"row_price", plan.row_price
                            ? Json{{"pairs", plan.row_price->pairs}, {"why", plan.row_price->why}}
                            : Json(nullptr)},
          {"sources", plan.sources},
          {"within_node", json_of(plan.cluster.within_node)},
          {"between_nodes", json_of(plan.cluster.between_nodes)},
          {"forward", json_of(config.parallel().strategy(), plan.forward)},
          {"backward", json_of(config.parallel().backward_strategy(), plan.backward)}};
}

Json json_of(const Config& config, const LinearPlan& plan) {
  const auto direction = [](const std::vector<parallel::Candidate>& candidates) {
    Json list = Json::array();
    for (const parallel::Candidate& c : candidates) {
      list.push_back({{"method", c.strategy},
                      {"seconds", c.seconds},
                      {"exposed_seconds", c.exposed},
                      {"received_bytes", {{"mean", c.received_mean}, {"max", c.received_max}}},
                      {"longest_chain", c.steps}});
    }
    return list;
  };
  const std::string& configured = config.parallel().linear_method();
  return {{"kind", plan.kind},
          {"heads", plan.heads},
          {"key_dim", plan.key_dim},
          {"value_dim", plan.value_dim},
          {"state_bytes", plan.state_bytes},
          {"relayout", plan.relayout},
          {"left_out", plan.left_out},
          {"sources", plan.sources},
          {"configured", configured},
          {"method", used(configured, plan.choice.both)},
          {"winner", plan.choice.both.winner().strategy},
          {"why", plan.choice.both.why},
          {"forward", direction(plan.choice.directions[0])},
          {"backward", direction(plan.choice.directions[1])}};
}

}  // namespace

void print_table(const Config& config, const LayerPlans& plans) {
  const model::ModelConfig model = model_config(config);
  if (plans.linear) {
    std::printf("%d layers: %d with softmax attention, %d with linear attention\n",
                static_cast<int>(model.layers), static_cast<int>(model.softmax_layers()),
                static_cast<int>(model.linear_layers()));
  }
  if (plans.softmax) print_softmax(config, *plans.softmax);
  if (plans.softmax && plans.linear) std::printf("\n");
  if (plans.linear) print_linear(config, *plans.linear);
}

void print_json(const Config& config, const LayerPlans& plans) {
  const model::ModelConfig model = model_config(config);
  Json json = {{"ranks", config.parallel().sequence()},
               {"sequence_length", config.data().sequence_length()},
               {"layout", config.parallel().layout()},
               {"dtype", std::string(name(dtype(config)))},
               {"softmax_layers", model.softmax_layers()},
               {"linear_layers", model.linear_layers()}};
  if (plans.softmax) json.update(json_of(config, *plans.softmax));
  if (plans.linear) json["linear"] = json_of(config, *plans.linear);
  std::printf("%s\n", json.dump().c_str());
}

}  // namespace longhaul::launch
