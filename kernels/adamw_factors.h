// The arithmetic constants of one AdamW step, for the kernels of every device.
#pragma once

#include <cmath>

#include "kernels/adamw.h"

namespace longhaul::kernels {

// What a step multiplies with, rounded once to the accumulator type.
template <class A>
struct AdamWFactors {
  explicit AdamWFactors(const AdamW& args) {
    const auto steps = static_cast<double>(args.step);
    beta1 = static_cast<A>(args.beta1), beta2 = static_cast<A>(args.beta2);
    rest1 = static_cast<A>(1 - args.beta1), rest2 = static_cast<A>(1 - args.beta2);
    rate = static_cast<A>(args.learning_rate / (1 - std::pow(args.beta1, steps)));
    correction2 = static_cast<A>(1 / std::sqrt(1 - std::pow(args.beta2, steps)));
    keep = static_cast<A>(1 - args.learning_rate * args.weight_decay);
    eps = static_cast<A>(args.eps), scale = static_cast<A>(args.grad_scale);
  }

  A beta1, beta2, rest1, rest2;
  A rate, correction2;  // with the bias corrections 1 - beta^t of both moments
  A keep, eps, scale;
};

}  // namespace longhaul::kernels
