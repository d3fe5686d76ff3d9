// Prints loss and gradients of a run's model for given tokens, in f64 on one rank, as JSON, for
// huggingface_parity.py.
// usage: imported_gradients RUN TOKEN...
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>

#include "checkpoint/reader.h"
#include "launch/generate/trained_model.h"
#include "tests/model/model_run.h"

int main(int argc, char** argv) {
  using namespace longhaul;
  const launch::TrainedModel model = launch::find_model(argv[1]);
  test::ModelCase c;
  for (int i = 2; i < argc; ++i) c.tokens.push_back(std::atoi(argv[i]));
  const auto tokens = static_cast<int64_t>(c.tokens.size());
  c.config = launch::model_config(launch::inference_config(model.config, {}, tokens, 1, 1));
  c.config.attention.dropout = 0;
  c.options.dtype = DType::kF64;
  c.documents = parallel::Documents::whole(tokens);
  const checkpoint::Reader reader(model.checkpoint);
  for (const auto& [name, saved] : reader.tensors()) {
    const Tensor values(saved.dtype, saved.shape);
    reader.read(name, 0, values);
    std::vector<double>& to = c.values[name];
    visit_float(saved.dtype, [&]<class T>() {
      for (const T value : values.view().span<T>()) to.push_back(static_cast<double>(value));
    });
  }
  const test::ModelRun run = test::run_on_one_rank(c);
  std::cout << nlohmann::json{{"loss", run.loss}, {"gradients", run.gradients}}.dump();
  return 0;
}
