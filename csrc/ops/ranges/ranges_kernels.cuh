// Kernels of channel_range and histogram.
#pragma once

#include <cstdint>

#include "core/channel_layout.h"
#include "ops/ranges/range_elements.h"

namespace bitsplit {

constexpr int kRangeThreads = 256;  // a power of two

// The range of what all threads of the block hold; the result is right in thread 0.
template <typename T>
__device__ Range<T> block_range(Range<T> mine) {
  __shared__ T min[kRangeThreads], max[kRangeThreads];
  min[threadIdx.x] = mine.min;
  max[threadIdx.x] = mine.max;
  for (unsigned half = kRangeThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      mine.add(min[threadIdx.x + half], max[threadIdx.x + half]);
      min[threadIdx.x] = mine.min;
      max[threadIdx.x] = mine.max;
    }
  }
  return mine;
}

// Block b reduces segment b % segments of channel b / segments into min[b] and max[b]. The elements of a
// channel are numbered through its runs; a segment is `length` of them.
template <typename T, typename Storage>
__global__ void segment_range_kernel(const Storage* x, ChannelLayout layout, int64_t segments, int64_t length,
                                     T* min, T* max) {
  const int64_t channel = blockIdx.x / segments, start = blockIdx.x % segments * length;
  const int64_t size = layout.outer * layout.inner, end = start + length < size ? start + length : size;
  const ChannelLayout runs{1, layout.outer, layout.inner};
  ChannelWalk walk(runs, start + threadIdx.x, kRangeThreads);  // its "channel" is the run
  Range<T> range;
  for (int64_t k = start + threadIdx.x; k < end; k += kRangeThreads, walk.advance()) {
    const int64_t run = walk.channel() * layout.channels + channel;
    const T value = static_cast<T>(x[run * layout.inner + walk.position()]);
    range.add(value, value);
  }
  range = block_range(range);
  if (threadIdx.x == 0) {
    min[blockIdx.x] = range.min;
    max[blockIdx.x] = range.max;
  }
}

// Block c joins the segments of channel c.
template <typename T, typename Storage>
__global__ void join_ranges_kernel(const T* min, const T* max, int64_t segments, Storage* channel_min,
                                   Storage* channel_max) {
  Range<T> range;
  for (int64_t i = threadIdx.x; i < segments; i += kRangeThreads)
    range.add(min[blockIdx.x * segments + i], max[blockIdx.x * segments + i]);
  range = block_range(range);
  if (threadIdx.x == 0) {
    channel_min[blockIdx.x] = static_cast<Storage>(range.min);
    channel_max[blockIdx.x] = static_cast<Storage>(range.max);
  }
}

// Any grid and block; bins * 4 bytes of dynamic shared memory. Each block counts for itself, below 2^32
// values.
template <typename T, typename Storage>
__global__ void histogram_kernel(const Storage* x, int64_t numel, T low, T cells_per_unit, int bins,
                                 unsigned long long* counts) {
  BITSPLIT_DYNAMIC_SHARED(unsigned, own);
  for (int bin = threadIdx.x; bin < bins; bin += blockDim.x) own[bin] = 0;
  __syncthreads();
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < numel; i += step) {
    const int cell = histogram_cell(static_cast<T>(x[i]), low, cells_per_unit, bins);
    if (cell < bins) atomicAdd(&own[cell], 1u);
  }
  __syncthreads();
  for (int bin = threadIdx.x; bin < bins; bin += blockDim.x)
    if (own[bin] > 0) atomicAdd(&counts[bin], static_cast<unsigned long long>(own[bin]));
}

}  // namespace bitsplit
