// Which attention probabilities dropout keeps: a pure function of a key, the global query head and
// the global positions of query and key, so that it does not depend on tiles, calls, threads, ranks
// or devices, and backward finds what forward used. Kernels of every device share this header.
//
// With Philox (kernels/core/random.h) and [n] for the n-th 32-bit word of 128 random bits:
//
//     h = random_bits(key, head)
//     of_head.seed = h[0] + 2^32 h[1]      of_head.stream = h[2] + 2^32 h[3]
//     u = random_bits({of_head.seed, of_head.stream + q_position}, k_position / 4)[k_position % 4]
//
// and the element is kept iff u / 2^32 >= probability. Sums are modulo 2^64. Within a head no two
// elements share a word, for positions of up to 64 bits; heads have keys of 64 random bits.
#pragma once

#include <cstdint>

#include "kernels/core/random.h"

namespace longhaul::kernels {

struct Dropout {
  double probability =
      0;            // of being dropped, in [0, 1); what is kept is divided by 1 - probability
  RandomKey key{};  // one per step, layer and sample: the caller forms it from those
};

// The stream of one query head.
LONGHAUL_HOST_DEVICE constexpr RandomKey dropout_stream(RandomKey key, int64_t head) {
  const auto h = random_bits(key, static_cast<uint64_t>(head));
  return {.seed = (uint64_t{h[1]} << 32) | h[0], .stream = (uint64_t{h[3]} << 32) | h[2]};
}

// The random word of one element.
LONGHAUL_HOST_DEVICE constexpr uint32_t dropout_word(RandomKey of_head, int64_t q_position,
                                                     int64_t k_position) {
  const auto k = static_cast<uint64_t>(k_position);
  const RandomKey of_row{.seed = of_head.seed,
                         .stream = of_head.stream + static_cast<uint64_t>(q_position)};
  return random_bits(of_row, k / 4)[k % 4];
}

// An element is kept iff its word is not below this, at most 2^32.
LONGHAUL_HOST_DEVICE constexpr uint64_t dropout_threshold(double probability) {
  const double words = probability * 0x1p32;
  const auto whole = static_cast<uint64_t>(words);
  return whole + (static_cast<double>(whole) < words ? 1 : 0);
}

}  // namespace longhaul::kernels
