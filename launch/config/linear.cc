#include "launch/config/linear.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "launch/config/suggest.h"

namespace longhaul::launch {

namespace {

using model::Named;

[[noreturn]] void refuse(std::string_view field, const std::string& why) {
  fail(ErrorCode::kConfig, absl::StrCat(std::string(field), ": ", why));
}

template <class Value>
Value named(std::string_view field, const std::string& name, std::span<const Named<Value>> table) {
  std::vector<std::string> names;
  for (const Named<Value>& row : table) {
    if (row.name == name) return row.value;
    names.emplace_back(row.name);
  }
  refuse(field, absl::StrCat("there is no `", name, "`", suggestion(name, names)));
}

std::vector<int64_t> layer_list(const std::string& text) {
  std::vector<int64_t> layers;
  if (text.empty()) return layers;
  for (const std::string& part : std::vector<std::string>(absl::StrSplit(text, ','))) {
    int64_t layer = 0;
    if (!absl::SimpleAtoi(part, &layer) || layer < 0) {
      refuse("model.linear.lrpe_layers",
             absl::StrCat("`", part,
                          "` is not the number of a layer; write numbers from 0 on with "
                          "commas between them, e.g. 0,3"));
    }
    layers.push_back(layer);
  }
  std::ranges::sort(layers);
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  return layers;
}

std::string text(std::string_view name) { return std::string(name); }

// Something that no layer would have must not be ignored.
void refuse_unused(const Model& model) {
  const google::protobuf::Message& linear = model.linear();
  std::vector<const google::protobuf::FieldDescriptor*> set;
  linear.GetReflection()->ListFields(linear, &set);
  if (set.empty()) return;
  refuse(
      absl::StrCat("model.linear.", set.front()->name()),
      "is set, but no layer has linear attention; set model.pattern, e.g. to LLLN, or remove it");
}

void resolve_layers(Linear& linear, const Model& model, const model::ModelConfig& base) {
  const model::LinearConfig& from = base.linear;
  if (!linear.has_kind()) linear.set_kind(text(name_of(model::linear_variants(), from.kind)));
  const auto kind = named("model.linear.kind", linear.kind(), model::linear_variants());
  if (kind == model::LinearVariant::kLightning) {
    if (!linear.has_slopes()) {
      linear.set_slopes(text(name_of(model::slope_formulas(), from.slopes)));
    }
    named("model.linear.slopes", linear.slopes(), model::slope_formulas());
  } else if (linear.has_slopes()) {
    refuse("model.linear.slopes",
           absl::StrCat("is set, but kind ", linear.kind(),
                        " has no choice of slopes; remove it or set kind: lightning"));
  }
  if (!linear.has_feature()) linear.set_feature(text(name_of(model::features(), from.feature)));
  if (!linear.has_value_feature()) {
    linear.set_value_feature(text(name_of(model::features(), from.value_feature)));
  }
  if (!linear.has_gate()) linear.set_gate(text(name_of(model::output_gates(), from.gate)));
  if (!linear.has_norm()) linear.set_norm(text(name_of(model::output_norms(), from.norm)));
  if (!linear.has_heads()) linear.set_heads(from.heads > 0 ? from.heads : model.heads());
  if (!linear.has_head_dim()) {
    linear.set_head_dim(from.head_dim > 0 ? from.head_dim : model.head_dim());
  }
  if (!linear.has_lrpe_layers()) linear.set_lrpe_layers(absl::StrJoin(from.lrpe_layers, ","));
  for (const auto& [field, value] : {std::pair("model.linear.heads", linear.heads()),
                                     {"model.linear.head_dim", linear.head_dim()}}) {
    if (value < 1) refuse(field, absl::StrCat(value, " is too small; set it to 1 or more"));
  }
}

}  // namespace

void resolve_linear(Model& model, const model::ModelConfig& base) {
  if (!model.has_pattern()) model.set_pattern(base.pattern);
  if (!model.has_norm()) model.set_norm(text(name_of(model::norm_kinds(), base.norm)));
  if (!model.has_mlp_gate()) model.set_mlp_gate(text(name_of(model::mlp_gates(), base.mlp_gate)));
  if (!model.has_scale_embeddings()) model.set_scale_embeddings(base.scale_embeddings);
  if (!model.has_residual_scale()) model.set_residual_scale(base.residual_scale);
  const double scale = model.residual_scale();
  if (!std::isfinite(scale) || scale < 0) {
    refuse("model.residual_scale",
           absl::StrCat(scale, " is not a number from 0 on; 0 leaves residuals as they are"));
  }
  model::ModelConfig layers;
  layers.layers = model.layers();
  layers.pattern = model.pattern();
  if (layers.linear_layers() == 0) return refuse_unused(model);
  resolve_layers(*model.mutable_linear(), model, base);
}

void linear_config(const Model& from, model::ModelConfig& to) {
  to.pattern = from.pattern();
  to.norm = named("model.norm", from.norm(), model::norm_kinds());
  to.mlp_gate = named("model.mlp_gate", from.mlp_gate(), model::mlp_gates());
  to.scale_embeddings = from.scale_embeddings();
  to.residual_scale = from.residual_scale();
  if (to.linear_layers() == 0) return;
  const Linear& linear = from.linear();
  to.linear.kind = named("model.linear.kind", linear.kind(), model::linear_variants());
  if (linear.has_slopes()) {
    to.linear.slopes = named("model.linear.slopes", linear.slopes(), model::slope_formulas());
  }
  to.linear.feature = named("model.linear.feature", linear.feature(), model::features());
  to.linear.value_feature =
      named("model.linear.value_feature", linear.value_feature(), model::features());
  to.linear.gate = named("model.linear.gate", linear.gate(), model::output_gates());
  to.linear.norm = named("model.linear.norm", linear.norm(), model::output_norms());
  to.linear.heads = linear.heads();
  to.linear.head_dim = linear.head_dim();
  to.linear.lrpe_layers = layer_list(linear.lrpe_layers());
}

}  // namespace longhaul::launch
