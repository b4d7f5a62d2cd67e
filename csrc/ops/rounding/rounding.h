// Learned rounding of the weights of all layers of a unit: one iteration in one pass over memory.
//
//   soft weight = scale * (base + h(v)),  h in [0, 1]                      (core/soft_rounding.h)
//
// rounding_step(weights!, grads, v!, mean!, square!, base, scale, axis, schedule)
//   For every layer, element by element: from the gradient of the soft weight and that of the regulariser
//   the gradient of v; Adam's step on v; the next soft weight into `weights`.
//   Lists of equal length, one entry a layer (or a part of one). weights: float32 or float64, dense (no gaps
//   in memory); v, mean, square: its shape, dtype and strides. grads: its shape and dtype. base: int16, its
//   shape and strides: the lower of the two levels, relative to the zero point. scale: the weight's dtype,
//   one element or one per channel along `axis` of that layer. schedule: float32 [4], on the device of the
//   weights: learning rate / (1 - beta1^t), 1 / (1 - beta2^t), weight of the regulariser, its exponent b
//   >= 2. It is read on the device, so that an iteration can be recorded and replayed with other values. CPU
//   and GPU agree bit for bit in float32, for every number of threads.
#pragma once

#include "ops/dense.h"

namespace bitsplit {

// One checked layer.
struct RoundingCall {
  at::Tensor weight, grad, v, mean, square, base, scale;
  ChannelLayout layout;
  at::Tensor schedule;
};

using RoundingKernel = void (*)(const RoundingCall&);

void rounding_step(at::TensorList weights, at::TensorList grads, at::TensorList v, at::TensorList mean,
                   at::TensorList square, at::TensorList base, at::TensorList scale, at::IntArrayRef axis,
                   const at::Tensor& schedule, RoundingKernel kernel);

}  // namespace bitsplit
