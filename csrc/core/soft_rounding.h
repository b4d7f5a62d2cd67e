// Learned rounding (AdaRound): between two neighbouring levels a variable v decides, softly while it is
// learned, which one it will be. And Adam's step for it. Torch-free.
//
//   h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)        0: the lower level, 1: the upper one
//   R(v) = 1 - |2 h(v) - 1|^b                      0 when decided; b falls in the course of learning
#pragma once

#include <cmath>

#include "core/host_device.h"
#include "core/power.h"

namespace bitsplit {

BITSPLIT_HOST_DEVICE float sigmoid(float v) {
  constexpr float kLog2OfE = 1.4426950408889634f;
  return 1 / (1 + exp2_of_normal(clamp_level(-kLog2OfE * v, -126.f, 126.f)));
}
BITSPLIT_HOST_DEVICE double sigmoid(double v) { return 1 / (1 + exp(-v)); }

template <typename T>
struct SoftBit {
  T h;
  T slope;  // dh / dv, 0 where h is clipped
};

template <typename T>
BITSPLIT_HOST_DEVICE SoftBit<T> soft_bit(T v) {
  const T s = sigmoid(v), stretched = T(1.2) * s - T(0.1);
  const T h = clamp_level(stretched, T(0), T(1)), slope = T(1.2) * s * (1 - s);
  return {h, h == stretched ? slope : T(0)};
}

// x^p for 0 <= x <= 1 and p >= 0, without a case that would keep loops from being vectorised: below 2^-60 x
// counts as 2^-60.
BITSPLIT_HOST_DEVICE float power_of_fraction(float x, float p) {
  constexpr float kSmallest = 0x1p-60f;
  return exp2_of_normal(clamp_level(p * log2_of_normal(x < kSmallest ? kSmallest : x), -126.f, 0.f));
}
BITSPLIT_HOST_DEVICE double power_of_fraction(double x, double p) { return pow(x, p); }

// dR / dh = -2 b |2h - 1|^(b - 2) (2h - 1), for b >= 2.
template <typename T>
BITSPLIT_HOST_DEVICE T indecision_slope(T h, T b) {
  const T from_middle = 2 * h - 1;
  return -2 * b * from_middle * power_of_fraction(from_middle < 0 ? -from_middle : from_middle, b - 2);
}

// What one iteration of learning depends on besides the gradients. first, second: Adam's corrections
// 1 / (1 - beta1^t) (times the learning rate) and 1 / (1 - beta2^t); weight: of R in the loss; exponent: b.
template <typename T>
struct RoundingSchedule {
  T first, second, weight, exponent;
};

template <typename T>
struct AdamState {
  T mean, square;
};

// Adam's change of a variable with gradient `gradient`; beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8.
template <typename T>
BITSPLIT_HOST_DEVICE T adam_change(T gradient, T first, T second, AdamState<T>& state) {
  state.mean = T(0.9) * state.mean + T(0.1) * gradient;
  state.square = T(0.999) * state.square + T(0.001) * gradient * gradient;
  return -first * state.mean / (std::sqrt(second * state.square) + T(1e-8));
}

}  // namespace bitsplit
