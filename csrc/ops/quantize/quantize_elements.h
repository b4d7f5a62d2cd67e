// The element-wise functors of the family, for the loops of the CPU and the kernels of the GPU. Torch-free.
// Storage is what the tensor holds, T (float or double) what is computed in.
#pragma once

#include <cstdint>

#include "core/rounding.h"

namespace bitsplit {

template <typename Storage, typename T>
struct FakeQuantize {
  const Storage* __restrict__ x;
  Storage* __restrict__ y;

  BITSPLIT_HOST_DEVICE void operator()(int64_t i, const LevelGrid<T>& grid) const {
    y[i] = static_cast<Storage>(fake_quantize(static_cast<T>(x[i]), grid));
  }
};

template <typename Storage, typename T>
struct FakeQuantizeBackward {
  const Storage* __restrict__ grad;
  const Storage* __restrict__ x;
  Storage* __restrict__ grad_x;

  BITSPLIT_HOST_DEVICE void operator()(int64_t i, const LevelGrid<T>& grid) const {
    const T value = static_cast<T>(grad[i]);  // read in any case, so that no branch is needed
    grad_x[i] = static_cast<Storage>(is_inside(static_cast<T>(x[i]), grid) ? value : T(0));
  }
};

// code = level + zero_point, where zero_point = qmin - grid.low.
template <typename Storage, typename T, typename Code>
struct Quantize {
  const Storage* __restrict__ x;
  Code* __restrict__ codes;
  T qmin;

  BITSPLIT_HOST_DEVICE void operator()(int64_t i, const LevelGrid<T>& grid) const {
    const T level = nearest_level(static_cast<T>(x[i]), grid);
    const T level_or_zero = level == level ? level : T(0);
    codes[i] = static_cast<Code>(static_cast<int>(level_or_zero + (qmin - grid.low)));
  }
};

template <typename Code, typename T>
struct Dequantize {
  const Code* __restrict__ codes;
  T* __restrict__ y;
  T qmin;

  BITSPLIT_HOST_DEVICE void operator()(int64_t i, const LevelGrid<T>& grid) const {
    y[i] = (static_cast<T>(codes[i]) - (qmin - grid.low)) * grid.scale;
  }
};

}  // namespace bitsplit
