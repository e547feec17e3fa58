// SPDX-License-Identifier: Apache-2.0
// Choosing the kernels, and the exponentials that each of them has.
#include "longview/instruction_set.hpp"

#include <cmath>
#include <iostream>

#include "test_support.hpp"

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#pragma GCC diagnostic ignored "-Wignored-attributes"
#endif

namespace {

using longview::ContractError;
using longview::InstructionSet;

enum class Function { exp2_nonpositive, exp2, tanh };

// A function of each target over an array whose length is a multiple of 16, compiled for that target.
#define LONGVIEW_TEST_APPLY(target)                                                                           \
  template <typename T>                                                                                       \
  void apply_##target(Function function, const T* from, T* to, std::size_t count) {                           \
    namespace kernels = longview::kernel::target;                                                             \
    constexpr std::size_t lanes = static_cast<std::size_t>(kernels::lanes<T>);                                \
    if (function == Function::exp2_nonpositive)                                                               \
      for (std::size_t at = 0; at < count; at += lanes)                                                       \
        kernels::store_unaligned(to + at, kernels::exp2_nonpositive<T>(kernels::load_unaligned(from + at)));  \
    else if (function == Function::exp2)                                                                      \
      for (std::size_t at = 0; at < count; at += lanes)                                                       \
        kernels::store_unaligned(to + at, kernels::exp2<T>(kernels::load_unaligned(from + at)));              \
    else                                                                                                      \
      for (std::size_t at = 0; at < count; at += lanes)                                                       \
        kernels::store_unaligned(to + at, kernels::tanh<T>(kernels::load_unaligned(from + at)));              \
  }

LONGVIEW_TEST_APPLY(portable)
#ifdef LONGVIEW_BUILDS_BASELINE
LONGVIEW_TEST_APPLY(baseline)
#endif
#ifdef LONGVIEW_BUILDS_AVX2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
LONGVIEW_TEST_APPLY(avx2)
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
#ifdef LONGVIEW_BUILDS_AVX512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,prefer-vector-width=512")
#endif
LONGVIEW_TEST_APPLY(avx512)
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

template <typename T>
void apply(InstructionSet set, Function function, const T* from, T* to, std::size_t count) {
  switch (set) {
#ifdef LONGVIEW_BUILDS_AVX512
    case InstructionSet::avx512:
      return apply_avx512(function, from, to, count);
#endif
#ifdef LONGVIEW_BUILDS_AVX2
    case InstructionSet::avx2:
      return apply_avx2(function, from, to, count);
#endif
#ifdef LONGVIEW_BUILDS_BASELINE
    case InstructionSet::baseline:
      return apply_baseline(function, from, to, count);
#endif
    default:
      return apply_portable(function, from, to, count);
  }
}

bool fuses(InstructionSet set) {
#if defined(__aarch64__)
  return set != InstructionSet::portable;
#else
  return set == InstructionSet::avx2 || set == InstructionSet::avx512;
#endif
}

/// Distance in units of the last place of the exact value.
template <typename T>
double ulps(T got, long double exact) {
  const int exponent = std::max(std::ilogb(exact), std::numeric_limits<T>::min_exponent - 1);
  return static_cast<double>(std::abs(static_cast<long double>(got) - exact) /
                             std::ldexp(1.0L, exponent - std::numeric_limits<T>::digits + 1));
}

// ---- Choosing

TEST(InstructionSets, TheBestIsInUseUnlessSet) {
  const auto all = test::instruction_sets();
  ASSERT_FALSE(all.empty());
  EXPECT_EQ(all.front(), InstructionSet::portable);
  EXPECT_EQ(longview::instruction_set(), all.back());
}

TEST(InstructionSets, EachOneThatIsAvailableCanBeForced) {
  test::under_all_sets([] {});
  for (const InstructionSet set : test::instruction_sets()) {
    longview::use_instruction_set(set);
    EXPECT_EQ(longview::instruction_set(), set);
    EXPECT_EQ(longview::kernel::attention_kernel<float>().block_rows % 3, 0);
  }
}

