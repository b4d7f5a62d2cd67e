// Runs CUDA kernel bodies on CPU threads, so that they are tested on machines without a GPU and under
// ThreadSanitizer and AddressSanitizer. Test-only; no kernel includes it.
//
// Convention (see core/host_device.h): kernels are `__global__ void` functions, template or static, in
// ops/<family>/<family>_kernels.cuh. A test includes this header first and the kernels second, then calls
//
//   cuda_on_cpu::launch(grid, block, dynamic_shared_bytes, kernel<float>, arguments...);
//
// One std::thread plays one CUDA thread. The blocks of a launch run one after another on the same threads,
// which is why `__shared__` can be `static` (its contents survive from block to block: as on a GPU,
// initialise it). Dynamic shared memory is refilled with 0xff (NaN for floats) for every block and has
// exactly the size asked for. Barriers and warp exchanges synchronise only the threads they would on a GPU,
// so ThreadSanitizer reports a missing one. A thread that returned early no longer takes part in barriers.
// Lanes named in a warp mask must all arrive, else the test hangs; a lane that calls with a mask without
// itself aborts.
#pragma once

#include <math.h>

#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda_on_cpu_machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __constant__
#define __shared__ static
#define __align__(bytes) alignas(bytes)

namespace cuda_on_cpu {

// All lanes of the mask show `value`; each takes the one of lane `source`.
template <class T>
T exchange(unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  std::memcpy(&warp().slots[lane()], &value, sizeof(T));
  warp().sync(mask, lane());
  std::memcpy(&value, &warp().slots[source], sizeof(T));
  warp().sync(mask, lane());
  return value;
}

inline int count_votes(int predicate) {
  block->votes[thread] = predicate != 0;
  block->barrier.arrive_and_wait();
  int count = 0;
  for (int vote : block->votes) count += vote;
  block->barrier.arrive_and_wait();
  block->votes[thread] = 0;
  return count;
}

template <class T, class Change>
T update(T* address, Change change) {
  std::atomic_ref<T> cell(*address);
  T old = cell.load();
  while (!cell.compare_exchange_weak(old, change(old))) {
  }
  return old;
}

}  // namespace cuda_on_cpu

// ---- Barriers and votes of a block; fences are no-ops because blocks never overlap
inline void __syncthreads() { cuda_on_cpu::block->barrier.arrive_and_wait(); }
inline int __syncthreads_count(int predicate) { return cuda_on_cpu::count_votes(predicate); }
inline int __syncthreads_or(int predicate) { return cuda_on_cpu::count_votes(predicate) > 0; }
inline int __syncthreads_and(int predicate) { return cuda_on_cpu::count_votes(!predicate) == 0; }
inline void __threadfence() {}

// ---- Warps
inline void __syncwarp(unsigned mask = ~0u) { cuda_on_cpu::warp().sync(mask, cuda_on_cpu::lane()); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const unsigned lane = cuda_on_cpu::lane();
  return cuda_on_cpu::exchange(mask, value, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const unsigned lane = cuda_on_cpu::lane(), source = lane ^ bits;
  return cuda_on_cpu::exchange(mask, value, source / width <= lane / width ? source : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = cuda_on_cpu::lane();
  return cuda_on_cpu::exchange(mask, value, lane % width + delta < unsigned(width) ? lane + delta : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned lane = cuda_on_cpu::lane();
  return cuda_on_cpu::exchange(mask, value, lane % width >= delta ? lane - delta : lane);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  cuda_on_cpu::Warp& warp = cuda_on_cpu::warp();
  warp.slots[cuda_on_cpu::lane()] = predicate != 0;
  warp.sync(mask, cuda_on_cpu::lane());
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) votes |= static_cast<unsigned>(warp.slots[lane]) << lane;
  warp.sync(mask, cuda_on_cpu::lane());
  return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

// ---- Atomics
template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::update(address, [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::update(address, [=](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::update(address, [=](T old) { return value < old ? value : old; });
}
template <class T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::update(address, [=](T old) { return static_cast<T>(old | value); });
}
template <class T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*address).exchange(value);
}
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  std::atomic_ref<T>(*address).compare_exchange_strong(expected, value);
  return expected;
}

// ---- Arithmetic; the tests are compiled with -ffp-contract=off, so plain operators round once
template <class T>
T min(T a, std::type_identity_t<T> b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, std::type_identity_t<T> b) {
  return a < b ? b : a;
}
template <class T>
T __ldg(const T* address) {
  return *address;
}
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __clz(int bits) { return std::countl_zero(static_cast<unsigned>(bits)); }
inline int __ffs(int bits) { return bits ? std::countr_zero(static_cast<unsigned>(bits)) + 1 : 0; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline double __dsqrt_rn(double a) { return sqrt(a); }
inline int __float2int_rn(float a) { return static_cast<int>(rintf(a)); }
inline int __double2int_rn(double a) { return static_cast<int>(rint(a)); }
