// The registration that both devices share.
#pragma once

#include <torch/library.h>

#include "ops/integer/integer.h"

namespace bitsplit::integer {

// Device::conv(ConvCall) and Device::requantize(RequantizeCall) are the kernels.
template <class Device>
void implement(torch::Library& m) {
  using at::Tensor;
  m.impl("integer_conv",
         [](const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
            at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
           return integer_conv(input, weight, bias, stride, padding, dilation, groups, Device::conv);
         });
  m.impl("requantize",
         [](const Tensor& values, const Tensor& shift, int64_t divisor, int64_t low, int64_t high) {
           return requantize(values, shift, divisor, low, high, Device::requantize);
         });
}

}  // namespace bitsplit::integer
