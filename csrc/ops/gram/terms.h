// Which positions of a feature map have to be multiplied with which. Torch-free; tested in
// tests/csrc/test_core_gram.cpp.
//
// An entry G[(c, t), (c', t')] is the sum over output positions i of x[c, i*stride + t*dilation - padding]
// times x[c', i*stride + t'*dilation - padding], positions outside the image counting as zero. Written over
// the position r of the first factor it is a sum of x[c, r] x[c', r + shift] over a box of positions, where
// shift depends on t' - t only. So pairs of taps with the same difference share their products except near
// the border: each axis is cut where one of those boxes begins or ends, and every piece is multiplied once
// and added to all pairs that cover it. Nothing is ever subtracted. A 3x3 kernel needs the work of 13
// products of pixels instead of 45.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace bitsplit::gram {

struct Axis {
  int64_t size = 1, kernel = 1, stride = 1, padding = 0, dilation = 1;
  // Number of output positions; zero or less when the kernel does not fit.
  int64_t out() const { return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1; }
  // Extent of the padded image less that of the kernel; negative when the kernel does not fit.
  int64_t slack() const { return size + 2 * padding - dilation * (kernel - 1) - 1; }
  // Position in the image that tap `t` reads for output 0.
  int64_t origin(int64_t t) const { return t * dilation - padding; }
};
using Geometry = std::array<Axis, 3>;

// A pair of taps on one axis, or of all axes flattened.
struct TapPair {
  int64_t first, second;
};

// One product: the sum over a grid of `count` positions of a[a_first + k*a_step] times b[b_first + k*b_step],
// for all channels of a against all channels of b; it is a part of every destination.
struct Term {
  std::array<int64_t, 3> a_first, a_step, b_first, b_step, count;
  bool symmetric = false;  // a and b are the same positions of the same tensor
  std::vector<int64_t> destinations;
};

// Rank of the pair of taps first <= second among all such pairs.
inline int64_t pair_index(int64_t first, int64_t second, int64_t taps) {
  return first * taps - first * (first - 1) / 2 + (second - first);
}

// A piece of one axis: positions first, first + stride, ... of the first factor; the second lies `shift` taps
// further.
struct AxisPiece {
  int64_t shift, first, count;
  std::vector<TapPair> pairs;
};

// The outputs from `begin` up to `end` for which both taps read inside the image.
struct OutputRange {
  int64_t begin, end;
};

inline OutputRange outputs_inside(const Axis& axis, int64_t first_tap, int64_t second_tap) {
  const int64_t low = std::min(axis.origin(first_tap), axis.origin(second_tap));
  const int64_t high = std::max(axis.origin(first_tap), axis.origin(second_tap));
  const int64_t begin = low >= 0 ? 0 : (-low + axis.stride - 1) / axis.stride;
  const int64_t end = high >= axis.size ? 0 : (axis.size - high - 1) / axis.stride + 1;
  return {begin, std::min(end, axis.out())};
}

// The pieces for all pairs of taps of one axis whose difference is `shift` and whose first tap reads
// positions congruent to `residue` modulo the stride.
inline void append_pieces(const Axis& axis, int64_t shift, int64_t residue, std::vector<AxisPiece>& pieces) {
  struct Covered {
    TapPair pair;
    int64_t begin, end;  // of the positions of the first factor
  };
  std::vector<Covered> covered;
  std::vector<int64_t> cuts;
  for (int64_t tap = std::max<int64_t>(0, -shift); tap < axis.kernel - std::max<int64_t>(0, shift); ++tap) {
    const int64_t origin = axis.origin(tap);
    const OutputRange outputs = outputs_inside(axis, tap, tap + shift);
    if ((origin % axis.stride + axis.stride) % axis.stride != residue || outputs.begin >= outputs.end)
      continue;
    covered.push_back(
        {{tap, tap + shift}, origin + outputs.begin * axis.stride, origin + outputs.end * axis.stride});
    cuts.push_back(covered.back().begin);
    cuts.push_back(covered.back().end);
  }
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  for (size_t k = 0; k + 1 < cuts.size(); ++k) {
    AxisPiece piece{shift, cuts[k], (cuts[k + 1] - cuts[k]) / axis.stride, {}};
    for (const Covered& c : covered)
      if (c.begin <= cuts[k] && cuts[k + 1] <= c.end) piece.pairs.push_back(c.pair);
    if (!piece.pairs.empty()) pieces.push_back(std::move(piece));
  }
}

