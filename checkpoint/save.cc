#include "checkpoint/save.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "checkpoint/files.h"
#include "checkpoint/manifest.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/slices.h"
#include "kernels/core/error.h"

namespace longhaul::checkpoint {
namespace {

constexpr std::string_view kWhat = "checkpoint save";

// Strings of any length from all ranks to rank 0; empty on the others.
std::vector<std::string> gather(dist::Group& world, const std::string& mine) {
  Stream stream;
  const auto ranks = static_cast<size_t>(world.size());
  Tensor size(DType::kI64, {1}), sizes(DType::kI64, {world.size()});
  size.span<int64_t>()[0] = static_cast<int64_t>(mine.size());
  world.all_gather(stream, size, sizes, kWhat).wait(stream);

  // Travels as int64 elements: there is no byte type.
  const auto words = [](int64_t bytes) { return (bytes + 7) / 8; };
  Tensor out(DType::kI64, {words(static_cast<int64_t>(mine.size()))});
  if (!mine.empty()) std::memcpy(out.view().raw(), mine.data(), mine.size());
  std::vector<Tensor> parts;
  std::vector<dist::Recv> receives;
  if (world.rank() == 0) {
    for (size_t rank = 0; rank < ranks; ++rank) {
      parts.emplace_back(DType::kI64, Shape{words(sizes.span<int64_t>()[rank])});
      receives.push_back({static_cast<int>(rank), parts.back()});
    }
  }
  const dist::Send send{0, out};
  world.exchange(stream, std::span(&send, 1), receives, kWhat).wait(stream);
  std::vector<std::string> all;
  for (size_t rank = 0; rank < parts.size(); ++rank) {
    all.emplace_back(reinterpret_cast<const char*>(parts[rank].view().raw()),
                     static_cast<size_t>(sizes.span<int64_t>()[rank]));
  }
  return all;
}

// One save; its parts in the order in which they happen.
class Saver {
 public:
  Saver(dist::Group& world, const std::string& directory, const Info& info, const State& state,
        const SaveOptions& options)
      : world_(world), store_(directory), info_(info), state_(state), options_(options) {}

  void run() {
    on_root([&] {
      event("start");
      store_.recover();
      event("recovered");
      store_.create(info_.step);
      event("folder created");
    });
    agree_on_slices();
    std::string file;
    on_all([&] { file = write_shard().SerializeAsString(); });
    const std::vector<std::string> files = gather(world_, file);
    on_root([&] {
      for (const std::string& bytes : files) {
        LONGHAUL_CHECK(manifest_.add_files()->ParseFromString(bytes));
      }
      check_files();
      const uint64_t checksum = write_manifest();
      store_.publish(info_.step, checksum, options_.hook);
    });
    published_ = true;
    on_root([&] {
      store_.prune(info_.step, options_.keep, options_.hook);
      event("end");
    });
  }

  // After a failure: leaves the directory as it was before.
  void undo() noexcept {
    if (published_ || world_.rank() != 0) return;
    // The first error is the one to report; a folder that cannot be removed now is removed by the
    // next save.
    attempt([&] { store_.recover(); });
  }

 private:
  void event(std::string_view name) const {
    if (options_.hook) options_.hook(name);
  }
  void on_all(const std::function<void()>& work) { world_.agree(attempt(work), kWhat); }
  void on_root(const std::function<void()>& work) {
    world_.agree(world_.rank() == 0 ? attempt(work) : std::nullopt, kWhat);
  }

  // Fills manifest_.tensors on all ranks.
  void agree_on_slices() {
    std::string mine;
    on_all([&] { mine = holdings_of(state_).SerializeAsString(); });
    const std::vector<std::string> all = gather(world_, mine);
    std::string plan;
    on_root([&] {
      std::vector<proto::Holdings> holdings(all.size());
      for (size_t rank = 0; rank < all.size(); ++rank) {
        LONGHAUL_CHECK(holdings[rank].ParseFromString(all[rank]));
      }
      manifest_.set_format(kFormat);
      set_info(manifest_, info_);
      for (proto::Tensor& tensor : assign_slices(holdings)) {
        *manifest_.add_tensors() = std::move(tensor);
      }
      LONGHAUL_CHECK(manifest_.SerializeToString(&plan));
    });
    plan = world_.broadcast(std::move(plan), 0, kWhat);
    on_all([&] { LONGHAUL_CHECK(manifest_.ParseFromString(plan)); });
  }

