// Counter-based random numbers: value i of stream `key` is a pure function of (key, i), so that
// initialisation, dropout and data order do not depend on the number of ranks or threads.
// Philox4x32-10 (Salmon et al., SC'11, "Parallel random numbers: as easy as 1, 2, 3").
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "kernels/core/host_device.h"

namespace longhaul {

struct RandomKey {
  uint64_t seed = 0;
  uint64_t stream = 0;
};

// Philox's constants, for code that computes many values side by side.
struct Philox {
  static constexpr int kRounds = 10;
  static constexpr uint32_t kMultiply0 = 0xD2511F53u, kMultiply1 = 0xCD9E8D57u;
  static constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
};

// 128 random bits for counter `index` of the stream.
LONGHAUL_HOST_DEVICE constexpr std::array<uint32_t, 4> random_bits(RandomKey key, uint64_t index) {
  std::array<uint32_t, 4> c{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                            static_cast<uint32_t>(key.stream),
                            static_cast<uint32_t>(key.stream >> 32)};
  uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
  for (int round = 0; round < Philox::kRounds; ++round) {
    const uint64_t p0 = uint64_t{Philox::kMultiply0} * c[0];
    const uint64_t p1 = uint64_t{Philox::kMultiply1} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += Philox::kWeyl0;
    k1 += Philox::kWeyl1;
  }
  return c;
}

constexpr uint64_t random_u64(RandomKey key, uint64_t index) {
  const auto bits = random_bits(key, index);
  return (uint64_t{bits[1]} << 32) | bits[0];
}

// Uniform in [0, 1) with 53 bits.
constexpr double random_uniform(RandomKey key, uint64_t index) {
  return static_cast<double>(random_u64(key, index) >> 11) * 0x1.0p-53;
}

// Standard normal by Box-Muller.
double random_normal(RandomKey key, uint64_t index);

// A stream number for a name (FNV-1a): parameters are initialised by their names.
constexpr uint64_t stream_of(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

}  // namespace longhaul
