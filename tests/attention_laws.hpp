// SPDX-License-Identifier: Apache-2.0
// What holds for every softmax operator, bit for bit where it can. Each operator's test instantiates it for its types.
#pragma once

#include <cfenv>

#include "test_operators.hpp"

namespace test {

template <typename Operator>
class AttentionLaws : public OperatorTest<Operator> {
 public:
  using Number = typename Operator::Element;

  static Sizes small(Index queries, Index keys) {
    return {1, 1, 1, Operator::same_lengths ? keys : queries, keys, 3, 5};
  }
  /// A mask of every (query, key) of one batch item and head.
  static Scores<Number> with_mask(const std::vector<std::uint8_t>& keep, const Sizes& s) {
    return {.keep_mask = {keep.data(), {1, 1, s.queries, s.keys}}};
  }
};
TYPED_TEST_SUITE_P(AttentionLaws);

// ---- Shapes and sizes

TYPED_TEST_P(AttentionLaws, S15_OneKeyGivesItsValue) {
  using T = typename TypeParam::Element;
  Random random(15);
  for (const Index dim : {1, 2, 15, 16, 17, 70}) {
    const Problem<T> problem({3, 4, 4, 1, 1, dim, dim}, random, 3);
    under_all_sets([&] { EXPECT_TRUE(same_bits(problem.value, this->run(problem).out, problem.sizes.out())); });
  }
}

// ---- Masks

TYPED_TEST_P(AttentionLaws, M01_RowsMaskedEntirely) {
  using T = typename TypeParam::Element;
  Random random(201);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  const auto open = random.bytes(s.queries * s.keys, 70);
  auto keep = open;
  for (const Index row : {Index{0}, Index{3}, s.queries - 1})
    std::fill_n(keep.begin() + row * s.keys, s.keys, std::uint8_t{0});
  under_all_sets([&] {
    Answer<T> expected = this->run(problem, this->with_mask(open, s));
    const auto out = this->rows(expected, s);
    const auto lse = this->lse(expected, s);
    for (Index b = 0; b < s.batch; ++b)
      for (Index h = 0; h < s.heads; ++h)
        for (const Index row : {Index{0}, Index{3}, s.queries - 1}) {
          for (Index c = 0; c < s.value_dim; ++c) out(b, h, row, c) = 0;
          lse(b, h, row) = -this->infinity;
        }
    EXPECT_TRUE(same_answer(s, expected, this->run(problem, this->with_mask(keep, s))));
  });
}

TYPED_TEST_P(AttentionLaws, M03_BiasOfMinusInfinityIsAMask) {
  using T = typename TypeParam::Element;
  Random random(203);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  auto keep = random.bytes(s.queries * s.keys, 50);
  std::fill_n(keep.begin(), s.keys, std::uint8_t{0});
  std::vector<T> bias(keep.size());
  for (std::size_t at = 0; at < keep.size(); ++at) bias[at] = keep[at] != 0 ? T(0) : -this->infinity;
  under_all_sets([&] {
    EXPECT_TRUE(same_answer(s, this->run(problem, this->with_mask(keep, s)),
                            this->run(problem, {.bias = {bias.data(), {1, 1, s.queries, s.keys}}})));
  });
}

TYPED_TEST_P(AttentionLaws, M04_HugeNegativeBiasIsNoMask) {
  using T = typename TypeParam::Element;
  const Sizes s = this->small(3, 100);
  Random random(204);
  const Problem<T> problem(s, random);
  const T lowest = std::numeric_limits<T>::lowest();
  std::vector<T> bias(to_size(s.queries * s.keys), lowest);
  under_all_sets([&] {
    Answer<T> got = this->run(problem, {.bias = {bias.data(), {1, 1, s.queries, s.keys}}});
    const auto out = this->rows(got, s);
    for (Index i = 0; i < s.queries; ++i) {
      Index seen = 0;
      T sum = 0;
      for (Index j = 0; j < s.keys; ++j)
        if (TypeParam::sees(s, i, j)) ++seen, sum += problem.value[to_size(j * s.value_dim)];
      EXPECT_NEAR(out(0, 0, i, 0), sum / static_cast<T>(seen), 1e-5) << "query " << i;
    }
  });
}

TYPED_TEST_P(AttentionLaws, M05_M06_BiasThatIsNotFinite) {
  using T = typename TypeParam::Element;
  Random random(205);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  for (const T poison : {this->infinity, this->nan})
    for (const bool masked : {false, true}) {
      const auto clean = random.values<T>(s.queries * s.keys);
      std::vector<T> bias = clean;
      std::vector<std::uint8_t> keep(bias.size(), 1);
      const Index row = 7, key = 5;
      bias[to_size(row * s.keys + key)] = poison;
      if (masked) keep[to_size(row * s.keys + key)] = 0;
      under_all_sets([&] {
        Scores<T> scores = this->with_mask(keep, s);
        scores.bias = {clean.data(), {1, 1, s.queries, s.keys}};
        Answer<T> expected = this->run(problem, scores);
        const auto out = this->rows(expected, s);
        const auto lse = this->lse(expected, s);
        for (Index b = 0; b < s.batch && !masked; ++b)
          for (Index h = 0; h < s.heads; ++h)
            if (TypeParam::sees(s, row, key)) {
              for (Index c = 0; c < s.value_dim; ++c) out(b, h, row, c) = this->nan;
              lse(b, h, row) = this->nan;
            }
        scores.bias = {bias.data(), {1, 1, s.queries, s.keys}};
        EXPECT_TRUE(same_answer(s, expected, this->run(problem, scores))) << poison << " masked " << masked;
      });
    }
}

TYPED_TEST_P(AttentionLaws, M07_M08_TilesMaskedEntirely) {
  using T = typename TypeParam::Element;
  Random random(207);
  const Index length = 300;
  const Problem<T> problem({1, 2, 1, length, length, 5, 6}, random);
  const Sizes& s = problem.sizes;
  // What is masked counts for nothing: the same as keys that are poison there.
  for (const int pattern : {0, 1, 2}) {
    std::vector<std::uint8_t> keep(to_size(length * length), 1);
    Problem<T> poisoned = problem;
    for (Index j = 0; j < length; ++j) {
      const Index tile = j / 64;
      if (!(pattern == 0 ? tile == 0 : pattern == 1 ? tile == length / 64 : tile % 2 == 0)) continue;
      for (Index i = 0; i < length; ++i) keep[to_size(i * length + j)] = 0;
      for (Index c = 0; c < s.head_dim; ++c) poisoned.key_at(0, 0, j, c) = this->nan;
      for (Index c = 0; c < s.value_dim; ++c) poisoned.value_at(0, 0, j, c) = this->infinity;
    }
    under_all_sets([&] {
      const Answer<T> expected = this->run(problem, this->with_mask(keep, s));
      EXPECT_TRUE(same_answer(s, expected, this->run(poisoned, this->with_mask(keep, s)))) << "pattern " << pattern;
      for (const T x : expected.out) ASSERT_FALSE(std::isnan(x));
    });
  }
}

TYPED_TEST_P(AttentionLaws, M08_OneOpenKeyAtEachPosition) {
  using T = typename TypeParam::Element;
  Random random(208);
  const Index length = 200;
  const Problem<T> problem({1, 1, 1, length, length, 5, 6}, random, 5);
  const Sizes& s = problem.sizes;
  for (Index shift = 0; shift < length; shift += 33) {
    std::vector<std::uint8_t> keep(to_size(length * length), 0);
    Answer<T> expected(s);
    for (Index i = 0; i < length; ++i) {
      const Index key = (i * 7 + shift) % length;
      keep[to_size(i * length + key)] = 1;
      for (Index c = 0; c < s.value_dim; ++c)
        this->rows(expected, s)(0, 0, i, c) =
            TypeParam::sees(s, i, key) ? problem.value[to_size(key * s.value_dim + c)] : T(0);
    }
    under_all_sets([&] {
      EXPECT_TRUE(same_bits(expected.out, this->run(problem, this->with_mask(keep, s)).out, s.out()));
    });
  }
}

TYPED_TEST_P(AttentionLaws, M09_EveryByteBesidesZeroKeeps) {
  using T = typename TypeParam::Element;
  Random random(209);
  const Index length = 256;
  const Problem<T> problem({1, 1, 1, length, length, 2, 3}, random);
  const Sizes& s = problem.sizes;
  std::vector<std::uint8_t> bytes(to_size(length * length)), ones(bytes.size());
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    bytes[at] = static_cast<std::uint8_t>(at * 3 + at / 256);
    ones[at] = bytes[at] != 0;
  }
  under_all_sets([&] {
    EXPECT_TRUE(same_answer(s, this->run(problem, this->with_mask(ones, s)), this->run(problem, this->with_mask(bytes, s))));
  });
}

