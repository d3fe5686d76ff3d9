// Cluster descriptions, and strategy "auto" in training runs: chosen once, saved, used again.
#include "launch/train/strategy_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "dist/local/local.h"
#include "launch/config/text.h"
#include "launch/data/synthetic.h"
#include "launch/train/engine.h"
#include "launch/train/train.h"
#include "tests/temp_folder.h"

namespace longhaul::launch {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
constexpr std::chrono::seconds kDeadline(120);

constexpr const char* kCluster = R"(
  within_rank { seconds_per_message: 1e-7 bytes_per_second: 7e9 processor_share: 1 }
  within_node { seconds_per_message: 1e-6 bytes_per_second: 5e9 processor_share: 0.5 }
  between_nodes { seconds_per_message: 2e-5 bytes_per_second: 1e9 }
  ranks_per_node: 4
  adapters_per_node: 1
  seconds_to_publish: 3e-7
  seconds_per_task: 2e-6
  memory_bytes_per_second: 2e10
  kernels { dtype: "f32" head_dim: 8 lengths: [16, 64]
            forward: [4e-9, 3e-9, 3e-9, 2e-9] backward: [9e-9, 8e-9, 8e-9, 7e-9] }
  kernels { dtype: "bf16" head_dim: 128 lengths: 1 forward: 1e-9 backward: 2e-9
            forward_border: 30 backward_border: 60 }
  linear_kernels { dtype: "f32" decay: "scalar" head_dim: 8 value_dim: 8
                   forward: 3e-9 backward: 9e-9 }
)";

TEST(ClusterDescription, ReadsBackWhatItWrites) {
  const parallel::Cluster cluster = parse_cluster(kCluster, "c.txtpb");
  EXPECT_EQ(cluster.within_node->processor_share, 0.5);
  EXPECT_EQ(cluster.between_nodes->bytes_per_second, 1e9);
  EXPECT_EQ(cluster.ranks_per_node, 4);
  ASSERT_EQ(cluster.profiles.size(), 2u);
  EXPECT_EQ(cluster.profile(DType::kF32, 8)->backward[3], 7e-9);
  EXPECT_EQ(cluster.profile(DType::kF32, 128), nullptr);
  ASSERT_EQ(cluster.linear_profiles.size(), 1u);
  EXPECT_EQ(cluster.linear_profiles[0].backward, 9e-9);
  EXPECT_EQ(parse_cluster(list_text(to_message(cluster)), "again"), cluster);
  for (const char* decay : {"diagonal", "dense"}) {
    const parallel::Cluster other =
        parse_cluster(absl::StrReplaceAll(kCluster, {{"scalar", decay}}), "c.txtpb");
    EXPECT_NE(other, cluster);
    EXPECT_EQ(parse_cluster(list_text(to_message(other)), "again"), other);
  }
}

std::string error_of(const std::function<void()>& work) {
  const auto error = attempt(work);
  if (!error) return "(no error)";
  EXPECT_EQ(error->code(), ErrorCode::kConfig) << error->what();
  return error->what();
}

