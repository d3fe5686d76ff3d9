// How a model's attention reaches parallel/attention: slopes of ALiBi, mask and options, and the
// keys of dropout.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/random.h"
#include "model/config.h"
#include "parallel/attention/core_attention.h"

namespace longhaul::model {

// ALiBi's slope of each head (Press et al. 2022, section 3 and the paper's code): for n heads, n a
// power of two, the geometric sequence 2^(-8/n), 2^(-16/n), ...; else that of the largest power of
// two below n, then every other one of twice as many, from the first on.
std::vector<float> alibi_slopes(int64_t heads);

// Strategy and where memory is shared are the caller's to set.
parallel::CoreAttentionOptions attention_options(const ModelConfig& config, DType dtype);

// The key of attention dropout for one sample of a run, and for one layer of it. `sample` counts on
// over steps and epochs, so it stands for the step, too. Neither knows of ranks or of the order in
// which a step's samples are taken.
RandomKey dropout_key(uint64_t seed, int64_t sample);
RandomKey dropout_key_of_layer(RandomKey of_sample, int64_t layer);

}  // namespace longhaul::model
