#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "core/integers.h"
#include "ops/rounding/rounding_dispatch.h"
#include "ops/rounding/rounding_kernels.cuh"

namespace bitsplit {
namespace {

struct Cuda {
  template <typename T>
  static void for_each(const RoundingCall& call, const RoundingStep<T>& element) {
    constexpr int64_t kThreads = 256, kMaxBlocks = 4096;
    const int64_t blocks = std::min(divide_up(call.layout.numel(), kThreads), kMaxBlocks);
    const c10::cuda::CUDAGuard guard(call.weight.device());
    rounding_step_kernel<<<blocks, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        element, call.scale.const_data_ptr<T>(), call.layout, call.schedule.const_data_ptr<float>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CUDA, m) { RoundingOperator<Cuda>::implement(m); }

}  // namespace bitsplit