TEST(ClusterDescription, WhatIsWrongIsOneSentence) {
  const auto broken = [](const char* from, const char* to) {
    const std::string text = absl::StrReplaceAll(kCluster, {{from, to}});
    EXPECT_NE(text, kCluster) << from;
    return error_of([&] { parse_cluster(text, "c.txtpb"); });
  };
  EXPECT_EQ(broken("adapters_per_node", "adaptors_per_node"),
            "c.txtpb:6:3: unknown field `adaptors_per_node` in the file; did you mean "
            "`adapters_per_node`?");
  EXPECT_THAT(broken("seconds_per_message: 2e-5", "latency: 1"),
              HasSubstr("unknown field `latency` in a block of type Link"));
  EXPECT_EQ(broken("5e9", "0"),
            "c.txtpb: within_node.bytes_per_second is 0; a finite number above 0 is wanted");
  EXPECT_THAT(broken("2e10", "-1"), HasSubstr("memory_bytes_per_second is -1"));
  EXPECT_THAT(broken("2e10", "nan"), HasSubstr("memory_bytes_per_second is nan"));
  EXPECT_THAT(broken("2e-5", "-2e-5"), HasSubstr("between_nodes.seconds_per_message is -2e-05"));
  EXPECT_THAT(broken("0.5", "1.5"), HasSubstr("processor_share is 1.5; at most 1"));
  EXPECT_THAT(broken("ranks_per_node: 4", "ranks_per_node: -4"), HasSubstr("ranks_per_node is -4"));
  EXPECT_THAT(broken("\"f32\"", "\"fp32\""), HasSubstr("one of f32, bf16, f64"));
  EXPECT_THAT(broken("[16, 64]", "[64, 16]"), HasSubstr("has 16 as number 2"));
  EXPECT_THAT(broken("[16, 64]", "[16, 64, 65]"), HasSubstr("4 figures; 3 lengths want 9"));
  EXPECT_THAT(broken("forward_border: 30", "forward_border: -1"), HasSubstr("is -1"));
  EXPECT_THAT(broken("3e-9, 2e-9", "3e-9, 0"), HasSubstr("kernels.forward is 0"));
  EXPECT_THAT(broken("\"scalar\"", "\"slow\""),
              HasSubstr("linear_kernels.decay is \"slow\"; one of scalar, diagonal, dense"));
  EXPECT_THAT(broken("value_dim: 8", ""), HasSubstr("linear_kernels.value_dim is 0"));
  EXPECT_THAT(broken("backward: 9e-9", "backward: -1"), HasSubstr("linear_kernels.backward is -1"));
  EXPECT_THAT(error_of([] { load_cluster("nowhere"); }),
              testing::AllOf(HasSubstr("cannot read the cluster description nowhere"),
                             HasSubstr("bench comm --write FILE")));
}

class AutoTest : public testing::Test {
 protected:
  AutoTest() {
    write_copy_task(
        {.output = folder_ / "copy", .documents = 64, .tokens = 61, .vocabulary = 16, .seed = 1});
    write(cluster_, kCluster);
  }

  static void write(const std::string& path, const std::string& text) {
    std::ofstream(path, std::ios::trunc) << text;
  }

  // Runs to `steps`; what rank 0 printed.
  std::string run(int ranks, int steps, const std::vector<std::string>& set) {
    Config config = parse_config(
        absl::StrCat(R"(model { vocabulary: 16 layers: 1 width: 32 heads: 4 kv_heads: 2 head_dim: 8
                                mlp_width: 48 norm_eps: 1e-5 rope_theta: 10000 }
                        data { path: ")",
                     folder_ / "copy", R"(" sequence_length: 97 validation_fraction: 0 }
                        train { warmup_steps: 1 run_directory: ")",
                     folder_ / "run", "\" steps: ", steps, " } parallel { strategy: \"auto\" }"),
        "test");
    for (const std::string& assignment : set) apply_override(config, assignment);
    testing::internal::CaptureStdout();
    const auto error = attempt([&] {
      dist::run_local(ranks, kDeadline, [&](dist::Group& world) {
        Config mine = config;
        resolve(mine, world.size(), 1);
        train(world, mine);
      });
    });
    std::string output = testing::internal::GetCapturedStdout();
    if (error) throw *error;
    return output;
  }

  SavedChoice saved() {
    SavedChoice choice;
    parse_text(read_all(record_), record_, choice);
    return choice;
  }

  TempFolder folder_;
  std::string cluster_ = folder_ / "cluster.txtpb";
  std::string record_ = folder_ / "run/strategy.txtpb";
};

TEST_F(AutoTest, IsMeasuredSavedAndUsedAgain) {
  const std::string first = run(3, 2, {});
  EXPECT_THAT(first, HasSubstr("strategy auto, forward: "));
  EXPECT_THAT(first, HasSubstr("strategy auto, backward: "));
  const SavedChoice choice = saved();
  EXPECT_EQ(choice.problem().ranks(), 3);
  EXPECT_EQ(choice.problem().ranks_per_node(), 3);  // threads of one process
  EXPECT_EQ(choice.forward().strategy(), choice.forward().candidates(0).strategy());
  EXPECT_EQ(static_cast<size_t>(choice.backward().candidates_size()),
            parallel::strategies().size());
  // The figures it rests on are those of a cluster description.
  const parallel::Cluster cluster = from_message(choice.cluster(), "saved");
  ASSERT_NE(cluster.profile(DType::kF32, 8), nullptr);
  EXPECT_GT(cluster.within_node->bytes_per_second, 0);
  EXPECT_FALSE(cluster.between_nodes.has_value());

  const std::string before = read_all(record_);
  const std::string second = run(3, 3, {});
  EXPECT_THAT(second, HasSubstr("as chosen before"));
  EXPECT_EQ(read_all(record_), before);
}

