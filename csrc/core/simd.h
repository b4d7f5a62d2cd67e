// Loops compiled for the widest vectors of the machine they run on. Host only, torch-free.
//
//   simd::run([=]() BITSPLIT_SIMD { for (int64_t i = 0; i < n; ++i) y[i] = f(x[i]); });
//   simd::run([=](auto width) BITSPLIT_SIMD { simd::vector_at<width>(y) *= 2; });
//
// The body is compiled once per instruction set and the compiler vectorises its plain loops; whatever it
// calls must be inlined. It is passed by value and captures by value, so that the compiler knows that no
// store in the loop (of chars, above all) changes n or a pointer. A body that spells out vectors is given
// the width of the machine's, in bytes: compilers keep wider ones in memory, at a fiftieth of the speed.
//
// Only the instruction set differs: nothing is reassociated or contracted (-ffp-contract=off), so every
// machine computes the same bits. Sums that shall be vectorised spell their lanes out, the same number at
// every width. `run_fused` allows fused multiply-adds where the machine has them, for long matrix products:
// twice as fast, and rounded less often than elsewhere.
#pragma once

#include <type_traits>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define BITSPLIT_SIMD_LEVELS 1
#define BITSPLIT_SIMD __attribute__((always_inline))
#else
#define BITSPLIT_SIMD
#endif

// For functions in which the compiler may fuse multiply-adds.
#define BITSPLIT_FUSED __attribute__((optimize("fp-contract=fast")))

namespace bitsplit::simd {

enum class Level { baseline, avx2, avx512 };

template <int bytes>
using Width = std::integral_constant<int, bytes>;

// Unaligned, so that any pointer to T may be read as one (`vector_at`).
template <class T, int bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(bytes), aligned(sizeof(T)), may_alias));
};
template <class T, int bytes>
using Vector = typename VectorOf<T, bytes>::type;

template <int bytes, class T>
BITSPLIT_SIMD inline Vector<T, bytes>& vector_at(T* pointer) {
  return *reinterpret_cast<Vector<T, bytes>*>(pointer);
}
template <int bytes, class T>
BITSPLIT_SIMD inline const Vector<T, bytes>& vector_at(const T* pointer) {
  return *reinterpret_cast<const Vector<T, bytes>*>(pointer);
}

// The body, told the width if it wants to know.
template <int bytes, typename Body>
BITSPLIT_SIMD inline void call(Body& body) {
  if constexpr (std::is_invocable_v<Body&>)
    body();
  else
    body(Width<bytes>{});
}

template <typename Body>
void run_baseline(Body body) {
  call<16>(body);
}

#ifdef BITSPLIT_SIMD_LEVELS
template <typename Body>
__attribute__((target("avx2,f16c"))) void run_avx2(Body body) {
  call<32>(body);
}

template <typename Body>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))) void run_avx512(
    Body body) {
  call<64>(body);
}

template <typename Body>
BITSPLIT_FUSED __attribute__((target("avx2,fma,f16c"))) void run_avx2_fused(Body body) {
  call<32>(body);
}

template <typename Body>
BITSPLIT_FUSED __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))) void
run_avx512_fused(Body body) {
  call<64>(body);
}

inline Level best_level() {
  static const Level level = [] {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      return Level::avx512;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") ? Level::avx2 : Level::baseline;
  }();
  return level;
}

template <typename Body>
void run_at(Level level, const Body& body) {
  if (level == Level::avx512) return run_avx512(body);
  if (level == Level::avx2) return run_avx2(body);
  run_baseline(body);
}

template <typename Body>
void run_fused(const Body& body) {
  if (best_level() == Level::avx512) return run_avx512_fused(body);
  if (best_level() == Level::avx2 && __builtin_cpu_supports("fma")) return run_avx2_fused(body);
  run_baseline(body);
}
#else
inline Level best_level() { return Level::baseline; }

template <typename Body>
void run_at(Level, const Body& body) {
  run_baseline(body);
}

template <typename Body>
void run_fused(const Body& body) {
  run_baseline(body);
}
#endif

template <typename Body>
void run(const Body& body) {
  run_at(best_level(), body);
}

}  // namespace bitsplit::simd
