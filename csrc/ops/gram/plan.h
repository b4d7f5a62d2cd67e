// Which way the CPU path takes for a layer, and how it cuts the batch into tiles. Depends on sizes alone,
// never on the number of threads, so that results do not either. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/integers.h"
#include "ops/gram/products.h"
#include "ops/gram/terms.h"

namespace bitsplit::gram {

struct Shape {
  Geometry geometry;
  int64_t images, groups, channels, rows;
  bool sampled;     // only some output positions count
  int64_t patches;  // per image
};

struct Plan {
  bool patches;           // unfold small tiles of patches; else multiply shifted images
  bool lanes_are_groups;  // 16 groups side by side; else 16 columns of a group
  int64_t tile;           // images per tile, or patches per tile
  int64_t tiles;
  int64_t chunk;  // tiles that are packed at the same time
};

constexpr int64_t kTilePositions = 1024;
constexpr int64_t kChunkValues = int64_t{8} << 20;
constexpr int64_t kLeastChunk = 4;  // tiles: adding a chunk's sums to a large G costs as much as a tile

// Multiply-adds per image over all pairs of columns, counting idle lanes.
inline double multiply_adds(int64_t groups, int64_t width, bool lanes_are_groups) {
  constexpr double kLanePenalty = 2;  // two loads for every product
  if (lanes_are_groups)
    return kLanePenalty * double(round_up(groups, kLanes)) * double(width) * double(width);
  return double(groups) * double(round_up(width, kLanes)) * double(round_up(width, kLanes));
}

// Sums in memory that one product of all pairs of columns is added to, counting idle lanes.
inline double sums_of_product(int64_t groups, int64_t width, bool lanes_are_groups) {
  if (lanes_are_groups) return double(round_up(groups, kLanes)) * double(width) * double(width);
  return double(groups) * double(width) * double(round_up(width, kLanes));
}

inline Plan choose_plan(const Shape& shape) {
  const auto& g = shape.geometry;
  const int64_t outputs = g[0].out() * g[1].out() * g[2].out(), image = g[0].size * g[1].size * g[2].size;
  const int64_t columns = shape.channels * tap_count(g), width = shape.groups * (shape.channels + shape.rows);

  // Multiply-adds in the time it takes to fetch one value of a patch, and to add one product to a sum.
  constexpr double kGather = 64, kScatter = 16;
  const Work shared = gram_work(g);
  const double additions = shared.destinations / std::max(1.0, double(kTilePositions) / double(image));
  Plan best{};
  double least = -1;
  for (bool patches : {false, true})
    for (bool lanes_are_groups : {false, true}) {
      if (shape.sampled && !patches) continue;
      const double unfolded = 0.5 * double(outputs) * multiply_adds(shape.groups, columns, lanes_are_groups) +
                              kGather * double(outputs) * double(columns * shape.groups);
      const double shifted =
          shared.positions * multiply_adds(shape.groups, shape.channels, lanes_are_groups) +
          kScatter * additions * sums_of_product(shape.groups, shape.channels, lanes_are_groups);
      const double cost = patches ? unfolded : shifted;
      if (least >= 0 && cost >= least) continue;
      least = cost;
      best.patches = patches;
      best.lanes_are_groups = lanes_are_groups;
    }
  const int64_t total = best.patches ? shape.images * shape.patches : shape.images;
  const int64_t positions = best.patches ? 1 : std::max(image, outputs);
  const int64_t values = positions * (best.patches ? shape.groups * (columns + shape.rows) : width);
  best.tile = std::clamp<int64_t>(std::min(kTilePositions / positions, kChunkValues / values), 1, total);
  best.tiles = divide_up(total, best.tile);
  best.chunk = std::min(std::max(kChunkValues / (best.tile * values), kLeastChunk), best.tiles);
  return best;
}

}  // namespace bitsplit::gram
