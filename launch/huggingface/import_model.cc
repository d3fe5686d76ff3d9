#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/files.h"
#include "checkpoint/huggingface/floats.h"
#include "checkpoint/huggingface/weights.h"
#include "dist/local/local.h"
#include "launch/huggingface/carried_files.h"
#include "launch/huggingface/config_json.h"
#include "launch/huggingface/convert_model.h"
#include "launch/huggingface/new_folder.h"
#include "launch/huggingface/parameters.h"

namespace longhaul::launch::huggingface {

namespace {

using checkpoint::huggingface::Weights;

// Buffers that old versions stored, and an output layer that is the embedding.
bool may_be_left_out(const std::string& name, const Model& model) {
  return absl::EndsWith(name, ".rotary_emb.inv_freq") ||
         (model.tied_embeddings() && name == "lm_head.weight");
}

void check_tensors(const Weights& weights, const std::vector<NamedShape>& parameters,
                   const Model& model, const std::string& folder) {
  std::set<std::string> known;
  for (const NamedShape& parameter : parameters) {
    known.insert(parameter.name);
    const auto found = weights.tensors().find(parameter.name);
    if (found == weights.tensors().end()) {
      fail(ErrorCode::kCheckpoint,
           absl::StrCat("the weights in '", folder, "' lack tensor '", parameter.name,
                        "', which a model of its config.json has; download the folder again"));
    }
    const Weights::Entry& entry = found->second;
    if (checkpoint::huggingface::float_bytes(entry.dtype) == 0) {
      fail(ErrorCode::kCheckpoint,
           absl::StrCat("tensor '", parameter.name, "' in '", entry.file, "' is ", entry.dtype,
                        "; only F64, F32, BF16 and F16 can be read: get the model without "
                        "quantization"));
    }
    const auto dims = parameter.shape.dims();
    if (!std::ranges::equal(entry.shape, dims)) {
      std::string shape;
      for (const int64_t dim : entry.shape) absl::StrAppend(&shape, shape.empty() ? "" : ", ", dim);
      fail(ErrorCode::kCheckpoint,
           absl::StrCat("tensor '", parameter.name, "' in '", entry.file, "' is [", shape,
                        "], but by config.json it is ", parameter.shape.to_string()));
    }
  }
  for (const auto& [name, entry] : weights.tensors()) {
    if (known.contains(name) || may_be_left_out(name, model)) continue;
    fail(ErrorCode::kCheckpoint,
         absl::StrCat("tensor '", name, "' in '", entry.file,
                      "' has no place in a model of its config.json; Longhaul would compute "
                      "something else without it"));
  }
}

DType stored_type(const Weights& weights, const std::vector<NamedShape>& parameters) {
  const bool brief = std::ranges::all_of(parameters, [&](const NamedShape& parameter) {
    return weights.tensors().at(parameter.name).dtype == "BF16";
  });
  return brief ? DType::kBF16 : DType::kF32;
}

}  // namespace

std::string import_model(const ImportOptions& options) {
  const std::string json = absl::StrCat(options.folder, "/config.json");
  if (!checkpoint::exists(json)) {
    fail(ErrorCode::kCheckpoint,
         absl::StrCat("there is no '", json, "'; give the folder of a Hugging Face model"));
  }
  const std::string json_text = text_of(json);
  Config config;
  *config.mutable_model() = read_config(json_text, json);
  const std::vector<NamedShape> parameters = parameters_of(resolved(config));
  const Weights weights(options.folder);
  check_tensors(weights, parameters, config.model(), options.folder);
  const DType dtype = options.dtype.value_or(stored_type(weights, parameters));
  config.mutable_train()->set_dtype(dtype == DType::kBF16 ? Train::BF16 : Train::F32);

  NewFolder run(options.output, options.folder);
  const std::string carried = absl::StrCat(run.partial(), "/", kCarriedFolder);
  copy_carried_files(options.folder, carried);
  write_text(absl::StrCat(carried, "/config.json"), json_text);
  checkpoint::sync_folder(carried);
  write_text(absl::StrCat(run.partial(), "/config.txtpb"), to_text(config));

  checkpoint::State state;
  int64_t elements = 0;
  for (const NamedShape& parameter : parameters) {
    elements += parameter.shape.elements();
    state.push_back({.name = parameter.name,
                     .shape = parameter.shape,
                     .begin = 0,
                     .end = parameter.shape.elements(),
                     .data = {},
                     .source = checkpoint::Source{
                         dtype, [&weights, &parameter](int64_t begin, const TensorView& part) {
                           weights.read(parameter.name, begin, part);
                         }}});
  }
  const checkpoint::Info info{.step = 0,
                              .samples = 0,
                              .model = model_config(resolved(config)).describe(dtype),
                              .config = to_text(config),
                              .weights_only = true};
  const std::string directory = absl::StrCat(run.partial(), "/checkpoints");
  dist::run_local(1, std::chrono::seconds(60), [&](dist::Group& group) {
    checkpoint::save(group, directory, info, state, /*keep=*/0);
  });
  run.finish();
  return absl::StrCat(options.output, ": ", elements, " parameters as ", std::string(name(dtype)),
                      " from ", options.folder);
}

}  // namespace longhaul::launch::huggingface
