#include "launch/config/config.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <fstream>
#include <limits>

#include "launch/config/descriptors.h"
#include "launch/config/suggest.h"
#include "model/presets.h"
#include "tests/temp_folder.h"

namespace longhaul::launch {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// The message of the Error(kConfig) that `work` throws.
std::string error_of(const std::function<void()>& work) {
  const auto error = attempt(work);
  if (!error) return "(no error)";
  EXPECT_EQ(error->code(), ErrorCode::kConfig) << error->what();
  return error->what();
}
std::string parse_error(const std::string& text) {
  return error_of([&] { parse_config(text, "c.txtpb"); });
}
std::string override_error(const std::string& assignment) {
  return error_of([&] {
    Config config;
    apply_override(config, assignment);
  });
}

Config minimal() {
  return parse_config(R"(model { preset: "tiny" }
                         data { path: "data/x" sequence_length: 100 }
                         train { steps: 10 })",
                      "minimal");
}
Config resolved(const std::vector<std::string>& overrides, int ranks = 4) {
  Config config = minimal();
  for (const std::string& assignment : overrides) apply_override(config, assignment);
  resolve(config, ranks, 3);
  return config;
}
std::string resolve_error(const std::vector<std::string>& overrides, int ranks = 4) {
  return error_of([&] { resolved(overrides, ranks); });
}

TEST(ParseConfig, UnknownFieldNamesPlaceAndSuggestion) {
  EXPECT_EQ(parse_error("model {\n  layrs: 3\n}"),
            "c.txtpb:2:3: unknown field `layrs` in block `model`; did you mean `layers`?");
  EXPECT_EQ(parse_error("\n\tmodle { layers: 3 }"),
            "c.txtpb:2:2: unknown field `modle` in the configuration; did you mean `model`?");
  EXPECT_EQ(parse_error("model { rope_scaling { facter: 2 } }"),
            "c.txtpb:1:24: unknown field `facter` in block `model.rope_scaling`; did you mean "
            "`factor`?");
  EXPECT_THAT(parse_error("checkpoint { zzzzzzzzzz: 1 }"),
              HasSubstr("known: directory, every, keep, resume"));
}

TEST(ParseConfig, BadValuesNamePlace) {
  EXPECT_THAT(parse_error("model {\n  layers: 3\n  layers: 4\n}"),
              AllOf(StartsWith("c.txtpb:3:"), HasSubstr("layers"), HasSubstr("multiple times")));
  EXPECT_THAT(parse_error("model { layers: \"a\" }"), HasSubstr("Expected integer"));
  EXPECT_THAT(parse_error("model { layers: 99999999999999999999 }"), HasSubstr("out of range"));
  EXPECT_EQ(parse_error("train { dtype: FP32 }"),
            "c.txtpb:1:16: unknown value FP32 for `dtype`; did you mean `F32`?");
  EXPECT_THAT(parse_error("model { layers: 3"), StartsWith("c.txtpb:1:"));
}

TEST(LoadConfig, OverridesWinInOrder) {
  const TempFolder folder;
  const std::string path = folder.path() + "/c.txtpb";
  std::ofstream(path) << "model { layers: 3 heads: 5 }";
  const Config config = load_config(path, {"model.layers=4", "model.layers=5"});
  EXPECT_EQ(config.model().layers(), 5);
  EXPECT_EQ(config.model().heads(), 5);
  std::ofstream(path).close();
  EXPECT_FALSE(load_config(path, {}).has_model()) << "an empty file is a configuration of defaults";
}

TEST(LoadConfig, UnreadableFilesAreErrors) {
  const TempFolder folder;
  EXPECT_THAT(error_of([&] { load_config(folder.path() + "/none", {}); }),
              AllOf(HasSubstr("/none"), HasSubstr("No such file")));
  EXPECT_THAT(error_of([&] { load_config(folder.path(), {}); }), HasSubstr("it is a folder"));
}

