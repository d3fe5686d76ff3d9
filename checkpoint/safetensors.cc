#include "checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "kernels/core/transfer.h"

namespace longhaul::checkpoint {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr int64_t kChunk = int64_t{4} << 20;  // bytes

struct TypeName {
  DType dtype;
  std::string_view name;
};
constexpr std::array<TypeName, 5> kTypeNames{{{DType::kF32, "F32"},
                                              {DType::kF64, "F64"},
                                              {DType::kBF16, "BF16"},
                                              {DType::kI32, "I32"},
                                              {DType::kI64, "I64"}}};

}  // namespace

std::string_view safetensors_name(DType dtype) {
  for (const TypeName& type : kTypeNames) {
    if (type.dtype == dtype) return type.name;
  }
  LONGHAUL_CHECK(false, "every dtype has a name");
  return {};
}

std::optional<DType> dtype_from_safetensors(std::string_view name) {
  for (const TypeName& type : kTypeNames) {
    if (type.name == name) return type.dtype;
  }
  return std::nullopt;
}

static void write_source(OutputFile& file, const SafetensorsTensor& tensor,
                         const std::function<void()>& progress) {
  int64_t elements = 1;
  for (const int64_t dim : tensor.shape) elements *= dim;
  const int64_t chunk = kChunk / size_of(tensor.dtype());
  const Tensor buffer(tensor.dtype(), {std::min(chunk, elements)});
  for (int64_t begin = 0; begin < elements; begin += chunk) {
    const TensorView part = buffer.view().rows(0, std::min(chunk, elements - begin));
    tensor.source->read(begin, part);
    file.write({part.raw(), static_cast<size_t>(part.bytes())});
    if (progress) progress();
  }
}

void write_safetensors(OutputFile& file, std::vector<SafetensorsTensor> tensors,
                       const std::map<std::string, std::string>& metadata,
                       const std::function<void()>& progress) {
  LONGHAUL_CHECK(file.bytes() == 0, file.path());
  std::stable_sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return size_of(a.dtype()) > size_of(b.dtype());
  });
  nlohmann::json header = nlohmann::json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  int64_t end = 0;
  for (const SafetensorsTensor& tensor : tensors) {
    int64_t elements = 1;
    for (const int64_t dim : tensor.shape) elements *= dim;
    LONGHAUL_CHECK(
        tensor.source || (elements == tensor.data.elements() && tensor.data.contiguous()),
        tensor.name);
    LONGHAUL_CHECK(!header.contains(tensor.name), tensor.name);
    const int64_t begin = std::exchange(end, end + elements * size_of(tensor.dtype()));
    header[tensor.name] = {{"dtype", std::string(safetensors_name(tensor.dtype()))},
                           {"shape", tensor.shape},
                           {"data_offsets", {begin, end}}};
  }
  std::string json = header.dump();
  json.resize((json.size() + 7) / 8 * 8, ' ');
  if (static_cast<int64_t>(json.size()) > kMaxSafetensorsHeader) {
    fail(ErrorCode::kCheckpoint,
         absl::StrCat("'", file.path(), "' would need a header of ", json.size(),
                      " bytes, the format allows ", kMaxSafetensorsHeader,
                      ": spread the state over more ranks"));
  }
  const uint64_t length = json.size();
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(json);
  if (progress) progress();
  for (const SafetensorsTensor& tensor : tensors) {
    if (tensor.source) {
      write_source(file, tensor, progress);
      continue;
    }
    const ConstTensorView data = tensor.data.reshape({tensor.data.elements()});
    const int64_t chunk = kChunk / size_of(data.dtype());
    const OwnedStream stream(data.device());
    for (int64_t begin = 0; begin < data.elements(); begin += chunk) {
      const ConstTensorView part = data.rows(begin, std::min(chunk, data.elements() - begin));
      if (part.device() == kCpu) {
        file.write({part.raw(), static_cast<size_t>(part.bytes())});
      } else {
        const Tensor host = on_host(stream.get(), part);
        file.write({host.view().raw(), static_cast<size_t>(part.bytes())});
      }
      if (progress) progress();
    }
  }
}

SafetensorsFile::SafetensorsFile(std::string path)
    : file_(std::move(path)), header_(read_safetensors_header(file_)) {}

const SafetensorsEntry& SafetensorsFile::entry(const std::string& name) const {
  const auto found = header_.tensors.find(name);
  if (found == header_.tensors.end()) {
    fail(ErrorCode::kCheckpoint, absl::StrCat("'", path(), "' has no tensor '", name, "'"));
  }
  return found->second;
}

void SafetensorsFile::read_bytes(const std::string& name, int64_t begin,
                                 std::span<std::byte> out) const {
  const SafetensorsEntry& from = entry(name);
  const auto bytes = static_cast<int64_t>(out.size());
  LONGHAUL_CHECK(begin >= 0 && begin + bytes <= from.end - from.begin, name);
  file_.read(from.begin + begin, out);
}

void SafetensorsFile::read(const std::string& name, int64_t begin, const TensorView& out) const {
  const SafetensorsEntry& entry = this->entry(name);
  if (entry.dtype != safetensors_name(out.dtype())) {
    fail(ErrorCode::kCheckpoint,
         absl::StrCat("tensor '", name, "' in '", path(), "' is ", entry.dtype, ", not ",
                      std::string(safetensors_name(out.dtype()))));
  }
  const int64_t size = size_of(out.dtype());
  LONGHAUL_CHECK(
      out.contiguous() && begin >= 0 && begin + out.elements() <= (entry.end - entry.begin) / size,
      name);
  file_.read(entry.begin + begin * size, std::span(out.raw(), static_cast<size_t>(out.bytes())));
}

}  // namespace longhaul::checkpoint
