#include "ops/integer/integer.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <limits>

#include "core/integers.h"

namespace bitsplit::integer {
namespace {

constexpr int64_t kLargestDivisor = (1 << 20) - 1;

void check(const at::Tensor& tensor, const char* name, at::ScalarType type, int64_t axes,
           const at::Tensor& like) {
  TORCH_CHECK(tensor.scalar_type() == type, name, " must be ", type, ", got ", tensor.scalar_type());
  TORCH_CHECK(tensor.dim() == axes, name, " must have ", axes, " axes, got shape ", tensor.sizes());
  TORCH_CHECK(tensor.device() == like.device(), name, " must be on ", like.device(), ", got ",
              tensor.device());
}

Axes axes_of(at::IntArrayRef pair, const char* name, int64_t least) {
  const auto fits = [&](int64_t value) { return value >= least && value <= kMostSteps; };
  TORCH_CHECK(pair.size() == 2 && fits(pair[0]) && fits(pair[1]), name, " must be two numbers in [", least,
              ", ", kMostSteps, "], got ", pair);
  return {pair[0], pair[1]};
}

int64_t output_length(int64_t input, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  TORCH_CHECK(kernel >= 1, "the kernel must have 1 element or more, got ", kernel);
  const int64_t room = input + 2 * padding - dilation * (kernel - 1) - 1;
  TORCH_CHECK(room >= 0, "the kernel (", kernel, ", dilation ", dilation, ") does not fit into the input (",
              input, ", padding ", padding, ")");
  return room / stride + 1;
}

}  // namespace

at::Tensor integer_conv(const at::Tensor& input, const at::Tensor& weight,
                        const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
                        at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                        ConvKernel kernel) {
  check(input, "input", at::kShort, 4, input);
  check(weight, "weight", at::kShort, 4, input);
  TORCH_CHECK(groups >= 1 && weight.size(0) % groups == 0 && input.size(1) == weight.size(1) * groups,
              "input of shape ", input.sizes(), " does not fit weight of shape ", weight.sizes(), " in ",
              groups, " groups");
  if (bias) {
    check(*bias, "bias", at::kInt, 1, input);
    TORCH_CHECK(bias->size(0) == weight.size(0), "bias must have ", weight.size(0), " elements, got ",
                bias->size(0));
  }
  ConvCall call{.input = input.contiguous(),
                .weight = weight.contiguous(),
                .bias = bias ? bias->contiguous() : at::Tensor(),
                .output = {},
                .shape = {.images = input.size(0),
                          .groups = groups,
                          .channels = weight.size(1),
                          .filters = weight.size(0) / groups,
                          .input = {input.size(2), input.size(3)},
                          .kernel = {weight.size(2), weight.size(3)},
                          .output = {},
                          .stride = axes_of(stride, "stride", 1),
                          .padding = axes_of(padding, "padding", 0),
                          .dilation = axes_of(dilation, "dilation", 1)}};
  ConvShape& s = call.shape;
  s.output = {output_length(s.input.rows, s.kernel.rows, s.stride.rows, s.padding.rows, s.dilation.rows),
              output_length(s.input.columns, s.kernel.columns, s.stride.columns, s.padding.columns,
                            s.dilation.columns)};
  call.output =
      at::empty({s.images, weight.size(0), s.output.rows, s.output.columns}, input.options().dtype(at::kInt));
  if (call.output.numel() > 0) kernel(call);
  return call.output;
}

at::Tensor requantize(const at::Tensor& values, const at::Tensor& shift, int64_t divisor, int64_t low,
                      int64_t high, RequantizeKernel kernel) {
  check(values, "values", at::kInt, values.dim(), values);
  check(shift, "shift", at::kInt, shift.dim(), values);
  TORCH_CHECK(divisor >= 1 && divisor <= kLargestDivisor, "divisor must be 1 to ", kLargestDivisor, ", got ",
              divisor);
  using Level = std::numeric_limits<int16_t>;
  TORCH_CHECK(low <= high && low >= Level::min() && high <= Level::max(),
              "low and high must be two levels in int16, got ", low, " and ", high);
  const RequantizeCall call{.values = values.contiguous(),
                            .shift = shift.expand(values.sizes()).contiguous(),
                            .output = at::empty(values.sizes(), values.options().dtype(at::kShort)),
                            .divisor = static_cast<int>(divisor),
                            .low = static_cast<int16_t>(low),
                            .high = static_cast<int16_t>(high)};
  if (values.numel() > 0) kernel(call);
  return call.output;
}

TORCH_LIBRARY_FRAGMENT(bitsplit, m) {
  m.def(
      "integer_conv(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, "
      "int groups) -> Tensor");
  m.def("requantize(Tensor values, Tensor shift, int divisor, int low, int high) -> Tensor");
}

}  // namespace bitsplit::integer
