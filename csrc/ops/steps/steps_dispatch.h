// From the dtypes of a call to the functors for its elements, and the registration: the same for every
// device.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <torch/library.h>

#include "core/channel_grids.h"
#include "ops/steps/steps.h"
#include "ops/steps/steps_elements.h"

namespace bitsplit {

// Device, with the grid in T out of `grids`, and the drop out of `rule`:
//   quantize<T>(call, element, grids, rule)   calls element(i, grid, drop) for every i;
//   backward<T>(call, element, grids, rule)   likewise, and puts the sum of the results into call.grad_scale;
//   mix(call, element, rule)                  calls element(i, drop) for every i.
template <typename Device>
struct StepOperators {
  template <typename T>
  static ChannelGrids<T> grids(const StepCall& call) {
    return {call.scale.const_data_ptr<T>(), call.zero_point.const_data_ptr<int32_t>(), T(call.qmin),
            T(call.qmax)};
  }

  // run(rule) with the rule of the share.
  template <typename Run>
  static void with_rule(double share, const at::Tensor& key, const Run& run) {
    if (share == 0)
      run(KeepAll{});
    else
      run(RandomDropRule{key.const_data_ptr<int64_t>(), drop_bound(share)});
  }

  static void run_quantize(const StepCall& call) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, call.x.scalar_type(), "step_quantize", [&] {
      using T = at::opmath_type<scalar_t>;
      const StepQuantize<scalar_t, T> element{call.x.const_data_ptr<scalar_t>(),
                                              call.output.mutable_data_ptr<scalar_t>()};
      with_rule(call.drop, call.key,
                [&](const auto& rule) { Device::template quantize<T>(call, element, grids<T>(call), rule); });
    });
  }

  static void run_backward(const StepCall& call) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, call.x.scalar_type(), "step_backward", [&] {
      using T = at::opmath_type<scalar_t>;
      const StepQuantizeBackward<scalar_t, T> element{call.grad.const_data_ptr<scalar_t>(),
                                                      call.x.const_data_ptr<scalar_t>(),
                                                      call.output.mutable_data_ptr<scalar_t>()};
      with_rule(call.drop, call.key,
                [&](const auto& rule) { Device::template backward<T>(call, element, grids<T>(call), rule); });
    });
  }

  template <typename Bits>
  static void run_mix_of(const MixCall& call) {
    const Mix<Bits> element{static_cast<const Bits*>(call.a.const_data_ptr()),
                            static_cast<const Bits*>(call.b.const_data_ptr()),
                            static_cast<Bits*>(call.output.mutable_data_ptr())};
    with_rule(call.share, call.key, [&](const auto& rule) { Device::mix(call, element, rule); });
  }
  static void run_mix(const MixCall& call) {
    const auto bytes = call.a.element_size();
    if (bytes == 2) return run_mix_of<uint16_t>(call);
    if (bytes == 4) return run_mix_of<uint32_t>(call);
    run_mix_of<uint64_t>(call);
  }

  static void implement(torch::Library& m) {
    m.impl("step_quantize", [](const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                               int64_t qmin, int64_t qmax, double drop, const at::Tensor& key) {
      return step_quantize(x, scale, zero_point, qmin, qmax, drop, key, run_quantize);
    });
    m.impl("step_quantize_backward",
           [](const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
              const at::Tensor& zero_point, int64_t qmin, int64_t qmax, double drop, const at::Tensor& key) {
             return step_quantize_backward(grad, x, scale, zero_point, qmin, qmax, drop, key, run_backward);
           });
    m.impl("mix", [](const at::Tensor& a, const at::Tensor& b, double share, const at::Tensor& key) {
      return mix(a, b, share, key, run_mix);
    });
  }
};

}  // namespace bitsplit
