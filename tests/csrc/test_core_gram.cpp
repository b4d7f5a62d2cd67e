// The torch-free parts of gram: the terms against a count from the definition, the inner loops of every
// instruction set this machine has against plain sums, and the plan's bound on memory.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "ops/gram/plan.h"
#include "ops/gram/products.cpp"  // its loops for older machines are not reachable from outside
#include "ops/gram/terms.h"

namespace bitsplit::gram {
namespace {

Geometry plane(Axis height, Axis width) { return {Axis{}, height, width}; }

std::vector<Geometry> geometries() {
  std::vector<Geometry> all;
  for (int64_t size : {1, 2, 3, 5, 8})
    for (int64_t kernel : {1, 2, 3, 5})
      for (int64_t stride : {1, 2, 3})
        for (int64_t padding : {0, 1, 3})
          for (int64_t dilation : {1, 2}) {
            const Axis axis{size, kernel, stride, padding, dilation};
            if (axis.slack() >= 0) all.push_back(plane(axis, {4, 3, 1, 1, 1}));
          }
  return all;
}

// How often each product of two pixels belongs to each pair of taps: (pair, pixel a, pixel b) -> count.
using Counts = std::map<std::array<int64_t, 3>, int>;

int64_t pixel(const Geometry& g, const std::array<int64_t, 3>& r) {
  for (int k = 0; k < 3; ++k)
    if (r[k] < 0 || r[k] >= g[k].size) return -1;
  return (r[0] * g[1].size + r[1]) * g[2].size + r[2];
}

int64_t pixel_read(const Geometry& g, int64_t tap, int64_t output) {
  std::array<int64_t, 3> r;
  for (int k = 2; k >= 0; --k) {
    r[k] = output % g[k].out() * g[k].stride + g[k].origin(tap % g[k].kernel);
    output /= g[k].out();
    tap /= g[k].kernel;
  }
  return pixel(g, r);
}

Counts gram_by_definition(const Geometry& g) {
  Counts counts;
  const int64_t taps = tap_count(g);
  for (int64_t t = 0; t < taps; ++t)
    for (int64_t u = t; u < taps; ++u)
      for (int64_t output = 0; output < g[0].out() * g[1].out() * g[2].out(); ++output) {
        const int64_t a = pixel_read(g, t, output), b = pixel_read(g, u, output);
        if (a >= 0 && b >= 0) ++counts[{pair_index(t, u, taps), a, b}];
      }
  return counts;
}

Counts count(const std::vector<Term>& terms, const Geometry& g) {
  Counts counts;
  for (const Term& term : terms)
    for (int64_t d = 0; d < term.count[0]; ++d)
      for (int64_t h = 0; h < term.count[1]; ++h)
        for (int64_t w = 0; w < term.count[2]; ++w) {
          const std::array<int64_t, 3> at{d, h, w};
          std::array<int64_t, 3> a, b;
          for (int k = 0; k < 3; ++k) {
            a[k] = term.a_first[k] + at[k] * term.a_step[k];
            b[k] = term.b_first[k] + at[k] * term.b_step[k];
          }
          for (int64_t pair : term.destinations) ++counts[{pair, pixel(g, a), pixel(g, b)}];
        }
  return counts;
}

TEST(GramTerms, HoldEveryProductOfTheDefinitionOnce) {
  for (const Geometry& g : geometries())
    ASSERT_EQ(count(gram_terms(g), g), gram_by_definition(g))
        << "size " << g[1].size << " kernel " << g[1].kernel << " stride " << g[1].stride << " padding "
        << g[1].padding << " dilation " << g[1].dilation;
}

TEST(GramTerms, CrossTermsPairEveryOutputWithWhatItReads) {
  for (const Geometry& g : geometries()) {
    Counts expected, got;
    for (int64_t tap = 0; tap < tap_count(g); ++tap)
      for (int64_t output = 0; output < g[1].out() * g[2].out(); ++output)
        if (pixel_read(g, tap, output) >= 0) ++expected[{tap, pixel_read(g, tap, output), output}];
    for (const Term& term : cross_terms(g))
      for (int64_t h = 0; h < term.count[1]; ++h)
        for (int64_t w = 0; w < term.count[2]; ++w) {
          const int64_t a =
              pixel(g, {0, term.a_first[1] + h * term.a_step[1], term.a_first[2] + w * term.a_step[2]});
          const int64_t b = (term.b_first[1] + h) * g[2].out() + term.b_first[2] + w;
          ++got[{term.destinations[0], a, b}];
        }
    ASSERT_EQ(got, expected);
  }
}

TEST(GramTerms, ThreeByThreeNeedsThirteenProductsPerPixel) {
  const Axis axis{56, 3, 1, 1, 1};
  double products = 0;
  for (const Term& term : gram_terms(plane(axis, axis))) products += double(term.count[1] * term.count[2]);
  EXPECT_LE(products, 13.0 * 56 * 56);
  EXPECT_GE(products, 12.0 * 56 * 56);
}

TEST(GramTerms, PairsOfTapsAreNumberedWithoutGaps) {
  int64_t next = 0;
  for (int64_t t = 0; t < 9; ++t)
    for (int64_t u = t; u < 9; ++u) EXPECT_EQ(pair_index(t, u, 9), next++);
}

TEST(GramWalk, VisitsThePositionsOfItsTerm) {
  for (const Geometry& g : geometries())
    for (int64_t images : {1, 3}) {
      const std::array<int64_t, 3> size{g[0].size, g[1].size, g[2].size};
      for (const Term& term : gram_terms(g)) {
        std::multimap<int64_t, int64_t> expected, got;
        for (int64_t h = 0; h < term.count[1]; ++h)
          for (int64_t w = 0; w < term.count[2]; ++w)
            for (int64_t image = 0; image < images; ++image)
              expected.emplace(
                  ((term.a_first[1] + h * term.a_step[1]) * g[2].size + term.a_first[2] + w) * images + image,
                  ((term.b_first[1] + h * term.b_step[1]) * g[2].size + term.b_first[2] + w) * images +
                      image);
        const Walk walk = flatten(term, size, size, images);
        const auto& l = walk.loops;
        for (int64_t i = 0; i < l[0].count; ++i)
          for (int64_t j = 0; j < l[1].count; ++j)
            for (int64_t k = 0; k < l[2].count; ++k)
              for (int64_t m = 0; m < l[3].count; ++m)
                got.emplace(
                    walk.a_first + i * l[0].a_step + j * l[1].a_step + k * l[2].a_step + m * l[3].a_step,
                    walk.b_first + i * l[0].b_step + j * l[1].b_step + k * l[2].b_step + m * l[3].b_step);
        ASSERT_EQ(got, expected);
      }
    }
}

// Small integers, so that sums are exact in any order.
template <typename T>
std::vector<T> integers(int64_t count) {
  std::mt19937 random(1);
  std::vector<T> values(count);
  for (T& value : values) value = T(int(random() % 7) - 3);
  return values;
}

template <typename T>
using ChannelLoops = void (*)(const T*, const T*, Panels, int64_t, int64_t, const Walk&, double*);
template <typename T>
using LaneLoops = void (*)(const T*, const T*, Panels, int64_t, int64_t, bool, const Walk&, double*);

constexpr int64_t kPositions = 1500;  // more than one run
const Walk kWalk{3, 1, {Walk::Loop{2, 700, 690}, {1, 0, 0}, {5, 100, 101}, {47, 2, 1}}};

template <typename T>
void check_channels(ChannelLoops<T> loops, int64_t rows, int64_t columns) {
  const std::vector<T> a = integers<T>(2 * kPositions * kLanes), b = integers<T>(2 * kPositions * kLanes);
  const int64_t panel = kPositions * kLanes;
  std::vector<double> expected(kBlock * kBlock), got(kBlock * kBlock, 5.0);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      double sum = 5;
      for (int64_t p = 0; p < 2; ++p)
        for (int64_t q = 0; q < 5; ++q)
          for (int64_t r = 0; r < 47; ++r)
            sum += a[i / kLanes * panel + (3 + 700 * p + 100 * q + 2 * r) * kLanes + i % kLanes] *
                   b[j / kLanes * panel + (1 + 690 * p + 101 * q + r) * kLanes + j % kLanes];
      expected[i * kBlock + j] = sum;
    }
  loops(a.data(), b.data(), {panel, panel}, rows, columns, kWalk, got.data());
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      ASSERT_EQ(got[i * kBlock + j], expected[i * kBlock + j]) << i << " " << j;
}

template <typename T>
void check_lanes(LaneLoops<T> loops, int64_t a_count, int64_t b_count, bool upper) {
  const std::vector<T> a = integers<T>(a_count * kPositions * kLanes),
                       b = integers<T>(b_count * kPositions * kLanes);
  const int64_t panel = kPositions * kLanes;
  std::vector<double> got(a_count * b_count * kLanes, 5.0);
  loops(a.data(), b.data(), {panel, panel}, a_count, b_count, upper, kWalk, got.data());
  for (int64_t i = 0; i < a_count; ++i)
    for (int64_t j = upper ? i : 0; j < b_count; ++j)
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        double sum = 5;
        for (int64_t p = 0; p < 2; ++p)
          for (int64_t q = 0; q < 5; ++q)
            for (int64_t r = 0; r < 47; ++r)
              sum += a[i * panel + (3 + 700 * p + 100 * q + 2 * r) * kLanes + lane] *
                     b[j * panel + (1 + 690 * p + 101 * q + r) * kLanes + lane];
        ASSERT_EQ(got[(i * b_count + j) * kLanes + lane], sum) << i << " " << j << " " << lane;
      }
}

