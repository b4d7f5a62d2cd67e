// The quantization kernel against a loop over the elements, on sizes with remainders and in every layout.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "cuda_on_cpu.h"
#include "ops/quantize/quantize_kernels.cuh"

namespace {

using namespace bitsplit;

struct Problem {
  ChannelLayout layout;
  std::vector<float> x, scale;
  std::vector<int32_t> zero_point;
  float qmin = 0, qmax = 15;

  explicit Problem(ChannelLayout layout) : layout(layout), x(layout.numel()) {
    std::mt19937 generator(static_cast<unsigned>(layout.numel()));
    std::normal_distribution<float> normal;
    for (float& value : x) value = normal(generator);
    for (int64_t c = 0; c < layout.channels; ++c) {
      scale.push_back(0.05f + std::abs(normal(generator)));
      zero_point.push_back(static_cast<int32_t>(generator() % 16));
    }
  }

  ChannelGrids<float> grids() const { return {scale.data(), zero_point.data(), qmin, qmax}; }
  LevelGrid<float> grid_of(int64_t i) const {
    const int64_t c = i / layout.inner % layout.channels;
    const float zero = static_cast<float>(zero_point[c]);
    return {scale[c], qmin - zero, qmax - zero};
  }

  template <typename Element>
  void launch(const Element& element) const {
    cuda_on_cpu::launch(3, 32, 0, for_each_element_kernel<float, Element>, element, grids(), layout);
  }
};

class QuantizeKernel : public testing::TestWithParam<ChannelLayout> {};

TEST_P(QuantizeKernel, EveryElement) {
  const Problem problem(GetParam());
  const size_t size = problem.x.size();
  const float* x = problem.x.data();
  std::vector<float> y(size), grad_x(size), back(size);
  std::vector<uint8_t> codes(size);
  problem.launch(FakeQuantize<float, float>{x, y.data()});
  problem.launch(FakeQuantizeBackward<float, float>{x, x, grad_x.data()});
  problem.launch(Quantize<float, float, uint8_t>{x, codes.data(), problem.qmin});
  problem.launch(Dequantize<uint8_t, float>{codes.data(), back.data(), problem.qmin});
  for (size_t i = 0; i < size; ++i) {
    const LevelGrid<float> grid = problem.grid_of(static_cast<int64_t>(i));
    EXPECT_EQ(y[i], fake_quantize(x[i], grid)) << i;
    EXPECT_EQ(grad_x[i], is_inside(x[i], grid) ? x[i] : 0) << i;
    EXPECT_EQ(codes[i], nearest_level(x[i], grid) - grid.low) << i;
    EXPECT_EQ(back[i], y[i]) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, QuantizeKernel,
                         testing::Values(ChannelLayout{1, 1, 1}, ChannelLayout{1, 1, 500},
                                         ChannelLayout{1, 7, 9}, ChannelLayout{3, 5, 11},
                                         ChannelLayout{40, 3, 1}, ChannelLayout{2, 130, 1},
                                         ChannelLayout{2, 1, 97}));

TEST(QuantizeKernelOddValues, BadScalesAreNaNAndNaNHasTheCodeOfZero) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  Problem problem({1, 5, 2});
  problem.scale = {1, 0, -1, nan, inf};
  problem.zero_point = {4, 0, 0, 0, 9};
  problem.x = {nan, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  std::vector<float> y(10);
  std::vector<uint8_t> codes(10);
  problem.launch(FakeQuantize<float, float>{problem.x.data(), y.data()});
  problem.launch(Quantize<float, float, uint8_t>{problem.x.data(), codes.data(), 0});
  EXPECT_EQ(y[1], 1);
  for (int i : {0, 2, 3, 4, 5, 6, 7, 8, 9}) EXPECT_TRUE(std::isnan(y[i])) << i;
  EXPECT_EQ(codes, (std::vector<uint8_t>{4, 5, 0, 0, 0, 0, 0, 0, 9, 9}));
}

}  // namespace