TYPED_TEST_P(AttentionLaws, M11_RepeatedMasks) {
  using T = typename TypeParam::Element;
  Random random(211);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  for (int axes = 0; axes < 16; ++axes) {
    Shape<4> shape = s.pairs();
    for (std::size_t axis = 0; axis < 4; ++axis)
      if ((axes >> axis & 1) != 0) shape[axis] = 1;
    const auto keep = random.bytes(count_of(shape), 60);
    const auto bias = random.values<T>(count_of(shape));
    const TensorView<const std::uint8_t, 4> mask(keep.data(), shape);
    const TensorView<const T, 4> biases(bias.data(), shape);
    // The same by strides of 0, and written out.
    Shape<4> steps{};
    for (std::size_t axis = 0; axis < 4; ++axis) steps[axis] = shape[axis] == 1 ? 0 : mask.stride(axis);
    const TensorView<const std::uint8_t, 4> mask_by_strides(keep.data(), s.pairs(), steps);
    const TensorView<const T, 4> bias_by_strides(bias.data(), s.pairs(), steps);
    const auto whole_mask = copy_of(mask_by_strides);
    const auto whole_bias = copy_of(bias_by_strides);
    under_all_sets([&] {
      const Answer<T> masked = this->run(problem, {.keep_mask = {whole_mask.data(), s.pairs()}}),
                      biased = this->run(problem, {.bias = {whole_bias.data(), s.pairs()}});
      EXPECT_TRUE(same_answer(s, masked, this->run(problem, {.keep_mask = mask}))) << text_of(shape);
      EXPECT_TRUE(same_answer(s, masked, this->run(problem, {.keep_mask = mask_by_strides}))) << text_of(shape);
      EXPECT_TRUE(same_answer(s, biased, this->run(problem, {.bias = biases}))) << text_of(shape);
      EXPECT_TRUE(same_answer(s, biased, this->run(problem, {.bias = bias_by_strides}))) << text_of(shape);
    });
  }
}

