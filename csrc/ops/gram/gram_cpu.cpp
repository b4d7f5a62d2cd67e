// The CPU path: tiles of the batch are packed into panels (tiles.h, operands.h), the terms of the layer
// (terms.h) are multiplied on them (products.h), and sums are added to the accumulators once per chunk of
// tiles.
#include <torch/library.h>

#include "ops/gram/tiles.h"

namespace bitsplit::gram {
namespace {

// Fewer jobs than this are cut further, along the tiles, so that several threads have work.
constexpr int64_t kEnoughJobs = 16;

// Runs compute(job, tiles, sums) and then emit(job, sums) for every job. When the tiles are cut into slices,
// the sums of slices are added in order: the result does not depend on the number of threads.
template <typename T, typename Compute, typename Emit>
void run_jobs(int64_t jobs, const std::vector<Tile<T>>& tiles, int64_t size, const Compute& compute,
              const Emit& emit) {
  using Tiles = c10::ArrayRef<Tile<T>>;
  const int64_t count = tiles.size(), slices = std::clamp<int64_t>(kEnoughJobs / jobs, 1, count);
  if (slices == 1) {
    return in_parallel(jobs, [&](int64_t job) {
      std::vector<double> sums(size);
      compute(job, Tiles(tiles), sums.data());
      emit(job, sums.data());
    });
  }
  std::vector<double> sums(jobs * slices * size);
  in_parallel(jobs * slices, [&](int64_t k) {
    const int64_t begin = count * (k % slices) / slices, end = count * (k % slices + 1) / slices;
    compute(k / slices, Tiles(tiles).slice(begin, end - begin), sums.data() + k * size);
  });
  in_parallel(jobs, [&](int64_t job) {
    double* total = sums.data() + job * slices * size;
    for (int64_t k = 1; k < slices; ++k)
      for (int64_t i = 0; i < size; ++i) total[i] += total[k * size + i];
    emit(job, total);
  });
}

// The block of columns [a, a + a_count) against [b, b + b_count) of one group.
struct ChannelJob {
  int64_t group, a, a_count, b, b_count;
};

template <typename T>
class ChannelProducts {
 public:
  ChannelProducts(const Problem& p, const Layer<T>& layer)
      : p_(p), layer_(layer), taps_(layer.taps()), block_(taps_ > 9 ? kLanes : kBlock) {}

