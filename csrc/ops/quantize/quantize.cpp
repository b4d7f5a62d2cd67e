#include "ops/quantize/quantize.h"

#include <torch/library.h>

#include "ops/grid_checks.h"

namespace bitsplit {
namespace {

void check_shapes(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point, int64_t axis) {
  check_axis(x, axis);
  check_floating(scale, "scale");
  TORCH_CHECK(zero_point.scalar_type() == at::kInt, "zero_point must be int32, got ",
              zero_point.scalar_type());
  TORCH_CHECK(scale.device() == x.device() && zero_point.device() == x.device(),
              "scale and zero_point must be on the device of the input, ", x.device(), ", got ",
              scale.device(), " and ", zero_point.device());
  const int64_t channels = axis < 0 ? 1 : x.size(axis);
  TORCH_CHECK(scale.numel() == 1 || scale.numel() == channels,
              "scale must have 1 element or one per channel (", channels, " along axis ", axis, "), got ",
              scale.numel());
  TORCH_CHECK(zero_point.numel() == scale.numel(), "zero_point must have as many elements as scale, ",
              scale.numel(), ", got ", zero_point.numel());
}

// Everything that the operators have in common; the caller adds grad and output.
QuantizeCall checked_call(const at::Tensor& input, const at::Tensor& scale, const at::Tensor& zero_point,
                          int64_t axis, int64_t qmin, int64_t qmax, at::ScalarType compute) {
  check_level_range(qmin, qmax);
  check_shapes(input, scale, zero_point, axis);
  QuantizeCall call{.input = dense(input),
                    .scale = scale.reshape(-1).to(compute).contiguous(),
                    .zero_point = zero_point.reshape(-1).contiguous(),
                    .layout = {},
                    .qmin = qmin,
                    .qmax = qmax};
  check_grids(call.scale, call.zero_point, qmin, qmax);
  if (input.numel() > 0) call.layout = channel_layout(call.input, scale.numel() == 1 ? -1 : axis);
  return call;
}

at::Tensor run(const QuantizeCall& call, QuantizeKernel kernel) {
  if (call.input.numel() > 0) kernel(call);
  return call.output;
}

}  // namespace

at::Tensor fake_quantize(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                         int64_t axis, int64_t qmin, int64_t qmax, QuantizeKernel kernel) {
  check_floating(x, "x");
  QuantizeCall call = checked_call(x, scale, zero_point, axis, qmin, qmax, compute_type(x));
  call.output = at::empty_like(call.input);
  return run(call, kernel);
}

at::Tensor fake_quantize_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
                                  const at::Tensor& zero_point, int64_t axis, int64_t qmin, int64_t qmax,
                                  QuantizeKernel kernel) {
  check_floating(x, "x");
  check_like(grad, "grad", x, "x");
  QuantizeCall call = checked_call(x, scale, zero_point, axis, qmin, qmax, compute_type(x));
  call.grad = with_strides_of(grad, call.input);
  call.output = at::empty_like(call.input);
  return run(call, kernel);
}

at::Tensor quantize(const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point, int64_t axis,
                    int64_t qmin, int64_t qmax, QuantizeKernel kernel) {
  check_floating(x, "x");
  QuantizeCall call = checked_call(x, scale, zero_point, axis, qmin, qmax, compute_type(x));
  call.output = at::empty_like(call.input, call.input.options().dtype(qmin < 0 ? at::kChar : at::kByte));
  return run(call, kernel);
}

at::Tensor dequantize(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& zero_point,
                      int64_t axis, QuantizeKernel kernel) {
  const bool is_signed = codes.scalar_type() == at::kChar;
  TORCH_CHECK(is_signed || codes.scalar_type() == at::kByte, "codes must be int8 or uint8, got ",
              codes.scalar_type());
  TORCH_CHECK(scale.scalar_type() == at::kFloat || scale.scalar_type() == at::kDouble,
              "scale must be float32 or float64, got ", scale.scalar_type());
  const int64_t qmin = is_signed ? -128 : 0;
  QuantizeCall call = checked_call(codes, scale, zero_point, axis, qmin, qmin + 255, scale.scalar_type());
  call.output = at::empty_like(call.input, call.input.options().dtype(scale.scalar_type()));
  return run(call, kernel);
}

TORCH_LIBRARY_FRAGMENT(bitsplit, m) {
  m.def("fake_quantize(Tensor x, Tensor scale, Tensor zero_point, int axis, int qmin, int qmax) -> Tensor");
  m.def(
      "fake_quantize_backward(Tensor grad, Tensor x, Tensor scale, Tensor zero_point, int axis, int qmin, "
      "int qmax) -> Tensor");
  m.def("quantize(Tensor x, Tensor scale, Tensor zero_point, int axis, int qmin, int qmax) -> Tensor");
  m.def("dequantize(Tensor codes, Tensor scale, Tensor zero_point, int axis) -> Tensor");
}

}  // namespace bitsplit
