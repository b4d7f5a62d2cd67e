// Qualifiers for code that both the host compiler and nvcc read. Torch-free.
//
// Numerics in core/ are marked BITSPLIT_HOST_DEVICE, so that the CPU operator, the CUDA kernel and the
// GoogleTests all run the very same lines.
//
// Kernel bodies live in ops/<family>/<family>_kernels.cuh as `__global__ void` functions (template, or
// static) that see raw pointers and sizes only. Two compilers read them: nvcc through <family>_cuda.cu, and
// g++ through tests/csrc/test_*.cpp, which includes cuda_on_cpu.h first. The words of CUDA they use are the
// same in both, except for dynamic shared memory, which goes through the macro below.
#pragma once

#if defined(__CUDACC__)
#define BITSPLIT_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define BITSPLIT_HOST_DEVICE inline
#endif

// BITSPLIT_DYNAMIC_SHARED(float, tile): `float* tile` points at the dynamic shared memory of the block, whose
// size in bytes is the third launch argument. Aligned to 16 bytes; use it once in a kernel and cut it by
// hand.
#if defined(__CUDACC__)
#define BITSPLIT_DYNAMIC_SHARED(type, name)                                       \
  extern __shared__ __align__(16) unsigned char bitsplit_dynamic_shared_memory[]; \
  type* const name = reinterpret_cast<type*>(bitsplit_dynamic_shared_memory)
#else
#define BITSPLIT_DYNAMIC_SHARED(type, name) \
  type* const name = reinterpret_cast<type*>(::cuda_on_cpu::dynamic_shared_memory())
#endif
