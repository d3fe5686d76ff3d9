#include "model/block_parameters.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace longhaul::model {

namespace {

// Small initialisation (Nguyen & Salazar 2019): 0.02 at width 1,000, more for narrow models, which
// would otherwise take long to leave the origin.
double standard_deviation(const ModelConfig& config) {
  return std::sqrt(2.0 / (5.0 * static_cast<double>(config.width)));
}

}  // namespace

BlockParameters::BlockParameters(const ModelConfig& config, parallel::ParameterStore& store,
                                 int64_t layer, int bucket)
    : config_(config),
      store_(store),
      prefix_(absl::StrCat("model.layers.", layer, ".")),
      bucket_(bucket) {}

Projection BlockParameters::matrix(const std::string& name, int64_t out, int64_t in,
                                   double deviation) const {
  const auto declare = [&](const char* part, const Shape& shape, double scatter, bool trained) {
    return store_.declare({.name = prefix_ + name + part + ".weight",
                           .shape = shape,
                           .initializer = {.standard_deviation = scatter},
                           .trained = trained,
                           .bucket = bucket_});
  };
  Projection projection{.weight = declare("", {out, in}, deviation, config_.trains_weights())};
  const LoraConfig& lora = config_.lora;
  if (!lora.adapts(name)) return projection;
  // As in PEFT: B = 0, so that training starts from the model as it is, and A with the variance of
  // Kaiming's uniform values.
  projection.adapter =
      Adapter{.down = declare(".lora_A", {lora.rank, in},
                              1 / std::sqrt(3.0 * static_cast<double>(in)), /*trained=*/true),
              .up = declare(".lora_B", {out, lora.rank}, 0.0, /*trained=*/true),
              .scale = lora.alpha / static_cast<double>(lora.rank)};
  return projection;
}

Projection BlockParameters::linear(const std::string& name, int64_t out, int64_t in) const {
  return matrix(name, out, in, standard_deviation(config_));
}

Projection BlockParameters::residual(const std::string& name, int64_t in) const {
  return matrix(name, config_.width, in,
                standard_deviation(config_) / std::sqrt(2.0 * static_cast<double>(config_.layers)));
}

parallel::Parameter BlockParameters::constant(const std::string& name, int64_t size,
                                              double value) const {
  return scattered(name, size, value, 0.0);
}

parallel::Parameter BlockParameters::scattered(const std::string& name, int64_t size, double value,
                                               double deviation) const {
  return store_.declare({.name = prefix_ + name,
                         .shape = {size},
                         .initializer = {.constant = value, .standard_deviation = deviation},
                         .weight_decay = false,
                         .trained = config_.trains_weights(),
                         .bucket = bucket_});
}

}  // namespace longhaul::model
