// lp_search: every value meets all candidates while it is in the cache. Sums have fixed lanes, blocks and
// order, so they are the same bits for every instruction set and number of threads.
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "core/integers.h"
#include "core/simd.h"
#include "ops/ranges/ranges_dispatch.h"

namespace bitsplit {
namespace {

constexpr int kLanes = 16;
constexpr int64_t kSegment = 4096;  // values of a row that are in the cache while all candidates look at them
constexpr int64_t kBlock = 512;     // values added up in T before the sum goes on in double

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

// errors[i - 1]: the loss of candidate i over x[0..count), in the channel's units.
template <typename T, typename Storage, typename Loss>
void segment_errors(const Storage* x, int64_t count, const SearchSpace& space, int64_t channel, Loss loss,
                    double* errors) {
  alignas(64) T values[kSegment] = {};  // beyond count: zero, which every grid represents
  T* const value = values;
  const T unit = space.unit<T>(channel);
  const int64_t padded = round_up(count, kLanes);
  simd::run([=]() BITSPLIT_SIMD {
    for (int64_t i = 0; i < count; ++i) value[i] = static_cast<T>(x[i]) * unit;
  });
  for (int i = 1; i <= space.candidates; ++i) {
    const LevelGrid<T> grid = space.grid_in_units<T>(channel, i);
    double* const error = &errors[i - 1];
    simd::run([=]() BITSPLIT_SIMD { *error = quantization_loss(value, padded, grid, loss); });
  }
}

template <typename T>
void store_best(const SearchCall& call, int64_t channel, const std::vector<double>& errors) {
  const SearchSpace space = call.space();
  CandidateError best{errors.back(), space.candidates};
  for (int i = 1; i < space.candidates; ++i) {
    const CandidateError other{errors[i - 1], i};
    if (other.is_better_than(best)) best = other;
  }
  const AffineGrid<T> grid = space.grid<T>(channel, best.candidate);
  call.scale.mutable_data_ptr<T>()[channel] = grid.grid.scale;
  call.zero_point.mutable_data_ptr<int32_t>()[channel] = grid.zero_point;
  call.error.mutable_data_ptr<double>()[channel] = space.error_of_units(channel, best.error);
}

struct Cpu {
  template <typename T, typename Storage, typename Loss>
  static void search(const SearchCall& call, Loss loss) {
    const int64_t channels = call.rows.size(0), size = call.rows.size(1), number = call.candidates;
    const int64_t segments = divide_up(size, kSegment);
    const Storage* rows = call.rows.const_data_ptr<Storage>();
    std::vector<double> partial(channels * segments * number);
    at::parallel_for(0, channels * segments, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t channel = task / segments, start = task % segments * kSegment;
        segment_errors<T>(rows + channel * size + start, std::min(kSegment, size - start), call.space(),
                          channel, loss, &partial[task * number]);
      }
    });
    for (int64_t channel = 0; channel < channels; ++channel) {
      const double* errors_of_segments = &partial[channel * segments * number];
      std::vector<double> errors(number);
      for (int64_t i = 0; i < segments * number; ++i) errors[i % number] += errors_of_segments[i];
      store_best<T>(call, channel, errors);
    }
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CPU, m) { SearchOperator<Cpu>::implement(m); }

}  // namespace bitsplit