TEST(Override, EveryType) {
  Config config;
  for (const char* assignment :
       {"model.layers=8", "parallel.threads=2", "train.seed=18446744073709551615",
        "train.learning_rate=3e-4", "checkpoint.resume=false", "data.path=a=b", "train.dtype=bf16",
        "device=cuda", "model.rope_scaling.factor=32"}) {
    apply_override(config, assignment);
  }
  EXPECT_EQ(config.model().layers(), 8);
  EXPECT_EQ(config.parallel().threads(), 2);
  EXPECT_EQ(config.train().seed(), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(config.train().learning_rate(), 3e-4);
  EXPECT_FALSE(config.checkpoint().resume());
  EXPECT_EQ(config.data().path(), "a=b");
  EXPECT_EQ(config.train().dtype(), Train::BF16);
  EXPECT_EQ(config.device(), Config::CUDA);
  EXPECT_EQ(config.model().rope_scaling().factor(), 32);
}

TEST(Override, ErrorsSaySo) {
  EXPECT_EQ(override_error("model.layrs=8"),
            "--set model.layrs=8: unknown field `layrs` in block `model`; did you mean `layers`?");
  EXPECT_THAT(override_error("modle.layers=8"), HasSubstr("did you mean `model`?"));
  EXPECT_THAT(override_error("model.layers"), HasSubstr("block.field=value"));
  EXPECT_THAT(override_error("=3"), HasSubstr("block.field=value"));
  EXPECT_THAT(override_error("model=3"), HasSubstr("is a block"));
  EXPECT_THAT(override_error("model.layers.x=3"), HasSubstr("not a block"));
  EXPECT_THAT(override_error("model.=3"), HasSubstr("unknown field ``"));
  EXPECT_THAT(override_error("model.layers=8.5"), HasSubstr("`8.5` is not a whole number"));
  EXPECT_THAT(override_error("model.layers="), HasSubstr("not a whole number"));
  EXPECT_THAT(override_error("parallel.data=3000000000"), HasSubstr("2147483647"));
  EXPECT_THAT(override_error("train.seed=-1"), HasSubstr("from 0 to"));
  EXPECT_THAT(override_error("train.learning_rate=nan"), HasSubstr("not a finite number"));
  EXPECT_THAT(override_error("train.dtype=fp32"), HasSubstr("did you mean `F32`?"));
  EXPECT_THAT(override_error("checkpoint.resume=yes"), HasSubstr("neither true nor false"));
}

TEST(Resolve, FillsWhatIsNotSet) {
  const Config config = resolved({"parallel.data=2", "model.layers=5"});
  EXPECT_EQ(config.parallel().sequence(), 2);
  EXPECT_EQ(config.parallel().threads(), 3);
  EXPECT_EQ(config.train().batch_tokens(), 200);
  EXPECT_DOUBLE_EQ(config.train().min_learning_rate(), 1e-4);
  EXPECT_EQ(config.checkpoint().directory(), "runs/default/checkpoints");
  const model::ModelConfig tiny = model::preset("tiny").config;
  EXPECT_EQ(config.model().width(), tiny.width);
  EXPECT_EQ(config.model().layers(), 5) << "a field that is set wins over the preset";
  EXPECT_EQ(model_config(config).layers, 5);
  EXPECT_EQ(dtype(config), DType::kF32);
  EXPECT_EQ(dtype(resolved({"train.dtype=F64"})), DType::kF64);
  EXPECT_EQ(model_config(config).lora.rank, 0);
  const model::LoraConfig lora =
      model_config(resolved({"lora.rank=4", "lora.projections=q_proj,v_proj"})).lora;
  EXPECT_EQ(lora.alpha, 8.0);
  EXPECT_THAT(lora.projections, testing::ElementsAre("q_proj", "v_proj"));
  EXPECT_EQ(model_config(resolved({"lora.rank=4"})).lora.projections.size(), 7u);
}

// Fields of a resolved configuration that are not set.
void collect_unset(const google::protobuf::Message& message, std::vector<std::string>& unset) {
  const auto& type = *message.GetDescriptor();
  for (int i = 0; i < type.field_count(); ++i) {
    const auto* field = type.field(i);
    if (!message.GetReflection()->HasField(message, field)) {
      unset.push_back(field->name());
    } else if (field->message_type() != nullptr) {
      collect_unset(message.GetReflection()->GetMessage(message, field), unset);
    }
  }
}

TEST(Resolve, SaysEverythingAndReadsBack) {
  const Config config = resolved({});
  std::vector<std::string> unset;
  collect_unset(config, unset);
  EXPECT_THAT(unset, testing::ElementsAre("rope_scaling", "linear", "row_price", "lora"))
      << "off for this preset; left to costs";

  Config again = parse_config(to_text(config), "resolved");
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(config, again));
  resolve(again, 4, 7);
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(config, again));
}

