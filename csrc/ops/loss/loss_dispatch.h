// From a call to the functor for its elements, and the registration: the same for every device.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <torch/library.h>

#include "ops/loss/loss.h"
#include "ops/loss/loss_elements.h"

namespace bitsplit {

// Device::store_sum<T>(call, term) puts scale * (term(0) + ... + term(numel - 1)) into call.loss.
template <typename Device>
struct LossOperator {
  template <typename Output, typename Target, typename T, typename Loss>
  static void run_with(const LossCall& call, const Loss& loss) {
    const Output* output = call.output.const_data_ptr<Output>();
    const Target* target = call.target.const_data_ptr<Target>();
    Output* grad = call.grad.mutable_data_ptr<Output>();
    if (call.weight.defined())
      Device::template store_sum<T>(
          call, LossTerm<Output, Target, T, Loss, true>{output, target, call.weight.const_data_ptr<Target>(),
                                                        grad, loss});
    else
      Device::template store_sum<T>(
          call, LossTerm<Output, Target, T, Loss, false>{output, target, nullptr, grad, loss});
  }

  template <typename Output, typename T, typename Loss>
  static void run_with(const LossCall& call, const Loss& loss) {
    if (call.target.scalar_type() == call.output.scalar_type())
      run_with<Output, Output, T>(call, loss);
    else
      run_with<Output, T, T>(call, loss);
  }

  static void run(const LossCall& call) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, call.output.scalar_type(), "loss", [&] {
      using T = at::opmath_type<scalar_t>;
      const T factor = static_cast<T>(call.p * call.scale);
      if (call.p == 2)
        run_with<scalar_t, T>(call, SquaredDifference<T>{factor});
      else
        run_with<scalar_t, T>(call, PowerOfDifference<T>{static_cast<T>(call.p), factor});
    });
  }

  static void implement(torch::Library& m) {
    m.impl("reconstruction_loss",
           [](const at::Tensor& output, const at::Tensor& target, const std::optional<at::Tensor>& weight,
              double p, double scale) { return reconstruction_loss(output, target, weight, p, scale, run); });
  }
};

}  // namespace bitsplit
