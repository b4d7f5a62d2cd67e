// Kernels of gram: everything but the matrix products, which cuBLAS does. No ATen here; also compiled for the
// CPU by tests/csrc/test_kernels_gram.cpp.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace bitsplit::gram {

// Features [images, groups * channels, 3 spatial axes] and the window that reads them.
struct Window {
  int64_t image_stride, channel_stride, stride_of[3];  // in memory
  int64_t size[3], kernel[3], step[3], padding[3], dilation[3], out[3];
  int64_t channels, groups;

  BITSPLIT_HOST_DEVICE int64_t taps() const { return kernel[0] * kernel[1] * kernel[2]; }
  BITSPLIT_HOST_DEVICE int64_t outputs() const { return out[0] * out[1] * out[2]; }
};

// The value that a column (channel of the group, tap) of the patch at flat output position `output` has.
template <class T>
BITSPLIT_HOST_DEVICE T patch_value(const T* features, const Window& w, int64_t image, int64_t output,
                                   int64_t group, int64_t column) {
  const int64_t channel = group * w.channels + column / w.taps();
  int64_t tap = column % w.taps(), at = image * w.image_stride + channel * w.channel_stride;
  for (int k = 2; k >= 0; --k) {
    const int64_t r = output % w.out[k] * w.step[k] + tap % w.kernel[k] * w.dilation[k] - w.padding[k];
    if (r < 0 || r >= w.size[k]) return T(0);
    at += r * w.stride_of[k];
    output /= w.out[k];
    tap /= w.kernel[k];
  }
  return features[at];
}

// matrix[group, column, k] = the column's value in patch first + k of the batch, k < patches. Patches are
// numbered image by image, `per_image` each: those at `positions` [images * per_image], or all outputs if
// that is null.
template <class T>
__global__ void unfold_kernel(const T* features, Window w, const int64_t* positions, int64_t per_image,
                              int64_t first, int64_t patches, T* matrix) {
  const int64_t columns = w.channels * w.taps(), total = w.groups * columns * patches;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < total;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t patch = first + i % patches, row = i / patches;
    const int64_t output = positions ? positions[patch] : patch % per_image;
    matrix[i] = patch_value(features, w, patch / per_image, output, row / columns, row % columns);
  }
}

// Adds a block of products to an accumulator [groups, height, width], in float64: product [groups, rows,
// columns] belongs at (row, column). With `mirror` the accumulator is square and symmetric: the transposed
// block is added as well, and of a block on the diagonal only the upper half is read, so that the result is
// symmetric bit for bit.
template <class T>
__global__ void add_block_kernel(const T* product, int64_t groups, int64_t rows, int64_t columns,
                                 double* accumulator, int64_t height, int64_t width, int64_t row,
                                 int64_t column, bool mirror) {
  const int64_t total = groups * rows * columns;
  for (int64_t k = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; k < total;
       k += int64_t{gridDim.x} * blockDim.x) {
    const int64_t group = k / (rows * columns), i = row + k / columns % rows, j = column + k % columns;
    if (mirror && i > j) continue;
    double* const matrix = accumulator + group * height * width;
    matrix[i * width + j] += product[k];
    if (mirror && i != j) matrix[j * width + i] += product[k];
  }
}

// sums[row] += the sum of matrix[row, 0..length), squares[row] += that of the squares unless squares is null;
// one block of kSumThreads threads a row, added in a fixed order.
constexpr int kSumThreads = 128;
template <class T>
__global__ void row_sums_kernel(const T* matrix, int64_t length, double* sums, double* squares) {
  __shared__ double partial[2][kSumThreads];
  const T* values = matrix + int64_t{blockIdx.x} * length;
  double sum = 0, square = 0;
  for (int64_t k = threadIdx.x; k < length; k += kSumThreads) {
    const double value = values[k];
    sum += value;
    square += value * value;
  }
  partial[0][threadIdx.x] = sum;
  partial[1][threadIdx.x] = square;
  for (unsigned half = kSumThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x >= half) continue;
    partial[0][threadIdx.x] += partial[0][threadIdx.x + half];
    partial[1][threadIdx.x] += partial[1][threadIdx.x + half];
  }
  if (threadIdx.x != 0) return;
  sums[blockIdx.x] += partial[0][0];
  if (squares) squares[blockIdx.x] += partial[1][0];
}

}  // namespace bitsplit::gram
