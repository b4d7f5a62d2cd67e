// Launches of the split kernels. What a solved block means for the other columns is one batched matrix
// product.
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <limits>

#include "core/integers.h"
#include "ops/split/split_dispatch.h"
#include "ops/split/split_kernels.cuh"
#include "ops/split/split_search_kernels.cuh"
#include "ops/split/split_weights_kernels.cuh"

namespace bitsplit::split {
namespace {

using at::Tensor;

constexpr int kWarpThreads = kWarpsPerBlock * kWarp;
constexpr int kSearchThreads = 256;

dim3 warp_grid(int64_t rows, int64_t groups) { return dim3(divide_up(rows, kWarpsPerBlock), groups); }

// target -= left @ right, in full precision whatever the process allows.
void subtract_product(const Tensor& target, const Tensor& left, const Tensor& right) {
  const at::NoTF32Guard full_precision;
  target.baddbmm_(left, right, 1, -1);
}

// The columns of one block of `excess` or `amounts` times those rows of `matrix`, off `target`.
void pass_on(const Tensor& target, const Tensor& amounts, const Tensor& matrix, int64_t first, int64_t from) {
  const int64_t columns = matrix.size(1), width = std::min<int64_t>(kColumns, columns - first);
  subtract_product(target.narrow(2, from, columns - from), amounts.narrow(2, 0, width),
                   matrix.narrow(1, first, width).narrow(2, from, columns - from));
}

// The rows of `matrix` [g, M, N] once for each start, in units of `scale` [g, R], in the dtype of `matrix`.
Tensor in_units(const Tensor& matrix, const Tensor& scale) {
  const int64_t starts = scale.size(1) / matrix.size(1);
  return matrix.to(at::kDouble).repeat({1, starts, 1}).div_(scale.unsqueeze(2)).to(matrix.scalar_type());
}

Tensor split_into_planes(const Tensor& codes, int planes) {
  if (planes == 1) return codes.clone().unsqueeze(0);
  const Tensor digits = at::empty({planes, codes.size(0), codes.size(1), codes.size(2)}, codes.options());
  const Tensor magnitude = codes.abs(), sign = codes.sign();
  for (int plane = 0; plane < planes; ++plane)
    digits.select(0, plane).copy_(magnitude.bitwise_right_shift(plane).bitwise_and_(1).mul_(sign));
  return digits;
}

// What a descent keeps on the device (DescentState says what of what size). Rows are in units of the scale
// they start with, so that tiny rows do not underflow in float32.
template <class T>
struct DescentTensors {
  Tensor gram, cross, residual, codes, digits, levels, scale, explained, active, moved, amounts,
      inverse_diagonal;

  DescentTensors(const Tensor& start, const Tensor& unit, const Tensor& gram_given, const Tensor& cross_given,
                 const Tensor& levels, int planes)
      : gram(gram_given.to(cross_given.scalar_type())),
        cross(in_units(cross_given.transpose(1, 2), unit)),
        residual(cross.clone()),
        codes(start.clone()),
        digits(split_into_planes(start, planes)),
        levels(levels),
        scale(at::ones_like(unit)),
        explained(at::empty_like(unit)),
        active(at::ones_like(unit, unit.options().dtype(at::kInt))),
        moved(at::empty_like(active)),
        amounts(at::empty({start.size(0), start.size(1), kColumns}, cross.options())) {
    const Tensor diagonal = gram.diagonal(0, 1, 2);
    inverse_diagonal = at::where(diagonal.ge(std::numeric_limits<T>::min()), diagonal.reciprocal(),
                                 at::zeros_like(diagonal));
    subtract_product(residual, start.to(cross.scalar_type()), gram);
  }

  DescentState<T> state(bool fit_scale) const {
    return {gram.const_data_ptr<T>(),         inverse_diagonal.const_data_ptr<T>(),
            cross.const_data_ptr<T>(),        residual.mutable_data_ptr<T>(),
            codes.mutable_data_ptr<int8_t>(), digits.mutable_data_ptr<int8_t>(),
            scale.mutable_data_ptr<double>(), explained.mutable_data_ptr<double>(),
            levels.const_data_ptr<int8_t>(),  active.const_data_ptr<int>(),
            moved.mutable_data_ptr<int>(),    amounts.mutable_data_ptr<T>(),
            static_cast<int>(codes.size(0)),  static_cast<int>(codes.size(1)),
            static_cast<int>(codes.size(2)),  fit_scale};
  }
};

struct Cuda {
  template <class T>
  static Descent descend(const Tensor& codes, const Tensor& scale, const Tensor& gram, const Tensor& cross,
                         const Tensor& levels, int planes, int rounds, bool fit_scale) {
    const c10::cuda::CUDAGuard guard(codes.device());
    const int64_t groups = codes.size(0), rows = codes.size(1), columns = codes.size(2);
    const DescentTensors<T> work(codes, scale, gram, cross, levels, planes);
    const DescentState<T> state = work.state(fit_scale);
    const Tensor rounds_used = at::zeros_like(scale, scale.options().dtype(at::kLong));
    const auto stream = c10::cuda::getCurrentCUDAStream();
    const auto fit_scales = [&] {
      fit_scale_kernel<T><<<groups * rows, kRowThreads, 0, stream>>>(state);
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    };
    for (int round = 0; round < rounds && work.active.any().template item<bool>(); ++round) {
      fit_scales();
      rounds_used.add_(work.active);
      work.moved.zero_();
      for (int plane = planes - 1; plane >= 0; --plane)
        for (int64_t first = 0; first < columns; first += kColumns) {
          sweep_kernel<T><<<warp_grid(rows, groups), kWarpThreads, 0, stream>>>(state, plane, first);
          C10_CUDA_KERNEL_LAUNCH_CHECK();
          pass_on(work.residual, work.amounts, work.gram, first, 0);
        }
      work.active.copy_(work.moved);  // a row in which nothing moved is at its fixed point
    }
    work.active.fill_(1);
    fit_scales();
    return {work.codes, work.scale.mul_(scale), work.explained.mul_(scale).mul_(scale), rounds_used};
  }

