#include "ops/split/split_rows.h"

#include <cmath>

// The same loops compiled for several instruction sets; the loader picks one. Bodies are inlined into each.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define BITSPLIT_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define BITSPLIT_CLONES
#endif
#define BITSPLIT_INLINE inline __attribute__((always_inline))

namespace bitsplit::split {
namespace {

constexpr int kBytes = 64;        // of one vector: one AVX-512 register, two or four smaller ones
constexpr int64_t kDepth = 256;   // products added up before they meet the (larger) result: less rounding

template <class T>
struct Vectors {
  static constexpr int64_t lanes = kBytes / sizeof(T);
  typedef T type __attribute__((vector_size(kBytes), aligned(sizeof(T)), may_alias));
};
template <class T>
using Vector = typename Vectors<T>::type;

template <class T>
BITSPLIT_INLINE Vector<T>& at(T* pointer) {
  return *reinterpret_cast<Vector<T>*>(pointer);
}
template <class T>
BITSPLIT_INLINE const Vector<T>& at(const T* pointer) {
  return *reinterpret_cast<const Vector<T>*>(pointer);
}

template <class T>
BITSPLIT_INLINE void subtract_product_body(T* out, int64_t out_stride, const T* left, int64_t left_stride,
                                           int64_t rows, const T* panel, int64_t depth) {
  constexpr int64_t lanes = Vectors<T>::lanes, width = 4 * lanes;
  for (int64_t begin = 0; begin < depth; begin += kDepth) {
    const int64_t end = begin + kDepth < depth ? begin + kDepth : depth;
    for (int64_t column = 0; column < kBlock; column += width) {
      for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
        Vector<T> sum[kRowsAtOnce][4] = {};
        const T* const x = left + row * left_stride;
        for (int64_t n = begin; n < end; ++n) {
          const T* const source = panel + n * kBlock + column;
          for (int64_t r = 0; r < kRowsAtOnce; ++r)
            for (int64_t v = 0; v < 4; ++v) sum[r][v] += x[r * left_stride + n] * at(source + v * lanes);
        }
        for (int64_t r = 0; r < kRowsAtOnce; ++r)
          for (int64_t v = 0; v < 4; ++v) at(out + (row + r) * out_stride + column + v * lanes) -= sum[r][v];
      }
    }
  }
}

template <class T>
BITSPLIT_INLINE void subtract_changes_body(T* residual, const Change<T>* changes, int64_t count, const T* panel) {
  constexpr int64_t lanes = Vectors<T>::lanes, vectors = kBlock / lanes;
  Vector<T> sum[vectors];
  for (int64_t v = 0; v < vectors; ++v) sum[v] = at(residual + v * lanes);
  for (int64_t i = 0; i < count; ++i) {
    const T* const source = panel + changes[i].column * kBlock;
    for (int64_t v = 0; v < vectors; ++v) sum[v] -= changes[i].amount * at(source + v * lanes);
  }
  for (int64_t v = 0; v < vectors; ++v) at(residual + v * lanes) = sum[v];
}

// The best digits of `chunk` columns as they stand now; returns whether any differs from the present one.
template <class T, int64_t chunk>
BITSPLIT_INLINE bool best_digits(const T* residual, const int8_t* digits, const T* inverse_diagonal,
                                 T inverse_step, T limit, T* best) {
  int differs = 0;
  for (int64_t n = 0; n < chunk; ++n) {
    const T digit = digits[n];
    T value = digit + residual[n] * (inverse_diagonal[n] * inverse_step);
    value = value > limit ? limit : value;
    value = value < -limit ? -limit : value;
    best[n] = std::nearbyint(value);
    differs |= best[n] != digit;
  }
  return differs != 0;
}

template <class T>
BITSPLIT_INLINE int64_t sweep_block_body(T* residual, int8_t* digits, const T* inverse_diagonal, const T* square,
                                         T step, int limit, Change<T>* moved) {
  constexpr int64_t chunk = 16;
  const T inverse_step = 1 / step;
  int64_t count = 0;
  T best[chunk];
  for (int64_t begin = 0; begin < kBlock; begin += chunk) {
    int64_t next = 0;  // columns of the chunk before this one are settled
    while (next < chunk && best_digits<T, chunk>(residual + begin, digits + begin, inverse_diagonal + begin,
                                                 inverse_step, limit, best)) {
      while (next < chunk && best[next] == digits[begin + next]) ++next;
      if (next == chunk) break;
      const int32_t column = static_cast<int32_t>(begin + next++);
      moved[count] = {column, step * (best[column - begin] - digits[column])};
      digits[column] = static_cast<int8_t>(best[column - begin]);
      subtract_changes_body(residual, moved + count++, 1, square);
    }
  }
  return count;
}

template <class T>
BITSPLIT_INLINE Products dot_codes_body(const int8_t* codes, const T* cross, const T* residual, int64_t count) {
  constexpr int64_t lanes = 8;
  double first[lanes] = {}, second[lanes] = {};
  for (int64_t n = 0; n < count; n += lanes)
    for (int64_t lane = 0; lane < lanes; ++lane) {
      first[lane] += static_cast<double>(codes[n + lane]) * static_cast<double>(cross[n + lane]);
      second[lane] += static_cast<double>(codes[n + lane]) * static_cast<double>(residual[n + lane]);
    }
  Products sum{0, 0};
  for (int64_t lane = 0; lane < lanes; ++lane) {
    sum.cross += first[lane];
    sum.residual += second[lane];
  }
  return sum;
}

template <class T>
BITSPLIT_INLINE void rescale_residual_body(T* residual, const T* cross, T ratio, int64_t count) {
  for (int64_t n = 0; n < count; ++n) residual[n] = cross[n] + ratio * (residual[n] - cross[n]);
}

template <class T>
BITSPLIT_INLINE void feedback_block_body(T* wanted, const T* weight, const T* square, int limit,
                                         int8_t* codes, T* excess, int64_t stride) {
  constexpr int64_t rows = kFeedbackRows;
  const T bound = limit;
  for (int64_t n = 0; n < kBlock; ++n) {
    T left[rows];
    for (int64_t row = 0; row < rows; ++row) {
      T value = wanted[n * rows + row];
      value = value > bound ? bound : value;
      value = value < -bound ? -bound : value;
      const T code = std::nearbyint(value);
      left[row] = code - weight[n * rows + row];
      codes[row * stride + n] = static_cast<int8_t>(code);
      excess[row * stride + n] = left[row];
    }
    for (int64_t later = n + 1; later < kBlock; ++later) {
      const T share = square[n * kBlock + later];
      for (int64_t row = 0; row < rows; ++row) wanted[later * rows + row] -= share * left[row];
    }
  }
}

template <class T>
BITSPLIT_INLINE Fit round_row_body(const T* weight, double scale, int limit, int8_t* codes, int64_t count) {
  const double bound = limit;
  int moved = 0;
  for (int64_t n = 0; n < count; ++n) {
    double value = static_cast<double>(weight[n]) / scale;
    value = value > bound ? bound : value;
    value = value < -bound ? -bound : value;
    const int8_t code = static_cast<int8_t>(std::nearbyint(value));
    moved |= code != codes[n];
    codes[n] = code;
  }
  double dot = 0, norm = 0;
  for (int64_t n = 0; n < count; ++n) {
    dot += static_cast<double>(weight[n]) * codes[n];
    norm += static_cast<double>(codes[n]) * codes[n];
  }
  return {dot, norm, moved != 0};
}

}  // namespace

