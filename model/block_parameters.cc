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

parallel::Parameter BlockParameters::matrix(const std::string& name, int64_t out, int64_t in,
                                            double deviation) const {
  return store_.declare({.name = prefix_ + name + ".weight",
                         .shape = {out, in},
                         .initializer = {.standard_deviation = deviation},
                         .bucket = bucket_});
}

parallel::Parameter BlockParameters::linear(const std::string& name, int64_t out,
                                            int64_t in) const {
  return matrix(name, out, in, standard_deviation(config_));
}

parallel::Parameter BlockParameters::residual(const std::string& name, int64_t in) const {
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
                         .bucket = bucket_});
}

}  // namespace longhaul::model