  template <class T>
  static Descent search(const Tensor& codes, const Tensor& scale, const Tensor& gram_given,
                        const Tensor& cross_given, const Tensor& levels, int steps, int64_t seed,
                        bool fit_scale) {
    const c10::cuda::CUDAGuard guard(codes.device());
    const Tensor gram = gram_given.to(cross_given.scalar_type());
    const Tensor cross = in_units(cross_given.transpose(1, 2), scale);
    const Tensor now = codes.clone(), best = at::empty_like(codes), products = at::zeros_like(cross);
    subtract_product(products, codes.to(cross.scalar_type()).neg_(), gram);
    const Tensor best_products = at::empty_like(products), out_scale = scale.clone(),
                 explained = at::empty_like(scale);
    const Tensor rests = at::empty_like(codes, codes.options().dtype(at::kInt));
    const SearchState<T> state{gram.const_data_ptr<T>(),
                               cross.const_data_ptr<T>(),
                               products.mutable_data_ptr<T>(),
                               best_products.mutable_data_ptr<T>(),
                               now.mutable_data_ptr<int8_t>(),
                               best.mutable_data_ptr<int8_t>(),
                               rests.mutable_data_ptr<int32_t>(),
                               out_scale.mutable_data_ptr<double>(),
                               explained.mutable_data_ptr<double>(),
                               levels.const_data_ptr<int8_t>(),
                               static_cast<int>(codes.size(1)),
                               static_cast<int>(codes.size(2)),
                               static_cast<int>(cross_given.size(2)),
                               fit_scale};
    search_kernel<T><<<scale.numel(), kSearchThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        state, steps, static_cast<uint64_t>(seed));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    return {best, out_scale, explained, at::full_like(scale, steps, scale.options().dtype(at::kLong))};
  }

  template <class T>
  static Rounded feedback(const Tensor& target, const Tensor& scale, const Tensor& factor,
                          const Tensor& levels) {
    const c10::cuda::CUDAGuard guard(target.device());
    const int64_t groups = target.size(0), rows = scale.size(1), columns = target.size(2);
    const Tensor shares = factor.div(factor.diagonal(0, 1, 2).unsqueeze(1)).triu(1).to(target.scalar_type());
    const Tensor weight = in_units(target, scale), wanted = weight.clone();
    const Tensor codes = at::empty(weight.sizes(), weight.options().dtype(at::kChar));
    const Tensor excess = at::empty({groups, rows, kColumns}, weight.options()), loss = at::zeros_like(scale);
    const Tensor diagonal = factor.diagonal(0, 1, 2).to(target.scalar_type()).contiguous();
    const auto stream = c10::cuda::getCurrentCUDAStream();
    for (int64_t first = 0; first < columns; first += kColumns) {
      feedback_kernel<T><<<warp_grid(rows, groups), kWarpThreads, 0, stream>>>(
          wanted.const_data_ptr<T>(), weight.const_data_ptr<T>(), shares.const_data_ptr<T>(),
          diagonal.const_data_ptr<T>(), levels.const_data_ptr<int8_t>(), codes.mutable_data_ptr<int8_t>(),
          excess.mutable_data_ptr<T>(), loss.mutable_data_ptr<double>(), rows, columns, first);
      C10_CUDA_KERNEL_LAUNCH_CHECK();
      if (first + kColumns < columns) pass_on(wanted, excess, shares, first, first + kColumns);
    }
    return {codes, loss.mul_(scale).mul_(scale)};
  }

  template <class T>
  static Fit fwa(const Tensor& weight, int bits) {
    const c10::cuda::CUDAGuard guard(weight.device());
    const Tensor codes = at::empty(weight.sizes(), weight.options().dtype(at::kChar));
    const Tensor scale = at::empty({weight.size(0), weight.size(1)}, weight.options().dtype(at::kDouble));
    fwa_kernel<T><<<scale.numel(), kRowThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        weight.const_data_ptr<T>(), weight.size(2), bits, codes.mutable_data_ptr<int8_t>(),
        scale.mutable_data_ptr<double>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    return {codes, scale};
  }

  template <class T>
  static Fit ofwa(const Tensor& weight, const Tensor& codes, const Tensor& scale, int bits, int rounds) {
    const c10::cuda::CUDAGuard guard(weight.device());
    const Tensor out_codes = codes.clone(), out_scale = scale.clone();
    const Tensor digits = at::empty({scale.numel(), plane_count(bits), weight.size(2)}, codes.options());
    ofwa_kernel<T><<<scale.numel(), kRowThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        weight.const_data_ptr<T>(), weight.size(2), bits, rounds, out_codes.mutable_data_ptr<int8_t>(),
        digits.mutable_data_ptr<int8_t>(), out_scale.mutable_data_ptr<double>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    return {out_codes, out_scale};
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(bitsplit, CUDA, m) { SplitOperators<Cuda>::implement(m); }

}  // namespace bitsplit::split
