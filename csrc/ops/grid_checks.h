// Checks of the grids that operators are given.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>

#include <cmath>

namespace bitsplit {

// Levels that fit into a byte, with room between the lowest and the highest.
inline void check_level_range(int64_t qmin, int64_t qmax) {
  const bool fits = (qmin >= -128 && qmax <= 127) || (qmin >= 0 && qmax <= 255);
  TORCH_CHECK(qmin < qmax && fits, "qmin < qmax must both lie in [-128, 127] or in [0, 255], got [", qmin,
              ", ", qmax, "]");
}

// `scale` and `zero_point` are contiguous; scale has the dtype computed in. Values on a GPU are left alone.
inline void check_grids(const at::Tensor& scale, const at::Tensor& zero_point, int64_t qmin, int64_t qmax) {
  if (!scale.is_cpu()) return;
  AT_DISPATCH_FLOATING_TYPES(scale.scalar_type(), "check_grids", [&] {
    const scalar_t* values = scale.const_data_ptr<scalar_t>();
    for (int64_t c = 0; c < scale.numel(); ++c)
      TORCH_CHECK(values[c] > 0 && std::isfinite(values[c]), "scale must be positive and finite, got ",
                  values[c], " for channel ", c);
  });
  const int32_t* zeros = zero_point.const_data_ptr<int32_t>();
  for (int64_t c = 0; c < zero_point.numel(); ++c)
    TORCH_CHECK(zeros[c] >= qmin && zeros[c] <= qmax, "zero_point must lie in [qmin, qmax] = [", qmin, ", ",
                qmax, "], got ", zeros[c], " for channel ", c);
}

}  // namespace bitsplit
