// The machine under cuda_on_cpu.h: threads, warps, blocks, and a launch that plays them.
#pragma once

#include <algorithm>
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
#include <vector>

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

// std::barrier would do, but its waiters share counters with those of other barriers, and what synchronises
// by accident hides races from ThreadSanitizer.
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

}  // namespace cuda_on_cpu
