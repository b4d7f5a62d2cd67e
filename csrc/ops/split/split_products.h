// Dot products in double on the CPU, in lanes whose number does not depend on the machine. Torch-free.
#pragma once

#include <cstdint>

#include "core/simd.h"
#include "ops/split/split_rows.h"

namespace bitsplit::split {

// Lanes that dot products in double are summed in, whatever the machine.
constexpr int64_t kLanes = 8;

template <int bytes>
struct LaneSums {
  static constexpr int64_t lanes = bytes / sizeof(double), vectors = kLanes / lanes;
  Vector<double, bytes> sums[vectors] = {};

  BITSPLIT_SIMD double total() const {
    double total = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) total += sums[lane / lanes][lane % lanes];
    return total;
  }
};

// Dot products of codes with two stretches of numbers, in double.
struct Products {
  double cross = 0, residual = 0;
};

// Adds those of 64 columns.
template <int bytes, class T>
BITSPLIT_SIMD inline void add_products(const int8_t* codes, const T* cross, const T* residual,
                                       Products& products) {
  constexpr int64_t lanes = LaneSums<bytes>::lanes;
  using Numbers = Vector<double, bytes>;
  LaneSums<bytes> with_cross, with_residual;
  for (int64_t begin = 0; begin < kBlock; begin += kLanes)
    for (int64_t v = 0; v < LaneSums<bytes>::vectors; ++v) {
      const int64_t n = begin + v * lanes;
      Numbers code;
      load_digits<bytes, double>(codes + n, code);
      with_cross.sums[v] += code * __builtin_convertvector(vector_at<lanes * sizeof(T)>(cross + n), Numbers);
      with_residual.sums[v] +=
          code * __builtin_convertvector(vector_at<lanes * sizeof(T)>(residual + n), Numbers);
    }
  products.cross += with_cross.total();
  products.residual += with_residual.total();
}

}  // namespace bitsplit::split
