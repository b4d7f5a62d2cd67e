// The CUDA kernels of the split family on CPU threads against the CPU solvers, odd sizes included.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "cuda_on_cpu.h"
// The kernels need cuda_on_cpu.h in front of them.
#include "ops/split/split_feedback.h"
#include "ops/split/split_kernels.cuh"
#include "ops/split/split_tile.h"
#include "ops/split/split_weights.h"
#include "ops/split/split_weights_kernels.cuh"
#include "split_layers.h"

namespace {

using namespace bitsplit;
using namespace bitsplit::split;

template <class T>
class SplitKernels : public testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(SplitKernels, Types);

// What the two sides do where a matrix product follows a kernel: target[r, n] -= amounts[r, i] * matrix[first
// + i, n].
template <class T>
void pass_on(std::vector<T>& target, const std::vector<T>& amounts, const std::vector<T>& matrix, int groups,
             int rows, int columns, int first) {
  for (int g = 0; g < groups; ++g)
    for (int r = g * rows; r < (g + 1) * rows; ++r)
      for (int i = 0; i < std::min(kColumns, columns - first); ++i)
        for (int n = 0; n < columns; ++n)
          target[r * columns + n] -=
              amounts[r * kColumns + i] * matrix[(g * columns + first + i) * columns + n];
}

template <class T>
Codes descend_on_cpu(const Layers<T>& layers, const Codes& start, int planes,
                     const std::vector<int8_t>& levels, int rounds, bool fit_scale) {
  Codes result = start;
  result.explained.resize(start.scale.size());
  result.rounds.resize(start.scale.size());
  const Panels<T> panels = packed_gram(layers);
  const Problem<T> problem{panels, layers.cross.data(), layers.rows, planes, rounds, fit_scale};
  for (int g = 0; g < layers.groups; ++g) {
    const int row = g * layers.rows;
    Tile<T>(problem, g, 0, layers.rows,
            {&levels[2 * row], &result.codes[row * layers.columns], &result.scale[row],
             &result.explained[row], &result.rounds[row]})
        .solve();
  }
  return result;
}

// The launcher of split_cuda.cu, word for word, with loops for its tensor operations.
template <class T>
Codes descend_by_kernels(const Layers<T>& layers, const Codes& start, int planes,
                         const std::vector<int8_t>& levels, int rounds, bool fit_scale) {
  const int groups = layers.groups, rows = layers.rows, columns = layers.columns, all = groups * rows;
  Codes result = start;
  std::vector<T> cross(all * columns), inverse(groups * columns), amounts(all * kColumns, T(99));
  std::vector<int8_t> digits(planes * all * columns);
  for (int r = 0; r < all; ++r)
    for (int n = 0; n < columns; ++n) {
      const int g = r / rows;
      cross[r * columns + n] =
          static_cast<T>(layers.cross[(g * columns + n) * rows + r % rows] / start.scale[r]);
      const T diagonal = layers.gram[(g * columns + n) * columns + n];
      inverse[g * columns + n] = diagonal > 0 ? 1 / diagonal : 0;
      for (int plane = 0; plane < planes; ++plane)
        digits[(plane * all + r) * columns + n] =
            planes == 1 ? start.codes[r * columns + n] : plane_digit(start.codes[r * columns + n], plane);
    }
  std::vector<T> residual = cross;
  for (int r = 0; r < all; ++r)
    for (int i = 0; i < columns; ++i)
      for (int n = 0; n < columns; ++n)
        residual[r * columns + n] -=
            start.codes[r * columns + i] * layers.gram[(r / rows * columns + i) * columns + n];
  std::vector<double> growth(all, 1.0), explained(all);
  std::vector<int> active(all, 1), moved(all);
  const DescentState<T> state{layers.gram.data(),
                              inverse.data(),
                              cross.data(),
                              residual.data(),
                              result.codes.data(),
                              digits.data(),
                              growth.data(),
                              explained.data(),
                              levels.data(),
                              active.data(),
                              moved.data(),
                              amounts.data(),
                              groups,
                              rows,
                              columns,
                              fit_scale};
  result.rounds.assign(all, 0);
  const dim3 grid((rows + kWarpsPerBlock - 1) / kWarpsPerBlock, groups);
  for (int round = 0; round < rounds && std::find(active.begin(), active.end(), 1) != active.end(); ++round) {
    cuda_on_cpu::launch(all, kRowThreads, 0, fit_scale_kernel<T>, state);
    for (int r = 0; r < all; ++r) result.rounds[r] += active[r];
    std::fill(moved.begin(), moved.end(), 0);
    for (int plane = planes - 1; plane >= 0; --plane)
      for (int first = 0; first < columns; first += kColumns) {
        cuda_on_cpu::launch(grid, kWarpsPerBlock * kWarp, 0, sweep_kernel<T>, state, plane, first);
        pass_on(residual, amounts, layers.gram, groups, rows, columns, first);
      }
    active = moved;
  }
  std::fill(active.begin(), active.end(), 1);
  cuda_on_cpu::launch(all, kRowThreads, 0, fit_scale_kernel<T>, state);
  for (int r = 0; r < all; ++r) {
    result.scale[r] *= growth[r];
    result.explained.push_back(explained[r] * start.scale[r] * start.scale[r]);
  }
  return result;
}

enum class Grid { planes, symmetric, mixed };

template <class T>
void expect_same_descent(const Layers<T>& layers, int bits, Grid grid, std::vector<int> all_rounds = {100},
                         bool fit_scale = true) {
  const bool by_planes = grid == Grid::planes;
  const int planes = by_planes ? plane_count(bits) : 1;
  const std::vector<int8_t> levels =
      row_levels(layers.groups * layers.rows, by_planes ? 2 : bits, grid == Grid::mixed);
  const Codes start = fwa_on_cpu(layers, bits);
  for (const int rounds : all_rounds) {
    const Codes cpu = descend_on_cpu(layers, start, planes, levels, rounds, fit_scale);
    const Codes cuda = descend_by_kernels(layers, start, planes, levels, rounds, fit_scale);
    EXPECT_EQ(cpu.rounds, cuda.rounds);
    EXPECT_EQ(cpu.codes, cuda.codes);
    const double tolerance = sizeof(T) == 4 ? 1e-5 : 1e-12;
    for (size_t r = 0; r < cpu.scale.size(); ++r) {
      EXPECT_NEAR(cpu.scale[r] / cuda.scale[r], 1, tolerance);
      EXPECT_NEAR(cpu.explained[r] / cuda.explained[r], 1, tolerance);
      if (!fit_scale) {
        EXPECT_EQ(cpu.scale[r], start.scale[r]);
      }
    }
    if (rounds == 100) {
      EXPECT_NE(cpu.codes, start.codes) << "a test that moves nothing shows nothing";
      EXPECT_EQ(uses_both_ends(cpu.codes, bits), grid == Grid::mixed);
    }
  }
}

TYPED_TEST(SplitKernels, PlanesAgreeWithTheCpu) {
  expect_same_descent(Layers<TypeParam>(1, 5, 70, 1), 4, Grid::planes);
}

TYPED_TEST(SplitKernels, PolishAgreesWithTheCpu) {
  expect_same_descent(Layers<TypeParam>(1, 5, 70, 2), 3, Grid::symmetric);
}

TYPED_TEST(SplitKernels, RowsKeepTheirScalesIfTheyShall) {
  expect_same_descent(Layers<TypeParam>(1, 5, 70, 2), 3, Grid::symmetric, {100}, false);
}

TYPED_TEST(SplitKernels, EveryRowKeepsToItsOwnLevels) {
  for (const int bits : {2, 3}) expect_same_descent(Layers<TypeParam>(2, 5, 70, 2), bits, Grid::mixed);
}

TYPED_TEST(SplitKernels, GroupsOfMoreRowsThanABlockHasWarps) {
  expect_same_descent(Layers<TypeParam>(2, 9, 10, 3), 3, Grid::planes, {0, 1, 100});
}

template <class T>
void expect_same_feedback(bool mixed) {
  const int groups = 2, rows = 5, columns = 70, bits = 3;
  const std::vector<int8_t> levels = row_levels(groups * rows, bits, mixed);
  const Layers<T> layers(groups, rows, columns, 4);
  const Codes fit = fwa_on_cpu(layers, bits);
  std::mt19937 random(5);
  std::uniform_real_distribution<double> uniform(-0.3, 0.3);
  std::vector<T> factor(groups * columns * columns), shares(factor.size());
  for (int g = 0; g < groups; ++g)
    for (int i = 0; i < columns; ++i)
      for (int n = i; n < columns; ++n)
        factor[(g * columns + i) * columns + n] = static_cast<T>(n == i ? 1.5 : uniform(random));
  Panels<T> panels(groups, columns);
  std::vector<int8_t> cpu(groups * rows * columns), cuda(cpu.size(), 99);
  std::vector<double> cpu_loss(groups * rows, -1), cuda_loss(groups * rows, 0);
  std::vector<T> diagonal(groups * columns, T(1.5)), padded_diagonal(panels.padded, T(0));
  std::fill_n(padded_diagonal.begin(), columns, T(1.5));
  for (int g = 0; g < groups; ++g) {
    for (int block = 0; block < panels.blocks; ++block)
      panels.pack_shares(&factor[g * columns * columns], g, block);
    Feedback<T>{panels,
                padded_diagonal.data(),
                g,
                rows,
                &layers.weight[g * rows * columns],
                &fit.scale[g * rows],
                &levels[2 * g * rows],
                &cpu[g * rows * columns],
                &cpu_loss[g * rows]}
        .round(0, rows);
    for (int i = 0; i < columns; ++i)
      for (int n = i + 1; n < columns; ++n)
        shares[(g * columns + i) * columns + n] =
            factor[(g * columns + i) * columns + n] / factor[(g * columns + n) * columns + n];
  }
  std::vector<T> weight(layers.weight), excess(groups * rows * kColumns);
  for (int r = 0; r < groups * rows; ++r)
    for (int n = 0; n < columns; ++n)
      weight[r * columns + n] = static_cast<T>(weight[r * columns + n] / fit.scale[r]);
  std::vector<T> wanted = weight;
  for (int first = 0; first < columns; first += kColumns) {
    cuda_on_cpu::launch({1, groups}, kWarpsPerBlock * kWarp, 0, feedback_kernel<T>, (const T*)wanted.data(),
                        (const T*)weight.data(), (const T*)shares.data(), (const T*)diagonal.data(),
                        levels.data(), cuda.data(), excess.data(), cuda_loss.data(), rows, columns, first);
    pass_on(wanted, excess, shares, groups, rows, columns, first);
  }
  EXPECT_EQ(cpu, cuda);
  EXPECT_EQ(uses_both_ends(cpu, bits), mixed);
  for (int r = 0; r < groups * rows; ++r)
    EXPECT_NEAR(cpu_loss[r] / (cuda_loss[r] * fit.scale[r] * fit.scale[r]), 1, 1e-5);
}

TYPED_TEST(SplitKernels, FeedbackAgreesWithTheCpu) {
  for (const bool mixed : {false, true}) expect_same_feedback<TypeParam>(mixed);
}

TYPED_TEST(SplitKernels, WeightSpaceAgreesWithTheCpu) {
  using T = TypeParam;
  for (int columns : {1, 150}) {
    Layers<T> layers(1, 3, columns, 6);
    for (int n = 0; n < columns; ++n) layers.weight[columns + n] = 0;  // an all-zero row
    for (int bits : {2, 5}) {
      const Codes cpu = fwa_on_cpu(layers, bits);
      Codes cuda{std::vector<int8_t>(3 * columns, 99), std::vector<double>(3, -1), {}, {}};
      cuda_on_cpu::launch(3, kRowThreads, 0, fwa_kernel<T>, (const T*)layers.weight.data(), columns, bits,
                          cuda.codes.data(), cuda.scale.data());
      EXPECT_EQ(cpu.codes, cuda.codes);
      EXPECT_EQ(cuda.scale[1], 1);
      for (int r = 0; r < 3; ++r) EXPECT_NEAR(cpu.scale[r] / cuda.scale[r], 1, 1e-12);

      Codes alternated = cpu;
      for (double& scale : alternated.scale) scale *= 0.8;  // off its optimum, so that planes do move
      for (int8_t& code : alternated.codes) code = static_cast<int8_t>(code / 2);
      Codes kernel = alternated;
      std::vector<int8_t> digits(3 * plane_count(bits) * columns, 99);
      for (int r = 0; r < 3; ++r)
        ofwa_row(&layers.weight[r * columns], columns, bits, 50, &alternated.codes[r * columns],
                 alternated.scale[r]);
      cuda_on_cpu::launch(3, kRowThreads, 0, ofwa_kernel<T>, (const T*)layers.weight.data(), columns, bits,
                          50, kernel.codes.data(), digits.data(), kernel.scale.data());
      EXPECT_EQ(alternated.codes, kernel.codes);
      for (int r = 0; r < 3; ++r) EXPECT_NEAR(alternated.scale[r] / kernel.scale[r], 1, 1e-12);
    }
  }
}

// The one decision that is written twice: vector by vector for the CPU.
TYPED_TEST(SplitKernels, BestDigitsOfAVectorAreThoseOfTheCore) {
  using T = TypeParam;
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  T residual[kBlock], inverse[kBlock], best[kBlock];
  int8_t digits[kBlock];
  for (int n = 0; n < kBlock; ++n) {
    residual[n] = static_cast<T>(20 * normal(random));
    inverse[n] = n % 7 == 0 ? 0 : static_cast<T>(0.25);
    digits[n] = static_cast<int8_t>(n % 15 - 7);
  }
  residual[1] = 1;  // a tie: 1 / (0.5 * 4) = 0.5 above the digit -6
  const Levels<T> levels{T(-7), T(5)};
  const auto check = [&](auto bytes) {
    Differences<T> differences;
    best_digits<bytes>(residual, digits, inverse, T(2), levels, best, differences);
    int64_t first = kTogether<T>;
    for (int64_t n = kTogether<T> - 1; n >= 0; --n) {
      EXPECT_EQ(best[n], best_digit(T(digits[n]), residual[n], inverse[n], T(2), levels));
      if (best[n] != digits[n]) first = n;
    }
    EXPECT_EQ(differences.first(0), first);
    EXPECT_EQ(best[1], -6);
  };
  check(simd::Width<16>{});
  check(simd::Width<32>{});
  check(simd::Width<64>{});
}

// Sums have the same lanes at every width, so every machine adds in the same order.
TYPED_TEST(SplitKernels, ProductsAreTheSameBitsAtEveryWidth) {
  using T = TypeParam;
  std::mt19937 random(8);
  std::normal_distribution<double> normal;
  T cross[kBlock], residual[kBlock];
  int8_t codes[kBlock];
  for (int n = 0; n < kBlock; ++n) {
    cross[n] = static_cast<T>(normal(random));
    residual[n] = static_cast<T>(normal(random));
    codes[n] = static_cast<int8_t>(n % 15 - 7);
  }
  const auto products = [&](auto bytes) {
    Products sums;
    add_products<bytes>(codes, cross, residual, sums);
    return sums;
  };
  const Products narrow = products(simd::Width<16>{});
  for (const Products& wide : {products(simd::Width<32>{}), products(simd::Width<64>{})}) {
    EXPECT_EQ(narrow.cross, wide.cross);
    EXPECT_EQ(narrow.residual, wide.residual);
  }
  double expected = 0;
  for (int n = 0; n < kBlock; ++n) expected += static_cast<double>(codes[n]) * cross[n];
  EXPECT_NEAR(narrow.cross, expected, 1e-9);
}

}  // namespace
