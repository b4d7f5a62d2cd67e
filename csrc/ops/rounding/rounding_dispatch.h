// From the dtype of a call to the functor for its elements, and the registration: the same for every device.
#pragma once

#include <ATen/Dispatch.h>
#include <torch/library.h>

#include "ops/rounding/rounding.h"
#include "ops/rounding/rounding_elements.h"

namespace bitsplit {

// Device::for_each(call, element) calls element(i, scale of its channel, schedule) for every i of the layer's
// memory, with the schedule read on the device.
template <typename Device>
struct RoundingOperator {
  static void run(const RoundingCall& call) {
    AT_DISPATCH_FLOATING_TYPES(call.weight.scalar_type(), "rounding_step", [&] {
      Device::for_each(call,
                       RoundingStep<scalar_t>{
                           call.weight.mutable_data_ptr<scalar_t>(), call.grad.const_data_ptr<scalar_t>(),
                           call.v.mutable_data_ptr<scalar_t>(), call.mean.mutable_data_ptr<scalar_t>(),
                           call.square.mutable_data_ptr<scalar_t>(), call.base.const_data_ptr<int16_t>()});
    });
  }

  static void implement(torch::Library& m) {
    m.impl("rounding_step", [](at::TensorList weights, at::TensorList grads, at::TensorList v,
                               at::TensorList mean, at::TensorList square, at::TensorList base,
                               at::TensorList scale, at::IntArrayRef axis, const at::Tensor& schedule) {
      rounding_step(weights, grads, v, mean, square, base, scale, axis, schedule, run);
    });
  }
};

}  // namespace bitsplit