TEST_F(AutoTest, IsChosenAnewForOtherRanksAndSaysSo) {
  run(3, 2, {});
  const std::string output = run(2, 3, {});
  EXPECT_THAT(output, HasSubstr("chosen anew, since ranks is 2 and was 3"));
  EXPECT_EQ(saved().problem().ranks(), 2);
  EXPECT_THAT(run(1, 4, {}), HasSubstr("chosen anew, since ranks is 1 and was 2"));
  EXPECT_THAT(run(1, 5, {}), HasSubstr("as chosen before"));
  EXPECT_THAT(run(1, 6, {"checkpoint.resume=false"}), Not(HasSubstr("as chosen before")));
}

// What rank 0 found in the record counts, whatever it says: the saved choice is what runs.
TEST_F(AutoTest, TheSavedStrategyRuns) {
  run(2, 1, {});
  SavedChoice choice = saved();
  for (const std::string name : {"ulysses", "ring"}) {
    choice.mutable_forward()->set_strategy(name);
    write(record_, list_text(choice));
    EXPECT_THAT(run(2, name == "ring" ? 3 : 2, {}),
                HasSubstr(absl::StrCat("forward: ", name, " (as chosen before")));
  }
  choice.mutable_forward()->set_strategy("no such");
  write(record_, list_text(choice));
  EXPECT_THAT(run(2, 4, {}), HasSubstr("it names a strategy or method that there is no longer"));
  write(record_, "problem { ranks: x }");
  EXPECT_THAT(error_of([&] { run(2, 5, {}); }),
              testing::AllOf(HasSubstr("strategy.txtpb"), HasSubstr("remove it to choose anew")));
}

TEST_F(AutoTest, ADescriptionIsUsedInsteadOfMeasuring) {
  const std::string set = absl::StrCat("parallel.cluster=", cluster_);
  EXPECT_THAT(run(2, 1, {set}), HasSubstr("strategy auto, forward: "));
  EXPECT_EQ(from_message(saved().cluster(), "saved"), parse_cluster(kCluster, "c.txtpb"));
  // Another type's kernel is measured, beside the given links.
  run(2, 1, {set, "train.dtype=BF16", absl::StrCat("train.run_directory=", folder_ / "bf16")});
  SavedChoice bf16;
  parse_text(read_all(folder_ / "bf16/strategy.txtpb"), "bf16", bf16);
  EXPECT_EQ(bf16.cluster().kernels_size(), 3);
  EXPECT_EQ(bf16.cluster().within_node().bytes_per_second(), 5e9);

  write(cluster_, "within_node { bytes_per_second: 0 }");
  EXPECT_THAT(error_of([&] {
                run(2, 2, {set, "parallel.strategy=auto"});
              }),
              Not(HasSubstr("rank")));
  EXPECT_THAT(error_of([&] {
                run(2, 2, {set, absl::StrCat("train.run_directory=", folder_ / "other")});
              }),
              HasSubstr("within_node.bytes_per_second is 0"));
}

TEST_F(AutoTest, DirectionsAreChosenSeparately) {
  const std::string output =
      run(3, 1, {"parallel.strategy=ulysses", "parallel.backward_strategy=auto"});
  EXPECT_THAT(output, Not(HasSubstr("auto, forward")));
  EXPECT_THAT(output, HasSubstr("auto, backward"));
  EXPECT_EQ(saved().forward().strategy(), "ulysses");
  // Given strategies leave no record.
  const std::string other = folder_ / "given";
  EXPECT_THAT(run(3, 1,
                  {"parallel.strategy=ulysses", "parallel.backward_strategy=ring",
                   absl::StrCat("train.run_directory=", other)}),
              Not(HasSubstr("strategy auto")));
  EXPECT_FALSE(std::filesystem::exists(other + "/strategy.txtpb"));
}

