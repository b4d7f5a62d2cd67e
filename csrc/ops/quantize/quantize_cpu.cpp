#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "core/simd.h"
#include "ops/quantize/quantize_dispatch.h"

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

struct CpuLoop {
  template <typename T, typename Element>
  static void for_each(const QuantizeCall& call, const Element& element) {
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
};

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CPU, m) { QuantizeOperators<CpuLoop>::implement(m); }

}  // namespace bitsplit
