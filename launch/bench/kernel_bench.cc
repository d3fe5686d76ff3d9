#include "launch/bench/kernel_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <dnnl.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/core/random.h"
#include "kernels/instruction_set.h"
#include "kernels/peak.h"
#include "launch/config/suggest.h"
#include "launch/doctor/host.h"

namespace longhaul::launch {

namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr int kMostThreads = 1024;
constexpr double kDrift = 0.05;
constexpr int64_t kLeastRepetitions = 5;
constexpr double kLeastSeconds = 0.4;

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

// oneDNN detects the machine by itself, and can be held back only before its first use.
void limit_libraries(std::string_view name) {
  using dnnl::cpu_isa;
  const cpu_isa best = name == "AVX512_BF16" ? cpu_isa::avx512_core_bf16
                       : name == "AVX512"    ? cpu_isa::avx512_core
                       : name == "AVX2"      ? cpu_isa::avx2
                                             : cpu_isa::sse41;
  if (dnnl::set_max_cpu_isa(best) != dnnl::status::success) {
    fail(ErrorCode::kInternal, "oneDNN was in use before its instruction set was forced");
  }
}

void force_instruction_set(const std::string& name) {
  if (name.empty()) return;
  std::vector<std::string> known;
  for (std::string_view present : kernels::instruction_sets()) known.emplace_back(present);
  check_known("--isa", std::span(&name, 1), known);
  kernels::use_instruction_set(name);
  limit_libraries(name);
}

std::string unit(Limit limit) { return limit == Limit::kCopy ? "GB/s" : "GFLOP/s"; }

std::string limit_name(const KernelCase& one) {
  if (one.limit == Limit::kCopy) return "measured copy bandwidth";
  return absl::StrCat("measured ", std::string(name(one.dtype)), " multiply-add peak");
}

// Wide enough for its values in all rows that are usual.
int column_width(std::string_view key) {
  if (key == "op") return 20;
  return static_cast<int>(std::max<size_t>(key.size(), 6));
}

std::string cell(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

}  // namespace

void add_kernel_options(CLI::App& app, KernelBenchOptions& options) {
  add_list(app, "--dtype", options.dtypes, "Types of the operands: f32, bf16");
  app.add_option("--threads", options.threads, "Threads; 0: all cores this process may use")
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--isa", options.instruction_set,
                 "Instruction set instead of the machine's best: AVX512_BF16, AVX512, AVX2 or "
                 "BASELINE; limits are those of the same set")
      ->type_name("NAME");
  app.add_flag("--json", options.json, "One JSON object a line instead of the table");
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
      dtypes_(dtypes_of(options)),
      pool_(threads_of(options)) {
  force_instruction_set(options.instruction_set);
}

void KernelBench::set_up(const std::function<void(const Context&)>& work) {
  // As the engine does: run on shapes alone to learn the scratch, then with as much.
  Arena scratch = Arena::measure("workspace");
  work({.pool = &pool_, .scratch = &scratch});
  scratch = Arena("workspace", scratch.peak());
  work({.pool = &pool_, .scratch = &scratch});
}

double KernelBench::measure_limit(const KernelCase& one) const {
  return one.limit == Limit::kCopy ? kernels::measured_copy_bandwidth(pool_.threads())
                                   : kernels::measured_peak_flops(one.dtype, pool_.threads());
}

std::vector<Figure> KernelBench::measure_once(std::span<const KernelCase> cases) {
  struct Timing {
    Arena scratch;
    std::vector<double> seconds;
    double total = 0;
  };
  const double before = measure_limit(cases.front());
  std::vector<Timing> timings;
  for (const KernelCase& one : cases) {
    Arena measured = Arena::measure("workspace");
    one.run({.pool = &pool_, .scratch = &measured});
    timings.push_back({.scratch = Arena("workspace", measured.peak()), .seconds = {}});
  }
  const auto enough = [](const Timing& t) {
    return static_cast<int64_t>(t.seconds.size()) >= kLeastRepetitions && t.total >= kLeastSeconds;
  };
  for (int64_t round = 0; !std::ranges::all_of(timings, enough); ++round) {
    for (size_t i = 0; i < cases.size(); ++i) {
      const Context ctx{.pool = &pool_, .scratch = &timings[i].scratch};
      if (cases[i].prepare) cases[i].prepare(ctx);
      const auto begin = Clock::now();
      cases[i].run(ctx);
      const double seconds = seconds_since(begin);
      if (round == 0) continue;
      timings[i].seconds.push_back(seconds);
      timings[i].total += seconds;
    }
  }
  const double after = measure_limit(cases.front());

  std::vector<Figure> figures;
  for (size_t i = 0; i < cases.size(); ++i) {
    std::vector<double>& seconds = timings[i].seconds;
    std::ranges::sort(seconds);
    const double median = seconds[seconds.size() / 2];
    figures.push_back({.seconds = median,
                       .repetitions = static_cast<int64_t>(seconds.size()),
                       .rate = cases[i].work / median,
                       .limit = 0.5 * (before + after),
                       .limit_drift = std::abs(after - before) / std::max(before, after)});
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
  return full;
}

void KernelBench::print_header(const KernelCase& one) {
  if (header_printed_) return;
  header_printed_ = true;
  std::printf("# %d threads, %s\n", pool_.threads(),
              std::string(kernels::instruction_set()).c_str());
  for (const auto& [key, value] : one.description.items()) {
    std::printf("%-*s ", column_width(key), key.c_str());
  }
  std::printf("%10s %9s %9s %7s\n", "ms", unit(one.limit).c_str(), "limit", "ratio");
}

void KernelBench::print(const KernelCase& one, const Figure& figure,
                        std::span<const Extra> extras) {
  if (json_) {
    Json json = {{"bench", name_},
                 {"case", full_description(one.description)},
                 {"value", figure.rate / 1e9},
                 {"unit", unit(one.limit)},
                 {"limit", figure.limit / 1e9},
                 {"limit_name", limit_name(one)},
                 {"ratio", figure.ratio()},
                 {"seconds", figure.seconds},
                 {"repetitions", figure.repetitions},
                 {"limit_drift", figure.limit_drift}};
    for (const auto& [key, value] : extras) json[key] = value;
    std::printf("%s\n", json.dump().c_str());
  } else {
    print_header(one);
    for (const auto& [key, value] : one.description.items()) {
      std::printf("%-*s ", column_width(key), cell(value).c_str());
    }
    std::string notes;
    for (const auto& [key, value] : extras) absl::StrAppendFormat(&notes, "  %s %.2f", key, value);
    if (figure.limit_drift > kDrift) {
      absl::StrAppendFormat(&notes, "  (limit moved %.0f%%)", 100 * figure.limit_drift);
    }
    std::printf("%10.3f %9.1f %9.1f %6.1f%%%s\n", 1e3 * figure.seconds, figure.rate / 1e9,
                figure.limit / 1e9, 100 * figure.ratio(), notes.c_str());
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

Tensor random_tensor(DType dtype, const Shape& shape, uint64_t seed) {
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
  return tensor;
}

}  // namespace longhaul::launch