// How linear attention composes its states is chosen likewise, of its own or with strategies.
TEST_F(AutoTest, TheMethodOfLinearAttentionIsChosenSavedAndUsedAgain) {
  const std::vector<std::string> set{"model.pattern=L", "parallel.linear_method=auto"};
  const auto line = [](const std::string& method) {
    return absl::StrCat("linear_method auto: ", method, " (");
  };
  const std::string first = run(3, 1, set);
  const SavedChoice choice = saved();
  EXPECT_THAT(first, HasSubstr(line(choice.linear().strategy())));
  EXPECT_THAT(first, Not(HasSubstr("strategy auto")));  // no layer has one
  EXPECT_FALSE(choice.has_forward());
  EXPECT_EQ(choice.linear().strategy(), choice.linear().candidates(0).strategy());
  EXPECT_EQ(static_cast<size_t>(choice.linear().candidates_size()),
            parallel::scan_methods().size());
  EXPECT_EQ(choice.problem().linear_kind(), "decay");
  const parallel::Cluster cluster = from_message(choice.cluster(), "saved");
  ASSERT_EQ(cluster.linear_profiles.size(), 1u);
  EXPECT_GT(cluster.linear_profiles[0].backward, 0);
  EXPECT_TRUE(cluster.profiles.empty());  // softmax needs none

  // What is saved counts, and what is checked is what runs.
  SavedChoice changed = choice;
  for (const std::string method : {"doubling", "ring"}) {
    changed.mutable_linear()->set_strategy(method);
    write(record_, list_text(changed));
    const std::string again = run(3, method == "ring" ? 3 : 2, set);
    EXPECT_THAT(again, HasSubstr(line(method) + "as chosen before, see "));
    EXPECT_THAT(again, HasSubstr("linear attention by " + method));
  }
  changed.mutable_linear()->set_strategy("lasp");
  write(record_, list_text(changed));
  EXPECT_THAT(run(3, 4, set), HasSubstr("it names a strategy or method that there is no longer"));
  EXPECT_THAT(run(2, 5, set), HasSubstr("chosen anew, since ranks is 2 and was 3"));
  // A given one leaves no record.
  const std::string other = folder_ / "given";
  EXPECT_THAT(run(2, 1,
                  {"model.pattern=L", "parallel.linear_method=pipelined",
                   absl::StrCat("train.run_directory=", other)}),
              Not(HasSubstr("auto")));
  EXPECT_FALSE(std::filesystem::exists(other + "/strategy.txtpb"));
}

// What is left out is said before the first step; kinds that cannot know refuse.
TEST_F(AutoTest, DecayBoundsSayWhatTheyLeaveOut) {
  const std::vector<std::string> set{"model.pattern=L", "model.layers=2",
                                     "parallel.linear_decay_bound=0.5"};
  // Runs of 16 tokens and more; alibi's slopes of 4 heads are 1/4, 1/16, 1/64 and 1/256.
  EXPECT_THAT(run(3, 1, set),
              HasSubstr("linear_decay_bound 0.5, layers 0,1: 2 of 4 heads take states from the "
                        "neighbouring run only; a state lacks at most 0.37 of the norm"));
  EXPECT_THAT(run(2, 2,
                  {"model.pattern=L", "parallel.linear_decay_bound=1e-30",
                   absl::StrCat("train.run_directory=", folder_ / "exact")}),
              HasSubstr("layers 0: exact, no head forgets"));
  std::vector<std::string> gated = set;
  gated.emplace_back("model.linear.kind=gla");
  gated.push_back(absl::StrCat("train.run_directory=", folder_ / "gated"));
  EXPECT_THAT(error_of([&] { run(3, 1, gated); }),
              testing::AllOf(HasSubstr("gated linear attention has not; set "
                                       "parallel.linear_decay_bound: 0"),
                             Not(HasSubstr("rank"))));
  // It belongs to what a choice rests on.
  std::vector<std::string> chosen = set;
  chosen.emplace_back("parallel.linear_method=auto");
  chosen.push_back(absl::StrCat("train.run_directory=", folder_ / "chosen"));
  run(3, 1, chosen);
  chosen.emplace_back("parallel.linear_decay_bound=0.4");
  EXPECT_THAT(run(3, 2, chosen), HasSubstr("chosen anew, since linear_decay_bound is 0.4 and was"));
}