TEST(Resolve, ServersAreRanksBesideTrainers) {
  const std::vector<std::string> disaggregated{"parallel.strategy=disaggregated"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), disaggregated.begin(), disaggregated.end());
    return resolved(more);
  };
  EXPECT_EQ(with({"parallel.servers=1"}).parallel().sequence(), 3);
  const Config config = with({"parallel.servers=2", "parallel.data=2"});
  EXPECT_EQ(config.parallel().sequence(), 1);
  EXPECT_EQ(config.parallel().backward_strategy(), "disaggregated");
  EXPECT_EQ(config.train().batch_tokens(), 2 * config.data().sequence_length());
  const auto refused = [&](const std::vector<std::string>& more) {
    return error_of([&] { with(more); });
  };
  EXPECT_THAT(refused({"parallel.servers=4"}), HasSubstr("leaves no trainer; set it to 3 or less"));
  EXPECT_THAT(refused({"parallel.servers=1", "parallel.data=2"}),
              HasSubstr("2 replicas cannot share 3 ranks equally (those that are no servers)"));
  EXPECT_THAT(refused({"parallel.servers=1", "parallel.data=2"}), HasSubstr("start 5 ranks"));
  EXPECT_THAT(refused({"parallel.servers=1", "parallel.sequence=2"}),
              HasSubstr("data 1 x sequence 2 + servers 1 needs 3 ranks, but the job has 4"));
  EXPECT_THAT(refused({"parallel.backward_strategy=ring"}),
              HasSubstr("leave parallel.backward_strategy unset"));
  EXPECT_THAT(error_of([&] { resolved({"parallel.backward_strategy=disaggregated"}); }),
              HasSubstr("leave parallel.backward_strategy unset"));
  EXPECT_THAT(refused({"model.pattern=L"}), HasSubstr("model.pattern has none"));
  EXPECT_THAT(refused({"model.attention.dropout=0.1", "parallel.data=2"}),
              HasSubstr("set it to 0, or parallel.data to 1"));
  EXPECT_EQ(with({"model.attention.dropout=0.1"}).parallel().data(), 1);
}

TEST(Resolve, EveryPreset) {
  for (const model::Preset& preset : model::presets()) {
    const Config config = resolved({"model.preset=" + std::string(preset.name)});
    EXPECT_EQ(model_config(config).describe(DType::kF32), preset.config.describe(DType::kF32))
        << preset.name;
  }
}

TEST(Resolve, OwnSizesInsteadOfAPreset) {
  Config config = minimal();
  config.mutable_model()->clear_preset();
  EXPECT_THAT(error_of([&] { resolve(config, 1, 1); }), HasSubstr("model.preset"));
  config = minimal();
  config.mutable_model()->clear_preset();
  for (const char* assignment : {"model.layers=3", "model.width=96", "model.heads=4"}) {
    apply_override(config, assignment);
  }
  resolve(config, 1, 1);
  EXPECT_EQ(config.model().kv_heads(), 4);
  EXPECT_EQ(config.model().head_dim(), 24);
  EXPECT_EQ(config.model().vocabulary(), 256);
  EXPECT_EQ(config.model().mlp_width(), 256);
}

struct Refusal {
  std::string assignment;
  std::string says;
};
void PrintTo(const Refusal& refusal, std::ostream* out) { *out << refusal.assignment; }

class ResolveRefuses : public testing::TestWithParam<Refusal> {};

TEST_P(ResolveRefuses, NamingTheField) {
  const Refusal& refusal = GetParam();
  const std::string field = refusal.assignment.substr(0, refusal.assignment.find('='));
  EXPECT_THAT(resolve_error({refusal.assignment}),
              AllOf(HasSubstr(field), HasSubstr(refusal.says)));
}

