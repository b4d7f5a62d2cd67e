// channel_range and histogram: one read of the data, bound by memory.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "core/simd.h"
#include "ops/ranges/range_elements.h"
#include "ops/ranges/ranges.h"

namespace bitsplit {
namespace {

constexpr int64_t kChunk = 32768;  // elements of one task
constexpr int64_t kLanes = 64;
constexpr int64_t kShortRun = 64;  // channels with shorter runs in memory are reduced a period at a time

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ranges[k] takes in x[k], x[k + width], x[k + 2 width], ... of x[0..count).
template <typename T, typename Storage>
void reduce_columns(const Storage* x, int64_t count, int64_t width, T* min, T* max) {
  simd::run([=]() BITSPLIT_SIMD {
    for (int64_t start = 0; start < count; start += width) {
      const int64_t columns = std::min(width, count - start);
      for (int64_t k = 0; k < columns; ++k) {
        const T value = static_cast<T>(x[start + k]);
        Range<T> range{min[k], max[k]};
        range.add(value, value);
        min[k] = range.min;
        max[k] = range.max;
      }
    }
  });
}

// The ranges of [chunks, columns] slices of memory, added to the channels their columns belong to.
template <typename T>
class PartialRanges {
 public:
  PartialRanges(int64_t chunks, int64_t columns)
      : columns_(columns), min_(chunks * columns, Range<T>().min), max_(chunks * columns, Range<T>().max) {}

  T* min(int64_t chunk) { return &min_[chunk * columns_]; }
  T* max(int64_t chunk) { return &max_[chunk * columns_]; }

  template <typename ChannelOf>
  std::vector<Range<T>> per_channel(int64_t channels, const ChannelOf& channel_of) const {
    std::vector<Range<T>> ranges(channels);
    for (size_t i = 0; i < min_.size(); ++i)
      ranges[channel_of(static_cast<int64_t>(i) / columns_, static_cast<int64_t>(i) % columns_)].add(min_[i],
                                                                                                     max_[i]);
    return ranges;
  }

 private:
  int64_t columns_;
  std::vector<T> min_, max_;
};

// Long runs of one channel: every run is cut into chunks, each reduced in kLanes columns.
template <typename T, typename Storage>
std::vector<Range<T>> ranges_of_runs(const Storage* x, const ChannelLayout& layout) {
  const int64_t chunks_per_run = divide_up(layout.inner, kChunk);
  const int64_t chunks = layout.outer * layout.channels * chunks_per_run;
  PartialRanges<T> partial(chunks, kLanes);
  at::parallel_for(0, chunks, divide_up(kChunk, layout.inner), [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t start = chunk % chunks_per_run * kChunk;
      const Storage* values = x + chunk / chunks_per_run * layout.inner + start;
      reduce_columns(values, std::min(kChunk, layout.inner - start), kLanes, partial.min(chunk),
                     partial.max(chunk));
    }
  });
  return partial.per_channel(
      layout.channels, [&](int64_t chunk, int64_t) { return chunk / chunks_per_run % layout.channels; });
}

// Short runs (channels_last, say): the columns are whole periods of the memory, so a column keeps its
// channel.
template <typename T, typename Storage>
std::vector<Range<T>> ranges_of_periods(const Storage* x, const ChannelLayout& layout) {
  const int64_t period = layout.channels * layout.inner;
  const int64_t columns = period * divide_up(kLanes, period);
  const int64_t chunk_size = columns * divide_up(std::max(kChunk, layout.numel() / 64), columns);
  const int64_t chunks = divide_up(layout.numel(), chunk_size);
  PartialRanges<T> partial(chunks, columns);
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t start = chunk * chunk_size;
      reduce_columns(x + start, std::min(chunk_size, layout.numel() - start), columns, partial.min(chunk),
                     partial.max(chunk));
    }
  });
  return partial.per_channel(
      layout.channels, [&](int64_t, int64_t column) { return column / layout.inner % layout.channels; });
}

void channel_range_cpu(const RangeCall& call) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, call.x.scalar_type(), "channel_range", [&] {
    using T = at::opmath_type<scalar_t>;
    const ChannelLayout& layout = call.layout;
    const scalar_t* x = call.x.const_data_ptr<scalar_t>();
    const bool long_runs = layout.inner >= kShortRun || layout.outer == 1;
    const std::vector<Range<T>> ranges =
        long_runs ? ranges_of_runs<T>(x, layout) : ranges_of_periods<T>(x, layout);
    for (int64_t c = 0; c < layout.channels; ++c) {
      call.min.mutable_data_ptr<scalar_t>()[c] = static_cast<scalar_t>(ranges[c].min);
      call.max.mutable_data_ptr<scalar_t>()[c] = static_cast<scalar_t>(ranges[c].max);
    }
  });
}

// Counts x[0..count) into four tables in turn, so that equal neighbours do not wait for one another.
template <typename T, typename Storage>
void count_cells(const Storage* x, int64_t count, T low, T cells_per_unit, int bins, int64_t* tables) {
  constexpr int64_t kBlock = 1024;
  int cells[kBlock];
  int* const cell = cells;
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t size = std::min(kBlock, count - start);
    const Storage* values = x + start;
    simd::run([=]() BITSPLIT_SIMD {
      for (int64_t i = 0; i < size; ++i)
        cell[i] = histogram_cell(static_cast<T>(values[i]), low, cells_per_unit, bins);
    });
    for (int64_t i = 0; i < size; ++i) ++tables[i % 4 * (bins + 1) + cell[i]];
  }
}

void histogram_cpu(const HistogramCall& call) {
  const int bins = static_cast<int>(call.counts.numel());
  int64_t* counts = call.counts.mutable_data_ptr<int64_t>();
  std::mutex merging;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, call.x.scalar_type(), "histogram", [&] {
    using T = at::opmath_type<scalar_t>;
    const scalar_t* x = call.x.const_data_ptr<scalar_t>();
    at::parallel_for(0, call.x.numel(), kChunk, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> tables(4 * (bins + 1));
      count_cells(x + begin, end - begin, T(call.low), T(call.cells_per_unit), bins, tables.data());
      const std::lock_guard lock(merging);
      for (int64_t i = 0; i < 4 * (bins + 1); ++i)
        if (i % (bins + 1) < bins) counts[i % (bins + 1)] += tables[i];
    });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CPU, m) {
  m.impl("channel_range",
         [](const at::Tensor& x, int64_t axis) { return channel_range(x, axis, channel_range_cpu); });
  m.impl("histogram", [](const at::Tensor& x, double low, double high, int64_t bins) {
    return histogram(x, low, high, bins, histogram_cpu);
  });
}

}  // namespace bitsplit
