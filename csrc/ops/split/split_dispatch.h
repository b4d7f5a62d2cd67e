// From the dtype of a call to the kernel for it, and the registration: the same for every device.
#pragma once

#include <ATen/Dispatch.h>
#include <torch/library.h>

#include "ops/split/split.h"

namespace bitsplit::split {

// Device has the kernels of split.h as templates over the dtype T they compute in: fwa<T>, ofwa<T>,
// descend<T>, search<T> and feedback<T>.
template <class Device>
struct SplitOperators {
  using Tensor = at::Tensor;

  static Fit run_fwa(const Tensor& weight, int bits) {
    return AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "fwa",
                                      [&] { return Device::template fwa<scalar_t>(weight, bits); });
  }

  static Fit run_ofwa(const Tensor& weight, const Tensor& codes, const Tensor& scale, int bits, int rounds) {
    return AT_DISPATCH_FLOATING_TYPES(weight.scalar_type(), "ofwa", [&] {
      return Device::template ofwa<scalar_t>(weight, codes, scale, bits, rounds);
    });
  }

  static Descent run_descent(const Tensor& codes, const Tensor& scale, const Tensor& gram,
                             const Tensor& cross, const Tensor& levels, int planes, int rounds,
                             bool fit_scale) {
    return AT_DISPATCH_FLOATING_TYPES(cross.scalar_type(), "descent", [&] {
      return Device::template descend<scalar_t>(codes, scale, gram, cross, levels, planes, rounds, fit_scale);
    });
  }

  static Descent run_search(const Tensor& codes, const Tensor& scale, const Tensor& gram, const Tensor& cross,
                            const Tensor& levels, int steps, int64_t seed, bool fit_scale) {
    return AT_DISPATCH_FLOATING_TYPES(cross.scalar_type(), "search", [&] {
      return Device::template search<scalar_t>(codes, scale, gram, cross, levels, steps, seed, fit_scale);
    });
  }

  static Rounded run_feedback(const Tensor& target, const Tensor& scale, const Tensor& factor,
                              const Tensor& levels) {
    return AT_DISPATCH_FLOATING_TYPES(target.scalar_type(), "feedback", [&] {
      return Device::template feedback<scalar_t>(target, scale, factor, levels);
    });
  }

  static void implement(torch::Library& m) {
    m.impl("fwa", [](const Tensor& weight, int64_t bits) { return fwa(weight, bits, run_fwa); });
    m.impl("ofwa", [](const Tensor& weight, const Tensor& codes, const Tensor& scale, int64_t bits,
                      int64_t rounds) { return ofwa(weight, codes, scale, bits, rounds, run_ofwa); });
    m.impl("planes",
           [](const Tensor& codes, const Tensor& scale, const Tensor& gram, const Tensor& cross, int64_t bits,
              int64_t rounds) { return planes(codes, scale, gram, cross, bits, rounds, run_descent); });
    m.impl("polish", [](const Tensor& codes, const Tensor& scale, const Tensor& gram, const Tensor& cross,
                        const Tensor& levels, int64_t rounds, bool fit_scale) {
      return polish(codes, scale, gram, cross, levels, rounds, fit_scale, run_descent);
    });
    m.impl("search", [](const Tensor& codes, const Tensor& scale, const Tensor& gram, const Tensor& cross,
                        const Tensor& levels, int64_t steps, int64_t seed, bool fit_scale) {
      return search(codes, scale, gram, cross, levels, steps, seed, fit_scale, run_search);
    });
    m.impl("feedback",
           [](const Tensor& target, const Tensor& scale, const Tensor& factor, const Tensor& levels) {
             return feedback(target, scale, factor, levels, run_feedback);
           });
  }
};

}  // namespace bitsplit::split
