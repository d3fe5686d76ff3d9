#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "launch/huggingface/config_json.h"

namespace longhaul::launch::huggingface {

namespace {

using Json = nlohmann::ordered_json;

[[noreturn]] void refuse(const std::string& field) {
  fail(ErrorCode::kCheckpoint,
       absl::StrCat("model.", field,
                    " is set, and no model of type llama, mistral, qwen2 or qwen3 has that, so "
                    "there is no config.json for it; Longhaul's own checkpoint has the weights"));
}

void check_exportable(const Model& model) {
  const Attention& attention = model.attention();
  if (model.pattern().find('L') != std::string::npos) refuse("pattern");
  for (const auto& [field, is_set] :
       {std::pair("attention.prefix_length", attention.prefix_length() > 0),
        {"attention.soft_cap", attention.soft_cap() > 0},
        {"attention.alibi", attention.alibi()},
        {"attention.sinks", attention.sinks()},
        {"norm", model.has_norm() && model.norm() != "rms"},
        {"mlp_gate", model.has_mlp_gate() && model.mlp_gate() != "silu"},
        {"scale_embeddings", model.scale_embeddings()},
        {"residual_scale", model.residual_scale() > 0}}) {
    if (is_set) refuse(field);
  }
}

std::string type_of(const Model& model, const Json& base) {
  const Attention& attention = model.attention();
  const bool bias = attention.qkv_bias(), output = attention.output_bias(),
             window = attention.sliding_window() > 0;
  if (attention.qk_norm()) {
    if (bias != output) refuse(bias ? "attention.qkv_bias" : "attention.output_bias");
    return "qwen3";
  }
  if (bias && !output) return "qwen2";
  if (output && !bias) refuse("attention.output_bias");
  if (output && window) refuse("attention.sliding_window");
  // The two are the same otherwise; transformers wants Llama's width to be a multiple of the heads.
  const auto before = base.find("model_type");
  const bool was_mistral = before != base.end() && *before == "mistral";
  return !output && (window || was_mistral || model.width() % model.heads() != 0) ? "mistral"
                                                                                  : "llama";
}

Json scaling_of(const Model& model) {
  if (!model.has_rope_scaling()) return nullptr;
  const RopeScaling& scaling = model.rope_scaling();
  Json json = {{"rope_type", scaling.kind()}, {"factor", scaling.factor()}};
  if (scaling.kind() == "llama3" || scaling.kind() == "yarn") {
    json["original_max_position_embeddings"] = scaling.original_length();
  }
  if (scaling.kind() == "llama3") {
    json["low_freq_factor"] = scaling.low_frequency_factor();
    json["high_freq_factor"] = scaling.high_frequency_factor();
  }
  if (scaling.kind() == "yarn") {
    json["beta_fast"] = scaling.beta_fast();
    json["beta_slow"] = scaling.beta_slow();
    json["truncate"] = scaling.truncate();
    if (scaling.attention_factor() > 0) json["attention_factor"] = scaling.attention_factor();
    if (scaling.mscale() > 0) json["mscale"] = scaling.mscale();
    if (scaling.mscale_all_dim() > 0) json["mscale_all_dim"] = scaling.mscale_all_dim();
  }
  return json;
}

int64_t positions(const Model& model, int64_t length, const Json& base) {
  const bool dynamic = model.has_rope_scaling() && model.rope_scaling().kind() == "dynamic";
  if (dynamic) return model.rope_scaling().original_length();  // what its base grows from
  const auto before = base.find("max_position_embeddings");
  return std::max<int64_t>(
      {1, length,
       before != base.end() && before->is_number_integer() ? before->get<int64_t>() : 0});
}

std::string class_of(const std::string& type) {
  if (type == "llama") return "LlamaForCausalLM";
  if (type == "mistral") return "MistralForCausalLM";
  return type == "qwen2" ? "Qwen2ForCausalLM" : "Qwen3ForCausalLM";
}

}  // namespace

std::string write_config(const Model& model, DType dtype, int64_t length,
                         const std::string& base_text) {
  check_exportable(model);
  Json json = Json::parse(base_text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) json = Json::object();
  const std::string type = type_of(model, json);
  const Attention& attention = model.attention();
  json["max_position_embeddings"] = positions(model, length, json);
  // Under other names, or of another type's.
  for (const char* name : {"rope_parameters", "dtype", "original_max_position_embeddings",
                           "attention_bias", "mlp_bias", "sliding_window", "use_sliding_window",
                           "max_window_layers", "layer_types", "quantization_config"}) {
    json.erase(name);
  }
  json["architectures"] = {class_of(type)};
  json["model_type"] = type;
  json["vocab_size"] = model.vocabulary();
  json["num_hidden_layers"] = model.layers();
  json["hidden_size"] = model.width();
  json["num_attention_heads"] = model.heads();
  json["num_key_value_heads"] = model.kv_heads();
  json["head_dim"] = model.head_dim();
  json["intermediate_size"] = model.mlp_width();
  json["rms_norm_eps"] = model.norm_eps();
  json["hidden_act"] = "silu";
  json["tie_word_embeddings"] = model.tied_embeddings();
  json["attention_dropout"] = attention.dropout();
  json["rope_theta"] = model.rope_theta();
  json["rope_scaling"] = scaling_of(model);
  json["torch_dtype"] = dtype == DType::kBF16 ? "bfloat16" : "float32";
  if (type == "llama" || type == "qwen3") json["attention_bias"] = attention.output_bias();
  if (type == "mistral") {
    json["sliding_window"] =
        attention.sliding_window() > 0 ? Json(attention.sliding_window()) : Json(nullptr);
  }
  if ((type == "qwen2" || type == "qwen3") && attention.sliding_window() > 0) {
    json["use_sliding_window"] = true;
    json["sliding_window"] = attention.sliding_window();
    json["max_window_layers"] = 0;
  }
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace longhaul::launch::huggingface
