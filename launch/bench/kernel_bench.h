// What the benchmarks of single operations share: options, timing beside the machine's limit, and
// one row of a table or one JSON object a line for each figure.
//
// A case is timed by the median of at least 5 repetitions and --seconds, after one to warm up. Its
// limit is measured before, after, and every tenth of a second in between; the median counts. If it
// moves by more than 5 % between the first half of these and the second, the case is measured
// again, at most twice, and the calmest time counts. Work on a GPU is submitted for a few
// milliseconds before it is waited for, so that its start does not count.
#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/context.h"
#include "kernels/peak.h"

namespace longhaul::launch {

struct KernelBenchOptions {
  std::string device = "cpu";
  int threads = 0;  // of the CPU; 0: all usable cores
  std::vector<std::string> dtypes = {"f32", "bf16"};
  std::string instruction_set;  // empty: the best one
  double least_seconds = 0.4;   // that a case is timed for
  bool json = false;
};
void add_kernel_options(CLI::App& app, KernelBenchOptions& options);

// --NAME LIST, where the values are divided by commas.
template <class T>
void add_list(CLI::App& app, const std::string& name, std::vector<T>& values,
              const std::string& help) {
  CLI::Option* option = app.add_option(name, values, help)->delimiter(',')->allow_extra_args(false);
  option->type_name("LIST");
  if (!values.empty()) option->capture_default_str();
}

// Throw Error(kConfig), naming the option and what would do.
void check_positive(std::string_view option, std::span<const int64_t> values);
void check_known(std::string_view option, std::span<const std::string> values,
                 const std::vector<std::string>& known);

// Of one value or more.
double median(std::span<const double> values);

// What a figure is held against.
enum class Limit {
  kMultiplyAdds,  // work is FLOPs; the peak of the case's dtype
  kCopy           // work is bytes
};

struct KernelCase {
  // What is run, for people and for JSON: "op", "dtype", then sizes. The keys of a benchmark's
  // first case head the table; those that only later cases have stand at the end of their rows. The
  // number of threads and the instruction set are added.
  nlohmann::ordered_json description;
  DType dtype = DType::kF32;
  Limit limit = Limit::kMultiplyAdds;
  double work = 0;  // of a run: FLOPs, or bytes
  std::function<void(const Context&)> run;
  std::function<void(const Context&)> prepare = {};  // before each run, not timed; may be empty
};

struct Figure {
  double seconds = 0;  // the median
  int64_t repetitions = 0;
  double rate = 0;         // work a second
  double limit = 0;        // the same unit
  double limit_drift = 0;  // between the first half of the time and the second, relative
  double ratio() const { return rate / limit; }
};

// A further figure of a case, printed behind its own: {"time_to_share_of_causal", 1.05}.
using Extra = std::pair<std::string, double>;

class KernelBench {
 public:
  // Forces the instruction set, of libraries too: before any of their first uses. Throws
  // Error(kConfig).
  KernelBench(std::string name, const KernelBenchOptions& options);

  // Runs set-up work of a case on all threads.
  void set_up(const std::function<void(const Context&)>& work);

  // Times the cases in turns, so that what disturbs one disturbs all. They share a limit.
  std::vector<Figure> measure(std::span<const KernelCase> cases);
  Figure measure(const KernelCase& one) { return measure(std::span(&one, 1)).front(); }

  void print(const KernelCase& one, const Figure& figure, std::span<const Extra> extras = {});
  // Measures and prints.
  Figure add(const KernelCase& one);
  // A figure that sums up others: the share of the limit, under the name `op`.
  void print_summary(std::string_view op, DType dtype, double ratio);

  const std::vector<DType>& dtypes() const { return dtypes_; }
  int threads() const { return pool_.threads(); }
  const Stream& stream() const { return stream_.get(); }
  Device device() const { return stream_.get().device; }

 private:
  std::vector<Figure> measure_once(std::span<const KernelCase> cases);
  double measure_limit(const KernelCase& one);
  nlohmann::ordered_json full_description(const nlohmann::ordered_json& description) const;
  void print_row(const KernelCase& one, const Figure& figure, std::span<const Extra> extras);

  std::string name_;
  bool json_ = false;
  double least_seconds_ = 0;
  std::vector<std::string> columns_;  // of the table, once its header is printed
  std::vector<DType> dtypes_;
  ThreadPool pool_;
  OwnedStream stream_;
  std::optional<kernels::CopyBandwidth> copy_;  // once it is wanted
};

// Reproducible values in [-1, 1).
Tensor random_tensor(DType dtype, const Shape& shape, uint64_t seed, Device device = kCpu);

}  // namespace longhaul::launch
