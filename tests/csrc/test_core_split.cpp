// The decisions of the split solvers, by tables that can be checked by hand.
#include <gtest/gtest.h>

#include <cmath>

#include "core/levels.h"
#include "core/planes.h"
#include "core/split_steps.h"

namespace {

using namespace bitsplit;

TEST(Levels, LimitOfEveryWidth) {
  const int limits[] = {1, 3, 7, 15, 31, 63, 127};
  for (int bits = 2; bits <= 8; ++bits) EXPECT_EQ(level_limit(bits), limits[bits - 2]);
}

TEST(Levels, OfARow) {
  const int8_t levels[] = {-1, 1, -2, 1, -128, 127};
  EXPECT_EQ(levels_of_row<double>(levels, 1).low, -2);
  EXPECT_EQ(levels_of_row<double>(levels, 1).high, 1);
  EXPECT_EQ(levels_of_row<int>(levels, 2).low, -128);
  EXPECT_EQ(symmetric_levels<float>(4).low, -7);
  EXPECT_EQ(symmetric_levels<float>(4).high, 7);
}

TEST(Planes, DigitsAddUpToTheLevel) {
  for (int bits = 2; bits <= 8; ++bits)
    for (int level = -level_limit(bits); level <= level_limit(bits); ++level) {
      int sum = 0;
      for (int plane = 0; plane < plane_count(bits); ++plane) {
        EXPECT_LE(std::abs(plane_digit(level, plane)), 1);
        EXPECT_GE(plane_digit(level, plane) * level, 0) << "the sign goes into every plane";
        sum += plane_digit(level, plane) * plane_weight(plane);
      }
      EXPECT_EQ(sum, level);
    }
}

TEST(Planes, DigitsOfMinusFive) {
  EXPECT_EQ(plane_digit(-5, 0), -1);
  EXPECT_EQ(plane_digit(-5, 1), 0);
  EXPECT_EQ(plane_digit(-5, 2), -1);
}

struct NearestCase {
  double value, low, high, code;
};

TEST(NearestCode, TiesGoToEvenAndEndsClamp) {
  const NearestCase cases[] = {{0.5, -1, 1, 0},
                               {-0.5, -1, 1, 0},
                               {0.51, -1, 1, 1},
                               {1.5, -1, 1, 1},
                               {1.5, -3, 3, 2},
                               {2.5, -3, 3, 2},
                               {-2.5, -3, 3, -2},
                               {3.5, -3, 3, 3},
                               {-1e30, -7, 7, -7},
                               {1e30, -7, 7, 7},
                               {6.5, -7, 7, 6},
                               {6.6, -7, 7, 7},
                               {0, -7, 7, 0},
                               {126.5, -127, 127, 126},
                               {-127.4, -127, 127, -127},
                               {-1.6, -2, 1, -2},
                               {-9, -2, 1, -2},
                               {1.6, -2, 1, 1},
                               {-1.6, -1, 2, -1},
                               {1.6, -1, 2, 2},
                               {-127.6, -128, 127, -128},
                               {-0.4, 0, 1, 0},
                               {5, 0, 1, 1},
                               {-3, -1, 0, -1}};
  for (const NearestCase& c : cases) {
    EXPECT_EQ(nearest_code(c.value, {c.low, c.high}), c.code) << c.value;
    const Levels<float> levels{static_cast<float>(c.low), static_cast<float>(c.high)};
    EXPECT_EQ(nearest_code(static_cast<float>(c.value), levels), c.code) << c.value;
  }
}

// One coordinate: y - s q x with x.x = 4, s = 0.5. The residual is x.(y - s q x), so the best real q is
// q + residual / (0.5 * 4).
TEST(BestDigit, MovesToTheMinimumOfTheParabola) {
  const Levels<double> levels{-8, 7};
  EXPECT_EQ(best_digit(1.0, 0.0, 0.25, 2.0, levels), 1);
  EXPECT_EQ(best_digit(1.0, 4.0, 0.25, 2.0, levels), 3);
  EXPECT_EQ(best_digit(1.0, -4.0, 0.25, 2.0, levels), -1);
  EXPECT_EQ(best_digit(1.0, 100.0, 0.25, 2.0, levels), 7);
  EXPECT_EQ(best_digit(1.0, -100.0, 0.25, 2.0, levels), -8);
  EXPECT_EQ(best_digit(1.0, 0.9, 0.25, 2.0, levels), 1);
  EXPECT_EQ(best_digit(1.0, 1.1, 0.25, 2.0, levels), 2);
}

TEST(BestDigit, IsThePaperRuleForATernaryPlane) {
  const double step = 0.5, power = 4;
  for (int digit = -1; digit <= 1; ++digit)
    for (double residual = -8; residual <= 8; residual += 0.25) {
      const double without = residual + step * digit * power;  // the digit's own share back in
      const double rule = std::abs(without) > step * power / 2 ? (without > 0 ? 1 : -1) : 0;
      EXPECT_EQ(best_digit<double>(digit, residual, 1 / power, 1 / step, {-1, 1}), rule)
          << digit << " " << residual;
    }
}

TEST(BestDigit, AnInputThatIsNeverActiveKeepsItsDigit) {
  for (float digit : {-3.0f, 0.0f, 2.0f})
    EXPECT_EQ(best_digit(digit, 0.0f, 0.0f, 2.0f, Levels<float>{-3, 3}), digit);
}

TEST(WeightDigit, ATieGivesADigit) {
  EXPECT_EQ(weight_digit(0.5, 1.0), 1);
  EXPECT_EQ(weight_digit(-0.5, 1.0), -1);
  EXPECT_EQ(weight_digit(0.49, 1.0), 0);
  EXPECT_EQ(weight_digit(-0.49, 1.0), 0);
  EXPECT_EQ(weight_digit(0.0, 1.0), 0);
}

// q.c = 6 and s q G q = 4 (residual product 2): the scale must grow by 6 / 4.
TEST(ScaleGrowth, IsTheOptimumOrStays) {
  EXPECT_DOUBLE_EQ(scale_growth(6, 2, true), 1.5);
  EXPECT_DOUBLE_EQ(scale_growth(6, 0, true), 1);
  EXPECT_EQ(scale_growth(0, 0, true), 1) << "no codes";
  EXPECT_EQ(scale_growth(-1, -3, true), 1) << "the best scale would be negative";
  EXPECT_EQ(scale_growth(2, 2, true), 1) << "codes that never reach the output";
  EXPECT_EQ(scale_growth(1e-320, -1e300, true), 1) << "a scale of zero is no scale";
  EXPECT_EQ(scale_growth(6, 2, false), 1) << "kept";
}

}  // namespace