/// One key is poison: rows that see it show it, others keep their bits.
TYPED_TEST_P(AttentionLaws, M29_PoisonShowsExactlyWhereItIsAttended) {
  using T = typename TypeParam::Element;
  Random random(229);
  Sizes s = this->sizes();
  s.batch = 1, s.heads = 2, s.key_heads = 1;
  const Problem<T> problem(s, random);
  const auto keep = random.bytes(s.queries * s.keys, 50);
  for (const bool with_mask : {false, true})
    for (const T poison : {this->nan, this->infinity, -this->infinity})
      for (const Index key : {Index{0}, Index{5}, Index{40}, Index{63}, Index{64}, s.keys - 1})
        for (const bool in_value : {false, true}) {
          Problem<T> poisoned = problem;
          const Index channel = 11;
          (in_value ? poisoned.value_at(0, 0, key, channel) : poisoned.key_at(0, 0, key, channel)) = poison;
          const Scores<T> scores = with_mask ? this->with_mask(keep, s) : Scores<T>{};
          under_all_sets([&] {
            Answer<T> expected = this->run(problem, scores), got = this->run(poisoned, scores);
            const auto out = this->rows(expected, s), poisoned_out = this->rows(got, s);
            const auto lse = this->lse(expected, s), poisoned_lse = this->lse(got, s);
            for (Index h = 0; h < s.heads; ++h)
              for (Index i = 0; i < s.queries; ++i) {
                if (!TypeParam::sees(s, i, key) || (with_mask && keep[to_size(i * s.keys + key)] == 0)) continue;
                if (in_value) {
                  ASSERT_FALSE(std::isfinite(poisoned_out(0, h, i, channel))) << "head " << h << " query " << i;
                  out(0, h, i, channel) = poisoned_out(0, h, i, channel);
                } else {
                  // A product with an infinite key is -inf or +inf; only the latter, and NaN, spoil the row.
                  const T q = problem.query_view()(0, h, i, channel);
                  const bool spoils = std::isnan(poison) || (poison > 0) == (q > 0);
                  ASSERT_EQ(std::isnan(poisoned_lse(0, h, i)), spoils) << "head " << h << " query " << i;
                  for (Index c = 0; c < s.value_dim; ++c) {
                    ASSERT_EQ(std::isnan(poisoned_out(0, h, i, c)), spoils) << "head " << h << " query " << i;
                    out(0, h, i, c) = poisoned_out(0, h, i, c);
                  }
                  lse(0, h, i) = poisoned_lse(0, h, i);
                }
              }
            EXPECT_TRUE(same_answer(s, expected, got))
                << "key " << key << " poison " << poison << (in_value ? " in value" : " in key") << " mask " << with_mask;
          });
        }
}

