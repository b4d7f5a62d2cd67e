// The solvers of the split family: integers and one scale per output channel for W (or its response) on the signed
// symmetric grid -limit..limit, limit = 2^(bits-1) - 1, bits 2 to 8.
//
// All tensors carry a leading group axis: weight [g, M, N], gram G = X X^T [g, N, N] (symmetric), cross C = X Y^T
// [g, N, M], codes int8 [g, R, N], scale float64 [g, R]. R = M, or S * M: S starts stacked along the rows, of which
// row r belongs to channel r mod M. The objective of a row is || y - s q X ||^2 = yy - 2 s q.c + s^2 q G q.
//
// Arithmetic on W, G and C is that of the dtype of weight / cross / target (float32 or float64); scales, divisions by
// them in weight space and all dot products are float64. Inputs are not changed. Rows do not influence one another,
// so results depend neither on the number of threads nor on what else is stacked. Empty tensors give empty results.
// NaN and infinities in floating inputs, codes beyond the limit and scales that are not positive are refused.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace bitsplit::split {

// codes, scale, explained (what the fit takes away from yy: objective = yy - explained), rounds used.
using Descent = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// What a device provides. Arguments are checked, contiguous and not empty; gram and factor have the dtype they came in.
struct Backend {
  // codes = nearest(w / s), s = <w, q> / <q, q> from s = max|w| / limit on, until no code moves. A zero row: s = 1.
  std::tuple<at::Tensor, at::Tensor> (*fwa)(const at::Tensor& weight, int bits);
  // The same objective over bit planes: digit = sign(r) where 2|r| >= s 2^i, else 0; r leaves the plane out.
  std::tuple<at::Tensor, at::Tensor> (*ofwa)(const at::Tensor& weight, const at::Tensor& codes,
                                             const at::Tensor& scale, int bits, int rounds);
  // Response space: s = q.c / q G q, then coordinate after coordinate the exact minimiser over the digits of
  // `planes` planes (weights 2^i, digits -limit..limit), top plane first. planes = 1 is plain descent over levels.
  // A coordinate with G_nn = 0 keeps its value; s is kept where q.c or q G q is not positive.
  Descent (*descend)(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& gram,
                     const at::Tensor& cross, int planes, int limit, int rounds);
  // Rounds coordinates 0..N-1 in turn, later ones making good for earlier: with U the upper triangular factor of the
  // damped G = U U^T, code n = nearest((w_n + sum over i < n of (w_i - s q_i) U_in / U_nn) / s).
  at::Tensor (*feedback)(const at::Tensor& target, const at::Tensor& scale, const at::Tensor& factor, int bits);
};

void register_backend(at::DeviceType device, const Backend& backend);

}  // namespace bitsplit::split
