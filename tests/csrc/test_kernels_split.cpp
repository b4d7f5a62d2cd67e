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

namespace {

using namespace bitsplit;
using namespace bitsplit::split;

template <class T>
class SplitKernels : public testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(SplitKernels, Types);

// Random layers in matrix form, with correlated inputs and a dead one. Values are multiples of 1/8 and few
// patches are used, so G and C are exact in float: CPU and kernels differ in nothing but the order of later
// sums.
template <class T>
struct Layers {
  int groups, rows, columns;
  std::vector<T> weight, gram, cross;  // [g, M, N], [g, N, N], [g, N, M]

  Layers(int groups, int rows, int columns, unsigned seed)
      : groups(groups),
        rows(rows),
        columns(columns),
        weight(groups * rows * columns),
        gram(groups * columns * columns),
        cross(groups * columns * rows) {
    std::mt19937 random(seed);
    std::uniform_int_distribution<int> eighths(-16, 16);
    const int patches = columns + 20;
    for (T& w : weight) w = eighths(random) / T(64) + T(1) / 1024;
    for (int g = 0; g < groups; ++g) {
      std::vector<double> x(columns * patches);
      for (int n = 0; n < columns; ++n)
        for (int k = 0; k < patches; ++k) {
          const double shared = n % 3 == 0 || n == 1 ? 0 : x[(n - 1) * patches + k] / 2;
          x[n * patches + k] = n == columns / 2 ? 0 : eighths(random) / 8.0 + std::round(shared * 8) / 8;
        }
      for (int i = 0; i < columns; ++i)
        for (int j = 0; j < columns; ++j) {
          double sum = 0;
          for (int k = 0; k < patches; ++k) sum += x[i * patches + k] * x[j * patches + k];
          gram[(g * columns + i) * columns + j] = static_cast<T>(sum);
        }
      for (int m = 0; m < rows; ++m)
        for (int n = 0; n < columns; ++n) {
          double sum = 0;
          for (int i = 0; i < columns; ++i)
            sum += double(gram[(g * columns + n) * columns + i]) * weight[(g * rows + m) * columns + i];
          cross[(g * columns + n) * rows + m] = static_cast<T>(sum);
        }
    }
  }
};

struct Codes {
  std::vector<int8_t> codes;
  std::vector<double> scale, explained;
  std::vector<int64_t> rounds;
};

template <class T>
Codes fwa_on_cpu(const Layers<T>& layers, int bits) {
  const int rows = layers.groups * layers.rows;
  Codes fit{std::vector<int8_t>(rows * layers.columns), std::vector<double>(rows), {}, {}};
  for (int r = 0; r < rows; ++r)
    fwa_row(&layers.weight[r * layers.columns], layers.columns, bits, &fit.codes[r * layers.columns],
            fit.scale[r]);
  return fit;
}

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
Codes descend_on_cpu(const Layers<T>& layers, const Codes& start, int planes, int limit, int rounds) {
  Codes result = start;
  result.explained.resize(start.scale.size());
  result.rounds.resize(start.scale.size());
  Panels<T> panels(layers.groups, layers.columns);
  for (int g = 0; g < layers.groups; ++g)
    for (int block = 0; block < panels.blocks; ++block)
      panels.pack(&layers.gram[g * layers.columns * layers.columns], g, block);
  const Problem<T> problem{panels, layers.cross.data(), layers.rows, planes, limit, rounds};
  for (int g = 0; g < layers.groups; ++g) {
    const int row = g * layers.rows;
    Tile<T>(problem, g, 0, layers.rows,
            {&result.codes[row * layers.columns], &result.scale[row], &result.explained[row],
             &result.rounds[row]})
        .solve();
  }
  return result;
}

// The launcher of split_cuda.cu, word for word, with loops for its tensor operations.
template <class T>
Codes descend_by_kernels(const Layers<T>& layers, const Codes& start, int planes, int limit, int rounds) {
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
                              active.data(),
                              moved.data(),
                              amounts.data(),
                              groups,
                              rows,
                              columns};
  result.rounds.assign(all, 0);
  const dim3 grid((rows + kWarpsPerBlock - 1) / kWarpsPerBlock, groups);
  for (int round = 0; round < rounds && std::find(active.begin(), active.end(), 1) != active.end(); ++round) {
    cuda_on_cpu::launch(all, kRowThreads, 0, fit_scale_kernel<T>, state);
    for (int r = 0; r < all; ++r) result.rounds[r] += active[r];
    std::fill(moved.begin(), moved.end(), 0);
    for (int plane = planes - 1; plane >= 0; --plane)
      for (int first = 0; first < columns; first += kColumns) {
        cuda_on_cpu::launch(grid, kWarpsPerBlock * kWarp, 0, sweep_kernel<T>, state, plane, first, T(limit));
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

template <class T>
void expect_same_descent(const Layers<T>& layers, int bits, bool by_planes,
                         std::vector<int> all_rounds = {100}) {
  const int planes = by_planes ? plane_count(bits) : 1, limit = by_planes ? 1 : level_limit(bits);
  const Codes start = fwa_on_cpu(layers, bits);
  for (const int rounds : all_rounds) {
    const Codes cpu = descend_on_cpu(layers, start, planes, limit, rounds);
    const Codes cuda = descend_by_kernels(layers, start, planes, limit, rounds);
    EXPECT_EQ(cpu.rounds, cuda.rounds);
    EXPECT_EQ(cpu.codes, cuda.codes);
    const double tolerance = sizeof(T) == 4 ? 1e-5 : 1e-12;
    for (size_t r = 0; r < cpu.scale.size(); ++r) {
      EXPECT_NEAR(cpu.scale[r] / cuda.scale[r], 1, tolerance);
      EXPECT_NEAR(cpu.explained[r] / cuda.explained[r], 1, tolerance);
    }
    if (rounds == 100) {
      EXPECT_NE(cpu.codes, start.codes) << "a test that moves nothing shows nothing";
    }
  }
}

TYPED_TEST(SplitKernels, PlanesAgreeWithTheCpu) {
  expect_same_descent(Layers<TypeParam>(1, 5, 70, 1), 4, true);
}

TYPED_TEST(SplitKernels, PolishAgreesWithTheCpu) {
  expect_same_descent(Layers<TypeParam>(1, 5, 70, 2), 3, false);
}

TYPED_TEST(SplitKernels, GroupsOfMoreRowsThanABlockHasWarps) {
  expect_same_descent(Layers<TypeParam>(2, 9, 10, 3), 3, true, {0, 1, 100});
}

TYPED_TEST(SplitKernels, FeedbackAgreesWithTheCpu) {
  using T = TypeParam;
  const int groups = 2, rows = 5, columns = 70, bits = 3;
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
  for (int g = 0; g < groups; ++g) {
    for (int block = 0; block < panels.blocks; ++block)
      panels.pack_shares(&factor[g * columns * columns], g, block);
    Feedback<T>{panels,
                g,
                rows,
                &layers.weight[g * rows * columns],
                &fit.scale[g * rows],
                level_limit(bits),
                &cpu[g * rows * columns]}
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
                        (const T*)weight.data(), (const T*)shares.data(), cuda.data(), excess.data(), rows,
                        columns, first, T(level_limit(bits)));
    pass_on(wanted, excess, shares, groups, rows, columns, first);
  }
  EXPECT_EQ(cpu, cuda);
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
  Differences<T> differences;
  best_digits(residual, digits, inverse, T(2), T(7), best, differences);
  int64_t first = Vectors<T>::lanes;
  for (int64_t n = Vectors<T>::lanes - 1; n >= 0; --n) {
    EXPECT_EQ(best[n], best_digit(T(digits[n]), residual[n], inverse[n], T(2), T(7)));
    if (best[n] != digits[n]) first = n;
  }
  EXPECT_EQ(differences.first(0), first);
  EXPECT_EQ(best[1], -6);
}

}  // namespace
