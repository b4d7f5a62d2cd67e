// The counter-based generator: fixed values, and what chance must look like.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "core/counter_random.h"
#include "core/simd.h"

namespace {

using namespace bitsplit;

constexpr int64_t kSize = 1 << 18;
constexpr double kDeviations = 5;  // a test that is right fails once in a million times

struct KeyCase {
  uint64_t seed, iteration;
  std::vector<uint32_t> bits;  // of elements 0, 1, 2^32 and 2^40 + 5
};

TEST(RandomBits, FixedValues) {
  EXPECT_EQ(random_bits({0, 0}, 0), 0u);
  EXPECT_EQ(random_bits({0, 0}, 1), 0x688990c0u);  // lowbias32(1)
  for (const KeyCase& c : {KeyCase{0, 0, {0x632997bb, 0x6f2b42af, 0x2c3139b1, 0x7b2fe134}},
                           KeyCase{1, 0, {0x4d89613d, 0xc3ac14ba, 0xd9878fc2, 0x97744300}},
                           KeyCase{0, 1, {0xaabe27f6, 0x8cb182ec, 0x3b5ed1a3, 0x5b26bca0}}}) {
    const RandomKey key = random_key(c.seed, c.iteration);
    const int64_t places[] = {0, 1, int64_t{1} << 32, (int64_t{1} << 40) + 5};
    for (int i = 0; i < 4; ++i) EXPECT_EQ(random_bits(key, places[i]), c.bits[i]) << c.seed << " " << i;
  }
}

TEST(RandomBits, EveryInstructionSetGivesTheSame) {
  const RandomKey key = random_key(7, 8);
  std::vector<uint32_t> bits(1003);
  for (int level = 0; level <= static_cast<int>(simd::best_level()); ++level) {
    uint32_t* out = bits.data();
    simd::run_at(static_cast<simd::Level>(level), [=]() BITSPLIT_SIMD {
      for (int64_t i = 0; i < 1003; ++i) out[i] = random_bits(key, i);
    });
    for (int64_t i = 0; i < 1003; ++i) EXPECT_EQ(bits[i], random_bits(key, i));
  }
}

TEST(IsDropped, NeverAndAlways) {
  EXPECT_EQ(drop_bound(0), -1);
  EXPECT_EQ(drop_bound(0.5), 0x3fffffff);
  EXPECT_EQ(drop_bound(1), 0x7fffffff);
  for (uint32_t bits : {0u, 1u, 0x7fffffffu, 0x80000000u, 0xffffffffu}) {
    EXPECT_FALSE(is_dropped(bits, drop_bound(0)));
    EXPECT_TRUE(is_dropped(bits, drop_bound(1)));
    EXPECT_EQ(is_dropped(bits, drop_bound(0.5)), bits < 0x80000000u);
  }
}

using Bits = std::function<uint32_t(int64_t)>;

// |share of the elements that both drop - share^2| in standard deviations.
double dependence(const Bits& one, const Bits& other, double share) {
  const int32_t bound = drop_bound(share);
  int64_t both = 0;
  for (int64_t i = 0; i < kSize; ++i) both += is_dropped(one(i), bound) && is_dropped(other(i), bound);
  const double p = share * share;
  return std::abs(static_cast<double>(both) - kSize * p) / std::sqrt(kSize * p * (1 - p));
}

Bits with_key(uint64_t seed, uint64_t iteration) {
  return [key = random_key(seed, iteration)](int64_t i) { return random_bits(key, i); };
}

TEST(Chance, SharesAreMet) {
  for (double share : {0.001, 0.1, 0.25, 0.5, 0.9, 0.999})
    for (uint64_t iteration = 0; iteration < 20; ++iteration) {
      const Bits bits = with_key(3, iteration);
      int64_t dropped = 0;
      for (int64_t i = 0; i < kSize; ++i) dropped += is_dropped(bits(i), drop_bound(share));
      EXPECT_NEAR(static_cast<double>(dropped), kSize * share,
                  kDeviations * std::sqrt(kSize * share * (1 - share)));
    }
}

TEST(Chance, EveryBitIsFair) {
  const Bits bits = with_key(1, 1);
  for (int bit = 0; bit < 32; ++bit) {
    int64_t set = 0;
    for (int64_t i = 0; i < kSize; ++i) set += bits(i) >> bit & 1;
    EXPECT_NEAR(static_cast<double>(set), kSize / 2, kDeviations * std::sqrt(kSize) / 2) << bit;
  }
}

TEST(Chance, NeighboursAreIndependent) {
  for (uint64_t seed = 0; seed < 10; ++seed)
    for (int64_t distance : {1, 2, 3, 7, 8, 16, 56, 64, 256, 784, 1024, 3136, 65536}) {
      const Bits bits = with_key(seed, 0);
      const Bits moved = [&](int64_t i) { return bits(i + distance); };
      EXPECT_LT(dependence(bits, moved, 0.5), kDeviations) << seed << " " << distance;
      EXPECT_LT(dependence(bits, moved, 0.1), kDeviations) << seed << " " << distance;
    }
}

TEST(Chance, KeysAreIndependent) {
  for (uint64_t seed = 0; seed < 5; ++seed)
    for (uint64_t iteration = 0; iteration < 20; ++iteration) {
      const Bits bits = with_key(seed, iteration);
      EXPECT_LT(dependence(bits, with_key(seed, iteration + 1), 0.5), kDeviations);
      EXPECT_LT(dependence(bits, with_key(seed + 1, iteration), 0.5), kDeviations);
      EXPECT_LT(dependence(bits, with_key(iteration, seed + 100), 0.5), kDeviations);
    }
}

TEST(Chance, BeyondTheLow32Bits) {
  const Bits bits = with_key(0, 0);
  for (int shift : {30, 31, 32, 33, 34, 40, 50}) {
    const Bits far = [&](int64_t i) { return bits(i + (int64_t{1} << shift)); };
    EXPECT_LT(dependence(bits, far, 0.5), kDeviations) << shift;
  }
}

}  // namespace
