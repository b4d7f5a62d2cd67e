// The kernels of learned steps against loops over the elements, on sizes with remainders.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "cuda_on_cpu.h"
#include "ops/steps/steps_kernels.cuh"

namespace {

using namespace bitsplit;

struct Problem {
  std::vector<float> x, grad;
  float scale = 0.3f;
  int32_t zero_point = 5;
  int64_t key[2] = {11, 12};

  explicit Problem(int64_t numel) {
    std::mt19937 generator(static_cast<unsigned>(numel));
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < numel; ++i) {
      x.push_back(3 * normal(generator));
      grad.push_back(normal(generator));
    }
  }
  int64_t numel() const { return static_cast<int64_t>(x.size()); }
  ChannelGrids<float> grids() const { return {&scale, &zero_point, 0, 15}; }
  RandomDropRule rule(double share) const { return {key, drop_bound(share)}; }

  template <typename Rule>
  std::vector<float> quantize(const Rule& rule) const {
    using Element = StepQuantize<float, float>;
    std::vector<float> y(x.size());
    cuda_on_cpu::launch(3, 32, 0, step_quantize_kernel<float, Element, Rule>, Element{x.data(), y.data()},
                        grids(), rule, numel());
    return y;
  }

  // The gradient of scale; as steps_cuda.cu does it.
  template <typename Rule>
  double backward(const Rule& rule, std::vector<float>& grad_x) const {
    using Element = StepQuantizeBackward<float, float>;
    const int64_t chunks = sum_chunks(numel());
    std::vector<double> sums(chunks);
    double grad_scale = -1;
    grad_x.assign(x.size(), -1);
    cuda_on_cpu::launch(static_cast<unsigned>(chunks), kSumLanes, 0,
                        step_backward_kernel<float, Element, Rule>,
                        Element{grad.data(), x.data(), grad_x.data()}, grids(), rule, numel(), sums.data());
    cuda_on_cpu::launch(1, kSumLanes, 0, join_sums_kernel<double>, sums.data(), chunks, 1.0, &grad_scale);
    return grad_scale;
  }
};

template <typename Rule>
void check_every_element(const Problem& problem, const Rule& rule) {
  std::vector<float> grad_x;
  const std::vector<float> y = problem.quantize(rule);
  const double grad_scale = problem.backward(rule, grad_x);
  const LevelGrid<float> grid{0.3f, -5, 10};
  const auto drop = rule.read();
  double expected = 0, size = 0;
  for (int64_t i = 0; i < problem.numel(); ++i) {
    const float x = problem.x[i], grad = problem.grad[i];
    const bool inside = is_inside(x, grid);
    EXPECT_EQ(y[i], drop(i) ? x : fake_quantize(x, grid)) << i;
    EXPECT_EQ(grad_x[i], drop(i) || inside ? grad : 0) << i;
    const double level = nearest_level(x, grid);
    const double term = drop(i) ? 0 : grad * (inside ? level - x / double{grid.scale} : level);
    expected += term;
    size += std::abs(term);
  }
  EXPECT_NEAR(grad_scale, expected, 1e-6 * (1 + size));
}

class StepKernels : public testing::TestWithParam<int64_t> {};

TEST_P(StepKernels, EveryElement) {
  const Problem problem(GetParam());
  check_every_element(problem, KeepAll{});
  for (double share : {0.0, 0.3, 1.0}) check_every_element(problem, problem.rule(share));
}

TEST_P(StepKernels, SumsEqualThoseOfTheCpu) {
  const Problem problem(GetParam());
  std::vector<float> grad_x(problem.x.size()), on_gpu;
  const StepQuantizeBackward<float, float> element{problem.grad.data(), problem.x.data(), grad_x.data()};
  const LevelGrid<float> grid = problem.grids().of(0);
  const RandomDrop drop = problem.rule(0.5).read();
  std::vector<double> sums;
  for (int64_t begin = 0; begin < problem.numel(); begin += kSumChunk)
    sums.push_back(lane_sum<float>(begin, std::min(begin + kSumChunk, problem.numel()),
                                   [&](int64_t i) { return element(i, grid, drop); }));
  const double expected =
      lane_sum<double>(0, sum_chunks(problem.numel()), [&](int64_t chunk) { return sums[chunk]; });
  EXPECT_EQ(problem.backward(problem.rule(0.5), on_gpu), expected);
  EXPECT_EQ(on_gpu, grad_x);
}

TEST_P(StepKernels, MixTakesFromBoth) {
  const int64_t numel = GetParam(), key[] = {11, 12};
  std::vector<uint16_t> a(numel, 1), b(numel, 2), y(numel);
  const RandomDropRule rule{key, drop_bound(0.3)};
  cuda_on_cpu::launch(2, 32, 0, mix_kernel<Mix<uint16_t>, RandomDropRule>,
                      Mix<uint16_t>{a.data(), b.data(), y.data()}, rule, numel);
  for (int64_t i = 0; i < numel; ++i) EXPECT_EQ(y[i], rule.read()(i) ? 2 : 1) << i;
}

INSTANTIATE_TEST_SUITE_P(Sizes, StepKernels, testing::Values(1, 31, 97, 256, 2048, 2049, 5000));

TEST(StepKernelsOddValues, BadScalesAreNaNUnlessDropped) {
  for (float scale : {0.f, -1.f, std::numeric_limits<float>::infinity()}) {
    Problem problem(300);
    problem.scale = scale;
    const RandomDropRule rule = problem.rule(0.5);
    const std::vector<float> y = problem.quantize(rule);
    for (int64_t i = 0; i < 300; ++i) EXPECT_EQ(std::isnan(y[i]), !rule.read()(i)) << i;
    std::vector<float> grad_x;
    EXPECT_TRUE(std::isnan(problem.backward(rule, grad_x)));
    for (int64_t i = 0; i < 300; ++i) EXPECT_EQ(grad_x[i], rule.read()(i) ? problem.grad[i] : 0) << i;
  }
}

}  // namespace