TEST(InstructionSets, OthersAreRefused) {
  const InstructionSet best = longview::instruction_set();
  std::string sets;
  for (const InstructionSet set : test::instruction_sets()) sets += (sets.empty() ? "" : " or ") + std::string(longview::name_of(set));
  for (const InstructionSet set :
       {InstructionSet::baseline, InstructionSet::avx2, InstructionSet::avx512, static_cast<InstructionSet>(77)}) {
    if (longview::available(set)) continue;
    // Whatever is forced at the time.
    for (const InstructionSet forced : {best, InstructionSet::portable}) {
      longview::use_instruction_set(forced);
      const std::string text = test::error_of<ContractError>([&] { longview::use_instruction_set(set); });
      EXPECT_EQ(text, std::string("use_instruction_set: set: not available (got ") + longview::name_of(set) +
                          ", expected " + sets + ")");
      EXPECT_EQ(longview::instruction_set(), forced);
    }
    longview::use_instruction_set(best);
  }
}

TEST(InstructionSets, ValuesThatNameNoSetAreNotAvailable) {
  for (const int value : {-1, 4, 5, 100}) EXPECT_FALSE(longview::available(static_cast<InstructionSet>(value))) << value;
}

TEST(InstructionSets, Names) {
  EXPECT_STREQ(longview::name_of(InstructionSet::portable), "portable");
  EXPECT_STREQ(longview::name_of(InstructionSet::baseline), "baseline");
  EXPECT_STREQ(longview::name_of(InstructionSet::avx2), "avx2");
  EXPECT_STREQ(longview::name_of(InstructionSet::avx512), "avx512");
}

// ---- N16

template <typename T>
class Exponential : public ::testing::Test {
 public:
  static constexpr T infinity = std::numeric_limits<T>::infinity();
  static constexpr T lowest = static_cast<T>(std::numeric_limits<T>::min_exponent - 1);

  static std::vector<T> values(InstructionSet set, Function function, std::vector<T> x) {
    const std::size_t count = x.size();
    x.resize((count + 15) / 16 * 16);
    std::vector<T> y(x.size());
    apply(set, function, x.data(), y.data(), x.size());
    y.resize(count);
    return y;
  }
  static T value(InstructionSet set, Function function, T x) { return values(set, function, {x})[0]; }
};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(Exponential, Types);

TYPED_TEST(Exponential, N16_SpecialValues) {
  using T = TypeParam;
  for (const InstructionSet set : test::instruction_sets())
    for (const Function function : {Function::exp2_nonpositive, Function::exp2}) {
      SCOPED_TRACE(longview::name_of(set));
      const auto value = [&](T x) { return this->value(set, function, x); };
      EXPECT_EQ(test::bits_of(value(-this->infinity)), test::bits_of(T(0)));
      EXPECT_EQ(value(0), T(1));
      EXPECT_EQ(value(T(-0.0)), T(1));
      EXPECT_EQ(value(-std::numeric_limits<T>::denorm_min()), T(1));
      EXPECT_EQ(value(this->lowest), std::numeric_limits<T>::min());
      EXPECT_EQ(test::bits_of(value(std::nextafter(this->lowest, -this->infinity))), test::bits_of(T(0)));
      EXPECT_EQ(test::bits_of(value(std::numeric_limits<T>::lowest())), test::bits_of(T(0)));
      for (const T nan : {std::numeric_limits<T>::quiet_NaN(), -std::numeric_limits<T>::quiet_NaN(),
                          std::numeric_limits<T>::signaling_NaN()})
        EXPECT_TRUE(std::isnan(value(nan)));
      for (T x = -1; x >= this->lowest; --x) ASSERT_EQ(value(x), std::exp2(x)) << x;
    }
}

TYPED_TEST(Exponential, N16_AboveZero) {
  using T = TypeParam;
  for (const InstructionSet set : test::instruction_sets()) {
    SCOPED_TRACE(longview::name_of(set));
    const auto value = [&](T x) { return this->value(set, Function::exp2, x); };
    EXPECT_EQ(value(this->infinity), this->infinity);
    EXPECT_EQ(value(std::numeric_limits<T>::max()), this->infinity);
    EXPECT_EQ(value(T(std::numeric_limits<T>::max_exponent)), this->infinity);
    for (T x = 1; x < T(std::numeric_limits<T>::max_exponent); ++x) ASSERT_EQ(value(x), std::exp2(x)) << x;
  }
}

