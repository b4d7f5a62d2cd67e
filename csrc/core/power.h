// |x|^p for the L_p losses, in a form that vectorises and gives the same bits on CPU and GPU. Polynomials are
// written as short chains of independent parts, because their latency is what costs. Torch-free.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/host_device.h"
#include "core/rounding.h"

namespace bitsplit {

template <typename To, typename From>
BITSPLIT_HOST_DEVICE To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

// log2 of a normal positive number: exponent + log2(m), sqrt(1/2) <= m < sqrt(2), the latter by the series of
// the inverse hyperbolic tangent in (m - 1) / (m + 1), cut where it is below float precision.
BITSPLIT_HOST_DEVICE float log2_of_normal(float x) {
  constexpr int32_t kHalfRoot = 0x3f3504f3;  // the bits of sqrt(1/2)
  constexpr float kTwoOverLn2 = 2.8853900817779268f;
  const int32_t bits = bits_as<int32_t>(x);
  const int32_t exponent = (bits - kHalfRoot) >> 23;  // floor, for negative ones too
  const float m = bits_as<float>(bits - (exponent << 23));
  const float t = (m - 1) / (m + 1), t2 = t * t, t4 = t2 * t2;
  const float series = (1 + t2 * (1.f / 3)) + t4 * ((1.f / 5 + t2 * (1.f / 7)) + t4 * (1.f / 9));
  return static_cast<float>(exponent) + kTwoOverLn2 * t * series;
}

// 2^z for -126 <= z <= 127: 2^round(z) times the exponential series of the rest.
BITSPLIT_HOST_DEVICE float exp2_of_normal(float z) {
  constexpr float kLn2 = 0.6931471805599453f;
  const float whole = round_half_even(z), u = (z - whole) * kLn2, u2 = u * u;
  const float fraction =
      (1 + u) + u2 * ((1.f / 2 + u * (1.f / 6)) + u2 * ((1.f / 24 + u * (1.f / 120)) + u2 * (1.f / 720)));
  return bits_as<float>(bits_as<int32_t>(fraction) + (static_cast<int32_t>(whole) << 23));
}

// |x|^p, p > 0, within 1e-5 of its value (3e-6 for 1e-3 < |x| < 4) where that lies in [2^-126, 2^127].
// Smaller results and those of subnormal x are 0, larger ones 2^127; NaN and Inf stay.
BITSPLIT_HOST_DEVICE float power(float x, float p) {
  constexpr float kSmallestNormal = 1.17549435e-38f, kLargest = 3.40282347e38f;
  const float magnitude = x < 0 ? -x : x;
  const bool is_normal = (magnitude >= kSmallestNormal) & (magnitude <= kLargest);
  const float z = p * log2_of_normal(is_normal ? magnitude : 1.f);
  const float result = exp2_of_normal(clamp_level(z, -126.f, 127.f));
  const float exact = magnitude < kSmallestNormal ? 0.f : magnitude;  // of what is not normal
  return is_normal ? (z < -126.f ? 0.f : result) : exact;
}

BITSPLIT_HOST_DEVICE double power(double x, double p) { return pow(fabs(x), p); }

}  // namespace bitsplit