TYPED_TEST_P(AttentionLaws, M29_PoisonOfOneQueryStaysInItsRow) {
  using T = typename TypeParam::Element;
  Random random(230);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  for (const Index row : {Index{0}, Index{47}, s.queries - 1}) {
    Problem<T> poisoned = problem;
    poisoned.query[to_size(row * s.head_dim)] = this->nan;
    under_all_sets([&] {
      Answer<T> expected = this->run(problem);
      for (Index c = 0; c < s.value_dim; ++c) this->rows(expected, s)(0, 0, row, c) = this->nan;
      this->lse(expected, s)(0, 0, row) = this->nan;
      EXPECT_TRUE(same_answer(s, expected, this->run(poisoned))) << "query " << row;
    });
  }
}

TYPED_TEST_P(AttentionLaws, M30_PoisonInTheWorkspace) {
  using T = typename TypeParam::Element;
  Random random(232);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  const auto keep = random.bytes(s.queries * s.keys, 60);
  const auto sinks = random.values<T>(s.heads);
  Problem<T> poisoned = problem;
  poisoned.value_at(0, 0, 2, 0) = this->nan;  // takes the way of tiles that hold one
  Scores<T> scores = this->with_mask(keep, s);
  scores.sinks = sinks;
  under_all_sets([&] {
    for (const Problem<T>& one : {problem, poisoned})
      for (const Scores<T>& options : {Scores<T>{}, scores}) {
        const Answer<T> expected = this->run(one, options);
        const longview::Sequential sequential;
        longview::DryRun dry;
        Answer<T> got(s);
        TypeParam::run(one.query_view(), one.key_view(), one.value_view(), got.output(s), options, longview::Run(sequential, dry));
        ASSERT_TRUE(dry.ok()) << dry.error();
        for (const T poison : {this->nan, this->infinity, std::numeric_limits<T>::max()})
          for (const std::size_t shift : {std::size_t{0}, std::size_t{1}, std::size_t{7}, std::size_t{63}}) {
            std::vector<T> words(dry.workspace_bytes() / sizeof(T) + 64, poison);
            const std::span<std::byte> bytes = std::as_writable_bytes(std::span<T>(words)).subspan(shift);
            EXPECT_TRUE(same_answer(s, expected, this->run(one, options, longview::Run(sequential, bytes))))
                << "poison " << poison << " shift " << shift;
          }
      }
  });
}

// ---- Numbers

TYPED_TEST_P(AttentionLaws, N03_ScoresOfMinus1e30) {
  using T = typename TypeParam::Element;
  Random random(303);
  Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  std::fill(problem.query.begin(), problem.query.end(), T(0));
  const std::vector<T> low(1, T(-1e30)), zero(1, T(0));
  under_all_sets([&] {
    // The relative term is not 0, but of no weight beside 1e30.
    const Answer<T> expected = this->run(problem, {.scale = 0.0, .bias = {zero.data(), {1, 1, 1, 1}}});
    const Answer<T> got = this->run(problem, {.scale = 0.0, .bias = {low.data(), {1, 1, 1, 1}}});
    EXPECT_TRUE(same_bits(expected.out, got.out, s.out()));
  });
}

