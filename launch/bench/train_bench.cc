#include "launch/bench/train_bench.h"

namespace longhaul::launch {

void bench_train(const BenchTrainOptions&) {}

}  // namespace longhaul::launch
