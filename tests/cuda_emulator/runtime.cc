// The runtime API: one device, whose work ends before a call returns.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda_runtime_api.h"
#include "tests/cuda_emulator/device_memory.h"
#include "tests/cuda_emulator/emulator.h"

namespace longhaul::cuda_emulator {
namespace {

constexpr size_t kMemory = size_t{8} << 30;

std::mutex mutex;
std::map<void*, size_t> allocations, pinned;
size_t allocated = 0;
int users = 0;

size_t whole_pages(size_t bytes) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return (bytes + page) / page * page;
}

bool lies_in(const std::map<void*, size_t>& blocks, const void* p) {
  auto block = blocks.upper_bound(const_cast<void*>(p));
  if (block == blocks.begin()) return false;
  --block;
  return static_cast<const char*>(p) < static_cast<const char*>(block->first) + block->second;
}

// Whether a copy can be left to the device at once.
bool is_ready(const void* from) {
  const std::lock_guard lock(mutex);
  return lies_in(allocations, from) || lies_in(pinned, from);
}

void protect(int protection) {
  for (const auto& [p, bytes] : allocations) mprotect(p, bytes, protection);
}

}  // namespace

}  // namespace longhaul::cuda_emulator

using Works = std::vector<std::function<cudaError_t()>>;
struct CUgraph_st {
  Works works;
};
struct CUgraphExec_st {
  Works works;
};
struct CUstream_st {
  std::unique_ptr<CUgraph_st> captured;  // while capturing
  bool spoilt = false;
};

namespace longhaul::cuda_emulator {

cudaError_t submit(cudaStream_t stream, std::function<cudaError_t()> work) {
  if (stream == nullptr || stream->captured == nullptr) return work();
  stream->captured->works.push_back(std::move(work));
  return cudaSuccess;
}

DeviceMemoryAccess::DeviceMemoryAccess() {
  const std::lock_guard lock(mutex);
  if (users++ == 0) protect(PROT_READ | PROT_WRITE);
}

DeviceMemoryAccess::~DeviceMemoryAccess() {
  const std::lock_guard lock(mutex);
  if (--users == 0) protect(PROT_NONE);
}

}  // namespace longhaul::cuda_emulator

using namespace longhaul::cuda_emulator;

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidValue; }
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "emulated on the CPU");
  properties->totalGlobalMem = kMemory;
  properties->major = 8;
  properties->multiProcessorCount = 2;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 2;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 8;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(longhaul::cuda_emulator::kMostSharedBytes);
      break;
  }
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  const std::lock_guard lock(mutex);
  *free = kMemory - allocated;
  *total = kMemory;
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    default:
      return "invalid argument";
  }
}
const char* cudaGetErrorName(cudaError_t error) { return cudaGetErrorString(error); }
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaMalloc(void** p, size_t bytes) {
  const std::lock_guard lock(mutex);
  const size_t size = whole_pages(bytes);
  if (allocated + size > kMemory) return cudaErrorMemoryAllocation;
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return cudaErrorMemoryAllocation;
  std::memset(memory, 0xff, size);
  if (users == 0) mprotect(memory, size, PROT_NONE);
  allocations[memory] = size;
  allocated += size;
  *p = memory;
  return cudaSuccess;
}
cudaError_t cudaFree(void* p) {
  if (p == nullptr) return cudaSuccess;
  const std::lock_guard lock(mutex);
  const auto found = allocations.find(p);
  if (found == allocations.end()) return cudaErrorInvalidValue;
  munmap(p, found->second);
  allocated -= found->second;
  allocations.erase(found);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) {
  *p = std::malloc(bytes == 0 ? 1 : bytes);
  if (*p == nullptr) return cudaErrorMemoryAllocation;
  const std::lock_guard lock(mutex);
  pinned[*p] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) {
  {
    const std::lock_guard lock(mutex);
    pinned.erase(p);
  }
  std::free(p);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  if (bytes > 0 && !is_ready(from)) return cudaErrorInvalidValue;
  return submit(stream, [=] {
    const DeviceMemoryAccess access;
    if (bytes > 0) std::memmove(to, from, bytes);
    return cudaSuccess;
  });
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t stream) {
  return submit(stream, [=] {
    const DeviceMemoryAccess access;
    for (size_t row = 0; row < height; ++row) {
      std::memmove(static_cast<char*>(to) + row * to_pitch,
                   static_cast<const char*>(from) + row * from_pitch, width);
    }
    return cudaSuccess;
  });
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  return submit(stream, [=] {
    const DeviceMemoryAccess access;
    if (bytes > 0) std::memset(to, value, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new CUstream_st;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = *greatest = 0;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (stream == nullptr || stream->captured == nullptr) return cudaSuccess;
  stream->spoilt = true;
  return cudaErrorStreamCaptureUnsupported;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return cudaStreamQuery(stream); }

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream == nullptr || stream->captured != nullptr) return cudaErrorStreamCaptureUnsupported;
  stream->captured = std::make_unique<CUgraph_st>();
  stream->spoilt = false;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (stream == nullptr || stream->captured == nullptr) return cudaErrorInvalidValue;
  *graph = stream->captured.release();
  if (!stream->spoilt) return cudaSuccess;
  cudaGraphDestroy(std::exchange(*graph, nullptr));
  return cudaErrorStreamCaptureInvalidated;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  *executable = new CUgraphExec_st{graph->works};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  for (const auto& work : executable->works) {
    if (const cudaError_t error = submit(stream, work); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}

// Handles are never looked into; a distinct address each.
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new char);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<char*>(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 0;
  return cudaSuccess;
}
