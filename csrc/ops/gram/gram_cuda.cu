// The CUDA path: runs of patches are unfolded, multiplied by cuBLAS in full precision (no TF32), and added in
// float64.
#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "core/integers.h"
#include "ops/gram/gram.h"
#include "ops/gram/gram_kernels.cuh"

namespace bitsplit::gram {
namespace {

// Longest run of float32 accumulation, and the most values that are unfolded at the same time.
constexpr int64_t kRunCuda = 2048;
constexpr int64_t kUnfoldedValues = int64_t{1} << 27;
// G is computed in square blocks of the upper triangle of at most this size.
constexpr int64_t kBlockCuda = 1024;

constexpr int kThreads = 256;
unsigned grid_for(int64_t total) {
  return static_cast<unsigned>(std::min<int64_t>(divide_up(total, kThreads), 1 << 20));
}

Window window_of(const at::Tensor& features, const Geometry& geometry, int64_t groups) {
  Window w{};
  w.image_stride = features.stride(0);
  w.channel_stride = features.stride(1);
  w.channels = features.size(1) / groups;
  w.groups = groups;
  for (int k = 0; k < 3; ++k) {
    const Axis& axis = geometry[k];
    w.stride_of[k] = features.stride(k + 2);
    w.size[k] = axis.size;
    w.kernel[k] = axis.kernel;
    w.step[k] = axis.stride;
    w.padding[k] = axis.padding;
    w.dilation[k] = axis.dilation;
    w.out[k] = axis.out();
  }
  return w;
}

// [groups, columns, patches] of patches first, first + 1, ... of the batch.
at::Tensor unfold(const Problem& p, const at::Tensor& features, const Window& w, int64_t first,
                  int64_t patches) {
  const at::Tensor matrix = at::empty({w.groups, w.channels * w.taps(), patches}, features.options());
  const int64_t* positions = p.positions.defined() ? p.positions.const_data_ptr<int64_t>() : nullptr;
  AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "gram", [&] {
    unfold_kernel<scalar_t><<<grid_for(matrix.numel()), kThreads, 0, at::cuda::getCurrentCUDAStream()>>>(
        features.const_data_ptr<scalar_t>(), w, positions, p.patches_per_image(), first, patches,
        matrix.mutable_data_ptr<scalar_t>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return matrix;
}

// accumulator[:, row.., column..] += product, and its mirror image if asked.
void add_block(const at::Tensor& product, const at::Tensor& accumulator, int64_t row, int64_t column,
               bool mirror) {
  AT_DISPATCH_FLOATING_TYPES(product.scalar_type(), "gram", [&] {
    add_block_kernel<scalar_t><<<grid_for(product.numel()), kThreads, 0, at::cuda::getCurrentCUDAStream()>>>(
        product.const_data_ptr<scalar_t>(), product.size(0), product.size(1), product.size(2),
        accumulator.mutable_data_ptr<double>(), accumulator.size(1), accumulator.size(2), row, column,
        mirror);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

void add_row_sums(const at::Tensor& matrix, const at::Tensor& sums, double* squares) {
  AT_DISPATCH_FLOATING_TYPES(matrix.scalar_type(), "gram", [&] {
    row_sums_kernel<scalar_t>
        <<<static_cast<unsigned>(sums.numel()), kSumThreads, 0, at::cuda::getCurrentCUDAStream()>>>(
            matrix.const_data_ptr<scalar_t>(), matrix.size(2), sums.mutable_data_ptr<double>(), squares);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

void add_products(const Problem& p, const at::Tensor& X, const at::Tensor& Y) {
  const int64_t n = X.size(1);
  for (int64_t i = 0; i < n; i += kBlockCuda) {
    const at::Tensor rows = X.narrow(1, i, std::min(kBlockCuda, n - i));
    for (int64_t j = i; j < n; j += kBlockCuda)
      add_block(at::bmm(rows, X.narrow(1, j, std::min(kBlockCuda, n - j)).mT()), p.G, i, j, true);
    if (p.rows > 0) add_block(at::bmm(rows, Y.mT()), p.C, i, 0, false);
  }
}

void gram_cuda(const at::Tensor& x, const std::optional<at::Tensor>& y, at::IntArrayRef kernel,
               at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
               const std::optional<at::Tensor>& positions, at::Tensor G, at::Tensor C, at::Tensor sum_x,
               at::Tensor sum_y, at::Tensor sum_yy) {
  const c10::cuda::CUDAGuard device(x.device());
  const at::NoTF32Guard full_precision;
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::DispatchKey::AutocastCUDA);
  const Problem p =
      check(x, y, kernel, stride, padding, dilation, groups, positions, G, C, sum_x, sum_y, sum_yy);
  const int64_t total = p.images * p.patches_per_image();
  Geometry outputs;
  for (int k = 0; k < 3; ++k) outputs[k].size = p.geometry[k].out();
  const Window of_x = window_of(p.x, p.geometry, groups);
  const Window of_y = p.rows > 0 ? window_of(p.y, outputs, groups) : Window{};
  const int64_t run = std::clamp<int64_t>(kUnfoldedValues / (groups * (p.columns() + p.rows)), 1, kRunCuda);
  for (int64_t first = 0; first < total; first += run) {
    const int64_t patches = std::min(run, total - first);
    const at::Tensor X = unfold(p, p.x, of_x, first, patches);
    const at::Tensor Y = p.rows > 0 ? unfold(p, p.y, of_y, first, patches) : at::Tensor();
    add_products(p, X, Y);
    add_row_sums(X, p.sum_x, nullptr);
    if (p.rows > 0) add_row_sums(Y, p.sum_y, p.sum_yy.mutable_data_ptr<double>());
  }
}

}  // namespace
}  // namespace bitsplit::gram

TORCH_LIBRARY_IMPL(bitsplit, CUDA, m) { m.impl("gram", bitsplit::gram::gram_cuda); }
