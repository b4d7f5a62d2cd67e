// The inner loops of the CPU path: sums over positions of products of channels, on panels. Torch-free.
//
// A panel holds 16 channels (or 16 groups) of all positions of a tile: panel[position][lane]. So positions
// that lie anywhere can be multiplied without unfolding, and a vector of lanes is one load.
#pragma once

#include <array>
#include <cstdint>

#include "ops/gram/terms.h"

namespace bitsplit::gram {

constexpr int64_t kLanes = 16;
// Longest run of float32 accumulation; what is longer is added up in float64.
constexpr int64_t kRun = 512;

// A term laid out for the panels of a tile: four nested loops, outermost first, in units of positions.
struct Walk {
  struct Loop {
    int64_t count = 1, a_step = 0, b_step = 0;
  };
  int64_t a_first = 0, b_first = 0;
  std::array<Loop, 4> loops;
};

// Panels hold positions as [depth, height, width, images]. Loops that continue each other are merged inwards.
inline Walk flatten(const Term& term, const std::array<int64_t, 3>& a_size,
                    const std::array<int64_t, 3>& b_size, int64_t images) {
  const int64_t a_stride[3] = {a_size[1] * a_size[2] * images, a_size[2] * images, images};
  const int64_t b_stride[3] = {b_size[1] * b_size[2] * images, b_size[2] * images, images};
  Walk walk;
  for (int k = 0; k < 3; ++k) {
    walk.a_first += term.a_first[k] * a_stride[k];
    walk.b_first += term.b_first[k] * b_stride[k];
    walk.loops[k] = {term.count[k], term.a_step[k] * a_stride[k], term.b_step[k] * b_stride[k]};
  }
  walk.loops[3] = {images, 1, 1};
  Walk merged{walk.a_first, walk.b_first, {}};
  int place = 3;
  merged.loops[place] = walk.loops[3];
  for (int k = 2; k >= 0; --k) {
    Walk::Loop& inner = merged.loops[place];
    const Walk::Loop& outer = walk.loops[k];
    if (outer.count == 1) continue;
    if (inner.count == 1)
      inner = outer;
    else if (outer.a_step == inner.count * inner.a_step && outer.b_step == inner.count * inner.b_step)
      inner.count *= outer.count;
    else
      merged.loops[--place] = outer;
  }
  return merged;
}

// sums[r * 32 + c] += sum over the walk of a[., r] * b[., c], for the first `rows` lanes of the panels at `a`
// and the first `columns` lanes of those at `b` (up to 32 each, rounded up to what the machine computes at
// once; rows and columns beyond are zero in the panels). Panels follow each other at the given strides.
constexpr int64_t kBlock = 32;
struct Panels {
  int64_t a_stride, b_stride;
};
template <typename T>
void multiply_channels(const T* a, const T* b, Panels panels, int64_t rows, int64_t columns, const Walk& walk,
                       double* sums);

// sums[(i * count + j) * 16 + lane] += sum over the walk of a_i[., lane] * b_j[., lane], panels i of a
// against panels j of b, lane by lane: the lanes are groups. With `upper` only pairs i <= j.
template <typename T>
void multiply_lanes(const T* a, const T* b, Panels panels, int64_t a_count, int64_t b_count, bool upper,
                    const Walk& walk, double* sums);

}  // namespace bitsplit::gram
