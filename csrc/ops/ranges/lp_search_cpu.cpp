// lp_search: every value meets all candidates while it is in the cache. Sums have fixed lanes, blocks and
// order, so they are the same bits for every instruction set and number of threads.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/grid_of_range.h"
#include "core/simd.h"
#include "ops/ranges/range_elements.h"
#include "ops/ranges/ranges.h"

namespace bitsplit {
namespace {

constexpr int kLanes = 16;
constexpr int64_t kSegment = 4096;  // values of a row that are in the cache while all candidates look at them
constexpr int64_t kBlock = 512;     // values added up in T before the sum goes on in double

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// sum of loss(x - fake_quantize(x)) over x[0..count); count is a multiple of kLanes.
template <typename T, typename Loss>
BITSPLIT_SIMD inline double quantization_loss(const T* x, int64_t count, LevelGrid<T> grid, Loss loss) {
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    T lanes[kLanes] = {};
    const int64_t end = std::min(count, begin + kBlock);
    for (int64_t i = begin; i < end; i += kLanes)
      for (int lane = 0; lane < kLanes; ++lane)
        lanes[lane] += loss(x[i + lane] - fake_quantize(x[i + lane], grid));
    for (int lane = 0; lane < kLanes; ++lane) total += lanes[lane];
  }
  return total;
}

// The candidates of one channel, scaled by the channel's power of two.
template <typename T>
struct Candidates {
  int exponent;
  std::vector<LevelGrid<T>> grids;

  Candidates(const SearchCall& call, int64_t channel) {
    const double low = call.low.const_data_ptr<double>()[channel];
    const double high = call.high.const_data_ptr<double>()[channel];
    exponent = normalizing_exponent(std::max(-low, high));
    for (int i = 1; i <= call.candidates; ++i) {
      LevelGrid<T> grid = candidate_grid<T>(low, high, i, call.candidates, call.qmin, call.qmax).grid;
      grid.scale = std::ldexp(grid.scale, exponent);
      grids.push_back(grid);
    }
  }
};

// errors[i]: the loss of candidate i over x[0..count), in the channel's units.
template <typename T, typename Storage, typename Loss>
void segment_errors(const Storage* x, int64_t count, const Candidates<T>& candidates, Loss loss,
                    double* errors) {
  alignas(64) T values[kSegment] = {};  // beyond count: zero, which every grid represents
  T* const value = values;
  const T factor = std::ldexp(T(1), candidates.exponent);
  const LevelGrid<T>* grids = candidates.grids.data();
  const int64_t number = static_cast<int64_t>(candidates.grids.size()),
                padded = divide_up(count, kLanes) * kLanes;
  simd::run([=]() BITSPLIT_SIMD {
    for (int64_t i = 0; i < count; ++i) value[i] = static_cast<T>(x[i]) * factor;
    for (int64_t k = 0; k < number; ++k) errors[k] = quantization_loss(value, padded, grids[k], loss);
  });
}

// The candidate of least error, the widest range of equals.
int best_candidate(const std::vector<double>& errors) {
  int best = static_cast<int>(errors.size()) - 1;
  for (int i = best - 1; i >= 0; --i)
    if (errors[i] < errors[best]) best = i;
  return best;
}

template <typename T>
void store_best(const SearchCall& call, int64_t channel, const std::vector<double>& errors) {
  const double low = call.low.const_data_ptr<double>()[channel];
  const double high = call.high.const_data_ptr<double>()[channel];
  const int best = best_candidate(errors);
  const AffineGrid<T> grid = candidate_grid<T>(low, high, best + 1, call.candidates, call.qmin, call.qmax);
  const double unit = std::exp2(-normalizing_exponent(std::max(-low, high)) * call.p);
  call.scale.mutable_data_ptr<T>()[channel] = grid.grid.scale;
  call.zero_point.mutable_data_ptr<int32_t>()[channel] = grid.zero_point;
  call.error.mutable_data_ptr<double>()[channel] = errors[best] == 0 ? 0 : errors[best] * unit;
}

template <typename T, typename Storage, typename Loss>
void search(const SearchCall& call, Loss loss) {
  const int64_t channels = call.rows.size(0), size = call.rows.size(1), number = call.candidates;
  const int64_t segments = divide_up(size, kSegment);
  const Storage* rows = call.rows.const_data_ptr<Storage>();
  std::vector<double> partial(channels * segments * number);
  at::parallel_for(0, channels * segments, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t channel = task / segments, start = task % segments * kSegment;
      segment_errors<T>(rows + channel * size + start, std::min(kSegment, size - start),
                        Candidates<T>(call, channel), loss, &partial[task * number]);
    }
  });
  for (int64_t channel = 0; channel < channels; ++channel) {
    std::vector<double> errors(number);
    for (int64_t i = 0; i < segments * number; ++i)
      errors[i % number] += partial[channel * segments * number + i];
    store_best<T>(call, channel, errors);
  }
}

void lp_search_cpu(const SearchCall& call) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, call.rows.scalar_type(), "lp_search", [&] {
    using T = at::opmath_type<scalar_t>;
    if (call.p == 2)
      search<T, scalar_t>(call, SquaredLoss{});
    else
      search<T, scalar_t>(call, PowerLoss<T>{T(call.p)});
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CPU, m) {
  m.impl("lp_search", [](const at::Tensor& x, int64_t axis, int64_t qmin, int64_t qmax, const at::Tensor& low,
                         const at::Tensor& high, int64_t candidates, double p) {
    return lp_search(x, axis, qmin, qmax, low, high, candidates, p, lp_search_cpu);
  });
}

}  // namespace bitsplit
