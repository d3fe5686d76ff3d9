#include "checkpoint/reader.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "checkpoint/files.h"
#include "checkpoint/manifest.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/slices.h"
#include "kernels/core/error.h"

namespace longhaul::checkpoint {

namespace {

std::map<std::string, SavedTensor> tensors_of(const proto::Manifest& manifest) {
  std::map<std::string, SavedTensor> tensors;
  for (const proto::Tensor& tensor : manifest.tensors()) {
    const std::vector<int64_t> dims(tensor.shape().begin(), tensor.shape().end());
    tensors.emplace(tensor.name(), SavedTensor{.dtype = *dtype_from_safetensors(tensor.dtype()),
                                               .shape = Shape(std::span<const int64_t>(dims))});
  }
  return tensors;
}

void verify(const std::string& path, const proto::File& expected) {
  constexpr int64_t kChunk = int64_t{4} << 20;
  const InputFile file(path);
  Checksum checksum;
  std::vector<std::byte> buffer(static_cast<size_t>(std::min(kChunk, file.bytes())));
  for (int64_t begin = 0; begin < file.bytes(); begin += kChunk) {
    const auto part =
        std::span(buffer).first(static_cast<size_t>(std::min(kChunk, file.bytes() - begin)));
    file.read(begin, part);
    checksum.add(part);
  }
  if (file.bytes() == expected.bytes() && checksum.value() == expected.checksum()) return;
  fail(ErrorCode::kCheckpoint,
       absl::StrCat("checkpoint file '", path, "' is damaged: it has ", file.bytes(),
                    " bytes with checksum ", to_hex(checksum.value()), ", the manifest says ",
                    expected.bytes(), " with ", to_hex(expected.checksum()),
                    "; use another checkpoint"));
}

}  // namespace

struct Reader::Files {
  std::string path;
  proto::Manifest manifest;
  std::map<int, SafetensorsFile> open;  // as read from

  const SafetensorsFile& file(int index) {
    if (const auto found = open.find(index); found != open.end()) return found->second;
    const std::string name = absl::StrCat(path, "/", manifest.files(index).name());
    verify(name, manifest.files(index));
    return open.try_emplace(index, name).first->second;
  }
};

std::map<std::string, SavedTensor> saved_tensors(const std::string& path) {
  return tensors_of(parse_manifest(read_manifest(path), path));
}

Reader::Reader(const std::string& path) : files_(std::make_unique<Files>()) {
  files_->path = path;
  files_->manifest = parse_manifest(read_manifest(path), path);
  info_ = info_of(files_->manifest);
  tensors_ = tensors_of(files_->manifest);
}

Reader::~Reader() = default;

void Reader::read(const std::string& name, int64_t begin, const TensorView& out) const {
  const auto& tensors = files_->manifest.tensors();
  const auto tensor = std::lower_bound(tensors.begin(), tensors.end(), name,
                                       [](const proto::Tensor& stored, const std::string& wanted) {
                                         return stored.name() < wanted;
                                       });
  LONGHAUL_CHECK(tensor != tensors.end() && tensor->name() == name, name);
  const TensorView flat = out.reshape({out.elements()});
  const int64_t end = begin + flat.elements();
  for (const proto::Slice& slice : tensor->slices()) {
    const int64_t from = std::max(begin, slice.begin()), to = std::min(end, slice.end());
    if (from >= to) continue;
    files_->file(slice.file())
        .read(slice_key(name, slice.begin(), slice.end()), from - slice.begin(),
              flat.rows(from - begin, to - from));
  }
}

}  // namespace longhaul::checkpoint
