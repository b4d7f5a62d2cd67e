// Kernels of the family: functors of steps_elements.h over dense tensors. The key and the grid are read here,
// by every thread for itself.
#pragma once

#include "core/channel_grids.h"
#include "ops/lane_sums_kernels.cuh"
#include "ops/steps/steps_elements.h"

namespace bitsplit {

// Any grid and block; neighbouring threads take neighbouring elements.
template <typename T, typename Element, typename Rule>
__global__ void step_quantize_kernel(Element element, ChannelGrids<T> grids, Rule rule, int64_t numel) {
  const auto drop = rule.read();
  const LevelGrid<T> grid = grids.of(0);
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < numel; i += step)
    element(i, grid, drop);
}

// Block b of kSumLanes threads: grad_x of chunk b, and the sum of its terms of grad_scale into sums[b].
template <typename T, typename Element, typename Rule>
__global__ void step_backward_kernel(Element element, ChannelGrids<T> grids, Rule rule, int64_t numel,
                                     double* sums) {
  const auto drop = rule.read();
  const LevelGrid<T> grid = grids.of(0);
  store_chunk_sum<T>(numel, [=](int64_t i) { return element(i, grid, drop); }, sums);
}

// Any grid and block.
template <typename Element, typename Rule>
__global__ void mix_kernel(Element element, Rule rule, int64_t numel) {
  const auto drop = rule.read();
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < numel; i += step) element(i, drop);
}

}  // namespace bitsplit
