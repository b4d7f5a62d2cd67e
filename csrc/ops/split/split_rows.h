// The hot loops of the split solvers on the CPU: rows of weights against blocks of 64 columns. Torch-free.
//
// Sums are taken in a fixed order, so a row's result does not depend on the rows beside it.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "core/levels.h"
#include "core/simd.h"
#include "core/split_steps.h"

namespace bitsplit::split {

constexpr int64_t kBlock = 64;         // columns solved together; rows are padded to a multiple of it
constexpr int64_t kRowsAtOnce = 4;     // rows that `subtract_product` keeps in registers
constexpr int64_t kAhead = 6;          // changes fetched before their turn: they lie all over a panel
constexpr int64_t kFeedbackRows = 16;  // rows that `feedback_block` rounds side by side

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// A digit of a column moved: the residual of the row loses amount * G[column, :].
template <class T>
struct Change {
  int32_t column;
  T amount;
};

// 64 bytes: one register of AVX-512, two or four smaller ones elsewhere.
template <class T>
struct Vectors {
  static constexpr int64_t lanes = 64 / sizeof(T);
  typedef T type __attribute__((vector_size(64), aligned(sizeof(T)), may_alias));
};
template <class T>
using Vector = typename Vectors<T>::type;

template <class T>
BITSPLIT_SIMD inline Vector<T>& vector_at(T* pointer) {
  return *reinterpret_cast<Vector<T>*>(pointer);
}
template <class T>
BITSPLIT_SIMD inline const Vector<T>& vector_at(const T* pointer) {
  return *reinterpret_cast<const Vector<T>*>(pointer);
}

// A vector of int8 digits or codes as numbers. In two steps, because compilers convert bytes to floats one by
// one.
template <class T>
BITSPLIT_SIMD inline void load_digits(const int8_t* digits, Vector<T>& numbers) {
  constexpr int64_t lanes = Vectors<T>::lanes;
  using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef int8_t Bytes __attribute__((vector_size(lanes), aligned(1), may_alias));
  typedef Integer Integers __attribute__((vector_size(64)));
  const Integers wide = __builtin_convertvector(*reinterpret_cast<const Bytes*>(digits), Integers);
  numbers = __builtin_convertvector(wide, Vector<T>);
}

// `subtract_product` in vectors of so many bytes: those of the machine, because compilers spill wider ones to
// memory, at a fiftieth of the speed. Of the width no sum depends.
template <int64_t bytes, class T>
BITSPLIT_SIMD inline void subtract_product_in(T* out, const T* left, int64_t rows, const T* panel,
                                              int64_t blocks) {
  typedef T Native __attribute__((vector_size(bytes), aligned(sizeof(T)), may_alias));
  constexpr int64_t lanes = bytes / sizeof(T), vectors = bytes == 64 ? 4 : 2, width = vectors * lanes;
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t column = 0; column < kBlock; column += width) {
      for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
        Native sum[kRowsAtOnce][vectors] = {};
        const T* const x = left + (block * rows + row) * kBlock;
        for (int64_t n = 0; n < kBlock; ++n) {
          const T* const source = panel + (block * kBlock + n) * kBlock + column;
          for (int64_t r = 0; r < kRowsAtOnce; ++r)
            for (int64_t v = 0; v < vectors; ++v)
              sum[r][v] += x[r * kBlock + n] * *reinterpret_cast<const Native*>(source + v * lanes);
        }
        T* const target = out + row * kBlock + column;
        for (int64_t r = 0; r < kRowsAtOnce; ++r)
          for (int64_t v = 0; v < vectors; ++v)
            *reinterpret_cast<Native*>(target + r * kBlock + v * lanes) -= sum[r][v];
      }
    }
  }
}

// out[r, 0..63] -= sum over n of left[r, n] * panel[n, 0..63], n over the first 64 * blocks columns. `left`
// lies in blocks of 64 columns, [blocks, rows, 64], and rows is a multiple of kRowsAtOnce.
template <class T>
void subtract_product(T* out, const T* left, int64_t rows, const T* panel, int64_t blocks) {
  switch (simd::best_level()) {
    case simd::Level::avx512:
      return simd::run_fused([&]()
                                 BITSPLIT_SIMD { subtract_product_in<64>(out, left, rows, panel, blocks); });
    case simd::Level::avx2:
      return simd::run_fused([&]()
                                 BITSPLIT_SIMD { subtract_product_in<32>(out, left, rows, panel, blocks); });
    case simd::Level::baseline:
      return simd::run_fused([&]()
                                 BITSPLIT_SIMD { subtract_product_in<16>(out, left, rows, panel, blocks); });
  }
}

// `subtract_changes` in vectors of so many bytes.
template <int64_t bytes, class T>
BITSPLIT_SIMD inline void subtract_changes_in(T* residual, const Change<T>* changes, int64_t count,
                                              const T* panel) {
  typedef T Native __attribute__((vector_size(bytes), aligned(sizeof(T)), may_alias));
  constexpr int64_t lanes = bytes / sizeof(T), vectors = kBlock / lanes;
  constexpr int64_t in_turn = vectors < 8 ? vectors : 8;  // what registers hold
  for (int64_t begin = 0; begin < vectors; begin += in_turn) {
    Native sum[in_turn];
    T* const target = residual + begin * lanes;
    for (int64_t v = 0; v < in_turn; ++v) sum[v] = *reinterpret_cast<const Native*>(target + v * lanes);
    for (int64_t i = 0; i < count; ++i) {
      const T* const source = panel + changes[i].column * kBlock + begin * lanes;
      if (i + kAhead < count) {
        const T* const ahead = panel + changes[i + kAhead].column * kBlock + begin * lanes;
        for (int64_t v = 0; v < in_turn; ++v) __builtin_prefetch(ahead + v * lanes);
      }
      for (int64_t v = 0; v < in_turn; ++v)
        sum[v] -= changes[i].amount * *reinterpret_cast<const Native*>(source + v * lanes);
    }
    for (int64_t v = 0; v < in_turn; ++v) *reinterpret_cast<Native*>(target + v * lanes) = sum[v];
  }
}

