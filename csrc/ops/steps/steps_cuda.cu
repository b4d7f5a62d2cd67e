#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "core/integers.h"
#include "ops/steps/steps_dispatch.h"
#include "ops/steps/steps_kernels.cuh"

namespace bitsplit {
namespace {

constexpr int64_t kThreads = 256;

// Blocks of an element-wise kernel.
int64_t blocks_for(int64_t numel) {
  constexpr int64_t kElementsPerBlock = 4 * kThreads, kMaxBlocks = 4096;
  return std::min(divide_up(numel, kElementsPerBlock), kMaxBlocks);
}

struct CudaSteps {
  template <typename T, typename Element, typename Rule>
  static void quantize(const StepCall& call, const Element& element, const ChannelGrids<T>& grids,
                       const Rule& rule) {
    const c10::cuda::CUDAGuard guard(call.x.device());
    const int64_t numel = call.x.numel();
    step_quantize_kernel<<<blocks_for(numel), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        element, grids, rule, numel);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  template <typename T, typename Element, typename Rule>
  static void backward(const StepCall& call, const Element& element, const ChannelGrids<T>& grids,
                       const Rule& rule) {
    const c10::cuda::CUDAGuard guard(call.x.device());
    const auto stream = c10::cuda::getCurrentCUDAStream();
    const int64_t numel = call.x.numel(), chunks = sum_chunks(numel);
    const at::Tensor sums = at::empty({chunks}, call.x.options().dtype(at::kDouble));
    step_backward_kernel<<<chunks, kSumLanes, 0, stream>>>(element, grids, rule, numel,
                                                           sums.mutable_data_ptr<double>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    const auto type = call.grad_scale.scalar_type();
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, type, "step_backward", [&] {
      join_sums_kernel<<<1, kSumLanes, 0, stream>>>(sums.const_data_ptr<double>(), chunks, 1.0,
                                                    call.grad_scale.mutable_data_ptr<scalar_t>());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }

  template <typename Element, typename Rule>
  static void mix(const MixCall& call, const Element& element, const Rule& rule) {
    const c10::cuda::CUDAGuard guard(call.a.device());
    const int64_t numel = call.a.numel();
    mix_kernel<<<blocks_for(numel), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(element, rule, numel);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CUDA, m) { StepOperators<CudaSteps>::implement(m); }

}  // namespace bitsplit
