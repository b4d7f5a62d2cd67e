// The loss kernel and its sum against plain loops, on sizes with remainders of lanes and chunks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "cuda_on_cpu.h"
#include "ops/loss/loss_kernels.cuh"

namespace {

using namespace bitsplit;

struct Problem {
  std::vector<float> output, target, weight, grad;

  explicit Problem(int64_t numel) : grad(numel) {
    std::mt19937 generator(static_cast<unsigned>(numel));
    std::normal_distribution<float> normal;
    for (std::vector<float>* values : {&output, &target, &weight})
      for (int64_t i = 0; i < numel; ++i) values->push_back(normal(generator));
  }
  int64_t numel() const { return static_cast<int64_t>(output.size()); }

  template <bool kWeighted, typename Loss>
  LossTerm<float, float, float, Loss, kWeighted> term(const Loss& loss) {
    return {output.data(), target.data(), kWeighted ? weight.data() : nullptr, grad.data(), loss};
  }

  // As loss_cuda.cu does it.
  template <typename Term>
  double launch(const Term& term, double scale) const {
    const int64_t chunks = sum_chunks(numel());
    std::vector<double> sums(chunks);
    double result = -1;
    cuda_on_cpu::launch(static_cast<unsigned>(chunks), kSumLanes, 0, loss_kernel<float, Term>, term, numel(),
                        sums.data());
    cuda_on_cpu::launch(1, kSumLanes, 0, join_sums_kernel<double>, sums.data(), chunks, scale, &result);
    return result;
  }
};

// As lane_sums_cpu.h does it.
template <typename Term>
double sum_on_cpu(const Term& term, int64_t numel) {
  std::vector<double> sums;
  for (int64_t begin = 0; begin < numel; begin += kSumChunk)
    sums.push_back(lane_sum<float>(begin, std::min(begin + kSumChunk, numel), term));
  return lane_sum<double>(0, static_cast<int64_t>(sums.size()), [&](int64_t chunk) { return sums[chunk]; });
}

class LossKernel : public testing::TestWithParam<int64_t> {
 protected:
  template <bool kWeighted, typename Loss>
  void check(const Loss& loss, double p) {
    Problem problem(GetParam()), on_cpu(GetParam());
    const double result = problem.launch(problem.term<kWeighted>(loss), 0.5);
    EXPECT_EQ(result, 0.5 * sum_on_cpu(on_cpu.term<kWeighted>(loss), problem.numel()));
    EXPECT_EQ(problem.grad, on_cpu.grad);
    double expected = 0, size = 0;
    for (int64_t i = 0; i < problem.numel(); ++i) {
      const double d = double{problem.output[i]} - problem.target[i], w = kWeighted ? problem.weight[i] : 1;
      const double term = 0.5 * w * std::pow(std::abs(d), p), slope = p * term / d;
      EXPECT_NEAR(problem.grad[i], slope, 1e-5 * (1 + std::abs(slope))) << i;
      expected += term;
      size += std::abs(term);
    }
    EXPECT_NEAR(result, expected, 1e-5 * size);
  }
};

TEST_P(LossKernel, Squares) {
  check<false>(SquaredDifference<float>{1}, 2);
  check<true>(SquaredDifference<float>{1}, 2);
}

TEST_P(LossKernel, Powers) {
  check<false>(PowerOfDifference<float>{2.4f, 1.2f}, 2.4);
  check<true>(PowerOfDifference<float>{0.5f, 0.25f}, 0.5);
}

INSTANTIATE_TEST_SUITE_P(Sizes, LossKernel, testing::Values(1, 255, 256, 257, 2048, 2049, 5000));

TEST(LossTermOddValues, EqualValuesHaveNoSlopeAndNaNShows) {
  for (float p : {0.5f, 1.f, 2.4f}) {
    EXPECT_EQ(PowerOfDifference<float>({p, 1})(0).slope, 0);
    EXPECT_EQ(PowerOfDifference<double>({p, 1})(0).slope, 0);
  }
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(PowerOfDifference<float>({2.4f, 1})(nan).slope));
  Problem problem(3000);
  problem.output[2999] = nan;
  EXPECT_TRUE(std::isnan(problem.launch(problem.term<false>(SquaredDifference<float>{1}), 1)));
}

TEST(JoinSums, ManyChunks) {
  for (int64_t chunks : {1, 255, 256, 1000}) {
    std::vector<double> sums(chunks);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sums[chunk] = static_cast<double>(chunk);
    float result = -1;
    cuda_on_cpu::launch(1, kSumLanes, 0, join_sums_kernel<float>, sums.data(), chunks, 2.0, &result);
    EXPECT_EQ(result, static_cast<float>(chunks * (chunks - 1)));
  }
}

}  // namespace
