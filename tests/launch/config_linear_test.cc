// The fields of a configuration that say which layers attend linearly, and how.
#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include "launch/config/config.h"
#include "model/presets.h"

namespace longhaul::launch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Settings = std::vector<std::string>;

Config resolved(const Settings& overrides) {
  Config config = parse_config(R"(model { preset: "25m" }
                                  data { path: "data/x" sequence_length: 100 }
                                  train { steps: 10 })",
                               "test");
  for (const std::string& assignment : overrides) apply_override(config, assignment);
  resolve(config, 4, 3);
  return config;
}
model::ModelConfig model_of(const Settings& overrides) { return model_config(resolved(overrides)); }
std::string refusal(const Settings& overrides) {
  const auto error = attempt([&] { resolved(overrides); });
  if (!error) return "(no error)";
  EXPECT_EQ(error->code(), ErrorCode::kConfig) << error->what();
  return error->what();
}

TEST(ConfigOfLinearAttention, IsOffUnlessAskedFor) {
  const Config config = resolved({});
  EXPECT_EQ(model_config(config).linear_layers(), 0);
  EXPECT_FALSE(config.model().has_linear());
  EXPECT_EQ(resolved({"model.pattern=NN"}).model().has_linear(), false);
}

TEST(ConfigOfLinearAttention, FillsWhatIsNotSet) {
  const Config config = resolved({"model.pattern=LLLN"});
  const Linear& linear = config.model().linear();
  EXPECT_EQ(linear.kind(), "lightning");
  EXPECT_EQ(linear.slopes(), "alibi");
  EXPECT_EQ(linear.feature(), "silu");
  EXPECT_EQ(linear.value_feature(), "none");
  EXPECT_EQ(linear.gate(), "silu");
  EXPECT_EQ(linear.norm(), "per_head");
  EXPECT_EQ(linear.heads(), 8);
  EXPECT_EQ(linear.head_dim(), 64);
  EXPECT_EQ(linear.lrpe_layers(), "");
  EXPECT_EQ(config.parallel().linear_method(), "all_gather");
  EXPECT_EQ(model_config(config).linear_layers(), 6);

  Config again = parse_config(to_text(config), "resolved");
  resolve(again, 4, 7);
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(config, again));
}

TEST(ConfigOfLinearAttention, EveryChoiceReachesTheModel) {
  const model::ModelConfig model = model_of(
      {"model.pattern=L", "model.linear.kind=lightning", "model.linear.slopes=transnormer_paper",
       "model.linear.feature=none", "model.linear.value_feature=silu", "model.linear.gate=sigmoid",
       "model.linear.norm=simple", "model.linear.heads=3", "model.linear.head_dim=20",
       "model.linear.lrpe_layers=5,0,5", "model.norm=simple", "model.mlp_gate=none",
       "model.scale_embeddings=true", "model.residual_scale=2.5"});
  EXPECT_EQ(model.linear.slopes, model::Slopes::kTransNormerPaper);
  EXPECT_EQ(model.linear.feature, kernels::Activation::kIdentity);
  EXPECT_EQ(model.linear.value_feature, kernels::Activation::kSilu);
  EXPECT_EQ(model.linear.gate, kernels::Activation::kSigmoid);
  EXPECT_EQ(model.linear.norm, model::OutputNorm::kSimple);
  EXPECT_EQ(model.linear_heads(), 3);
  EXPECT_EQ(model.linear_head_dim(), 20);
  EXPECT_EQ(model.linear.lrpe_layers, (std::vector<int64_t>{0, 5}));
  EXPECT_EQ(model.norm, model::NormKind::kSimple);
  EXPECT_EQ(model.mlp_gate, kernels::Activation::kIdentity);
  EXPECT_TRUE(model.scale_embeddings);
  EXPECT_EQ(model.residual_scale, 2.5);
  for (const auto& row : model::linear_variants()) {
    const auto other = model_of({"model.pattern=L", "model.linear.kind=" + std::string(row.name)});
    EXPECT_EQ(other.linear.kind, row.value);
  }
  EXPECT_EQ(model_of({"model.pattern=L", "model.linear.gate=none"}).linear.gate, std::nullopt);
  EXPECT_EQ(resolved({"parallel.linear_method=ring"}).parallel().linear_method(), "ring");
  EXPECT_EQ(resolved({}).parallel().linear_decay_bound(), 0);
  EXPECT_EQ(resolved({"parallel.linear_decay_bound=1e-6"}).parallel().linear_decay_bound(), 1e-6);
  EXPECT_EQ(resolved({"parallel.linear_method=auto"}).parallel().linear_method(), "auto");
}

