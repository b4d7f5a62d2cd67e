// Checks of the arguments of the split operators: split.h says what they shall be.
#pragma once

#include <ATen/ATen.h>

#include <cmath>

#include "core/levels.h"

namespace bitsplit::split {

inline void check_bits(int64_t bits) {
  TORCH_CHECK(bits >= 2 && bits <= 8, "bits must be 2 to 8, got ", bits);
}

inline void check_rounds(int64_t rounds) {
  TORCH_CHECK(rounds >= 0, "rounds must not be negative, got ", rounds);
}

// float32 or float64, three axes, on the device of `like`, free of NaN and infinities.
inline void check_matrix(const at::Tensor& tensor, const char* name, const at::Tensor& like) {
  TORCH_CHECK(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble, name,
              " must be float32 or float64, got ", tensor.scalar_type());
  TORCH_CHECK(tensor.dim() == 3, name, " must have 3 axes (groups first), got shape ", tensor.sizes());
  TORCH_CHECK(tensor.device() == like.device(), name, " must be on ", like.device(), ", got ",
              tensor.device());
  // A sum is NaN or infinite as soon as one of its terms is, and reads the tensor once without a copy.
  TORCH_CHECK(tensor.numel() == 0 || std::isfinite(tensor.sum().item<double>()), name,
              " holds NaN or infinite values (or values too large to add up)");
}

inline void check_shape(const at::Tensor& tensor, const char* name, at::IntArrayRef shape) {
  TORCH_CHECK(tensor.sizes() == shape, name, " must have shape ", shape, ", got ", tensor.sizes());
}

inline void check_scale(const at::Tensor& scale, int64_t groups, int64_t rows, const at::Tensor& like) {
  TORCH_CHECK(scale.scalar_type() == at::kDouble, "scale must be float64, got ", scale.scalar_type());
  TORCH_CHECK(scale.device() == like.device(), "scale must be on ", like.device(), ", got ", scale.device());
  check_shape(scale, "scale", {groups, rows});
  TORCH_CHECK(scale.numel() == 0 || (scale > 0).logical_and(scale.isfinite()).all().item<bool>(),
              "scale must be positive and finite");
}

inline void check_codes(const at::Tensor& codes, const at::Tensor& like) {
  TORCH_CHECK(codes.scalar_type() == at::kChar, "codes must be int8, got ", codes.scalar_type());
  TORCH_CHECK(codes.dim() == 3, "codes must have 3 axes (groups, rows, columns), got shape ", codes.sizes());
  TORCH_CHECK(codes.device() == like.device(), "codes must be on ", like.device(), ", got ", codes.device());
}

inline void check_limit(const at::Tensor& codes, int64_t bits) {
  const int limit = level_limit(static_cast<int>(bits));
  TORCH_CHECK(codes.numel() == 0 || (codes.min().item<int>() >= -limit && codes.max().item<int>() <= limit),
              "codes must lie in -", limit, "..", limit, " for ", bits, " bits, got ",
              codes.min().item<int>(), "..", codes.max().item<int>());
}

// int8 [groups, rows, 2] with lowest <= 0 <= highest and room between them.
inline void check_row_levels(const at::Tensor& levels, int64_t groups, int64_t rows, const at::Tensor& like) {
  TORCH_CHECK(levels.scalar_type() == at::kChar, "levels must be int8, got ", levels.scalar_type());
  TORCH_CHECK(levels.device() == like.device(), "levels must be on ", like.device(), ", got ",
              levels.device());
  check_shape(levels, "levels", {groups, rows, 2});
  const at::Tensor low = levels.select(2, 0), high = levels.select(2, 1);
  TORCH_CHECK((low <= 0).logical_and(high >= 0).logical_and(low < high).all().item<bool>(),
              "levels must be pairs (lowest, highest) with lowest <= 0 <= highest and lowest < highest");
}

// Every code inside the levels of its row.
inline void check_inside(const at::Tensor& codes, const at::Tensor& levels) {
  if (codes.numel() == 0) return;
  const at::Tensor lowest = codes.amin(2), highest = codes.amax(2);
  const at::Tensor outside = (lowest < levels.select(2, 0)).logical_or(highest > levels.select(2, 1));
  if (!outside.any().item<bool>()) return;
  const int64_t row = outside.flatten().nonzero()[0].item<int64_t>(), rows = codes.size(1);
  const at::Tensor allowed = levels.flatten(0, 1)[row];
  TORCH_CHECK(false, "codes must lie within the levels of their row; row ", row % rows, " of group ",
              row / rows, " has the levels ", allowed[0].item<int>(), "..", allowed[1].item<int>(),
              " and codes ", lowest.flatten()[row].item<int>(), "..", highest.flatten()[row].item<int>());
}

// Rows of codes and scales may be several starts of the M channels, one after another.
inline void check_rows(int64_t rows, int64_t channels, const char* name) {
  TORCH_CHECK(channels == 0 ? rows == 0 : rows % channels == 0, name,
              " must have a multiple of the number of channels as rows (", channels, "), got ", rows);
}

inline void check_response(const at::Tensor& codes, const at::Tensor& gram, const at::Tensor& cross) {
  check_matrix(cross, "cross", codes);
  check_matrix(gram, "gram", codes);
  const int64_t groups = codes.size(0), columns = codes.size(2);
  check_shape(gram, "gram", {groups, columns, columns});
  check_shape(cross, "cross", {groups, columns, cross.size(2)});
  check_rows(codes.size(1), cross.size(2), "codes");
}

// The arguments of a descent but for the range of the codes.
inline void check_descent(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& gram,
                          const at::Tensor& cross) {
  check_codes(codes, codes);
  check_response(codes, gram, cross);
  check_scale(scale, codes.size(0), codes.size(1), codes);
}

inline void check_descent_in(const at::Tensor& levels, const at::Tensor& codes, const at::Tensor& scale,
                             const at::Tensor& gram, const at::Tensor& cross) {
  check_descent(codes, scale, gram, cross);
  check_row_levels(levels, codes.size(0), codes.size(1), codes);
  check_inside(codes, levels);
}

}  // namespace bitsplit::split
