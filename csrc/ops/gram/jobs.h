// How the CPU path shares work among threads.
#pragma once

#include <algorithm>
#include <vector>

#include "ops/gram/tiles.h"

namespace bitsplit::gram {

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

}  // namespace bitsplit::gram
