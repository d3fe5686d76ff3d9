// `longhaul bench train`: throughput of training steps, one configuration after the other.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace longhaul::launch {

struct BenchTrainOptions {
  std::string config;                  // path of the configuration
  std::vector<std::string> overrides;  // as of --set
  std::vector<int> ranks;              // ranks as threads, a case each; empty: as launched
  std::vector<int64_t> lengths;        // data.sequence_length, a case each; empty: the config's
  int64_t steps = 5;                   // timed steps a case
  bool json = false;                   // one object a line instead of the table
};

// Prints a table or JSON lines; returns the exit status. Throws Error for what is wrong before
// ranks are started.
int bench_train(const BenchTrainOptions& options);

}  // namespace longhaul::launch
