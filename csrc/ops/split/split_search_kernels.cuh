// Kernel body of the tabu search (core/tabu_search.h says what it does); no ATen. One block searches one row,
// each thread looks after every blockDim.x-th column of it.
#pragma once

#include <cstdint>
#include <limits>

#include "core/host_device.h"
#include "core/levels.h"
#include "core/tabu_search.h"
#include "ops/split/split_kernels.cuh"

namespace bitsplit::split {

// What one search keeps on the device; row-major, groups first.
template <class T>
struct SearchState {
  const T *gram, *cross;        // [g, N, N]; [g, R, N], in units of the start's scale
  T *products, *best_products;  // [g, R, N]: q G of the start; undefined
  int8_t *codes, *best_codes;   // [g, R, N]: the start; undefined
  int32_t* rests;               // [g, R, N], undefined: the last step of a column's rest
  double *scale, *explained;    // [g, R]
  const int8_t* levels;         // [g, R, 2]
  int rows, columns, channels;
  bool fit_scale;  // else the rows keep theirs

  // The part of one row.
  __device__ SearchState of_row(int64_t row) const {
    const int64_t first = row * columns, group = row / rows;
    return {gram + group * columns * columns,
            cross + first,
            products + first,
            best_products + first,
            codes + first,
            best_codes + first,
            rests + first,
            scale + row,
            explained + row,
            levels + 2 * row,
            rows,
            columns,
            channels,
            fit_scale};
  }
};

// A move and what it gains; no move has column -1.
template <class T>
struct Candidate {
  T gain;
  int column;

  __device__ bool beats(const Candidate& other) const {
    return gain > other.gain ||
           (gain == other.gain && static_cast<unsigned>(column) < static_cast<unsigned>(other.column));
  }
};

// The best of the candidates of all threads, the same in each.
template <class T>
__device__ Candidate<T> best_of_block(Candidate<T> mine) {
  __shared__ Candidate<T> best_of_warp[kWarp];
  for (int bits = kWarp / 2; bits > 0; bits /= 2) {
    const Candidate<T> other{__shfl_xor_sync(~0u, mine.gain, bits), __shfl_xor_sync(~0u, mine.column, bits)};
    if (other.beats(mine)) mine = other;
  }
  if (threadIdx.x % kWarp == 0) best_of_warp[threadIdx.x / kWarp] = mine;
  __syncthreads();
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp)
    if (best_of_warp[warp].beats(mine)) mine = best_of_warp[warp];
  __syncthreads();
  return mine;
}

template <class T>
__device__ Candidate<T> best_move(const SearchState<T>& row, Yardstick<T> yardstick, int32_t step) {
  const Levels<int> levels = levels_of_row<int>(row.levels, 0);
  Candidate<T> best{-std::numeric_limits<T>::infinity(), -1};
  for (int n = threadIdx.x; n < row.columns; n += blockDim.x) {
    const T residual = yardstick.residual(row.cross[n], row.products[n]);
    const T gain = yardstick.gain(residual, row.gram[int64_t{n} * (row.columns + 1)]);
    const bool free = row.rests[n] < step || (gain > yardstick.new_best && row.rests[n] != kNever);
    const int room = residual < 0 ? row.codes[n] - levels.low : levels.high - row.codes[n];
    if (room > 0 && free && gain > best.gain) best = {gain, n};
  }
  return best_of_block(best);
}

// Moves one code and what follows from it; all threads return the totals after it.
template <class T>
__device__ Explained move_code(const SearchState<T>& row, Explained now, int column, int direction,
                               int32_t rest) {
  const T* const source = row.gram + int64_t{column} * row.columns;
  now.move(direction, row.cross[column], row.products[column], source[column]);
  __syncthreads();  // all have read the product
  for (int n = threadIdx.x; n < row.columns; n += blockDim.x)
    row.products[n] += static_cast<T>(direction) * source[n];
  if (threadIdx.x == 0) {
    row.codes[column] += direction;
    row.rests[column] = rest;
  }
  __syncthreads();
  return now;
}

template <class T>
__device__ void copy_state(const SearchState<T>& row, bool to_best) {
  for (int n = threadIdx.x; n < row.columns; n += blockDim.x) {
    (to_best ? row.best_codes : row.codes)[n] = (to_best ? row.codes : row.best_codes)[n];
    (to_best ? row.best_products : row.products)[n] = (to_best ? row.products : row.best_products)[n];
  }
  __syncthreads();
}

// Everything at rest but what is never active, and what the start explains.
template <class T>
__device__ Explained begin_search(const SearchState<T>& row) {
  double cross = 0, energy = 0;
  for (int n = threadIdx.x; n < row.columns; n += blockDim.x) {
    const bool active = row.gram[int64_t{n} * (row.columns + 1)] >= std::numeric_limits<T>::min();
    row.rests[n] = active ? 0 : kNever;
    cross += static_cast<double>(row.codes[n]) * row.cross[n];
    energy += static_cast<double>(row.codes[n]) * row.products[n];
  }
  cross = block_sum(cross);
  energy = block_sum(energy);
  copy_state(row, true);
  return {cross, energy, row.fit_scale};
}

// The best codes with some of them moved.
template <class T>
__device__ Explained kick(const SearchState<T>& row, Explained best, int32_t step, uint64_t seed,
                          uint64_t name) {
  const Levels<int> levels = levels_of_row<int>(row.levels, 0);
  copy_state(row, false);
  Explained now = best;
  for (int i = 0; i < kKicks; ++i) {
    const Kick kick = random_kick(seed, name, step, i, row.columns);
    const int column = static_cast<int>(kick.column);
    const int code = row.codes[column];
    const bool at_end = kick.direction > 0 ? code >= levels.high : code <= levels.low;
    const bool stays = at_end || row.rests[column] == kNever;
    __syncthreads();  // all have read the code
    if (!stays) now = move_code(row, now, column, kick.direction, step + kTenure);
  }
  return now;
}

// grid (g * R), whole warps. The best codes end in `best_codes`; scale and explained are those of the call.
template <class T>
__global__ void search_kernel(SearchState<T> state, int steps, uint64_t seed) {
  const int64_t index = blockIdx.x;
  const SearchState<T> row = state.of_row(index);
  const uint64_t name = index / state.rows * state.channels + index % state.rows % state.channels;
  Explained best = begin_search(row), now = best;
  for (int32_t step = 1; step <= steps && best.possible(); ++step) {
    if (step % kPhase == 0) {
      now = kick(row, best, step, seed, name);
      if (!now.possible()) {
        copy_state(row, false);
        now = best;
      }
    }
    const Yardstick<T> yardstick(now, best);
    const int column = best_move(row, yardstick, step).column;
    if (column >= 0) {
      const int direction = yardstick.residual(row.cross[column], row.products[column]) < 0 ? -1 : 1;
      now = move_code(row, now, column, direction, rest_after(seed, name, step));
    }
    if (!now.possible()) {
      copy_state(row, false);
      now = best;
    }
    if (now.beats(best)) {
      copy_state(row, true);
      best = now;
    }
  }
  const double unit = *row.scale;
  __syncthreads();  // all have read the scale
  if (threadIdx.x > 0) return;
  *row.explained = best.value_in(unit);
  *row.scale = best.possible() ? unit * best.scale() : unit;
}

}  // namespace bitsplit::split
