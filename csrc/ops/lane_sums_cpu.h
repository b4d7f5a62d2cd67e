// Sums over all elements of a tensor, many threads (core/lane_sums.h).
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "core/lane_sums.h"

namespace bitsplit {

// term(0) + ... + term(count - 1); T is the type of the terms, which are made in any order.
template <typename T, typename Term>
double sum_of_terms(int64_t count, const Term& term) {
  constexpr int64_t kGrain = 8;  // chunks a thread takes at least
  std::vector<double> sums(sum_chunks(count));
  at::parallel_for(0, sum_chunks(count), kGrain, [&](int64_t first, int64_t last) {
    double* const sum = sums.data();
    simd::run([=]() BITSPLIT_SIMD {
      for (int64_t chunk = first; chunk < last; ++chunk) {
        const int64_t begin = chunk * kSumChunk, end = begin + kSumChunk;
        sum[chunk] = lane_sum<T>(begin, end < count ? end : count, term);
      }
    });
  });
  const double* const sum = sums.data();
  return lane_sum<double>(0, sum_chunks(count), [=](int64_t chunk) { return sum[chunk]; });
}

}  // namespace bitsplit
