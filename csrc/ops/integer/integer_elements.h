// One output of an integer convolution, one value through a quantizer. Torch-free, host and device.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/shift.h"

namespace bitsplit::integer {

// Rows and columns of a convolution.
struct Axes {
  int64_t rows, columns;
};

// channels: of one group. All tensors are contiguous.
struct ConvShape {
  int64_t images, groups, channels, filters;  // channels and filters of one group
  Axes input, kernel, output, stride, padding, dilation;

  BITSPLIT_HOST_DEVICE int64_t taps() const { return channels * kernel.rows * kernel.columns; }
  BITSPLIT_HOST_DEVICE int64_t outputs() const {
    return images * groups * filters * output.rows * output.columns;
  }
};

// The input that a tap of an output reads; 0 in the padding. `plane` is a channel of an image.
BITSPLIT_HOST_DEVICE int16_t read_tap(const ConvShape& shape, const int16_t* plane, Axes output, Axes tap) {
  const int64_t row = output.rows * shape.stride.rows - shape.padding.rows + tap.rows * shape.dilation.rows;
  const int64_t column =
      output.columns * shape.stride.columns - shape.padding.columns + tap.columns * shape.dilation.columns;
  const bool inside = row >= 0 && row < shape.input.rows && column >= 0 && column < shape.input.columns;
  return inside ? plane[row * shape.input.columns + column] : int16_t{0};
}

// What a quantizer makes of a value.
BITSPLIT_HOST_DEVICE int16_t requantized(int32_t value, int divisor, int shift, int16_t low, int16_t high) {
  const int64_t level = shifted_quotient(value, divisor, shift);
  return static_cast<int16_t>(level < low ? low : level > high ? high : level);
}

}  // namespace bitsplit::integer