INSTANTIATE_TEST_SUITE_P(
    BadValues, ResolveRefuses,
    testing::Values(
        Refusal{"model.preset=tinny", "did you mean `tiny`?"},
        Refusal{"model.architecture=lama", "did you mean `llama`?"},
        Refusal{"model.layers=0", "set it to 1 or more"},
        Refusal{"model.heads=-1", "set it to 1 or more"},
        Refusal{"model.vocabulary=0", "set it to 1 or more"},
        Refusal{"model.attention.sliding_window=-1", "0 or more"},
        Refusal{"model.attention.prefix_length=-1", "0 or more"},
        Refusal{"model.attention.soft_cap=-1", "below 0"},
        Refusal{"model.rope_scaling.kind=yran", "did you mean `yarn`?"},
        Refusal{"model.rope_scaling.beta_fast=0", "not above 0"},
        Refusal{"lora.rank=0", "set it to 1 or more"}, Refusal{"lora.alpha=0", "not above 0"},
        Refusal{"lora.projections=q_porj", "choose of q_proj"},
        Refusal{"model.attention.dropout=1", "not below 1"},
        Refusal{"model.attention.dropout=-0.1", "below 0"},
        Refusal{"model.norm_eps=0", "not above 0"}, Refusal{"model.rope_theta=-1", "not above 0"},
        Refusal{"model.rope_scaling.high_frequency_factor=0.5", "not above low_frequency_factor"},
        Refusal{"parallel.servers=-1", "0 or more"},
        Refusal{"parallel.servers=1", "only strategy disaggregated has servers"},
        Refusal{"parallel.server_buffer_mib=-1", "below 0"},
        Refusal{"parallel.server_buffer_mib=1e12", "a petabyte"},
        Refusal{"parallel.server_buffer_mib=5", "only strategy disaggregated has such buffers"},
        Refusal{"parallel.nano_batches=0", "1 or more"},
        Refusal{"parallel.nano_batches=2", "only strategy disaggregated has rounds"},
        Refusal{"parallel.nano_batches=65", "more than 64"},
        Refusal{"parallel.strategy=disagregated", "did you mean `disaggregated`?"},
        Refusal{"data.path=", "is empty"}, Refusal{"data.sequence_length=0", "1 or more"},
        Refusal{"data.sequence_length=9223372036854775807", "more than 2^40"},
        Refusal{"data.validation_fraction=1", "not below 1"},
        Refusal{"data.validation_fraction=-0.1", "below 0"},
        Refusal{"parallel.data=0", "1 or more"},
        Refusal{"parallel.data=3", "3 replicas cannot share 4 ranks"},
        Refusal{"parallel.sequence=3", "needs 3 ranks, but the job has 4"},
        Refusal{"parallel.layout=zigzig", "did you mean `zigzag`?"},
        Refusal{"parallel.layout=balance", "did you mean `balanced`?"},
        Refusal{"parallel.row_price=-1", "below 0"},
        Refusal{"parallel.strategy=rnig", "did you mean `ring`?"},
        Refusal{"parallel.backward_strategy=outo", "did you mean `auto`?"},
        Refusal{"parallel.ranks_per_node=-1", "parallel.ranks_per_node: -1 is too small"},
        Refusal{"parallel.threads=0", "1 or more"},
        Refusal{"parallel.timeout_seconds=0", "not above 0"},
        Refusal{"parallel.timeout_seconds=1e9", "1e6"},
        Refusal{"memory.loss_tile_rows=-1", "0 or more"}, Refusal{"train.steps=0", "1 or more"},
        Refusal{"train.batch_tokens=250", "set it to 300"},
        Refusal{"train.batch_tokens=0", "set it to 100"},
        Refusal{"train.learning_rate=0", "not above 0"},
        Refusal{"train.min_learning_rate=1", "above train.learning_rate"},
        Refusal{"train.warmup_steps=-1", "0 or more"}, Refusal{"train.weight_decay=-1", "below 0"},
        Refusal{"train.beta1=1", "not below 1"}, Refusal{"train.beta2=-0.5", "below 0"},
        Refusal{"train.adam_eps=0", "not above 0"}, Refusal{"train.clip_norm=-1", "below 0"},
        Refusal{"train.validate_every=-1", "0 or more"},
        Refusal{"train.validation_samples=-1", "0 or more"},
        Refusal{"train.run_directory=", "is empty"}, Refusal{"checkpoint.directory=", "is empty"},
        Refusal{"checkpoint.every=-1", "0 or more"}, Refusal{"checkpoint.keep=-1", "0 or more"},
        Refusal{"train.cuda_graph=true", "true with device: CPU: CUDA graphs are of GPUs"},
        Refusal{"device=CUDA", "built without"}));

