// What the benchmarks of single operations share: options, timing beside the machine's limit, and
// one row of a table or one JSON object a line for each figure.
//
// A case is timed by the median of at least 5 repetitions and 0.4 s after one to warm up. Its limit
// is measured before and after; if the two differ by more than 5 %, the case is measured again, at
// most twice, and the figure of the calmest time counts.
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

namespace longhaul::launch {

struct KernelBenchOptions {
  int threads = 0;  // 0: all usable cores
  std::vector<std::string> dtypes = {"f32", "bf16"};
  std::string instruction_set;  // empty: the best one
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

// What a figure is held against.
enum class Limit {
  kMultiplyAdds,  // work is FLOPs; the peak of the case's dtype
  kCopy           // work is bytes
};

struct KernelCase {
  // What is run, for people and for JSON: "op", "dtype", then sizes, by the same keys in all cases
  // of a benchmark. The number of threads and the instruction set are added.
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
  double limit = 0;        // the same unit; mean of before and after
  double limit_drift = 0;  // between before and after, relative
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

 private:
  std::vector<Figure> measure_once(std::span<const KernelCase> cases);
  double measure_limit(const KernelCase& one) const;
  nlohmann::ordered_json full_description(const nlohmann::ordered_json& description) const;
  void print_header(const KernelCase& one);

  std::string name_;
  bool json_ = false;
  bool header_printed_ = false;
  std::vector<DType> dtypes_;
  ThreadPool pool_;
};

// Reproducible values in [-1, 1).
Tensor random_tensor(DType dtype, const Shape& shape, uint64_t seed);

}  // namespace longhaul::launch
