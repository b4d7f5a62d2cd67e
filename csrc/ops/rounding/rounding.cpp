#include "ops/rounding/rounding.h"

#include <torch/library.h>

namespace bitsplit {
namespace {

void check_state(const at::Tensor& other, const at::Tensor& weight, const char* name, at::ScalarType type) {
  TORCH_CHECK(
      other.sizes() == weight.sizes() && other.scalar_type() == type && other.device() == weight.device(),
      name, " must have the shape and device of the weight, ", weight.sizes(), " ", weight.device(),
      ", and be ", type, ", got ", other.sizes(), " ", other.device(), " ", other.scalar_type());
}

RoundingCall checked_layer(const RoundingCall& layer, int64_t axis) {
  const at::Tensor& weight = layer.weight;
  const auto type = weight.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kDouble, "weights must be float32 or float64, got ", type);
  TORCH_CHECK(weight.is_non_overlapping_and_dense(), "weights must fill their memory without gaps");
  check_axis(weight, axis);
  RoundingCall call = layer;
  check_state(layer.grad, weight, "grads", type);
  call.grad = with_strides_of(layer.grad, weight);
  const std::tuple<const at::Tensor*, const char*, at::ScalarType> states[] = {
      {&layer.v, "v", type},
      {&layer.mean, "mean", type},
      {&layer.square, "square", type},
      {&layer.base, "base", at::kShort}};
  for (const auto& [state, name, dtype] : states) {
    check_state(*state, weight, name, dtype);
    TORCH_CHECK(state->strides() == weight.strides(), name, " must have the strides of the weight, ",
                weight.strides(), ", got ", state->strides());
  }
  const int64_t channels = axis < 0 ? 1 : weight.size(axis);
  TORCH_CHECK(layer.scale.scalar_type() == type && layer.scale.device() == weight.device(),
              "scale must have the dtype and device of the weight");
  TORCH_CHECK(layer.scale.numel() == 1 || layer.scale.numel() == channels,
              "scale must have 1 element or one per channel (", channels, " along axis ", axis, "), got ",
              layer.scale.numel());
  call.scale = layer.scale.reshape(-1).contiguous();
  if (weight.numel() > 0) call.layout = channel_layout(weight, call.scale.numel() == 1 ? -1 : axis);
  return call;
}

}  // namespace

void rounding_step(at::TensorList weights, at::TensorList grads, at::TensorList v, at::TensorList mean,
                   at::TensorList square, at::TensorList base, at::TensorList scale, at::IntArrayRef axis,
                   const at::Tensor& schedule, RoundingKernel kernel) {
  for (size_t count :
       {grads.size(), v.size(), mean.size(), square.size(), base.size(), scale.size(), axis.size()})
    TORCH_CHECK(count == weights.size(), "all lists must be as long as weights, ", weights.size(), ", got ",
                count);
  TORCH_CHECK(schedule.scalar_type() == at::kFloat && schedule.numel() == 4 && schedule.is_contiguous(),
              "schedule must be a contiguous float32 tensor of 4 elements");
  for (size_t k = 0; k < weights.size(); ++k) {
    TORCH_CHECK(schedule.device() == weights[k].device(), "schedule must be on the device of the weights, ",
                weights[k].device(), ", got ", schedule.device());
    const RoundingCall call = checked_layer({.weight = weights[k],
                                             .grad = grads[k],
                                             .v = v[k],
                                             .mean = mean[k],
                                             .square = square[k],
                                             .base = base[k],
                                             .scale = scale[k],
                                             .layout = {},
                                             .schedule = schedule},
                                            axis[k]);
    if (call.weight.numel() > 0) kernel(call);
    for (const at::Tensor& changed : {weights[k], v[k], mean[k], square[k]}) mark_changed(changed);
  }
}

TORCH_LIBRARY_FRAGMENT(bitsplit, m) {
  m.def(
      "rounding_step(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] v, Tensor(c!)[] mean, "
      "Tensor(d!)[] square, Tensor[] base, Tensor[] scale, int[] axis, Tensor schedule) -> ()");
}

}  // namespace bitsplit
