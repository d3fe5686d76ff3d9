// What `longhaul eval` finds, for people, programs and pictures.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace longhaul::launch {

// Losses of labelled tokens at positions [begin, end) of samples.
struct PositionBucket {
  int64_t begin = 0, end = 0;
  int64_t tokens = 0;
  double loss = 0;  // mean; 0 without tokens
};

struct LossReport {
  std::string corpus;
  int64_t length = 0;  // of a sample
  int64_t samples = 0;
  int64_t tokens = 0;  // with a label
  double loss = 0;     // their mean
  double seconds = 0;
  std::vector<PositionBucket> by_position;
};

// Keys found among texts of a length with the key at a depth: 0 the beginning, 1 the end.
struct PasskeyCell {
  int64_t length = 0;
  double depth = 0;
  int64_t trials = 0;
  int64_t found = 0;
  double accuracy() const {
    return trials > 0 ? static_cast<double>(found) / static_cast<double>(trials) : 0.0;
  }
};

struct PasskeyReport {
  std::vector<int64_t> lengths;
  std::vector<double> depths;
  std::vector<PasskeyCell> cells;  // lengths x depths
  double seconds = 0;
  const PasskeyCell& cell(size_t length, size_t depth) const {
    return cells[length * depths.size() + depth];
  }
  double accuracy() const;  // of all texts
};

struct EvalReport {
  std::string model;  // the checkpoint
  int ranks = 1;
  std::optional<LossReport> loss;
  std::optional<PasskeyReport> passkey;
};

double perplexity(double loss);

std::string to_table(const EvalReport& report);  // several lines
std::string to_json(const EvalReport& report);   // one object, one line

// A picture: loss by position as steps, retrieval as a map of lengths x depths. Complete on its
// own, without scripts or fonts of its own.
std::string to_svg(const EvalReport& report);

}  // namespace longhaul::launch
