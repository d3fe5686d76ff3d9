#include "kernels/swiglu.h"

#include "kernels/cuda/device_code.h"
#include "kernels/cuda/tables.h"

namespace longhaul::kernels::cuda {

namespace {

template <class T>
struct Rows {
  const T* p;
  int64_t stride;
  __device__ Accumulator<T> at(int64_t row, int64_t column) const {
    return static_cast<Accumulator<T>>(p[row * stride + column]);
  }
};
template <class T>
Rows<T> rows(const ConstTensorView& x) {
  return {x.data<T>(), x.stride(0)};
}

template <class T>
__global__ void forward_kernel(int64_t n, int64_t width, Rows<T> gate, Rows<T> up, T* y,
                               int64_t y_stride) {
  using A = Accumulator<T>;
  for (int64_t i = grid_first(); i < n; i += grid_stride()) {
    const int64_t row = i / width, column = i % width;
    const A g = gate.at(row, column);
    y[row * y_stride + column] = T(g / (A(1) + exp(-g)) * up.at(row, column));
  }
}

template <class T>
__global__ void backward_kernel(int64_t n, int64_t width, Rows<T> dy, Rows<T> gate, Rows<T> up,
                                T* dgate, int64_t dgate_stride, T* dup, int64_t dup_stride) {
  using A = Accumulator<T>;
  for (int64_t i = grid_first(); i < n; i += grid_stride()) {
    const int64_t row = i / width, column = i % width;
    const A g = gate.at(row, column), d = dy.at(row, column);
    const A sigmoid = A(1) / (A(1) + exp(-g));
    dgate[row * dgate_stride + column] =
        T(d * up.at(row, column) * sigmoid * (A(1) + g * (A(1) - sigmoid)));
    dup[row * dup_stride + column] = T(d * g * sigmoid);
  }
}

template <class T>
void forward(const Context& ctx, const SwigluForward& args) {
  if (ctx.measuring()) return;
  const int64_t n = args.y.elements();
  if (n == 0) return;
  launch(ctx, "swiglu forward", forward_kernel<T>, grid_for(n), n, args.y.dim(1),
         rows<T>(args.gate), rows<T>(args.up), args.y.data<T>(), args.y.stride(0));
}

template <class T>
void backward(const Context& ctx, const SwigluBackward& args) {
  if (ctx.measuring()) return;
  const int64_t n = args.dy.elements();
  if (n == 0) return;
  launch(ctx, "swiglu backward", backward_kernel<T>, grid_for(n), n, args.dy.dim(1),
         rows<T>(args.dy), rows<T>(args.gate), rows<T>(args.up), args.dgate.data<T>(),
         args.dgate.stride(0), args.dup.data<T>(), args.dup.stride(0));
}

template <class T>
constexpr SwigluKernel row() {
  return {.name = "cuda",
          .dtype = dtype_of<T>,
          .available = available,
          .forward = forward<T>,
          .backward = backward<T>};
}
constexpr SwigluKernel kTable[] = {row<bf16>(), row<float>(), row<double>()};

}  // namespace

std::span<const SwigluKernel> swiglu_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