TYPED_TEST(Exponential, N16_TheSameInAnyLane) {
  using T = TypeParam;
  test::Random random(16);
  std::vector<T> x(64);
  for (T& one : x) one = static_cast<T>(random.uniform(-130, 0));
  for (const InstructionSet set : test::instruction_sets())
    for (const Function function : {Function::exp2_nonpositive, Function::exp2, Function::tanh}) {
      const auto expected = this->values(set, function, x);
      for (std::size_t shift = 1; shift < 16; ++shift) {
        const auto got = this->values(set, function, std::vector<T>(x.begin() + static_cast<std::ptrdiff_t>(shift), x.end()));
        for (std::size_t at = 0; at < got.size(); ++at)
          ASSERT_EQ(test::bits_of(got[at]), test::bits_of(expected[at + shift])) << longview::name_of(set) << x[at + shift];
      }
    }
}

TYPED_TEST(Exponential, N16_AccuracyOfSamples) {
  using T = TypeParam;
  test::Random random(17);
  std::vector<T> negative, any, ratios;
  for (int turn = 0; turn < 300000; ++turn) {
    const double spread = std::exp2(random.uniform(-30, 0));
    negative.push_back(static_cast<T>(random.uniform(double{this->lowest}, 0) * (turn % 2 == 0 ? 1 : spread)));
    any.push_back(static_cast<T>(random.uniform(double{this->lowest}, -double{this->lowest}) * (turn % 2 == 0 ? 1 : spread)));
    ratios.push_back(static_cast<T>(random.uniform(-12, 12) * (turn % 2 == 0 ? 1 : spread)));
  }
  for (const InstructionSet set : test::instruction_sets()) {
    SCOPED_TRACE(longview::name_of(set));
    const double most = fuses(set) ? 1 : 1.5;
    const auto check = [&](Function function, const std::vector<T>& x, auto exact, double bound) {
      const auto y = this->values(set, function, x);
      double worst = 0;
      T where = 0;
      for (std::size_t at = 0; at < x.size(); ++at)
        if (const double error = ulps(y[at], exact(static_cast<long double>(x[at]))); error > worst)
          worst = error, where = x[at];
      EXPECT_LE(worst, bound) << "at " << std::setprecision(17) << where;
      this->RecordProperty(std::string(longview::name_of(set)) + std::to_string(static_cast<int>(function)),
                           std::to_string(worst));
    };
    const auto exp2 = [](long double x) { return std::exp2(x); };
    check(Function::exp2_nonpositive, negative, exp2, most);
    check(Function::exp2, any, exp2, most);
    check(Function::tanh, ratios, [](long double x) { return std::tanh(x); }, 4);
  }
}

TYPED_TEST(Exponential, N18_Tanh) {
  using T = TypeParam;
  for (const InstructionSet set : test::instruction_sets()) {
    SCOPED_TRACE(longview::name_of(set));
    const auto value = [&](T x) { return this->value(set, Function::tanh, x); };
    EXPECT_EQ(value(this->infinity), T(1));
    EXPECT_EQ(value(-this->infinity), T(-1));
    EXPECT_EQ(test::bits_of(value(T(-0.0))), test::bits_of(T(-0.0)));
    EXPECT_EQ(test::bits_of(value(T(0))), test::bits_of(T(0)));
    EXPECT_EQ(value(std::numeric_limits<T>::denorm_min()), std::numeric_limits<T>::denorm_min());
    EXPECT_EQ(value(std::numeric_limits<T>::max()), T(1));
    EXPECT_TRUE(std::isnan(value(std::numeric_limits<T>::quiet_NaN())));
    T before = 0;
    for (T x = 0; x < T(1); x += T(1.0 / 4096)) {
      ASSERT_GE(value(x), before) << x;
      before = value(x);
    }
  }
}

