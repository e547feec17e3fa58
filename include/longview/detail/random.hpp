// SPDX-License-Identifier: Apache-2.0
/// \file
/// Numbers that depend on the seed alone: a counter-based generator, normal samples, arithmetic rounded as written.
///
/// No std distribution and, but for sqrt, no libm: their results differ between platforms. The rounding mode is assumed
/// to be to nearest.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "longview/detail/build.hpp"

#if defined(__GNUC__) && (defined(__i386__) || defined(__x86_64__)) && __FLT_EVAL_METHOD__ != 0
#define LONGVIEW_X87 1
#else
#define LONGVIEW_X87 0
#endif

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

/// What a sample is for, so that equal seeds do not give equal numbers to different purposes.
enum class Stream : std::uint32_t { feature_rows, feature_lengths, projection };

/// Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
inline std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::uint64_t key) {
  auto low = static_cast<std::uint32_t>(key), high = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round, low += 0x9E3779B9u, high += 0xBB67AE85u) {
    const std::uint64_t a = std::uint64_t{0xD2511F53u} * counter[0], b = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ low, static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ high, static_cast<std::uint32_t>(a)};
  }
  return counter;
}

/// 32-bit words, uniform and independent, for the sample `index` of a stream.
class RandomWords {
 public:
  LONGVIEW_INLINE RandomWords(std::uint64_t seed, Stream stream, std::uint64_t index)
      : key_(seed),
        counter_{0, static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(index),
                 static_cast<std::uint32_t>(index >> 32)} {}
  LONGVIEW_INLINE std::uint32_t next() {
    if (used_ == 4) words_ = philox(counter_, key_), ++counter_[0], used_ = 0;
    return words_[used_++];
  }

 private:
  std::uint64_t key_;
  std::array<std::uint32_t, 4> counter_, words_{};
  unsigned used_ = 4;
};

/// True with probability exp(-1/2): a decreasing run of uniform numbers that starts below 1/2 has an even length.
inline bool exp_of_minus_half(RandomWords& words) {
  bool even = true;
  std::uint32_t bound = std::uint32_t{1} << 31;
  for (std::uint32_t u; (u = words.next()) < bound; bound = u) even = !even;
  return even;
}
/// True with probability exp(-x (2k + x) / (2k + 2)), x in units of 2^-32.
inline bool exp_of_fraction(RandomWords& words, std::uint64_t k, std::uint32_t x) {
  bool even = true;
  std::uint32_t bound = x;
  for (std::uint32_t u; (u = words.next()) < bound; bound = u) {
    if ((2 * k + 2) * words.next() >= ((2 * k) << 32) + x) break;
    even = !even;
  }
  return even;
}

/// The standard normal number `index` of a stream: a multiple of 2^-49, from integers alone.
///
/// Karney, "Sampling exactly from the normal distribution", ACM TOMS 42(1), 2016, algorithm N, on 32-bit words: integer
/// part k with weight exp(-k^2 / 2), fraction x kept with probability exp(-x (2k + x) / 2). Takes 17 words on average.
inline double normal(std::uint64_t seed, Stream stream, std::uint64_t index) {
  RandomWords words(seed, stream, index);
  for (;;) {
    std::uint64_t k = 0, kept = 0;
    while (exp_of_minus_half(words)) ++k;
    const std::uint64_t trials = k > 1 ? k * (k - 1) : 0;
    while (kept < trials && exp_of_minus_half(words)) ++kept;
    if (kept < trials) continue;
    const std::uint32_t x = words.next();
    for (kept = 0; kept <= k && exp_of_fraction(words, k, x);) ++kept;
    if (kept <= k) continue;
    const std::uint32_t tail = words.next();
    const auto magnitude = static_cast<std::int64_t>((k << 49) + (std::uint64_t{x} << 17) + (tail >> 15));
    return static_cast<double>(tail % 2 == 0 ? magnitude : -magnitude) * 0x1p-49;
  }
}

/// While one lives, x87 rounds to 53 bits, as other units do, instead of first to 64. Elsewhere without effect.
class DoublePrecision {
 public:
  LONGVIEW_INLINE DoublePrecision() {
#if LONGVIEW_X87
    __asm__ volatile("fnstcw %0" : "=m"(before_) : : "memory");
    const auto changed = static_cast<unsigned short>((before_ & ~0x300) | 0x200);
    __asm__ volatile("fldcw %0" : : "m"(changed) : "memory");
#endif
  }
  LONGVIEW_INLINE ~DoublePrecision() {
#if LONGVIEW_X87
    __asm__ volatile("fldcw %0" : : "m"(before_) : "memory");
#endif
  }
  DoublePrecision(const DoublePrecision&) = delete;
  DoublePrecision& operator=(const DoublePrecision&) = delete;

 private:
#if LONGVIEW_X87
  unsigned short before_ = 0;
#endif
};

/// A double each operation on which is rounded: the compiler sees no expression to fuse, reorder or approximate.
///
/// Used inside the scope of a DoublePrecision.
class Rounded {
 public:
  LONGVIEW_INLINE Rounded() = default;
  LONGVIEW_INLINE explicit Rounded(double value) : value_(pin(value)) {}
  LONGVIEW_INLINE double value() const { return value_; }

  LONGVIEW_INLINE friend Rounded operator+(Rounded a, Rounded b) { return Rounded(a.value_ + b.value_); }
  LONGVIEW_INLINE friend Rounded operator-(Rounded a, Rounded b) { return Rounded(a.value_ - b.value_); }
  LONGVIEW_INLINE friend Rounded operator*(Rounded a, Rounded b) { return Rounded(a.value_ * b.value_); }
  LONGVIEW_INLINE friend Rounded operator/(Rounded a, Rounded b) { return Rounded(a.value_ / b.value_); }
  LONGVIEW_INLINE friend Rounded sqrt(Rounded a) { return Rounded(std::sqrt(a.value_)); }
  LONGVIEW_INLINE friend bool operator<(Rounded a, Rounded b) { return a.value_ < b.value_; }

 private:
  LONGVIEW_INLINE static double pin(double x) {
#if LONGVIEW_X87
    __asm__ volatile("" : "+m"(x));
#elif defined(__GNUC__) && defined(__SSE2__)
    __asm__ volatile("" : "+x"(x));
#elif defined(__GNUC__) && defined(__aarch64__)
    __asm__ volatile("" : "+w"(x));
#elif defined(__GNUC__)
    __asm__ volatile("" : "+m"(x));
#else
    const volatile double stored = x;
    x = stored;
#endif
    return x;
  }

  double value_ = 0;
};

}  // namespace longview

#undef LONGVIEW_X87
