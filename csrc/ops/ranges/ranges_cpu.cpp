// channel_range and histogram: one read of the data, bound by memory.
#include <ATen/Parallel.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "core/integers.h"
#include "core/simd.h"
#include "ops/ranges/range_elements.h"
#include "ops/ranges/ranges_dispatch.h"

namespace bitsplit {
namespace {

constexpr int64_t kChunk = 32768;  // elements of one task
constexpr int64_t kLanes = 64;
constexpr int64_t kShortRun = 64;  // channels with shorter runs in memory are reduced a period at a time

// The range of x[0..count). Lanes stay in registers; NaN, which comparisons overlook, is kept beside them.
template <typename T, typename Storage>
BITSPLIT_SIMD inline Range<T> range_of_run(const Storage* x, int64_t count) {
  T min[kLanes], max[kLanes], nan[kLanes] = {};
  std::fill_n(min, kLanes, Range<T>().min);
  std::fill_n(max, kLanes, Range<T>().max);
  const int64_t whole = count - count % kLanes;
  for (int64_t start = 0; start < whole; start += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const T value = static_cast<T>(x[start + lane]);
      min[lane] = value < min[lane] ? value : min[lane];
      max[lane] = value > max[lane] ? value : max[lane];
      nan[lane] = value != value ? value : nan[lane];
    }
  Range<T> range;
  for (int64_t lane = 0; lane < kLanes; ++lane) range.add(min[lane] + nan[lane], max[lane] + nan[lane]);
  for (int64_t i = whole; i < count; ++i) range.add(static_cast<T>(x[i]), static_cast<T>(x[i]));
  return range;
}

// Long runs of one channel: every run is cut into chunks.
template <typename T, typename Storage>
std::vector<Range<T>> ranges_of_runs(const Storage* x, const ChannelLayout& layout) {
  const int64_t chunks_per_run = divide_up(layout.inner, kChunk);
  const int64_t chunks = layout.outer * layout.channels * chunks_per_run;
  std::vector<Range<T>> partial(chunks), ranges(layout.channels);
  at::parallel_for(0, chunks, divide_up(kChunk, layout.inner), [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t start = chunk % chunks_per_run * kChunk, count = std::min(kChunk, layout.inner - start);
      const Storage* values = x + chunk / chunks_per_run * layout.inner + start;
      Range<T>* range = &partial[chunk];
      simd::run([=]() BITSPLIT_SIMD { *range = range_of_run<T>(values, count); });
    }
  });
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    ranges[chunk / chunks_per_run % layout.channels].add(partial[chunk].min, partial[chunk].max);
  return ranges;
}

// min[k] and max[k] take in x[k], x[k + width], x[k + 2 width], ... of x[0..count).
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

// Short runs (channels_last, say): the columns are whole periods of the memory, so a column keeps its
// channel.
template <typename T, typename Storage>
std::vector<Range<T>> ranges_of_periods(const Storage* x, const ChannelLayout& layout) {
  const int64_t period = layout.channels * layout.inner;
  const int64_t columns = round_up(kLanes, period);
  const int64_t chunk_size = round_up(std::max(kChunk, layout.numel() / 64), columns);
  const int64_t chunks = divide_up(layout.numel(), chunk_size);
  std::vector<T> min(chunks * columns, Range<T>().min), max(chunks * columns, Range<T>().max);
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t start = chunk * chunk_size;
      reduce_columns(x + start, std::min(chunk_size, layout.numel() - start), columns, &min[chunk * columns],
                     &max[chunk * columns]);
    }
  });
  std::vector<Range<T>> ranges(layout.channels);
  for (int64_t i = 0; i < chunks * columns; ++i)
    ranges[i % columns / layout.inner % layout.channels].add(min[i], max[i]);
  return ranges;
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

struct Cpu {
  template <typename T, typename Storage>
  static void channel_range(const RangeCall& call) {
    const ChannelLayout& layout = call.layout;
    const Storage* x = call.x.const_data_ptr<Storage>();
    const bool long_runs = layout.inner >= kShortRun || layout.outer == 1;
    const std::vector<Range<T>> ranges =
        long_runs ? ranges_of_runs<T>(x, layout) : ranges_of_periods<T>(x, layout);
    for (int64_t c = 0; c < layout.channels; ++c) {
      call.min.mutable_data_ptr<Storage>()[c] = static_cast<Storage>(ranges[c].min);
      call.max.mutable_data_ptr<Storage>()[c] = static_cast<Storage>(ranges[c].max);
    }
  }

  template <typename T, typename Storage>
  static void histogram(const HistogramCall& call) {
    const int bins = static_cast<int>(call.counts.numel());
    int64_t* counts = call.counts.mutable_data_ptr<int64_t>();
    const Storage* x = call.x.const_data_ptr<Storage>();
    std::mutex merging;
    at::parallel_for(0, call.x.numel(), kChunk, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> tables(4 * (bins + 1));
      count_cells(x + begin, end - begin, T(call.low), T(call.cells_per_unit), bins, tables.data());
      const std::lock_guard lock(merging);
      for (int64_t i = 0; i < 4 * (bins + 1); ++i)
        if (i % (bins + 1) < bins) counts[i % (bins + 1)] += tables[i];
    });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CPU, m) { RangeOperators<Cpu>::implement(m); }

}  // namespace bitsplit
