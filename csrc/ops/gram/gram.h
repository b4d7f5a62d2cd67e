// gram: the second-order statistics of a layer, straight from its feature maps.
//
// The layer sees a patch X_p of N = channels per group * kernel volume values at every output position p
// (column order as in weight.reshape(out, -1)) and may have the response Y_p of M = outputs per group values.
// Per group, summed over all patches of the batch:
//
//   G [g,N,N] += X X^T    C [g,N,M] += X Y^T
//   sum_x [g,N] += X      sum_y [g,M] += Y      sum_yy [g,M] += Y*Y
//
//   x          [B, g*channels, *spatial], 2 or 3 spatial axes, float32 or float64, any strides
//   y          [B, g*M, *out spatial] of x's dtype, or absent: then C, sum_y and sum_yy are left alone
//   positions  int64 [B, P]: only these flat output positions of every image (repeats count), or absent: all
//
// Padding is with zeros. The accumulators are float64, contiguous, updated in place; G stays symmetric.
// Products of float32 are added in float32 over at most 512 positions (2048 on CUDA), then in float64;
// products of float64 in float64. An empty batch adds nothing. NaN and infinity spread to the sums they are
// part of. On the CPU the result does not depend on the number of threads.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "ops/gram/terms.h"

namespace bitsplit::gram {

// A checked call. Two spatial axes are lifted to three.
struct Problem {
  Geometry geometry;
  int64_t images, groups, channels, rows;  // channels and rows (M) per group; rows is 0 without y
  at::Tensor x, y, positions;              // y and positions undefined if absent
  at::Tensor G, C, sum_x, sum_y, sum_yy;

  int64_t taps() const { return tap_count(geometry); }
  int64_t columns() const { return channels * taps(); }
  int64_t outputs() const { return geometry[0].out() * geometry[1].out() * geometry[2].out(); }
  int64_t patches_per_image() const { return positions.defined() ? positions.size(1) : outputs(); }
};

// Throws on arguments that break the contract above; the only place that checks.
Problem check(const at::Tensor& x, const std::optional<at::Tensor>& y, at::IntArrayRef kernel,
              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
              const std::optional<at::Tensor>& positions, const at::Tensor& G, const at::Tensor& C,
              const at::Tensor& sum_x, const at::Tensor& sum_y, const at::Tensor& sum_yy);

}  // namespace bitsplit::gram