TEST_F(AutoTest, HybridsChooseStrategiesAndMethodByOneDescription) {
  const std::vector<std::string> set{"model.pattern=LN", "model.layers=2",
                                     "parallel.linear_method=auto",
                                     absl::StrCat("parallel.cluster=", cluster_)};
  const std::string output = run(3, 1, set);
  EXPECT_THAT(output, HasSubstr("strategy auto, forward: "));
  EXPECT_THAT(output, HasSubstr("linear_method auto: "));
  EXPECT_EQ(from_message(saved().cluster(), "saved"), parse_cluster(kCluster, "c.txtpb"));
  EXPECT_THAT(run(3, 2, set), Not(HasSubstr("chosen anew")));
  std::vector<std::string> given = set;
  given.emplace_back("parallel.strategy=ring");
  given.emplace_back("parallel.backward_strategy=ring");
  EXPECT_THAT(run(3, 3, given), HasSubstr("chosen anew, since strategy is \"ring\" and was"));
  EXPECT_EQ(saved().forward().strategy(), "ring");
}

// With a layout that goes by documents and no price of a row, costs decide on that, too.
TEST_F(AutoTest, ThePriceOfARowIsChosenSavedAndUsedAgain) {
  const std::vector<std::string> set{"parallel.layout=balanced", "parallel.strategy=group_cast",
                                     "parallel.in_place=false",
                                     absl::StrCat("parallel.cluster=", cluster_)};
  EXPECT_THAT(run(2, 1, set), HasSubstr("layout balanced: a row of another rank costs "));
  const SavedChoice choice = saved();
  EXPECT_FALSE(choice.problem().has_row_price());
  // 2 kv heads, keys and values of 8 and 8 twice, their gradients once, in f32 at 5 GB/s; 49 of 97
  // rows a rank, between 16 and 64 in the logarithm, over 4 heads.
  const double share = std::log(49.0 / 16) / std::log(4.0);
  const auto between = [&](double a, double b, double c) {  // a at both ends short, c both long
    const double row = std::log(a) * (1 - share) + std::log(b) * share;
    const double next = std::log(b) * (1 - share) + std::log(c) * share;
    return std::exp(row * (1 - share) + next * share);
  };
  const double pair = 4 * (between(4e-9, 3e-9, 2e-9) + between(9e-9, 8e-9, 7e-9));
  EXPECT_NEAR(choice.row_price().pairs(), 2 * 16 * 12 / 5e9 / pair, 1e-9);
  EXPECT_EQ(choice.forward().strategy(), "group_cast");
  EXPECT_EQ(choice.forward().why(), "it is configured");

  // What is saved counts.
  SavedChoice changed = choice;
  changed.mutable_row_price()->set_pairs(0.125);
  write(record_, list_text(changed));
  EXPECT_THAT(run(2, 2, set), HasSubstr("costs 0.125 pairs of attention (as before, see "));

  // One that is given wins.
  std::vector<std::string> given = set;
  given.emplace_back("parallel.row_price=3");
  EXPECT_THAT(run(2, 3, given), Not(HasSubstr("a row of another rank")));
  given.emplace_back("parallel.backward_strategy=auto");
  EXPECT_THAT(run(2, 4, given),
              HasSubstr("chosen anew, since backward_strategy is \"auto\" and was"));
  EXPECT_EQ(saved().problem().row_price(), 3);
  EXPECT_FALSE(saved().has_row_price());
  // Given or not is a difference, whatever the price.
  std::vector<std::string> left_open = given;
  std::erase(left_open, "parallel.row_price=3");
  EXPECT_THAT(run(2, 5, left_open), HasSubstr("chosen anew, since row_price is unset and was 3"));
  EXPECT_EQ(saved().row_price().pairs(), choice.row_price().pairs());

  // Nothing needs to be measured, nor paid, where keys are read where they lie.
  const std::string other = folder_ / "in_place";
  EXPECT_THAT(run(2, 1,
                  {"parallel.layout=balanced", "parallel.strategy=group_cast",
                   absl::StrCat("train.run_directory=", other)}),
              HasSubstr("costs 0 pairs of attention (all ranks are on one node"));
  SavedChoice free;
  parse_text(read_all(other + "/strategy.txtpb"), other, free);
  EXPECT_TRUE(free.row_price().has_pairs());
  EXPECT_FALSE(free.has_cluster());
}

