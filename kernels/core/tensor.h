// Non-owning views of strided arrays. Memory belongs to an Arena, a Tensor or a communication
// window; a view is valid as long as its memory is. Strides are in elements. A view made while
// measuring (see arena.h) has a shape and no data.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <type_traits>

#include "kernels/core/device.h"
#include "kernels/core/dtype.h"
#include "kernels/core/error.h"

namespace longhaul {

class Shape {
 public:
  static constexpr int kMaxRank = 4;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims);
  explicit Shape(std::span<const int64_t> dims);

  int rank() const { return rank_; }
  int64_t operator[](int i) const { return dims_[static_cast<size_t>(i)]; }
  int64_t& operator[](int i) { return dims_[static_cast<size_t>(i)]; }
  int64_t elements() const;
  std::span<const int64_t> dims() const { return {dims_.data(), static_cast<size_t>(rank_)}; }
  bool operator==(const Shape&) const = default;
  std::string to_string() const;  // "[8192, 4, 64]"

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

// Byte is std::byte (TensorView: may be written) or const std::byte (ConstTensorView).
template <class Byte>
class BasicTensorView {
 public:
  BasicTensorView() = default;
  // A dense row-major view.
  BasicTensorView(Byte* data, DType dtype, const Shape& shape, Device device = kCpu)
      : data_(data), dtype_(dtype), device_(device), shape_(shape), strides_(shape) {
    int64_t stride = 1;
    for (int i = shape.rank() - 1; i >= 0; --i) {
      strides_[i] = stride;
      stride *= shape[i];
    }
  }
  BasicTensorView(Byte* data, DType dtype, const Shape& shape, const Shape& strides, Device device)
      : data_(data), dtype_(dtype), device_(device), shape_(shape), strides_(strides) {}

  // TensorView -> ConstTensorView
  template <class Other>
  requires(std::is_const_v<Byte>&& std::is_same_v<Other, std::byte>)
      BasicTensorView(const BasicTensorView<Other>& x)
      : data_(x.data_),
        dtype_(x.dtype_),
        device_(x.device_),
        shape_(x.shape_),
        strides_(x.strides_) {}

  bool empty() const { return shape_.elements() == 0; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  const Shape& shape() const { return shape_; }
  int rank() const { return shape_.rank(); }
  int64_t dim(int i) const { return shape_[i]; }
  int64_t stride(int i) const { return strides_[i]; }
  int64_t elements() const { return shape_.elements(); }
  int64_t bytes() const { return elements() * size_of(dtype_); }
  bool contiguous() const {
    int64_t stride = 1;
    for (int i = rank() - 1; i >= 0; --i) {
      if (shape_[i] != 1 && strides_[i] != stride) return false;
      stride *= shape_[i];
    }
    return true;
  }

  Byte* raw() const { return data_; }
  template <class T>
  auto* data() const {
    using Pointer = std::conditional_t<std::is_const_v<Byte>, const T*, T*>;
    LONGHAUL_CHECK(dtype_of<T> == dtype_, "tensor is " + std::string(longhaul::name(dtype_)));
    return reinterpret_cast<Pointer>(data_);
  }
  // All elements of a contiguous view.
  template <class T>
  auto span() const {
    LONGHAUL_CHECK(contiguous());
    return std::span(data<T>(), static_cast<size_t>(elements()));
  }

  // Rows [begin, begin + length) of dimension `dim`.
  BasicTensorView slice(int dim, int64_t begin, int64_t length) const {
    LONGHAUL_CHECK(begin >= 0 && length >= 0 && begin + length <= shape_[dim], shape_.to_string());
    BasicTensorView result = *this;
    if (data_ != nullptr) result.data_ = data_ + begin * strides_[dim] * size_of(dtype_);
    result.shape_[dim] = length;
    return result;
  }
  BasicTensorView rows(int64_t begin, int64_t length) const { return slice(0, begin, length); }

  // The same elements under another shape; the view must be contiguous.
  BasicTensorView reshape(const Shape& shape) const {
    LONGHAUL_CHECK(contiguous() && shape.elements() == elements(), shape.to_string());
    return BasicTensorView(data_, dtype_, shape, device_);
  }
  // Splits the last dimension in two: [T, H*D] -> [T, H, D]; any row stride.
  BasicTensorView split_last(int64_t outer, int64_t inner) const {
    const int last = rank() - 1;
    LONGHAUL_CHECK(outer * inner == shape_[last] && rank() < Shape::kMaxRank);
    std::array<int64_t, Shape::kMaxRank> dims{}, strides{};
    for (int i = 0; i < last; ++i) {
      dims[static_cast<size_t>(i)] = shape_[i];
      strides[static_cast<size_t>(i)] = strides_[i];
    }
    dims[static_cast<size_t>(last)] = outer;
    strides[static_cast<size_t>(last)] = strides_[last] * inner;
    dims[static_cast<size_t>(last + 1)] = inner;
    strides[static_cast<size_t>(last + 1)] = strides_[last];
    const size_t n = static_cast<size_t>(rank()) + 1;
    return BasicTensorView(data_, dtype_, Shape(std::span<const int64_t>(dims.data(), n)),
                           Shape(std::span<const int64_t>(strides.data(), n)), device_);
  }

 private:
  template <class Other>
  friend class BasicTensorView;

  Byte* data_ = nullptr;
  DType dtype_ = DType::kF32;
  Device device_{};
  Shape shape_;
  Shape strides_;
};

using TensorView = BasicTensorView<std::byte>;
using ConstTensorView = BasicTensorView<const std::byte>;

// Owns zeroed memory of a device, aligned to 64 bytes (GPUs: 256); for set-up, tests, host-side
// state and arenas. On the CPU, large ones lie on huge pages where the system grants them: kernels
// that walk through long rows spend much of their time on address translation otherwise.
class Tensor {
 public:
  Tensor() = default;
  // Throws std::bad_alloc, on a GPU Error(kEnvironment), if there is not as much.
  Tensor(DType dtype, const Shape& shape, Device device = kCpu);

  const TensorView& view() const { return view_; }
  operator TensorView() const { return view_; }
  operator ConstTensorView() const { return view_; }
  const Shape& shape() const { return view_.shape(); }
  template <class T>
  std::span<T> span() const {
    return view_.span<T>();
  }

 private:
  struct Free {
    Device device;
    std::align_val_t alignment;
    void operator()(std::byte* p) const;
  };
  using Memory = std::unique_ptr<std::byte, Free>;
  static Memory allocate(size_t bytes, Device device);

  Memory memory_;
  TensorView view_;
};

}  // namespace longhaul
