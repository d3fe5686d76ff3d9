#include "kernels/core/cuda_runtime.h"

#include "kernels/core/error.h"

namespace longhaul::cuda {

namespace {
constexpr const char* kNotBuilt =
    "this binary was built without CUDA; rebuild with the preset `cuda` or set device: CPU";
[[noreturn]] void not_built() { fail(ErrorCode::kEnvironment, kNotBuilt); }
}  // namespace

int device_count() { return 0; }
std::string why_no_device() { return kNotBuilt; }
DeviceInfo device_info(int) { not_built(); }
std::string versions() { return ""; }
std::byte* allocate(int, int64_t) { not_built(); }
void free(int, std::byte*) noexcept {}
void fill_bytes(int, std::byte*, int, int64_t) { not_built(); }
void* make_stream(int) { not_built(); }
void destroy_stream(int, void*) noexcept {}
bool idle(void*) { not_built(); }
void begin_recording(void*) { not_built(); }
void* end_recording(void*) { not_built(); }
void replay(void*, void*) { not_built(); }
void destroy_recording(void*) noexcept {}
std::byte* allocate_pinned(int64_t) { not_built(); }
void free_pinned(std::byte*) noexcept {}
void* make_event(int) { not_built(); }
void destroy_event(void*) noexcept {}
void record(void*, void*) { not_built(); }
bool reached(void*) { not_built(); }
void wait_for(void*, void*) { not_built(); }
void copy(void*, const std::byte*, std::byte*, int64_t) { not_built(); }

}  // namespace longhaul::cuda