TYPED_TEST_P(AttentionLaws, N06_ScoresThatOverflow) {
  using T = typename TypeParam::Element;
  const T huge = std::numeric_limits<T>::max() / 2;
  for (const bool positive : {false, true}) {
    Random random(306);
    Problem<T> problem({1, 1, 1, 5, 5, 1, 2}, random);
    std::fill(problem.query.begin(), problem.query.end(), huge);
    std::fill(problem.key.begin(), problem.key.end(), positive ? huge : -huge);
    under_all_sets([&] {
      const Answer<T> got = this->run(problem);
      for (const T x : got.out) EXPECT_TRUE(std::isnan(x)) << "positive " << positive;
      for (const T x : got.lse) EXPECT_TRUE(std::isnan(x)) << "positive " << positive;
    });
  }
}

TYPED_TEST_P(AttentionLaws, N11_RoundingModes) {
  using T = typename TypeParam::Element;
  Random random(311);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  T most = 0;
  for (const T x : problem.value) most = std::max(most, std::abs(x));
  const auto keep = random.bytes(s.queries * s.keys, 60);
  const auto sinks = random.values<T>(s.heads);
  Scores<T> scores = this->with_mask(keep, s);
  scores.sinks = sinks, scores.softcap = 3;
  under_all_sets([&] {
    for (const Scores<T>& options : {Scores<T>{}, scores}) {
      const Answer<T> nearest = this->run(problem, options);
      for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
        std::fesetround(mode);
        const Answer<T> got = this->run(problem, options);
        const int after = std::fegetround();
        std::fesetround(FE_TONEAREST);
        EXPECT_EQ(after, mode);
        for (std::size_t at = 0; at < got.out.size(); ++at)
          ASSERT_NEAR(got.out[at], nearest.out[at], T(1e-4) * most) << "mode " << mode << " element " << at;
      }
    }
  });
}

TYPED_TEST_P(AttentionLaws, N12_NoFlagsFromMaskedKeys) {
  using T = typename TypeParam::Element;
  Random random(312);
  Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  std::vector<std::uint8_t> keep(to_size(s.keys), 1);
  for (const Index key : {Index{2}, Index{33}, s.keys - 1})
    for (Index b = 0; b < s.batch; ++b)
      for (Index h = 0; h < s.key_heads; ++h) {
        keep[to_size(key)] = 0;
        for (Index c = 0; c < s.head_dim; ++c) problem.key_at(b, h, key, c) = c % 2 != 0 ? this->infinity : -this->infinity;
        problem.value_at(b, h, key, 0) = std::numeric_limits<T>::signaling_NaN();
      }
  under_all_sets([&] {
    const Scores<T> scores{.keep_mask = {keep.data(), {1, 1, 1, s.keys}}};
    std::feclearexcept(FE_ALL_EXCEPT);
    const Answer<T> got = this->run(problem, scores);
    EXPECT_EQ(std::fetestexcept(FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW), 0);
    for (const T x : got.out) ASSERT_TRUE(std::isfinite(x));
  });
}

TYPED_TEST_P(AttentionLaws, N12_NoFlagsFromPairMasks) {
  using T = typename TypeParam::Element;
  Random random(313);
  Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  auto keep = random.bytes(s.queries * s.keys, 70);
  for (const Index key : {Index{2}, Index{33}, s.keys - 1}) {
    for (Index i = 0; i < s.queries; ++i) keep[to_size(i * s.keys + key)] = 0;
    for (Index b = 0; b < s.batch; ++b)
      for (Index h = 0; h < s.key_heads; ++h) {
        for (Index c = 0; c < s.head_dim; ++c) problem.key_at(b, h, key, c) = c % 2 != 0 ? this->infinity : -this->infinity;
        problem.value_at(b, h, key, 0) = this->nan;
      }
  }
  under_all_sets([&] {
    std::feclearexcept(FE_ALL_EXCEPT);
    this->run(problem, this->with_mask(keep, s));
    EXPECT_EQ(std::fetestexcept(FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW), 0);
  });
}

TYPED_TEST_P(AttentionLaws, N12_NoFlagsFromRowsWithoutKeys) {
  using T = typename TypeParam::Element;
  Random random(314);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  auto keep = random.bytes(s.queries * s.keys, 70);
  std::fill_n(keep.begin() + 3 * s.keys, s.keys, std::uint8_t{0});
  under_all_sets([&] {
    std::feclearexcept(FE_ALL_EXCEPT);
    this->run(problem, this->with_mask(keep, s));
    EXPECT_EQ(std::fetestexcept(FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW), 0);
  });
}

