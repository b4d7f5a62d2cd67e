// Long sums that are the same bits for every number of threads, every instruction set, on CPU and GPU.
// Torch-free.
//
// Terms are cut into chunks of kSumChunk. Term i of a chunk goes to lane i % kSumLanes; a lane adds its few
// terms in order, in the type of the terms. Lanes are added up in double by halving: lane l and lane l + 128,
// then l and l + 64, ... The sums of the chunks are added up in the same way, as one chunk of any length.
// A GPU gives every lane to a thread and every chunk to a block (ops/lane_sums_kernels.cuh).
#pragma once

#include <cstdint>

#include "core/integers.h"
#include "core/simd.h"

namespace bitsplit {

constexpr int kSumLanes = 256;  // a power of two
constexpr int64_t kSumChunk = 2048;

inline int64_t sum_chunks(int64_t count) { return divide_up(count, kSumChunk); }

// term(begin) + ... + term(end - 1), all one chunk; every term is asked for once.
template <typename T, typename Term>
BITSPLIT_SIMD inline double lane_sum(int64_t begin, int64_t end, const Term& term) {
  T lanes[kSumLanes] = {};
  for (; begin + kSumLanes <= end; begin += kSumLanes)
    for (int lane = 0; lane < kSumLanes; ++lane) lanes[lane] += term(begin + lane);
  const int rest = static_cast<int>(end - begin);
  for (int lane = 0; lane < rest; ++lane) lanes[lane] += term(begin + lane);
  double sums[kSumLanes];
  for (int lane = 0; lane < kSumLanes; ++lane) sums[lane] = lanes[lane];
  for (int half = kSumLanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return sums[0];
}

}  // namespace bitsplit
