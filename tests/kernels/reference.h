// Shared by the kernel tests: a rig to run operations in (measured scratch, poisoned), tensors, and
// comparisons with fp64 references. Nothing here knows how a kernel works.
#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <iostream>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/core/random.h"
#include "kernels/core/transfer.h"

namespace longhaul::kernels::testing {

// Where tensors are made and operations run: the device of the backend whose rows are tested.
inline Device& test_device() {
  static thread_local Device device;
  return device;
}
inline const Stream& test_stream() {
  static thread_local OwnedStream stream;
  if (stream.get().device != test_device()) stream = OwnedStream(test_device());
  return stream.get();
}

// Runs an operation twice: measuring, then with exactly the scratch that was measured, all NaN.
class Rig {
 public:
  explicit Rig(int threads) : pool_(threads) {}

  void run(const std::function<void(const Context&)>& operation) {
    Arena measuring = Arena::measure("measured", test_device());
    operation(context(measuring));
    Arena real("scratch", measuring.peak(), test_device());
    real.poison();
    operation(context(real));
    wait_until_idle(test_stream());
    EXPECT_EQ(real.peak(), measuring.peak()) << "scratch differs from what was measured";
    EXPECT_EQ(real.used(), 0) << "scratch was not returned";
  }

  std::function<void()> poll;

 private:
  Context context(Arena& scratch) {
    return {.stream = test_stream(), .pool = &pool_, .scratch = &scratch, .poll = poll};
  }

  ThreadPool pool_;
};

// Threads to test with; devices do not use the pool.
inline std::vector<int> numbers_of_threads(const std::vector<int>& on_cpus) {
  return test_device().kind == DeviceKind::kCpu ? on_cpus : std::vector<int>{1};
}

// f(row) for every row of a table in every backend of this binary that this machine can run.
template <class Kernel, class F>
void for_each_row(std::span<const Kernel> Backend::*table, F f) {
  int tested = 0;
  for (const Backend* backend : {&cpu_backend(), &cuda_backend()}) {
    for (const Kernel& row : backend->*table) {
      const std::string label = std::string(row.name) + " " + std::string(name(row.dtype));
      if (!row.available()) {
        std::cout << "[  SKIPPED ] " << label << ": this machine cannot run it\n";
        continue;
      }
      SCOPED_TRACE(label);
      test_device() = {.kind = backend->device};
      f(row);
      test_device() = kCpu;
      ++tested;
    }
  }
  EXPECT_GT(tested, 0);
}

// A tensor in the memory of test_device().
class DeviceTensor : public Tensor {
 public:
  DeviceTensor() = default;
  DeviceTensor(DType dtype, const Shape& shape) : Tensor(dtype, shape, test_device()) {}
};

// All memory from a view's first element to its last, gaps included.
template <class View>
View memory_of(const View& x) {
  if (x.empty()) return View(x.raw(), x.dtype(), {0}, x.device());
  int64_t elements = 1;
  for (int i = 0; i < x.rank(); ++i) elements += (x.dim(i) - 1) * x.stride(i);
  return View(x.raw(), x.dtype(), {elements}, x.device());
}

// Where element n of the shape, in row-major order, lies in memory_of(x).
template <class View>
int64_t offset(const View& x, int64_t n) {
  int64_t at = 0;
  for (int i = x.rank() - 1; i >= 0; --i) {
    at += n % x.dim(i) * x.stride(i);
    n /= x.dim(i);
  }
  return at;
}

// Row-major over the shape, whatever the strides.
inline void set(const TensorView& x, const std::function<double(int64_t)>& value) {
  const Tensor host = on_host(test_stream(), memory_of(x));
  visit_float(x.dtype(), [&]<class T>() {
    for (int64_t n = 0; n < x.elements(); ++n) {
      host.view().data<T>()[offset(x, n)] = static_cast<T>(static_cast<Accumulator<T>>(value(n)));
    }
  });
  upload(test_stream(), host, memory_of(x));
}

inline std::vector<double> values(const ConstTensorView& x) {
  const Tensor host = on_host(test_stream(), memory_of(x));
  std::vector<double> result(static_cast<size_t>(x.elements()));
  visit_float(x.dtype(), [&]<class T>() {
    for (int64_t n = 0; n < x.elements(); ++n) {
      result[static_cast<size_t>(n)] = static_cast<double>(host.view().data<T>()[offset(x, n)]);
    }
  });
  return result;
}

// All bits set: NaN. The view is dense.
inline void poison(const TensorView& x) {
  const Tensor host(x.dtype(), x.shape());
  if (x.bytes() > 0) std::memset(host.view().raw(), 0xff, static_cast<size_t>(x.bytes()));
  upload(test_stream(), host, x);
}
inline DeviceTensor poisoned(DType dtype, const Shape& shape) {
  DeviceTensor x(dtype, shape);
  poison(x);
  return x;
}

// Normal values, already rounded to the dtype, so that a reference sees what the kernel sees.
inline void fill_random(const TensorView& x, uint64_t seed, double scale = 1.0) {
  set(x, [=](int64_t n) {
    return scale * random_normal({.seed = seed, .stream = 7}, static_cast<uint64_t>(n));
  });
}
inline DeviceTensor random(DType dtype, const Shape& shape, uint64_t seed, double scale = 1.0) {
  DeviceTensor x(dtype, shape);
  fill_random(x, seed, scale);
  return x;
}
inline DeviceTensor filled(DType dtype, const Shape& shape, double value) {
  DeviceTensor x(dtype, shape);
  set(x, [=](int64_t) { return value; });
  return x;
}
inline DeviceTensor integers(const std::vector<int32_t>& list) {
  DeviceTensor x(DType::kI32, {static_cast<int64_t>(list.size())});
  const Tensor host(DType::kI32, x.shape());
  std::copy(list.begin(), list.end(), host.span<int32_t>().begin());
  upload(test_stream(), host, x);
  return x;
}

// Zeros that begin at an odd element: nothing may be read or written but one by one.
class AtOddElement {
 public:
  AtOddElement(DType dtype, const Shape& shape) : memory_(dtype, {shape.elements() + 1}) {
    view_ = memory_.view().rows(1, shape.elements()).reshape(shape);
  }
  operator TensorView() const { return view_; }
  operator ConstTensorView() const { return view_; }

