// The decisions of the split solvers, one number at a time, for the CPU loops and the CUDA kernels.
// Torch-free.
#pragma once

#include "core/host_device.h"
#include "core/levels.h"
#include "core/rounding.h"

namespace bitsplit {

constexpr double kSmallestWeight = 2.2250738585072014e-308;  // rows whose largest is below count as all zero
constexpr int kMostFwaRounds = 1000;  // fwa ends by itself; a bound in case two codings tie for ever

// The level nearest to `value`, a tie going to the even one.
template <typename T>
BITSPLIT_HOST_DEVICE T nearest_code(T value, Levels<T> levels) {
  return round_half_even(clamp_level(value, levels.low, levels.high));
}

// The digit that minimises the objective while all others stay: the parabola's minimum lies residual / (step
// * G_nn) from the present digit, and the best integer is the nearest. With levels -1..1 a tie at 1/2 goes to
// 0, so this is the paper's rule for a ternary plane: sign(g) where |g| > step * G_nn / 2, else 0.
// inverse_diagonal = 1 / G_nn, or 0 for an input that is never active, whose digit then stays.
template <typename T>
BITSPLIT_HOST_DEVICE T best_digit(T digit, T residual, T inverse_diagonal, T inverse_step, Levels<T> levels) {
  return nearest_code(digit + residual * (inverse_diagonal * inverse_step), levels);
}

// The paper's rule in weight space: sign(left) where 2 |left| >= step, else 0.
BITSPLIT_HOST_DEVICE int weight_digit(double left, double step) {
  if (2 * left >= step) return 1;
  return -2 * left >= step ? -1 : 0;
}

// The factor by which the scale s of a row must grow to reach its optimum q.c / q G q, where residual = c - s
// G q: q.c / (q.c - q.residual). 1 where that is not a positive finite number, and where scales are not
// fitted: then the scale stays.
BITSPLIT_HOST_DEVICE double scale_growth(double dot_cross, double dot_residual, bool fitted) {
  if (!fitted) return 1;
  const double energy = dot_cross - dot_residual;  // s q G q
  if (!(dot_cross > 0) || !(energy > 0)) return 1;
  const double growth = dot_cross / energy;
  return growth > 0 && growth < 1e300 ? growth : 1;
}

}  // namespace bitsplit
