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

// What is submitted to a stream between begin and end is taken down instead of done; it can be
// replayed until it is destroyed. In between, nobody may ask whether the stream is idle.
void begin_recording(void* stream);
void* end_recording(void* stream);
void replay(void* recording, void* stream);
void destroy_recording(void* recording) noexcept;

// Page-locked memory of the host, which copies to and from devices read and write directly.
std::byte* allocate_pinned(int64_t bytes);
void free_pinned(std::byte* p) noexcept;

// Points in a stream. A stream that waits for an event waits for what was recorded last before the
// call; the event may be recorded again at once.
void* make_event(int device);
void destroy_event(void* event) noexcept;
void record(void* event, void* stream);
bool reached(void* event);  // also if never recorded
void wait_for(void* stream, void* event);

// Either address may be on the host. Its memory may be changed, or read, once the stream has come
// past the copy; unless it is pinned, this may wait for that.
void copy(void* stream, const std::byte* from, std::byte* to, int64_t bytes);

}  // namespace longhaul::cuda
