// Random bits of element i under a key: no state, the same on CPU and GPU, and loops over i vectorise.
// Torch-free.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.h"

namespace bitsplit {

struct RandomKey {
  uint32_t first, second;
};

// The finalizer of splitmix64: every bit of the argument moves every bit of the result.
BITSPLIT_HOST_DEVICE uint64_t mixed(uint64_t bits) {
  bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9;
  bits = (bits ^ bits >> 27) * 0x94d049bb133111eb;
  return bits ^ bits >> 31;
}

// Keys of different seeds or iterations have nothing to do with each other.
BITSPLIT_HOST_DEVICE RandomKey random_key(uint64_t seed, uint64_t iteration) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;
  const uint64_t bits = mixed(mixed(mixed(kGolden) ^ seed) + kGolden * (iteration + 1));
  return {static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32)};
}

// 32 random bits. This is the integer hash lowbias32 (two multiplications between shifts, found by search for
// the least bias) with half of the key before it and half in its middle. The high bits of i change the first
// half: what comes in the middle alone is not mixed enough.
BITSPLIT_HOST_DEVICE uint32_t random_bits(const RandomKey& key, int64_t i) {
  const uint32_t low = static_cast<uint32_t>(i), high = static_cast<uint32_t>(static_cast<uint64_t>(i) >> 32);
  uint32_t bits = low ^ (key.first + high * 0x9e3779b9);
  bits = (bits ^ bits >> 16) * 0x7feb352d ^ key.second;
  bits = (bits ^ bits >> 15) * 0x846ca68b;
  return bits ^ bits >> 16;
}

// `share` in [0, 1] as a bound for 31 random bits: -1 for none, 2^31 - 1 for all.
inline int32_t drop_bound(double share) {
  return static_cast<int32_t>(static_cast<int64_t>(std::round(share * 0x1p31)) - 1);
}

// True with probability share.
BITSPLIT_HOST_DEVICE bool is_dropped(uint32_t bits, int32_t bound) {
  return static_cast<int32_t>(bits >> 1) <= bound;
}

}  // namespace bitsplit
