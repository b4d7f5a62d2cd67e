// Launches of the integer kernels.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "core/integers.h"
#include "ops/integer/integer_dispatch.h"
#include "ops/integer/integer_kernels.cuh"

namespace bitsplit::integer {
namespace {

unsigned blocks_of(int64_t numel) { return static_cast<unsigned>(divide_up(numel, kThreads)); }

struct Cuda {
  static void conv(const ConvCall& call) {
    const c10::cuda::CUDAGuard guard(call.input.device());
    conv_kernel<<<blocks_of(call.shape.outputs()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        call.shape, call.input.const_data_ptr<int16_t>(), call.weight.const_data_ptr<int16_t>(),
        call.bias.defined() ? call.bias.const_data_ptr<int32_t>() : nullptr,
        call.output.mutable_data_ptr<int32_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  static void requantize(const RequantizeCall& call) {
    const c10::cuda::CUDAGuard guard(call.values.device());
    const int64_t numel = call.values.numel();
    requantize_kernel<<<blocks_of(numel), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        call.values.const_data_ptr<int32_t>(), call.shift.const_data_ptr<int32_t>(),
        call.output.mutable_data_ptr<int16_t>(), numel, call.divisor, call.low, call.high);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CUDA, m) { implement<Cuda>(m); }

}  // namespace bitsplit::integer
