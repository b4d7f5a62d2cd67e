#include "ops/gram/products.h"

#include "core/simd.h"

// The same loops compiled for three instruction sets, chosen at run time. Fused multiply-adds are wanted
// here: they are exact products, and no other device has to round alike.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define BITSPLIT_X86 1
#endif
#define BITSPLIT_INLINE __attribute__((always_inline)) inline

namespace bitsplit::gram {
namespace {

template <typename T, int bytes>
struct Machine {
  static constexpr int lanes = bytes / sizeof(T);
  using Vector __attribute__((vector_size(bytes))) = T;
  using Unaligned __attribute__((vector_size(bytes), aligned(sizeof(T)), may_alias)) = T;
};

// sums[l] += vector[l]; from memory, because the compiler converts the lanes of a register one by one.
template <typename M, typename T>
BITSPLIT_INLINE void add_lanes(const typename M::Vector& vector, double* sums) {
  T lanes[M::lanes];
  *reinterpret_cast<typename M::Unaligned*>(lanes) = vector;
  for (int l = 0; l < M::lanes; ++l) sums[l] += lanes[l];
}

BITSPLIT_INLINE int64_t shorter(int64_t a, int64_t b) { return a < b ? a : b; }

// Calls run(a, b, length, a_step, b_step) for the runs of the walk, and flush() at the end and before more
// than kRun positions went into one accumulation.
template <typename T, typename Run, typename Flush>
BITSPLIT_INLINE void visit(const T* a, const T* b, const Walk& walk, Run run, Flush flush) {
  const auto& [outer, middle, inner, line] = walk.loops;
  int64_t pending = 0;
  a += walk.a_first * kLanes;
  b += walk.b_first * kLanes;
  for (int64_t i = 0; i < outer.count; ++i)
    for (int64_t j = 0; j < middle.count; ++j)
      for (int64_t k = 0; k < inner.count; ++k)
        for (int64_t done = 0; done < line.count;) {
          const int64_t length = shorter(line.count - done, kRun - pending);
          run(a + (i * outer.a_step + j * middle.a_step + k * inner.a_step + done * line.a_step) * kLanes,
              b + (i * outer.b_step + j * middle.b_step + k * inner.b_step + done * line.b_step) * kLanes,
              length, line.a_step * kLanes, line.b_step * kLanes);
          done += length;
          pending += length;
          if (pending == kRun) {
            flush();
            pending = 0;
          }
        }
  if (pending > 0) flush();
}

// R rows of a against V vectors of b, all sums in registers.
template <typename M, int R, int V, typename T>
BITSPLIT_INLINE void outer_products(const T* a, const T* b, int64_t b_stride, const Walk& walk,
                                    double* sums) {
  using Vector = typename M::Vector;
  Vector sum[R][V] = {};
  auto run = [&](const T* pa, const T* pb, int64_t length, int64_t a_step, int64_t b_step)
                 __attribute__((always_inline)) {
                   for (int64_t p = 0; p < length; ++p, pa += a_step, pb += b_step) {
                     Vector factor[V];
                     for (int v = 0; v < V; ++v)
                       factor[v] = *reinterpret_cast<const typename M::Unaligned*>(
                           pb + v * M::lanes / kLanes * b_stride + v * M::lanes % kLanes);
                     for (int r = 0; r < R; ++r)
                       for (int v = 0; v < V; ++v) sum[r][v] += pa[r] * factor[v];
                   }
                 };
  auto flush = [&]() __attribute__((always_inline)) {
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) {
        add_lanes<M, T>(sum[r][v], sums + r * kBlock + v * M::lanes);
        sum[r][v] = Vector{};
      }
  };
  visit(a, b, walk, run, flush);
}

// Tiles of R rows by V vectors over the block; a last odd vector goes alone.
template <typename M, int R, int V, typename T>
BITSPLIT_INLINE void channels(const T* a, const T* b, Panels panels, int64_t rows, int64_t columns,
                              const Walk& walk, double* sums) {
  for (int64_t row = 0; row < rows; row += R) {
    const T* pa = a + row / kLanes * panels.a_stride + row % kLanes;
    for (int64_t column = 0; column < columns; column += V * M::lanes) {
      const T* pb = b + column / kLanes * panels.b_stride + column % kLanes;
      double* tile = sums + row * kBlock + column;
      if (columns - column > (V - 1) * M::lanes)
        outer_products<M, R, V>(pa, pb, panels.b_stride, walk, tile);
      else
        for (int64_t rest = 0; rest < columns - column; rest += M::lanes)
          outer_products<M, R, 1>(pa, pb + rest % kLanes + rest / kLanes * panels.b_stride, panels.b_stride,
                                  walk, tile + rest);
    }
  }
}

// I panels of a against J panels of b, lane by lane; U positions at once, so that additions do not wait for
// each other.
template <typename M, int I, int J, int U, typename T>
BITSPLIT_INLINE void lane_products(const T* a, const T* b, Panels panels, int64_t row_stride,
                                   const Walk& walk, double* sums) {
  using Vector = typename M::Vector;
  using Unaligned = const typename M::Unaligned*;
  for (int part = 0; part < kLanes; part += M::lanes) {
    Vector sum[U][I][J] = {};
    auto at = [&](const T* pa, const T* pb, int u) __attribute__((always_inline)) {
      Vector left[I], right[J];
      for (int i = 0; i < I; ++i) left[i] = *reinterpret_cast<Unaligned>(pa + i * panels.a_stride + part);
      for (int j = 0; j < J; ++j) right[j] = *reinterpret_cast<Unaligned>(pb + j * panels.b_stride + part);
      for (int i = 0; i < I; ++i)
        for (int j = 0; j < J; ++j) sum[u][i][j] += left[i] * right[j];
    };
    auto run = [&](const T* pa, const T* pb, int64_t length, int64_t a_step, int64_t b_step)
                   __attribute__((always_inline)) {
                     int64_t p = 0;
                     for (; p + U <= length; p += U, pa += U * a_step, pb += U * b_step)
                       for (int u = 0; u < U; ++u) at(pa + u * a_step, pb + u * b_step, u);
                     for (; p < length; ++p, pa += a_step, pb += b_step) at(pa, pb, 0);
                   };
    auto flush = [&]() __attribute__((always_inline)) {
      for (int u = 0; u < U; ++u)
        for (int i = 0; i < I; ++i)
          for (int j = 0; j < J; ++j) {
            add_lanes<M, T>(sum[u][i][j], sums + i * row_stride + j * kLanes + part);
            sum[u][i][j] = Vector{};
          }
    };
    visit(a, b, walk, run, flush);
  }
}

template <typename M, typename T>
BITSPLIT_INLINE void lanes(const T* a, const T* b, Panels panels, int64_t a_count, int64_t b_count,
                           bool upper, const Walk& walk, double* sums) {
  constexpr int kTile = 2;
  const int64_t row_stride = b_count * kLanes;
  for (int64_t i = 0; i < a_count; i += kTile)
    for (int64_t j = upper ? i : 0; j < b_count; j += kTile) {
      const T* pa = a + i * panels.a_stride;
      const T* pb = b + j * panels.b_stride;
      double* tile = sums + i * row_stride + j * kLanes;
      if (i + kTile <= a_count && j + kTile <= b_count) {
        lane_products<M, kTile, kTile, 2>(pa, pb, panels, row_stride, walk, tile);
        continue;
      }
      for (int64_t k = 0; k < shorter(kTile, a_count - i); ++k)
        for (int64_t l = 0; l < shorter(kTile, b_count - j); ++l)
          lane_products<M, 1, 1, 4>(pa + k * panels.a_stride, pb + l * panels.b_stride, panels, row_stride,
                                    walk, tile + k * row_stride + l * kLanes);
    }
}

// One pair of functions for every instruction set. The attributes of the outermost function decide how all
// that is inlined into it is compiled.
#define BITSPLIT_PRODUCTS(NAME, ATTRIBUTES, BYTES, ROWS, VECTORS)                                       \
  template <typename T>                                                                                 \
  ATTRIBUTES void channels_##NAME(const T* a, const T* b, Panels panels, int64_t rows, int64_t columns, \
                                  const Walk& walk, double* sums) {                                     \
    channels<Machine<T, BYTES>, ROWS, VECTORS>(a, b, panels, rows, columns, walk, sums);                \
  }                                                                                                     \
  template <typename T>                                                                                 \
  ATTRIBUTES void lanes_##NAME(const T* a, const T* b, Panels panels, int64_t a_count, int64_t b_count, \
                               bool upper, const Walk& walk, double* sums) {                            \
    lanes<Machine<T, BYTES>>(a, b, panels, a_count, b_count, upper, walk, sums);                        \
  }