template <typename T>
void check_all(ChannelLoops<T> channel_loops, LaneLoops<T> lane_loops) {
  for (int64_t rows : {1, 8, 13, 32})
    for (int64_t columns : {1, 16, 17, 32}) check_channels(channel_loops, rows, columns);
  for (int64_t count : {1, 2, 3, 5}) {
    check_lanes(lane_loops, count, count, true);
    check_lanes(lane_loops, count, 2, false);
    check_lanes(lane_loops, 1, count, false);
  }
}

TEST(GramProducts, Plain) {
  check_all<float>(channels_plain<float>, lanes_plain<float>);
  check_all<double>(channels_plain<double>, lanes_plain<double>);
}

#ifdef BITSPLIT_X86
TEST(GramProducts, Avx2) {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) GTEST_SKIP() << "no AVX2 here";
  check_all<float>(channels_avx2<float>, lanes_avx2<float>);
  check_all<double>(channels_avx2<double>, lanes_avx2<double>);
}

TEST(GramProducts, Avx512) {
  if (!__builtin_cpu_supports("avx512f")) GTEST_SKIP() << "no AVX-512 here";
  check_all<float>(channels_avx512<float>, lanes_avx512<float>);
  check_all<double>(channels_avx512<double>, lanes_avx512<double>);
}
#endif

