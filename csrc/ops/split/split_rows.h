// The hot loops of the split solvers on the CPU: rows of weights against blocks of 64 columns. Torch-free.
//
// Sums are taken in a fixed order, so a row's result does not depend on the rows beside it, nor on `bytes`,
// the width of the machine's vectors (core/simd.h).
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "core/levels.h"
#include "core/simd.h"
#include "core/split_steps.h"

namespace bitsplit::split {

using simd::Vector;
using simd::vector_at;

constexpr int64_t kBlock = 64;         // columns solved together; rows are padded to a multiple of it
constexpr int64_t kRowsAtOnce = 4;     // rows that `subtract_product` keeps in registers
constexpr int64_t kAhead = 6;          // changes fetched before their turn: they lie all over a panel
constexpr int64_t kFeedbackRows = 16;  // rows that `feedback_block` rounds side by side

// A digit of a column moved: the residual of the row loses amount * G[column, :].
template <class T>
struct Change {
  int32_t column;
  T amount;
};

// Digits or codes as numbers. In two steps, because compilers convert bytes to floats one by one.
template <int bytes, class T>
BITSPLIT_SIMD inline void load_digits(const int8_t* digits, Vector<T, bytes>& numbers) {
  using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  constexpr int lanes = bytes / sizeof(T);
  numbers = __builtin_convertvector(__builtin_convertvector(vector_at<lanes>(digits), Vector<Integer, bytes>),
                                    Vector<T, bytes>);
}

// out[r, 0..63] -= sum over n of left[r, n] * panel[n, 0..63], n over the first 64 * blocks columns. `left`
// lies in blocks of 64 columns, [blocks, rows, 64], and rows is a multiple of kRowsAtOnce.
template <class T>
void subtract_product(T* out, const T* left, int64_t rows, const T* panel, int64_t blocks) {
  simd::run_fused([&](auto bytes) BITSPLIT_SIMD {
    constexpr int64_t lanes = bytes / sizeof(T), vectors = bytes == 64 ? 4 : 2;  // what registers hold
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t column = 0; column < kBlock; column += vectors * lanes) {
        for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
          Vector<T, bytes> sum[kRowsAtOnce][vectors] = {};
          const T* const x = left + (block * rows + row) * kBlock;
          for (int64_t n = 0; n < kBlock; ++n) {
            const T* const source = panel + (block * kBlock + n) * kBlock + column;
            for (int64_t r = 0; r < kRowsAtOnce; ++r)
              for (int64_t v = 0; v < vectors; ++v)
                sum[r][v] += x[r * kBlock + n] * vector_at<bytes>(source + v * lanes);
          }
          T* const target = out + row * kBlock + column;
          for (int64_t r = 0; r < kRowsAtOnce; ++r)
            for (int64_t v = 0; v < vectors; ++v)
              vector_at<bytes>(target + r * kBlock + v * lanes) -= sum[r][v];
        }
      }
    }
  });
}

// residual[0..63] -= sum of amount * panel[column, 0..63] over the changes, in their order.
template <int bytes, class T>
BITSPLIT_SIMD inline void subtract_changes(T* residual, const Change<T>* changes, int64_t count,
                                           const T* panel) {
  constexpr int64_t lanes = bytes / sizeof(T), vectors = kBlock / lanes;
  constexpr int64_t in_turn = vectors < 8 ? vectors : 8;  // what registers hold
  for (int64_t begin = 0; begin < vectors; begin += in_turn) {
    Vector<T, bytes> sum[in_turn];
    T* const target = residual + begin * lanes;
    for (int64_t v = 0; v < in_turn; ++v) sum[v] = vector_at<bytes>(target + v * lanes);
    for (int64_t i = 0; i < count; ++i) {
      const T* const source = panel + changes[i].column * kBlock + begin * lanes;
      if (i + kAhead < count) {
        const T* const ahead = panel + changes[i + kAhead].column * kBlock + begin * lanes;
        for (int64_t v = 0; v < in_turn; ++v) __builtin_prefetch(ahead + v * lanes);
      }
      for (int64_t v = 0; v < in_turn; ++v)
        sum[v] -= changes[i].amount * vector_at<bytes>(source + v * lanes);
    }
    for (int64_t v = 0; v < in_turn; ++v) vector_at<bytes>(target + v * lanes) = sum[v];
  }
}

// Columns whose digits are looked at together: few digits move, so most are left at once.
template <class T>
constexpr int64_t kTogether = 64 / sizeof(T);

// Eight of them a byte each, as one number: a place in it is the place of a column.
template <class T>
struct Differences {
  static constexpr int64_t words = kTogether<T> / 8;
  uint64_t bits[words];