inline std::vector<AxisPiece> axis_pieces(const Axis& axis) {
  std::vector<AxisPiece> pieces;
  for (int64_t shift = 1 - axis.kernel; shift < axis.kernel; ++shift)
    for (int64_t residue = 0; residue < axis.stride; ++residue) append_pieces(axis, shift, residue, pieces);
  return pieces;
}

// What all terms of G come to: positions to multiply, and destinations to add their products to.
struct Work {
  double positions = 1, destinations = 1;
};

inline Work gram_work(const Geometry& geometry) {
  Work work;
  for (const Axis& axis : geometry) {
    double positions = 0, destinations = 0;
    for (const AxisPiece& piece : axis_pieces(axis)) {
      positions += double(piece.count);
      destinations += double(piece.pairs.size());
    }
    work.positions *= positions;
    work.destinations *= destinations;
  }
  return {work.positions / 2, work.destinations / 2};  // the other half follows by symmetry
}

inline int64_t tap_count(const Geometry& geometry) {
  return geometry[0].kernel * geometry[1].kernel * geometry[2].kernel;
}

// The terms of G. Destinations are pair_index(t, t') with t <= t'; the other half of G follows by symmetry.
inline std::vector<Term> gram_terms(const Geometry& g) {
  const std::vector<AxisPiece> depth = axis_pieces(g[0]), height = axis_pieces(g[1]),
                               width = axis_pieces(g[2]);
  const int64_t taps = tap_count(g);
  auto flat = [&](int64_t d, int64_t h, int64_t w) { return (d * g[1].kernel + h) * g[2].kernel + w; };
  std::vector<Term> terms;
  for (const AxisPiece& d : depth)
    for (const AxisPiece& h : height)
      for (const AxisPiece& w : width) {
        const std::array<int64_t, 3> shift{d.shift, h.shift, w.shift};
        if (shift < std::array<int64_t, 3>{0, 0, 0}) continue;  // the transposed half
        Term term;
        term.a_first = {d.first, h.first, w.first};
        term.count = {d.count, h.count, w.count};
        for (int k = 0; k < 3; ++k) {
          term.b_first[k] = term.a_first[k] + shift[k] * g[k].dilation;
          term.a_step[k] = term.b_step[k] = g[k].stride;
        }
        term.symmetric = shift == std::array<int64_t, 3>{0, 0, 0};
        for (const TapPair& pd : d.pairs)
          for (const TapPair& ph : h.pairs)
            for (const TapPair& pw : w.pairs)
              term.destinations.push_back(pair_index(flat(pd.first, ph.first, pw.first),
                                                     flat(pd.second, ph.second, pw.second), taps));
        terms.push_back(std::move(term));
      }
  return terms;
}

// The terms of C: one for every tap that ever reads inside the image; a is the input, b the output.
inline std::vector<Term> cross_terms(const Geometry& g) {
  std::vector<Term> terms;
  const int64_t taps = tap_count(g);
  for (int64_t tap = 0; tap < taps; ++tap) {
    const std::array<int64_t, 3> t{tap / (g[1].kernel * g[2].kernel), tap / g[2].kernel % g[1].kernel,
                                   tap % g[2].kernel};
    Term term;
    for (int k = 0; k < 3; ++k) {
      const OutputRange outputs = outputs_inside(g[k], t[k], t[k]);
      term.a_first[k] = g[k].origin(t[k]) + outputs.begin * g[k].stride;
      term.a_step[k] = g[k].stride;
      term.b_first[k] = outputs.begin;
      term.b_step[k] = 1;
      term.count[k] = std::max<int64_t>(0, outputs.end - outputs.begin);
    }
    term.destinations = {tap};
    if (term.count[0] * term.count[1] * term.count[2] > 0) terms.push_back(std::move(term));
  }
  return terms;
}

}  // namespace bitsplit::gram
