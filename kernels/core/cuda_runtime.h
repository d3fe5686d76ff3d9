// What core asks of CUDA. Implemented by kernels/core/cuda; by kernels/core/no_cuda in builds
// without CUDA, where there are no devices. Functions throw Error(kEnvironment) if the device or
// its memory is missing, Error(kInternal) if work on it has failed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace longhaul::cuda {

struct DeviceInfo {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int64_t memory_bytes = 0;
};

// Devices that this process sees and this binary has code for.
int device_count();
// Why there are none, or "".
std::string why_no_device();
DeviceInfo device_info(int device);
std::string versions();  // of runtime and driver

std::byte* allocate(int device, int64_t bytes);  // zeroed
void free(int device, std::byte* p) noexcept;
void fill_bytes(int device, std::byte* to, int value, int64_t bytes);  // done on return

void* make_stream(int device);
void destroy_stream(int device, void* stream) noexcept;
bool idle(void* stream);

// Either address may be on the host. Host memory that is read may be changed on return; host memory
// that is written holds the data once the stream is idle.
void copy(void* stream, const std::byte* from, std::byte* to, int64_t bytes);

}  // namespace longhaul::cuda
