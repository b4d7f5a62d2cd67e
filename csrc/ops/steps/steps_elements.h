// What one element of the family goes through, for the loops of the CPU and the kernels of the GPU.
// Torch-free. Storage is what the tensors hold, T (float or double) what is computed in.
#pragma once

#include <cstdint>

#include "core/counter_random.h"
#include "core/rounding.h"

namespace bitsplit {

// Which elements are dropped. A call holds a rule; where the key can be read, once for many elements,
// rule.read() becomes a drop, and drop(i) tells of element i.
struct KeepAll {
  BITSPLIT_HOST_DEVICE KeepAll read() const { return {}; }
  BITSPLIT_HOST_DEVICE bool operator()(int64_t) const { return false; }
};

struct RandomDrop {
  RandomKey key;
  int32_t bound;

  BITSPLIT_HOST_DEVICE bool operator()(int64_t i) const { return is_dropped(random_bits(key, i), bound); }
};

struct RandomDropRule {
  const int64_t* key;  // seed, iteration
  int32_t bound;

  BITSPLIT_HOST_DEVICE RandomDrop read() const {
    return {random_key(static_cast<uint64_t>(key[0]), static_cast<uint64_t>(key[1])), bound};
  }
};

template <typename Storage, typename T>
struct StepQuantize {
  const Storage* __restrict__ x;
  Storage* __restrict__ y;

  template <typename Drop>
  BITSPLIT_HOST_DEVICE void operator()(int64_t i, const LevelGrid<T>& grid, const Drop& drop) const {
    const T value = static_cast<T>(x[i]), quantized = fake_quantize(value, grid);
    y[i] = static_cast<Storage>(drop(i) ? value : quantized);
  }
};

// Writes the gradient of x and gives the element's term of the gradient of scale.
template <typename Storage, typename T>
struct StepQuantizeBackward {
  const Storage* __restrict__ grad;
  const Storage* __restrict__ x;
  Storage* __restrict__ grad_x;

  template <typename Drop>
  BITSPLIT_HOST_DEVICE T operator()(int64_t i, const LevelGrid<T>& grid, const Drop& drop) const {
    const T slope = static_cast<T>(grad[i]), value = static_cast<T>(x[i]);
    const T level = nearest_level(value, grid), error = level - value / grid.scale;
    const bool inside = is_inside(value, grid), dropped = drop(i);
    const T step = slope * (inside ? error : level);  // made in any case, so that loops vectorise
    grad_x[i] = static_cast<Storage>(dropped | inside ? slope : T(0));
    return dropped ? T(0) : step;
  }
};

// Bits: an unsigned integer of the size of an element, whatever its type.
template <typename Bits>
struct Mix {
  const Bits* __restrict__ a;
  const Bits* __restrict__ b;
  Bits* __restrict__ y;

  template <typename Drop>
  BITSPLIT_HOST_DEVICE void operator()(int64_t i, const Drop& drop) const {
    const Bits one = a[i], other = b[i];  // both read in any case, so that loops vectorise
    y[i] = drop(i) ? other : one;
  }
};

}  // namespace bitsplit
