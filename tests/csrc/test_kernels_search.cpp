// The CUDA kernel of the tabu search on CPU threads against the CPU search, and the search's own decisions.
#include <gtest/gtest.h>

#include <set>

#include "cuda_on_cpu.h"
// The kernels need cuda_on_cpu.h in front of them.
#include "ops/split/split_search.h"
#include "ops/split/split_search_kernels.cuh"
#include "split_layers.h"

namespace {

using namespace bitsplit;
using namespace bitsplit::split;

template <class T>
class SearchKernel : public testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(SearchKernel, Types);

constexpr uint64_t kSeed = 7;

template <class T>
Codes search_on_cpu(const Layers<T>& layers, const Codes& start, const std::vector<int8_t>& levels, int steps,
                    bool fit_scale = true) {
  Codes result = start;
  result.explained.resize(start.scale.size());
  const Panels<T> panels = packed_gram(layers);
  for (int g = 0; g < layers.groups; ++g) {
    const int8_t* const codes = &start.codes[g * layers.rows * layers.columns];
    const Aligned<T> products = negative_products(panels, g, codes, layers.rows);
    for (int r = 0; r < layers.rows; ++r) {
      const int row = g * layers.rows + r;
      RowSearch<T> search(panels, g, codes + r * layers.columns,
                          &layers.cross[g * layers.columns * layers.rows + r], layers.rows,
                          &products[r * kBlock], products.size() / panels.blocks, start.scale[row],
                          levels_of_row<T>(levels.data(), row), fit_scale);
      const Explained found = search.run(steps, kSeed, row, &result.codes[row * layers.columns]);
      result.explained[row] = found.value_in(start.scale[row]);
      if (found.possible()) result.scale[row] *= found.scale();
    }
  }
  return result;
}

template <class T>
Codes search_by_kernel(const Layers<T>& layers, const Codes& start, const std::vector<int8_t>& levels,
                       int steps, int threads, bool fit_scale = true) {
  const int rows = layers.groups * layers.rows, columns = layers.columns, size = rows * columns;
  std::vector<T> cross(size), products(size), best_products(size, T(NAN));
  for (int r = 0; r < rows; ++r)
    for (int n = 0; n < columns; ++n) {
      const int g = r / layers.rows;
      cross[r * columns + n] =
          static_cast<T>(layers.cross[(g * columns + n) * layers.rows + r % layers.rows] / start.scale[r]);
      for (int i = 0; i < columns; ++i)
        products[r * columns + n] +=
            start.codes[r * columns + i] * layers.gram[(g * columns + i) * columns + n];
    }
  Codes result = start;
  result.explained.assign(rows, -1);
  std::vector<int8_t> now = start.codes;
  std::vector<int32_t> rests(size, -1);
  const SearchState<T> state{layers.gram.data(),
                             cross.data(),
                             products.data(),
                             best_products.data(),
                             now.data(),
                             result.codes.data(),
                             rests.data(),
                             result.scale.data(),
                             result.explained.data(),
                             levels.data(),
                             layers.rows,
                             columns,
                             layers.rows,
                             fit_scale};
  cuda_on_cpu::launch(rows, threads, 0, search_kernel<T>, state, steps, kSeed);
  return result;
}

template <class T>
void expect_same_search(const Layers<T>& layers, int bits, int steps, int threads, bool mixed = false,
                        bool fit_scale = true) {
  const std::vector<int8_t> levels = row_levels(layers.groups * layers.rows, bits, mixed);
  const Codes start = fwa_on_cpu(layers, bits);
  const Codes cpu = search_on_cpu(layers, start, levels, steps, fit_scale);
  const Codes cuda = search_by_kernel(layers, start, levels, steps, threads, fit_scale);
  EXPECT_EQ(uses_both_ends(cpu.codes, bits), mixed);
  EXPECT_EQ(cpu.codes, cuda.codes);
  EXPECT_NE(cpu.codes, start.codes);
  for (size_t r = 0; r < cpu.scale.size(); ++r) {
    EXPECT_NEAR(cpu.scale[r] / cuda.scale[r], 1, 1e-6);
    EXPECT_NEAR(cpu.explained[r] / cuda.explained[r], 1, 1e-6);
    if (!fit_scale) {
      EXPECT_EQ(cpu.scale[r], start.scale[r]);
    }
  }
}

TYPED_TEST(SearchKernel, AgreesWithTheCpuOverSeveralPhases) {
  expect_same_search(Layers<TypeParam>(1, 3, 70, 1), 3, 3 * kPhase + 5, 64);
}

TYPED_TEST(SearchKernel, AgreesWithTheCpuInGroupsSmallerThanAWarp) {
  expect_same_search(Layers<TypeParam>(2, 2, 9, 2), 2, 2 * kPhase, 32);
}

TYPED_TEST(SearchKernel, EveryRowKeepsToItsOwnLevels) {
  expect_same_search(Layers<TypeParam>(1, 5, 70, 1), 2, 3 * kPhase + 5, 64, true);
}

TYPED_TEST(SearchKernel, RowsKeepTheirScalesIfTheyShall) {
  expect_same_search(Layers<TypeParam>(1, 3, 70, 1), 3, 3 * kPhase + 5, 64, false, false);
}

TYPED_TEST(SearchKernel, RowsThatExplainNothingStay) {
  Layers<TypeParam> layers(1, 2, 10, 3);
  Codes start = fwa_on_cpu(layers, 4);
  std::fill_n(start.codes.begin(), 10, 0);
  const Codes cpu = search_on_cpu(layers, start, row_levels(2, 4, false), 50);
  const Codes cuda = search_by_kernel(layers, start, row_levels(2, 4, false), 50, 32);
  EXPECT_EQ(cpu.codes, cuda.codes);
  for (const Codes& result : {cpu, cuda}) {
    EXPECT_TRUE(std::all_of(result.codes.begin(), result.codes.begin() + 10, [](int c) { return c == 0; }));
    EXPECT_EQ(result.scale[0], start.scale[0]);
    EXPECT_EQ(result.explained[0], 0);
  }
}

TEST(TabuSearch, ExplainedFollowsAMove) {
  Explained explained{6, 9, true};  // q.c and q G q
  explained.move(-1, 2, 3, 4);
  EXPECT_EQ(explained.cross, 4);
  EXPECT_EQ(explained.energy, 9 - 2 * 3 + 4);
  EXPECT_DOUBLE_EQ(explained.value(), 4.0 * 4 / 7);
  EXPECT_DOUBLE_EQ(explained.scale(), 4.0 / 7);
  EXPECT_FALSE((Explained{-1, 2, true}.possible()));
  EXPECT_DOUBLE_EQ((Explained{-1, 2, true}.value_in(3)), (2 * -1 - 2) * 9.0);
  const Explained kept{-1, 2, false};
  EXPECT_TRUE(kept.possible());
  EXPECT_EQ(kept.scale(), 1);
  EXPECT_EQ(kept.value(), 2 * -1 - 2);
  EXPECT_TRUE((Explained{-0.9, 2, false}.beats(kept)));
  EXPECT_FALSE(kept.beats(kept));
}

TEST(TabuSearch, RandomNumbersCoverTheirRangeAndDependOnEveryArgument) {
  std::set<int64_t> columns, rests, directions;
  for (int step = 0; step < 400; ++step) {
    const Kick kick = random_kick(1, 2, step, step % kKicks, 7);
    columns.insert(kick.column);
    directions.insert(kick.direction);
    rests.insert(rest_after(1, 2, step) - step);
  }
  EXPECT_EQ(columns, (std::set<int64_t>{0, 1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(directions, (std::set<int64_t>{-1, 1}));
  EXPECT_EQ(rests, (std::set<int64_t>{5, 6, 7, 8, 9}));
  EXPECT_EQ((std::set<uint64_t>{random_bits(1, 2, 3), random_bits(2, 2, 3), random_bits(1, 3, 3),
                                random_bits(1, 2, 4)})
                .size(),
            4u);
}

}  // namespace
