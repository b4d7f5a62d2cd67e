// The pass over memory; lane_sums_kernels.cuh has the second step.
#pragma once

#include "ops/lane_sums_kernels.cuh"
#include "ops/loss/loss_elements.h"

namespace bitsplit {

// Block b of kSumLanes threads: the gradient of chunk b, and the sum of its terms into sums[b].
template <typename T, typename Term>
__global__ void loss_kernel(Term term, int64_t numel, double* sums) {
  store_chunk_sum<T>(numel, term, sums);
}

}  // namespace bitsplit
