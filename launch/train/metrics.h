// The step line on the terminal and metrics.jsonl in the run folder. Written by rank 0 only.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "parallel/plan/plan.h"

namespace longhaul::launch {

struct StepMetrics {
  int64_t step = 0;   // 1 ... steps
  int64_t steps = 0;  // of the whole run
  double loss = 0;    // nats a token
  double grad_norm = 0;
  double learning_rate = 0;
  int64_t tokens = 0;  // of this step
  double seconds = 0;
  int ranks = 1;    // trainers and servers
  int servers = 0;  // of these, that only compute attention
  double mfu = 0;
  double memory_peak_bytes = 0;
  double memory_plan_bytes = 0;
  double exposed_communication = 0;  // share of the step
  int slowest_rank = 0;
  parallel::Scheduled scheduled = {};  // the worst of the step's samples; under disaggregated only
  double eta_seconds = 0;
};

struct ValidationMetrics {
  int64_t step = 0;
  double loss = 0;
  int64_t tokens = 0;
  std::vector<double> loss_by_position;  // equal parts of the sample, from its begin
  double seconds = 0;
};

class MetricsWriter {
 public:
  // Appends to <run_directory>/metrics.jsonl; steps after `resumed_step` that an earlier run wrote
  // are taken out first, so that a step stands in the file once. A writer that is not active (other
  // ranks) does nothing. Throws Error(kEnvironment).
  MetricsWriter(const std::string& run_directory, int64_t resumed_step, bool active);

  // Throw Error(kEnvironment) if the line cannot be written.
  void write(const StepMetrics& metrics);
  void write(const ValidationMetrics& metrics);
  // A sentence on the terminal.
  void say(const std::string& line);

 private:
  void append(const std::string& line);

  bool active_;
  std::string path_;
  std::ofstream file_;
  int64_t lines_ = 0;
};

// "1.5 GiB", "2 h 05 min"
std::string human_bytes(double bytes);
std::string human_seconds(double seconds);
std::string human_count(double count);

}  // namespace longhaul::launch
