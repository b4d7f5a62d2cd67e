// From the dtype of a call to the kernel for it, and the registration: the same for every device. In two
// parts, because the CPU has them in two files.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <torch/library.h>

#include "ops/ranges/ranges.h"

namespace bitsplit {

// Device, with the elements of x stored as Storage and computed in T:
//   channel_range<T, Storage>(call)   puts the ranges of the channels into call.min and call.max;
//   histogram<T, Storage>(call)       adds the values to call.counts.
template <typename Device>
struct RangeOperators {
  static void run_channel_range(const RangeCall& call) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, call.x.scalar_type(), "channel_range", [&] {
      Device::template channel_range<at::opmath_type<scalar_t>, scalar_t>(call);
    });
  }

  static void run_histogram(const HistogramCall& call) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, call.x.scalar_type(), "histogram", [&] {
      Device::template histogram<at::opmath_type<scalar_t>, scalar_t>(call);
    });
  }

  static void implement(torch::Library& m) {
    m.impl("channel_range",
           [](const at::Tensor& x, int64_t axis) { return channel_range(x, axis, run_channel_range); });
    m.impl("histogram", [](const at::Tensor& x, double low, double high, int64_t bins) {
      return histogram(x, low, high, bins, run_histogram);
    });
  }
};

// Device::search<T, Storage>(call, loss) puts the best candidates into call.scale, zero_point and error.
template <typename Device>
struct SearchOperator {
  static void run(const SearchCall& call) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, call.rows.scalar_type(), "lp_search", [&] {
      using T = at::opmath_type<scalar_t>;
      if (call.p == 2)
        Device::template search<T, scalar_t>(call, SquaredLoss{});
      else
        Device::template search<T, scalar_t>(call, PowerLoss<T>{T(call.p)});
    });
  }

  static void implement(torch::Library& m) {
    m.impl("lp_search", [](const at::Tensor& x, int64_t axis, int64_t qmin, int64_t qmax,
                           const at::Tensor& low, const at::Tensor& high, int64_t candidates, double p) {
      return lp_search(x, axis, qmin, qmax, low, high, candidates, p, run);
    });
  }
};

}  // namespace bitsplit
