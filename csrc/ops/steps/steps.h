// Quantization with a learned step (LSQ), of which random elements are left out (QDrop).
//
// step_quantize(x, scale, zero_point, qmin, qmax, drop, key)
//   Every element is dropped with probability `drop`, that is passed through as it is; the others become
//   the representable value nearest to them, exactly as out of fake_quantize (ops/quantize/quantize.h).
//   Result in x's dtype and memory format.
//
// step_quantize_backward(grad, x, ...) -> (grad_x, grad_scale)
//   grad_x: grad where x was dropped or rounds to a code in [qmin, qmax] without clamping, 0 elsewhere and at
//   NaN. grad_scale, in scale's shape and dtype: the sum over the elements that were not dropped of
//   grad * (level - x / scale) inside the range and grad * level outside, where level is the clamped code
//   less zero_point: LSQ's gradient. Which elements were dropped is made again from the key, not stored.
//
// mix(a, b, share, key)
//   b's element with probability `share`, else a's, in a's memory format. Not differentiable. The
//   elements from b are those that step_quantize drops from a with this key and share.
//
// x, a, b: any shape and strides; float32, float64, float16 or bfloat16. Computed in float64 for float64,
//   else in float32; sums are added up in float64. grad is like x, b like a: shape, dtype and device.
// scale: floating, one element. zero_point: int32, one element. qmin < qmax: both in [-128, 127], or both in
//   [0, 255]. As in quantize, a scale that is not positive and finite and a zero_point outside [qmin, qmax]
//   are errors on the CPU; on a GPU a bad scale makes every element that is not dropped NaN, and grad_scale.
// drop, share: in [0, 1]; 0 is never and 1 is always.
// key: int64 [2], (seed, iteration), on the device of x, where only the kernel reads it: a captured graph
//   draws anew when the iteration in it is raised. With share 0 nothing is drawn, and any key on the CPU or
//   beside x will do.
//
// Which elements are dropped follows from seed, iteration and position in memory alone. So tensors that are
// dropped from independently in one iteration need different seeds, and one tensor in two memory formats
// loses different elements. NaN in x shows in the result and in grad_scale. Without elements grad_scale is 0.
// The same bits for every number of threads, on CPU and GPU.
#pragma once

#include <tuple>

#include "ops/dense.h"

namespace bitsplit {

// One checked call of step_quantize or its backward on dense memory.
struct StepCall {
  at::Tensor x;
  at::Tensor scale;       // [1], the dtype computed in
  at::Tensor zero_point;  // [1], int32
  int64_t qmin;
  int64_t qmax;
  double drop;
  at::Tensor key;
  at::Tensor output;      // the result, or grad_x; x's strides
  at::Tensor grad;        // backward only; x's strides
  at::Tensor grad_scale;  // backward only
};

struct MixCall {
  at::Tensor a;
  at::Tensor b;       // a's strides
  at::Tensor output;  // a's strides
  double share;
  at::Tensor key;
};

using StepKernel = void (*)(const StepCall&);
using MixKernel = void (*)(const MixCall&);

// The operators: check, allocate, call the kernel of the device.
at::Tensor step_quantize(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                         int64_t qmin, int64_t qmax, double drop, const at::Tensor& key, StepKernel kernel);
std::tuple<at::Tensor, at::Tensor> step_quantize_backward(const at::Tensor& grad, const at::Tensor& x,
                                                          const at::Tensor& scale,
                                                          const at::Tensor& zero_point, int64_t qmin,
                                                          int64_t qmax, double drop, const at::Tensor& key,
                                                          StepKernel kernel);
at::Tensor mix(const at::Tensor& a, const at::Tensor& b, double share, const at::Tensor& key,
               MixKernel kernel);

}  // namespace bitsplit
