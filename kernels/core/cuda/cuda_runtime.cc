#include "kernels/core/cuda_runtime.h"

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "kernels/core/cuda/check.h"

namespace longhaul::cuda {

namespace {

constexpr int kLeastMajor = 8;  // kernels use mma.sync of bf16 and cp.async

void use(int device) { check(cudaSetDevice(device), "cudaSetDevice", ErrorCode::kEnvironment); }
cudaStream_t native(void* stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t as_event(void* event) { return static_cast<cudaEvent_t>(event); }

std::string version(int number) { return absl::StrCat(number / 1000, ".", number % 1000 / 10); }

}  // namespace

static std::string find_why_no_device() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess) {
    cudaGetLastError();
    return absl::StrCat("no usable GPU: ", cudaGetErrorString(code));
  }
  if (count == 0) return "no GPU is visible to this process (see CUDA_VISIBLE_DEVICES)";
  const DeviceInfo info = device_info(0);
  if (info.major < kLeastMajor) {
    return absl::StrCat("GPU 0 (", info.name, ") has compute capability ", info.major, ".",
                        info.minor, "; ", kLeastMajor, ".0 or higher is needed");
  }
  return "";
}

std::string why_no_device() {
  static const std::string why = find_why_no_device();  // takes milliseconds to find
  return why;
}

int device_count() {
  int count = 0;
  return why_no_device().empty() && cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

DeviceInfo device_info(int device) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties",
        ErrorCode::kEnvironment);
  return {.name = properties.name,
          .major = properties.major,
          .minor = properties.minor,
          .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem)};
}

std::string versions() {
  int runtime = 0, driver = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);
  return absl::StrCat("CUDA runtime ", version(runtime), ", driver ",
                      driver == 0 ? "none" : absl::StrCat("for CUDA ", version(driver)));
}

std::byte* allocate(int device, int64_t bytes) {
  if (const std::string why = why_no_device(); !why.empty()) fail(ErrorCode::kEnvironment, why);
  use(device);
  void* p = nullptr;
  const cudaError_t code = cudaMalloc(&p, static_cast<size_t>(bytes > 0 ? bytes : 1));
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free_bytes = 0, total = 0;
    cudaMemGetInfo(&free_bytes, &total);
    fail(ErrorCode::kEnvironment,
         absl::StrCat("GPU ", device, " has ", free_bytes, " bytes free of ", total,
                      "; not enough for ", bytes));
  }
  check(code, "cudaMalloc", ErrorCode::kEnvironment);
  fill_bytes(device, static_cast<std::byte*>(p), 0, bytes);
  return static_cast<std::byte*>(p);
}

void free(int device, std::byte* p) noexcept {
  cudaSetDevice(device);
  cudaFree(p);
}

void fill_bytes(int device, std::byte* to, int value, int64_t bytes) {
  use(device);
  check(cudaMemsetAsync(to, value, static_cast<size_t>(bytes), nullptr), "cudaMemsetAsync");
  check(cudaStreamSynchronize(nullptr), "cudaMemsetAsync");
}

void* make_stream(int device) {
  if (const std::string why = why_no_device(); !why.empty()) fail(ErrorCode::kEnvironment, why);
  use(device);
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate",
        ErrorCode::kEnvironment);
  return stream;
}

void destroy_stream(int device, void* stream) noexcept {
  cudaSetDevice(device);
  cudaStreamDestroy(native(stream));
}

bool idle(void* stream) {
  const cudaError_t code = cudaStreamQuery(native(stream));
  if (code == cudaErrorNotReady) return false;
  check(code, "work on the GPU");
  return true;
}

void begin_recording(void* stream) {
  // Relaxed: other threads and streams go on meanwhile, and this thread may look after them.
  check(cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeRelaxed),
        "cudaStreamBeginCapture");
}

void* end_recording(void* stream) {
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(native(stream), &graph), "cudaStreamEndCapture");
  cudaGraphExec_t recording = nullptr;
  const cudaError_t code = cudaGraphInstantiate(&recording, graph, 0);
  cudaGraphDestroy(graph);
  check(code, "cudaGraphInstantiate");
  return recording;
}

void replay(void* recording, void* stream) {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(recording), native(stream)),
        "cudaGraphLaunch");
}

void destroy_recording(void* recording) noexcept {
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(recording));
}

std::byte* allocate_pinned(int64_t bytes) {
  void* p = nullptr;
  const cudaError_t code =
      cudaHostAlloc(&p, static_cast<size_t>(bytes > 0 ? bytes : 1), cudaHostAllocDefault);
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail(ErrorCode::kEnvironment,
         absl::StrCat("no ", bytes, " bytes of host memory that can be pinned for transfers"));
  }
  check(code, "cudaHostAlloc", ErrorCode::kEnvironment);
  return static_cast<std::byte*>(p);
}

void free_pinned(std::byte* p) noexcept { cudaFreeHost(p); }

void* make_event(int device) {
  use(device);
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate",
        ErrorCode::kEnvironment);
  return event;
}

void destroy_event(void* event) noexcept { cudaEventDestroy(as_event(event)); }

void record(void* event, void* stream) {
  check(cudaEventRecord(as_event(event), native(stream)), "cudaEventRecord");
}

bool reached(void* event) {
  const cudaError_t code = cudaEventQuery(as_event(event));
  if (code == cudaErrorNotReady) return false;
  check(code, "work on the GPU");
  return true;
}

void wait_for(void* stream, void* event) {
  check(cudaStreamWaitEvent(native(stream), as_event(event), 0), "cudaStreamWaitEvent");
}

void copy(void* stream, const std::byte* from, std::byte* to, int64_t bytes) {
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, native(stream)),
        "cudaMemcpyAsync");
}

}  // namespace longhaul::cuda