  void gram(const std::vector<Tile<T>>& tiles) const {
    std::vector<ChannelJob> jobs;
    const int64_t columns = layer_.x.columns();
    for (int64_t g = 0; g < p_.groups; ++g)
      for (int64_t a = 0; a < columns; a += block_)
        for (int64_t b = a; b < columns; b += block_)
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

  // Sums of one pair of taps for all channels of a block: value [row][column] at sums[row * row_step + ...].
  struct View {
    const double* sums;
    int64_t row_step, column_step;
    View transposed() const { return {sums, column_step, row_step}; }
  };

  // Adds to G's block and its mirror image: forward[pair][a][b] holds the pairs of taps t <= u of columns (a,
  // t) and (b, u), backward[pair][b][a] the pairs t > u.
  void add_gram(const ChannelJob& job, const double* forward, const double* backward) const {
    std::vector<View> views(taps_ * taps_), mirrored(taps_ * taps_);
    for (int64_t t = 0; t < taps_; ++t)
      for (int64_t u = 0; u < taps_; ++u) {
        const int64_t size = block_ * block_;
        View& view = views[t * taps_ + u];
        view = t <= u ? View{forward + pair_index(t, u, taps_) * size, block_, 1}
                      : View{backward + pair_index(u, t, taps_) * size, 1, block_};
        mirrored[u * taps_ + t] = view.transposed();
      }
    const int64_t n = layer_.x.columns() * taps_;
    double* G = p_.G.mutable_data_ptr<double>() + job.group * n * n;
    add_views(views, job.a_count, job.b_count, G + (job.a * n + job.b) * taps_);
    if (job.a != job.b) add_views(mirrored, job.b_count, job.a_count, G + (job.b * n + job.a) * taps_);
  }

  // block[(i, t)][(j, u)] += views[t, u][i][j], in the order of memory.
  void add_views(const std::vector<View>& views, int64_t rows, int64_t columns, double* block) const {
    const int64_t n = layer_.x.columns() * taps_;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t t = 0; t < taps_; ++t, block += n) {
        double* line = block;
        for (int64_t j = 0; j < columns; ++j)
          for (int64_t u = 0; u < taps_; ++u) {
            const View& view = views[t * taps_ + u];
            *line++ += view.sums[i * view.row_step + j * view.column_step];
          }
      }
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

// The same when lanes are groups: one job is 16 groups.
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
          const double sum = sums[((pair_index(t, u, taps_) * width_ + a) * width_ + b) * kLanes + lane];
          G[i * n + j] += sum;
          if (i != j) G[j * n + i] += sum;
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

// sum_x, sum_y, sum_yy: products with a panel of ones, or of a panel with itself, lane by lane.
template <typename T>
void add_sums(const Problem& p, const Layer<T>& layer, const std::vector<Tile<T>>& tiles) {
  const int64_t taps = layer.taps(), x_columns = layer.x.columns();
  const std::vector<T> ones(layer.y_positions() * layer.plan.tile * kLanes, T(1));
  in_parallel(layer.x.blocks(), [&](int64_t block) {
    std::vector<double> sums(taps * kLanes);
    for (const Tile<T>& tile : tiles)
      for (const Step& step : *tile.cross)
        multiply_lanes(tile.x + block * tile.x_stride, ones.data(), {0, 0}, 1, 1, false, step.walk,
                       sums.data() + step.term->destinations[0] * kLanes);
    for (int64_t lane = 0; lane < layer.x.used_lanes(block); ++lane)
      for (int64_t t = 0; t < taps; ++t)
        p.sum_x.mutable_data_ptr<double>()
            [(layer.x.group_of(block, lane) * x_columns + layer.x.column_of(block, lane)) * taps + t] +=
            sums[t * kLanes + lane];
  });
  if (p.rows == 0) return;
  in_parallel(layer.y.blocks(), [&](int64_t block) {
    double sums[kLanes] = {}, squares[kLanes] = {};
    for (const Tile<T>& tile : tiles) {
      const T* panel = tile.y + block * tile.y_stride;
      Walk walk;
      walk.loops[3] = {layer.y_positions() * tile.count, 1, 1};
      multiply_lanes(panel, ones.data(), {0, 0}, 1, 1, false, walk, sums);
      multiply_lanes(panel, panel, {0, 0}, 1, 1, false, walk, squares);
    }
    for (int64_t lane = 0; lane < layer.y.used_lanes(block); ++lane) {
      const int64_t row = layer.y.group_of(block, lane) * p.rows + layer.y.column_of(block, lane);
      p.sum_y.mutable_data_ptr<double>()[row] += sums[lane];
      p.sum_yy.mutable_data_ptr<double>()[row] += squares[lane];
    }
  });
}

template <template <typename> class Products, typename T>
void accumulate(const Problem& p, const Layer<T>& layer) {
  const Products<T> products(p, layer);
  Packer<T> packer(p, layer);
  for (int64_t first = 0; first < layer.plan.tiles; first += layer.plan.chunk) {
    const std::vector<Tile<T>> tiles =
        packer.pack(first, std::min(layer.plan.chunk, layer.plan.tiles - first));
    products.gram(tiles);
    if (p.rows > 0) products.cross(tiles);
    add_sums(p, layer, tiles);
  }
}

void gram_cpu(const at::Tensor& x, const std::optional<at::Tensor>& y, at::IntArrayRef kernel,
              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
              const std::optional<at::Tensor>& positions, at::Tensor G, at::Tensor C, at::Tensor sum_x,
              at::Tensor sum_y, at::Tensor sum_yy) {
  const Problem p =
      check(x, y, kernel, stride, padding, dilation, groups, positions, G, C, sum_x, sum_y, sum_yy);
  if (p.images * p.patches_per_image() == 0) return;
  AT_DISPATCH_FLOATING_TYPES(p.x.scalar_type(), "gram", [&] {
    const Layer<scalar_t> layer(p);
    if (layer.plan.lanes_are_groups)
      accumulate<LaneProducts>(p, layer);
    else
      accumulate<ChannelProducts>(p, layer);
  });
}

}  // namespace
}  // namespace bitsplit::gram

TORCH_LIBRARY_IMPL(bitsplit, CPU, m) { m.impl("gram", bitsplit::gram::gram_cpu); }