// A preset's other kinds do not inherit its slopes.
TEST(ConfigOfLinearAttention, PresetsCanBeChanged) {
  const Settings transnormer{"model.preset=transnormerllm-small"};
  EXPECT_EQ(model_of(transnormer).linear.slopes, model::Slopes::kTransNormer);
  const Config retention =
      resolved({"model.preset=transnormerllm-small", "model.linear.kind=retention"});
  EXPECT_FALSE(retention.model().linear().has_slopes());
  EXPECT_EQ(model_of({"model.preset=linear-llama3-25m", "model.pattern=N"}).linear_layers(), 0);
  EXPECT_EQ(model_of({"model.preset=linear-llama3-25m", "model.heads=4"}).linear_heads(), 4);
}

TEST(ConfigOfLinearAttention, Refuses) {
  EXPECT_THAT(refusal({"model.pattern=LLXN"}), AllOf(HasSubstr("LLXN"), HasSubstr("`X`")));
  EXPECT_THAT(refusal({"model.pattern=L", "model.linear.kind=retentoin"}),
              AllOf(HasSubstr("model.linear.kind"), HasSubstr("did you mean `retention`?")));
  EXPECT_THAT(refusal({"model.pattern=L", "model.linear.slopes=alibbi"}),
              AllOf(HasSubstr("model.linear.slopes"), HasSubstr("did you mean `alibi`?")));
  EXPECT_THAT(refusal({"model.pattern=L", "model.linear.feature=relu"}),
              AllOf(HasSubstr("model.linear.feature"), HasSubstr("relu")));
  EXPECT_THAT(refusal({"model.pattern=L", "model.linear.value_feature=relu"}),
              HasSubstr("model.linear.value_feature"));
  EXPECT_THAT(refusal({"model.pattern=L", "model.linear.gate=sigmod"}),
              AllOf(HasSubstr("model.linear.gate"), HasSubstr("did you mean `sigmoid`?")));
  EXPECT_THAT(refusal({"model.pattern=L", "model.linear.norm=head"}),
              HasSubstr("model.linear.norm"));
  EXPECT_THAT(refusal({"model.norm=layer"}), HasSubstr("model.norm"));
  EXPECT_THAT(refusal({"model.mlp_gate=gelu"}), HasSubstr("model.mlp_gate"));
  EXPECT_THAT(refusal({"model.residual_scale=-1"}), HasSubstr("model.residual_scale"));
  EXPECT_THAT(refusal({"model.pattern=L", "model.linear.heads=0"}),
              HasSubstr("model.linear.heads: 0"));
  EXPECT_THAT(refusal({"model.pattern=L", "model.linear.head_dim=-2"}),
              HasSubstr("model.linear.head_dim: -2"));
  EXPECT_THAT(refusal({"model.pattern=L", "model.linear.lrpe_layers=1,x"}),
              AllOf(HasSubstr("model.linear.lrpe_layers"), HasSubstr("`x`")));
  EXPECT_THAT(refusal({"parallel.linear_decay_bound=1"}),
              HasSubstr("parallel.linear_decay_bound: 1 is not below 1"));
  EXPECT_THAT(refusal({"parallel.linear_decay_bound=-1e-3"}),
              HasSubstr("parallel.linear_decay_bound: -0.001 is below 0"));
  EXPECT_THAT(refusal({"parallel.linear_method=all_gathre"}),
              AllOf(HasSubstr("parallel.linear_method"), HasSubstr("did you mean `all_gather`?")));
}

TEST(ConfigOfLinearAttention, RefusesContradictions) {
  EXPECT_THAT(refusal({"model.linear.kind=basic"}),
              AllOf(HasSubstr("model.linear.kind"), HasSubstr("no layer has linear attention")));
  EXPECT_THAT(refusal({"model.pattern=L", "model.linear.kind=basic", "model.linear.slopes=alibi"}),
              AllOf(HasSubstr("model.linear.slopes"), HasSubstr("kind basic")));
  EXPECT_THAT(refusal({"model.pattern=LLLN", "model.linear.lrpe_layers=3"}),
              AllOf(HasSubstr("layer 3"), HasSubstr("softmax")));
  EXPECT_THAT(refusal({"model.pattern=L", "model.linear.lrpe_layers=8"}),
              AllOf(HasSubstr("layer 8"), HasSubstr("0 to 7")));
  EXPECT_THAT(refusal({"model.pattern=L", "model.linear.kind=gla", "model.linear.lrpe_layers=0"}),
              AllOf(HasSubstr("model.linear.lrpe_layers"), HasSubstr("gla")));
  for (const char* option : {"sliding_window=5", "prefix_length=5", "soft_cap=5", "alibi=true",
                             "sinks=true", "dropout=0.5"}) {
    const std::string field = std::string("model.attention.") + option;
    EXPECT_THAT(
        refusal({"model.pattern=L", field}),
        AllOf(HasSubstr(field.substr(0, field.find('='))), HasSubstr("no layer has softmax")));
    EXPECT_EQ(refusal({"model.pattern=LN", field}), "(no error)");
  }
}

}  // namespace
}  // namespace longhaul::launch
