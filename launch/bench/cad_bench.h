// Internal to `longhaul bench cad`: its options, and the part that runs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dist/group.h"
#include "parallel/plan/plan.h"

namespace longhaul::launch {

struct CadOptions {
  std::vector<std::string> mixes;
  std::vector<int64_t> servers = {8, 64, 512};
  int64_t tokens_per_rank = 65536, samples = 2;
  int64_t heads = 32, kv_heads = 8, head_dim = 128;
  std::string dtype = "bf16";
  double imbalance = 0.05;
  double tflops = 400, gigabytes = 50;  // of a rank, to simulate with
  int64_t simulated = 64;               // up to so many servers
  bool real = false;
  std::vector<std::string> ops = {"forward", "both"};
  double least_seconds = 1;
  int64_t threads = 1, nano_batches = 1;
  std::string trace;  // prefix of files; empty: none
  bool json = false;
};

inline parallel::HeadShape cad_heads(const CadOptions& o) {
  return {
      .q_heads = o.heads, .kv_heads = o.kv_heads, .head_dim = o.head_dim, .value_dim = o.head_dim};
}
inline DType cad_dtype(const CadOptions& o) {
  return o.dtype == "bf16" ? DType::kBF16 : DType::kF32;
}

constexpr double kNoCadMoves = 1e18;  // an imbalance that everything keeps to

// Collective. Throws Error(kConfig) unless there are two ranks.
void run_real_cad(dist::Group& world, const CadOptions& options);

}  // namespace longhaul::launch
