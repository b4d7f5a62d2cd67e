// G and C when lanes are columns of one group: blocks of columns against blocks of columns.
#pragma once

#include "ops/gram/jobs.h"
#include "ops/gram/products.h"
#include "ops/gram/tiles.h"

namespace bitsplit::gram {

// The block of columns [a, a + a_count) against [b, b + b_count) of one group.
struct ChannelJob {
  int64_t group, a, a_count, b, b_count;
};

// So many blocks follow each other against the same block, whose panels then come from a cache, not from
// memory.
constexpr int64_t kBand = 8;

template <typename T>
class ChannelProducts {
 public:
  ChannelProducts(const Problem& p, const Layer<T>& layer)
      : p_(p), layer_(layer), taps_(layer.taps()), block_(taps_ > 9 ? kLanes : kBlock) {}

  void gram(const std::vector<Tile<T>>& tiles) const {
    std::vector<ChannelJob> jobs;
    const int64_t columns = layer_.x.columns();
    for (int64_t g = 0; g < p_.groups; ++g)
      for (int64_t band = 0; band < columns; band += kBand * block_)
        for (int64_t b = band; b < columns; b += block_)
          for (int64_t a = band; a < std::min(band + kBand * block_, b + block_); a += block_)
            jobs.push_back({g, a, std::min(block_, columns - a), b, std::min(block_, columns - b)});
    const int64_t half = layer_.pairs() * block_ * block_;
    run_jobs(
        jobs.size(), tiles, 2 * half,
        [&](int64_t k, c10::ArrayRef<Tile<T>> some, double* sums) {
          const ChannelJob& job = jobs[k];
          for (const Tile<T>& tile : some) {
            const T* a = x_panels(tile, job.group, job.a);
            const T* b = x_panels(tile, job.group, job.b);
            const Panels panels{tile.x_stride, tile.x_stride};
            for (const Step& step : *tile.gram) {
              multiply(a, b, panels, job.a_count, job.b_count, step, sums);
              if (a != b && !step.term->symmetric)
                multiply(b, a, panels, job.b_count, job.a_count, step, sums + half);
            }
          }
        },
        [&](int64_t k, const double* sums) {
          const ChannelJob& job = jobs[k];
          add_gram(job, sums, job.a == job.b ? sums : sums + half);
        });
  }

  void cross(const std::vector<Tile<T>>& tiles) const {
    std::vector<ChannelJob> jobs;
    const int64_t columns = layer_.x.columns();
    for (int64_t g = 0; g < p_.groups; ++g)
      for (int64_t a = 0; a < columns; a += block_)
        for (int64_t b = 0; b < p_.rows; b += block_)
          jobs.push_back({g, a, std::min(block_, columns - a), b, std::min(block_, p_.rows - b)});
    run_jobs(
        jobs.size(), tiles, taps_ * block_ * block_,
        [&](int64_t k, c10::ArrayRef<Tile<T>> some, double* sums) {
          const ChannelJob& job = jobs[k];
          for (const Tile<T>& tile : some)
            for (const Step& step : *tile.cross)
              multiply(x_panels(tile, job.group, job.a), y_panels(tile, job.group, job.b),
                       {tile.x_stride, tile.y_stride}, job.a_count, job.b_count, step, sums);
        },
        [&](int64_t k, const double* sums) { add_cross(jobs[k], sums); });
  }

 private:
  const T* x_panels(const Tile<T>& tile, int64_t group, int64_t column) const {
    return tile.x + (group * layer_.x.blocks_per_group() + column / kLanes) * tile.x_stride;
  }
  const T* y_panels(const Tile<T>& tile, int64_t group, int64_t column) const {
    return tile.y + (group * layer_.y.blocks_per_group() + column / kLanes) * tile.y_stride;
  }

  // sums[destination][a][b] += the products of the step.
  void multiply(const T* a, const T* b, Panels panels, int64_t a_count, int64_t b_count, const Step& step,
                double* sums) const {
    double products[kBlock * kBlock] = {};
    multiply_channels(a, b, panels, a_count, b_count, step.walk, products);
    for (int64_t destination : step.term->destinations) {
      double* sum = sums + destination * block_ * block_;
      for (int64_t i = 0; i < a_count; ++i)
        for (int64_t j = 0; j < b_count; ++j) sum[i * block_ + j] += products[i * kBlock + j];
    }
  }

  // Adds to G's block, on or above the diagonal: forward[pair][a][b] holds the pairs of taps t <= u of
  // columns (a, t) and (b, u), backward[pair][b][a] the pairs t > u.
  void add_gram(const ChannelJob& job, const double* forward, const double* backward) const {
    const int64_t n = layer_.x.columns() * taps_, size = block_ * block_;
    double* G = p_.G.mutable_data_ptr<double>() + job.group * n * n + (job.a * n + job.b) * taps_;
    std::vector<Row> rows(taps_);
    for (int64_t i = 0; i < job.a_count; ++i)
      for (int64_t t = 0; t < taps_; ++t, G += n) {
        for (int64_t u = 0; u < taps_; ++u)
          rows[u] = t <= u ? Row{forward + pair_index(t, u, taps_) * size + i * block_, 1}
                           : Row{backward + pair_index(u, t, taps_) * size + i, block_};
        add_rows(rows, job.b_count, G);
      }
  }

  // The sums of column j at sums[j * step].
  struct Row {
    const double* sums;
    int64_t step;
  };

  // line[(j, u)] += rows[u][j], in the order of memory.
  static void add_rows(const std::vector<Row>& rows, int64_t columns, double* line) {
    if (rows.size() == 1) {
      const double* sums = rows[0].sums;
      for (int64_t j = 0; j < columns; ++j) line[j] += sums[j];
      return;
    }
    for (int64_t j = 0; j < columns; ++j)
      for (const Row& row : rows) *line++ += row.sums[j * row.step];
  }

  void add_cross(const ChannelJob& job, const double* sums) const {
    const int64_t n = layer_.x.columns() * taps_;
    double* block = p_.C.mutable_data_ptr<double>() + (job.group * n + job.a * taps_) * p_.rows + job.b;
    for (int64_t t = 0; t < taps_; ++t)
      for (int64_t a = 0; a < job.a_count; ++a)
        for (int64_t b = 0; b < job.b_count; ++b)
          block[(a * taps_ + t) * p_.rows + b] += sums[(t * block_ + a) * block_ + b];
  }

  const Problem& p_;
  const Layer<T>& layer_;
  const int64_t taps_, block_;
};

}  // namespace bitsplit::gram
