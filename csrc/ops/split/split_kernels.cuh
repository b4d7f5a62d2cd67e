// Kernel bodies of the split solvers in response space; no ATen. One warp solves a block of 64 columns of one
// row, column after column, as the CPU does; what follows for the other columns is a matrix product, which
// the launcher leaves to cuBLAS.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/levels.h"
#include "core/planes.h"
#include "core/split_steps.h"

namespace bitsplit::split {

constexpr int kWarp = 32;
constexpr int kColumns = 64;       // columns solved together, two by each lane
constexpr int kWarpsPerBlock = 8;  // rows that share the block of G in shared memory
constexpr int kRowThreads = 128;   // threads that share one row in the kernels that read whole rows

// The sum over all threads of a block, the same in each, added in a fixed order. The block has whole warps.
__device__ inline double block_sum(double value) {
  __shared__ double partial[kWarp];
  for (int bits = kWarp / 2; bits > 0; bits /= 2) value += __shfl_xor_sync(~0u, value, bits);
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = value;
  __syncthreads();
  double sum = 0;
  for (unsigned warp = 0; warp < blockDim.x / kWarp; ++warp) sum += partial[warp];
  __syncthreads();
  return sum;
}

// Copies the square of `matrix` [columns, columns] whose corner is (first, first) to shared memory, padded
// with zeros.
template <class T>
__device__ void load_square(const T* matrix, int columns, int first, T* square) {
  for (int i = threadIdx.x; i < kColumns * kColumns; i += blockDim.x) {
    const int row = first + i / kColumns, column = first + i % kColumns;
    square[i] = row < columns && column < columns ? matrix[int64_t{row} * columns + column] : T(0);
  }
  __syncthreads();
}

// What one descent keeps on the device; row-major, groups first.
template <class T>
struct DescentState {
  const T *gram, *inverse_diagonal;  // [g, N, N], [g, N]; 0 for inputs that are never active
  const T* cross;                    // [g, R, N]
  T* residual;                       // [g, R, N]
  int8_t *codes, *digits;            // [g, R, N], [planes, g, R, N]
  double *scale, *explained;         // [g, R]
  const int8_t* levels;              // [g, R, 2], of the digits of every plane
  const int* active;                 // [g, R], 0 or 1
  int* moved;                        // [g, R]
  T* amounts;                        // [g, R, 64]: what the residual of the row loses, times rows of G
  int groups, rows, columns;
  bool fit_scale;  // else the rows keep theirs
};

// Gives columns first .. first + 63 of one plane their best digits, one after another. grid (rows / 8,
// groups).
template <class T>
__global__ void sweep_kernel(DescentState<T> state, int plane, int first) {
  __shared__ T square[kColumns * kColumns];
  const int group = blockIdx.y, lane = threadIdx.x % kWarp;
  const int row_in_group = blockIdx.x * kWarpsPerBlock + threadIdx.x / kWarp;
  load_square(state.gram + int64_t{group} * state.columns * state.columns, state.columns, first, square);
  if (row_in_group >= state.rows) return;
  const int64_t row = int64_t{group} * state.rows + row_in_group;
  const int64_t plane_size = int64_t{state.groups} * state.rows * state.columns;
  const T step = static_cast<T>(state.scale[row] * plane_weight(plane)), inverse_step = 1 / step;
  const Levels<T> levels = levels_of_row<T>(state.levels, row);
  T residual[2] = {}, inverse[2] = {}, digit[2] = {}, amount[2] = {};
  for (int half = 0; half < 2; ++half) {
    const int column = first + half * kWarp + lane;
    if (column >= state.columns || !state.active[row]) continue;
    residual[half] = state.residual[row * state.columns + column];
    inverse[half] = state.inverse_diagonal[int64_t{group} * state.columns + column];
    digit[half] = state.digits[plane * plane_size + row * state.columns + column];
  }
  for (int half = 0; half < 2; ++half) {
    unsigned open = ~0u;  // lanes whose column has not had its turn
    while (true) {
      const T best = best_digit(digit[half], residual[half], inverse[half], inverse_step, levels);
      const unsigned differs = __ballot_sync(~0u, best != digit[half]) & open;
      if (differs == 0) break;
      const int owner = __ffs(static_cast<int>(differs)) - 1;
      const T change = __shfl_sync(~0u, step * (best - digit[half]), owner);
      if (lane == owner) {
        amount[half] = change;
        digit[half] = best;
      }
      const T* const source = square + (half * kWarp + owner) * kColumns;
      residual[0] -= change * source[lane];
      residual[1] -= change * source[kWarp + lane];
      open = owner == kWarp - 1 ? 0 : ~0u << (owner + 1);
    }
  }
  bool any = false;
  for (int half = 0; half < 2; ++half) {
    const int column = first + half * kWarp + lane;
    state.amounts[row * kColumns + half * kWarp + lane] = amount[half];
    any = any || amount[half] != 0;
    if (amount[half] == 0) continue;
    int8_t& stored = state.digits[plane * plane_size + row * state.columns + column];
    state.codes[row * state.columns + column] +=
        (static_cast<int>(digit[half]) - stored) * plane_weight(plane);
    stored = static_cast<int8_t>(digit[half]);
  }
  if (__any_sync(~0u, any) && lane == 0) state.moved[row] = 1;
}

// Sets the scale of every active row to its optimum unless it is kept, rescales its residual, and computes
// what the fit explains. One block of kRowThreads a row.
template <class T>
__global__ void fit_scale_kernel(DescentState<T> state) {
  const int64_t row = blockIdx.x;
  if (!state.active[row]) return;
  const int8_t* const codes = state.codes + row * state.columns;
  const T* const cross = state.cross + row * state.columns;
  T* const residual = state.residual + row * state.columns;
  double with_cross = 0, with_residual = 0;
  for (int n = threadIdx.x; n < state.columns; n += blockDim.x) {
    with_cross += static_cast<double>(codes[n]) * cross[n];
    with_residual += static_cast<double>(codes[n]) * residual[n];
  }
  with_cross = block_sum(with_cross);
  with_residual = block_sum(with_residual);
  const double old_scale = state.scale[row],
               growth = scale_growth(with_cross, with_residual, state.fit_scale);
  __syncthreads();  // all have read the scale
  if (threadIdx.x == 0) {
    state.scale[row] = old_scale * growth;
    state.explained[row] = old_scale * (growth == 1 ? with_cross + with_residual : growth * with_cross);
  }
  if (growth == 1) return;
  const T factor = static_cast<T>(growth);
  for (int n = threadIdx.x; n < state.columns; n += blockDim.x)
    residual[n] = cross[n] + factor * (residual[n] - cross[n]);
}

// Rounds columns first .. first + 63 in turn, in units of the scale. grid (rows / 8, groups).
// wanted, weight, codes: [g, rows, columns]; levels [g, rows, 2]; shares [g, columns, columns] is zero on and
// below the diagonal; excess [g, rows, 64] = code - weight. What rounding loses, weighted with diagonal [g,
// columns], adds to loss [g, rows].
template <class T>
__global__ void feedback_kernel(const T* wanted, const T* weight, const T* shares, const T* diagonal,
                                const int8_t* levels, int8_t* codes, T* excess, double* loss, int rows,
                                int columns, int first) {
  __shared__ T square[kColumns * kColumns];
  const int group = blockIdx.y, lane = threadIdx.x % kWarp;
  const int row_in_group = blockIdx.x * kWarpsPerBlock + threadIdx.x / kWarp;
  load_square(shares + int64_t{group} * columns * columns, columns, first, square);
  if (row_in_group >= rows) return;
  const int64_t row = int64_t{group} * rows + row_in_group;
  const Levels<T> bounds = levels_of_row<T>(levels, row);
  T target[2] = {}, own[2] = {}, surplus[2] = {};
  for (int half = 0; half < 2; ++half) {
    const int column = first + half * kWarp + lane;
    if (column >= columns) continue;
    target[half] = wanted[row * columns + column];
    own[half] = weight[row * columns + column];
  }
  double lost = 0;
  for (int n = 0; n < kColumns; ++n) {
    const int half = n / kWarp, owner = n % kWarp, column = first + n;
    const T code = nearest_code(target[half], bounds);
    const T given = __shfl_sync(~0u, code - own[half], owner);
    if (lane == owner) {
      surplus[half] = given;
      if (column < columns) {
        codes[row * columns + column] = static_cast<int8_t>(code);
        const T loses = diagonal[int64_t{group} * columns + column] * (code - target[half]);
        lost += static_cast<double>(loses) * loses;
      }
    }
    target[0] -= square[n * kColumns + lane] * given;
    target[1] -= square[n * kColumns + kWarp + lane] * given;
  }
  for (int half = 0; half < 2; ++half) excess[row * kColumns + half * kWarp + lane] = surplus[half];
  for (int bits = kWarp / 2; bits > 0; bits /= 2) lost += __shfl_xor_sync(~0u, lost, bits);
  if (lane == 0) loss[row] += lost;
}

}  // namespace bitsplit::split
