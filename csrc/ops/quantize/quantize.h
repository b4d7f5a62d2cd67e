// Uniform quantization with given scale and zero point: the four element-wise operators of the family.
//
//   code  = clamp(round_half_even(x / scale) + zero_point, qmin, qmax)
//   value = (code - zero_point) * scale
//
// x: any shape and strides; float32, float64, float16 or bfloat16. Results have x's shape and memory format.
// scale: floating, numel 1 (per tensor) or the size of `axis` (per channel); zero_point: int32, like scale.
//   numel 1 needs no axis (-1). Computed in float64 for float64 x, else in float32, with one IEEE division.
// qmin < qmax: both in [-128, 127], or both in [0, 255].
//
// Each scale is positive and finite and each zero point in [qmin, qmax]. That is checked for CPU tensors
// only, because looking at values on a GPU would wait for it. There a bad scale makes its whole channel NaN
// (the code of zero out of `quantize`), and any zero point is used as it is.
//
// NaN in x: NaN out of fake_quantize, the code of zero out of `quantize` (find it with channel_range first).
// +-Inf clamps. Empty x gives an empty result. CPU and GPU agree bit for bit, for every number of threads.
//
// fake_quantize(x, ...)
//   The value of every x, in x's dtype.
//
// fake_quantize_backward(grad, x, ...)
//   grad where x rounds to a code in [qmin, qmax] without clamping, 0 elsewhere and at NaN.
//
// quantize(x, ...)
//   Codes: int8 when qmin < 0, else uint8.
//
// dequantize(codes, scale, zero_point, axis)
//   The values of int8 or uint8 codes in scale's dtype (float32 or float64). Right for every code, so it
//   needs no qmin and qmax. After `quantize` in the same dtype: the very bits of fake_quantize.
#pragma once

#include "ops/dense.h"

namespace bitsplit {

// One checked call on dense memory, as the kernels of both devices see it.
struct QuantizeCall {
  at::Tensor input;       // x or codes
  at::Tensor grad;        // fake_quantize_backward only; input's strides and dtype
  at::Tensor output;      // input's strides
  at::Tensor scale;       // [layout.channels], the dtype computed in
  at::Tensor zero_point;  // [layout.channels], int32
  ChannelLayout layout;
  int64_t qmin;
  int64_t qmax;
};

using QuantizeKernel = void (*)(const QuantizeCall&);

// The operators: check, allocate, call the kernel of the device.
at::Tensor fake_quantize(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                         int64_t axis, int64_t qmin, int64_t qmax, QuantizeKernel kernel);
at::Tensor fake_quantize_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
                                  const at::Tensor& zero_point, int64_t axis, int64_t qmin, int64_t qmax,
                                  QuantizeKernel kernel);
at::Tensor quantize(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point, int64_t axis,
                    int64_t qmin, int64_t qmax, QuantizeKernel kernel);
at::Tensor dequantize(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& zero_point,
                      int64_t axis, QuantizeKernel kernel);

}  // namespace bitsplit
