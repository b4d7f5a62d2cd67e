// The solvers of the split family: integers and one scale per output channel for W (or its response).
//
// fwa, ofwa and planes work on the signed symmetric grid -limit..limit, limit = 2^(bits-1) - 1, bits 2 to 8.
// polish, search and feedback take levels int8 [g, R, 2], the lowest and the highest code of every row,
// lowest <= 0 <= highest, lowest < highest: with a zero point z the codes 0..2^bits - 1 are the levels
// -z..2^bits - 1 - z.
//
// All tensors carry a leading group axis: weight [g, M, N], gram G = X X^T [g, N, N] (symmetric), cross C = X
// Y^T [g, N, M], codes int8 [g, R, N], scale float64 [g, R]. R = M, or S * M: S starts stacked along the
// rows, of which row r belongs to channel r mod M. The objective of a row is || y - s q X ||^2 = yy - 2 s q.c
// + s^2 q G q.
//
// Arithmetic on W, G and C is that of the dtype of weight / cross / target (float32 or float64); scales,
// divisions by them in weight space and all dot products are float64. Inputs are not changed. Rows do not
// influence one another: on the CPU results depend neither on the number of threads nor on what else is
// stacked. On a card the products of planes, polish and feedback are cuBLAS's, which may add in another order
// when there are more rows.
// Empty tensors give empty results. NaN and infinities in floating inputs, codes beyond their levels and
// scales that are not positive are refused.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace bitsplit::split {

using Fit = std::tuple<at::Tensor, at::Tensor>;  // codes, scale
// codes, scale, explained (what the fit takes away from yy: objective = yy - explained), rounds used.
using Descent = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

using Rounded = std::tuple<at::Tensor, at::Tensor>;  // codes, loss

// What a device provides. Arguments are checked, contiguous and not empty; gram and factor may be wider than
// the dtype computed in. The levels of a descent are those of the digits of every plane.
using FwaKernel = Fit (*)(const at::Tensor& weight, int bits);
using OfwaKernel = Fit (*)(const at::Tensor& weight, const at::Tensor& codes, const at::Tensor& scale,
                           int bits, int rounds);
using DescentKernel = Descent (*)(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& gram,
                                  const at::Tensor& cross, const at::Tensor& levels, int planes, int rounds,
                                  bool fit_scale);
using SearchKernel = Descent (*)(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& gram,
                                 const at::Tensor& cross, const at::Tensor& levels, int steps, int64_t seed,
                                 bool fit_scale);
using FeedbackKernel = Rounded (*)(const at::Tensor& target, const at::Tensor& scale,
                                   const at::Tensor& factor, const at::Tensor& levels);

// Weight space: codes = nearest(w / s), s = <w, q> / <q, q>, from s = max|w| / limit on until no code moves.
// An all-zero row gives codes 0 and scale 1.
Fit fwa(const at::Tensor& weight, int64_t bits, FwaKernel kernel);

// The same objective over bit planes: with r the weight without the plane, digit = sign(r) where 2|r| >= s
// 2^i, else 0.
Fit ofwa(const at::Tensor& weight, const at::Tensor& codes, const at::Tensor& scale, int64_t bits,
         int64_t rounds, OfwaKernel kernel);

// Response space: s = q.c / q G q, then plane after plane from the top and coordinate after coordinate
// (0..N-1) the exact minimiser over the digits -1, 0, 1, until a round moves nothing; the scale is fitted
// once more at the end. A coordinate with G_nn = 0 keeps its value; s stays where q.c or q G q is not
// positive.
Descent planes(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& gram,
               const at::Tensor& cross, int64_t bits, int64_t rounds, DescentKernel kernel);

// The same with one plane that has all levels as its digits. Without `fit_scale` every row keeps its scale.
Descent polish(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& gram,
               const at::Tensor& cross, const at::Tensor& levels, int64_t rounds, bool fit_scale,
               DescentKernel kernel);

// Response space, away from a fixed point: `steps` steps of the tabu search of core/tabu_search.h, the scale
// always at its best, or without `fit_scale` the one it was called with. Returns the best codes met, never
// worse than the start but for rounding; rounds used are the steps. `seed`, group and channel decide the
// random numbers. A coordinate with G_nn = 0 keeps its value; a row whose scale is fitted stays as it is
// where q.c or q G q of its start is not positive.
Descent search(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& gram,
               const at::Tensor& cross, const at::Tensor& levels, int64_t steps, int64_t seed, bool fit_scale,
               SearchKernel kernel);

// Rounds coordinates 0..N-1 in turn, later ones making good for earlier: with U the upper triangular factor
// of the damped G = U U^T, code n = nearest((w_n + sum over i < n of (w_i - s q_i) U_in / U_nn) / s).
// loss [g, R], float64: (w - s q) U U^T (w - s q), the sum of what each rounding loses.
Rounded feedback(const at::Tensor& target, const at::Tensor& scale, const at::Tensor& factor,
                 const at::Tensor& levels, FeedbackKernel kernel);

}  // namespace bitsplit::split
