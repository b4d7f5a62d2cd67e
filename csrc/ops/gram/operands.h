// How the CPU path brings features into panels of 16 lanes. Torch-free.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "core/integers.h"
#include "ops/gram/products.h"

namespace bitsplit::gram {

// Distance in memory from one image, and from one position along each axis, to the next.
struct Strides {
  int64_t image;
  std::array<int64_t, 3> axis;
};

// Where the positions of a tile lie in memory, relative to a channel's first value; for patches, of which
// output position each one is.
struct Places {
  std::vector<int64_t> base, output;
};

// Whole images: positions are ordered [depth, height, width, images].
inline Places image_places(const std::array<int64_t, 3>& size, const Strides& strides, int64_t first_image,
                           int64_t images) {
  Places places;
  places.base.reserve(size[0] * size[1] * size[2] * images);
  for (int64_t d = 0; d < size[0]; ++d)
    for (int64_t h = 0; h < size[1]; ++h)
      for (int64_t w = 0; w < size[2]; ++w)
        for (int64_t image = first_image; image < first_image + images; ++image)
          places.base.push_back(image * strides.image + d * strides.axis[0] + h * strides.axis[1] +
                                w * strides.axis[2]);
  return places;
}

// What every tap reads for every output position: [tap][output], relative to the image; kOutside where that
// is zero.
struct PatchTable {
  static constexpr int64_t kOutside = -1;
  int64_t outputs = 0;
  std::vector<int64_t> entries;
};

inline PatchTable patch_table(const Geometry& g, const std::array<int64_t, 3>& strides) {
  const int64_t out[3] = {g[0].out(), g[1].out(), g[2].out()};
  PatchTable table{out[0] * out[1] * out[2], {}};
  table.entries.reserve(tap_count(g) * table.outputs);
  for (int64_t tap = 0; tap < tap_count(g); ++tap)
    for (int64_t output = 0; output < table.outputs; ++output) {
      int64_t tap_left = tap, output_left = output, entry = 0;
      bool inside = true;
      for (int k = 2; k >= 0; --k) {
        const int64_t r = output_left % out[k] * g[k].stride + g[k].origin(tap_left % g[k].kernel);
        inside = inside && r >= 0 && r < g[k].size;
        entry += r * strides[k];
        output_left /= out[k];
        tap_left /= g[k].kernel;
      }
      table.entries.push_back(inside ? entry : PatchTable::kOutside);
    }
  return table;
}

// The columns of all groups of x or y, cut into blocks of 16 lanes: lanes are columns of one group, or, when
// groups are narrow, the same column of 16 groups. A column is a channel, or a channel and a tap when patches
// are unfolded.
template <typename T>
struct Operand {
  const T* data = nullptr;
  int64_t channel_stride = 0, groups = 0, channels = 0, taps = 1;
  bool lanes_are_groups = false;

  int64_t columns() const { return channels * taps; }
  int64_t blocks_per_group() const { return divide_up(columns(), kLanes); }
  int64_t group_blocks() const { return divide_up(groups, kLanes); }
  int64_t blocks() const {
    return lanes_are_groups ? group_blocks() * columns() : groups * blocks_per_group();
  }

  // Group and column of a lane; lanes beyond the last one are left out by `used_lanes`.
  int64_t group_of(int64_t block, int64_t lane) const {
    return lanes_are_groups ? block / columns() * kLanes + lane : block / blocks_per_group();
  }
  int64_t column_of(int64_t block, int64_t lane) const {
    return lanes_are_groups ? block % columns() : block % blocks_per_group() * kLanes + lane;
  }
  int64_t used_lanes(int64_t block) const {
    const int64_t left = lanes_are_groups ? groups - group_of(block, 0) : columns() - column_of(block, 0);
    return std::min(left, kLanes);
  }

  // panel[position * 16 + lane] = the lane's value at that position of the tile; unused lanes are zero.
  void pack_image(int64_t block, const Places& places, T* panel) const {
    const T* source = first_value(block, 0);
    const int64_t used = used_lanes(block), lane_stride = used > 1 ? first_value(block, 1) - source : 0;
    std::fill_n(panel, used < kLanes ? places.base.size() * kLanes : 0, T(0));
    for (int64_t base : places.base) {
      if (used == kLanes && lane_stride == 1)
        std::copy_n(source + base, kLanes, panel);
      else if (used == kLanes)
        for (int64_t lane = 0; lane < kLanes; ++lane) panel[lane] = source[base + lane * lane_stride];
      else
        for (int64_t lane = 0; lane < used; ++lane) panel[lane] = source[base + lane * lane_stride];
      panel += kLanes;
    }
  }

  // The same for patches, whose columns are channels and taps.
  void pack_patches(int64_t block, const Places& places, const PatchTable& table, T* panel) const {
    constexpr int64_t kStretch = 256;  // as much of the panel as stays in the first cache from lane to lane
    const int64_t used = used_lanes(block), count = places.base.size();
    std::fill_n(panel, count * kLanes, T(0));
    for (int64_t begin = 0; begin < count; begin += kStretch)
      for (int64_t lane = 0; lane < used; ++lane) {
        const T* source = first_value(block, lane);
        const int64_t* entries = table.entries.data() + column_of(block, lane) % taps * table.outputs;
        for (int64_t p = begin; p < std::min(begin + kStretch, count); ++p) {
          const int64_t entry = entries[places.output[p]];
          if (entry != PatchTable::kOutside) panel[p * kLanes + lane] = source[places.base[p] + entry];
        }
      }
  }

 private:
  const T* first_value(int64_t block, int64_t lane) const {
    return data + (group_of(block, lane) * channels + column_of(block, lane) / taps) * channel_stride;
  }
};

}  // namespace bitsplit::gram