/// visit(x) for all floats from -infinity to -0 and all negative NaNs, in order, in pieces.
template <typename Visit>
void for_all_negative_floats(Visit visit) {
  constexpr std::size_t piece = 1 << 16;
  std::vector<float> x(piece);
  for (std::uint64_t first = 0x80000000; first < 0x100000000; first += piece) {
    for (std::size_t at = 0; at < piece; ++at) x[at] = std::bit_cast<float>(static_cast<std::uint32_t>(first + at));
    visit(x);
  }
}

/// On every target, beside an exact value that is computed once for all.
TEST(Exponential, N16_ExhaustiveFloats) {
  struct Findings {
    double worst = 0;
    float at = 0;
    std::uint64_t too_far = 0, not_exact = 0, not_nan = 0;
  };
  const auto sets = test::instruction_sets();
  std::vector<Findings> findings(sets.size());
  std::vector<float> y(1 << 16);
  std::vector<double> exact(y.size());
  for_all_negative_floats([&](const std::vector<float>& x) {
    const bool nan = std::isnan(x[1]), vanishes = x[0] < -126.0F, one = x.back() > -0x1p-27F;
    if (!nan && !vanishes && !one)
      for (std::size_t at = 0; at < x.size(); ++at) exact[at] = std::exp2(static_cast<double>(x[at]));
    for (std::size_t number = 0; number < sets.size(); ++number) {
      Findings& own = findings[number];
      apply(sets[number], Function::exp2_nonpositive, x.data(), y.data(), x.size());
      const double most = fuses(sets[number]) ? 1 : 1.5;
      for (std::size_t at = 0; at < x.size(); ++at) {
        if (nan) {
          own.not_nan += std::isnan(x[at]) && !std::isnan(y[at]);
        } else if (vanishes || one || x[at] < -126.0F) {
          own.not_exact += test::bits_of(y[at]) != test::bits_of(one ? 1.0F : 0.0F);
        } else {
          const double binade = std::bit_cast<double>(std::bit_cast<std::uint64_t>(exact[at]) & 0x7ff0000000000000u);
          const double error = std::abs(static_cast<double>(y[at]) - exact[at]) / (binade * 0x1p-23);
          if (error > own.worst) own.worst = error, own.at = x[at];
          own.too_far += error > most;
        }
      }
    }
  });
  for (std::size_t number = 0; number < sets.size(); ++number) {
    const Findings& own = findings[number];
    SCOPED_TRACE(longview::name_of(sets[number]));
    std::cout << longview::name_of(sets[number]) << ": worst " << own.worst << " ulp at " << own.at << "\n";
    EXPECT_EQ(own.too_far, 0U) << "worst " << own.worst << " ulp at " << std::hexfloat << own.at;
    EXPECT_EQ(own.not_exact, 0U);
    EXPECT_EQ(own.not_nan, 0U);
  }
}

TEST(Exponential, N16_ExhaustiveFloatsAreMonotone) {
  std::vector<float> y(1 << 16);
  for (const InstructionSet set : test::instruction_sets()) {
    std::uint64_t violations = 0;
    double largest = 0;
    float last = 1, where = 0;
    for_all_negative_floats([&](const std::vector<float>& x) {
      if (std::isnan(x[1]) || x[0] < -127.0F) return;
      apply(set, Function::exp2_nonpositive, x.data(), y.data(), x.size());
      for (std::size_t at = 0; at < x.size(); ++at) {
        if (y[at] > last) {
          ++violations;
          const double step = ulps(y[at], static_cast<long double>(last));
          if (step > largest) largest = step, where = x[at];
        }
        last = y[at];
      }
    });
    // Without fused multiply-adds the sums round once more; what they may fall by is a single ulp, and seldom.
    const bool fused = set >= InstructionSet::avx2;
    EXPECT_LE(violations, fused ? 0U : 200'000U) << longview::name_of(set);
    EXPECT_LE(largest, 1) << longview::name_of(set) << " at " << std::hexfloat << where;
  }
}

}  // namespace
