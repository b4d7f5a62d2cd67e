// From the dtypes of a call to the functor for its elements, and the registration: the same for every device.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <torch/library.h>

#include "ops/quantize/quantize.h"
#include "ops/quantize/quantize_elements.h"

namespace bitsplit {

// Loop::for_each<T>(call, element) calls element(i, grid of its channel) for every i of the call's memory,
// with the grids in T.
template <typename Loop>
struct QuantizeOperators {
  static void run_fake_quantize(const QuantizeCall& call) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, call.input.scalar_type(), "fake_quantize", [&] {
      using T = at::opmath_type<scalar_t>;
      Loop::template for_each<T>(call, FakeQuantize<scalar_t, T>{call.input.const_data_ptr<scalar_t>(),
                                                                 call.output.mutable_data_ptr<scalar_t>()});
    });
  }

  static void run_backward(const QuantizeCall& call) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, call.input.scalar_type(), "backward", [&] {
      using T = at::opmath_type<scalar_t>;
      Loop::template for_each<T>(call,
                                 FakeQuantizeBackward<scalar_t, T>{call.grad.const_data_ptr<scalar_t>(),
                                                                   call.input.const_data_ptr<scalar_t>(),
                                                                   call.output.mutable_data_ptr<scalar_t>()});
    });
  }

  template <typename Code>
  static void run_quantize_to(const QuantizeCall& call) {
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, call.input.scalar_type(), "quantize", [&] {
      using T = at::opmath_type<scalar_t>;
      Loop::template for_each<T>(
          call, Quantize<scalar_t, T, Code>{call.input.const_data_ptr<scalar_t>(),
                                            call.output.mutable_data_ptr<Code>(), T(call.qmin)});
    });
  }
  static void run_quantize(const QuantizeCall& call) {
    call.qmin < 0 ? run_quantize_to<int8_t>(call) : run_quantize_to<uint8_t>(call);
  }

  template <typename Code>
  static void run_dequantize_of(const QuantizeCall& call) {
    AT_DISPATCH_FLOATING_TYPES(call.scale.scalar_type(), "dequantize", [&] {
      Loop::template for_each<scalar_t>(
          call, Dequantize<Code, scalar_t>{call.input.const_data_ptr<Code>(),
                                           call.output.mutable_data_ptr<scalar_t>(), scalar_t(call.qmin)});
    });
  }
  static void run_dequantize(const QuantizeCall& call) {
    call.qmin < 0 ? run_dequantize_of<int8_t>(call) : run_dequantize_of<uint8_t>(call);
  }

  static void implement(torch::Library& m) {
    m.impl("fake_quantize", [](const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                               int64_t axis, int64_t qmin, int64_t qmax) {
      return fake_quantize(x, scale, zero_point, axis, qmin, qmax, run_fake_quantize);
    });
    m.impl("fake_quantize_backward",
           [](const at::Tensor& grad, const at::Tensor& x, const at::Tensor& scale,
              const at::Tensor& zero_point, int64_t axis, int64_t qmin, int64_t qmax) {
             return fake_quantize_backward(grad, x, scale, zero_point, axis, qmin, qmax, run_backward);
           });
    m.impl("quantize", [](const at::Tensor& x, const at::Tensor& scale, const at::Tensor& zero_point,
                          int64_t axis, int64_t qmin, int64_t qmax) {
      return quantize(x, scale, zero_point, axis, qmin, qmax, run_quantize);
    });
    m.impl("dequantize",
           [](const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& zero_point, int64_t axis) {
             return dequantize(codes, scale, zero_point, axis, run_dequantize);
           });
  }
};

}  // namespace bitsplit