TEST(Resolve, MissingFieldsAreNamed) {
  for (const char* field : {"path", "sequence_length"}) {
    Config config = minimal();
    config.mutable_data()->GetReflection()->ClearField(config.mutable_data(),
                                                       Data::descriptor()->FindFieldByName(field));
    EXPECT_THAT(error_of([&] { resolve(config, 1, 1); }),
                AllOf(HasSubstr(std::string("data.") + field), HasSubstr("is not set")));
  }
  Config config = minimal();
  config.mutable_train()->clear_steps();
  EXPECT_THAT(error_of([&] { resolve(config, 1, 1); }), HasSubstr("train.steps"));
}

TEST(Resolve, OptionsOfAttention) {
  EXPECT_EQ(model_config(resolved({})).attention.sliding_window, 0);
  const Config config = resolved({"model.attention.sliding_window=64",
                                  "model.attention.soft_cap=30", "model.attention.alibi=true",
                                  "model.attention.sinks=true", "model.attention.dropout=0.1"});
  const model::AttentionConfig attention = model_config(config).attention;
  EXPECT_EQ(attention.sliding_window, 64);
  EXPECT_EQ(attention.soft_cap, 30);
  EXPECT_TRUE(attention.alibi);
  EXPECT_TRUE(attention.sinks);
  EXPECT_EQ(attention.dropout, 0.1);
  EXPECT_EQ(model_config(resolved({"model.attention.prefix_length=7"})).attention.prefix_length, 7);
  // ALiBi stands in the place of RoPE, whose fields are then neither written nor taken.
  EXPECT_FALSE(config.model().has_rope_theta());
  Config again = parse_config(to_text(config), "resolved");
  resolve(again, 4, 7);
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(config, again));
  EXPECT_FALSE(resolved({"model.preset=llama3.2-1b", "model.attention.alibi=true"})
                   .model()
                   .has_rope_scaling());
}

TEST(Resolve, FieldsThatContradictEachOther) {
  EXPECT_THAT(resolve_error({"parallel.layout=balanced", "data.sequence_length=2147483649"}),
              HasSubstr("more than 2^31"));
  EXPECT_THAT(resolve_error({"model.attention.alibi=true", "model.rope_theta=10000"}),
              AllOf(HasSubstr("model.rope_theta"), HasSubstr("model.attention.alibi")));
  EXPECT_THAT(resolve_error({"model.attention.alibi=true", "model.rope_scaling.factor=8"}),
              AllOf(HasSubstr("model.rope_scaling"), HasSubstr("model.attention.alibi")));
  EXPECT_THAT(resolve_error({"model.attention.alibi=true", "model.attention.prefix_length=4"}),
              AllOf(HasSubstr("alibi"), HasSubstr("prefix_length is 4")));
  EXPECT_THAT(resolve_error({"train.validate_every=5", "data.validation_fraction=0"}),
              HasSubstr("data.validation_fraction"));
}

TEST(Suggest, NearNamesOnly) {
  EXPECT_EQ(nearest("layrs", {"heads", "layers"}), "layers");
  EXPECT_EQ(nearest("LAYERS", {"heads", "layers"}), "layers");
  EXPECT_EQ(nearest("lyaers", {"heads", "layers"}), "layers");
  EXPECT_EQ(nearest("quite else", {"heads", "layers"}), std::nullopt);
  EXPECT_EQ(nearest("x", {}), std::nullopt);
}

}  // namespace
}  // namespace longhaul::launch
