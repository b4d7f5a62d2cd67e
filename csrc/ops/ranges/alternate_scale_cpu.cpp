// One pass of alternate_scale. Sums have fixed lanes, blocks and order, so they are the same bits for every
// instruction set and number of threads.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "core/rounding.h"
#include "core/simd.h"
#include "ops/ranges/ranges.h"

namespace bitsplit {
namespace {

constexpr int kLanes = 16;
constexpr int64_t kBlock = 16384;

template <typename T, typename Storage>
BITSPLIT_SIMD inline ScaleSums sums_of_block(const Storage* x, int64_t count, LevelGrid<T> grid) {
  double xq[kLanes] = {}, qq[kLanes] = {};
  for (int64_t i = 0; i + kLanes <= count; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) {
      const T value = static_cast<T>(x[i + lane]), level = nearest_level(value, grid);
      xq[lane] += static_cast<double>(value) * static_cast<double>(level);
      qq[lane] += static_cast<double>(level * level);
    }
  for (int64_t i = count - count % kLanes; i < count; ++i) {
    const T value = static_cast<T>(x[i]), level = nearest_level(value, grid);
    xq[i % kLanes] += static_cast<double>(value) * static_cast<double>(level);
    qq[i % kLanes] += static_cast<double>(level * level);
  }
  ScaleSums sums{0, 0};
  for (int lane = 0; lane < kLanes; ++lane) {
    sums.xq += xq[lane];
    sums.qq += qq[lane];
  }
  return sums;
}

ScaleSums scale_sums_cpu(const at::Tensor& x, double scale, int qmin, int qmax) {
  const int64_t numel = x.numel(), blocks = (numel + kBlock - 1) / kBlock;
  std::vector<ScaleSums> partial(blocks);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "alternate_scale", [&] {
    using T = at::opmath_type<scalar_t>;
    const scalar_t* values = x.const_data_ptr<scalar_t>();
    const LevelGrid<T> grid{T(scale), T(qmin), T(qmax)};
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        const scalar_t* start = values + block * kBlock;
        const int64_t count = std::min(kBlock, numel - block * kBlock);
        ScaleSums* sums = &partial[block];
        simd::run([=]() BITSPLIT_SIMD { *sums = sums_of_block(start, count, grid); });
      }
    });
  });
  ScaleSums total{0, 0};
  for (const ScaleSums& sums : partial) {
    total.xq += sums.xq;
    total.qq += sums.qq;
  }
  return total;
}

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CPU, m) {
  m.impl("alternate_scale", [](const at::Tensor& x, int64_t qmin, int64_t qmax) {
    return alternate_scale(x, qmin, qmax, scale_sums_cpu);
  });
}

}  // namespace bitsplit
