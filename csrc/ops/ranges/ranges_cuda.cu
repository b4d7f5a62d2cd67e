#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "core/integers.h"
#include "ops/ranges/lp_search_kernels.cuh"
#include "ops/ranges/ranges_dispatch.h"
#include "ops/ranges/ranges_kernels.cuh"

namespace bitsplit {
namespace {

void check_blocks(int64_t blocks) {
  TORCH_CHECK(blocks < (int64_t{1} << 31), "x is too large for one call: it needs ", blocks,
              " blocks of threads, 2^31 - 1 are possible");
}

// Short runs of a channel (channels_last, say) would be read one element at a time: those are copied to rows
// first.
RangeCall with_long_runs(const RangeCall& call) {
  const ChannelLayout& layout = call.layout;
  if (layout.inner >= 32 || layout.outer == 1) return call;
  const at::Tensor memory = call.x.as_strided({layout.outer, layout.channels, layout.inner},
                                              {layout.channels * layout.inner, layout.inner, 1});
  const at::Tensor rows = memory.transpose(0, 1).contiguous();
  return {rows, {1, layout.channels, layout.outer * layout.inner}, call.min, call.max};
}

struct Cuda {
  template <typename T, typename Storage>
  static void channel_range(const RangeCall& given) {
    const c10::cuda::CUDAGuard guard(given.x.device());
    const RangeCall call = with_long_runs(given);
    const ChannelLayout layout = call.layout;
    // Enough blocks to fill a card, the same number on every card.
    const int64_t size = layout.outer * layout.inner;
    const int64_t segments = std::min(divide_up(size, 4096), divide_up(4096, layout.channels));
    check_blocks(layout.channels * segments);
    const auto stream = c10::cuda::getCurrentCUDAStream();
    const at::Tensor partial = at::empty({2, layout.channels * segments},
                                         call.x.options().dtype(c10::CppTypeToScalarType<T>::value));
    T* min = partial.mutable_data_ptr<T>();
    T* max = min + layout.channels * segments;
    segment_range_kernel<<<layout.channels * segments, kRangeThreads, 0, stream>>>(
        call.x.const_data_ptr<Storage>(), layout, segments, divide_up(size, segments), min, max);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    join_ranges_kernel<<<layout.channels, kRangeThreads, 0, stream>>>(
        min, max, segments, call.min.mutable_data_ptr<Storage>(), call.max.mutable_data_ptr<Storage>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  template <typename T, typename Storage>
  static void histogram(const HistogramCall& call) {
    constexpr int64_t kThreads = 512, kMaxBlocks = 1024;
    const c10::cuda::CUDAGuard guard(call.x.device());
    const int bins = static_cast<int>(call.counts.numel());
    const int64_t blocks = std::min(divide_up(call.x.numel(), 16 * kThreads), kMaxBlocks);
    auto* counts = reinterpret_cast<unsigned long long*>(call.counts.mutable_data_ptr<int64_t>());
    histogram_kernel<<<blocks, kThreads, bins * sizeof(unsigned), c10::cuda::getCurrentCUDAStream()>>>(
        call.x.const_data_ptr<Storage>(), call.x.numel(), T(call.low), T(call.cells_per_unit), bins, counts);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  template <typename T, typename Storage, typename Loss>
  static void search(const SearchCall& call, Loss loss) {
    const c10::cuda::CUDAGuard guard(call.rows.device());
    const int64_t channels = call.rows.size(0), size = call.rows.size(1);
    const int64_t segments = divide_up(size, kSearchSegment);
    check_blocks(channels * segments);
    const auto stream = c10::cuda::getCurrentCUDAStream();
    const at::Tensor errors = at::empty({channels, segments, call.candidates}, call.error.options());
    segment_errors_kernel<T><<<channels * segments, dim3(kSearchLanes, kSearchParts), 0, stream>>>(
        call.rows.const_data_ptr<Storage>(), size, segments, call.space(), loss,
        errors.mutable_data_ptr<double>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    best_candidate_kernel<<<channels, kBestThreads, 0, stream>>>(
        errors.const_data_ptr<double>(), segments, call.space(), call.scale.mutable_data_ptr<T>(),
        call.zero_point.mutable_data_ptr<int32_t>(), call.error.mutable_data_ptr<double>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CUDA, m) {
  RangeOperators<Cuda>::implement(m);
  SearchOperator<Cuda>::implement(m);
}

}  // namespace bitsplit