  // Elements [begin, end), which lie within one slice of this rank's state.
  SafetensorsTensor part_of(const std::string& name, int64_t begin, int64_t end) const {
    const auto [first, last] = by_name_.equal_range(name);
    for (auto it = first; it != last; ++it) {
      const Slice& slice = *it->second;
      if (slice.begin <= begin && end <= slice.end) {
        const std::string key = slice_key(name, begin, end);
        const int64_t skipped = begin - slice.begin;
        if (!slice.source) {
          const ConstTensorView all = slice.data.reshape({slice.end - slice.begin});
          return {.name = key, .shape = {end - begin}, .data = all.rows(skipped, end - begin)};
        }
        const auto read = [&slice, skipped](int64_t at, const TensorView& to) {
          slice.source->read(skipped + at, to);
        };
        return {.name = key,
                .shape = {end - begin},
                .source = Source{.dtype = slice.source->dtype, .read = read}};
      }
    }
    check_failed(__FILE__, __LINE__, "this rank holds what it is to write", name);
  }

  proto::File write_shard() {
    for (const Slice& slice : state_) by_name_.emplace(slice.name, &slice);
    std::vector<SafetensorsTensor> tensors;
    for (const proto::Tensor& tensor : manifest_.tensors()) {
      for (const proto::Slice& slice : tensor.slices()) {
        if (slice.file() != world_.rank()) continue;
        tensors.push_back(part_of(tensor.name(), slice.begin(), slice.end()));
      }
    }
    proto::File result;
    result.set_name(shard_name(world_.rank(), world_.size()));
    OutputFile file(absl::StrCat(store_.partial(info_.step), "/", result.name()));
    event("shard created");
    write_safetensors(file, std::move(tensors), {{"step", std::to_string(info_.step)}},
                      [&] { event("part of shard written"); });
    event("shard written");
    file.finish();
    event("shard synced");
    result.set_bytes(file.bytes());
    result.set_checksum(file.checksum());
    return result;
  }

  // Rank 0 must see what the others wrote.
  void check_files() const {
    for (const proto::File& file : manifest_.files()) {
      const std::string path = absl::StrCat(store_.partial(info_.step), "/", file.name());
      const int64_t bytes = exists(path) ? InputFile(path).bytes() : -1;
      if (bytes == file.bytes()) continue;
      fail(ErrorCode::kCheckpoint,
           absl::StrCat("rank 0 ", bytes < 0 ? "does not see" : "sees another size of", " '", path,
                        "' that another rank wrote: choose a checkpoint directory on a file "
                        "system that all ranks share"));
    }
  }

  uint64_t write_manifest() const {
    std::string bytes;
    LONGHAUL_CHECK(manifest_.SerializeToString(&bytes), "manifest of at most 2 GiB");
    OutputFile file(absl::StrCat(store_.partial(info_.step), "/", kManifestFile));
    event("manifest created");
    file.write(bytes);
    event("manifest written");
    file.finish();
    event("manifest synced");
    return file.checksum();
  }

  dist::Group& world_;
  Store store_;
  const Info& info_;
  const State& state_;
  const SaveOptions& options_;
  proto::Manifest manifest_;
  std::multimap<std::string, const Slice*> by_name_;
  bool published_ = false;
};

}  // namespace

void save(dist::Group& world, const std::string& directory, const Info& info, const State& state,
          const SaveOptions& options) {
  Saver saver(world, directory, info, state, options);
  try {
    saver.run();
  } catch (...) {
    saver.undo();
    throw;
  }
}

void save(dist::Group& world, const std::string& directory, const Info& info, const State& state,
          int keep) {
  save(world, directory, info, state, SaveOptions{keep, {}});
}

}  // namespace longhaul::checkpoint
