#include "checkpoint/huggingface/weights.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoint/huggingface/floats.h"
#include "checkpoint/huggingface/index.h"
#include "kernels/core/error.h"

namespace longhaul::checkpoint::huggingface {

namespace {

constexpr int64_t kMaxIndex = 100'000'000;    // bytes, as of a header
constexpr int64_t kChunk = int64_t{1} << 20;  // elements

}  // namespace

Weights::Weights(const std::string& folder) {
  const std::string index = absl::StrCat(folder, "/", kIndexFile);
  const std::string single = absl::StrCat(folder, "/", kSingleFile);
  if (!exists(index)) {
    if (!exists(single)) {
      fail(ErrorCode::kCheckpoint,
           absl::StrCat("'", folder, "' has neither ", kSingleFile, " nor ", kIndexFile,
                        "; give a folder of a model with safetensors weights"));
    }
    add_file(single);
    return;
  }
  const std::map<std::string, std::string> file_of =
      parse_index(read_file(index, kMaxIndex), index);
  std::set<std::string> names;
  for (const auto& [tensor, file] : file_of) names.insert(file);
  for (const std::string& name : names) add_file(absl::StrCat(folder, "/", name));
  for (const auto& [tensor, file] : file_of) {
    const auto found = tensors_.find(tensor);
    const std::string path = absl::StrCat(folder, "/", file);
    if (found == tensors_.end() || found->second.file != path) {
      fail(ErrorCode::kCheckpoint,
           absl::StrCat("'", index, "' says that tensor '", tensor, "' is in '", file,
                        "', but it is not there; "
                        "download the folder again"));
    }
  }
}

void Weights::add_file(const std::string& path) {
  const SafetensorsFile& file = files_.try_emplace(path, path).first->second;
  for (const auto& [name, entry] : file.header().tensors) {
    if (!tensors_.emplace(name, Entry{entry.dtype, entry.shape, path}).second) {
      fail(ErrorCode::kCheckpoint,
           absl::StrCat("tensor '", name, "' is in '", path, "' and in '", tensors_.at(name).file,
                        "'; download the folder again"));
    }
  }
}

void Weights::read(const std::string& name, int64_t begin, const TensorView& out) const {
  const Entry& entry = tensors_.at(name);
  const int64_t size = float_bytes(entry.dtype);
  LONGHAUL_CHECK(size > 0, name);
  const TensorView flat = out.reshape({out.elements()});
  std::vector<std::byte> buffer(static_cast<size_t>(std::min(kChunk, flat.elements()) * size));
  for (int64_t at = 0; at < flat.elements(); at += kChunk) {
    const TensorView part = flat.rows(at, std::min(kChunk, flat.elements() - at));
    const auto bytes = std::span(buffer).first(static_cast<size_t>(part.elements() * size));
    files_.at(entry.file).read_bytes(name, (begin + at) * size, bytes);
    convert(entry.dtype, bytes, part);
  }
}

void write_weights(const std::string& folder, std::vector<SafetensorsTensor> tensors,
                   int64_t file_bytes) {
  std::vector<std::vector<SafetensorsTensor>> files;
  int64_t total = 0, in_file = 0;
  for (SafetensorsTensor& tensor : tensors) {
    int64_t bytes = size_of(tensor.dtype());
    for (const int64_t dim : tensor.shape) bytes *= dim;
    if (files.empty() || in_file + bytes > file_bytes) {
      files.emplace_back();
      in_file = 0;
    }
    files.back().push_back(std::move(tensor));
    in_file += bytes;
    total += bytes;
  }
  std::map<std::string, std::string> file_of;
  for (size_t i = 0; i < files.size(); ++i) {
    const std::string name =
        files.size() == 1 ? kSingleFile
                          : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, files.size());
    for (const SafetensorsTensor& tensor : files[i]) file_of.emplace(tensor.name, name);
    OutputFile file(absl::StrCat(folder, "/", name));
    // As transformers expects of files that it opens.
    write_safetensors(file, std::move(files[i]), {{"format", "pt"}});
    file.finish();
  }
  if (files.size() < 2) return;
  OutputFile index(absl::StrCat(folder, "/", kIndexFile));
  index.write(index_text(file_of, total));
  index.finish();
}

}  // namespace longhaul::checkpoint::huggingface
