// The batch as the jobs of the CPU path see it: the layer as it is multiplied, and packed tiles of its
// features.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "ops/gram/gram.h"
#include "ops/gram/operands.h"
#include "ops/gram/plan.h"

namespace bitsplit::gram {

template <typename Job>
void in_parallel(int64_t count, const Job& job) {
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) job(i);
  });
}

// A problem under its plan. When patches are unfolded, a patch is an "image" of one position with N channels.
template <typename T>
struct Layer {
  explicit Layer(const Problem& p) : geometry(p.geometry) {
    plan = choose_plan(
        {geometry, p.images, p.groups, p.channels, p.rows, p.positions.defined(), p.patches_per_image()});
    x = {p.x.const_data_ptr<T>(), p.x.stride(1), p.groups, p.channels, 1, plan.lanes_are_groups};
    if (p.rows > 0) y = {p.y.const_data_ptr<T>(), p.y.stride(1), p.groups, p.rows, 1, plan.lanes_are_groups};
    if (plan.patches) {
      x.taps = p.taps();
      geometry = Geometry{};
    }
    gram = gram_terms(geometry);
    cross = cross_terms(geometry);
    for (int k = 0; k < 3; ++k) {
      x_size[k] = geometry[k].size;
      y_size[k] = geometry[k].out();
    }
  }

  Geometry geometry;
  Plan plan;
  Operand<T> x, y;
  std::vector<Term> gram, cross;
  std::array<int64_t, 3> x_size, y_size;

  int64_t taps() const { return tap_count(geometry); }
  int64_t pairs() const { return taps() * (taps() + 1) / 2; }
  int64_t x_positions() const { return x_size[0] * x_size[1] * x_size[2]; }
  int64_t y_positions() const { return y_size[0] * y_size[1] * y_size[2]; }
};

// A term laid out for the number of images in a tile.
struct Step {
  const Term* term;
  Walk walk;
};

template <typename T>
struct Tile {
  int64_t count;               // images
  T *x, *y;                    // first panels
  int64_t x_stride, y_stride;  // from one panel to the next
  const std::vector<Step>*gram, *cross;
};

// Packs the batch, chunk by chunk, into buffers of a fixed size.
template <typename T>
class Packer {
 public:
  Packer(const Problem& problem, const Layer<T>& layer) : p_(problem), layer_(layer) {
    const Plan& plan = layer.plan;
    total_ = plan.patches ? p_.images * p_.patches_per_image() : p_.images;
    x_tile_ = layer.x.blocks() * layer.x_positions() * plan.tile * kLanes;
    y_tile_ = p_.rows > 0 ? layer.y.blocks() * layer.y_positions() * plan.tile * kLanes : 0;
    const auto dtype = c10::CppTypeToScalarType<T>::value;
    panels_ = at::empty({plan.chunk * (x_tile_ + y_tile_)}, dtype);
    if (plan.patches) patches_ = patch_table(p_.geometry, strides(p_.x).axis);
    steps_[0] = {steps(layer.gram, layer.x_size, plan.tile), steps(layer.cross, layer.y_size, plan.tile)};
    const int64_t rest = total_ - (plan.tiles - 1) * plan.tile;
    steps_[1] = {steps(layer.gram, layer.x_size, rest), steps(layer.cross, layer.y_size, rest)};
  }

  // Tiles first, first + 1, ... of the batch; they are valid until the next call.
  std::vector<Tile<T>> pack(int64_t first, int64_t count) {
    const int64_t x_blocks = layer_.x.blocks(), blocks = x_blocks + (p_.rows > 0 ? layer_.y.blocks() : 0);
    std::vector<Tile<T>> tiles(count);
    std::vector<Places> x_places(count), y_places(count);
    in_parallel(count, [&](int64_t k) {
      tiles[k] = place(first + k, panels_.mutable_data_ptr<T>() + k * (x_tile_ + y_tile_));
      find_places((first + k) * layer_.plan.tile, tiles[k].count, x_places[k], y_places[k]);
    });
    in_parallel(count * blocks, [&](int64_t job) {
      const int64_t k = job / blocks, block = job % blocks;
      if (block >= x_blocks)
        layer_.y.pack_image(block - x_blocks, y_places[k],
                            tiles[k].y + (block - x_blocks) * tiles[k].y_stride);
      else if (layer_.plan.patches)
        layer_.x.pack_patches(block, x_places[k], patches_, tiles[k].x + block * tiles[k].x_stride);
      else
        layer_.x.pack_image(block, x_places[k], tiles[k].x + block * tiles[k].x_stride);
    });
    return tiles;
  }

 private:
  static std::vector<Step> steps(const std::vector<Term>& terms, const std::array<int64_t, 3>& x_size,
                                 const std::array<int64_t, 3>& b_size, int64_t images) {
    std::vector<Step> steps;
    for (const Term& term : terms) steps.push_back({&term, flatten(term, x_size, b_size, images)});
    return steps;
  }

  std::vector<Step> steps(const std::vector<Term>& terms, const std::array<int64_t, 3>& b_size,
                          int64_t images) const {
    return steps(terms, layer_.x_size, b_size, images);
  }

  Tile<T> place(int64_t tile, T* panels) const {
    const int64_t count = std::min(layer_.plan.tile, total_ - tile * layer_.plan.tile);
    const auto& steps = steps_[tile == layer_.plan.tiles - 1];
    return {count,
            panels,
            panels + x_tile_,
            layer_.x_positions() * count * kLanes,
            layer_.y_positions() * count * kLanes,
            &steps.gram,
            &steps.cross};
  }

  static Strides strides(const at::Tensor& t) {
    return {t.stride(0), {t.stride(2), t.stride(3), t.stride(4)}};
  }

  void find_places(int64_t first, int64_t count, Places& x_places, Places& y_places) const {
    const Strides y_strides = p_.rows > 0 ? strides(p_.y) : Strides{};
    if (!layer_.plan.patches) {
      x_places = image_places(layer_.x_size, strides(p_.x), first, count);
      if (p_.rows > 0) y_places = image_places(layer_.y_size, y_strides, first, count);
      return;
    }
    const int64_t height = p_.geometry[1].out(), width = p_.geometry[2].out();
    for (int64_t k = first; k < first + count; ++k) {
      const int64_t image = k / p_.patches_per_image();
      const int64_t output =
          p_.positions.defined() ? p_.positions.const_data_ptr<int64_t>()[k] : k % p_.patches_per_image();
      x_places.base.push_back(image * p_.x.stride(0));
      x_places.output.push_back(output);
      y_places.base.push_back(image * y_strides.image + output / (height * width) * y_strides.axis[0] +
                              output / width % height * y_strides.axis[1] +
                              output % width * y_strides.axis[2]);
    }
  }

  struct Steps {
    std::vector<Step> gram, cross;
  };

  const Problem& p_;
  const Layer<T>& layer_;
  int64_t total_, x_tile_, y_tile_;
  at::Tensor panels_;
  PatchTable patches_;
  std::array<Steps, 2> steps_;  // of full tiles, of the last one
};

}  // namespace bitsplit::gram
