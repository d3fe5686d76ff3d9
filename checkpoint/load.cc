#include <algorithm>

#include "absl/strings/str_cat.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/files.h"
#include "checkpoint/manifest.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/slices.h"
#include "checkpoint/store.h"
#include "kernels/core/error.h"
#include "kernels/core/transfer.h"

namespace longhaul::checkpoint {
namespace {

constexpr std::string_view kWhat = "checkpoint load";
constexpr int64_t kChunk = int64_t{4} << 20;

// Bytes [begin, end) of a file go to `to`.
struct Copy {
  int64_t begin = 0;
  int64_t end = 0;
  std::byte* to = nullptr;
};

// Part of a stored slice that this rank needs.
struct Need {
  std::string key;  // in the file
  DType dtype = DType::kF32;
  int64_t elements = 0;  // of the stored slice
  int64_t begin = 0;     // elements [begin, end) of it
  int64_t end = 0;
  std::byte* to = nullptr;
};

[[noreturn]] void damaged(const std::string& path, const std::string& why) {
  fail(ErrorCode::kCheckpoint,
       absl::StrCat("checkpoint file '", path, "' is damaged: ", why,
                    "; delete or move its folder to go on from an earlier checkpoint"));
}

// Which parts of which files a slice of the running state consists of.
void add_needs(const Slice& slice, const proto::Manifest& manifest, const std::string& path,
               std::map<int, std::vector<Need>>& needs) {
  const auto tensor = std::lower_bound(
      manifest.tensors().begin(), manifest.tensors().end(), slice.name,
      [](const proto::Tensor& stored, const std::string& name) { return stored.name() < name; });
  if (tensor == manifest.tensors().end() || tensor->name() != slice.name) {
    fail(ErrorCode::kCheckpoint,
         absl::StrCat("checkpoint '", path, "' has no tensor '", slice.name,
                      "': it is of another model or optimizer; choose another checkpoint "
                      "directory or the configuration that it was saved with"));
  }
  const Shape shape(
      std::span<const int64_t>(tensor->shape().data(), static_cast<size_t>(tensor->shape_size())));
  const std::string dtype(safetensors_name(slice.data.dtype()));
  if (shape != slice.shape || tensor->dtype() != dtype) {
    fail(ErrorCode::kCheckpoint,
         absl::StrCat("tensor '", slice.name, "' is ", tensor->dtype(), shape.to_string(),
                      " in checkpoint '", path, "' and ", dtype, slice.shape.to_string(),
                      " in this run: use the model sizes and dtype it was saved with or choose "
                      "another checkpoint directory"));
  }
  auto stored = std::upper_bound(
      tensor->slices().begin(), tensor->slices().end(), slice.begin,
      [](int64_t begin, const proto::Slice& candidate) { return begin < candidate.end(); });
  for (; stored != tensor->slices().end() && stored->begin() < slice.end; ++stored) {
    const int64_t begin = std::max(slice.begin, stored->begin());
    const int64_t end = std::min(slice.end, stored->end());
    if (begin >= end) continue;
    needs[stored->file()].push_back(
        {slice_key(slice.name, stored->begin(), stored->end()), slice.data.dtype(),
         stored->end() - stored->begin(), begin - stored->begin(), end - stored->begin(),
         slice.data.raw() + (begin - slice.begin) * size_of(slice.data.dtype())});
  }
}

// Where in the file the needs are; verifies that the header agrees with the manifest.
std::vector<Copy> locate(const std::vector<Need>& needs, const SafetensorsHeader& header,
                         const std::string& path) {
  std::vector<Copy> copies;
  for (const Need& need : needs) {
    const auto found = header.tensors.find(need.key);
    if (found == header.tensors.end()) damaged(path, absl::StrCat("it lacks '", need.key, "'"));
    const SafetensorsEntry& entry = found->second;
    if (entry.dtype != safetensors_name(need.dtype) ||
        entry.shape != std::vector<int64_t>{need.elements}) {
      damaged(path, absl::StrCat("'", need.key, "' has another type or size than in the manifest"));
    }
    const int64_t size = size_of(need.dtype);
    copies.push_back({entry.begin + need.begin * size, entry.begin + need.end * size, need.to});
  }
  std::sort(copies.begin(), copies.end(),
            [](const Copy& a, const Copy& b) { return a.begin < b.begin; });
  return copies;
}

// Reads the file once: its checksum is of the same bytes that are copied out.
void read_shard(const std::string& path, const proto::File& expected,
                const std::vector<Need>& needs, const Stream& stream) {
  const InputFile file(path);
  if (file.bytes() != expected.bytes()) {
    damaged(path,
            absl::StrCat("it has ", file.bytes(), " bytes, the manifest says ", expected.bytes()));
  }
  const std::vector<Copy> copies = locate(needs, read_safetensors_header(file), path);
  Checksum checksum;
  std::vector<std::byte> buffer(static_cast<size_t>(std::min(kChunk, file.bytes())));
  std::vector<Copy> active;  // copies that have begun and not ended
  size_t next = 0;
  for (int64_t begin = 0; begin < file.bytes(); begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, file.bytes());
    const std::span chunk = std::span(buffer).first(static_cast<size_t>(end - begin));
    file.read(begin, chunk);
    checksum.add(chunk);
    while (next < copies.size() && copies[next].begin < end) active.push_back(copies[next++]);
    for (const Copy& copy : active) {
      const int64_t from = std::max(copy.begin, begin), to = std::min(copy.end, end);
      upload(stream,
             std::span(buffer).subspan(static_cast<size_t>(from - begin),
                                       static_cast<size_t>(to - from)),
             copy.to + (from - copy.begin));
    }
    std::erase_if(active, [&](const Copy& copy) { return copy.end <= end; });
  }
  if (checksum.value() != expected.checksum()) {
    damaged(path, absl::StrCat("its checksum is ", to_hex(checksum.value()), ", the manifest says ",
                               to_hex(expected.checksum())));
  }
}

}  // namespace

std::optional<std::string> latest(const std::string& directory) {
  const std::vector<Stored> all = Store(directory).complete();
  if (all.empty()) return std::nullopt;
  return all.back().path;
}

Info read_info(const std::string& path) {
  return info_of(parse_manifest(read_manifest(path), path));
}

Info load(dist::Group& world, const std::string& path,
          const std::map<std::string, std::string>& model, const State& state) {
  std::string bytes;
  world.agree(world.rank() == 0 ? attempt([&] { bytes = read_manifest(path); }) : std::nullopt,
              kWhat);
  bytes = world.broadcast(std::move(bytes), 0, kWhat);

  proto::Manifest manifest;
  std::map<int, std::vector<Need>> needs;  // by file
  world.agree(attempt([&] {
                holdings_of(state);  // verifies the state
                manifest = parse_manifest(bytes, path);
                check_model(model, info_of(manifest), path);
                for (const Slice& slice : state) add_needs(slice, manifest, path, needs);
              }),
              kWhat);
  const OwnedStream stream(state.empty() ? kCpu : state.front().data.device());
  // Nothing was written to the state before all ranks agreed that it fits.
  world.agree(attempt([&] {
                for (const auto& [index, parts] : needs) {
                  const proto::File& file = manifest.files(index);
                  read_shard(absl::StrCat(path, "/", file.name()), file, parts, stream.get());
                }
                wait_until_idle(stream.get());
              }),
              kWhat);
  return info_of(manifest);
}

}  // namespace longhaul::checkpoint
