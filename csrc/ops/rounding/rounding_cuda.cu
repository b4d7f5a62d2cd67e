#include <ATen/Dispatch.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "ops/rounding/rounding.h"
#include "ops/rounding/rounding_kernels.cuh"

namespace bitsplit {
namespace {

void step_cuda(const RoundingCall& call) {
  constexpr int64_t kThreads = 256, kMaxBlocks = 4096;
  const int64_t blocks = std::min((call.layout.numel() + kThreads - 1) / kThreads, kMaxBlocks);
  const c10::cuda::CUDAGuard guard(call.weight.device());
  AT_DISPATCH_FLOATING_TYPES(call.weight.scalar_type(), "rounding_step", [&] {
    const RoundingStep<scalar_t> element{
        call.weight.mutable_data_ptr<scalar_t>(), call.grad.const_data_ptr<scalar_t>(),
        call.v.mutable_data_ptr<scalar_t>(),      call.mean.mutable_data_ptr<scalar_t>(),
        call.square.mutable_data_ptr<scalar_t>(), call.base.const_data_ptr<int16_t>()};
    rounding_step_kernel<<<blocks, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        element, call.scale.const_data_ptr<scalar_t>(), call.layout, call.schedule.const_data_ptr<float>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

void rounding_step_cuda(at::TensorList weights, at::TensorList grads, at::TensorList v, at::TensorList mean,
                        at::TensorList square, at::TensorList base, at::TensorList scale,
                        at::IntArrayRef axis, const at::Tensor& schedule) {
  rounding_step(weights, grads, v, mean, square, base, scale, axis, schedule, step_cuda);
}

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CUDA, m) { m.impl("rounding_step", rounding_step_cuda); }

}  // namespace bitsplit