 private:
  DeviceTensor memory_;
  TensorView view_;
};

// A view with gaps between its rows (first dimension), filled with NaN. Rows begin at multiples of
// `gap` elements.
class Gapped {
 public:
  static constexpr int64_t kGap = 3;
  static constexpr int64_t kAlignedGap = 8;  // rows begin at multiples of 16 bytes
  Gapped(DType dtype, const Shape& shape, int64_t gap = kGap) : gap_(gap) {
    for (int i = 1; i < shape.rank(); ++i) length_ *= shape[i];
    memory_ = poisoned(dtype, {shape[0], (length_ + 3 * gap - 1) / gap * gap});
    view_ = memory_.view().slice(1, gap, length_);
    if (shape.rank() == 3) view_ = view_.split_last(shape[1], shape[2]);
  }
  operator TensorView() const { return view_; }
  operator ConstTensorView() const { return view_; }
  const TensorView& view() const { return view_; }

  // Nothing was written between the rows.
  bool gaps_intact() const {
    const int64_t size = size_of(memory_.view().dtype()), width = memory_.view().dim(1);
    const Tensor host = on_host(test_stream(), memory_);
    const auto* bytes = reinterpret_cast<const unsigned char*>(host.view().raw());
    for (int64_t r = 0; r < memory_.view().dim(0); ++r) {
      for (int64_t c = 0; c < width; ++c) {
        if (c >= gap_ && c < gap_ + length_) continue;
        for (int64_t b = 0; b < size; ++b) {
          if (bytes[(r * width + c) * size + b] != 0xff) return false;
        }
      }
    }
    return true;
  }

 private:
  int64_t gap_, length_ = 1;
  DeviceTensor memory_;
  TensorView view_;
};

inline double norm(const std::vector<double>& x) {
  double sum = 0;
  for (double v : x) sum += v * v;
  return std::sqrt(sum);
}

// ||actual - expected|| <= tolerance * (||expected|| + terms), and no NaN anywhere. `terms` is the
// norm of what was added up, where results may cancel to less.
inline void expect_near(const ConstTensorView& actual, const std::vector<double>& expected,
                        double tolerance, const std::string& what, double terms = 0.0) {
  const std::vector<double> got = values(actual);
  ASSERT_EQ(got.size(), expected.size()) << what;
  std::vector<double> difference(got.size());
  for (size_t i = 0; i < got.size(); ++i) {
    // Equal infinities (the lse of an empty row) do not differ.
    difference[i] = got[i] == expected[i] ? 0.0 : got[i] - expected[i];
  }
  std::vector<double> finite = expected;
  for (double& v : finite) v = std::isfinite(v) ? v : 0.0;
  const double error = norm(difference), bound = tolerance * (norm(finite) + terms);
  EXPECT_TRUE(error <= bound) << what << ": error " << error << " > " << bound;
}

// 1 .. 33: every length of a last, shorter vector, and of rows shorter than one.
inline std::vector<int64_t> short_lengths() {
  std::vector<int64_t> lengths(33);
  std::iota(lengths.begin(), lengths.end(), 1);
  return lengths;
}

inline bool same_bits(const ConstTensorView& a, const ConstTensorView& b) {
  if (a.bytes() != b.bytes()) return false;
  const Tensor x = on_host(test_stream(), a), y = on_host(test_stream(), b);
  return std::memcmp(x.view().raw(), y.view().raw(), static_cast<size_t>(a.bytes())) == 0;
}

// The unit roundoff: what one rounding costs at most, relative.
inline double epsilon(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return 0x1p-8;
    case DType::kF32:
      return 0x1p-24;
    default:
      return 0x1p-53;
  }
}

}  // namespace longhaul::kernels::testing