TEST(GramPlan, PackedMemoryDoesNotGrowWithImages) {
  const Axis axis{56, 3, 1, 1, 1};
  const Geometry g = plane(axis, axis);
  for (int64_t stride : {1, 2}) {
    Geometry geometry = g;
    geometry[1].stride = geometry[2].stride = stride;
    for (int64_t images : {64, 1024, 100000}) {
      const int64_t outputs = geometry[1].out() * geometry[2].out();
      const Plan plan = choose_plan({geometry, images, 1, 64, 64, false, outputs});
      const int64_t values = plan.patches ? 64 * 9 + 64 : (64 + 64) * 56 * 56;
      EXPECT_LE(plan.chunk * plan.tile * values, kChunkValues);
      EXPECT_GE(plan.tiles * plan.tile, plan.patches ? images * outputs : images);
    }
  }
}

TEST(GramPlan, DepthwiseRunsOnLanesOfGroupsAndWideLayersDoNot) {
  const Axis axis{14, 3, 1, 1, 1};
  const Geometry g = plane(axis, axis);
  EXPECT_TRUE(choose_plan({g, 8, 96, 1, 1, false, 196}).lanes_are_groups);
  EXPECT_FALSE(choose_plan({g, 8, 1, 96, 96, false, 196}).lanes_are_groups);
  EXPECT_FALSE(choose_plan({g, 8, 1, 96, 96, false, 196}).patches);
  EXPECT_TRUE(choose_plan({g, 8, 1, 96, 96, true, 10}).patches);
}

TEST(GramPlan, LargeKernelsAreUnfolded) {
  for (int64_t kernel : {3, 7, 31}) {
    const Axis axis{32, kernel, 1, kernel / 2, 1};
    for (int64_t groups : {1, 4}) {
      const Plan plan = choose_plan({plane(axis, axis), 8, groups, 4 / groups, 1, false, 1024});
      EXPECT_EQ(plan.patches, kernel == 31) << kernel << " " << groups;
    }
  }
}

TEST(GramPlan, WorkIsThatOfTheTerms) {
  for (const Axis& axis : {Axis{9, 3, 1, 1, 1}, Axis{11, 5, 2, 2, 1}, Axis{8, 3, 1, 2, 2}}) {
    const Geometry g = plane(axis, {7, 2, 1, 0, 1});
    Work counted{0, 0};
    for (const Term& term : gram_terms(g)) {
      const double share =
          term.symmetric ? 0.5 : 1;  // of the products of a position with itself half is used
      counted.positions += share * double(term.count[0] * term.count[1] * term.count[2]);
      counted.destinations += share * double(term.destinations.size());
    }
    const Work work = gram_work(g);
    EXPECT_EQ(work.positions, counted.positions);
    EXPECT_EQ(work.destinations, counted.destinations);
  }
}

}  // namespace
}  // namespace bitsplit::gram
