// Runs CUDA kernel bodies on CPU threads, so that they are tested on machines without a GPU and under
// ThreadSanitizer and AddressSanitizer. Test-only; no kernel includes it.
//
// Convention (see core/host_device.h): kernels are `__global__ void` functions, template or static, in
// ops/<family>/<family>_kernels.cuh. A test includes this header first and the kernels second, then calls
//
//   cuda_on_cpu::launch(grid, block, dynamic_shared_bytes, kernel<float>, arguments...);
//
// One std::thread plays one CUDA thread. The blocks of a launch run one after another on the same threads, which
// is why `__shared__` can be `static` (its contents survive from block to block: as on a GPU, initialise it).
// Dynamic shared memory is refilled with 0xff (NaN for floats) for every block and has exactly the size asked for.
// Barriers and warp exchanges synchronise only the threads they would on a GPU, so ThreadSanitizer reports a
// missing one. A thread that returned early no longer takes part in barriers. Lanes named in a warp mask must
// all arrive, else the test hangs; a lane that calls with a mask without itself aborts.
#pragma once

#include <math.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <thread>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __constant__
#define __shared__ static
#define __align__(bytes) alignas(bytes)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline thread_local dim3 threadIdx{0, 0, 0}, blockIdx{0, 0, 0}, blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace cuda_on_cpu {

inline void require(bool condition, const char* message) {
  if (condition) return;
  std::fprintf(stderr, "cuda_on_cpu: %s\n", message);
  std::abort();
}

// std::barrier would do, but its waiters share counters with those of other barriers, and what synchronises by
// accident hides races from ThreadSanitizer.
class Barrier {
 public:
  explicit Barrier(unsigned expected) : expected_(expected) {}

  void arrive_and_wait() {
    std::unique_lock lock(mutex_);
    const std::uint64_t phase = phase_;
    ++arrived_;
    finish_phase_if_complete();
    moved_on_.wait(lock, [&] { return phase != phase_; });
  }

  void arrive_and_drop() {
    std::lock_guard lock(mutex_);
    --expected_;
    finish_phase_if_complete();
  }

 private:
  void finish_phase_if_complete() {
    if (arrived_ != expected_) return;
    arrived_ = 0;
    ++phase_;
    moved_on_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable moved_on_;
  unsigned expected_, arrived_ = 0;
  std::uint64_t phase_ = 0;
};

// Up to 32 lanes, their exchange slots, and one barrier for every mask they synchronise on.
class Warp {
 public:
  explicit Warp(unsigned lanes) : alive_(lanes == 32 ? ~0u : (1u << lanes) - 1) {}

  void sync(unsigned mask, unsigned lane) {
    require(mask >> lane & 1, "a lane used a warp mask that does not name it");
    Barrier* barrier;
    {
      std::lock_guard lock(mutex_);
      barrier = &barriers_.try_emplace(mask, std::popcount(mask & alive_)).first->second;
    }
    barrier->arrive_and_wait();
  }

  void leave(unsigned lane) {
    std::lock_guard lock(mutex_);
    alive_ &= ~(1u << lane);
    slots[lane] = 0;  // votes of those who left count as no
    for (auto& [mask, barrier] : barriers_)
      if (mask >> lane & 1) barrier.arrive_and_drop();
  }

  std::uint64_t slots[32] = {};

 private:
  std::mutex mutex_;
  unsigned alive_;
  std::map<unsigned, Barrier> barriers_;
};

// What the threads of the running block share; made anew for every block.
struct Block {
  Block(unsigned threads, std::size_t shared_bytes) : barrier(threads), votes(threads, 0) {
    for (unsigned first = 0; first < threads; first += 32) warps.emplace_back(std::min(threads - first, 32u));
    shared.reset(static_cast<unsigned char*>(::operator new(shared_bytes, std::align_val_t(16))));
    std::memset(shared.get(), 0xff, shared_bytes);
  }
  struct Free {
    void operator()(unsigned char* memory) const { ::operator delete(memory, std::align_val_t(16)); }
  };
  Barrier barrier;
  std::vector<int> votes;
  std::deque<Warp> warps;
  std::unique_ptr<unsigned char, Free> shared;
};

inline thread_local Block* block = nullptr;
inline thread_local unsigned thread = 0;  // flat index in the block

inline Warp& warp() { return block->warps[thread / 32]; }
inline unsigned lane() { return thread % 32; }
inline unsigned char* dynamic_shared_memory() { return block->shared.get(); }

template <class... Parameters, class... Arguments>
void launch(dim3 grid, dim3 block_size, std::size_t shared_bytes, void (*kernel)(Parameters...),
            Arguments... arguments) {
  const unsigned threads = block_size.x * block_size.y * block_size.z;
  require(threads >= 1 && threads <= 1024, "a block has 1 to 1024 threads");
  require(grid.x >= 1 && grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 && grid.z <= 65535,
          "a grid has at least one block and at most 65535 in y and z");
  require(shared_bytes <= 227 * 1024, "a block has at most 227 KiB of dynamic shared memory");
  const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;

  std::optional<Block> current(std::in_place, threads, shared_bytes);
  Barrier between_blocks(threads);

  auto play = [&](unsigned index) {
    gridDim = grid;
    blockDim = block_size;
    threadIdx = {index % block_size.x, index / block_size.x % block_size.y,
                 index / (block_size.x * block_size.y)};
    thread = index;
    for (std::uint64_t b = 0; b < blocks; ++b) {
      blockIdx = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                  static_cast<unsigned>(b / grid.x / grid.y)};
      block = &*current;
      kernel(arguments...);
      warp().leave(lane());
      block->barrier.arrive_and_drop();
      between_blocks.arrive_and_wait();
      if (index == 0) current.emplace(threads, shared_bytes);
      between_blocks.arrive_and_wait();
    }
  };
  std::vector<std::thread> crew;
  for (unsigned index = 0; index < threads; ++index) crew.emplace_back(play, index);
  for (std::thread& worker : crew) worker.join();
}

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

// ---- Barriers and votes of a block; fences are no-ops because blocks never overlap ----------------------------
inline void __syncthreads() { cuda_on_cpu::block->barrier.arrive_and_wait(); }
inline int __syncthreads_count(int predicate) { return cuda_on_cpu::count_votes(predicate); }
inline int __syncthreads_or(int predicate) { return cuda_on_cpu::count_votes(predicate) > 0; }
inline int __syncthreads_and(int predicate) { return cuda_on_cpu::count_votes(!predicate) == 0; }
inline void __threadfence() {}

// ---- Warps ----------------------------------------------------------------------------------------------------
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

// ---- Atomics --------------------------------------------------------------------------------------------------
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

// ---- Arithmetic; the tests are compiled with -ffp-contract=off, so plain operators round once -------------------
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
