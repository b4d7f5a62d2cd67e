// Kernels of lp_search: a thread takes one candidate over part of a segment, so that no sum is ever shared,
// then the parts and segments are added in a fixed order.
#pragma once

#include <cstdint>

#include "ops/ranges/search_space.h"

namespace bitsplit {

constexpr int kSearchLanes = 32;      // candidates a block looks at together
constexpr int kSearchParts = 8;       // parts of a segment
constexpr int kSearchSegment = 2048;  // values in shared memory, 16 KiB of doubles
constexpr int kSearchRun = 32;        // values added up in T before the sum goes on in double
constexpr int kBestThreads = 128;     // a power of two

// sum of loss(x - fake_quantize(x)) over the values of one part: first, first + kSearchParts, ...
template <typename T, typename Loss>
__device__ double part_loss(const T* values, int count, int first, const LevelGrid<T>& grid,
                            const Loss& loss) {
  double total = 0;
  for (int begin = first; begin < count; begin += kSearchRun * kSearchParts) {
    T sum = 0;
    for (int i = begin; i < count && i < begin + kSearchRun * kSearchParts; i += kSearchParts)
      sum += loss(values[i] - fake_quantize(values[i], grid));
    total += sum;
  }
  return total;
}

// Block b of (kSearchLanes, kSearchParts) threads: errors[b * candidates + i - 1] of candidate i over segment
// b % segments of channel b / segments of rows [channels, size], in the channel's units.
template <typename T, typename Storage, typename Loss>
__global__ void segment_errors_kernel(const Storage* rows, int64_t size, int64_t segments, SearchSpace space,
                                      Loss loss, double* errors) {
  __shared__ T values[kSearchSegment];
  __shared__ double parts[kSearchParts][kSearchLanes];
  const int64_t channel = blockIdx.x / segments, start = blockIdx.x % segments * kSearchSegment;
  const int count = static_cast<int>(size - start < kSearchSegment ? size - start : kSearchSegment);
  const T unit = space.unit<T>(channel);
  const Storage* segment = rows + channel * size + start;
  for (int i = threadIdx.y * kSearchLanes + threadIdx.x; i < count; i += kSearchLanes * kSearchParts)
    values[i] = static_cast<T>(segment[i]) * unit;
  __syncthreads();
  for (int first = 1; first <= space.candidates; first += kSearchLanes) {
    const int candidate = first + threadIdx.x;
    if (candidate <= space.candidates)
      parts[threadIdx.y][threadIdx.x] =
          part_loss(values, count, threadIdx.y, space.grid_in_units<T>(channel, candidate), loss);
    __syncthreads();
    if (threadIdx.y == 0 && candidate <= space.candidates) {
      double total = 0;
      for (int part = 0; part < kSearchParts; ++part) total += parts[part][threadIdx.x];
      errors[int64_t{blockIdx.x} * space.candidates + candidate - 1] = total;
    }
    __syncthreads();
  }
}

// Block c of kBestThreads threads: adds the segments of channel c and stores its best candidate.
template <typename T>
__global__ void best_candidate_kernel(const double* errors, int64_t segments, SearchSpace space, T* scale,
                                      int32_t* zero_point, double* error) {
  __shared__ CandidateError found[kBestThreads];
  const int64_t channel = blockIdx.x;
  CandidateError best{0, 0};
  for (int candidate = threadIdx.x + 1; candidate <= space.candidates; candidate += kBestThreads) {
    double total = 0;
    for (int64_t segment = 0; segment < segments; ++segment)
      total += errors[(channel * segments + segment) * space.candidates + candidate - 1];
    const CandidateError mine{total, candidate};
    if (best.candidate == 0 || mine.is_better_than(best)) best = mine;
  }
  found[threadIdx.x] = best;
  for (unsigned half = kBestThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x >= half) continue;
    const CandidateError other = found[threadIdx.x + half];
    if (other.candidate > 0 && other.is_better_than(best)) best = other;
    found[threadIdx.x] = best;
  }
  if (threadIdx.x != 0) return;
  const AffineGrid<T> grid = space.grid<T>(channel, best.candidate);
  scale[channel] = grid.grid.scale;
  zero_point[channel] = grid.zero_point;
  error[channel] = space.error_of_units(channel, best.error);
}

}  // namespace bitsplit
