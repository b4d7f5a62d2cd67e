#include "ops/loss/loss.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>

namespace bitsplit {
namespace {

// As check_like, but that float32 is right beside a half output too.
void check_target(const at::Tensor& target, const at::Tensor& output) {
  const auto type = target.scalar_type(), own = output.scalar_type(), wide = compute_type(output);
  TORCH_CHECK(
      target.sizes() == output.sizes() && target.device() == output.device() && (type == own || type == wide),
      "target must have the shape, dtype", own == wide ? "" : " (or Float)", " and device of output, ",
      output.sizes(), " ", own, " ", output.device(), ", got ", target.sizes(), " ", type, " ",
      target.device());
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> reconstruction_loss(const at::Tensor& output, const at::Tensor& target,
                                                       const std::optional<at::Tensor>& weight, double p,
                                                       double scale, LossKernel kernel) {
  check_floating(output, "output");
  check_target(target, output);
  if (weight) check_like(*weight, "weight", target, "target");
  const auto finite = [&](double value) {
    return std::isfinite(compute_type(output) == at::kFloat ? static_cast<float>(value) : value);
  };
  TORCH_CHECK(p > 0 && finite(p), "p must be positive and finite, got ", p);
  TORCH_CHECK(finite(scale) && finite(p * scale), "scale, and p times it, must be finite, got ", scale);
  LossCall call{
      .output = dense(output), .target = {}, .weight = {}, .grad = {}, .loss = {}, .p = p, .scale = scale};
  call.grad = at::empty_like(call.output);
  const auto options = output.options().dtype(at::kDouble);
  if (output.numel() == 0) return {at::zeros({}, options), call.grad};
  call.target = with_strides_of(target, call.output);
  if (weight) call.weight = with_strides_of(*weight, call.output);
  call.loss = at::empty({}, options);
  kernel(call);
  return {call.loss, call.grad};
}

TORCH_LIBRARY_FRAGMENT(bitsplit, m) {
  m.def(
      "reconstruction_loss(Tensor output, Tensor target, Tensor? weight, float p, float scale) -> "
      "(Tensor loss, Tensor grad)");
}

}  // namespace bitsplit
