// Launches of the integer kernels.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "ops/integer/integer.h"
#include "ops/integer/integer_kernels.cuh"

namespace bitsplit::integer {
namespace {

using at::Tensor;

unsigned blocks_of(int64_t numel) { return static_cast<unsigned>((numel + kThreads - 1) / kThreads); }

void conv_cuda(const ConvCall& call) {
  const c10::cuda::CUDAGuard guard(call.input.device());
  conv_kernel<<<blocks_of(call.shape.outputs()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      call.shape, call.input.const_data_ptr<int16_t>(), call.weight.const_data_ptr<int16_t>(),
      call.bias.defined() ? call.bias.const_data_ptr<int32_t>() : nullptr,
      call.output.mutable_data_ptr<int32_t>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void requantize_cuda(const RequantizeCall& call) {
  const c10::cuda::CUDAGuard guard(call.values.device());
  const int64_t numel = call.values.numel();
  requantize_kernel<<<blocks_of(numel), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      call.values.const_data_ptr<int32_t>(), call.shift.const_data_ptr<int32_t>(),
      call.output.mutable_data_ptr<int16_t>(), numel, call.divisor, call.low, call.high);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

TORCH_LIBRARY_IMPL(bitsplit, CUDA, m) {
  m.impl("integer_conv",
         [](const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
            at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
           return integer_conv(input, weight, bias, stride, padding, dilation, groups, conv_cuda);
         });
  m.impl("requantize",
         [](const Tensor& values, const Tensor& shift, int64_t divisor, int64_t low, int64_t high) {
           return requantize(values, shift, divisor, low, high, requantize_cuda);
         });
}

}  // namespace
}  // namespace bitsplit::integer
