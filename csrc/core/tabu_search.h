// The decisions of the tabu search over codes, for the CPU loops and the CUDA kernel. Torch-free.
//
// A row's codes q explain (q.c)^2 / (q G q) of its response's energy at their best scale, and 2 s q.c - s^2 q
// G q at a scale s that is kept. One step moves the code whose move by one level gains most at the present
// scale, a loss if there is no gain, unless it moved within the last few steps; a move beyond the best so far
// is always allowed. Every kPhase steps the search goes back to the best codes and moves kKicks random ones.
#pragma once

#include <cstdint>
#include <limits>

#include "core/counter_random.h"
#include "core/host_device.h"

namespace bitsplit {

constexpr int kTenure = 5;  // steps for which a moved code rests, and at most nearly as many again at random
constexpr int kPhase = 20;
constexpr int kKicks = 3;
constexpr int32_t kNever = std::numeric_limits<int32_t>::max();  // the rest of inputs that are never active
constexpr double kNoticeable = 1e-12;                            // relative gain below which nothing is new

// Random bits that depend on the arguments only.
BITSPLIT_HOST_DEVICE uint64_t random_bits(uint64_t seed, uint64_t row, uint64_t draw) {
  return mixed(seed + 0x9e3779b97f4a7c15 * (row + 1) + 0xd1342543de82ef95 * (draw + 1));
}

// How long the code moved in `step` rests: until that step is over.
BITSPLIT_HOST_DEVICE int32_t rest_after(uint64_t seed, uint64_t row, int32_t step) {
  const uint64_t bits = random_bits(seed, row, uint64_t{4} * step);
  return step + kTenure + static_cast<int32_t>((bits >> 32) * kTenure >> 32);
}

// The i-th kick before `step`, i < kKicks: a column and a direction.
struct Kick {
  int64_t column;
  int direction;
};
BITSPLIT_HOST_DEVICE Kick random_kick(uint64_t seed, uint64_t row, int32_t step, int i, int64_t columns) {
  const uint64_t bits = random_bits(seed, row, uint64_t{4} * step + 1 + i);
  return {static_cast<int64_t>((bits >> 32) * columns >> 32), bits & 1 ? 1 : -1};
}

// What codes explain, at their best scale or at the scale 1.
struct Explained {
  double cross, energy;  // q.c and q G q
  bool fitted;           // the scale

  BITSPLIT_HOST_DEVICE bool possible() const { return !fitted || (cross > 0 && energy > 0); }
  BITSPLIT_HOST_DEVICE double scale() const { return fitted ? cross / energy : 1; }
  BITSPLIT_HOST_DEVICE double value() const { return fitted ? cross / energy * cross : 2 * cross - energy; }
  // The same for a response measured in `unit`; codes that cannot be fitted keep the scale 1 there.
  BITSPLIT_HOST_DEVICE double value_in(double unit) const {
    return (possible() ? value() : 2 * cross - energy) * unit * unit;
  }
  BITSPLIT_HOST_DEVICE bool beats(const Explained& other) const {
    const double value_there = other.value();
    return possible() && value() > value_there * (value_there > 0 ? 1 + kNoticeable : 1 - kNoticeable);
  }

  // One code moves by a level; c_n, (q G)_n before it, and G_nn.
  BITSPLIT_HOST_DEVICE void move(int direction, double cross_n, double product, double diagonal) {
    cross += direction * cross_n;
    energy += 2 * direction * product + diagonal;
  }
};

// What the search compares moves by, once a step: gains are in units of the scale.
template <typename T>
struct Yardstick {
  T scale, new_best;  // a gain above new_best leads beyond the best codes so far

  BITSPLIT_HOST_DEVICE Yardstick(const Explained& now, const Explained& best)
      : scale(static_cast<T>(now.scale())),
        new_best(static_cast<T>((best.value() - now.value()) * (1 + 1e-6) / now.scale())) {}

  // Of a column: c_n - s (q G)_n, whose sign is the direction in which its code moves.
  BITSPLIT_HOST_DEVICE T residual(T cross, T product) const { return cross - scale * product; }

  // What that move by one level gains; G_nn.
  BITSPLIT_HOST_DEVICE T gain(T residual, T diagonal) const {
    const T size = residual < 0 ? -residual : residual;
    return (size + size) - scale * diagonal;
  }
};

}  // namespace bitsplit
