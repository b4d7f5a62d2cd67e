#include "ops/gram/gram.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "core/integers.h"
#include "ops/dense.h"

namespace bitsplit::gram {
namespace {

Geometry read_geometry(at::IntArrayRef size, at::IntArrayRef kernel, at::IntArrayRef stride,
                       at::IntArrayRef padding, at::IntArrayRef dilation) {
  const size_t axes = size.size();
  const auto need = [&](at::IntArrayRef values, const char* name, int64_t least) {
    TORCH_CHECK(values.size() == axes, "gram: ", name, " needs one value for each of the ", axes,
                " spatial axes of x, got ", values);
    for (int64_t value : values)
      TORCH_CHECK(value >= least && value <= kMostSteps, "gram: ", name, " must lie in [", least, ", ",
                  kMostSteps, "], got ", values);
  };
  need(kernel, "kernel", 1);
  need(stride, "stride", 1);
  need(padding, "padding", 0);
  need(dilation, "dilation", 1);
  Geometry geometry;
  for (size_t k = 0; k < axes; ++k) {
    Axis& axis = geometry[k + 3 - axes];
    axis = {size[k], kernel[k], stride[k], padding[k], dilation[k]};
    TORCH_CHECK(axis.size > 0 && axis.slack() >= 0, "gram: the kernel does not fit the image: kernel ",
                kernel, " with dilation ", dilation, " against image ", size, " with padding ", padding);
  }
  return geometry;
}

void check_accumulator(const at::Tensor& tensor, const char* name, at::IntArrayRef shape,
                       const at::Tensor& x) {
  TORCH_CHECK(tensor.scalar_type() == at::kDouble && tensor.is_contiguous() && tensor.device() == x.device(),
              "gram: ", name, " must be contiguous float64 on ", x.device(), ", got ", tensor.scalar_type(),
              " on ", tensor.device(), " with strides ", tensor.strides());
  TORCH_CHECK(tensor.sizes() == shape, "gram: ", name, " must have shape ", shape, ", got ", tensor.sizes());
}

void check_positions(const at::Tensor& positions, const Problem& p) {
  TORCH_CHECK(positions.scalar_type() == at::kLong && positions.dim() == 2 && positions.size(0) == p.images &&
                  positions.device() == p.x.device(),
              "gram: positions must be int64 [", p.images, ", P] on ", p.x.device(), ", got ",
              positions.scalar_type(), " ", positions.sizes(), " on ", positions.device());
  if (positions.numel() == 0) return;
  const auto [least, most] = at::aminmax(positions);
  TORCH_CHECK(least.item<int64_t>() >= 0 && most.item<int64_t>() < p.outputs(),
              "gram: positions must be in 0..", p.outputs() - 1, ", got ", least.item<int64_t>(), "..",
              most.item<int64_t>());
}

void check_response(const at::Tensor& y, const Problem& p, size_t axes) {
  std::vector<int64_t> shape{p.images, y.dim() > 1 ? y.size(1) : 0};
  for (size_t k = 3 - axes; k < 3; ++k) shape.push_back(p.geometry[k].out());
  TORCH_CHECK(y.sizes() == at::IntArrayRef(shape), "gram: y must have shape ", at::IntArrayRef(shape),
              " (images, outputs, output positions), got ", y.sizes());
  TORCH_CHECK(y.scalar_type() == p.x.scalar_type() && y.device() == p.x.device(), "gram: y must be ",
              p.x.scalar_type(), " on ", p.x.device(), " as x, got ", y.scalar_type(), " on ", y.device());
  TORCH_CHECK(y.size(1) > 0 && y.size(1) % p.groups == 0, "gram: the ", y.size(1),
              " channels of y cannot be divided into ", p.groups, " groups");
}

// [B, channels, h, w] -> [B, channels, 1, h, w]
at::Tensor with_depth(const at::Tensor& features) {
  return features.dim() == 4 ? features.unsqueeze(2) : features;
}

}  // namespace

Problem check(const at::Tensor& x, const std::optional<at::Tensor>& y, at::IntArrayRef kernel,
              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
              const std::optional<at::Tensor>& positions, const at::Tensor& G, const at::Tensor& C,
              const at::Tensor& sum_x, const at::Tensor& sum_y, const at::Tensor& sum_yy) {
  TORCH_CHECK(x.dim() == 4 || x.dim() == 5, "gram: x must be [B, C, *spatial] with 2 or 3 spatial axes, got ",
              x.sizes());
  TORCH_CHECK(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble,
              "gram: x must be float32 or float64, got ", x.scalar_type());
  TORCH_CHECK(groups >= 1 && x.size(1) >= 1 && x.size(1) % groups == 0, "gram: the ", x.size(1),
              " channels of x cannot be divided into ", groups, " groups");
  Problem p{.geometry = read_geometry(x.sizes().slice(2), kernel, stride, padding, dilation),
            .images = x.size(0),
            .groups = groups,
            .channels = x.size(1) / groups,
            .rows = 0,
            .x = x};
  const int64_t columns = p.columns();
  check_accumulator(G, "G", {groups, columns, columns}, x);
  check_accumulator(sum_x, "sum_x", {groups, columns}, x);
  if (y.has_value()) {
    check_response(*y, p, x.dim() - 2);
    p.rows = y->size(1) / groups;
    check_accumulator(C, "C", {groups, columns, p.rows}, x);
    check_accumulator(sum_y, "sum_y", {groups, p.rows}, x);
    check_accumulator(sum_yy, "sum_yy", {groups, p.rows}, x);
    p.y = with_depth(*y);
  }
  if (positions.has_value()) {
    check_positions(*positions, p);
    p.positions = positions->contiguous();
  }
  p.x = with_depth(x);
  p.G = G;
  p.C = C;
  p.sum_x = sum_x;
  p.sum_y = sum_y;
  p.sum_yy = sum_yy;
  for (const at::Tensor& sums : {G, sum_x}) mark_changed(sums);
  if (y.has_value())
    for (const at::Tensor& sums : {C, sum_y, sum_yy}) mark_changed(sums);
  return p;
}

}  // namespace bitsplit::gram

TORCH_LIBRARY_FRAGMENT(bitsplit, m) {
  m.def(
      "gram(Tensor x, Tensor? y, int[] kernel, int[] stride, int[] padding, int[] dilation, int groups, "
      "Tensor? positions, Tensor(a!) G, Tensor(b!) C, Tensor(c!) sum_x, Tensor(d!) sum_y, Tensor(e!) sum_yy) "
      "-> ()");
}