// Every rank finds other costs, as measurements do; what rank 0 makes of its own is what all do.
TEST_F(AutoTest, RanksWithOtherCostsDoAsRankZero) {
  constexpr int kRanks = 3;
  // Starting messages costs most, or moving bytes does.
  const auto described = [&](const std::string& name, const char* link) {
    std::string path = folder_ / name;
    write(path,
          absl::StrReplaceAll(
              kCluster,
              {{"seconds_per_message: 1e-6 bytes_per_second: 5e9 processor_share: 0.5", link}}));
    return path;
  };
  const std::string paths[] = {
      described("latency", "seconds_per_message: 1e-2 bytes_per_second: 5e12"),
      described("bytes", "seconds_per_message: 1e-12 bytes_per_second: 5e4")};
  // first: whose figures rank 0 has; all others have the other ones, or the same.
  const auto settle = [&](int first, bool others) {
    std::vector<SettledStrategies> settled(kRanks);
    Config config = parse_config(
        absl::StrCat(R"(model { vocabulary: 16 layers: 1 width: 32 heads: 4 kv_heads: 2 head_dim: 8
                                mlp_width: 48 norm_eps: 1e-5 rope_theta: 10000 }
                        data { path: ")",
                     folder_ / "copy", R"(" sequence_length: 97 validation_fraction: 0 }
                        train { steps: 1 run_directory: ")",
                     folder_ / "run", R"(" } parallel { strategy: "auto" layout: "balanced"
                                                        linear_method: "auto" in_place: false
                                                        gather_heads: 2 })"),
        "test");
    dist::run_local(kRanks, kDeadline, [&](dist::Group& world) {
      Config mine = config;
      resolve(mine, world.size(), 1);
      mine.mutable_parallel()->set_cluster(paths[others && world.rank() > 0 ? 1 - first : first]);
      ThreadPool pool(1);
      Arena none("nothing", 0);
      const Context ctx{.pool = &pool, .scratch = &none};
      const parallel::Documents documents = parallel::Documents::whole(97);
      settled[static_cast<size_t>(world.rank())] = settle_strategies(
          world, world, ctx, mine,
          {.layout =
               [&](double row_price) { return make_layout(mine, kRanks, documents, row_price); },
           .documents = documents,
           .options = attention_options(mine),
           .record_path = "",
           .linear = parallel::LinearAttentionOptions{
               .heads = 4, .head_dim = 8, .value_dim = 8, .most_runs = 4}});
    });
    for (const SettledStrategies& one : settled) {
      EXPECT_EQ(one.record, settled[0].record);
      EXPECT_EQ(one.forward, settled[0].forward);
      EXPECT_EQ(one.backward, settled[0].backward);
      EXPECT_EQ(one.row_price, settled[0].row_price);
      EXPECT_EQ(one.linear_method, settled[0].linear_method);
    }
    return settled[0];
  };
  const SettledStrategies latency = settle(0, false), bytes = settle(1, false);
  EXPECT_NE(latency.forward, bytes.forward);
  EXPECT_NE(latency.row_price, bytes.row_price);
  EXPECT_NE(latency.linear_method, bytes.linear_method);
  EXPECT_EQ(settle(0, true).linear_method, latency.linear_method);
  EXPECT_EQ(settle(0, true).forward, latency.forward);
  EXPECT_EQ(settle(0, true).row_price, latency.row_price);
  EXPECT_EQ(settle(1, true).forward, bytes.forward);
}

TEST_F(AutoTest, RefusalsAreOneErrorOnAllRanks) {
  EXPECT_THAT(error_of([&] {
                run(3, 1,
                    {"parallel.strategy=ring", "parallel.backward_strategy=double_ring",
                     "parallel.ranks_per_node=2"});
              }),
              HasSubstr("double_ring"));
  // Refused strategies never win.
  EXPECT_THAT(run(3, 1, {"parallel.ranks_per_node=2"}), Not(HasSubstr(": double_ring (")));
  EXPECT_FALSE(
      saved().forward().candidates(saved().forward().candidates_size() - 1).refusal().empty());
}

}  // namespace
}  // namespace longhaul::launch
