// What one element of the loss goes through, for the loops of the CPU and the kernels of the GPU. Torch-free.
// Output and Target are what the tensors hold, T (float or double) what is computed in.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/power.h"

namespace bitsplit {

// |d|^p, and its derivative times the scale of the loss.
template <typename T>
struct LossAt {
  T value, slope;
};

template <typename T>
struct SquaredDifference {
  T factor;  // 2 * scale

  BITSPLIT_HOST_DEVICE LossAt<T> operator()(T d) const { return {d * d, factor * d}; }
};

template <typename T>
struct PowerOfDifference {
  T p;
  T factor;  // p * scale

  BITSPLIT_HOST_DEVICE LossAt<T> operator()(T d) const {
    const T value = power(d, p);
    return {value, d == 0 ? T(0) : factor * (value / d)};
  }
};

// The term of element i, whose gradient it writes. `weight` is looked at only if kWeighted.
template <typename Output, typename Target, typename T, typename Loss, bool kWeighted>
struct LossTerm {
  const Output* __restrict__ output;
  const Target* __restrict__ target;
  const Target* __restrict__ weight;
  Output* __restrict__ grad;
  Loss loss;

  BITSPLIT_HOST_DEVICE T operator()(int64_t i) const {
    const LossAt<T> here = loss(static_cast<T>(output[i]) - static_cast<T>(target[i]));
    const T w = kWeighted ? static_cast<T>(weight[i]) : T(1);
    grad[i] = static_cast<Output>(w * here.slope);
    return w * here.value;
  }
};

}  // namespace bitsplit
