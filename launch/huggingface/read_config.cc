#include <algorithm>
#include <array>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "launch/huggingface/config_fields.h"
#include "launch/huggingface/config_json.h"

namespace longhaul::launch::huggingface {

namespace {

using Json = nlohmann::json;

// Fields under which other models of the same name compute something else, unless they are null,
// false, 0 or the value that says so.
void refuse_other_models(const Fields& fields) {
  for (const char* name :
       {"quantization_config", "num_experts", "num_local_experts", "n_routed_experts", "mlp_bias",
        "attn_logit_softcapping", "final_logit_softcapping", "logit_softcapping", "use_mla",
        "add_cross_attention", "is_encoder_decoder", "vision_config", "adapter_config"}) {
    if (!fields.has(name)) continue;
    const Json& value = fields.value(name);
    const bool off = (value.is_boolean() && !value.get<bool>()) ||
                     (value.is_number() && value.get<double>() == 0);
    if (!off) {
      fields.refuse(name,
                    "Longhaul's models do not have that: import a model without it (of a quantized "
                    "one, the original)");
    }
  }
  if (fields.number("partial_rotary_factor", 1.0) != 1.0) {
    fields.refuse("partial_rotary_factor", "only RoPE of whole heads, 1.0, is known");
  }
  if (const std::string act = fields.text("hidden_act", "silu"); act != "silu" && act != "swish") {
    fields.refuse("hidden_act", "only \"silu\" is known");
  }
}

void check_class(const Fields& fields) {
  if (!fields.has("architectures")) return;
  const Json& names = fields.value("architectures");
  const bool fits = names.is_array() && names.size() == 1 && names[0].is_string() &&
                    names[0].get<std::string>().ends_with("ForCausalLM");
  if (!fits) {
    fields.refuse("architectures", "only language models, one class ...ForCausalLM, are known");
  }
}

struct Scaling {
  std::string prefix;
  const Json* object = nullptr;
};

// "rope_scaling", or, since transformers 5, "rope_parameters", which has the base, too.
Scaling scaling_of(const Fields& fields) {
  for (const char* name : {"rope_parameters", "rope_scaling"}) {
    if (!fields.has(name)) continue;
    if (!fields.value(name).is_object()) fields.refuse(name, "it must be an object");
    return {.prefix = absl::StrCat(name, "."), .object = &fields.value(name)};
  }
  return {};
}

void read_rope(const Fields& fields, const std::string& path, Model& model) {
  constexpr double kTheta = 10000.0;
  const Scaling found = scaling_of(fields);
  model.set_rope_theta(fields.number("rope_theta", kTheta));
  if (found.object == nullptr) return;
  const Fields rope(*found.object, path, found.prefix);
  model.set_rope_theta(rope.number("rope_theta", model.rope_theta()));
  if (rope.number("partial_rotary_factor", 1.0) != 1.0) {
    rope.refuse("partial_rotary_factor", "only RoPE of whole heads, 1.0, is known");
  }
  const char* type_name = rope.has("rope_type") ? "rope_type" : "type";
  const std::string kind = rope.text(type_name, "default");
  if (kind == "default") return;
  constexpr std::array<const char*, 4> kKnown = {"linear", "dynamic", "yarn", "llama3"};
  if (std::ranges::find(kKnown, kind) == kKnown.end()) {
    rope.refuse(type_name, "known are default, linear, dynamic, yarn and llama3");
  }
  RopeScaling& scaling = *model.mutable_rope_scaling();
  scaling.set_kind(kind);
  if (kind == "dynamic") {
    scaling.set_original_length(fields.integer("max_position_embeddings"));
  } else if (kind != "linear") {
    // Outside of the object first, as transformers has it.
    scaling.set_original_length(fields.has("original_max_position_embeddings")
                                    ? fields.integer("original_max_position_embeddings")
                                    : rope.integer("original_max_position_embeddings",
                                                   fields.integer("max_position_embeddings", 0)));
    if (scaling.original_length() < 1) {
      rope.refuse("original_max_position_embeddings", "it must be at least 1");
    }
  }
  if (kind == "yarn" && !rope.has("factor")) {
    scaling.set_factor(static_cast<double>(fields.integer("max_position_embeddings")) /
                       static_cast<double>(scaling.original_length()));
  } else {
    scaling.set_factor(rope.number("factor"));
  }
  if (kind == "llama3") {
    scaling.set_low_frequency_factor(rope.number("low_freq_factor"));
    scaling.set_high_frequency_factor(rope.number("high_freq_factor"));
  }
  if (kind != "yarn") return;
  scaling.set_beta_fast(rope.number("beta_fast", 32.0));
  scaling.set_beta_slow(rope.number("beta_slow", 1.0));
  scaling.set_truncate(rope.flag("truncate", true));
  // 0 is ours for none; transformers would multiply by it.
  if (rope.has("attention_factor") && rope.number("attention_factor") <= 0) {
    rope.refuse("attention_factor", "it must be greater than 0");
  }
  for (const char* name : {"mscale", "mscale_all_dim"}) {
    if (rope.number(name, 0.0) < 0) rope.refuse(name, "it must not be negative");
  }
  scaling.set_attention_factor(rope.number("attention_factor", 0.0));
  scaling.set_mscale(rope.number("mscale", 0.0));
  scaling.set_mscale_all_dim(rope.number("mscale_all_dim", 0.0));
}

// One window for all layers, or none.
void read_layer_types(const Fields& fields, int64_t layers, int64_t window, Attention& attention) {
  const Json& types = fields.value("layer_types");
  int64_t sliding = 0, full = 0;
  if (types.is_array()) {
    sliding = std::ranges::count(types, Json("sliding_attention"));
    full = std::ranges::count(types, Json("full_attention"));
  }
  if (!types.is_array() || (sliding != layers && full != layers) ||
      static_cast<int64_t>(types.size()) != layers) {
    fields.refuse("layer_types",
                  absl::StrCat("it must be full_attention or sliding_attention for all ", layers,
                               " layers alike"));
  }
  if (sliding > 0 && window < 1) fields.refuse("sliding_window", "layer_types asks for a window");
  attention.set_sliding_window(sliding > 0 ? window : 0);
}

void read_window(const Fields& fields, const std::string& type, bool null_window, Model& model) {
  Attention& attention = *model.mutable_attention();
  attention.set_sliding_window(0);
  if (type == "llama") return;  // which ignores it
  constexpr int64_t kDefault = 4096;
  if (type == "mistral") {
    attention.set_sliding_window(null_window ? 0 : fields.integer("sliding_window", kDefault));
    if (attention.sliding_window() < 0) fields.refuse("sliding_window", "it must not be negative");
    return;
  }
  if (!fields.flag("use_sliding_window", false)) {
    // Layers that are said to slide have no window then.
    return;
  }
  const int64_t window = null_window ? 0 : fields.integer("sliding_window", kDefault);
  if (fields.has("layer_types")) {
    return read_layer_types(fields, model.layers(), window, attention);
  }
  const int64_t first = fields.integer("max_window_layers", 28);
  if (window == 0 || first >= model.layers()) return;
  if (first > 0) {
    fields.refuse("max_window_layers",
                  absl::StrCat("layers before it attend to all tokens and those from it on to a "
                               "window of ",
                               window, "; Longhaul has one window for all layers"));
  }
  attention.set_sliding_window(window);
}

// Products of two sizes are far from the limits of 64 bits then, and layers can be counted.
void check_sizes(const Fields& fields, const Model& model) {
  constexpr int64_t kLargest = int64_t{1} << 31, kMostLayers = 10'000;
  for (const auto& [name, value, most] :
       {std::tuple("vocab_size", model.vocabulary(), kLargest - 1),
        {"num_hidden_layers", model.layers(), kMostLayers},
        {"hidden_size", model.width(), kLargest},
        {"num_attention_heads", model.heads(), kLargest},
        {"num_key_value_heads", model.kv_heads(), kLargest},
        {"head_dim", model.head_dim(), kLargest},
        {"intermediate_size", model.mlp_width(), kLargest}}) {
    if (value < 1 || value > most) {
      fields.refuse(
          name, absl::StrCat("for this model it would be ", value, ", and it must be 1 to ", most));
    }
  }
  // Of both, which are projected to.
  if (model.heads() > kLargest / model.head_dim() ||
      model.kv_heads() > kLargest / model.head_dim()) {
    fields.refuse("head_dim", absl::StrCat("all heads together would be wider than ", kLargest));
  }
}

// Of a config.json that does not say it, in transformers.
int64_t default_kv_heads(const std::string& type, int64_t heads) {
  if (type == "llama") return heads;
  return type == "mistral" ? 8 : 32;
}

}  // namespace

Model read_config(const std::string& text, const std::string& path) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    fail(ErrorCode::kCheckpoint, absl::StrCat(path, " is no JSON object; download it again"));
  }
  const Fields fields(json, path);
  const std::string type = fields.text("model_type");
  constexpr std::array<const char*, 4> kKnown = {"llama", "mistral", "qwen2", "qwen3"};
  if (std::ranges::find(kKnown, type) == kKnown.end()) {
    fields.refuse("model_type", "known are llama, mistral, qwen2 and qwen3");
  }
  check_class(fields);
  refuse_other_models(fields);

  Model model;
  model.set_architecture("llama");
  model.set_vocabulary(fields.integer("vocab_size"));
  model.set_layers(fields.integer("num_hidden_layers"));
  model.set_width(fields.integer("hidden_size"));
  model.set_heads(fields.integer("num_attention_heads"));
  if (model.heads() < 1) fields.refuse("num_attention_heads", "it must be at least 1");
  model.set_kv_heads(
      fields.integer("num_key_value_heads", json.contains("num_key_value_heads")
                                                ? model.heads()  // null
                                                : default_kv_heads(type, model.heads())));
  model.set_head_dim(
      fields.integer("head_dim", type == "qwen3" ? 128 : model.width() / model.heads()));
  model.set_mlp_width(fields.integer("intermediate_size"));
  check_sizes(fields, model);
  model.set_norm_eps(fields.number("rms_norm_eps", 1e-6));
  model.set_tied_embeddings(fields.flag("tie_word_embeddings", false));

  Attention& attention = *model.mutable_attention();
  const bool bias = fields.flag("attention_bias", false);
  if (bias && type == "mistral") {
    fields.refuse("attention_bias", "models of model_type mistral have none");
  }
  // Qwen2 has them whatever it says, and none at the output.
  attention.set_qkv_bias(type == "qwen2" || bias);
  attention.set_output_bias(type != "qwen2" && bias);
  attention.set_qk_norm(type == "qwen3");
  attention.set_dropout(fields.number("attention_dropout", 0.0));
  read_window(fields, type, json.contains("sliding_window") && json["sliding_window"].is_null(),
              model);
  read_rope(fields, path, model);
  return model;
}

}  // namespace longhaul::launch::huggingface
