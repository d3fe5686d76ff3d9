#include "launch/huggingface/parameters.h"

#include "launch/generate/trained_model.h"
#include "model/model.h"

namespace longhaul::launch::huggingface {

std::vector<NamedShape> parameters_of(const Config& config) {
  const model::ModelConfig model = model_config(config);
  parallel::ParameterStore store(dtype(config), 1);
  const auto network =
      model::architecture(model.architecture).make(model, {.dtype = dtype(config)}, store);
  std::vector<NamedShape> parameters;
  for (const auto& entry : store.entries())
    parameters.push_back({entry.spec.name, entry.spec.shape});
  return parameters;
}

Config resolved(const Config& config) {
  return inference_config(config, {}, /*tokens=*/1, /*ranks=*/1, /*threads=*/1);
}

}  // namespace longhaul::launch::huggingface
