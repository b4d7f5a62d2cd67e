// The CUDA kernels of gram on CPU threads, against loops written from the definition.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "cuda_on_cpu.h"
#include "ops/gram/gram_kernels.cuh"

namespace bitsplit::gram {
namespace {

template <class T>
std::vector<T> integers(int64_t count) {
  std::mt19937 random(1);
  std::vector<T> values(count);
  for (T& value : values) value = T(int(random() % 9) - 4);
  return values;
}

struct Case {
  int64_t images, groups, channels, size[3], kernel[3], step[3], padding[3], dilation[3];
};

const Case kCases[] = {
    {2, 1, 3, {1, 5, 4}, {1, 3, 3}, {1, 1, 1}, {0, 1, 1}, {1, 1, 1}},
    {2, 2, 2, {1, 6, 7}, {1, 3, 2}, {1, 2, 3}, {0, 2, 0}, {1, 2, 1}},
    {1, 3, 1, {1, 2, 1}, {1, 5, 3}, {1, 1, 1}, {0, 2, 3}, {1, 1, 1}},
    {3, 1, 2, {3, 2, 4}, {2, 2, 3}, {2, 1, 1}, {1, 0, 1}, {1, 1, 1}},
    {4, 1, 5, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}},
};

Window window_of(const Case& c, bool channels_last) {
  Window w{};
  const int64_t all = c.groups * c.channels, pixels = c.size[0] * c.size[1] * c.size[2];
  w.image_stride = all * pixels;
  w.channel_stride = channels_last ? 1 : pixels;
  int64_t stride = channels_last ? all : 1;
  for (int k = 2; k >= 0; --k) {
    w.stride_of[k] = stride;
    stride *= c.size[k];
    w.size[k] = c.size[k];
    w.kernel[k] = c.kernel[k];
    w.step[k] = c.step[k];
    w.padding[k] = c.padding[k];
    w.dilation[k] = c.dilation[k];
    w.out[k] = (c.size[k] + 2 * c.padding[k] - c.dilation[k] * (c.kernel[k] - 1) - 1) / c.step[k] + 1;
  }
  w.channels = c.channels;
  w.groups = c.groups;
  return w;
}

// Column by column of one patch, with explicit coordinates.
template <class T>
std::vector<T> patch(const std::vector<T>& features, const Window& w, int64_t image, int64_t output,
                     int64_t group) {
  const int64_t od = output / (w.out[1] * w.out[2]), oh = output / w.out[2] % w.out[1],
                ow = output % w.out[2];
  std::vector<T> values;
  for (int64_t c = 0; c < w.channels; ++c)
    for (int64_t d = 0; d < w.kernel[0]; ++d)
      for (int64_t h = 0; h < w.kernel[1]; ++h)
        for (int64_t x = 0; x < w.kernel[2]; ++x) {
          const int64_t rd = od * w.step[0] + d * w.dilation[0] - w.padding[0];
          const int64_t rh = oh * w.step[1] + h * w.dilation[1] - w.padding[1];
          const int64_t rw = ow * w.step[2] + x * w.dilation[2] - w.padding[2];
          const bool inside =
              rd >= 0 && rh >= 0 && rw >= 0 && rd < w.size[0] && rh < w.size[1] && rw < w.size[2];
          values.push_back(
              inside ? features[image * w.image_stride + (group * w.channels + c) * w.channel_stride +
                                rd * w.stride_of[0] + rh * w.stride_of[1] + rw * w.stride_of[2]]
                     : T(0));
        }
  return values;
}

template <class T>
void check_unfold(const Case& c, bool channels_last, bool sampled, int64_t first, int64_t patches) {
  const Window w = window_of(c, channels_last);
  const std::vector<T> features = integers<T>(c.images * w.image_stride);
  const int64_t per_image = sampled ? 3 : w.outputs(), columns = w.channels * w.taps();
  std::vector<int64_t> positions(c.images * per_image);
  for (size_t k = 0; k < positions.size(); ++k) positions[k] = int64_t(k * 5) % w.outputs();
  patches = std::min(patches, c.images * per_image - first);
  std::vector<T> matrix(w.groups * columns * patches, T(77));
  cuda_on_cpu::launch(2, 32, 0, unfold_kernel<T>, features.data(), w, sampled ? positions.data() : nullptr,
                      per_image, first, patches, matrix.data());
  for (int64_t group = 0; group < w.groups; ++group)
    for (int64_t k = 0; k < patches; ++k) {
      const int64_t number = first + k;
      const int64_t output = sampled ? positions[number] : number % per_image;
      const std::vector<T> expected = patch(features, w, number / per_image, output, group);
      for (int64_t column = 0; column < columns; ++column)
        ASSERT_EQ(matrix[(group * columns + column) * patches + k], expected[column]);
    }
}

TEST(GramKernels, Unfold) {
  for (const Case& c : kCases)
    for (bool sampled : {false, true}) {
      check_unfold<float>(c, false, sampled, 0, 1000);
      check_unfold<double>(c, true, sampled, 2, 7);
    }
}

TEST(GramKernels, AddBlock) {
  const int64_t groups = 2, rows = 3, columns = 4, height = 5, width = 6;
  const std::vector<float> product = integers<float>(groups * rows * columns);
  std::vector<double> sums(groups * height * width, 0.5);
  cuda_on_cpu::launch(2, 8, 0, add_block_kernel<float>, product.data(), groups, rows, columns, sums.data(),
                      height, width, int64_t{2}, int64_t{1}, false);
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t i = 0; i < height; ++i)
      for (int64_t j = 0; j < width; ++j) {
        const bool inside = i >= 2 && j >= 1 && j < 5;
        const double added = inside ? product[(g * rows + i - 2) * columns + j - 1] : 0;
        ASSERT_EQ(sums[(g * height + i) * width + j], 0.5 + added);
      }
}

