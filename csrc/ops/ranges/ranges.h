// Which range of the real numbers a quantizer shall cover: the operators that look at all values of a tensor.
// x: any strides; float32, float64, float16 or bfloat16; at least one element unless said otherwise. Computed
// in float64 for float64 x, else in float32. Results do not depend on the number of threads.
//
// channel_range(x, axis) -> (min, max)
//   Both [x.size(axis)], or [1] for axis -1 (the whole tensor); x's dtype; one read of x. A NaN makes both
//   results of its channel NaN and infinities show up as they are, so a caller finds broken data by looking
//   at the results.
//
// histogram(x, low, high, bins) -> counts
//   int64 [bins] over `bins` equal cells of [low, high]; values outside count in the first or last cell, a
//   value on an inner edge in the upper cell; NaN is not counted. low < high finite, 1 <= bins <= 8192. x may
//   be empty.
//
// kl_threshold(counts, levels) -> kept      (see kl_threshold.h for the definition)
//   How many leading cells of a histogram of |x| to keep: int64 [], in [levels, bins]. counts: int64 [bins],
//   CPU.
//
// lp_search(x, axis, qmin, qmax, low, high, candidates, p) -> (scale, zero_point, error)
//   Per channel the best of the ranges [low, high] * i / candidates, i = 1..candidates, under
//   sum |x - fake_quantize(x)|^p, p > 0. low, high: finite, floating, [1] or one per channel as channel_range
//   returns them; scale (x's compute dtype) and zero_point (int32) of a range: see core/grid_of_range.h and
//   search_space.h.
//   error: float64, the sum at the result, p != 2 within 1e-5. Of equal candidates the widest range wins.
//   A NaN or Inf in a channel makes its error NaN or Inf and keeps its whole range.
//
// alternate_scale(x, qmin, qmax) -> scale
//   Bit-Split's activation scale, [1], no zero point: from scale = max(max(x) / qmax, min(x) / qmin) on, in
//   turn q = clamp(round(x / scale), qmin, qmax) and scale = <x, q> / <q, q> (sums in float64) until a scale
//   returns: a fixed point, or, when rounding makes the scales go round, the scale of the cycle with the
//   least error. After 10000 rounds the best so far. Without a value that any level but zero can
//   represent: 1. NaN or Inf is an error. qmin <= 0 < qmax.
#pragma once

#include <tuple>

#include "ops/dense.h"
#include "ops/ranges/search_space.h"

namespace bitsplit {

// One checked call of channel_range: x dense and non-empty, the results [layout.channels].
struct RangeCall {
  at::Tensor x;
  ChannelLayout layout;
  at::Tensor min;
  at::Tensor max;
};

struct HistogramCall {
  at::Tensor x;  // dense, non-empty
  double low;
  double cells_per_unit;
  at::Tensor counts;  // zeros
};

// One checked call of lp_search; low and high are float64.
struct SearchCall {
  at::Tensor rows;  // [channels, values], contiguous
  at::Tensor low, high;
  int qmin, qmax;
  int candidates;
  double p;
  at::Tensor scale, zero_point, error;

  SearchSpace space() const {
    return {low.const_data_ptr<double>(), high.const_data_ptr<double>(), qmin, qmax, candidates, p};
  }
};

using RangeKernel = void (*)(const RangeCall&);
using HistogramKernel = void (*)(const HistogramCall&);
using SearchKernel = void (*)(const SearchCall&);

// The operators: check, allocate, call the kernels of the device.
std::tuple<at::Tensor, at::Tensor> channel_range(const at::Tensor& x, int64_t axis, RangeKernel kernel);
at::Tensor histogram(const at::Tensor& x, double low, double high, int64_t bins, HistogramKernel kernel);
std::tuple<at::Tensor, at::Tensor, at::Tensor> lp_search(const at::Tensor& x, int64_t axis, int64_t qmin,
                                                         int64_t qmax, const at::Tensor& low,
                                                         const at::Tensor& high, int64_t candidates, double p,
                                                         SearchKernel kernel);

}  // namespace bitsplit
