// G and C when lanes are groups: 16 groups side by side, each with few columns (depthwise layers).
#pragma once

#include "ops/gram/jobs.h"
#include "ops/gram/products.h"
#include "ops/gram/tiles.h"

namespace bitsplit::gram {

// One job is 16 groups.
template <typename T>
class LaneProducts {
 public:
  LaneProducts(const Problem& p, const Layer<T>& layer)
      : p_(p), layer_(layer), taps_(layer.taps()), width_(layer.x.columns()) {}

  void gram(const std::vector<Tile<T>>& tiles) const {
    run_jobs(
        layer_.x.group_blocks(), tiles, layer_.pairs() * width_ * width_ * kLanes,
        [&](int64_t block, c10::ArrayRef<Tile<T>> some, double* sums) {
          for (const Tile<T>& tile : some) {
            const T* a = tile.x + block * width_ * tile.x_stride;
            multiply(a, a, {tile.x_stride, tile.x_stride}, width_, *tile.gram, sums);
          }
        },
        [&](int64_t block, const double* sums) { add_gram(block, sums); });
  }

  void cross(const std::vector<Tile<T>>& tiles) const {
    run_jobs(
        layer_.x.group_blocks(), tiles, taps_ * width_ * p_.rows * kLanes,
        [&](int64_t block, c10::ArrayRef<Tile<T>> some, double* sums) {
          for (const Tile<T>& tile : some)
            multiply(tile.x + block * width_ * tile.x_stride, tile.y + block * p_.rows * tile.y_stride,
                     {tile.x_stride, tile.y_stride}, p_.rows, *tile.cross, sums);
        },
        [&](int64_t block, const double* sums) { add_cross(block, sums); });
  }

 private:
  // sums[destination][a][b][lane] += the products of all steps; of symmetric ones only a <= b.
  void multiply(const T* a, const T* b, Panels panels, int64_t b_count, const std::vector<Step>& steps,
                double* sums) const {
    const int64_t size = width_ * b_count * kLanes;
    std::vector<double> products(size);
    for (const Step& step : steps) {
      std::fill(products.begin(), products.end(), 0.0);
      multiply_lanes(a, b, panels, width_, b_count, step.term->symmetric, step.walk, products.data());
      for (int64_t destination : step.term->destinations)
        for (int64_t i = 0; i < size; ++i) sums[destination * size + i] += products[i];
    }
  }

  void add_gram(int64_t block, const double* sums) const {
    const int64_t n = width_ * taps_;
    for (int64_t lane = 0; lane < std::min(kLanes, p_.groups - block * kLanes); ++lane) {
      double* G = p_.G.mutable_data_ptr<double>() + (block * kLanes + lane) * n * n;
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = i; j < n; ++j) {
          int64_t a = i / taps_, t = i % taps_, b = j / taps_, u = j % taps_;
          if (t > u) std::swap(a, b), std::swap(t, u);
          if (t == u && a > b) std::swap(a, b);
          G[i * n + j] += sums[((pair_index(t, u, taps_) * width_ + a) * width_ + b) * kLanes + lane];
        }
    }
  }

  void add_cross(int64_t block, const double* sums) const {
    const int64_t n = width_ * taps_;
    for (int64_t lane = 0; lane < std::min(kLanes, p_.groups - block * kLanes); ++lane) {
      double* C = p_.C.mutable_data_ptr<double>() + (block * kLanes + lane) * n * p_.rows;
      for (int64_t t = 0; t < taps_; ++t)
        for (int64_t a = 0; a < width_; ++a)
          for (int64_t b = 0; b < p_.rows; ++b)
            C[(a * taps_ + t) * p_.rows + b] += sums[((t * width_ + a) * p_.rows + b) * kLanes + lane];
    }
  }

  const Problem& p_;
  const Layer<T>& layer_;
  const int64_t taps_, width_;
};

}  // namespace bitsplit::gram
