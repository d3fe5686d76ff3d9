#include "launch/bench/kernel_bench.h"

#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/core/cuda_runtime.h"
#include "kernels/core/random.h"
#include "kernels/core/transfer.h"
#include "kernels/instruction_set.h"
#include "launch/config/suggest.h"
#include "launch/doctor/host.h"
#include "launch/train/peak.h"

namespace longhaul::launch {

namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr int kMostThreads = 1024;
constexpr double kDrift = 0.05;
constexpr int64_t kLeastRepetitions = 5;
constexpr double kSecondsBetweenLimits = 0.1;
constexpr int64_t kWarmUps = 1;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

int threads_of(const KernelBenchOptions& options) {
  if (options.threads == 0) return available_cores().usable;
  if (options.threads < 1 || options.threads > kMostThreads) {
    fail(ErrorCode::kConfig,
         absl::StrCat("--threads ", options.threads, ": 1 to ", kMostThreads, " threads"));
  }
  return options.threads;
}

std::vector<DType> dtypes_of(const KernelBenchOptions& options) {
  check_known("--dtype", options.dtypes, {"f32", "bf16"});
  std::vector<DType> dtypes;
  for (const std::string& name : options.dtypes) {
    dtypes.push_back(name == "bf16" ? DType::kBF16 : DType::kF32);
  }
  return dtypes;
}

Device device_of(const KernelBenchOptions& options) {
  check_known("--device", std::span(&options.device, 1), {"cpu", "cuda"});
  return options.device == "cpu" ? kCpu : Device{.kind = DeviceKind::kCuda};
}

void force_instruction_set(const std::string& name) {
  if (name.empty()) return;
  std::vector<std::string> known;
  for (std::string_view present : kernels::instruction_sets()) known.emplace_back(present);
  check_known("--isa", std::span(&name, 1), known);
  kernels::use_instruction_set(name);
}

// The memory of one case serves the next. A virtual machine may have given freed pages back to its
// host, and wait for milliseconds a page to have them again.
void keep_freed_memory() {
  mallopt(M_MMAP_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
}

// So many calls that they take some milliseconds, after `calls` took `seconds`.
int64_t calls_for(double seconds, int64_t calls) {
  constexpr double kLongEnough = 4e-3;
  constexpr double kMost = 1000;
  const double wanted = kLongEnough * static_cast<double>(calls) / std::max(seconds, 1e-7);
  return static_cast<int64_t>(std::clamp(wanted, 1.0, kMost));
}

std::string unit(Limit limit) { return limit == Limit::kCopy ? "GB/s" : "GFLOP/s"; }

std::string limit_name(const KernelCase& one, Device device) {
  if (one.limit == Limit::kCopy) return "measured copy bandwidth";
  if (device != kCpu) return "measured matrix product";
  return absl::StrCat("measured ", std::string(name(kernels::multiply_add_type(one.dtype))),
                      " multiply-add peak");
}

// Wide enough for its values in all rows that are usual.
int column_width(std::string_view key) {
  if (key == "op") return 22;
  return static_cast<int>(std::max<size_t>(key.size(), 6));
}

std::string cell(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

}  // namespace

void add_kernel_options(CLI::App& app, KernelBenchOptions& options) {
  add_list(app, "--dtype", options.dtypes, "Types of the operands: f32, bf16");
  app.add_option("--device", options.device, "Where to run: cpu or cuda")
      ->capture_default_str()
      ->type_name("NAME");
  app.add_option("--threads", options.threads, "Threads; 0: all cores this process may use")
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--seconds", options.least_seconds, "Time each case for so long, or longer")
      ->capture_default_str()
      ->type_name("S");
  app.add_option("--isa", options.instruction_set,
                 "Instruction set instead of the machine's best: AVX512_BF16, AVX512, AVX2 or "
                 "BASELINE; limits are those of the same set")
      ->type_name("NAME");
  app.add_flag("--json", options.json, "One JSON object a line instead of the table");
}

double median(std::span<const double> values) {
  std::vector<double> sorted(values.begin(), values.end());
  std::ranges::sort(sorted);
  const size_t middle = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[middle] : 0.5 * (sorted[middle - 1] + sorted[middle]);
}

void check_positive(std::string_view option, std::span<const int64_t> values) {
  for (const int64_t value : values) {
    if (value >= 1) continue;
    fail(ErrorCode::kConfig, absl::StrCat(std::string(option), " ", value, ": 1 or more"));
  }
}

void check_known(std::string_view option, std::span<const std::string> values,
                 const std::vector<std::string>& known) {
  for (const std::string& value : values) {
    if (std::ranges::find(known, value) != known.end()) continue;
    fail(ErrorCode::kConfig, absl::StrCat(std::string(option), " ", value, ": one of ",
                                          absl::StrJoin(known, ", "), " is wanted"));
  }
}

KernelBench::KernelBench(std::string name, const KernelBenchOptions& options)
    : name_(std::move(name)),
      json_(options.json),
      least_seconds_(options.least_seconds),
      dtypes_(dtypes_of(options)),
      pool_(threads_of(options)),
      stream_(device_of(options)) {
  if (!(least_seconds_ >= 0)) {
    fail(ErrorCode::kConfig, absl::StrCat("--seconds ", least_seconds_, ": 0 or more"));
  }
  force_instruction_set(options.instruction_set);
  keep_freed_memory();
}

void KernelBench::set_up(const std::function<void(const Context&)>& work) {
  // As the engine does: run on shapes alone to learn the scratch, then with as much.
  Arena scratch = Arena::measure("workspace", device());
  work({.stream = stream(), .pool = &pool_, .scratch = &scratch});
  scratch = Arena("workspace", scratch.peak(), device());
  work({.stream = stream(), .pool = &pool_, .scratch = &scratch});
  wait_until_idle(stream());
}

double KernelBench::measure_limit(const KernelCase& one) {
  Arena none("nothing", 0, device());
  const Context ctx{.stream = stream(), .pool = &pool_, .scratch = &none};
  if (one.limit == Limit::kMultiplyAdds) return measured_peak(ctx, one.dtype);
  if (device() != kCpu) return measured_copy(ctx);
  if (!copy_) copy_.emplace(pool_.threads());
  return copy_->measure();
}

std::vector<Figure> KernelBench::measure_once(std::span<const KernelCase> cases) {
  struct Timing {
    Arena scratch;
    int64_t calls = 1;  // between looks at the clock
    std::vector<double> seconds;
    double total = 0;
  };
  std::vector<Timing> timings;
  for (const KernelCase& one : cases) {
    Arena measured = Arena::measure("workspace", device());
    one.run({.stream = stream(), .pool = &pool_, .scratch = &measured});
    timings.push_back({.scratch = Arena("workspace", measured.peak(), device()), .seconds = {}});
  }
  const auto enough = [&](const Timing& t) {
    return static_cast<int64_t>(t.seconds.size()) >= kLeastRepetitions && t.total >= least_seconds_;
  };
  std::vector<double> limits;
  Clock::time_point limit_measured;
  const auto look_at_limit = [&] {
    limits.push_back(measure_limit(cases.front()));
    limit_measured = Clock::now();
  };
  look_at_limit();
  for (int64_t round = 0; !std::ranges::all_of(timings, enough); ++round) {
    for (size_t i = 0; i < cases.size(); ++i) {
      Timing& timing = timings[i];
      const Context ctx{.stream = stream(), .pool = &pool_, .scratch = &timing.scratch};
      if (cases[i].prepare) cases[i].prepare(ctx);
      wait_until_idle(stream());
      const auto begin = Clock::now();
      for (int64_t call = 0; call < timing.calls; ++call) cases[i].run(ctx);
      wait_until_idle(stream());
      const double seconds = seconds_since(begin);
      if (round < kWarmUps) {
        // What has to be prepared is run once at a time.
        if (device() != kCpu && !cases[i].prepare) timing.calls = calls_for(seconds, timing.calls);
        continue;
      }
      timing.seconds.push_back(seconds / static_cast<double>(timing.calls));
      timing.total += seconds;
    }
    if (seconds_since(limit_measured) > kSecondsBetweenLimits) look_at_limit();
  }
  look_at_limit();

  const std::span<const double> all = limits;
  const double early = median(all.first(all.size() / 2)), late = median(all.last(all.size() / 2));
  std::vector<Figure> figures;
  for (size_t i = 0; i < cases.size(); ++i) {
    const double seconds = median(timings[i].seconds);
    figures.push_back({.seconds = seconds,
                       .repetitions = static_cast<int64_t>(timings[i].seconds.size()),
                       .rate = cases[i].work / seconds,
                       .limit = median(all),
                       .limit_drift = std::abs(late - early) / std::max(late, early)});
  }
  return figures;
}

std::vector<Figure> KernelBench::measure(std::span<const KernelCase> cases) {
  std::vector<Figure> calmest = measure_once(cases);
  for (int again = 0; again < 2 && calmest.front().limit_drift > kDrift; ++again) {
    std::vector<Figure> repeated = measure_once(cases);
    if (repeated.front().limit_drift < calmest.front().limit_drift) calmest = std::move(repeated);
  }
  return calmest;
}

Json KernelBench::full_description(const Json& description) const {
  Json full = description;
  full["threads"] = pool_.threads();
  full["isa"] = std::string(kernels::instruction_set());
  full["device"] = to_string(device());
  return full;
}

void KernelBench::print_row(const KernelCase& one, const Figure& figure,
                            std::span<const Extra> extras) {
  if (columns_.empty()) {
    std::string header;
    for (const auto& [key, value] : one.description.items()) {
      columns_.push_back(key);
      absl::StrAppendFormat(&header, "%-*s ", column_width(key), key);
    }
    const std::string where =
        device() == kCpu
            ? absl::StrCat(pool_.threads(), " threads, ", std::string(kernels::instruction_set()))
            : absl::StrCat(to_string(device()), ", ", cuda::device_info(device().index).name);
    std::printf("# %s\n%s%9s %17s %9s %7s\n", where.c_str(), header.c_str(), "ms", "speed", "limit",
                "ratio");
  }
  std::string cells, notes;
  for (const std::string& key : columns_) {
    const std::string text = one.description.contains(key) ? cell(one.description[key]) : "";
    absl::StrAppendFormat(&cells, "%-*s ", column_width(key), text);
  }
  for (const auto& [key, value] : one.description.items()) {
    if (std::ranges::find(columns_, key) == columns_.end()) {
      absl::StrAppend(&notes, "  ", key, " ", cell(value));
    }
  }
  for (const auto& [key, value] : extras) absl::StrAppendFormat(&notes, "  %s %.3f", key, value);
  if (figure.limit_drift > kDrift) {
    absl::StrAppendFormat(&notes, "  (limit moved %.0f%%)", 100 * figure.limit_drift);
  }
  std::printf("%s%9.3f %9.1f %-7s %9.1f %6.1f%%%s\n", cells.c_str(), 1e3 * figure.seconds,
              figure.rate / 1e9, unit(one.limit).c_str(), figure.limit / 1e9, 100 * figure.ratio(),
              notes.c_str());
}

void KernelBench::print(const KernelCase& one, const Figure& figure,
                        std::span<const Extra> extras) {
  if (json_) {
    Json json = {{"bench", name_},
                 {"case", full_description(one.description)},
                 {"value", figure.rate / 1e9},
                 {"unit", unit(one.limit)},
                 {"limit", figure.limit / 1e9},
                 {"limit_name", limit_name(one, device())},
                 {"ratio", figure.ratio()},
                 {"seconds", figure.seconds},
                 {"repetitions", figure.repetitions},
                 {"limit_drift", figure.limit_drift}};
    for (const auto& [key, value] : extras) json[key] = value;
    std::printf("%s\n", json.dump().c_str());
  } else {
    print_row(one, figure, extras);
  }
  std::fflush(stdout);
}

Figure KernelBench::add(const KernelCase& one) {
  const Figure figure = measure(one);
  print(one, figure);
  return figure;
}

void KernelBench::print_summary(std::string_view op, DType dtype, double ratio) {
  const std::string type(name(dtype));
  if (json_) {
    const Json description = {{"op", std::string(op)}, {"dtype", type}};
    const Json json = {{"bench", name_}, {"case", full_description(description)},
                       {"value", ratio}, {"unit", "share of the limit"},
                       {"limit", 1.0},   {"limit_name", "each case at its limit"},
                       {"ratio", ratio}};
    std::printf("%s\n", json.dump().c_str());
  } else {
    std::printf("%s of %s: %.1f%%\n", std::string(op).c_str(), type.c_str(), 100 * ratio);
  }
  std::fflush(stdout);
}

Tensor random_tensor(DType dtype, const Shape& shape, uint64_t seed, Device device) {
  // Repeated with a prime period: fast to make, and of no length that a kernel's tiles have.
  constexpr size_t kPeriod = 65'537;
  std::vector<float> values(kPeriod);
  for (size_t i = 0; i < kPeriod; ++i) {
    values[i] = static_cast<float>(2 * random_uniform({.seed = seed, .stream = 0}, i) - 1);
  }
  Tensor tensor(dtype, shape);
  visit_float(dtype, [&]<class T>() {
    size_t i = 0;
    for (T& value : tensor.span<T>()) {
      value = static_cast<T>(values[i]);
      i = i + 1 == kPeriod ? 0 : i + 1;
    }
  });
  if (device == kCpu) return tensor;
  Tensor there(dtype, shape, device);
  const OwnedStream stream(device);
  upload(stream.get(), tensor, there);
  wait_until_idle(stream.get());
  return there;
}

}  // namespace longhaul::launch
