#include "ops/steps/steps.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "ops/grid_checks.h"

namespace bitsplit {
namespace {

void check_one(const at::Tensor& value, const char* name, const at::Tensor& x) {
  TORCH_CHECK(value.numel() == 1 && value.device() == x.device(), name,
              " must have 1 element on the device of x, ", x.device(), ", got ", value.numel(), " on ",
              value.device());
}

// The key as its kernel reads it.
at::Tensor checked_key(const at::Tensor& key, double share, const char* share_name, const at::Tensor& x) {
  TORCH_CHECK(share >= 0 && share <= 1, share_name, " must lie in [0, 1], got ", share);
  if (share == 0) return key;
  TORCH_CHECK(key.scalar_type() == at::kLong && key.numel() == 2 && key.device() == x.device(),
              "key must be int64 [2] (seed, iteration) on the device of x, ", x.device(), ", got ",
              key.scalar_type(), " ", key.sizes(), " ", key.device());
  return key.contiguous();
}

// The caller adds what the backward needs.
StepCall checked_call(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                      int64_t qmin, int64_t qmax, double drop, const at::Tensor& key) {
  check_floating(x, "x");
  check_floating(scale, "scale");
  check_one(scale, "scale", x);
  check_one(zero_point, "zero_point", x);
  TORCH_CHECK(zero_point.scalar_type() == at::kInt, "zero_point must be int32, got ",
              zero_point.scalar_type());
  check_level_range(qmin, qmax);
  StepCall call{.x = dense(x),
                .scale = scale.reshape(-1).to(compute_type(x)).contiguous(),
                .zero_point = zero_point.reshape(-1).contiguous(),
                .qmin = qmin,
                .qmax = qmax,
                .drop = drop,
                .key = checked_key(key, drop, "drop", x),
                .output = {},
                .grad = {},
                .grad_scale = {}};
  check_grids(call.scale, call.zero_point, qmin, qmax);
  call.output = at::empty_like(call.x);
  return call;
}

}  // namespace

at::Tensor step_quantize(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                         int64_t qmin, int64_t qmax, double drop, const at::Tensor& key, StepKernel kernel) {
  const StepCall call = checked_call(x, scale, zero_point, qmin, qmax, drop, key);
  if (x.numel() > 0) kernel(call);
  return call.output;
}

std::tuple<at::Tensor, at::Tensor> step_quantize_backward(const at::Tensor& grad, const at::Tensor& x,
                                                          const at::Tensor& scale,
                                                          const at::Tensor& zero_point, int64_t qmin,
                                                          int64_t qmax, double drop, const at::Tensor& key,
                                                          StepKernel kernel) {
  StepCall call = checked_call(x, scale, zero_point, qmin, qmax, drop, key);
  check_like(grad, "grad", x, "x");
  call.grad = with_strides_of(grad, call.x);
  call.grad_scale = at::empty(scale.sizes(), scale.options());
  if (x.numel() > 0)
    kernel(call);
  else
    call.grad_scale.zero_();
  return {call.output, call.grad_scale};
}

at::Tensor mix(const at::Tensor& a, const at::Tensor& b, double share, const at::Tensor& key,
               MixKernel kernel) {
  check_floating(a, "a");
  check_like(b, "b", a, "a");
  MixCall call{
      .a = dense(a), .b = {}, .output = {}, .share = share, .key = checked_key(key, share, "share", a)};
  call.b = with_strides_of(b, call.a);
  call.output = at::empty_like(call.a);
  if (a.numel() > 0) kernel(call);
  return call.output;
}

TORCH_LIBRARY_FRAGMENT(bitsplit, m) {
  m.def(
      "step_quantize(Tensor x, Tensor scale, Tensor zero_point, int qmin, int qmax, float drop, Tensor key) "
      "-> Tensor");
  m.def(
      "step_quantize_backward(Tensor grad, Tensor x, Tensor scale, Tensor zero_point, int qmin, int qmax, "
      "float drop, Tensor key) -> (Tensor grad_x, Tensor grad_scale)");
  m.def("mix(Tensor a, Tensor b, float share, Tensor key) -> Tensor");
}

}  // namespace bitsplit
