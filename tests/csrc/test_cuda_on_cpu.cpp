// The emulation itself: a wrong one would make every kernel test worthless.
#include <gtest/gtest.h>

#include <numeric>

#include "cuda_on_cpu.h"
#include "example_kernels.cuh"

namespace {

struct Coordinates {
  unsigned thread, block;
};

__global__ void coordinates_kernel(Coordinates* seen) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  seen[block * blockDim.x * blockDim.y * blockDim.z + thread] = {thread, block};
}

TEST(CudaOnCpu, EveryThreadOfEveryBlockRunsOnce) {
  std::vector<Coordinates> seen(24 * 30, {99, 99});
  cuda_on_cpu::launch({2, 3, 4}, {5, 3, 2}, 0, coordinates_kernel, seen.data());
  for (unsigned i = 0; i < seen.size(); ++i) {
    EXPECT_EQ(seen[i].thread, i % 30);
    EXPECT_EQ(seen[i].block, i / 30);
  }
}

TEST(CudaOnCpu, BlockReductionWithShuffles) {
  std::vector<int> values(1000);
  std::iota(values.begin(), values.end(), 1);
  for (unsigned threads : {32u, 64u, 256u}) {
    int total = 0;
    cuda_on_cpu::launch(3, threads, 0, sum_kernel<int, true>, values.data(), 1000, &total);
    EXPECT_EQ(total, 500500);
  }
}

TEST(CudaOnCpu, DynamicSharedMemory) {
  std::vector<float> values{1, 2, 3, 4, 5, 6};
  cuda_on_cpu::launch(2, 3, 3 * sizeof(float), reverse_kernel, values.data(), false);
  EXPECT_EQ(values, (std::vector<float>{3, 2, 1, 6, 5, 4}));
}

// Each lane writes one row of results; the expectations below are those of the CUDA programming guide.
__global__ void shuffle_kernel(int (*rows)[6]) {
  const int lane = threadIdx.x;
  rows[lane][0] = __shfl_sync(~0u, lane, 3);
  rows[lane][1] = __shfl_sync(~0u, lane, 9, 8);
  rows[lane][2] = __shfl_up_sync(~0u, lane, 2, 8);
  rows[lane][3] = __shfl_down_sync(~0u, lane, 2, 8);
  rows[lane][4] = __shfl_xor_sync(~0u, lane, 16);
  rows[lane][5] = __shfl_xor_sync(~0u, lane, 9, 8);
}

TEST(CudaOnCpu, ShufflesWithinSegments) {
  int rows[32][6];
  cuda_on_cpu::launch(1, 32, 0, shuffle_kernel, rows);
  for (int lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(rows[lane][0], 3);
    EXPECT_EQ(rows[lane][1], lane / 8 * 8 + 1);
    EXPECT_EQ(rows[lane][2], lane % 8 < 2 ? lane : lane - 2);
    EXPECT_EQ(rows[lane][3], lane % 8 > 5 ? lane : lane + 2);
    EXPECT_EQ(rows[lane][4], (lane + 16) % 32);
    EXPECT_EQ(rows[lane][5], (lane ^ 9) / 8 > lane / 8 ? lane : (lane ^ 9));
  }
}

__global__ void vote_kernel(unsigned* ballots, int* counts) {
  const unsigned half = threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u;
  ballots[threadIdx.x] = __ballot_sync(half, threadIdx.x % 3 == 0);
  counts[threadIdx.x] = 100 * __any_sync(half, threadIdx.x == 20) + 10 * __all_sync(half, threadIdx.x > 15) +
                        __syncthreads_count(threadIdx.x % 2);
}

TEST(CudaOnCpu, VotesOfHalfWarpsAndBlocks) {
  unsigned ballots[32];
  int counts[32];
  cuda_on_cpu::launch(1, 32, 0, vote_kernel, ballots, counts);
  for (unsigned lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(ballots[lane], 0x49249249u & (lane < 16 ? 0x0000ffffu : 0xffff0000u));
    EXPECT_EQ(counts[lane], (lane < 16 ? 0 : 110) + 16);
  }
}

// Threads beyond `n` return at once; the rest still meet at the barrier and in an incomplete warp.
__global__ void early_exit_kernel(int n, int* sums) {
  __shared__ int values[64];
  if (int(threadIdx.x) >= n) return;
  values[threadIdx.x] = threadIdx.x;
  __syncthreads();
  const int left = values[(threadIdx.x + n - 1) % n];
  const int together = __popc(__ballot_sync(~0u, true));
  sums[threadIdx.x] = left + __shfl_sync(~0u, int(threadIdx.x), 0) + 100 * together;
}

TEST(CudaOnCpu, ThreadsMayReturnEarly) {
  const int n = 40;
  std::vector<int> sums(n);
  cuda_on_cpu::launch(5, 50, 0, early_exit_kernel, n, sums.data());
  for (int i = 0; i < n; ++i) EXPECT_EQ(sums[i], (i + n - 1) % n + i / 32 * 32 + (i < 32 ? 3200 : 800));
}

__global__ void atomics_kernel(int* cells, double* total) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&cells[0], i);
  atomicMax(&cells[1], i);
  atomicMin(&cells[2], -i);
  atomicOr(&cells[3], 1 << threadIdx.x % 8);
  if (atomicCAS(&cells[4], 0, 1) == 0) atomicExch(&cells[5], 7);
  atomicAdd(total, 0.5);
}

TEST(CudaOnCpu, Atomics) {
  int cells[6] = {};
  double total = 0;
  cuda_on_cpu::launch(4, 16, 0, atomics_kernel, cells, &total);
  EXPECT_EQ(cells[0], 64 * 63 / 2);
  EXPECT_EQ(cells[1], 63);
  EXPECT_EQ(cells[2], -63);
  EXPECT_EQ(cells[3], 255);
  EXPECT_EQ(cells[4], 1);
  EXPECT_EQ(cells[5], 7);
  EXPECT_EQ(total, 32.0);
}

TEST(CudaOnCpu, RoundsHalfToEven) {
  EXPECT_EQ(__float2int_rn(2.5f), 2);
  EXPECT_EQ(__float2int_rn(3.5f), 4);
  EXPECT_EQ(__double2int_rn(-0.5), 0);
}

TEST(CudaOnCpuDeath, ImpossibleLaunchesAbort) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  float value = 0;
  EXPECT_DEATH(cuda_on_cpu::launch(1, 1025, 0, reverse_kernel, &value, false), "1 to 1024 threads");
  EXPECT_DEATH(cuda_on_cpu::launch(1, 1, 300000, reverse_kernel, &value, false), "227 KiB");
}

}  // namespace