BITSPLIT_PRODUCTS(plain, BITSPLIT_FUSED, 16, 4, 2)
#ifdef BITSPLIT_X86
BITSPLIT_PRODUCTS(avx2, BITSPLIT_FUSED __attribute__((target("avx2,fma"))), 32, 4, 2)
BITSPLIT_PRODUCTS(avx512, BITSPLIT_FUSED __attribute__((target("avx512f"))), 64, 8, 2)
#endif

}  // namespace

template <typename T>
void multiply_channels(const T* a, const T* b, Panels panels, int64_t rows, int64_t columns, const Walk& walk,
                       double* sums) {
#ifdef BITSPLIT_X86
  if (__builtin_cpu_supports("avx512f")) return channels_avx512(a, b, panels, rows, columns, walk, sums);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return channels_avx2(a, b, panels, rows, columns, walk, sums);
#endif
  channels_plain(a, b, panels, rows, columns, walk, sums);
}

template <typename T>
void multiply_lanes(const T* a, const T* b, Panels panels, int64_t a_count, int64_t b_count, bool upper,
                    const Walk& walk, double* sums) {
#ifdef BITSPLIT_X86
  if (__builtin_cpu_supports("avx512f"))
    return lanes_avx512(a, b, panels, a_count, b_count, upper, walk, sums);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return lanes_avx2(a, b, panels, a_count, b_count, upper, walk, sums);
#endif
  lanes_plain(a, b, panels, a_count, b_count, upper, walk, sums);
}

template void multiply_channels(const float*, const float*, Panels, int64_t, int64_t, const Walk&, double*);
template void multiply_channels(const double*, const double*, Panels, int64_t, int64_t, const Walk&, double*);
template void multiply_lanes(const float*, const float*, Panels, int64_t, int64_t, bool, const Walk&,
                             double*);
template void multiply_lanes(const double*, const double*, Panels, int64_t, int64_t, bool, const Walk&,
                             double*);

}  // namespace bitsplit::gram