TEST(GramKernels, AddBlockMirrorsOffTheDiagonalAndSymmetrisesOnIt) {
  const int64_t n = 7, split = 4;
  const std::vector<double> diagonal = integers<double>(split * split),
                            beside = integers<double>(split * (n - split));
  std::vector<double> sums(n * n, 0.0);
  cuda_on_cpu::launch(1, 32, 0, add_block_kernel<double>, diagonal.data(), int64_t{1}, split, split,
                      sums.data(), n, n, int64_t{0}, int64_t{0}, true);
  cuda_on_cpu::launch(3, 5, 0, add_block_kernel<double>, beside.data(), int64_t{1}, split, n - split,
                      sums.data(), n, n, int64_t{0}, split, true);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = i; j < n; ++j) {
      double expected = 0;
      if (j < split)
        expected = diagonal[i * split + j];
      else if (i < split)
        expected = beside[i * (n - split) + j - split];
      ASSERT_EQ(sums[i * n + j], expected);
      ASSERT_EQ(sums[j * n + i], expected);
    }
}

TEST(GramKernels, RowSums) {
  for (int64_t length : {1, 127, 300}) {
    const int64_t rows = 3;
    const std::vector<float> matrix = integers<float>(rows * length);
    std::vector<double> sums(rows, 1.0), squares(rows, 2.0), alone(rows, 0.0);
    cuda_on_cpu::launch(rows, kSumThreads, 0, row_sums_kernel<float>, matrix.data(), length, sums.data(),
                        squares.data());
    cuda_on_cpu::launch(rows, kSumThreads, 0, row_sums_kernel<float>, matrix.data(), length, alone.data(),
                        static_cast<double*>(nullptr));
    for (int64_t row = 0; row < rows; ++row) {
      double sum = 0, square = 0;
      for (int64_t k = 0; k < length; ++k) {
        sum += matrix[row * length + k];
        square += matrix[row * length + k] * matrix[row * length + k];
      }
      EXPECT_EQ(sums[row], 1 + sum);
      EXPECT_EQ(squares[row], 2 + square);
      EXPECT_EQ(alone[row], sum);
    }
  }
}

}  // namespace
}  // namespace bitsplit::gram
