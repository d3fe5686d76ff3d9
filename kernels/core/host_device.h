// Marks functions that kernels on every device share.
#pragma once

#ifdef __CUDACC__
#define LONGHAUL_HOST_DEVICE __host__ __device__
#else
#define LONGHAUL_HOST_DEVICE
#endif
