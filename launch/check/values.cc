#include "launch/check/values.h"

#include <cmath>

#include "kernels/core/random.h"
#include "kernels/core/transfer.h"

namespace longhaul::launch {

namespace {

Tensor on_device(const Context& ctx, Tensor host) {
  if (ctx.device() == kCpu) return host;
  Tensor there(host.view().dtype(), host.shape(), ctx.device());
  upload(ctx.stream, host, there);
  wait_until_idle(ctx.stream);
  return there;
}

}  // namespace

Values random_values(const char* name, int64_t tokens, int64_t heads, int64_t dim, DType dtype) {
  Values values{heads, dim, std::vector<double>(static_cast<size_t>(tokens * heads * dim))};
  visit_float(dtype, [&]<class T>() {
    uint64_t index = 0;
    for (double& value : values.data) {
      const RandomKey key{.seed = 1, .stream = stream_of(name)};
      value = static_cast<double>(static_cast<T>(random_normal(key, index++)));
    }
  });
  return values;
}

Tensor poisoned(const Context& ctx, DType dtype, const Shape& shape) {
  Tensor host(dtype, shape);
  visit_float(dtype, [&]<class T>() {
    for (T& value : host.span<T>()) value = static_cast<T>(std::nanf(""));
  });
  return on_device(ctx, std::move(host));
}

Tensor local(const Context& ctx, const Values& values, const std::vector<int64_t>& positions,
             DType dtype) {
  const Shape shape{static_cast<int64_t>(positions.size()), values.heads, values.dim};
  Tensor host(dtype, shape);
  visit_float(dtype, [&]<class T>() {
    T* to = host.view().data<T>();
    for (const int64_t position : positions) {
      const double* from = values.row(position);
      for (int64_t i = 0; i < values.heads * values.dim; ++i) *to++ = static_cast<T>(from[i]);
    }
  });
  return on_device(ctx, std::move(host));
}

Values on_host(const Context& ctx, const ConstTensorView& tensor, bool heads_first) {
  const Tensor host = longhaul::on_host(ctx.stream, tensor);
  const Shape& shape = host.shape();
  const int64_t rows = shape[heads_first ? 1 : 0], heads = shape[heads_first ? 0 : 1];
  const int64_t dim = heads_first ? 1 : shape[2];
  Values values{heads, dim, std::vector<double>(static_cast<size_t>(rows * heads * dim))};
  visit_float(host.view().dtype(), [&]<class T>() {
    const T* from = host.view().data<T>();
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t d = 0; d < dim; ++d) {
          const int64_t index = heads_first ? h * rows + r : (r * heads + h) * dim + d;
          values.data[static_cast<size_t>((r * heads + h) * dim + d)] =
              static_cast<double>(from[index]);
        }
      }
    }
  });
  return values;
}

double Norms::worst() const {
  double worst = 0;
  for (size_t h = 0; h < truth.size(); ++h) {
    const double error = std::sqrt(difference[h] / (truth[h] > 0 ? truth[h] : 1.0));
    if (!(error <= worst)) worst = error;  // not a number is the worst
    if (std::isnan(worst)) break;
  }
  return worst;
}

Norms compare(dist::Group& group, const Values& other, bool whole, const Values& truth,
              const std::vector<int64_t>& positions) {
  Norms norms{std::vector<double>(static_cast<size_t>(truth.heads)),
              std::vector<double>(static_cast<size_t>(truth.heads))};
  for (size_t r = 0; r < positions.size(); ++r) {
    const double* expected = truth.row(positions[r]);
    const double* actual = other.row(whole ? positions[r] : static_cast<int64_t>(r));
    for (int64_t h = 0; h < truth.heads; ++h) {
      for (int64_t d = 0; d < truth.dim; ++d, ++expected, ++actual) {
        const double e = *expected, a = *actual;
        // Both may be -inf: the lse of a query that sees no key.
        if (e != a) norms.difference[static_cast<size_t>(h)] += (e - a) * (e - a);
        if (std::isfinite(e)) norms.truth[static_cast<size_t>(h)] += e * e;
      }
    }
  }
  Stream host;
  for (std::vector<double>* part : {&norms.difference, &norms.truth}) {
    const TensorView view(reinterpret_cast<std::byte*>(part->data()), DType::kF64, {truth.heads});
    group.all_reduce(host, view, dist::ReduceOp::kSum, "check").wait(host);
  }
  return norms;
}

}  // namespace longhaul::launch
