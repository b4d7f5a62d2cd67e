// Tensors of any strides as dense memory, with the place of their channels in it.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>

#include "core/channel_layout.h"

namespace bitsplit {

// x itself when its elements fill their memory without gaps (contiguous, channels_last, transposed, ...),
// else a dense copy that keeps the order of the strides.
inline at::Tensor dense(const at::Tensor& x) {
  return x.is_non_overlapping_and_dense() ? x : x.clone(at::MemoryFormat::Preserve);
}

// `other` with the strides of `model`: itself or a copy.
inline at::Tensor with_strides_of(const at::Tensor& other, const at::Tensor& model) {
  if (other.strides() == model.strides()) return other;
  return at::empty_like(model, other.options()).copy_(other);
}

// The channels along `axis` of a dense, non-empty tensor; axis -1: the whole tensor is one channel.
inline ChannelLayout channel_layout(const at::Tensor& dense, int64_t axis) {
  const int64_t numel = dense.numel();
  if (axis < 0 || dense.size(axis) == 1) return {1, 1, numel};
  const int64_t channels = dense.size(axis), inner = dense.stride(axis);
  return {numel / (channels * inner), channels, inner};
}

inline void check_axis(const at::Tensor& x, int64_t axis) {
  TORCH_CHECK(axis >= -1 && axis < x.dim(), "axis must be -1 (whole tensor) or a dimension of x, got ", axis,
              " for ", x.dim(), " dimensions");
}

inline void check_floating(const at::Tensor& x, const char* name) {
  const auto type = x.scalar_type();
  TORCH_CHECK(type == at::kFloat || type == at::kDouble || type == at::kHalf || type == at::kBFloat16, name,
              " must be float32, float64, float16 or bfloat16, got ", type);
}

inline void check_like(const at::Tensor& other, const char* name, const at::Tensor& model,
                       const char* model_name) {
  TORCH_CHECK(other.sizes() == model.sizes() && other.scalar_type() == model.scalar_type() &&
                  other.device() == model.device(),
              name, " must have the shape, dtype and device of ", model_name, ", ", model.sizes(), " ",
              model.scalar_type(), " ", model.device(), ", got ", other.sizes(), " ", other.scalar_type(),
              " ", other.device());
}

// What x is computed in: float64 for float64, else float32.
inline at::ScalarType compute_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// For operators that write into `tensor`: autograd sees that what it may have kept is another now.
inline void mark_changed(const at::Tensor& tensor) {
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

}  // namespace bitsplit
