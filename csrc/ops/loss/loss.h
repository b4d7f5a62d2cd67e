// The loss of reconstructing a target, with its gradient, in one pass over memory.
//
// reconstruction_loss(output, target, weight, p, scale) -> (loss, grad)
//   loss = scale * sum of weight * |output - target|^p: float64 [], on the device of output.
//   grad = d loss / d output, in output's dtype and memory format.
//
// output: any shape and strides; float32, float64, float16 or bfloat16. Computed in float64 for float64, else
//   in float32; the terms are added up in float64.
// target, weight: shape and device of output; output's dtype, or float32 where that is a half one. Without
//   weight it is 1.
// p: positive, finite; 2 is the fastest. Other powers are within 1e-5 of their value in float32
//   (core/power.h): a difference so small that |d|^p is no normal number counts as 0.
//
// Equal values have gradient 0, also for p <= 1. NaN shows in loss and grad. Without elements the loss is 0.
// Not itself differentiable: hand grad to torch.autograd.backward(output, grad). The same bits for every
// number of threads; CPU and GPU agree bit for bit, but for float64 with p != 2.
#pragma once

#include <optional>
#include <tuple>

#include "ops/dense.h"

namespace bitsplit {

// One checked call on dense memory; all tensors but `loss` have the strides of `output`.
struct LossCall {
  at::Tensor output;
  at::Tensor target;
  at::Tensor weight;  // undefined for none
  at::Tensor grad;
  at::Tensor loss;  // float64 []
  double p;
  double scale;
};

using LossKernel = void (*)(const LossCall&);

// The operator: check, allocate, call the kernel of the device.
std::tuple<at::Tensor, at::Tensor> reconstruction_loss(const at::Tensor& output, const at::Tensor& target,
                                                       const std::optional<at::Tensor>& weight, double p,
                                                       double scale, LossKernel kernel);

}  // namespace bitsplit
