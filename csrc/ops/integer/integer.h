// Networks in integers: what a layer adds up, and what a quantizer makes of it.
//
// integer_conv(input, weight, bias, stride, padding, dilation, groups) -> int32 [n, m, h', w']
//   Sums of products and the bias. input int16 [n, c, h, w]; weight int16 [m, c / groups, kh, kw]; bias int32
//   [m] or none; stride, padding (with zeros) and dilation of rows and columns. Sums are not looked at: the
//   caller proves that none leaves int32.
//
// requantize(values, shift, divisor, low, high) -> int16, shape of values
//   clamp(round(values / divisor * 2^-shift), low, high), rounded once, half to even (core/shift.h).
//   values int32; shift int32, broadcast against them; 1 <= divisor < 2^20; low <= high in int16.
//
// CPU and CUDA give the same integers, for every number of threads. Empty tensors give empty results.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "ops/integer/integer_elements.h"

namespace bitsplit::integer {

// One checked call on contiguous memory.
struct ConvCall {
  at::Tensor input, weight, bias, output;  // bias undefined for none
  ConvShape shape;
};
struct RequantizeCall {
  at::Tensor values, shift, output;  // all of one shape
  int divisor;
  int16_t low, high;
};

using ConvKernel = void (*)(const ConvCall&);
using RequantizeKernel = void (*)(const RequantizeCall&);

at::Tensor integer_conv(const at::Tensor& input, const at::Tensor& weight,
                        const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                        at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, ConvKernel kernel);

at::Tensor requantize(const at::Tensor& values, const at::Tensor& shift, int64_t divisor, int64_t low,
                      int64_t high, RequantizeKernel kernel);

}  // namespace bitsplit::integer
