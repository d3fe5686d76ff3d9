// Models between Hugging Face folders (config.json, safetensors) and Longhaul's checkpoints, tensor
// by tensor, in memory that does not grow with the model.
#pragma once

#include <optional>
#include <string>

#include "kernels/core/dtype.h"

namespace longhaul::launch::huggingface {

struct ImportOptions {
  std::string folder;
  std::string output;          // run folder to make
  std::optional<DType> dtype;  // of the stored weights: kBF16 or kF32; none: BF16 if all are
};

// Makes a run folder: config.txtpb with what the model is, huggingface/ with the tokenizer's and
// other files as they came, and checkpoints/step-00000000 with the weights alone. Returns what it
// did, for people. Throws Error(kCheckpoint), e.g. naming what the model has and Longhaul has not.
std::string import_model(const ImportOptions& options);

struct ExportOptions {
  std::string run;             // or a checkpoint
  std::string folder;          // to make
  std::optional<DType> dtype;  // kBF16 or kF32; none: that of train.dtype (F32 for F64)
  int64_t file_bytes = 5'000'000'000;
};

// Writes a folder that transformers opens. Adapters are merged: W + alpha / rank B A.
std::string export_model(const ExportOptions& options);

}  // namespace longhaul::launch::huggingface
