#include "checkpoint/manifest.h"

#include "absl/strings/str_cat.h"
#include "checkpoint/checksum.h"
#include "checkpoint/files.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/store.h"
#include "kernels/core/error.h"

namespace longhaul::checkpoint {
namespace {

constexpr int64_t kMaxManifest = int64_t{1} << 30;

[[noreturn]] void damaged(const std::string& path, const std::string& why) {
  fail(ErrorCode::kCheckpoint,
       absl::StrCat("checkpoint '", path, "' is damaged: ", why,
                    "; delete or move this folder to go on from an earlier one"));
}

void check_file(const proto::File& file, const std::string& path) {
  const bool plain = !file.name().empty() && file.name() != "." && file.name() != ".." &&
                     file.name().find('/') == std::string::npos &&
                     file.name().find('\0') == std::string::npos;
  if (!plain) damaged(path, absl::StrCat("its manifest has the file name '", file.name(), "'"));
  if (file.bytes() < 0) damaged(path, absl::StrCat("'", file.name(), "' has a negative size"));
}

void check_tensor(const proto::Tensor& tensor, int files, const std::string& path) {
  const auto wrong = [&](const std::string& why) {
    damaged(path, absl::StrCat("in its manifest, tensor '", tensor.name(), "' ", why));
  };
  const auto dtype = dtype_from_safetensors(tensor.dtype());
  if (!dtype) wrong(absl::StrCat("has the unknown dtype '", tensor.dtype(), "'"));
  if (tensor.shape_size() > Shape::kMaxRank) {
    wrong(absl::StrCat("has ", tensor.shape_size(), " dimensions"));
  }
  // Bytes must fit, too.
  int64_t bytes = size_of(*dtype);
  for (const int64_t dim : tensor.shape()) {
    if (dim < 0 || __builtin_mul_overflow(bytes, dim, &bytes)) wrong("has an impossible shape");
  }
  int64_t end = 0;
  for (const proto::Slice& slice : tensor.slices()) {
    if (slice.begin() != end || slice.end() <= slice.begin()) {
      wrong(absl::StrCat("has the slice [", slice.begin(), ", ", slice.end(),
                         ") where one from element ", end, " on belongs"));
    }
    if (slice.file() < 0 || slice.file() >= files) {
      wrong(absl::StrCat("is in file number ", slice.file(), " of ", files));
    }
    end = slice.end();
  }
  if (end != bytes / size_of(*dtype)) {
    wrong(absl::StrCat("has slices for ", end, " of ", bytes / size_of(*dtype), " elements"));
  }
}

}  // namespace

std::string read_manifest(const std::string& path) {
  if (!exists(path)) {
    fail(ErrorCode::kCheckpoint, absl::StrCat("there is no checkpoint '", path,
                                              "': check the path, or train without resuming"));
  }
  const auto expected = marked_checksum(path);
  if (!expected) {
    fail(ErrorCode::kCheckpoint,
         absl::StrCat("'", path, "' is no complete checkpoint: its file ", kMarkerFile,
                      " is missing or incomplete, so its save did not finish; use another one"));
  }
  std::string bytes = read_file(absl::StrCat(path, "/", kManifestFile), kMaxManifest);
  const std::string found = to_hex(checksum_of(bytes));
  if (found != *expected) {
    damaged(path, absl::StrCat(kManifestFile, " has checksum ", found, ", but ", kMarkerFile,
                               " says ", *expected));
  }
  return bytes;
}

proto::Manifest parse_manifest(const std::string& bytes, const std::string& path) {
  proto::Manifest manifest;
  if (!manifest.ParseFromString(bytes)) damaged(path, "its manifest is no Protobuf message");
  if (manifest.format() != kFormat) {
    fail(ErrorCode::kCheckpoint,
         absl::StrCat("checkpoint '", path, "' has format ", manifest.format(),
                      ", this program reads format ", kFormat,
                      ": use the version of Longhaul that saved it"));
  }
  for (const proto::File& file : manifest.files()) check_file(file, path);
  const std::string* previous = nullptr;
  for (const proto::Tensor& tensor : manifest.tensors()) {
    if (previous != nullptr && tensor.name() <= *previous) {
      damaged(path, absl::StrCat("in its manifest, tensor '", tensor.name(), "' is out of order"));
    }
    check_tensor(tensor, manifest.files_size(), path);
    previous = &tensor.name();
  }
  return manifest;
}

Info info_of(const proto::Manifest& manifest) {
  Info info;
  info.step = manifest.step();
  info.samples = manifest.samples();
  for (const auto& [name, value] : manifest.model()) info.model.emplace(name, value);
  info.config = manifest.config();
  info.weights_only = manifest.weights_only();
  return info;
}

void set_info(proto::Manifest& manifest, const Info& info) {
  manifest.set_step(info.step);
  manifest.set_samples(info.samples);
  for (const auto& [name, value] : info.model) (*manifest.mutable_model())[name] = value;
  manifest.set_config(info.config);
  manifest.set_weights_only(info.weights_only);
}

void check_model(const std::map<std::string, std::string>& running, const Info& saved,
                 const std::string& path) {
  const auto value_in = [](const std::map<std::string, std::string>& model,
                           const std::string& name) {
    const auto found = model.find(name);
    return found == model.end() ? std::string("not set") : absl::StrCat("'", found->second, "'");
  };
  std::map<std::string, std::string> names = running;
  names.insert(saved.model.begin(), saved.model.end());
  for (const auto& [name, value] : names) {
    const std::string ours = value_in(running, name), theirs = value_in(saved.model, name);
    if (ours == theirs) continue;
    fail(ErrorCode::kCheckpoint,
         absl::StrCat("checkpoint '", path, "' is of another model: ", name, " is ", theirs,
                      " in the checkpoint and ", ours, " in this run: set ", name,
                      " as in the checkpoint or choose another checkpoint directory"));
  }
}

}  // namespace longhaul::checkpoint
