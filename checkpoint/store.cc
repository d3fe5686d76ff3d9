#include "checkpoint/store.h"

#include <algorithm>
#include <charconv>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "checkpoint/checksum.h"
#include "checkpoint/files.h"
#include "kernels/core/error.h"

namespace longhaul::checkpoint {
namespace {

constexpr std::string_view kPartialEnding = ".partial", kReplacedEnding = ".replaced";
constexpr std::string_view kMarkerPrefix = "xxh3 ";
constexpr size_t kMarkerBytes = 5 + 16 + 1;

enum class Kind { kFinal, kPartial, kReplaced };

struct Entry {
  Kind kind;
  int64_t step;
};

// What one of our folder names means; empty for any other name.
std::optional<Entry> parse(std::string_view name) {
  Kind kind = Kind::kFinal;
  if (name.starts_with('.')) {
    name.remove_prefix(1);
    const bool partial = name.ends_with(kPartialEnding);
    if (!partial && !name.ends_with(kReplacedEnding)) return std::nullopt;
    kind = partial ? Kind::kPartial : Kind::kReplaced;
    name.remove_suffix(partial ? kPartialEnding.size() : kReplacedEnding.size());
  }
  constexpr std::string_view kStep = "step-";
  if (!name.starts_with(kStep) || name.size() < kStep.size() + 8) return std::nullopt;
  name.remove_prefix(kStep.size());
  int64_t step = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), step);
  if (error != std::errc() || end != name.data() + name.size() || step < 0) return std::nullopt;
  return Entry{kind, step};
}

void call(const Hook& hook, std::string_view event) {
  if (hook) hook(event);
}

}  // namespace

std::string step_name(int64_t step) { return absl::StrFormat("step-%08d", step); }

std::string shard_name(int rank, int ranks) {
  return absl::StrFormat("shard-%05d-of-%05d.safetensors", rank, ranks);
}

std::optional<std::string> marked_checksum(const std::string& folder) {
  const std::string path = absl::StrCat(folder, "/", kMarkerFile);
  if (!exists(path)) return std::nullopt;
  const InputFile file(path);
  if (file.bytes() != kMarkerBytes) return std::nullopt;
  std::string text(kMarkerBytes, '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  if (!text.starts_with(kMarkerPrefix) || text.back() != '\n') return std::nullopt;
  return text.substr(kMarkerPrefix.size(), 16);
}

std::string Store::final_path(int64_t step) const {
  return absl::StrCat(directory_, "/", step_name(step));
}
std::string Store::partial(int64_t step) const {
  return absl::StrCat(directory_, "/.", step_name(step), ".partial");
}
std::string Store::replaced(int64_t step) const {
  return absl::StrCat(directory_, "/.", step_name(step), ".replaced");
}

std::vector<Stored> Store::complete() const {
  std::map<int64_t, std::string> found;
  for (const std::string& name : list_folder(directory_)) {
    const auto entry = parse(name);
    if (!entry || entry->kind == Kind::kPartial) continue;
    const std::string path = absl::StrCat(directory_, "/", name);
    if (!marked_checksum(path)) continue;
    // One that was being replaced counts only as long as its successor does not.
    if (entry->kind == Kind::kFinal) found[entry->step] = path;
    if (entry->kind == Kind::kReplaced) found.emplace(entry->step, path);
  }
  std::vector<Stored> result;
  result.reserve(found.size());
  for (auto& [step, path] : found) result.push_back({step, path});
  return result;
}

void Store::recover() const {
  std::vector<Entry> replaced_ones;
  for (const std::string& name : list_folder(directory_)) {
    const auto entry = parse(name);
    if (!entry) continue;
    const std::string path = absl::StrCat(directory_, "/", name);
    if (entry->kind == Kind::kPartial) remove_tree(path);
    if (entry->kind == Kind::kFinal && !marked_checksum(path)) remove_tree(path);
    if (entry->kind == Kind::kReplaced) replaced_ones.push_back(*entry);
  }
  for (const Entry& entry : replaced_ones) {
    if (exists(final_path(entry.step))) {
      remove(entry.step, replaced(entry.step), {});
    } else {
      rename_path(replaced(entry.step), final_path(entry.step));
    }
  }
}

void Store::create(int64_t step) const {
  make_folder(directory_);
  make_folder(partial(step));
}

void Store::publish(int64_t step, uint64_t manifest_checksum, const Hook& hook) const {
  const std::string path = final_path(step);
  sync_folder(partial(step));
  call(hook, "folder synced");
  const bool replacing = exists(path);
  if (replacing) {
    rename_path(path, replaced(step));
    call(hook, "old one set aside");
  }
  rename_path(partial(step), path);
  call(hook, "renamed");
  sync_folder(directory_);
  call(hook, "rename synced");
  {
    OutputFile marker(absl::StrCat(path, "/", kMarkerFile));
    call(hook, "marker created");
    const std::string text =
        absl::StrCat(std::string(kMarkerPrefix), to_hex(manifest_checksum), "\n");
    // In two pieces: a marker that is cut off must not count, and tests cut it here.
    marker.write(std::string_view(text).substr(0, 9));
    call(hook, "marker half written");
    marker.write(std::string_view(text).substr(9));
    call(hook, "marker written");
    marker.finish();
  }
  sync_folder(path);
  call(hook, "complete");
  if (replacing) remove(step, replaced(step), hook);
}

void Store::remove(int64_t step, const std::string& path, const Hook& hook) const {
  rename_path(path, partial(step));
  call(hook, "set aside for removal");
  remove_tree(partial(step));
  call(hook, "removed");
}

void Store::prune(int64_t step, int keep, const Hook& hook) const {
  if (keep <= 0) return;
  const std::vector<Stored> all = complete();
  int64_t surplus = static_cast<int64_t>(all.size()) - keep;
  for (const Stored& stored : all) {
    if (surplus <= 0) break;
    if (stored.step == step) continue;
    remove(stored.step, stored.path, hook);
    --surplus;
  }
}

}  // namespace longhaul::checkpoint
