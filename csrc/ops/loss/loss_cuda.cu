#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "ops/loss/loss_dispatch.h"
#include "ops/loss/loss_kernels.cuh"

namespace bitsplit {
namespace {

struct CudaLoss {
  template <typename T, typename Term>
  static void store_sum(const LossCall& call, const Term& term) {
    const c10::cuda::CUDAGuard guard(call.output.device());
    const auto stream = c10::cuda::getCurrentCUDAStream();
    const int64_t numel = call.output.numel(), chunks = sum_chunks(numel);
    const at::Tensor sums = at::empty({chunks}, call.loss.options());
    loss_kernel<T><<<chunks, kSumLanes, 0, stream>>>(term, numel, sums.mutable_data_ptr<double>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    join_sums_kernel<<<1, kSumLanes, 0, stream>>>(sums.const_data_ptr<double>(), chunks, call.scale,
                                                  call.loss.mutable_data_ptr<double>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CUDA, m) { LossOperator<CudaLoss>::implement(m); }

}  // namespace bitsplit
