#include "ops/split/split.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "core/planes.h"
#include "ops/split/split_checks.h"

namespace bitsplit::split {
namespace {

constexpr int64_t kMostSearchSteps = 1 << 30;  // they are counted in int32

// At most so many rounds: kernels count them in int32.
int counted(int64_t rounds) {
  return static_cast<int>(std::min<int64_t>(rounds, std::numeric_limits<int>::max()));
}

Descent empty_descent(const at::Tensor& codes, const at::Tensor& scale) {
  return {codes.clone(), scale.clone(), at::zeros_like(scale), at::zeros_like(scale, at::kLong)};
}

Descent descend(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& gram,
                const at::Tensor& cross, const at::Tensor& levels, int planes, int64_t rounds, bool fit_scale,
                DescentKernel kernel) {
  if (codes.numel() == 0) return empty_descent(codes, scale);
  return kernel(codes.contiguous(), scale.contiguous(), gram.contiguous(), cross.contiguous(),
                levels.contiguous(), planes, counted(rounds), fit_scale);
}

}  // namespace

Fit fwa(const at::Tensor& weight, int64_t bits, FwaKernel kernel) {
  check_bits(bits);
  check_matrix(weight, "weight", weight);
  if (weight.numel() == 0)
    return {at::empty(weight.sizes(), weight.options().dtype(at::kChar)),
            at::ones({weight.size(0), weight.size(1)}, weight.options().dtype(at::kDouble))};
  return kernel(weight.contiguous(), static_cast<int>(bits));
}

Fit ofwa(const at::Tensor& weight, const at::Tensor& codes, const at::Tensor& scale, int64_t bits,
         int64_t rounds, OfwaKernel kernel) {
  check_bits(bits);
  check_rounds(rounds);
  check_matrix(weight, "weight", weight);
  check_codes(codes, weight);
  check_limit(codes, bits);
  check_shape(codes, "codes", weight.sizes());
  check_scale(scale, weight.size(0), weight.size(1), weight);
  if (weight.numel() == 0) return {codes.clone(), scale.clone()};
  return kernel(weight.contiguous(), codes.contiguous(), scale.contiguous(), static_cast<int>(bits),
                counted(rounds));
}

Descent planes(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& gram,
               const at::Tensor& cross, int64_t bits, int64_t rounds, DescentKernel kernel) {
  check_bits(bits);
  check_rounds(rounds);
  check_descent(codes, scale, gram, cross);
  check_limit(codes, bits);
  const at::Tensor digits = at::ones({codes.size(0), codes.size(1), 2}, codes.options());
  digits.select(2, 0).fill_(-1);
  return descend(codes, scale, gram, cross, digits, plane_count(static_cast<int>(bits)), rounds, true,
                 kernel);
}

Descent polish(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& gram,
               const at::Tensor& cross, const at::Tensor& levels, int64_t rounds, bool fit_scale,
               DescentKernel kernel) {
  check_rounds(rounds);
  check_descent_in(levels, codes, scale, gram, cross);
  return descend(codes, scale, gram, cross, levels, 1, rounds, fit_scale, kernel);
}

Descent search(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& gram,
               const at::Tensor& cross, const at::Tensor& levels, int64_t steps, int64_t seed, bool fit_scale,
               SearchKernel kernel) {
  TORCH_CHECK(steps >= 0 && steps <= kMostSearchSteps, "steps must be 0 to ", kMostSearchSteps, ", got ",
              steps);
  check_descent_in(levels, codes, scale, gram, cross);
  if (codes.numel() == 0) return empty_descent(codes, scale);
  return kernel(codes.contiguous(), scale.contiguous(), gram.contiguous(), cross.contiguous(),
                levels.contiguous(), static_cast<int>(steps), seed, fit_scale);
}

Rounded feedback(const at::Tensor& target, const at::Tensor& scale, const at::Tensor& factor,
                 const at::Tensor& levels, FeedbackKernel kernel) {
  check_matrix(target, "target", target);
  check_matrix(factor, "factor", target);
  const int64_t groups = target.size(0), columns = target.size(2);
  check_shape(factor, "factor", {groups, columns, columns});
  TORCH_CHECK(scale.dim() == 2, "scale must have 2 axes (groups, rows), got shape ", scale.sizes());
  check_scale(scale, groups, scale.size(1), target);
  check_rows(scale.size(1), target.size(1), "scale");
  check_row_levels(levels, groups, scale.size(1), target);
  TORCH_CHECK(factor.numel() == 0 || (factor.diagonal(0, 1, 2) > 0).all().item<bool>(),
              "factor must have a positive diagonal");
  if (scale.numel() == 0 || columns == 0)
    return {at::zeros({groups, scale.size(1), columns}, target.options().dtype(at::kChar)),
            at::zeros_like(scale)};
  return kernel(target.contiguous(), scale.contiguous(), factor.contiguous(), levels.contiguous());
}

namespace {

// yy - 2 s q.c + s^2 q G q in float64, where q.c and q G q come from one product with G.
at::Tensor objective(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& gram,
                     const at::Tensor& cross, const at::Tensor& energy) {
  check_codes(codes, codes);
  check_response(codes, gram, cross);
  check_scale(scale, codes.size(0), codes.size(1), codes);
  TORCH_CHECK(energy.scalar_type() == at::kDouble, "energy must be float64, got ", energy.scalar_type());
  check_shape(energy, "energy", {cross.size(0), cross.size(2)});
  if (codes.size(1) == 0) return at::zeros_like(scale);
  const int64_t starts = codes.size(1) / cross.size(2);
  const at::Tensor q = codes.to(at::kDouble);
  const at::Tensor c = cross.to(at::kDouble).transpose(1, 2).repeat({1, starts, 1});
  const at::Tensor with_cross = q.mul(c).sum(2);
  const at::Tensor with_gram = at::matmul(q, gram.to(at::kDouble)).mul_(q).sum(2);
  return energy.repeat({1, starts}) - scale * (with_cross * 2 - scale * with_gram);
}

TORCH_LIBRARY_FRAGMENT(bitsplit, m) {
  m.def("fwa(Tensor weight, int bits) -> (Tensor codes, Tensor scale)");
  m.def(
      "ofwa(Tensor weight, Tensor codes, Tensor scale, int bits, int rounds) -> (Tensor codes, Tensor "
      "scale)");
  m.def(
      "planes(Tensor codes, Tensor scale, Tensor gram, Tensor cross, int bits, int rounds)"
      " -> (Tensor codes, Tensor scale, Tensor explained, Tensor rounds_used)");
  m.def(
      "polish(Tensor codes, Tensor scale, Tensor gram, Tensor cross, Tensor levels, int rounds, bool "
      "fit_scale)"
      " -> (Tensor codes, Tensor scale, Tensor explained, Tensor rounds_used)");
  m.def(
      "search(Tensor codes, Tensor scale, Tensor gram, Tensor cross, Tensor levels, int steps, int seed, "
      "bool fit_scale)"
      " -> (Tensor codes, Tensor scale, Tensor explained, Tensor rounds_used)");
  m.def("feedback(Tensor target, Tensor scale, Tensor factor, Tensor levels) -> (Tensor codes, Tensor loss)");
  m.def("objective(Tensor codes, Tensor scale, Tensor gram, Tensor cross, Tensor energy) -> Tensor");
}

TORCH_LIBRARY_IMPL(bitsplit, CompositeExplicitAutograd, m) { m.impl("objective", TORCH_FN(objective)); }

}  // namespace
}  // namespace bitsplit::split
