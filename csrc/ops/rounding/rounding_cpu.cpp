#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "core/simd.h"
#include "ops/rounding/rounding.h"
#include "ops/rounding/rounding_elements.h"

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

void step_cpu(const RoundingCall& call) {
  AT_DISPATCH_FLOATING_TYPES(call.weight.scalar_type(), "rounding_step", [&] {
    const float* values = call.schedule.const_data_ptr<float>();
    const RoundingSchedule<scalar_t> schedule{values[0], values[1], values[2], values[3]};
    const RoundingStep<scalar_t> element{
        call.weight.mutable_data_ptr<scalar_t>(), call.grad.const_data_ptr<scalar_t>(),
        call.v.mutable_data_ptr<scalar_t>(),      call.mean.mutable_data_ptr<scalar_t>(),
        call.square.mutable_data_ptr<scalar_t>(), call.base.const_data_ptr<int16_t>()};
    const scalar_t* scale = call.scale.const_data_ptr<scalar_t>();
    at::parallel_for(0, call.layout.numel(), kGrain, [&](int64_t begin, int64_t end) {
      over_runs(element, scale, call.layout, schedule, begin, end);
    });
  });
}

void rounding_step_cpu(at::TensorList weights, at::TensorList grads, at::TensorList v, at::TensorList mean,
                       at::TensorList square, at::TensorList base, at::TensorList scale, at::IntArrayRef axis,
                       const at::Tensor& schedule) {
  rounding_step(weights, grads, v, mean, square, base, scale, axis, schedule, step_cpu);
}

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CPU, m) { m.impl("rounding_step", rounding_step_cpu); }

}  // namespace bitsplit
