// The sums of core/lane_sums.h on a GPU: each block writes the sum of one chunk, then one block adds those.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/lane_sums.h"

namespace bitsplit {

// For blocks of kSumLanes threads, once in a kernel: term(begin) + ... + term(end - 1), right in thread 0.
template <typename T, typename Term>
__device__ double block_lane_sum(int64_t begin, int64_t end, const Term& term) {
  __shared__ double sums[kSumLanes];
  const int lane = threadIdx.x;
  T own = 0;
  for (int64_t i = begin + lane; i < end; i += kSumLanes) own += term(i);
  double sum = own;
  sums[lane] = sum;
  for (int half = kSumLanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) sums[lane] = sum += sums[lane + half];
  }
  return sum;
}

// Block b writes the sum of chunk b of `count` terms to sums[b].
template <typename T, typename Term>
__device__ void store_chunk_sum(int64_t count, const Term& term, double* sums) {
  const int64_t begin = int64_t{blockIdx.x} * kSumChunk, end = begin + kSumChunk;
  const double sum = block_lane_sum<T>(begin, end < count ? end : count, term);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// One block: *result = factor * (sums[0] + ... + sums[chunks - 1]).
template <typename Result>
__global__ void join_sums_kernel(const double* sums, int64_t chunks, double factor, Result* result) {
  const double sum = block_lane_sum<double>(0, chunks, [=](int64_t chunk) { return sums[chunk]; });
  if (threadIdx.x == 0) *result = static_cast<Result>(factor * sum);
}

}  // namespace bitsplit