/// Scratch that nobody has written yet is not computed with.
TYPED_TEST_P(AttentionLaws, N12_NoFlagsFromScratch) {
  using T = typename TypeParam::Element;
  Random random(315);
  Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  auto keep = random.bytes(s.queries * s.keys, 70);
  for (Index i = 0; i < s.queries; ++i) {
    keep[to_size(i * s.keys + i)] = 1;
    keep[to_size(i * s.keys + 2)] = i == 2;
  }
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.key_heads; ++h) problem.value_at(b, h, 2, 0) = this->nan;
  under_all_sets([&] {
    for (const T poison : {std::numeric_limits<T>::signaling_NaN(), std::numeric_limits<T>::max()}) {
      std::vector<T> words(std::size_t{1} << 20);
      std::uint64_t raw = 0;
      std::memcpy(&raw, &poison, sizeof poison);
      for (T& word : words) std::memcpy(&word, &raw, sizeof word);
      const longview::Sequential sequential;
      Answer<T> got(s);
      std::feclearexcept(FE_ALL_EXCEPT);
      TypeParam::run(problem.query_view(), problem.key_view(), problem.value_view(), got.output(s),
                     this->with_mask(keep, s), longview::Run(sequential, std::as_writable_bytes(std::span<T>(words))));
      EXPECT_EQ(std::fetestexcept(FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW), 0) << poison;
    }
  });
}

TYPED_TEST_P(AttentionLaws, N13_ScaleZeroIsTheMean) {
  using T = typename TypeParam::Element;
  Random random(316);
  Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  for (T& x : problem.value) x = std::round(x * 4);
  under_all_sets([&] {
    Answer<T> got = this->run(problem, {.scale = 0.0});
    for (Index i = 0; i < s.queries; ++i) {
      T sum = 0, seen = 0;
      for (Index j = 0; j < s.keys; ++j)
        if (TypeParam::sees(s, i, j)) sum += problem.value_at(0, 0, j, 0), ++seen;
      ASSERT_NEAR(this->rows(got, s)(0, 0, i, 0), sum / seen, std::numeric_limits<T>::epsilon() * 8) << "query " << i;
    }
  });
}

TYPED_TEST_P(AttentionLaws, N14_NegativeScaleMirrorsTheQueries) {
  using T = typename TypeParam::Element;
  Random random(317);
  const Problem<T> problem(this->sizes(), random);
  Problem<T> mirrored = problem;
  for (T& x : mirrored.query) x = -x;
  under_all_sets([&] {
    EXPECT_TRUE(same_answer(problem.sizes, this->run(problem, {.scale = -0.5}), this->run(mirrored, {.scale = 0.5})));
  });
}

TYPED_TEST_P(AttentionLaws, N15_ZeroesOfEitherSign) {
  using T = typename TypeParam::Element;
  Random random(318);
  Problem<T> problem(this->sizes(), random);
  std::fill(problem.value.begin(), problem.value.end(), T(-0.0));
  under_all_sets([&] {
    for (const T x : this->run(problem).out) ASSERT_EQ(bits_of(x), bits_of(T(0)));  // sums start at +0
  });
}

TYPED_TEST_P(AttentionLaws, N18_SoftcapsOfAnySize) {
  using T = typename TypeParam::Element;
  Random random(319);
  const Problem<T> problem(this->sizes(), random);
  const double least = std::numeric_limits<T>::min(), most = std::numeric_limits<T>::max();
  under_all_sets([&] {
    const Answer<T> uncapped = this->run(problem), uniform = this->run(problem, {.scale = 0.0});
    for (const double cap : {1e-320, 1e-300, 1e-40, least, least * 4, 1e-30, 1e-20, 1e-12, 1e12, 1e30, 1e37, most / 4, most, 1e39,
                             1e300}) {
      const Answer<T> got = this->run(problem, {.softcap = cap});
      const Answer<T>& expected = cap < 1 ? uniform : uncapped;
      T worst = 0;
      for (std::size_t at = 0; at < got.out.size(); ++at) {
        const T error = std::abs(got.out[at] - expected.out[at]);
        worst = std::isnan(error) ? this->infinity : std::max(worst, error);
      }
      // Scores of at most the cap move the weights by as much.
      EXPECT_LE(worst, std::numeric_limits<T>::epsilon() * 16 + (cap < 1 ? static_cast<T>(16 * cap) : T(0))) << "cap " << cap;
    }
  });
}

