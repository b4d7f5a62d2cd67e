// The hot loops of the split solvers on the CPU: rows of weights against blocks of 64 columns. Torch-free.
//
// Every function exists for float and double and in several instruction sets, chosen when the program starts.
// Products and sums are rounded one by one (the build forbids contraction) and added in a fixed order, so all
// instruction sets give the same bits, and a row's result does not depend on the rows beside it.
#pragma once

#include <cstdint>

namespace bitsplit::split {

constexpr int64_t kBlock = 64;      // columns solved together; matrices are padded to a multiple of it
constexpr int64_t kRowsAtOnce = 4;  // rows that `subtract_product` keeps in registers
constexpr int64_t kFeedbackRows = 16;  // rows that `feedback_block` rounds side by side

// A digit of coordinate `column` moved: the residual of the row loses amount * G[column, :].
template <class T>
struct Change {
  int32_t column;
  T amount;
};

// out[r, 0..63] -= sum over n < depth of left[r, n] * panel[n, 0..63]; rows is a multiple of kRowsAtOnce.
void subtract_product(float* out, int64_t out_stride, const float* left, int64_t left_stride, int64_t rows,
                      const float* panel, int64_t depth);
void subtract_product(double* out, int64_t out_stride, const double* left, int64_t left_stride, int64_t rows,
                      const double* panel, int64_t depth);

// residual[0..63] -= sum of amount * panel[column, 0..63] over the changes, in their order.
void subtract_changes(float* residual, const Change<float>* changes, int64_t count, const float* panel);
void subtract_changes(double* residual, const Change<double>* changes, int64_t count, const double* panel);

// Gives the 64 digits, one after another, the value in -limit..limit that is best while all others stay:
// nearest(digit + residual / (step * G_nn)). Keeps the residual of these 64 columns up to date and writes what moved
// to `moved` (room for 64; columns count from 0). A zero in inverse_diagonal leaves its digit alone.
int64_t sweep_block(float* residual, int8_t* digits, const float* inverse_diagonal, const float* square,
                    float step, int limit, Change<float>* moved);
int64_t sweep_block(double* residual, int8_t* digits, const double* inverse_diagonal, const double* square,
                    double step, int limit, Change<double>* moved);

// The dot products <codes, cross> and <codes, residual> over `count` columns (a multiple of kBlock), in double.
struct Products {
  double cross, residual;
};
Products dot_codes(const int8_t* codes, const float* cross, const float* residual, int64_t count);
Products dot_codes(const int8_t* codes, const double* cross, const double* residual, int64_t count);

// residual = cross + ratio * (residual - cross): what the residual becomes when the scale is multiplied by ratio.
void rescale_residual(float* residual, const float* cross, float ratio, int64_t count);
void rescale_residual(double* residual, const double* cross, double ratio, int64_t count);

// Rounds 64 columns of kFeedbackRows rows in turn, in units of the scale. wanted[n, row] is the weight and what earlier
// blocks passed on (destroyed); square[i, n] is the share of the excess of column i that column n > i makes good.
// Writes codes[row, n] and excess[row, n] = code - weight, both with `stride`.
void feedback_block(float* wanted, const float* weight, const float* square, int limit,
                    int8_t* codes, float* excess, int64_t stride);
void feedback_block(double* wanted, const double* weight, const double* square, int limit,
                    int8_t* codes, double* excess, int64_t stride);

// One round of the weight-space fit of a row: codes = nearest(weight / scale). Returns <weight, codes> and <codes, codes>
// and whether any code moved.
struct Fit {
  double dot, norm;
  bool moved;
};
Fit round_row(const float* weight, double scale, int limit, int8_t* codes, int64_t count);
Fit round_row(const double* weight, double scale, int limit, int8_t* codes, int64_t count);

}  // namespace bitsplit::split
