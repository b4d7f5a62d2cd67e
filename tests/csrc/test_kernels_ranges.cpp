// The kernels of the ranges family against plain loops, on sizes with remainders.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "cuda_on_cpu.h"
#include "ops/ranges/lp_search_kernels.cuh"
#include "ops/ranges/ranges_kernels.cuh"

namespace {

using namespace bitsplit;

const float kNaN = std::numeric_limits<float>::quiet_NaN();

std::vector<float> normal_values(int64_t size) {
  std::mt19937 generator(static_cast<unsigned>(size));
  std::normal_distribution<float> normal;
  std::vector<float> values(size);
  for (float& value : values) value = normal(generator);
  return values;
}

struct Ranges {
  std::vector<float> min, max;
};

Ranges run_channel_range(const std::vector<float>& x, const ChannelLayout& layout, int64_t segments) {
  const int64_t size = layout.outer * layout.inner, blocks = layout.channels * segments;
  std::vector<float> min(blocks), max(blocks);
  Ranges ranges{std::vector<float>(layout.channels), std::vector<float>(layout.channels)};
  cuda_on_cpu::launch(blocks, kRangeThreads, 0, segment_range_kernel<float, float>, x.data(), layout,
                      segments, (size + segments - 1) / segments, min.data(), max.data());
  cuda_on_cpu::launch(layout.channels, kRangeThreads, 0, join_ranges_kernel<float, float>, min.data(),
                      max.data(), segments, ranges.min.data(), ranges.max.data());
  return ranges;
}

struct RangeCase {
  ChannelLayout layout;
  int64_t segments;
};

class RangeKernel : public testing::TestWithParam<RangeCase> {};

TEST_P(RangeKernel, EveryChannel) {
  const auto& [layout, segments] = GetParam();
  const std::vector<float> x = normal_values(layout.numel());
  std::vector<Range<float>> expected(layout.channels);
  for (int64_t i = 0; i < layout.numel(); ++i) expected[i / layout.inner % layout.channels].add(x[i], x[i]);
  const Ranges found = run_channel_range(x, layout, segments);
  for (int64_t c = 0; c < layout.channels; ++c) {
    EXPECT_EQ(found.min[c], expected[c].min) << c;
    EXPECT_EQ(found.max[c], expected[c].max) << c;
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, RangeKernel,
                         testing::Values(RangeCase{{1, 1, 1}, 1}, RangeCase{{1, 1, 1500}, 4},
                                         RangeCase{{3, 2, 401}, 2}, RangeCase{{1, 4, 9}, 1},
                                         RangeCase{{5, 2, 33}, 3},
                                         RangeCase{{1, 1, 5}, 4}));  // the last segment is empty

TEST(RangeKernelOddValues, NaNMarksItsChannel) {
  const ChannelLayout layout{2, 3, 50};
  for (int64_t place : {0, 49, 50, 170, 299}) {
    std::vector<float> x = normal_values(layout.numel());
    x[place] = kNaN;
    const Ranges found = run_channel_range(x, layout, 2);
    for (int64_t c = 0; c < 3; ++c) {
      EXPECT_EQ(std::isnan(found.min[c]), c == place / 50 % 3);
      EXPECT_EQ(std::isnan(found.max[c]), c == place / 50 % 3);
    }
  }
}

TEST(HistogramKernel, CountsEveryValueOnceAndNoNaN) {
  std::vector<float> x = normal_values(777);
  x[3] = x[500] = kNaN;
  for (int bins : {1, 7, 100}) {
    const float low = -1.5f, cells_per_unit = static_cast<float>(bins) / 4;
    std::vector<unsigned long long> counts(bins), expected(bins);
    for (float value : x)
      if (!std::isnan(value)) ++expected[histogram_cell(value, low, cells_per_unit, bins)];
    cuda_on_cpu::launch(3, 64, bins * sizeof(unsigned), histogram_kernel<float, float>, x.data(),
                        int64_t{777}, low, cells_per_unit, bins, counts.data());
    EXPECT_EQ(counts, expected);
  }
}

struct SearchCase {
  int64_t channels, size;
  int qmin, qmax, candidates;
  double p;
};

struct SearchFound {
  std::vector<float> scale;
  std::vector<int32_t> zero_point;
  std::vector<double> error;
};

template <typename Loss>
SearchFound run_search(const std::vector<float>& rows, int64_t size, const SearchSpace& space, Loss loss) {
  const int64_t channels = static_cast<int64_t>(rows.size()) / size;
  const int64_t segments = (size + kSearchSegment - 1) / kSearchSegment;
  std::vector<double> errors(channels * segments * space.candidates);
  SearchFound found{std::vector<float>(channels), std::vector<int32_t>(channels),
                    std::vector<double>(channels)};
  cuda_on_cpu::launch(channels * segments, {kSearchLanes, kSearchParts}, 0,
                      segment_errors_kernel<float, float, Loss>, rows.data(), size, segments, space, loss,
                      errors.data());
  cuda_on_cpu::launch(channels, kBestThreads, 0, best_candidate_kernel<float>, errors.data(), segments, space,
                      found.scale.data(), found.zero_point.data(), found.error.data());
  return found;
}

class SearchKernel : public testing::TestWithParam<SearchCase> {};

TEST_P(SearchKernel, FindsTheLeastError) {
  const SearchCase& c = GetParam();
  const std::vector<float> rows = normal_values(c.channels * c.size);
  const std::vector<double> low(c.channels, -2.5), high(c.channels, 3);
  const SearchSpace space{low.data(), high.data(), c.qmin, c.qmax, c.candidates, c.p};
  const SearchFound found = c.p == 2
                                ? run_search(rows, c.size, space, SquaredLoss{})
                                : run_search(rows, c.size, space, PowerLoss<float>{static_cast<float>(c.p)});
  for (int64_t channel = 0; channel < c.channels; ++channel) {
    const auto error_of = [&](const LevelGrid<float>& grid) {
      double error = 0;
      for (int64_t i = channel * c.size; i < (channel + 1) * c.size; ++i)
        error += std::pow(std::abs(double{rows[i]} - double{fake_quantize(rows[i], grid)}), c.p);
      return error;
    };
    double least = std::numeric_limits<double>::infinity();
    for (int i = 1; i <= c.candidates; ++i)
      least = std::min(least, error_of(space.grid<float>(channel, i).grid));
    const float zero = static_cast<float>(found.zero_point[channel]);
    const LevelGrid<float> grid{found.scale[channel], c.qmin - zero, c.qmax - zero};
    EXPECT_NEAR(found.error[channel] / least, 1, 1e-5);
    EXPECT_NEAR(error_of(grid) / least, 1, 1e-5);
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, SearchKernel,
                         testing::Values(SearchCase{2, 9, -1, 1, 5, 2}, SearchCase{1, 2100, -7, 7, 33, 2},
                                         SearchCase{3, 300, 0, 15, 40, 2.4}, SearchCase{1, 1, -7, 7, 1, 2},
                                         SearchCase{2, 513, -8, 7, 130, 1}));

TEST(SearchKernelOddValues, TiesAndNaNKeepTheWidestRange) {
  const std::vector<double> low{-3, -3}, high{3, 3};
  const SearchSpace space{low.data(), high.data(), -3, 3, 3, 2};
  const SearchFound found = run_search({0, 0, 0, kNaN}, 2, space, SquaredLoss{});
  EXPECT_EQ(found.scale, (std::vector<float>{1, 1}));
  EXPECT_EQ(found.error[0], 0);
  EXPECT_TRUE(std::isnan(found.error[1]));
}

}  // namespace