REGISTER_TYPED_TEST_SUITE_P(AttentionLaws, S15_OneKeyGivesItsValue, M01_RowsMaskedEntirely,
                            M03_BiasOfMinusInfinityIsAMask, M04_HugeNegativeBiasIsNoMask, M05_M06_BiasThatIsNotFinite,
                            M07_M08_TilesMaskedEntirely, M08_OneOpenKeyAtEachPosition, M09_EveryByteBesidesZeroKeeps,
                            M11_RepeatedMasks, M29_PoisonShowsExactlyWhereItIsAttended,
                            M29_PoisonOfOneQueryStaysInItsRow, M30_PoisonInTheWorkspace, N03_ScoresOfMinus1e30,
                            N06_ScoresThatOverflow, N11_RoundingModes, N12_NoFlagsFromMaskedKeys,
                            N12_NoFlagsFromPairMasks, N12_NoFlagsFromRowsWithoutKeys, N12_NoFlagsFromScratch,
                            N13_ScaleZeroIsTheMean, N14_NegativeScaleMirrorsTheQueries, N15_ZeroesOfEitherSign,
                            N18_SoftcapsOfAnySize);

// ---- Where keys are not queries

template <typename Operator>
class CrossAttentionLaws : public AttentionLaws<Operator> {};
TYPED_TEST_SUITE_P(CrossAttentionLaws);

TYPED_TEST_P(CrossAttentionLaws, S02_NoKeys) {
  using T = typename TypeParam::Element;
  Random random(2);
  const Problem<T> problem({2, 4, 2, 60, 0, 3, 3}, random);
  under_all_sets([&] {
    const Answer<T> got = this->run(problem);
    for (const T x : got.out) ASSERT_EQ(bits_of(x), bits_of(T(0)));
    for (const T x : got.lse) ASSERT_EQ(x, -this->infinity);
  });
}

TYPED_TEST_P(CrossAttentionLaws, L12_NullDataWithoutElements) {
  using T = typename TypeParam::Element;
  const Sizes s{1, 1, 1, 3, 0, 2, 2};
  Random random(112);
  const Problem<T> problem(s, random);
  Answer<T> got(s);
  EXPECT_NO_THROW(
      TypeParam::run(problem.query_view(), {nullptr, s.key()}, {nullptr, s.value()}, got.output(s)));
}

TYPED_TEST_P(CrossAttentionLaws, M27_KeyLengthsAreMasks) {
  using T = typename TypeParam::Element;
  Random random(227);
  Sizes s = this->sizes();
  s.batch = 5;
  const Problem<T> problem(s, random);
  const std::vector<Index> lengths{0, 1, s.keys, s.keys - 1, 64};
  std::vector<std::uint8_t> keep(to_size(s.batch * s.keys));
  for (Index b = 0; b < s.batch; ++b)
    for (Index j = 0; j < s.keys; ++j) keep[to_size(b * s.keys + j)] = j < lengths[to_size(b)];
  Problem<T> poisoned = problem;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.key_heads; ++h)
      for (Index j = lengths[to_size(b)]; j < s.keys; ++j) {
        for (Index c = 0; c < s.head_dim; ++c) poisoned.key_at(b, h, j, c) = this->infinity;
        for (Index c = 0; c < s.value_dim; ++c) poisoned.value_at(b, h, j, c) = this->nan;
      }
  under_all_sets([&] {
    const Answer<T> expected = this->run(problem, {.keep_mask = {keep.data(), {s.batch, 1, 1, s.keys}}});
    EXPECT_TRUE(same_answer(s, expected, this->run(problem, {.key_lengths = lengths})));
    EXPECT_TRUE(same_answer(s, expected, this->run(poisoned, {.key_lengths = lengths})));
    for (std::size_t at = 0; at < to_size(s.heads * s.queries * s.value_dim); ++at)
      ASSERT_EQ(bits_of(expected.out[at]), bits_of(T(0)));
  });
}

REGISTER_TYPED_TEST_SUITE_P(CrossAttentionLaws, S02_NoKeys, L12_NullDataWithoutElements, M27_KeyLengthsAreMasks);

}  // namespace test
