// Kernel bodies of the integer family; no ATen. One thread an element.
#pragma once

#include "ops/integer/integer_elements.h"

namespace bitsplit::integer {

constexpr int kThreads = 256;

// bias may be null.
static __global__ void conv_kernel(ConvShape shape, const int16_t* input, const int16_t* weight,
                                   const int32_t* bias, int32_t* output) {
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= shape.outputs()) return;
  const Axes place{index / shape.output.columns % shape.output.rows, index % shape.output.columns};
  const int64_t plane = index / (shape.output.rows * shape.output.columns);  // image, group, filter
  const int64_t filter = plane % (shape.groups * shape.filters), group = filter / shape.filters;
  const int64_t image = plane / (shape.groups * shape.filters), size = shape.input.rows * shape.input.columns;
  const int16_t* const source = input + (image * shape.groups + group) * shape.channels * size;
  const int16_t* taps = weight + filter * shape.taps();
  int32_t sum = bias == nullptr ? 0 : bias[filter];
  for (int64_t channel = 0; channel < shape.channels; ++channel)
    for (int64_t row = 0; row < shape.kernel.rows; ++row)
      for (int64_t column = 0; column < shape.kernel.columns; ++column)
        sum += int32_t{*taps++} * read_tap(shape, source + channel * size, place, {row, column});
  output[index] = sum;
}

static __global__ void requantize_kernel(const int32_t* values, const int32_t* shift, int16_t* output,
                                         int64_t numel, int divisor, int16_t low, int16_t high) {
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index < numel) output[index] = requantized(values[index], divisor, shift[index], low, high);
}

}  // namespace bitsplit::integer
