// Kernel bodies of the split solvers in weight space, as split_weights.h on the CPU; no ATen. A block of
// kRowThreads fits one row.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/levels.h"
#include "core/planes.h"
#include "core/split_steps.h"
#include "ops/split/split_kernels.cuh"

namespace bitsplit::split {

// fwa: codes [rows, columns], scales [rows].
template <class T>
__global__ void fwa_kernel(const T* weights, int columns, int bits, int8_t* codes, double* scales) {
  __shared__ double maxima[kRowThreads];
  const T* const weight = weights + int64_t{blockIdx.x} * columns;
  int8_t* const code = codes + int64_t{blockIdx.x} * columns;
  double largest = 0;
  for (int n = threadIdx.x; n < columns; n += blockDim.x) {
    const double size = weight[n] < 0 ? -static_cast<double>(weight[n]) : static_cast<double>(weight[n]);
    largest = size > largest ? size : largest;
    code[n] = 0;
  }
  maxima[threadIdx.x] = largest;
  __syncthreads();
  for (unsigned i = 0; i < blockDim.x; ++i) largest = maxima[i] > largest ? maxima[i] : largest;
  const bool dead = largest < kSmallestWeight;
  double scale = dead ? 1 : largest / level_limit(bits);
  for (int round = 0; round < kMostFwaRounds && !dead; ++round) {
    double dot = 0, norm = 0;
    int moved = 0;
    for (int n = threadIdx.x; n < columns; n += blockDim.x) {
      const double best = nearest_code(weight[n] / scale, symmetric_levels<double>(bits));
      moved |= best != code[n];
      code[n] = static_cast<int8_t>(best);
      dot += weight[n] * best;
      norm += best * best;
    }
    dot = block_sum(dot);
    norm = block_sum(norm);
    if (!__syncthreads_or(moved)) break;
    if (dot > 0) scale = dot / norm;
  }
  if (threadIdx.x == 0) scales[blockIdx.x] = scale;
}

// <w, q> / <q, q> where that is positive, else `scale`; the same in all threads of the block.
template <class T>
__device__ double fit_weight_scale(const T* weight, const int8_t* code, int columns, double scale) {
  double dot = 0, norm = 0;
  for (int n = threadIdx.x; n < columns; n += blockDim.x) {
    dot += static_cast<double>(weight[n]) * code[n];
    norm += static_cast<double>(code[n]) * code[n];
  }
  dot = block_sum(dot);
  norm = block_sum(norm);
  return dot > 0 ? dot / norm : scale;
}

// ofwa, from the codes and scales it is given; digits [rows, planes, columns] is scratch.
template <class T>
__global__ void ofwa_kernel(const T* weights, int columns, int bits, int rounds, int8_t* codes,
                            int8_t* digits, double* scales) {
  const int64_t row = blockIdx.x;
  const T* const weight = weights + row * columns;
  int8_t *const code = codes + row * columns, *const digit = digits + row * plane_count(bits) * columns;
  double scale = scales[row];
  for (int n = threadIdx.x; n < columns; n += blockDim.x)
    for (int plane = 0; plane < plane_count(bits); ++plane)
      digit[plane * columns + n] = static_cast<int8_t>(plane_digit(code[n], plane));
  int moved = 1;
  for (int round = 0; round < rounds && moved; ++round) {
    moved = 0;
    scale = fit_weight_scale(weight, code, columns, scale);
    for (int n = threadIdx.x; n < columns; n += blockDim.x)
      for (int plane = plane_count(bits) - 1; plane >= 0; --plane) {
        int8_t& own = digit[plane * columns + n];
        const int others = code[n] - own * plane_weight(plane);
        const int best = weight_digit(weight[n] - scale * others, scale * plane_weight(plane));
        moved |= best != own;
        own = static_cast<int8_t>(best);
        code[n] = static_cast<int8_t>(others + best * plane_weight(plane));
      }
    moved = __syncthreads_or(moved);
  }
  scale = fit_weight_scale(weight, code, columns, scale);
  if (threadIdx.x == 0) scales[row] = scale;
}

}  // namespace bitsplit::split
