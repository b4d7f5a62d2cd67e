#include <ATen/Parallel.h>

#include <algorithm>

#include "core/simd.h"
#include "ops/rounding/rounding_dispatch.h"

namespace bitsplit {
namespace {

constexpr int64_t kGrain = 4096;  // elements a thread takes at least

// Runs of one channel are long: a row of the weight matrix, or, with channels_last weights too, all of it.
template <typename T>
void over_runs(const RoundingStep<T>& element, const T* scale, const ChannelLayout& layout,
               const RoundingSchedule<T>& schedule, int64_t begin, int64_t end) {
  while (begin < end) {
    const T of_channel = scale[begin / layout.inner % layout.channels];
    const int64_t stop = std::min(end, begin - begin % layout.inner + layout.inner);
    simd::run([=]() BITSPLIT_SIMD {
      for (int64_t i = begin; i < stop; ++i) element(i, of_channel, schedule);
    });
    begin = stop;
  }
}

struct Cpu {
  template <typename T>
  static void for_each(const RoundingCall& call, const RoundingStep<T>& element) {
    const float* values = call.schedule.const_data_ptr<float>();
    const RoundingSchedule<T> schedule{values[0], values[1], values[2], values[3]};
    const T* scale = call.scale.const_data_ptr<T>();
    at::parallel_for(0, call.layout.numel(), kGrain, [&](int64_t begin, int64_t end) {
      over_runs(element, scale, call.layout, schedule, begin, end);
    });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CPU, m) { RoundingOperator<Cpu>::implement(m); }

}  // namespace bitsplit