#define BITSPLIT_FOR(T)                                                                                             \
  BITSPLIT_CLONES void subtract_product(T* out, int64_t out_stride, const T* left, int64_t left_stride,             \
                                        int64_t rows, const T* panel, int64_t depth) {                              \
    subtract_product_body(out, out_stride, left, left_stride, rows, panel, depth);                                  \
  }                                                                                                                 \
  BITSPLIT_CLONES void subtract_changes(T* residual, const Change<T>* changes, int64_t count, const T* panel) {     \
    subtract_changes_body(residual, changes, count, panel);                                                         \
  }                                                                                                                 \
  BITSPLIT_CLONES int64_t sweep_block(T* residual, int8_t* digits, const T* inverse_diagonal, const T* square,      \
                                      T step, int limit, Change<T>* moved) {                                        \
    return sweep_block_body(residual, digits, inverse_diagonal, square, step, limit, moved);                        \
  }                                                                                                                 \
  BITSPLIT_CLONES Products dot_codes(const int8_t* codes, const T* cross, const T* residual, int64_t count) {       \
    return dot_codes_body(codes, cross, residual, count);                                                           \
  }                                                                                                                 \
  BITSPLIT_CLONES void rescale_residual(T* residual, const T* cross, T ratio, int64_t count) {                      \
    rescale_residual_body(residual, cross, ratio, count);                                                           \
  }                                                                                                                 \
  BITSPLIT_CLONES void feedback_block(T* wanted, const T* weight, const T* square, int limit,       \
                                      int8_t* codes, T* excess, int64_t stride) {                                    \
    feedback_block_body(wanted, weight, square, limit, codes, excess, stride);                                \
  }                                                                                                                 \
  BITSPLIT_CLONES Fit round_row(const T* weight, double scale, int limit, int8_t* codes, int64_t count) {           \
    return round_row_body(weight, scale, limit, codes, count);                                                      \
  }

BITSPLIT_FOR(float)
BITSPLIT_FOR(double)

}  // namespace bitsplit::split
