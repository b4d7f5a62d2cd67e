// Kernels that exercise what cuda_on_cpu.h emulates; also two faulty ones that the sanitizers must catch.
#pragma once

#include "core/host_device.h"

// Adds the lanes of a full warp; every lane gets the sum.
template <class T>
__device__ T warp_sum(T value) {
  for (int bits = 16; bits > 0; bits /= 2) value += __shfl_xor_sync(~0u, value, bits);
  return value;
}

// *total += sum of values[0..n). Blocks are whole warps. Without `synchronize` it has a data race.
template <class T, bool synchronize>
__global__ void sum_kernel(const T* values, int n, T* total) {
  __shared__ T partial[32];
  T sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += values[i];
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  if constexpr (synchronize) __syncthreads();
  if (threadIdx.x != 0) return;
  sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += partial[warp];
  atomicAdd(total, sum);
}

// Reverses every block's stretch of `values` in dynamic shared memory; reads a float too many if `overrun`.
static __global__ void reverse_kernel(float* values, bool overrun) {
  BITSPLIT_DYNAMIC_SHARED(float, stretch);
  float* mine = values + blockIdx.x * blockDim.x;
  stretch[threadIdx.x] = mine[threadIdx.x];
  __syncthreads();
  mine[threadIdx.x] = stretch[blockDim.x - 1 - threadIdx.x + (overrun ? 1 : 0)];
}
