#include "ops/lane_sums_cpu.h"
#include "ops/steps/steps_dispatch.h"

namespace bitsplit {
namespace {

// element(i) for every i in [0, numel), vectorised.
template <typename Element>
void for_each(int64_t numel, const Element& element) {
  constexpr int64_t kGrain = 16384;  // elements a thread takes at least
  at::parallel_for(0, numel, kGrain, [&](int64_t begin, int64_t end) {
    simd::run([=]() BITSPLIT_SIMD {
      for (int64_t i = begin; i < end; ++i) element(i);
    });
  });
}

struct CpuSteps {
  template <typename T, typename Element, typename Rule>
  static void quantize(const StepCall& call, const Element& element, const ChannelGrids<T>& grids,
                       const Rule& rule) {
    for_each(call.x.numel(), [=, grid = grids.of(0), drop = rule.read()](int64_t i)
                                 BITSPLIT_SIMD { element(i, grid, drop); });
  }

  template <typename T, typename Element, typename Rule>
  static void backward(const StepCall& call, const Element& element, const ChannelGrids<T>& grids,
                       const Rule& rule) {
    const auto term = [=, grid = grids.of(0), drop = rule.read()](int64_t i)
                          BITSPLIT_SIMD { return element(i, grid, drop); };
    call.grad_scale.fill_(sum_of_terms<T>(call.x.numel(), term));
  }

  template <typename Element, typename Rule>
  static void mix(const MixCall& call, const Element& element, const Rule& rule) {
    for_each(call.a.numel(), [=, drop = rule.read()](int64_t i) BITSPLIT_SIMD { element(i, drop); });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CPU, m) { StepOperators<CpuSteps>::implement(m); }

}  // namespace bitsplit
