// Matrix products by cuBLASLt. It thinks in columns: what it takes for a matrix is our row-major
// one transposed, so c^T = op(b)^T op(a)^T is computed.
//
// Reruns are bit-identical: an algorithm is chosen once per problem, by cuBLASLt's heuristics,
// which depend on the problem and the device alone; sums that are split over k are added up in the
// accumulator type and in a fixed order.
#include "kernels/gemm.h"

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <compare>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/core/cuda/check.h"
#include "kernels/cuda/tables.h"

namespace longhaul::kernels::cuda {

namespace {

constexpr int64_t kWorkspaceBytes = int64_t{32} << 20;  // what NVIDIA advises for Hopper
constexpr uint64_t kMostAlignment = 256;                // that algorithms ask for
constexpr size_t kMostPlans = 4096;

void check(cublasStatus_t status, const char* call, const std::string& problem = "") {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail(ErrorCode::kInternal, absl::StrCat("gemm: ", call, ": ", cublasLtGetStatusString(status),
                                          problem.empty() ? "" : " for ", problem));
}

// One of cuBLASLt's descriptors.
template <class Handle, cublasStatus_t (*kDestroy)(Handle)>
struct Destroy {
  using pointer = Handle;
  void operator()(Handle handle) const { kDestroy(handle); }
};
using Product = std::unique_ptr<void, Destroy<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>>;
using Layout = std::unique_ptr<void, Destroy<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>>;
using Preference =
    std::unique_ptr<void, Destroy<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>>;

uint64_t alignment_of(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  return std::min<uint64_t>(kMostAlignment, address & (~address + 1));
}

// All that a choice may depend on. Matrices lie as they are in memory: rows, columns, stride.
struct Matrix {
  DType dtype;
  int64_t rows, columns, stride;
  uint64_t alignment;
  auto operator<=>(const Matrix&) const = default;

  static Matrix of(const ConstTensorView& x) {
    // One row may have any stride; cuBLASLt wants one that is not below the length.
    return {x.dtype(), x.dim(0), x.dim(1), std::max(x.stride(0), x.dim(1)), alignment_of(x.raw())};
  }
};
struct Problem {
  bool transpose_a, transpose_b;
  Matrix a, b, c;
  bool add;
  auto operator<=>(const Problem&) const = default;

  std::string to_string() const {
    const auto shape = [](const Matrix& m, bool transposed) {
      return absl::StrCat(std::string(name(m.dtype)), " ", m.rows, " x ", m.columns, " (stride ",
                          m.stride, ", aligned to ", m.alignment, ")",
                          transposed ? " transposed" : "");
    };
    return absl::StrCat("c ", shape(c, false), add ? " += " : " = ", shape(a, transpose_a), " * ",
                        shape(b, transpose_b));
  }
};

cudaDataType data_type(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return CUDA_R_16BF;
    case DType::kF32:
      return CUDA_R_32F;
    case DType::kF64:
      return CUDA_R_64F;
    default:
      break;
  }
  check_failed(__FILE__, __LINE__, "gemm of a floating type");
}

Layout layout(const Matrix& m) {
  cublasLtMatrixLayout_t handle = nullptr;
  check(cublasLtMatrixLayoutCreate(&handle, data_type(m.dtype), static_cast<uint64_t>(m.columns),
                                   static_cast<uint64_t>(m.rows), m.stride),
        "cublasLtMatrixLayoutCreate");
  return Layout(handle);
}

template <class T>
void set(const Product& product, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  check(cublasLtMatmulDescSetAttribute(product.get(), attribute, &value, sizeof(value)),
        "cublasLtMatmulDescSetAttribute");
}
template <class T>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute,
         const T& value) {
  check(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof(value)),
        "cublasLtMatmulPreferenceSetAttribute");
}