  // The first column that differs and is not before `from`; kTogether if there is none.
  BITSPLIT_SIMD int64_t first(int64_t from) const {
    for (int64_t word = from / 8; word < words; ++word) {
      const uint64_t later = word == from / 8 ? ~uint64_t{0} << (from % 8 * 8) : ~uint64_t{0};
      if (bits[word] & later) return word * 8 + __builtin_ctzll(bits[word] & later) / 8;
    }
    return kTogether<T>;
  }
};

// The best digits of columns as things stand (best_digit of core/split_steps.h, all lanes at once), and where
// they are not the present ones.
template <int bytes, class T>
BITSPLIT_SIMD inline void best_digits(const T* residual, const int8_t* digits, const T* inverse_diagonal,
                                      T inverse_step, Levels<T> levels, T* best,
                                      Differences<T>& differences) {
  constexpr int lanes = bytes / sizeof(T);
  constexpr T no_fraction = static_cast<T>(uint64_t{3} << (std::numeric_limits<T>::digits - 2));
  int8_t* const different = reinterpret_cast<int8_t*>(differences.bits);
  for (int64_t n = 0; n < kTogether<T>; n += lanes) {
    Vector<T, bytes> digit;
    load_digits<bytes, T>(digits + n, digit);
    const Vector<T, bytes> zero = digit - digit, low = zero + levels.low, high = zero + levels.high;
    Vector<T, bytes> value =
        digit + vector_at<bytes>(residual + n) * (vector_at<bytes>(inverse_diagonal + n) * inverse_step);
    value = value < low ? low : value;
    value = value > high ? high : value;
    value = (value + no_fraction) - no_fraction;
    vector_at<bytes>(best + n) = value;
    vector_at<lanes>(different + n) = __builtin_convertvector(value != digit, Vector<int8_t, lanes>);
  }
}

// Gives the 64 digits their best values, one after another. Keeps the residual of these columns up to date
// through square = G of the block with itself, and writes what moved to `moved` (room for 64; columns count
// from 0).
template <int bytes, class T>
BITSPLIT_SIMD inline int64_t sweep_block(T* residual, int8_t* digits, const T* inverse_diagonal,
                                         const T* square, T step, Levels<T> levels, Change<T>* moved) {
  constexpr int64_t lanes = kTogether<T>;
  const T inverse_step = 1 / step;
  int64_t count = 0;
  T best[lanes];
  Differences<T> differences;
  for (int64_t begin = 0; begin < kBlock; begin += lanes) {
    for (int64_t next = 0; next < lanes; ++next) {
      best_digits<bytes>(residual + begin, digits + begin, inverse_diagonal + begin, inverse_step, levels,
                         best, differences);
      next = differences.first(next);
      if (next == lanes) break;
      const int64_t column = begin + next;
      moved[count] = {static_cast<int32_t>(column), step * (best[next] - digits[column])};
      digits[column] = static_cast<int8_t>(best[next]);
      subtract_changes<bytes>(residual, moved + count++, 1, square);
    }
  }
  return count;
}

// residual = cross + growth * (residual - cross): the residual of 64 columns after the scale grew by that
// factor.
template <class T>
BITSPLIT_SIMD inline void rescale_residual(T* residual, const T* cross, T growth) {
  for (int64_t n = 0; n < kBlock; ++n) residual[n] = cross[n] + growth * (residual[n] - cross[n]);
}

// Rounds 64 columns of kFeedbackRows rows in turn, in units of the scale, to levels[row]. wanted[n, row] is
// the weight and what earlier blocks passed on (destroyed); square[i, n] is the share of the excess of column
// i that column n > i makes good. Writes codes[row, n] and excess[row, n] = code - weight, and adds the
// squares of what rounding loses, weighted with diagonal[n], to loss[row].
template <class T>
void feedback_block(T* wanted, const T* weight, const T* square, const T* diagonal, const Levels<T>* levels,
                    int8_t* codes, T* excess, T* loss) {
  constexpr int64_t rows = kFeedbackRows;
  simd::run([&]() BITSPLIT_SIMD {
    T low[rows], high[rows];  // apart, so that the rows lie in the lanes of vectors
    for (int64_t row = 0; row < rows; ++row) {
      low[row] = levels[row].low;
      high[row] = levels[row].high;
    }
    for (int64_t n = 0; n < kBlock; ++n) {
      T surplus[rows];
      for (int64_t row = 0; row < rows; ++row) {
        const T code = nearest_code(wanted[n * rows + row], Levels<T>{low[row], high[row]});
        const T lost = diagonal[n] * (code - wanted[n * rows + row]);
        loss[row] += lost * lost;
        surplus[row] = code - weight[n * rows + row];
        codes[row * kBlock + n] = static_cast<int8_t>(code);
        excess[row * kBlock + n] = surplus[row];
      }
      for (int64_t later = n + 1; later < kBlock; ++later)
        for (int64_t row = 0; row < rows; ++row)
          wanted[later * rows + row] -= square[n * kBlock + later] * surplus[row];
    }
  });
}

}  // namespace bitsplit::split
