#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "core/integers.h"
#include "ops/quantize/quantize_dispatch.h"
#include "ops/quantize/quantize_kernels.cuh"

namespace bitsplit {
namespace {

struct CudaLoop {
  template <typename T, typename Element>
  static void for_each(const QuantizeCall& call, const Element& element) {
    constexpr int64_t kThreads = 256, kElementsPerBlock = 4 * kThreads, kMaxBlocks = 4096;
    const int64_t blocks = divide_up(call.layout.numel(), kElementsPerBlock);
    const ChannelGrids<T> grids{call.scale.const_data_ptr<T>(), call.zero_point.const_data_ptr<int32_t>(),
                                T(call.qmin), T(call.qmax)};
    const c10::cuda::CUDAGuard guard(call.input.device());
    for_each_element_kernel<<<std::min<int64_t>(blocks, kMaxBlocks), kThreads, 0,
                              c10::cuda::getCurrentCUDAStream()>>>(element, grids, call.layout);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CUDA, m) { QuantizeOperators<CudaLoop>::implement(m); }

}  // namespace bitsplit
