#include "ops/split/split.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>

#include "core/levels.h"
#include "core/planes.h"

namespace bitsplit::split {
namespace {

constexpr int64_t kMostSearchSteps = 1 << 30;  // they are counted in int32

void check_bits(int64_t bits) { TORCH_CHECK(bits >= 2 && bits <= 8, "bits must be 2 to 8, got ", bits); }

void check_rounds(int64_t rounds) { TORCH_CHECK(rounds >= 0, "rounds must not be negative, got ", rounds); }

// float32 or float64, three axes, on the device of `like`, free of NaN and infinities.
void check_matrix(const at::Tensor& tensor, const char* name, const at::Tensor& like) {
  TORCH_CHECK(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble, name,
              " must be float32 or float64, got ", tensor.scalar_type());
  TORCH_CHECK(tensor.dim() == 3, name, " must have 3 axes (groups first), got shape ", tensor.sizes());
  TORCH_CHECK(tensor.device() == like.device(), name, " must be on ", like.device(), ", got ",
              tensor.device());
  // A sum is NaN or infinite as soon as one of its terms is, and reads the tensor once without a copy.
  TORCH_CHECK(tensor.numel() == 0 || std::isfinite(tensor.sum().item<double>()), name,
              " holds NaN or infinite values (or values too large to add up)");
}

void check_shape(const at::Tensor& tensor, const char* name, at::IntArrayRef shape) {
  TORCH_CHECK(tensor.sizes() == shape, name, " must have shape ", shape, ", got ", tensor.sizes());
}

void check_scale(const at::Tensor& scale, int64_t groups, int64_t rows, const at::Tensor& like) {
  TORCH_CHECK(scale.scalar_type() == at::kDouble, "scale must be float64, got ", scale.scalar_type());
  TORCH_CHECK(scale.device() == like.device(), "scale must be on ", like.device(), ", got ", scale.device());
  check_shape(scale, "scale", {groups, rows});
  TORCH_CHECK(scale.numel() == 0 || (scale > 0).logical_and(scale.isfinite()).all().item<bool>(),
              "scale must be positive and finite");
}

void check_codes(const at::Tensor& codes, const at::Tensor& like) {
  TORCH_CHECK(codes.scalar_type() == at::kChar, "codes must be int8, got ", codes.scalar_type());
  TORCH_CHECK(codes.dim() == 3, "codes must have 3 axes (groups, rows, columns), got shape ", codes.sizes());
  TORCH_CHECK(codes.device() == like.device(), "codes must be on ", like.device(), ", got ", codes.device());
}

void check_limit(const at::Tensor& codes, int64_t bits) {
  const int limit = level_limit(static_cast<int>(bits));
  TORCH_CHECK(codes.numel() == 0 || (codes.min().item<int>() >= -limit && codes.max().item<int>() <= limit),
              "codes must lie in -", limit, "..", limit, " for ", bits, " bits, got ",
              codes.min().item<int>(), "..", codes.max().item<int>());
}

// int8 [groups, rows, 2] with lowest <= 0 <= highest and room between them.
void check_levels(const at::Tensor& levels, int64_t groups, int64_t rows, const at::Tensor& like) {
  TORCH_CHECK(levels.scalar_type() == at::kChar, "levels must be int8, got ", levels.scalar_type());
  TORCH_CHECK(levels.device() == like.device(), "levels must be on ", like.device(), ", got ",
              levels.device());
  check_shape(levels, "levels", {groups, rows, 2});
  const at::Tensor low = levels.select(2, 0), high = levels.select(2, 1);
  TORCH_CHECK((low <= 0).logical_and(high >= 0).logical_and(low < high).all().item<bool>(),
              "levels must be pairs (lowest, highest) with lowest <= 0 <= highest and lowest < highest");
}

// Every code inside the levels of its row.
void check_inside(const at::Tensor& codes, const at::Tensor& levels) {
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
void check_rows(int64_t rows, int64_t channels, const char* name) {
  TORCH_CHECK(channels == 0 ? rows == 0 : rows % channels == 0, name,
              " must have a multiple of the number of channels as rows (", channels, "), got ", rows);
}

void check_response(const at::Tensor& codes, const at::Tensor& gram, const at::Tensor& cross) {
  check_matrix(cross, "cross", codes);
  check_matrix(gram, "gram", codes);
  const int64_t groups = codes.size(0), columns = codes.size(2);
  check_shape(gram, "gram", {groups, columns, columns});
  check_shape(cross, "cross", {groups, columns, cross.size(2)});
  check_rows(codes.size(1), cross.size(2), "codes");
}

// The arguments of a descent but for the range of the codes.
void check_descent(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& gram,
                   const at::Tensor& cross) {
  check_codes(codes, codes);
  check_response(codes, gram, cross);
  check_scale(scale, codes.size(0), codes.size(1), codes);
}

void check_descent_in(const at::Tensor& levels, const at::Tensor& codes, const at::Tensor& scale,
                      const at::Tensor& gram, const at::Tensor& cross) {
  check_descent(codes, scale, gram, cross);
  check_levels(levels, codes.size(0), codes.size(1), codes);
  check_inside(codes, levels);
}

Descent empty_descent(const at::Tensor& codes, const at::Tensor& scale) {
  return {codes.clone(), scale.clone(), at::zeros_like(scale), at::zeros_like(scale, at::kLong)};
}

Descent descend(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& gram,
                const at::Tensor& cross, const at::Tensor& levels, int planes, int64_t rounds, bool fit_scale,
                DescentKernel kernel) {
  if (codes.numel() == 0) return empty_descent(codes, scale);
  return kernel(codes.contiguous(), scale.contiguous(), gram.contiguous(), cross.contiguous(),
                levels.contiguous(), planes, static_cast<int>(rounds), fit_scale);
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
                static_cast<int>(rounds));
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
  check_levels(levels, groups, scale.size(1), target);
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
