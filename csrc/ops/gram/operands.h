// How the CPU path brings features into panels of 16 lanes. Torch-free.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "ops/gram/products.h"

namespace bitsplit::gram {

// Where a tile's positions lie in memory: entry [tap][position], relative to the channel's first value;
// kOutside where the value is zero.
struct Offsets {
  static constexpr int64_t kOutside = -1;
  int64_t positions = 0;
  bool whole = true;  // every tap reads the same positions, all inside
  std::vector<int64_t> entries;
};

// Distance in memory from one image, and from one position along each axis, to the next.
struct Strides {
  int64_t image;
  std::array<int64_t, 3> axis;
};

// Whole images: positions are ordered [depth, height, width, images].
inline Offsets image_offsets(const std::array<int64_t, 3>& size, const Strides& strides, int64_t first_image,
                             int64_t images) {
  Offsets offsets{size[0] * size[1] * size[2] * images, true, {}};
  offsets.entries.reserve(offsets.positions);
  for (int64_t d = 0; d < size[0]; ++d)
    for (int64_t h = 0; h < size[1]; ++h)
      for (int64_t w = 0; w < size[2]; ++w)
        for (int64_t image = first_image; image < first_image + images; ++image)
          offsets.entries.push_back(image * strides.image + d * strides.axis[0] + h * strides.axis[1] +
                                    w * strides.axis[2]);
  return offsets;
}

// A patch: its image and the output position it belongs to.
struct Sample {
  int64_t image;
  std::array<int64_t, 3> output;
};

// What every tap of the samples reads.
inline Offsets patch_offsets(const Geometry& g, const Strides& strides, const std::vector<Sample>& samples) {
  Offsets offsets{static_cast<int64_t>(samples.size()), false, {}};
  offsets.entries.reserve(samples.size() * tap_count(g));
  std::array<int64_t, 3> tap;
  for (tap[0] = 0; tap[0] < g[0].kernel; ++tap[0])
    for (tap[1] = 0; tap[1] < g[1].kernel; ++tap[1])
      for (tap[2] = 0; tap[2] < g[2].kernel; ++tap[2])
        for (const Sample& sample : samples) {
          int64_t entry = sample.image * strides.image;
          bool inside = true;
          for (int k = 0; k < 3; ++k) {
            const int64_t r = sample.output[k] * g[k].stride + g[k].origin(tap[k]);
            inside = inside && r >= 0 && r < g[k].size;
            entry += r * strides.axis[k];
          }
          offsets.entries.push_back(inside ? entry : Offsets::kOutside);
        }
  return offsets;
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
  int64_t blocks_per_group() const { return (columns() + kLanes - 1) / kLanes; }
  int64_t group_blocks() const { return (groups + kLanes - 1) / kLanes; }
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
  void pack(int64_t block, const Offsets& offsets, T* panel) const {
    const T* source[kLanes];
    const int64_t* table[kLanes];
    const int64_t used = used_lanes(block);
    for (int64_t lane = 0; lane < used; ++lane) {
      const int64_t column = column_of(block, lane);
      source[lane] = data + (group_of(block, lane) * channels + column / taps) * channel_stride;
      table[lane] = offsets.entries.data() + column % taps * offsets.positions;
    }
    if (offsets.whole && used == kLanes) return pack_whole(source, offsets, panel);
    std::fill_n(panel, offsets.positions * kLanes, T(0));
    for (int64_t lane = 0; lane < used; ++lane)
      for (int64_t p = 0; p < offsets.positions; ++p)
        if (table[lane][p] != Offsets::kOutside) panel[p * kLanes + lane] = source[lane][table[lane][p]];
  }

 private:
  static void pack_whole(const T* const* source, const Offsets& offsets, T* panel) {
    const int64_t lane_stride = source[1] - source[0];
    for (int64_t p = 0; p < offsets.positions; ++p, panel += kLanes) {
      const T* values = source[0] + offsets.entries[p];
      if (lane_stride == 1)
        std::copy_n(values, kLanes, panel);
      else
        for (int64_t lane = 0; lane < kLanes; ++lane) panel[lane] = values[lane * lane_stride];
    }
  }
};

}  // namespace bitsplit::gram
