// Shifts by hand, and the integer kernels against plain loops.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "cuda_on_cpu.h"
#include "ops/integer/integer_kernels.cuh"

namespace {

using namespace bitsplit;
using namespace bitsplit::integer;

TEST(Shift, RoundsHalfToEven) {
  EXPECT_EQ(shifted(5, 1), 2);
  EXPECT_EQ(shifted(7, 1), 4);
  EXPECT_EQ(shifted(-5, 1), -2);
  EXPECT_EQ(shifted(-7, 1), -4);
  EXPECT_EQ(shifted(-7, 2), -2);
  EXPECT_EQ(shifted(3, -4), 48);
  EXPECT_EQ(shifted(-3, -4), -48);
}

TEST(Shift, GoesAsFarAsOneLikes) {
  for (const int far : {32, 40, 41, 1000}) {
    EXPECT_EQ(shifted(INT32_MAX, far), 0);
    EXPECT_EQ(shifted(INT32_MIN, far), 0);
    EXPECT_GT(shifted(1, -far), INT32_MAX);
    EXPECT_LT(shifted(-1, -far), INT32_MIN);
    EXPECT_EQ(shifted(0, -far), 0);
  }
  EXPECT_EQ(shifted(INT32_MIN, 32), 0) << "a tie, to the even one";
}

TEST(Shift, FarToTheLeftAndDividedIsExactOrBeyondInt16) {
  EXPECT_EQ(shifted_quotient(1, (1 << 20) - 1, -34), 16384);
  EXPECT_EQ(shifted_quotient(-1, (1 << 20) - 1, -34), -16384);
  EXPECT_EQ(shifted_quotient(2, 955'421, -33), 17981);
  for (const int far : {31, 32, 33, 36, 37, 1000})
    for (const int divisor : {1, (1 << 20) - 1}) {
      EXPECT_GT(shifted_quotient(INT32_MAX, divisor, -far), INT16_MAX) << far << ' ' << divisor;
      EXPECT_LT(shifted_quotient(INT32_MIN, divisor, -far), INT16_MIN) << far << ' ' << divisor;
      if (far < 36) continue;
      EXPECT_GT(shifted_quotient(1, divisor, -far), INT16_MAX) << far << ' ' << divisor;
      EXPECT_LT(shifted_quotient(-1, divisor, -far), INT16_MIN) << far << ' ' << divisor;
    }
}

TEST(Shift, AgreesWithFloatsWhereTheseAreExact) {
  for (int value = -300; value <= 300; ++value)
    for (int shift = -3; shift <= 10; ++shift)
      for (const int divisor : {1, 2, 3, 4, 9, 49}) {
        const double exact = std::nearbyint(std::ldexp(static_cast<double>(value), -shift) / divisor);
        EXPECT_EQ(shifted_quotient(value, divisor, shift), exact) << value << ' ' << shift << ' ' << divisor;
      }
}

// Input, weights and bias of a convolution with random numbers.
struct Problem {
  ConvShape shape;
  std::vector<int16_t> input, weight;
  std::vector<int32_t> bias;

  explicit Problem(const ConvShape& given) : shape(given) {
    std::mt19937 random(1);
    std::uniform_int_distribution<int> level(-255, 255);
    input.resize(shape.images * shape.groups * shape.channels * shape.input.rows * shape.input.columns);
    weight.resize(shape.groups * shape.filters * shape.taps());
    bias.resize(shape.groups * shape.filters);
    for (int16_t& value : input) value = static_cast<int16_t>(level(random));
    for (int16_t& value : weight) value = static_cast<int16_t>(level(random));
    for (int32_t& value : bias) value = 1000 * level(random);
  }

  // By padding first, then six loops.
  std::vector<int32_t> by_loops(bool with_bias) const {
    const Axes padded{shape.input.rows + 2 * shape.padding.rows,
                      shape.input.columns + 2 * shape.padding.columns};
    std::vector<int32_t> result;
    for (int64_t image = 0; image < shape.images; ++image)
      for (int64_t filter = 0; filter < shape.groups * shape.filters; ++filter)
        for (int64_t y = 0; y < shape.output.rows; ++y)
          for (int64_t x = 0; x < shape.output.columns; ++x) {
            int32_t sum = with_bias ? bias[filter] : 0;
            for (int64_t tap = 0; tap < shape.taps(); ++tap) {
              const int64_t i = tap % shape.kernel.columns;
              const int64_t j = tap / shape.kernel.columns % shape.kernel.rows;
              const int64_t c = tap / shape.kernel.columns / shape.kernel.rows;
              const int64_t row = y * shape.stride.rows + j * shape.dilation.rows;
              const int64_t column = x * shape.stride.columns + i * shape.dilation.columns;
              EXPECT_LT(row, padded.rows);
              EXPECT_LT(column, padded.columns);
              const int64_t inner_row = row - shape.padding.rows, inner = column - shape.padding.columns;
              if (inner_row < 0 || inner_row >= shape.input.rows || inner < 0 || inner >= shape.input.columns)
                continue;
              const int64_t channel = filter / shape.filters * shape.channels + c;
              const int64_t plane = image * shape.groups * shape.channels + channel;
              sum += int32_t{weight[filter * shape.taps() + tap]} *
                     input[(plane * shape.input.rows + inner_row) * shape.input.columns + inner];
            }
            result.push_back(sum);
          }
    return result;
  }

  std::vector<int32_t> by_kernel(bool with_bias) const {
    std::vector<int32_t> result(shape.outputs(), -1);
    const auto blocks = static_cast<unsigned>((shape.outputs() + kThreads - 1) / kThreads);
    cuda_on_cpu::launch(blocks, kThreads, 0, conv_kernel, shape, input.data(), weight.data(),
                        with_bias ? bias.data() : nullptr, result.data());
    return result;
  }
};

TEST(IntegerConv, IsSixLoops) {
  const ConvShape plain{2, 1, 3, 4, {5, 6}, {3, 3}, {5, 6}, {1, 1}, {1, 1}, {1, 1}};
  const ConvShape odd{1, 2, 2, 3, {7, 8}, {2, 3}, {4, 3}, {2, 3}, {1, 2}, {2, 2}};
  for (const ConvShape& shape : {plain, odd})
    for (const bool with_bias : {true, false}) {
      const Problem problem(shape);
      EXPECT_EQ(problem.by_kernel(with_bias), problem.by_loops(with_bias));
    }
}

TEST(Requantize, KernelIsTheElement) {
  std::vector<int32_t> values, shift;
  for (int i = 0; i < 600; ++i) {
    values.push_back(7919 * (i - 300));
    shift.push_back(i % 24 - 2);
  }
  std::vector<int16_t> result(values.size(), -1);
  cuda_on_cpu::launch(3, kThreads, 0, requantize_kernel, values.data(), shift.data(), result.data(), 600, 3,
                      int16_t{-100}, int16_t{120});
  for (size_t i = 0; i < values.size(); ++i)
    EXPECT_EQ(result[i], requantized(values[i], 3, shift[i], -100, 120));
  EXPECT_NE(std::count(result.begin(), result.end(), 120), 0);
}

}  // namespace
