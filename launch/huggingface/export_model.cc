#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "checkpoint/files.h"
#include "checkpoint/huggingface/floats.h"
#include "checkpoint/huggingface/weights.h"
#include "checkpoint/reader.h"
#include "launch/generate/trained_model.h"
#include "launch/huggingface/carried_files.h"
#include "launch/huggingface/config_json.h"
#include "launch/huggingface/convert_model.h"
#include "launch/huggingface/new_folder.h"
#include "launch/huggingface/parameters.h"

namespace longhaul::launch::huggingface {

namespace {

using checkpoint::Reader;

constexpr char kWeight[] = ".weight";

// Elements from `begin` on, as many as `out` has, in its type.
void read_as(const Reader& reader, const std::string& name, int64_t begin, const TensorView& out) {
  const DType stored = reader.tensors().at(name).dtype;
  if (stored == out.dtype()) return reader.read(name, begin, out);
  const Tensor buffer(stored, {out.elements()});
  reader.read(name, begin, buffer);
  const TensorView from = buffer;
  checkpoint::huggingface::convert(checkpoint::safetensors_name(stored),
                                   {from.raw(), static_cast<size_t>(from.bytes())}, out);
}

Tensor whole(const Reader& reader, const std::string& name) {
  Tensor values(DType::kF64, reader.tensors().at(name).shape);
  read_as(reader, name, 0, values);
  return values;
}

// W + scale B A, where A [rank, in] and B [out, rank] are small enough to be held.
class Merged {
 public:
  Merged(const Reader& reader, std::string name, double scale)
      : reader_(reader),
        name_(std::move(name)),
        scale_(scale),
        a_(whole(reader, stem(name_) + ".lora_A.weight")),
        b_(whole(reader, stem(name_) + ".lora_B.weight")) {}

  static std::string stem(const std::string& name) {
    return std::string(absl::StripSuffix(name, kWeight));
  }

  void read(int64_t begin, const TensorView& out) const {
    const Tensor sum(DType::kF64, {out.elements()});
    read_as(reader_, name_, begin, sum);
    const int64_t rank = a_.view().dim(0), in = a_.view().dim(1);
    const double *a = a_.view().data<double>(), *b = b_.view().data<double>();
    double* w = sum.view().data<double>();
    for (int64_t i = 0; i < out.elements(); ++i) {
      const int64_t row = (begin + i) / in, column = (begin + i) % in;
      double product = 0;
      for (int64_t r = 0; r < rank; ++r) product += b[row * rank + r] * a[r * in + column];
      w[i] += scale_ * product;
    }
    const TensorView from = sum;
    checkpoint::huggingface::convert("F64", {from.raw(), static_cast<size_t>(from.bytes())}, out);
  }

 private:
  const Reader& reader_;
  std::string name_;
  double scale_;
  Tensor a_, b_;
};

checkpoint::Source source_of(const Reader& reader, const std::string& name, DType dtype,
                             const Config& config) {
  if (!reader.tensors().contains(Merged::stem(name) + ".lora_A.weight")) {
    return {dtype, [&reader, name](int64_t begin, const TensorView& part) {
              read_as(reader, name, begin, part);
            }};
  }
  const double scale = config.lora().alpha() / static_cast<double>(config.lora().rank());
  // Read when it is this tensor's turn: all adapters together may be large.
  return {dtype, [&reader, name, scale, merged = std::shared_ptr<Merged>()](
                     int64_t begin, const TensorView& part) mutable {
            if (begin == 0) merged = std::make_shared<Merged>(reader, name, scale);
            merged->read(begin, part);
            if (begin + part.elements() == reader.tensors().at(name).shape.elements()) {
              merged.reset();
            }
          }};
}

DType exported_type(const ExportOptions& options, const Config& config) {
  if (options.dtype) return *options.dtype;
  return dtype(config) == DType::kBF16 ? DType::kBF16 : DType::kF32;
}

}  // namespace

std::string export_model(const ExportOptions& options) {
  const TrainedModel model = find_model(options.run);
  const Config config = resolved(model.config);
  const DType dtype = exported_type(options, config);
  const std::string carried = model.run.empty() ? "" : absl::StrCat(model.run, "/", kCarriedFolder);
  const std::string json =
      write_config(config.model(), dtype, model.config.data().sequence_length(),
                   carried.empty() ? "" : text_of(carried + "/config.json"));
  const Reader reader(model.checkpoint);

  std::vector<checkpoint::SafetensorsTensor> tensors;
  int64_t elements = 0;
  for (const NamedShape& parameter : parameters_of(config)) {
    if (absl::StrContains(parameter.name, ".lora_")) continue;  // merged
    const auto saved = reader.tensors().find(parameter.name);
    if (saved == reader.tensors().end() || saved->second.shape != parameter.shape) {
      fail(ErrorCode::kCheckpoint,
           absl::StrCat("checkpoint '", model.checkpoint, "' has no tensor '", parameter.name,
                        "' of shape ", parameter.shape.to_string(),
                        ", which a model of its configuration has; use another checkpoint"));
    }
    const auto dims = parameter.shape.dims();
    tensors.push_back({.name = parameter.name,
                       .shape = {dims.begin(), dims.end()},
                       .data = {},
                       .source = source_of(reader, parameter.name, dtype, config)});
    elements += parameter.shape.elements();
  }
  NewFolder folder(options.folder, model.checkpoint);
  if (!carried.empty() && checkpoint::exists(carried)) {
    copy_carried_files(carried, folder.partial());
  }
  write_text(absl::StrCat(folder.partial(), "/config.json"), json);
  checkpoint::huggingface::write_weights(folder.partial(), std::move(tensors), options.file_bytes);
  folder.finish();
  return absl::StrCat(options.folder, ": ", elements, " parameters as ", std::string(name(dtype)),
                      " from ", model.checkpoint);
}

}  // namespace longhaul::launch::huggingface