Product product(const Problem& problem) {
  // In f32 without TF32, whose products have 11 bits.
  const bool wide = problem.a.dtype == DType::kF64;
  cublasLtMatmulDesc_t handle = nullptr;
  check(cublasLtMatmulDescCreate(&handle, wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F,
                                 wide ? CUDA_R_64F : CUDA_R_32F),
        "cublasLtMatmulDescCreate");
  Product result(handle);
  const auto operation = [](bool transposed) { return transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
  set(result, CUBLASLT_MATMUL_DESC_TRANSA, operation(problem.transpose_b));
  set(result, CUBLASLT_MATMUL_DESC_TRANSB, operation(problem.transpose_a));
  return result;
}

Preference preference(const Problem& problem) {
  cublasLtMatmulPreference_t handle = nullptr;
  check(cublasLtMatmulPreferenceCreate(&handle), "cublasLtMatmulPreferenceCreate");
  Preference result(handle);
  set(result, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspaceBytes});
  // Parts of a sum are added up in the workspace: not in c, which may be of bf16.
  set(result, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  const auto align = [&](cublasLtMatmulPreferenceAttributes_t attribute, const Matrix& m) {
    set(result, attribute, static_cast<uint32_t>(m.alignment));
  };
  align(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, problem.b);
  align(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, problem.a);
  align(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, problem.c);
  align(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, problem.c);
  return result;
}

struct Plan {
  Product product;
  Layout a, b, c;
  cublasLtMatmulAlgo_t algorithm{};

  Plan(cublasLtHandle_t handle, const Problem& problem)
      : product(cuda::product(problem)),
        a(layout(problem.a)),
        b(layout(problem.b)),
        c(layout(problem.c)) {
    const Preference wanted = preference(problem);
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    check(cublasLtMatmulAlgoGetHeuristic(handle, product.get(), b.get(), a.get(), c.get(), c.get(),
                                         wanted.get(), 1, &found, &count),
          "cublasLtMatmulAlgoGetHeuristic", problem.to_string());
    if (count == 0) check(CUBLAS_STATUS_NOT_SUPPORTED, "no algorithm", problem.to_string());
    check(found.state, "cublasLtMatmulAlgoGetHeuristic", problem.to_string());
    algorithm = found.algo;
  }
};

// cuBLASLt on one device, and what it chose so far. Any thread may use it.
class Products {
 public:
  Products() { check(cublasLtCreate(&handle_), "cublasLtCreate"); }

  cublasLtHandle_t handle() const { return handle_; }

  std::shared_ptr<const Plan> plan(const Problem& problem) {
    const std::lock_guard lock(mutex_);
    const auto found = plans_.find(problem);
    if (found != plans_.end()) return found->second;
    // Far more than a model has: they come from shapes that do not come again.
    if (plans_.size() == kMostPlans) plans_.clear();
    return plans_.emplace(problem, std::make_shared<const Plan>(handle_, problem)).first->second;
  }

 private:
  cublasLtHandle_t handle_ = nullptr;
  std::mutex mutex_;
  std::map<Problem, std::shared_ptr<const Plan>> plans_;
};

// Lives as long as the process: CUDA may be gone before static objects are.
Products& products(int device) {
  static std::mutex mutex;
  static auto& of_devices = *new std::map<int, Products>();
  const std::lock_guard lock(mutex);
  return of_devices[device];
}

void clear(cudaStream_t stream, const TensorView& c) {
  const size_t size = static_cast<size_t>(size_of(c.dtype()));
  const size_t width = static_cast<size_t>(c.dim(1)) * size;
  const size_t pitch = std::max(width, static_cast<size_t>(c.stride(0)) * size);
  longhaul::cuda::check(
      cudaMemset2DAsync(c.raw(), pitch, 0, width, static_cast<size_t>(c.dim(0)), stream),
      "gemm: cudaMemset2DAsync");
}

void run(const Context& ctx, const Gemm& args) {
  const Arena::Scope scope(*ctx.scratch);
  const TensorView workspace =
      ctx.scratch->allocate(DType::kF32, {kWorkspaceBytes / size_of(DType::kF32)});
  if (ctx.measuring() || args.c.empty()) return;
  const auto stream = static_cast<cudaStream_t>(ctx.stream.native);
  const bool add = args.beta != 0.0;
  if (args.a.empty()) {  // no products to sum
    if (!add) clear(stream, args.c);
    return;
  }
  const Problem problem{.transpose_a = args.transpose_a == Transpose::kYes,
                        .transpose_b = args.transpose_b == Transpose::kYes,
                        .a = Matrix::of(args.a),
                        .b = Matrix::of(args.b),
                        .c = Matrix::of(args.c),
                        .add = add};
  Products& on_device = products(ctx.device().index);
  const std::shared_ptr<const Plan> plan = on_device.plan(problem);
  const double factors_f64[] = {1.0, args.beta};
  const float factors_f32[] = {1.0f, static_cast<float>(args.beta)};
  const bool wide = problem.a.dtype == DType::kF64;
  const void* one = wide ? static_cast<const void*>(&factors_f64[0]) : &factors_f32[0];
  const void* beta = wide ? static_cast<const void*>(&factors_f64[1]) : &factors_f32[1];
  check(cublasLtMatmul(on_device.handle(), plan->product.get(), one, args.b.raw(), plan->b.get(),
                       args.a.raw(), plan->a.get(), beta, args.c.raw(), plan->c.get(), args.c.raw(),
                       plan->c.get(), &plan->algorithm, workspace.raw(),
                       static_cast<size_t>(kWorkspaceBytes), stream),
        "cublasLtMatmul", problem.to_string());
}

constexpr GemmKernel kTable[] = {{"cublasLt", DType::kBF16, available, run},
                                 {"cublasLt", DType::kF32, available, run},
                                 {"cublasLt", DType::kF64, available, run}};

}  // namespace

std::span<const GemmKernel> gemm_table() { return kTable; }

}  // namespace longhaul::kernels::cuda
