#include "model/config.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/core/error.h"
#include "model/linear_gates.h"

namespace longhaul::model {

namespace {

constexpr std::array kNorms{
    Named<NormKind>{"rms", NormKind::kRms},
    Named<NormKind>{"simple", NormKind::kSimple},
};
constexpr std::array kMlpGates{
    Named<kernels::Activation>{"silu", kernels::Activation::kSilu},
    Named<kernels::Activation>{"none", kernels::Activation::kIdentity},
};

constexpr std::array<std::string_view, 8> kLoraProjections{
    "q_proj", "k_proj", "v_proj", "o_proj", "g_proj", "gate_proj", "up_proj", "down_proj"};

void check_lora(const LoraConfig& lora) {
  const std::vector<std::string> known(kLoraProjections.begin(), kLoraProjections.end());
  if (lora.rank < 0) {
    fail(ErrorCode::kConfig, absl::StrCat("lora.rank is ", lora.rank,
                                          "; it must be at least 1, or 0 to train all weights"));
  }
  if (lora.rank == 0) return;
  if (!(lora.alpha > 0)) {
    fail(ErrorCode::kConfig, absl::StrCat("lora.alpha is ", lora.alpha,
                                          "; it must be greater than 0, e.g. twice lora.rank"));
  }
  if (lora.projections.empty()) {
    fail(ErrorCode::kConfig,
         "lora.rank is set and lora.projections is empty, so nothing would be trained; name some "
         "of " +
             absl::StrJoin(known, ", "));
  }
  for (const std::string& name : lora.projections) {
    if (std::ranges::find(known, name) != known.end()) continue;
    fail(ErrorCode::kConfig, absl::StrCat("lora.projections names \"", name, "\"; choose of ",
                                          absl::StrJoin(known, ", ")));
  }
}

// Weights of a linear layer's attention.
int64_t linear_parameters(const ModelConfig& c) {
  const int64_t inner = c.linear_heads() * c.linear_head_dim();
  const int64_t projections = (c.linear.gate ? 5 : 4) * c.width * inner + gate_weights(c).all;
  const int64_t norm = c.linear.norm == OutputNorm::kPerHead    ? c.linear_head_dim()
                       : c.linear.norm == OutputNorm::kAllHeads ? inner
                                                                : 0;
  return projections + norm;
}

void check_pattern(const ModelConfig& c) {
  const size_t bad = c.pattern.find_first_not_of("LN");
  if (bad != std::string::npos) {
    fail(ErrorCode::kConfig,
         absl::StrCat("model.pattern is \"", c.pattern, "\"; `", c.pattern.substr(bad, 1),
                      "` is neither L, a layer with linear attention, nor N, one with softmax"));
  }
}

// Options of softmax attention that no layer would heed.
void check_softmax(const ModelConfig& c) {
  if (c.softmax_layers() > 0) return;
  const AttentionConfig& a = c.attention;
  for (const auto& [field, is_set] : {std::pair("sliding_window", a.sliding_window > 0),
                                      {"prefix_length", a.prefix_length > 0},
                                      {"soft_cap", a.soft_cap > 0},
                                      {"alibi", a.alibi},
                                      {"sinks", a.sinks},
                                      {"qkv_bias", a.qkv_bias},
                                      {"output_bias", a.output_bias},
                                      {"qk_norm", a.qk_norm},
                                      {"dropout", a.dropout > 0}}) {
    if (!is_set) continue;
    fail(ErrorCode::kConfig,
         absl::StrCat("model.attention.", field, " is set, but by model.pattern \"", c.pattern,
                      "\" no layer has softmax attention; remove it, or give the pattern an N"));
  }
}

void check_linear(const ModelConfig& c) {
  if (c.linear_layers() == 0) return;
  const auto at_least_one = [](const char* field, int64_t value) {
    if (value < 1) {
      fail(ErrorCode::kConfig,
           absl::StrCat("model.linear.", field, " is ", value, "; it must be at least 1"));
    }
  };
  if (c.linear.kind == LinearVariant::kGla && !c.linear.lrpe_layers.empty()) {
    fail(ErrorCode::kConfig,
         "model.linear.lrpe_layers is set, but gates of model.linear.kind gla are for each "
         "dimension, which relative positions would double; remove one of the two");
  }
  at_least_one("heads", c.linear_heads());
  at_least_one("head_dim", c.linear_head_dim());
  for (const int64_t layer : c.linear.lrpe_layers) {
    if (layer >= 0 && layer < c.layers && c.is_linear(layer)) continue;
    fail(ErrorCode::kConfig,
         absl::StrCat("model.linear.lrpe_layers names layer ", layer,
                      layer >= 0 && layer < c.layers
                          ? ", which has softmax attention by model.pattern"
                          : absl::StrCat(", but layers are 0 to ", c.layers - 1),
                      "; name layers with linear attention"));
  }
}

std::string describe_scaling(const kernels::RopeScaling& s) {
  using Kind = kernels::RopeScalingKind;
  const std::string factor = absl::StrCat("factor ", s.factor);
  const std::string original = absl::StrCat(", original length ", s.original_length);
  if (s.kind == Kind::kLlama3) {  // as before there were others
    return absl::StrCat(factor, ", low ", s.low_frequency_factor, ", high ",
                        s.high_frequency_factor, original);
  }
  const std::string kind = absl::StrCat(std::string(name_of(s.kind)), ", ", factor);
  if (s.kind == Kind::kLinear) return kind;
  if (s.kind == Kind::kDynamic) return kind + original;
  return absl::StrCat(kind, original, ", beta ", s.beta_fast, " to ", s.beta_slow,
                      s.truncate ? "" : " not truncated", ", amplitude ",
                      kernels::rope_amplitude({.scaling = s}));
}

// What only some models have, under the names of the configuration.
void describe_linear(const ModelConfig& c, std::map<std::string, std::string>& fields) {
  if (c.linear_layers() == 0) return;
  std::string pattern;
  for (int64_t l = 0; l < c.layers; ++l) pattern += c.is_linear(l) ? 'L' : 'N';
  const LinearConfig& linear = c.linear;
  fields["model.pattern"] = pattern;
  fields["model.linear.kind"] = name_of(linear_variants(), linear.kind);
  if (linear.kind == LinearVariant::kLightning) {
    fields["model.linear.slopes"] = name_of(slope_formulas(), linear.slopes);
  }
  fields["model.linear.feature"] = name_of(features(), linear.feature);
  fields["model.linear.value_feature"] = name_of(features(), linear.value_feature);
  fields["model.linear.gate"] = name_of(output_gates(), linear.gate);
  fields["model.linear.norm"] = name_of(output_norms(), linear.norm);
  fields["model.linear.heads"] = absl::StrCat(c.linear_heads());
  fields["model.linear.head_dim"] = absl::StrCat(c.linear_head_dim());
  if (!linear.lrpe_layers.empty()) {
    fields["model.linear.lrpe_layers"] = absl::StrJoin(linear.lrpe_layers, ",");
  }
}

}  // namespace

std::span<const Named<NormKind>> norm_kinds() { return kNorms; }
std::span<const Named<kernels::Activation>> mlp_gates() { return kMlpGates; }

std::span<const std::string_view> lora_projections() { return kLoraProjections; }

bool LoraConfig::adapts(std::string_view name) const {
  const std::string_view last = name.substr(name.rfind('.') + 1);
  return rank > 0 && std::ranges::find(projections, last) != projections.end();
}

bool ModelConfig::is_linear(int64_t layer) const {
  return !pattern.empty() && pattern[static_cast<size_t>(layer) % pattern.size()] == 'L';
}

int64_t ModelConfig::linear_layers() const {
  int64_t count = 0;
  for (int64_t layer = 0; layer < layers; ++layer) count += is_linear(layer) ? 1 : 0;
  return count;
}

bool ModelConfig::has_lrpe(int64_t layer) const {
  return std::ranges::find(linear.lrpe_layers, layer) != linear.lrpe_layers.end();
}

int64_t ModelConfig::parameters() const {
  const int64_t sinks = attention.sinks ? heads : 0;
  const int64_t biases = (attention.qkv_bias ? head_dim * (heads + 2 * kv_heads) : 0) +
                         (attention.output_bias ? width : 0);
  const int64_t softmax = width * head_dim * (2 * heads + 2 * kv_heads) + sinks + biases +
                          (attention.qk_norm ? 2 * head_dim : 0);
  const int64_t mlp = 3 * width * mlp_width;
  const int64_t norms = norm == NormKind::kRms ? (2 * layers + 1) * width : 0;
  const int64_t embeddings = vocabulary * width * (tied_embeddings ? 1 : 2);
  return embeddings + softmax_layers() * softmax + linear_layers() * linear_parameters(*this) +
         layers * mlp + norms + adapter_parameters();
}

int64_t ModelConfig::adapter_parameters() const {
  int64_t ends = 0;  // rows of A and columns of B have as many elements as a projection has ends
  const auto count = [&](const char* name, int64_t out, int64_t in) {
    if (lora.adapts(name)) ends += out + in;
  };
  for (int64_t layer = 0; layer < layers; ++layer) {
    const bool is_linear_layer = is_linear(layer);
    const int64_t inner = is_linear_layer ? linear_heads() * linear_head_dim() : heads * head_dim;
    const int64_t shared = is_linear_layer ? inner : kv_heads * head_dim;
    count("q_proj", inner, width);
    count("k_proj", shared, width);
    count("v_proj", shared, width);
    count("o_proj", width, inner);
    if (is_linear_layer && linear.gate) count("g_proj", inner, width);
    count("gate_proj", mlp_width, width);
    count("up_proj", mlp_width, width);
    count("down_proj", width, mlp_width);
  }
  return lora.rank * ends;
}

void ModelConfig::validate() const {
  const auto at_least_one = [](const char* field, int64_t value) {
    if (value < 1) {
      fail(ErrorCode::kConfig, absl::StrCat("model.", field, " is ", value,
                                            "; it must be at least 1: set it or choose a "
                                            "model.preset"));
    }
  };
  at_least_one("vocabulary", vocabulary);
  at_least_one("layers", layers);
  at_least_one("width", width);
  at_least_one("heads", heads);
  at_least_one("kv_heads", kv_heads);
  at_least_one("head_dim", head_dim);
  at_least_one("mlp_width", mlp_width);
  if (heads % kv_heads != 0) {
    fail(ErrorCode::kConfig,
         absl::StrCat("model.heads is ", heads, " and model.kv_heads is ", kv_heads,
                      "; every kv head serves the same number of query heads, so set kv_heads to a "
                      "divisor of ",
                      heads));
  }
  if (softmax_layers() > 0 && !attention.alibi && head_dim % 2 != 0) {
    fail(ErrorCode::kConfig, absl::StrCat("model.head_dim is ", head_dim,
                                          "; rotary embedding turns pairs, so set it to ",
                                          head_dim + 1, " or another even number"));
  }
  if (vocabulary > INT32_MAX) {
    fail(ErrorCode::kConfig,
         absl::StrCat("model.vocabulary is ", vocabulary, "; tokens are 32-bit, so at most ",
                      INT32_MAX, " are possible"));
  }
  check_pattern(*this);
  check_softmax(*this);
  check_linear(*this);
  check_lora(lora);
  if (!(norm_eps > 0)) {
    fail(ErrorCode::kConfig,
         absl::StrCat("model.norm_eps is ", norm_eps, "; it must be greater than 0, e.g. 1e-5"));
  }
  if (softmax_layers() > 0 && !attention.alibi && !(rope.theta > 0)) {
    fail(ErrorCode::kConfig, absl::StrCat("model.rope_theta is ", rope.theta,
                                          "; it must be greater than 0, e.g. 10000"));
  }
  if (attention.alibi && attention.prefix_length > 0) {
    fail(ErrorCode::kConfig,
         absl::StrCat("model.attention.alibi is true and model.attention.prefix_length is ",
                      attention.prefix_length,
                      "; ALiBi's bias is one of distance into the past, and queries of a prefix "
                      "also see later keys, so set one of the two"));
  }
}

std::map<std::string, std::string> ModelConfig::describe(DType dtype) const {
  std::map<std::string, std::string> fields{
      {"model.architecture", architecture},
      {"model.vocabulary", absl::StrCat(vocabulary)},
      {"model.layers", absl::StrCat(layers)},
      {"model.width", absl::StrCat(width)},
      {"model.heads", absl::StrCat(heads)},
      {"model.kv_heads", absl::StrCat(kv_heads)},
      {"model.head_dim", absl::StrCat(head_dim)},
      {"model.mlp_width", absl::StrCat(mlp_width)},
      {"model.norm_eps", absl::StrCat(norm_eps)},
      {"model.rope_theta", absl::StrCat(rope.theta)},
      {"model.tied_embeddings", tied_embeddings ? "true" : "false"},
      {"train.dtype", std::string(name(dtype))},
  };
  fields["model.rope_scaling"] = rope.scaling ? describe_scaling(*rope.scaling) : "none";
  if (attention.alibi || softmax_layers() == 0) {
    fields["model.rope_theta"] = fields["model.rope_scaling"] = "none";
  }
  if (attention.alibi) fields["model.attention.alibi"] = "true";
  if (attention.sliding_window > 0) {
    fields["model.attention.sliding_window"] = absl::StrCat(attention.sliding_window);
  }
  if (attention.prefix_length > 0) {
    fields["model.attention.prefix_length"] = absl::StrCat(attention.prefix_length);
  }
  if (attention.soft_cap > 0) fields["model.attention.soft_cap"] = absl::StrCat(attention.soft_cap);
  if (attention.sinks) fields["model.attention.sinks"] = "true";
  if (attention.qkv_bias) fields["model.attention.qkv_bias"] = "true";
  if (attention.output_bias) fields["model.attention.output_bias"] = "true";
  if (attention.qk_norm) fields["model.attention.qk_norm"] = "true";
  describe_linear(*this, fields);
  if (norm != NormKind::kRms) fields["model.norm"] = name_of(norm_kinds(), norm);
  if (mlp_gate != kernels::Activation::kSilu) {
    fields["model.mlp_gate"] = name_of(mlp_gates(), mlp_gate);
  }
  if (scale_embeddings) fields["model.scale_embeddings"] = "true";
  if (residual_scale > 0) fields["model.residual_scale"] = absl::StrCat(residual_scale);
  if (lora.rank > 0) {
    fields["lora.rank"] = absl::StrCat(lora.rank);
    fields["lora.alpha"] = absl::StrCat(lora.alpha);
    fields["lora.projections"] = absl::StrJoin(lora.projections, ",");
  }
  return fields;
}

}  // namespace longhaul::model
