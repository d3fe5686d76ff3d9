// The emulator's device memory: pages that the host cannot read or write.
#pragma once

namespace longhaul::cuda_emulator {

// While one exists, device memory can be used.
class DeviceMemoryAccess {
 public:
  DeviceMemoryAccess();
  ~DeviceMemoryAccess();
  DeviceMemoryAccess(const DeviceMemoryAccess&) = delete;
  DeviceMemoryAccess& operator=(const DeviceMemoryAccess&) = delete;
};

}  // namespace longhaul::cuda_emulator
