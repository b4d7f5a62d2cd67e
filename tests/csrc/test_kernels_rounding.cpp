// The learned-rounding kernel against a loop over the elements, and the numerics of core/soft_rounding.h.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "cuda_on_cpu.h"
#include "ops/rounding/rounding_kernels.cuh"

namespace {

using namespace bitsplit;

TEST(SoftRounding, SigmoidIsWithinFloatPrecision) {
  for (float v = -40; v <= 40; v += 0.037f) {
    const double expected = 1 / (1 + std::exp(-double{v}));
    EXPECT_NEAR(sigmoid(v) / expected, 1, 2e-6) << v;
    EXPECT_NEAR(sigmoid(double{v}), expected, 1e-15) << v;
  }
  for (float v : {-1e30f, 1e30f}) EXPECT_EQ(soft_bit(v).h, v > 0 ? 1 : 0);
}

TEST(SoftRounding, SlopesAreThoseOfTheFunctions) {
  constexpr double kStep = 1e-6;
  const auto indecision = [](double h, double b) { return 1 - std::pow(std::abs(2 * h - 1), b); };
  for (double v : {-2.0, -0.7, 0.1, 1.3, 2.2})
    for (double b : {2.0, 3.5, 20.0}) {
      const SoftBit<double> bit = soft_bit(v);
      EXPECT_NEAR(bit.slope, (soft_bit(v + kStep).h - soft_bit(v - kStep).h) / (2 * kStep), 1e-8);
      const double expected = (indecision(bit.h + kStep, b) - indecision(bit.h - kStep, b)) / (2 * kStep);
      EXPECT_NEAR(indecision_slope(bit.h, b), expected, 1e-5 * std::max(1.0, std::abs(expected)));
    }
}

struct Weights {
  ChannelLayout layout;
  std::vector<float> weight, grad, v, mean, square, scale;
  std::vector<int16_t> base;

  explicit Weights(ChannelLayout layout) : layout(layout) {
    std::mt19937 generator(static_cast<unsigned>(layout.numel()));
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < layout.numel(); ++i) {
      weight.push_back(0);
      grad.push_back(normal(generator));
      v.push_back(3 * normal(generator));
      mean.push_back(0.1f * normal(generator));
      square.push_back(std::abs(normal(generator)));
      base.push_back(static_cast<int16_t>(generator() % 5) - 2);
    }
    for (int64_t c = 0; c < layout.channels; ++c) scale.push_back(0.1f + std::abs(normal(generator)));
  }

  RoundingStep<float> element() {
    return {weight.data(), grad.data(), v.data(), mean.data(), square.data(), base.data()};
  }
};

class RoundingKernel : public testing::TestWithParam<ChannelLayout> {};

TEST_P(RoundingKernel, EveryElement) {
  Weights expected(GetParam()), found(GetParam());
  const std::vector<float> schedule = {0.03f, 2, 0.01f, 7};
  for (int64_t i = 0; i < expected.layout.numel(); ++i)
    expected.element()(i, expected.scale[i / expected.layout.inner % expected.layout.channels],
                       {schedule[0], schedule[1], schedule[2], schedule[3]});
  cuda_on_cpu::launch(3, 32, 0, rounding_step_kernel<float>, found.element(), found.scale.data(),
                      found.layout, schedule.data());
  EXPECT_EQ(found.weight, expected.weight);
  EXPECT_EQ(found.v, expected.v);
  EXPECT_EQ(found.mean, expected.mean);
  EXPECT_EQ(found.square, expected.square);
}

INSTANTIATE_TEST_SUITE_P(Layouts, RoundingKernel,
                         testing::Values(ChannelLayout{1, 1, 1}, ChannelLayout{1, 1, 500},
                                         ChannelLayout{1, 7, 9}, ChannelLayout{3, 5, 11},
                                         ChannelLayout{40, 3, 1}));

}  // namespace
