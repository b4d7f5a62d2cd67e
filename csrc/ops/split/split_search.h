// Tabu search over the codes of a row on the CPU (core/tabu_search.h says what it does). Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "core/integers.h"
#include "core/levels.h"
#include "core/tabu_search.h"
#include "ops/split/split_panels.h"
#include "ops/split/split_rows.h"

namespace bitsplit::split {

template <class T>
using Counter = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

// -q G of `rows` rows of codes [rows, N]: [blocks, rows padded to kRowsAtOnce, 64].
template <class T>
Aligned<T> negative_products(const Panels<T>& gram, int64_t group, const int8_t* codes, int64_t rows) {
  Aligned<T> products(gram.blocks * round_up(rows, kRowsAtOnce) * kBlock, T(0));
  subtract_code_products(products, gram, group, codes, rows);
  return products;
}

// The free column whose move by one level, in the direction of its residual, gains most; the first of equals,
// -1 if none is free. `columns` is a multiple of 64; `rests` is the last step of a column's rest.
template <class T>
BITSPLIT_SIMD inline int64_t best_move(const T* cross, const T* products, const T* diagonal, const T* codes,
                                       const Counter<T>* rests, int64_t columns, Yardstick<T> yardstick,
                                       Levels<T> levels, Counter<T> step) {
  // Lanes are spelled out, in loops that the compiler turns into vector instructions: it does not do so with
  // comparisons of whole vectors. Twice the widest vectors, so that one need not wait for the other.
  constexpr int64_t lanes = 2 * 64 / sizeof(T);
  const Counter<T> none = static_cast<Counter<T>>(columns);
  T most[lanes];
  Counter<T> winner[lanes];  // first column of the group of lanes
  for (int64_t lane = 0; lane < lanes; ++lane) {
    most[lane] = -std::numeric_limits<T>::infinity();
    winner[lane] = none;
  }
  for (int64_t begin = 0; begin < columns; begin += lanes)
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t n = begin + lane;
      const T residual = yardstick.residual(cross[n], products[n]);
      const T room = residual < 0 ? codes[n] - levels.low : levels.high - codes[n];
      const T gain = yardstick.gain(residual, diagonal[n]);
      const bool free = (rests[n] < step) | ((gain > yardstick.new_best) & (rests[n] != kNever));
      const bool better = (room > 0) & free & (gain > most[lane]);
      most[lane] = better ? gain : most[lane];
      winner[lane] = better ? static_cast<Counter<T>>(begin) : winner[lane];
    }
  T gain = most[0];
  for (int64_t lane = 1; lane < lanes; ++lane) gain = most[lane] > gain ? most[lane] : gain;
  Counter<T> best = none;
  for (int64_t lane = 0; lane < lanes; ++lane) {
    const Counter<T> column = most[lane] < gain ? none : winner[lane] + static_cast<Counter<T>>(lane);
    best = column < best ? column : best;
  }
  return best < none ? best : -1;
}

// One row of one call.
template <class T>
class RowSearch {
 public:
  // `negative_products` holds -(q G) of this row in blocks of 64, `stride` apart; `unit` is the scale that
  // responses are measured in, so that tiny rows do not underflow in float32.
  RowSearch(const Panels<T>& gram, int64_t group, const int8_t* codes, const T* cross, int64_t cross_stride,
            const T* negative_products, int64_t stride, double unit, Levels<T> levels, bool fit_scale)
      : gram_(gram),
        group_(group),
        levels_(levels),
        cross_(gram.padded, T(0)),
        diagonal_(gram.padded, T(0)),
        rests_(gram.padded, kNever),
        now_{{0, 0, fit_scale}, Aligned<T>(gram.padded, T(0)), Aligned<T>(gram.padded, T(0))} {
    for (int64_t n = 0; n < gram.columns; ++n) {
      cross_[n] = static_cast<T>(cross[n * cross_stride] / unit);
      diagonal_[n] = gram.diagonal(group, n);
      if (diagonal_[n] >= std::numeric_limits<T>::min()) rests_[n] = 0;
      now_.codes[n] = codes[n];
      now_.products[n] = -negative_products[n / kBlock * stride + n % kBlock];
      now_.explained.cross += static_cast<double>(now_.codes[n]) * cross_[n];
      now_.explained.energy += static_cast<double>(now_.codes[n]) * now_.products[n];
    }
    best_ = now_;
  }

  // The best codes go to `codes`; returns what they explain, in units. `row` names the row to the generator.
  Explained run(int32_t steps, uint64_t seed, uint64_t row, int8_t* codes) {
    if (!best_.explained.possible()) return best_.explained;
    for (int32_t step = 1; step <= steps; ++step) {
      if (step % kPhase == 0) kick(step, seed, row);
      simd::run([this, step, seed, row]() BITSPLIT_SIMD { advance(step, seed, row); });
      if (!now_.explained.possible()) now_ = best_;
      if (now_.explained.beats(best_.explained)) best_ = now_;
    }
    std::copy_n(best_.codes.data(), gram_.columns, codes);
    return best_.explained;
  }

 private:
  struct State {
    Explained explained;
    Aligned<T> codes, products;
  };

  BITSPLIT_SIMD void advance(int32_t step, uint64_t seed, uint64_t row) {
    const Yardstick<T> yardstick(now_.explained, best_.explained);
    const int64_t column =
        best_move<T>(cross_.data(), now_.products.data(), diagonal_.data(), now_.codes.data(), rests_.data(),
                     gram_.padded, yardstick, levels_, step);
    if (column < 0) return;
    move(column, yardstick.residual(cross_[column], now_.products[column]) < 0 ? -1 : 1);
    rests_[column] = rest_after(seed, row, step);
  }

  void kick(int32_t step, uint64_t seed, uint64_t row) {
    now_ = best_;
    for (int i = 0; i < kKicks; ++i) {
      const Kick kick = random_kick(seed, row, step, i, gram_.columns);
      const T code = now_.codes[kick.column];
      const bool at_end = kick.direction > 0 ? code >= levels_.high : code <= levels_.low;
      if (at_end || rests_[kick.column] == kNever) continue;
      simd::run([this, kick]() BITSPLIT_SIMD { move(kick.column, kick.direction); });
      rests_[kick.column] = step + kTenure;
    }
    if (!now_.explained.possible()) now_ = best_;
  }

  BITSPLIT_SIMD void move(int64_t column, int direction) {
    now_.explained.move(direction, cross_[column], now_.products[column], diagonal_[column]);
    now_.codes[column] += direction;
    const T sign = static_cast<T>(direction);
    T* products = now_.products.data();
    for (int64_t block = 0; block < gram_.blocks; ++block, products += kBlock) {
      const T* const source = gram_.panel(group_, block) + column * kBlock;
      for (int64_t n = 0; n < kBlock; ++n) products[n] += sign * source[n];
    }
  }

  const Panels<T>& gram_;
  const int64_t group_;
  const Levels<T> levels_;
  Aligned<T> cross_, diagonal_;
  Aligned<Counter<T>> rests_;
  State now_, best_;
};

}  // namespace bitsplit::split
