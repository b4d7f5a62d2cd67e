#include "ops/ranges/ranges.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "ops/ranges/alternating_scale.h"
#include "ops/ranges/kl_threshold.h"

namespace bitsplit {
namespace {

void check_data(const at::Tensor& x, int64_t axis) {
  check_floating(x, "x");
  check_axis(x, axis);
  TORCH_CHECK(x.numel() > 0, "x must have at least one element, got shape ", x.sizes());
}

// As the kernels divide by steps: some real grid, at most 8 bits wide.
void check_levels_around_zero(int64_t qmin, int64_t qmax) {
  const bool fits = (qmin >= -128 && qmax <= 127) || (qmin == 0 && qmax <= 255);
  TORCH_CHECK(qmin <= 0 && qmax > 0 && fits,
              "qmin <= 0 < qmax must both lie in [-128, 127] or in [0, 255], got [", qmin, ", ", qmax, "]");
}

// `bound` as float64 [channels]; values on a GPU are left alone.
at::Tensor checked_bound(const at::Tensor& bound, const char* name, const at::Tensor& x, int64_t channels) {
  check_floating(bound, name);
  TORCH_CHECK(bound.device() == x.device(), name, " must be on the device of x, ", x.device(), ", got ",
              bound.device());
  TORCH_CHECK(bound.numel() == 1 || bound.numel() == channels, name,
              " must have 1 element or one per channel (", channels, "), got ", bound.numel());
  const at::Tensor values = bound.reshape(-1).to(at::kDouble).expand(channels).contiguous();
  if (!values.is_cpu()) return values;
  for (int64_t c = 0; c < channels; ++c) {
    const double value = values.const_data_ptr<double>()[c];
    TORCH_CHECK(std::isfinite(value), name, " must be finite, got ", value, " for channel ", c);
  }
  return values;
}

// x as [channels, values], contiguous.
at::Tensor channel_rows(const at::Tensor& x, int64_t axis) {
  if (axis < 0) return x.reshape({1, -1}).contiguous();
  return x.movedim(axis, 0).reshape({x.size(axis), -1}).contiguous();
}

double rounded_to(at::ScalarType type, double value) {
  return type == at::kFloat ? static_cast<double>(static_cast<float>(value)) : value;
}

at::Tensor kl_threshold(const at::Tensor& counts, int64_t levels) {
  TORCH_CHECK(counts.scalar_type() == at::kLong && counts.dim() == 1, "counts must be int64 [bins], got ",
              counts.scalar_type(), " ", counts.sizes());
  TORCH_CHECK(levels >= 1 && levels <= counts.numel(), "levels must lie in [1, bins = ", counts.numel(),
              "], got ", levels);
  const at::Tensor dense_counts = counts.contiguous();
  const int64_t* values = dense_counts.const_data_ptr<int64_t>();
  const int64_t bins = counts.numel();
  TORCH_CHECK(*std::min_element(values, values + bins) >= 0, "counts must not be negative");
  TORCH_CHECK(*std::max_element(values, values + bins) > 0, "counts must not all be zero");
  return at::full({}, KlSearch(values, bins, levels).best(), counts.options());
}

// One function for all devices: a GPU only sorts, the search itself is short.
at::Tensor alternate_scale(const at::Tensor& x, int64_t qmin, int64_t qmax) {
  check_data(x, -1);
  check_levels_around_zero(qmin, qmax);
  const at::Tensor flat = x.reshape(-1).to(compute_type(x));
  const at::Tensor values = (flat.is_cpu() ? flat : std::get<0>(flat.sort())).cpu().contiguous();
  TORCH_CHECK(at::isfinite(values).all().item<bool>(), "x must be finite, got NaN or Inf");
  return AT_DISPATCH_FLOATING_TYPES(values.scalar_type(), "alternate_scale", [&] {
    const scalar_t* start = values.const_data_ptr<scalar_t>();
    const SortedValues<scalar_t> sorted({start, start + values.numel()});
    const scalar_t scale = alternating_scale(sorted, static_cast<int>(qmin), static_cast<int>(qmax));
    return at::full({1}, scale, flat.options());
  });
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> channel_range(const at::Tensor& x, int64_t axis, RangeKernel kernel) {
  check_data(x, axis);
  const at::Tensor data = dense(x);
  const ChannelLayout layout = channel_layout(data, axis);
  const RangeCall call{data, layout, at::empty({layout.channels}, data.options()),
                       at::empty({layout.channels}, data.options())};
  kernel(call);
  return {call.min, call.max};
}

at::Tensor histogram(const at::Tensor& x, double low, double high, int64_t bins, HistogramKernel kernel) {
  check_floating(x, "x");
  TORCH_CHECK(bins >= 1 && bins <= 8192, "bins must lie in [1, 8192], got ", bins);
  const double cells_per_unit = static_cast<double>(bins) / (high - low);
  const auto type = compute_type(x);
  const double first = rounded_to(type, low), last = rounded_to(type, high);
  const double cells = rounded_to(type, cells_per_unit);
  const bool fits = first < last && std::isfinite(first) && std::isfinite(rounded_to(type, last - first)) &&
                    std::isfinite(cells) && cells > 0;
  TORCH_CHECK(fits, "low < high must be finite and told apart by ", type, ", got [", low, ", ", high, "]");
  const HistogramCall call{dense(x), low, cells_per_unit, at::zeros({bins}, x.options().dtype(at::kLong))};
  if (x.numel() > 0) kernel(call);
  return call.counts;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lp_search(const at::Tensor& x, int64_t axis, int64_t qmin,
                                                         int64_t qmax, const at::Tensor& low,
                                                         const at::Tensor& high, int64_t candidates, double p,
                                                         SearchKernel kernel) {
  check_data(x, axis);
  check_levels_around_zero(qmin, qmax);
  TORCH_CHECK(candidates >= 1 && candidates <= 65536, "candidates must lie in [1, 65536], got ", candidates);
  TORCH_CHECK(p > 0 && std::isfinite(p), "p must be positive and finite, got ", p);
  const at::Tensor rows = channel_rows(x, axis);
  const int64_t channels = rows.size(0);
  const SearchCall call{.rows = rows,
                        .low = checked_bound(low, "low", x, channels),
                        .high = checked_bound(high, "high", x, channels),
                        .qmin = static_cast<int>(qmin),
                        .qmax = static_cast<int>(qmax),
                        .candidates = static_cast<int>(candidates),
                        .p = p,
                        .scale = at::empty({channels}, x.options().dtype(compute_type(x))),
                        .zero_point = at::empty({channels}, x.options().dtype(at::kInt)),
                        .error = at::empty({channels}, x.options().dtype(at::kDouble))};
  kernel(call);
  return {call.scale, call.zero_point, call.error};
}

TORCH_LIBRARY_FRAGMENT(bitsplit, m) {
  m.def("channel_range(Tensor x, int axis) -> (Tensor min, Tensor max)");
  m.def("histogram(Tensor x, float low, float high, int bins) -> Tensor");
  m.def("kl_threshold(Tensor counts, int levels) -> Tensor");
  m.def(
      "lp_search(Tensor x, int axis, int qmin, int qmax, Tensor low, Tensor high, int candidates, float p) "
      "-> (Tensor scale, Tensor zero_point, Tensor error)");
  m.def("alternate_scale(Tensor x, int qmin, int qmax) -> Tensor");
}

TORCH_LIBRARY_IMPL(bitsplit, CPU, m) { m.impl("kl_threshold", kl_threshold); }

TORCH_LIBRARY_IMPL(bitsplit, CompositeExplicitAutograd, m) { m.impl("alternate_scale", alternate_scale); }

}  // namespace bitsplit
