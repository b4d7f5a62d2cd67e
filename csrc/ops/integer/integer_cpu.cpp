// The CPU kernels of the integer family: patches of one output row at a time, and dot products with them.
#include <ATen/Parallel.h>

#include <vector>

#include "core/simd.h"
#include "ops/integer/integer_dispatch.h"

namespace bitsplit::integer {
namespace {

constexpr int64_t kSmallTask = 16384;  // values; less is not worth a thread

// What the taps of a row of outputs read, patches [columns, taps] of one group of an image.
void read_patches(const ConvShape& shape, const int16_t* image, int64_t row, int16_t* patches) {
  const int64_t plane = shape.input.rows * shape.input.columns;
  for (int64_t column = 0; column < shape.output.columns; ++column)
    for (int64_t channel = 0; channel < shape.channels; ++channel)
      for (int64_t y = 0; y < shape.kernel.rows; ++y)
        for (int64_t x = 0; x < shape.kernel.columns; ++x)
          *patches++ = read_tap(shape, image + channel * plane, {row, column}, {y, x});
}

// output[filter, column] of one row; filters lie `plane` apart. bias may be null.
void multiply(const ConvShape& shape, const int16_t* weight, const int32_t* bias, const int16_t* patches,
              int32_t* output, int64_t plane) {
  const int64_t taps = shape.taps(), filters = shape.filters, columns = shape.output.columns;
  simd::run([=]() BITSPLIT_SIMD {
    for (int64_t filter = 0; filter < filters; ++filter)
      for (int64_t column = 0; column < columns; ++column) {
        const int16_t *const w = weight + filter * taps, *const x = patches + column * taps;
        int32_t sum = bias == nullptr ? 0 : bias[filter];
        for (int64_t i = 0; i < taps; ++i) sum += int32_t{w[i]} * x[i];
        output[filter * plane + column] = sum;
      }
  });
}

struct Cpu {
  static void conv(const ConvCall& call) {
    const ConvShape& shape = call.shape;
    const int64_t plane = shape.output.rows * shape.output.columns, filters = shape.filters;
    const int16_t* const input = call.input.const_data_ptr<int16_t>();
    const int16_t* const weight = call.weight.const_data_ptr<int16_t>();
    const int32_t* const bias = call.bias.defined() ? call.bias.const_data_ptr<int32_t>() : nullptr;
    int32_t* const output = call.output.mutable_data_ptr<int32_t>();
    at::parallel_for(0, shape.images * shape.groups, 1, [&](int64_t begin, int64_t end) {
      std::vector<int16_t> patches(shape.output.columns * shape.taps());
      for (int64_t task = begin; task < end; ++task) {
        const int64_t group = task % shape.groups;
        const int16_t* const image = input + task * shape.channels * shape.input.rows * shape.input.columns;
        for (int64_t row = 0; row < shape.output.rows; ++row) {
          read_patches(shape, image, row, patches.data());
          multiply(shape, weight + group * filters * shape.taps(),
                   bias == nullptr ? nullptr : bias + group * filters, patches.data(),
                   output + task * filters * plane + row * shape.output.columns, plane);
        }
      }
    });
  }

  static void requantize(const RequantizeCall& call) {
    const int32_t* const values = call.values.const_data_ptr<int32_t>();
    const int32_t* const shift = call.shift.const_data_ptr<int32_t>();
    int16_t* const output = call.output.mutable_data_ptr<int16_t>();
    at::parallel_for(0, call.values.numel(), kSmallTask, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        output[i] = requantized(values[i], call.divisor, shift[i], call.low, call.high);
    });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CPU, m) { implement<Cpu>(m); }

}  // namespace bitsplit::integer
