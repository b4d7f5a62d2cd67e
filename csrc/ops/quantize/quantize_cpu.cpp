#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "core/simd.h"
#include "ops/quantize/quantize.h"
#include "ops/quantize/quantize_elements.h"

namespace bitsplit {
namespace {

constexpr int64_t kGrain = 16384;   // elements a thread takes at least
constexpr int64_t kShortRun = 32;   // channels with shorter runs in memory go through a table
constexpr int64_t kTableSize = 64;  // at least, so that its loop is worth vectorising

template <typename T>
std::vector<LevelGrid<T>> level_grids(const QuantizeCall& call) {
  const T* scale = call.scale.const_data_ptr<T>();
  const int32_t* zero_point = call.zero_point.const_data_ptr<int32_t>();
  std::vector<LevelGrid<T>> grids;
  for (int64_t c = 0; c < call.layout.channels; ++c)
    grids.push_back({scale[c], T(call.qmin - zero_point[c]), T(call.qmax - zero_point[c])});
  return grids;
}

// Long runs of one channel: element(i, grid of its channel) over [begin, end).
template <typename T, typename Element>
void over_runs(const std::vector<LevelGrid<T>>& grids, int64_t inner, int64_t begin, int64_t end,
               const Element& element) {
  while (begin < end) {
    const LevelGrid<T> grid = grids[begin / inner % grids.size()];
    const int64_t stop = std::min(end, begin - begin % inner + inner);
    simd::run([=]() BITSPLIT_SIMD {
      for (int64_t i = begin; i < stop; ++i) element(i, grid);
    });
    begin = stop;
  }
}

// Short runs (channels_last, say): the grids of one period of the memory, repeated to a useful length, as
// arrays.
template <typename T>
struct GridTable {
  std::vector<T> scale, low, high;

  GridTable(const std::vector<LevelGrid<T>>& grids, int64_t inner) {
    while (size() < kTableSize)
      for (const LevelGrid<T>& grid : grids) {
        scale.insert(scale.end(), inner, grid.scale);
        low.insert(low.end(), inner, grid.low);
        high.insert(high.end(), inner, grid.high);
      }
  }
  int64_t size() const { return static_cast<int64_t>(scale.size()); }
};

template <typename T, typename Element>
void over_table(const GridTable<T>& table, int64_t begin, int64_t end, const Element& element) {
  while (begin < end) {
    const int64_t first = begin % table.size(), count = std::min(end - begin, table.size() - first);
    const T *scale = &table.scale[first], *low = &table.low[first], *high = &table.high[first];
    simd::run([=]() BITSPLIT_SIMD {
      for (int64_t k = 0; k < count; ++k) element(begin + k, LevelGrid<T>{scale[k], low[k], high[k]});
    });
    begin += count;
  }
}

template <typename T, typename Element>
void for_each_element(const QuantizeCall& call, const Element& element) {
  const std::vector<LevelGrid<T>> grids = level_grids<T>(call);
  const int64_t inner = call.layout.inner, numel = call.layout.numel();
  if (inner >= kShortRun || grids.size() == 1) {
    at::parallel_for(0, numel, kGrain,
                     [&](int64_t begin, int64_t end) { over_runs(grids, inner, begin, end, element); });
    return;
  }
  const GridTable<T> table(grids, inner);
  at::parallel_for(0, numel, kGrain,
                   [&](int64_t begin, int64_t end) { over_table(table, begin, end, element); });
}

void fake_quantize_cpu(const QuantizeCall& call) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, call.input.scalar_type(), "fake_quantize", [&] {
    using T = at::opmath_type<scalar_t>;
    for_each_element<T>(call, FakeQuantize<scalar_t, T>{call.input.const_data_ptr<scalar_t>(),
                                                        call.output.mutable_data_ptr<scalar_t>()});
  });
}

void fake_quantize_backward_cpu(const QuantizeCall& call) {
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, call.input.scalar_type(), "fake_quantize_backward", [&] {
        using T = at::opmath_type<scalar_t>;
        for_each_element<T>(call,
                            FakeQuantizeBackward<scalar_t, T>{call.grad.const_data_ptr<scalar_t>(),
                                                              call.input.const_data_ptr<scalar_t>(),
                                                              call.output.mutable_data_ptr<scalar_t>()});
      });
}

void quantize_cpu(const QuantizeCall& call) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, call.input.scalar_type(), "quantize", [&] {
    using T = at::opmath_type<scalar_t>;
    const scalar_t* x = call.input.const_data_ptr<scalar_t>();
    if (call.qmin < 0)
      for_each_element<T>(
          call, Quantize<scalar_t, T, int8_t>{x, call.output.mutable_data_ptr<int8_t>(), T(call.qmin)});
    else
      for_each_element<T>(
          call, Quantize<scalar_t, T, uint8_t>{x, call.output.mutable_data_ptr<uint8_t>(), T(call.qmin)});
  });
}

void dequantize_cpu(const QuantizeCall& call) {
  AT_DISPATCH_FLOATING_TYPES(call.scale.scalar_type(), "dequantize", [&] {
    scalar_t* y = call.output.mutable_data_ptr<scalar_t>();
    if (call.input.scalar_type() == at::kChar)
      for_each_element<scalar_t>(
          call, Dequantize<int8_t, scalar_t>{call.input.const_data_ptr<int8_t>(), y, scalar_t(call.qmin)});
    else
      for_each_element<scalar_t>(
          call, Dequantize<uint8_t, scalar_t>{call.input.const_data_ptr<uint8_t>(), y, scalar_t(call.qmin)});
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CPU, m) {
  m.impl("fake_quantize", [](const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                             int64_t axis, int64_t qmin, int64_t qmax) {
    return fake_quantize(x, scale, zero_point, axis, qmin, qmax, fake_quantize_cpu);
  });
  m.impl("fake_quantize_backward", [](const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
                                      const at::Tensor& zero_point, int64_t axis, int64_t qmin,
                                      int64_t qmax) {
    return fake_quantize_backward(grad, x, scale, zero_point, axis, qmin, qmax, fake_quantize_backward_cpu);
  });
  m.impl("quantize", [](const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                        int64_t axis, int64_t qmin, int64_t qmax) {
    return quantize(x, scale, zero_point, axis, qmin, qmax, quantize_cpu);
  });
  m.impl("dequantize",
         [](const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& zero_point, int64_t axis) {
           return dequantize(codes, scale, zero_point, axis, dequantize_cpu);
         });
}

}  // namespace bitsplit
