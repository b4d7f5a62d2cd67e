// The numerics that CPU operators and CUDA kernels share.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "core/channel_layout.h"
#include "core/grid_of_range.h"
#include "core/power.h"
#include "core/rounding.h"
#include "core/simd.h"
#include "ops/ranges/alternating_scale.h"
#include "ops/ranges/kl_threshold.h"

namespace {

using namespace bitsplit;

const float kNaN = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();

TEST(RoundHalfToEven, EqualsRintWhereItIsUsed) {
  for (float value = -300; value <= 300; value += 0.0625f)
    EXPECT_EQ(round_half_even(value), std::rint(value));
  for (double value = -300; value <= 300; value += 0.0625)
    EXPECT_EQ(round_half_even(value), std::rint(value));
  for (float whole = -255; whole <= 255; ++whole) {  // the neighbours of every tie
    const float tie = whole + 0.5f;
    for (float value : {std::nextafter(tie, -kInf), tie, std::nextafter(tie, kInf)})
      EXPECT_EQ(round_half_even(value), std::rint(value));
  }
}

TEST(RoundHalfToEven, NeverGivesNegativeZero) {
  EXPECT_FALSE(std::signbit(round_half_even(-0.25f)));
  EXPECT_FALSE(std::signbit(round_half_even(-0.0)));
}

struct LevelCase {
  float x, scale, low, high, level;
  bool inside;
};

class NearestLevel : public testing::TestWithParam<LevelCase> {};

TEST_P(NearestLevel, Table) {
  const LevelCase& c = GetParam();
  EXPECT_EQ(nearest_level(c.x, LevelGrid<float>{c.scale, c.low, c.high}), c.level);
  EXPECT_EQ(nearest_level(double{c.x}, LevelGrid<double>{c.scale, c.low, c.high}), c.level);
  EXPECT_EQ(is_inside(c.x, LevelGrid<float>{c.scale, c.low, c.high}), c.inside);
}

INSTANTIATE_TEST_SUITE_P(
    Rounding, NearestLevel,
    testing::Values(LevelCase{0.5f, 1, -7, 7, 0, true}, LevelCase{1.5f, 1, -7, 7, 2, true},
                    LevelCase{-2.5f, 1, -7, 7, -2, true}, LevelCase{7.4f, 1, -7, 7, 7, true},
                    LevelCase{7.5f, 1, -7, 7, 7, false}, LevelCase{6.5f, 1, -7, 7, 6, true},
                    LevelCase{8.5f, 1, -7, 8, 8, true}, LevelCase{1e30f, 1, -7, 7, 7, false},
                    LevelCase{-kInf, 1, -7, 7, -7, false}, LevelCase{-3, 0.5f, 0, 15, 0, false},
                    LevelCase{-1.25f, 0.5f, -2, 1, -2, true}));

TEST(FakeQuantize, NaNStaysAndIsNotInside) {
  const LevelGrid<float> grid{0.5f, -7, 7};
  EXPECT_TRUE(std::isnan(fake_quantize(kNaN, grid)));
  EXPECT_FALSE(is_inside(kNaN, grid));
  EXPECT_TRUE(std::isnan(fake_quantize(1.f, LevelGrid<float>{kNaN, -7, 7})));
}

struct RangeCase {
  double low, high;
  int qmin, qmax;
  double scale;
  int zero_point;
};

TEST(GridOfRange, Table) {
  for (const RangeCase& c :
       {RangeCase{-3, 1, -3, 3, 1, 0}, RangeCase{0, 15, 0, 15, 1, 0}, RangeCase{-5, 10, 0, 15, 1, 5},
        RangeCase{3, 6, 0, 3, 2, 0}, RangeCase{-6, -3, 0, 3, 2, 3}, RangeCase{-1, 14, -8, 7, 1, -7},
        RangeCase{0, 0, -7, 7, 1, 0}, RangeCase{0, 1e-300, 0, 255, 0x1p-126, 0}}) {
    const AffineGrid<float> found = grid_of_range<float>(c.low, c.high, c.qmin, c.qmax);
    EXPECT_EQ(found.grid.scale, static_cast<float>(c.scale)) << c.low << " " << c.high;
    EXPECT_EQ(found.zero_point, c.zero_point) << c.low << " " << c.high;
    EXPECT_EQ(found.grid.low, c.qmin - c.zero_point);
    EXPECT_EQ(found.grid.high, c.qmax - c.zero_point);
  }
}

TEST(GridOfRange, NaNReachesTheScale) {
  for (const auto& [qmin, qmax] : {std::pair{-7, 7}, std::pair{0, 15}}) {
    EXPECT_TRUE(std::isnan(grid_of_range<float>(kNaN, 1, qmin, qmax).grid.scale));
    EXPECT_TRUE(std::isnan(grid_of_range<float>(-1, kNaN, qmin, qmax).grid.scale));
    EXPECT_EQ(grid_of_range<float>(kNaN, kNaN, qmin, qmax).zero_point, qmin == -qmax ? 0 : qmin);
  }
}

TEST(Power, IsWithinItsPrecision) {
  for (float p : {0.5f, 1.f, 2.f, 2.4f, 4.f})
    for (float x = 1e-30f; x < 1e30f; x *= 1.0137f) {
      const double expected = std::pow(double{x}, double{p});
      if (expected < 1.2e-38 || expected > 1.7e38) continue;
      EXPECT_NEAR(power(-x, p) / expected, 1, x > 1e-3f && x < 4 ? 3e-6 : 1e-5) << x << "^" << p;
    }
}

TEST(Power, SpecialValues) {
  EXPECT_EQ(power(0.f, 2.4f), 0);
  EXPECT_EQ(power(-0.f, 0.5f), 0);
  EXPECT_EQ(power(1e-40f, 1.f), 0);  // subnormal
  EXPECT_EQ(power(1e-30f, 2.f), 0);  // too small a result
  EXPECT_EQ(power(1e30f, 2.f), 0x1p127f);
  EXPECT_EQ(power(-kInf, 2.4f), kInf);
  EXPECT_TRUE(std::isnan(power(kNaN, 2.4f)));
  EXPECT_EQ(power(-3.0, 2.0), 9);
}

TEST(ChannelWalk, VisitsTheRightChannels) {
  for (const ChannelLayout& layout : {ChannelLayout{1, 1, 10}, ChannelLayout{2, 3, 5}, ChannelLayout{4, 7, 1},
                                      ChannelLayout{1, 5, 3}, ChannelLayout{3, 1, 4}})
    for (int64_t step : {1, 2, 3, 7, 16, 100})
      for (int64_t start : {0, 1, 5}) {
        ChannelWalk walk(layout, start, step);
        for (int64_t i = start; i < layout.numel(); i += step, walk.advance()) {
          EXPECT_EQ(walk.channel(), i / layout.inner % layout.channels);
          EXPECT_EQ(walk.position(), i % layout.inner);
        }
      }
}

TEST(Simd, EveryInstructionSetGivesTheSameBits) {
  std::mt19937 generator(0);
  std::normal_distribution<float> normal;
  std::vector<float> x(1003), expected(x.size()), y(x.size());
  for (float& value : x) value = normal(generator);
  const LevelGrid<float> grid{0.17f, -7, 7};
  for (size_t i = 0; i < x.size(); ++i) expected[i] = power(x[i] - fake_quantize(x[i], grid), 2.4f);
  for (int level = 0; level <= static_cast<int>(simd::best_level()); ++level) {
    const float* in = x.data();
    float* out = y.data();
    const size_t size = x.size();
    simd::run_at(static_cast<simd::Level>(level), [=]() BITSPLIT_SIMD {
      for (size_t i = 0; i < size; ++i) out[i] = power(in[i] - fake_quantize(in[i], grid), 2.4f);
    });
    EXPECT_EQ(std::memcmp(y.data(), expected.data(), size * sizeof(float)), 0) << "level " << level;
  }
}

TEST(SortValues, EqualsStdSort) {
  std::mt19937 generator(1);
  std::uniform_int_distribution<uint32_t> any;
  std::vector<float> values;
  while (values.size() < 5000) {
    const float value = bits_as<float>(any(generator));
    if (!std::isnan(value)) values.push_back(value);
  }
  for (float value : {0.f, kInf, -kInf, 1e-45f, -1e-45f}) values.insert(values.end(), 2, value);
  std::vector<float> expected = values;
  std::sort(expected.begin(), expected.end());
  sort_values(values);
  EXPECT_EQ(values, expected);
}

TEST(SortedValues, SumsEqualThoseOfAPass) {
  std::mt19937 generator(2);
  std::uniform_int_distribution<int> quarters(-40, 40);  // sums of quarters are exact
  std::vector<float> x(777);
  for (float& value : x) value = static_cast<float>(quarters(generator)) / 4;
  const SortedValues<float> sorted(x);
  for (const LevelGrid<float>& grid : {LevelGrid<float>{0.5f, -7, 7}, {1, 0, 15}, {3, -1, 1}, {20, -1, 1}}) {
    ScaleSums expected{0, 0};
    for (float value : x) {
      const float level = nearest_level(value, grid);
      expected.xq += value * level;
      expected.qq += level * level;
    }
    EXPECT_EQ(sorted.sums(grid).xq, expected.xq);
    EXPECT_EQ(sorted.sums(grid).qq, expected.qq);
  }
}

TEST(AlternatingScale, FindsExactGrids) {
  std::vector<float> x;
  for (int level = -7; level <= 7; ++level) x.push_back(0.25f * static_cast<float>(level));
  EXPECT_EQ(alternating_scale(SortedValues<float>(x), -7, 7), 0.25f);
  EXPECT_EQ(alternating_scale(SortedValues<float>({-2, -1}), 0, 15), 1);  // nothing to represent
}

TEST(KlSearch, HandMade) {
  const std::vector<int64_t> counts{1, 3, 4, 0};
  const KlSearch search(counts.data(), 4, 1);
  EXPECT_NEAR(search.divergence(2), std::log(2.0) + 0.125 * std::log(0.125) + 0.875 * std::log(0.875), 1e-12);
  const std::vector<int64_t> gap{8, 0, 0, 0, 8};
  EXPECT_TRUE(std::isinf(KlSearch(gap.data(), 5, 4).divergence(4)));
  EXPECT_EQ(KlSearch(gap.data(), 5, 4).best(), 5);
}

}  // namespace