// residual[0..63] -= sum of amount * panel[column, 0..63] over the changes, in their order.
template <class T>
BITSPLIT_SIMD inline void subtract_changes(T* residual, const Change<T>* changes, int64_t count,
                                           const T* panel) {
  switch (simd::best_level()) {
    case simd::Level::avx512:
      return subtract_changes_in<64>(residual, changes, count, panel);
    case simd::Level::avx2:
      return subtract_changes_in<32>(residual, changes, count, panel);
    case simd::Level::baseline:
      return subtract_changes_in<16>(residual, changes, count, panel);
  }
}

// Eight columns a byte each, as one number: a place in it is the place of a column.
template <class T>
struct Differences {
  static constexpr int64_t words = Vectors<T>::lanes / 8;
  uint64_t bits[words];

  // The first column that differs and is not before `from`; the number of lanes if there is none.
  BITSPLIT_SIMD int64_t first(int64_t from) const {
    for (int64_t word = from / 8; word < words; ++word) {
      const uint64_t later = word == from / 8 ? ~uint64_t{0} << (from % 8 * 8) : ~uint64_t{0};
      if (bits[word] & later) return word * 8 + __builtin_ctzll(bits[word] & later) / 8;
    }
    return Vectors<T>::lanes;
  }
};

// The best digits of one vector of columns as things stand (best_digit of core/split_steps.h, all lanes at
// once), and where they are not the present ones.
template <class T>
BITSPLIT_SIMD inline void best_digits(const T* residual, const int8_t* digits, const T* inverse_diagonal,
                                      T inverse_step, Levels<T> levels, T* best,
                                      Differences<T>& differences) {
  typedef int8_t Bytes __attribute__((vector_size(Vectors<T>::lanes), aligned(1), may_alias));
  constexpr T no_fraction = static_cast<T>(uint64_t{3} << (std::numeric_limits<T>::digits - 2));
  Vector<T> digit;
  load_digits<T>(digits, digit);
  const Vector<T> zero = digit - digit, low = zero + levels.low, high = zero + levels.high;
  Vector<T> value = digit + vector_at(residual) * (vector_at(inverse_diagonal) * inverse_step);
  value = value < low ? low : value;
  value = value > high ? high : value;
  value = (value + no_fraction) - no_fraction;
  vector_at(best) = value;
  *reinterpret_cast<Bytes*>(differences.bits) = __builtin_convertvector(value != digit, Bytes);
}

// Gives the 64 digits their best values, one after another. Keeps the residual of these columns up to date
// through square = G of the block with itself, and writes what moved to `moved` (room for 64; columns count
// from 0).
template <class T>
BITSPLIT_SIMD inline int64_t sweep_block(T* residual, int8_t* digits, const T* inverse_diagonal,
                                         const T* square, T step, Levels<T> levels, Change<T>* moved) {
  constexpr int64_t lanes =
      Vectors<T>::lanes;  // looked at together: as few digits move, most are left at once
  const T inverse_step = 1 / step;
  int64_t count = 0;
  T best[lanes];
  Differences<T> differences;
  for (int64_t begin = 0; begin < kBlock; begin += lanes) {
    for (int64_t next = 0; next < lanes; ++next) {
      best_digits(residual + begin, digits + begin, inverse_diagonal + begin, inverse_step, levels, best,
                  differences);
      next = differences.first(next);
      if (next == lanes) break;
      const int64_t column = begin + next;
      moved[count] = {static_cast<int32_t>(column), step * (best[next] - digits[column])};
      digits[column] = static_cast<int8_t>(best[next]);
      subtract_changes(residual, moved + count++, 1, square);
    }
  }
  return count;
}

// Dot products of codes with two stretches of numbers, in double.
struct Products {
  double cross = 0, residual = 0;
};

// Adds those of 64 columns.
template <class T>
BITSPLIT_SIMD inline void add_products(const int8_t* codes, const T* cross, const T* residual,
                                       Products& products) {
  constexpr int64_t lanes = Vectors<double>::lanes;
  typedef T Values __attribute__((vector_size(lanes * sizeof(T)), aligned(sizeof(T)), may_alias));
  Vector<double> with_cross = {}, with_residual = {};
  for (int64_t n = 0; n < kBlock; n += lanes) {
    Vector<double> code;
    load_digits<double>(codes + n, code);
    with_cross += code * __builtin_convertvector(*reinterpret_cast<const Values*>(cross + n), Vector<double>);
    with_residual +=
        code * __builtin_convertvector(*reinterpret_cast<const Values*>(residual + n), Vector<double>);
  }
  for (int64_t lane = 0; lane < lanes; ++lane) {
    products.cross += with_cross[lane];
    products.residual += with_residual[lane];
  }
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
