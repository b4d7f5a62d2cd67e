#include "ops/loss/loss.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>

namespace bitsplit {
namespace {

void check_target(const at::Tensor& target, const at::Tensor& output) {
  const auto type = target.scalar_type();
  TORCH_CHECK(target.sizes() == output.sizes() && target.device() == output.device() &&
                  (type == output.scalar_type() || type == compute_type(output)),
              "target must have the shape and device of output, ", output.sizes(), " ", output.device(),
              ", and dtype ", output.scalar_type(), " or ", compute_type(output), ", got ", target.sizes(),
              " ", target.device(), " ", type);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> reconstruction_loss(const at::Tensor& output, const at::Tensor& target,
                                                       const std::optional<at::Tensor>& weight, double p,
                                                       double scale, LossKernel kernel) {
  check_floating(output, "output");
  check_target(target, output);
  if (weight) check_like(*weight, "weight", target, "target");
  TORCH_CHECK(p > 0 && std::isfinite(p), "p must be positive and finite, got ", p);
  TORCH_CHECK(std::isfinite(scale), "scale must be finite, got ", scale);
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
