#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"
#include "launch/config/config.h"
#include "launch/config/linear.h"
#include "launch/config/suggest.h"
#include "model/model.h"
#include "model/presets.h"
#include "parallel/layout/balanced.h"
#include "parallel/layout/token_layout.h"
#include "parallel/plan/scan.h"
#include "parallel/plan/strategy.h"

namespace longhaul::launch {
namespace {

namespace pb = google::protobuf;

// Keeps sizes and byte counts that are computed from it far from the limits of 64 bits.
constexpr int64_t kLongestSequence = int64_t{1} << 40;

[[noreturn]] void refuse(std::string_view field, const std::string& why) {
  fail(ErrorCode::kConfig, absl::StrCat(std::string(field), ": ", why));
}

void at_least(std::string_view field, int64_t value, int64_t limit) {
  if (value < limit)
    refuse(field, absl::StrCat(value, " is too small; set it to ", limit, " or more"));
}

void finite(std::string_view field, double value) {
  if (!std::isfinite(value)) refuse(field, absl::StrCat(value, " is not a finite number"));
}

void positive(std::string_view field, double value) {
  finite(field, value);
  if (value <= 0) refuse(field, absl::StrCat(value, " is not above 0"));
}

void not_negative(std::string_view field, double value) {
  finite(field, value);
  if (value < 0) refuse(field, absl::StrCat(value, " is below 0"));
}

void below_one(std::string_view field, double value) {
  not_negative(field, value);
  if (value >= 1) refuse(field, absl::StrCat(value, " is not below 1"));
}

void not_empty(std::string_view field, const std::string& value) {
  if (value.empty()) refuse(field, "is empty; give it a path");
}

template <class Table>
void known(std::string_view field, const std::string& value, const Table& table) {
  std::vector<std::string> names;
  for (const auto& row : table) names.emplace_back(row.name);
  if (std::find(names.begin(), names.end(), value) == names.end()) {
    refuse(field, absl::StrCat("there is no `", value, "`", suggestion(value, names)));
  }
}

// A row of the table, or "auto".
template <class Row>
void known_or_auto(std::string_view field, const std::string& value, std::span<const Row> rows) {
  std::vector<Row> table(rows.begin(), rows.end());
  table.emplace_back().name = kAutoStrategy;
  known(field, value, table);
}

// Writes the defaults of config.proto into the fields that are not set, so that the run's own copy
// of its configuration says everything, even if a later version changes a default.
void write_defaults(pb::Message& message) {
  const pb::Descriptor& type = *message.GetDescriptor();
  const pb::Reflection& reflection = *message.GetReflection();
  for (int i = 0; i < type.field_count(); ++i) {
    const pb::FieldDescriptor* field = type.field(i);
    using Type = pb::FieldDescriptor;
    if (field->cpp_type() == Type::CPPTYPE_MESSAGE) {
      // The scaling of RoPE is on exactly if its block is there; that of linear layers is, too, and
      // so are adapters.
      if ((field->message_type() == RopeScaling::descriptor() ||
           field->message_type() == Lora::descriptor() ||
           field->message_type() == Linear::descriptor()) &&
          !reflection.HasField(message, field)) {
        continue;
      }
      write_defaults(*reflection.MutableMessage(&message, field));
      continue;
    }
    if (reflection.HasField(message, field) || !field->has_default_value()) continue;
    switch (field->cpp_type()) {
      case Type::CPPTYPE_INT32:
        reflection.SetInt32(&message, field, field->default_value_int32());
        break;
      case Type::CPPTYPE_INT64:
        reflection.SetInt64(&message, field, field->default_value_int64());
        break;
      case Type::CPPTYPE_UINT64:
        reflection.SetUInt64(&message, field, field->default_value_uint64());
        break;
      case Type::CPPTYPE_DOUBLE:
        reflection.SetDouble(&message, field, field->default_value_double());
        break;
      case Type::CPPTYPE_BOOL:
        reflection.SetBool(&message, field, field->default_value_bool());
        break;
      case Type::CPPTYPE_STRING:
        reflection.SetString(&message, field, field->default_value_string());
        break;
      case Type::CPPTYPE_ENUM:
        reflection.SetEnum(&message, field, field->default_value_enum());
        break;
      default:
        check_failed(__FILE__, __LINE__, "defaults of this type are written");
    }
  }
}

void resolve_attention(Attention& attention, const model::AttentionConfig& base) {
  if (!attention.has_sliding_window()) attention.set_sliding_window(base.sliding_window);
  if (!attention.has_prefix_length()) attention.set_prefix_length(base.prefix_length);
  if (!attention.has_soft_cap()) attention.set_soft_cap(base.soft_cap);
  if (!attention.has_alibi()) attention.set_alibi(base.alibi);
  if (!attention.has_sinks()) attention.set_sinks(base.sinks);
  if (!attention.has_dropout()) attention.set_dropout(base.dropout);
  if (!attention.has_qkv_bias()) attention.set_qkv_bias(base.qkv_bias);
  if (!attention.has_output_bias()) attention.set_output_bias(base.output_bias);
  if (!attention.has_qk_norm()) attention.set_qk_norm(base.qk_norm);
  at_least("model.attention.sliding_window", attention.sliding_window(), 0);
  at_least("model.attention.prefix_length", attention.prefix_length(), 0);
  not_negative("model.attention.soft_cap", attention.soft_cap());
  below_one("model.attention.dropout", attention.dropout());
}

// RoPE, unless ALiBi stands in its place.
void resolve_positions(Model& model, const kernels::RopeOptions& base) {
  if (model.attention().alibi()) {
    for (const auto& [field, is_set] : {std::pair("model.rope_theta", model.has_rope_theta()),
                                        {"model.rope_scaling", model.has_rope_scaling()}}) {
      if (is_set) {
        refuse(field,
               "is set, but model.attention.alibi takes the place of RoPE; remove one of "
               "the two");
      }
    }
    return;
  }
  if (!model.has_rope_theta()) model.set_rope_theta(base.theta);
  positive("model.rope_theta", model.rope_theta());
  if (!model.has_rope_scaling() && base.scaling) {
    RopeScaling& scaling = *model.mutable_rope_scaling();
    write_defaults(scaling);
    scaling.set_kind(std::string(name_of(base.scaling->kind)));
    scaling.set_factor(base.scaling->factor);
    scaling.set_low_frequency_factor(base.scaling->low_frequency_factor);
    scaling.set_high_frequency_factor(base.scaling->high_frequency_factor);
    scaling.set_original_length(base.scaling->original_length);
  }
  if (!model.has_rope_scaling()) return;
  const RopeScaling& scaling = model.rope_scaling();
  known("model.rope_scaling.kind", scaling.kind(), kernels::rope_scaling_kinds());
  positive("model.rope_scaling.beta_fast", scaling.beta_fast());
  positive("model.rope_scaling.beta_slow", scaling.beta_slow());
  not_negative("model.rope_scaling.attention_factor", scaling.attention_factor());
  not_negative("model.rope_scaling.mscale", scaling.mscale());
  not_negative("model.rope_scaling.mscale_all_dim", scaling.mscale_all_dim());
  positive("model.rope_scaling.factor", scaling.factor());
  positive("model.rope_scaling.low_frequency_factor", scaling.low_frequency_factor());
  finite("model.rope_scaling.high_frequency_factor", scaling.high_frequency_factor());
  if (scaling.high_frequency_factor() <= scaling.low_frequency_factor()) {
    refuse("model.rope_scaling.high_frequency_factor",
           absl::StrCat(scaling.high_frequency_factor(), " is not above low_frequency_factor, ",
                        scaling.low_frequency_factor()));
  }
  at_least("model.rope_scaling.original_length", scaling.original_length(), 1);
}

void resolve_model(Model& model) {
  model::ModelConfig base;
  if (model.has_preset()) {
    known("model.preset", model.preset(), model::presets());
    base = model::preset(model.preset()).config;
  } else {
    std::vector<std::string> names;
    for (const model::Preset& preset : model::presets()) names.emplace_back(preset.name);
    const bool own = model.has_layers() && model.has_width() && model.has_heads();
    if (!own) {
      refuse("model", absl::StrCat("neither a preset nor own sizes; set model.preset, e.g. to `",
                                   names.empty() ? "" : names.front(),
                                   "`, or model.layers, model.width and model.heads"));
    }
    at_least("model.heads", model.heads(), 1);
    at_least("model.width", model.width(), 1);
    base.kv_heads = model.heads();
    base.head_dim = std::max<int64_t>(2, model.width() / model.heads() / 2 * 2);
    base.mlp_width = (model.width() * 8 / 3 + 31) / 32 * 32;
  }
  if (!model.has_architecture()) model.set_architecture(base.architecture);
  if (!model.has_vocabulary()) model.set_vocabulary(base.vocabulary);
  if (!model.has_layers()) model.set_layers(base.layers);
  if (!model.has_width()) model.set_width(base.width);
  if (!model.has_heads()) model.set_heads(base.heads);
  if (!model.has_kv_heads()) model.set_kv_heads(base.kv_heads);
  if (!model.has_head_dim()) model.set_head_dim(base.head_dim);
  if (!model.has_mlp_width()) model.set_mlp_width(base.mlp_width);
  if (!model.has_norm_eps()) model.set_norm_eps(base.norm_eps);
  if (!model.has_tied_embeddings()) model.set_tied_embeddings(base.tied_embeddings);
  resolve_attention(*model.mutable_attention(), base.attention);
  resolve_positions(model, base.rope);
  resolve_linear(model, base);
  known("model.architecture", model.architecture(), model::architectures());
  at_least("model.vocabulary", model.vocabulary(), 1);
  at_least("model.layers", model.layers(), 1);
  at_least("model.width", model.width(), 1);
  at_least("model.heads", model.heads(), 1);
  at_least("model.kv_heads", model.kv_heads(), 1);
  at_least("model.head_dim", model.head_dim(), 1);
  at_least("model.mlp_width", model.mlp_width(), 1);
  positive("model.norm_eps", model.norm_eps());
}

// Attention of all ranks or of none.
void resolve_servers(const Parallel& parallel, int ranks) {
  const bool forward = parallel.strategy() == kDisaggregated,
             backward = parallel.backward_strategy() == kDisaggregated;
  at_least("parallel.servers", parallel.servers(), 0);
  if (parallel.servers() > 0 && !(forward && backward)) {
    refuse("parallel.servers",
           absl::StrCat(parallel.servers(), " with strategy ",
                        forward ? parallel.backward_strategy() : parallel.strategy(),
                        "; only strategy disaggregated has servers: set parallel.strategy to it, "
                        "or parallel.servers to 0"));
  }
  if (forward != backward) {
    refuse(
        "parallel.backward_strategy",
        absl::StrCat(parallel.backward_strategy(), " with parallel.strategy ", parallel.strategy(),
                     "; disaggregated shares attention among all ranks of the job, other "
                     "strategies among those of a sample: leave parallel.backward_strategy "
                     "unset"));
  }
  if (parallel.servers() >= ranks) {
    refuse("parallel.servers",
           absl::StrCat(parallel.servers(), " of ", ranks, ranks == 1 ? " rank" : " ranks",
                        " leaves no trainer; set it to ", ranks - 1, " or less, or start more"));
  }
  not_negative("parallel.server_buffer_mib", parallel.server_buffer_mib());
  if (parallel.server_buffer_mib() > 1e9) {
    refuse("parallel.server_buffer_mib",
           absl::StrCat(parallel.server_buffer_mib(), " is more than 1e9 (a petabyte)"));
  }
  if (parallel.server_buffer_mib() > 0 && !forward) {
    refuse("parallel.server_buffer_mib",
           "is set, but only strategy disaggregated has such buffers; remove it");
  }
  constexpr int kMostNanoBatches = 64;
  at_least("parallel.nano_batches", parallel.nano_batches(), 1);
  if (parallel.nano_batches() > kMostNanoBatches) {
    refuse("parallel.nano_batches",
           absl::StrCat(parallel.nano_batches(), " is more than ", kMostNanoBatches));
  }
  if (parallel.nano_batches() > 1 && !forward) {
    refuse("parallel.nano_batches",
           absl::StrCat(parallel.nano_batches(),
                        ", but only strategy disaggregated has rounds of tasks; remove it"));
  }
}

void resolve_parallel(Parallel& parallel, int ranks, int threads) {
  if (!parallel.has_backward_strategy()) parallel.set_backward_strategy(parallel.strategy());
  known_or_auto("parallel.strategy", parallel.strategy(), parallel::strategies());
  known_or_auto("parallel.backward_strategy", parallel.backward_strategy(), parallel::strategies());
  resolve_servers(parallel, ranks);
  at_least("parallel.data", parallel.data(), 1);
  const int trainers = ranks - parallel.servers();
  const std::string servers =
      parallel.servers() == 0 ? "" : absl::StrCat(" + servers ", parallel.servers());
  if (trainers % parallel.data() != 0) {
    refuse("parallel.data",
           absl::StrCat(
               parallel.data(), " replicas cannot share ", trainers,
               trainers == 1 ? " rank" : " ranks", " equally",
               parallel.servers() == 0 ? "" : " (those that are no servers)",
               "; set it to a divisor of the number of ranks, or start ",
               (trainers / parallel.data() + 1) * int64_t{parallel.data()} + parallel.servers(),
               " ranks"));
  }
  if (!parallel.has_sequence()) parallel.set_sequence(trainers / parallel.data());
  at_least("parallel.sequence", parallel.sequence(), 1);
  const int64_t wanted =
      static_cast<int64_t>(parallel.data()) * parallel.sequence() + parallel.servers();
  if (wanted != ranks) {
    refuse("parallel.sequence",
           absl::StrCat("data ", parallel.data(), " x sequence ", parallel.sequence(), servers,
                        " needs ", wanted,
                        wanted == 1 ? " rank, but the job has " : " ranks, but the job has ", ranks,
                        "; start ", wanted, " or leave parallel.sequence unset"));
  }
  known("parallel.layout", parallel.layout(), parallel::layout_kinds());
  not_negative("parallel.row_price", parallel.row_price());
  at_least("parallel.ranks_per_node", parallel.ranks_per_node(), 0);
  at_least("parallel.gather_heads", parallel.gather_heads(), 0);
  known_or_auto("parallel.linear_method", parallel.linear_method(), parallel::scan_methods());
  below_one("parallel.linear_decay_bound", parallel.linear_decay_bound());
  if (!parallel.has_threads()) parallel.set_threads(threads);
  at_least("parallel.threads", parallel.threads(), 1);
  positive("parallel.timeout_seconds", parallel.timeout_seconds());
  if (parallel.timeout_seconds() > 1e6) {
    refuse("parallel.timeout_seconds", absl::StrCat(parallel.timeout_seconds(),
                                                    " is more than 1e6 (11 days); a wait that long "
                                                    "is a hang"));
  }
}

void resolve_data(Data& data) {
  if (!data.has_path()) {
    refuse("data.path",
           "is not set; make token files with `longhaul data prepare` and give their "
           "prefix, e.g. data/quickstart");
  }
  not_empty("data.path", data.path());
  if (!data.has_sequence_length()) {
    refuse("data.sequence_length", "is not set; give the tokens of a sample, e.g. 8192");
  }
  at_least("data.sequence_length", data.sequence_length(), 1);
  if (data.sequence_length() > kLongestSequence) {
    refuse("data.sequence_length", absl::StrCat(data.sequence_length(), " is more than 2^40"));
  }
  below_one("data.validation_fraction", data.validation_fraction());
}

void resolve_train(Train& train, const Data& data, const Parallel& parallel) {
  if (!train.has_steps()) refuse("train.steps", "is not set; give the number of optimizer steps");
  at_least("train.steps", train.steps(), 1);

  // A batch is `data` replicas x a whole number of samples each.
  const int64_t unit = data.sequence_length() * parallel.data();
  if (!train.has_batch_tokens()) train.set_batch_tokens(unit);
  if (train.batch_tokens() < 1 || train.batch_tokens() % unit != 0) {
    const int64_t up = std::max<int64_t>(1, train.batch_tokens() / unit + 1);
    const std::string fix = up > std::numeric_limits<int64_t>::max() / unit
                                ? std::string("a smaller value")
                                : absl::StrCat(up * unit);
    refuse("train.batch_tokens",
           absl::StrCat(train.batch_tokens(), " is not a multiple of data.sequence_length ",
                        data.sequence_length(), " x parallel.data ", parallel.data(), " = ", unit,
                        "; set it to ", fix));
  }
  positive("train.learning_rate", train.learning_rate());
  if (!train.has_min_learning_rate()) train.set_min_learning_rate(train.learning_rate() / 10);
  not_negative("train.min_learning_rate", train.min_learning_rate());
  if (train.min_learning_rate() > train.learning_rate()) {
    refuse("train.min_learning_rate",
           absl::StrCat(train.min_learning_rate(), " is above train.learning_rate, ",
                        train.learning_rate()));
  }
  at_least("train.warmup_steps", train.warmup_steps(), 0);
  not_negative("train.weight_decay", train.weight_decay());
  below_one("train.beta1", train.beta1());
  below_one("train.beta2", train.beta2());
  positive("train.adam_eps", train.adam_eps());
  not_negative("train.clip_norm", train.clip_norm());
  at_least("train.validate_every", train.validate_every(), 0);
  at_least("train.validation_samples", train.validation_samples(), 0);
  if (train.validate_every() > 0 && data.validation_fraction() == 0) {
    refuse("train.validate_every",
           "asks for validation, but data.validation_fraction 0 leaves nothing to validate on; set "
           "one of the two");
  }
  not_empty("train.run_directory", train.run_directory());
}

void resolve_checkpoint(Checkpoint& checkpoint, const Train& train) {
  if (!checkpoint.has_directory()) {
    checkpoint.set_directory(absl::StrCat(train.run_directory(), "/checkpoints"));
  }
  not_empty("checkpoint.directory", checkpoint.directory());
  at_least("checkpoint.every", checkpoint.every(), 0);
  at_least("checkpoint.keep", checkpoint.keep(), 0);
}

void resolve_lora(Lora& lora) {
  at_least("lora.rank", lora.rank(), 1);
  if (!lora.has_alpha()) lora.set_alpha(2 * static_cast<double>(lora.rank()));
  positive("lora.alpha", lora.alpha());
}

void check_device() {
  if (kernels::cuda_backend().gemm.empty()) {
    refuse("device", "CUDA: this binary was built without that backend; set device: CPU");
  }
}

// What happens in a pass beside kernels, the same every time, cannot be recorded.
void check_cuda_graph(const Config& config, const model::ModelConfig& model) {
  const auto refuse_with = [](const std::string& other, const char* why, const char* fix) {
    refuse("train.cuda_graph",
           absl::StrCat("true with ", other, ": ", why, "; remove it, or set ", fix));
  };
  if (config.device() != Config::CUDA) {
    refuse_with("device: CPU", "CUDA graphs are of GPUs", "device: CUDA");
  }
  if (config.parallel().sequence() > 1) {
    refuse_with(absl::StrCat("parallel.sequence ", config.parallel().sequence()),
                "ranks that share a sample exchange messages in its passes",
                "parallel.sequence to 1");
  }
  if (config.parallel().strategy() == kDisaggregated) {
    refuse_with("strategy disaggregated", "ranks exchange messages in a sample's passes",
                "parallel.strategy to another");
  }
  if (model.attention.dropout > 0) {
    refuse_with(absl::StrCat("model.attention.dropout ", model.attention.dropout),
                "what is dropped differs from sample to sample", "it to 0");
  }
  if (config.train().check_numerics()) {
    refuse_with("train.check_numerics", "it looks at every layer's output in between",
                "train.check_numerics to false");
  }
}

void check_disaggregated(const Config& config, const model::ModelConfig& model) {
  if (model.softmax_layers() == 0) {
    refuse("parallel.strategy",
           "disaggregated shares softmax attention, and model.pattern has none; leave it unset");
  }
  if (model.attention.dropout > 0 && config.parallel().data() > 1) {
    refuse("model.attention.dropout",
           absl::StrCat(model.attention.dropout, " with strategy disaggregated and ",
                        config.parallel().data(),
                        " replicas: what is dropped goes by one sample; set it to 0, or "
                        "parallel.data to 1"));
  }
}

}  // namespace

void resolve(Config& config, int ranks, int threads) {
  LONGHAUL_CHECK(ranks >= 1 && threads >= 1);
  write_defaults(config);
  resolve_model(*config.mutable_model());
  if (config.has_lora()) resolve_lora(*config.mutable_lora());
  resolve_data(*config.mutable_data());
  resolve_parallel(*config.mutable_parallel(), ranks, threads);
  if (config.parallel().layout() == "balanced" &&
      config.data().sequence_length() > parallel::kMostBalancedTokens) {
    refuse("data.sequence_length",
           absl::StrCat(config.data().sequence_length(),
                        " is more than 2^31, up to which parallel.layout balanced can count "
                        "attention's work; choose zigzag"));
  }
  at_least("memory.loss_tile_rows", config.memory().loss_tile_rows(), 0);
  resolve_train(*config.mutable_train(), config.data(), config.parallel());
  resolve_checkpoint(*config.mutable_checkpoint(), config.train());
  const model::ModelConfig model = model_config(config);
  model.validate();
  if (config.parallel().strategy() == kDisaggregated) check_disaggregated(config, model);
  if (config.device() == Config::CUDA) check_device();
  if (config.train().cuda_graph()) check_cuda_graph(config, model);
}

}  // namespace longhaul::launch
