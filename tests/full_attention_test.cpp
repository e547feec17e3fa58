// SPDX-License-Identifier: Apache-2.0
#include "longview/full_attention.hpp"

#include "attention_laws.hpp"
#include "attention_streaming.hpp"

namespace test {

INSTANTIATE_TYPED_TEST_SUITE_P(Laws, AttentionLaws, WithBothNumbers<FullAttention>, TypeName);
INSTANTIATE_TYPED_TEST_SUITE_P(Laws, CrossAttentionLaws, WithBothNumbers<FullAttention>, TypeName);

}  // namespace test

namespace {

using longview::Alignment;
using longview::KeyValueView;
using test::Answer;
using test::Index;
using test::Output;
using test::Problem;
using test::Random;
using test::Scores;
using test::ScoresCase;
using test::Sizes;
using test::TensorView;

template <typename T>
class FullAttention : public test::AttentionLaws<test::FullAttention<T>> {
 public:
  static void expect_bound(const Problem<T>& problem, const ScoresCase<T>& scores, const std::string& what = "") {
    const auto expected = test::reference_attention(problem, scores);
    test::under_all_sets([&] {
      EXPECT_TRUE(test::within_bound("full_attention", problem.sizes, expected, FullAttention::run(problem, scores.view())))
          << problem.sizes << scores.text() << " " << what;
    });
  }
  static void expect_membership(Sizes sizes, const Scores<T>& scores, auto sees) {
    const Problem<T> problem = test::membership_problem<T>(sizes);
    const auto expected = test::mean_of_unit_vectors<T>(problem.sizes, sees);
    test::under_all_sets([&] {
      EXPECT_TRUE(test::same_bits(expected, FullAttention::run(problem, scores).out, problem.sizes.out())) << problem.sizes;
    });
  }
};
TYPED_TEST_SUITE(FullAttention, test::Numbers, test::TypeName);

// ---- Shapes

TYPED_TEST(FullAttention, S16_ManyDimensions) {
  Random random(16);
  for (Index dim = 1; dim <= 70; ++dim)
    this->expect_bound(Problem<TypeParam>({1, 2, 1, 5, 9, dim, (dim * 37) % 70 + 1}, random), {});
}

TYPED_TEST(FullAttention, S16_ExhaustiveDimensions) {
  Random random(17);
  for (Index dim = 1; dim <= 70; ++dim)
    for (Index value_dim = 1; value_dim <= 70; ++value_dim)
      this->expect_bound(Problem<TypeParam>({1, 1, 1, 2, 5, dim, value_dim}, random), {});
}

TYPED_TEST(FullAttention, S17_LengthsAroundEveryTile) {
  Random random(18);
  for (Index keys = 1; keys <= 200; ++keys) {
    const Problem<TypeParam> problem({1, 1, 1, 3, keys, 5, 6}, random, 2);
    this->expect_bound(problem, {});
    // The last query alone.
    Problem<TypeParam> one = problem;
    one.sizes.queries = 1;
    one.query.assign(problem.query.end() - 5, problem.query.end());
    test::under_all_sets([&] {
      const auto all = this->run(problem).out;
      EXPECT_TRUE(test::same_bits(std::vector<TypeParam>(all.end() - 6, all.end()), this->run(one).out, one.sizes.out()));
    });
  }
}

TYPED_TEST(FullAttention, S17_ManyQueries) {
  Random random(19);
  for (Index queries = 1; queries <= 120; queries += queries < 52 ? 1 : 13)
    this->expect_bound(Problem<TypeParam>({1, 2, 2, queries, 20, 4, 3}, random), {});
}

TYPED_TEST(FullAttention, S18_ValueDimUnlikeHeadDim) {
  Random random(20);
  for (const auto& [dim, value_dim] : {std::pair<Index, Index>{192, 128}, {1, 256}, {256, 1}, {128, 192}, {300, 7}})
    this->expect_bound(Problem<TypeParam>({1, 2, 1, 60, 70, dim, value_dim}, random), {});
}

TYPED_TEST(FullAttention, S17_LengthsThatCrossRanges) {
  Random random(21);
  for (const Index keys : {2047, 2048, 2049, 4095, 4096, 4097, 6500})
    this->expect_bound(Problem<TypeParam>({1, 2, 1, 3, keys, 4, 5}, random, 2), {});
}

// ---- Masks

TYPED_TEST(FullAttention, M12_BottomRightWithMoreKeys) {
  this->expect_membership({1, 1, 1, 2, 5, 1, 1}, {.causal = true, .alignment = Alignment::bottom_right},
                          [](Index, Index, Index i, Index j) { return i == 1 || j < 4; });
}

TYPED_TEST(FullAttention, M13_RowsWithoutKeysAreZero) {
  this->expect_membership({1, 1, 1, 5, 2, 1, 1}, {.causal = true, .alignment = Alignment::bottom_right},
                          [](Index, Index, Index i, Index j) { return i == 4 || (i == 3 && j == 0); });
  Random random(13);
  const Problem<TypeParam> problem({1, 1, 1, 5, 2, 3, 3}, random);
  const auto got = this->run(problem, {.causal = true, .alignment = Alignment::bottom_right});
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(got.lse[i], -std::numeric_limits<TypeParam>::infinity());
}

TYPED_TEST(FullAttention, M15_TopLeft) {
  for (const auto& [queries, keys] : {std::pair<Index, Index>{2, 5}, {5, 2}})
    this->expect_membership({1, 1, 1, queries, keys, 1, 1}, {.causal = true, .alignment = Alignment::top_left},
                            [](Index, Index, Index i, Index j) { return j <= i; });
}

/// All lengths up to 9, all offsets, all key lengths.
TYPED_TEST(FullAttention, M12_M13_M15_ExhaustiveCausal) {
  for (Index queries = 1; queries <= 9; ++queries)
    for (Index keys = 1; keys <= 9; ++keys)
      for (Index offset = -10; offset <= 10; ++offset) {
        std::vector<Index> lengths;
        for (Index length = 0; length <= keys; ++length) lengths.push_back(length);
        const Sizes sizes{keys + 1, 2, 1, queries, keys, 1, 1};
        this->expect_membership(sizes, {.causal = true, .alignment = Alignment::at(offset), .key_lengths = lengths},
                                [&](Index b, Index, Index i, Index j) { return j <= i + offset && j < b; });
      }
}

/// All masks of one query over up to 9 keys, one batch item each.
TYPED_TEST(FullAttention, M08_ExhaustiveKeepMasks) {
  for (Index keys = 1; keys <= 9; ++keys) {
    const Index masks = Index{1} << keys;
    std::vector<std::uint8_t> keep;
    for (Index mask = 0; mask < masks; ++mask)
      for (Index j = 0; j < keys; ++j) keep.push_back(static_cast<std::uint8_t>(mask >> j & 1));
    const auto sees = [&](Index b, Index, Index i, Index j) { return ((b ^ i) >> j & 1) != 0; };
    const auto by_item = [&](Index b, Index, Index, Index j) { return (b >> j & 1) != 0; };
    this->expect_membership({masks, 1, 1, 3, keys, 1, 1}, {.keep_mask = {keep.data(), {masks, 1, 1, keys}}}, by_item);
    // Another mask for each query.
    std::vector<std::uint8_t> pairs;
    for (Index mask = 0; mask < masks; ++mask)
      for (Index i = 0; i < 2; ++i)
        for (Index j = 0; j < keys; ++j) pairs.push_back(static_cast<std::uint8_t>((mask ^ i) >> j & 1));
    this->expect_membership({masks, 1, 1, 2, keys, 1, 1}, {.keep_mask = {pairs.data(), {masks, 1, 2, keys}}}, sees);
  }
}

/// A NaN score is not forgotten when a larger score, or the first finite one, comes along.
TYPED_TEST(FullAttention, M29_NaNScoresStayVisible) {
  using T = TypeParam;
  const Index keys = 4200;
  for (const Index count : {Index{1}, Index{64}, Index{2048}})
    for (const Index from : {Index{0}, Index{3}, Index{64}, Index{2048}})
      for (const T later : {T(0), T(500), T(5000)}) {
        if (from + count > keys - 100) continue;
        Random random(231);
        Problem<T> problem({1, 1, 1, 1, keys, 1, 1}, random);
        problem.query[0] = 1;
        std::fill(problem.key.begin(), problem.key.end(), T(0));
        std::fill_n(problem.key.begin() + from, count, this->nan);
        problem.key.back() = later;
        test::under_all_sets([&] {
          const Answer<T> got = this->run(problem);
          EXPECT_TRUE(std::isnan(got.out[0]) && std::isnan(got.lse[0]))
              << count << " NaN keys from " << from << " on, the last key " << later << ": " << got.out[0] << ", "
              << got.lse[0];
        });
      }
}

// ---- Numbers

TYPED_TEST(FullAttention, N01_EqualHugeScoresGiveTheMean) {
  Random random(1);
  for (const Index keys : {1, 2, 64, 128, 1024, 4096}) {
    Problem<TypeParam> problem({1, 1, 1, 5, keys, 1, 3}, random);
    std::fill(problem.query.begin(), problem.query.end(), TypeParam(100));
    std::fill(problem.key.begin(), problem.key.end(), TypeParam(100));
    for (TypeParam& x : problem.value) x = static_cast<TypeParam>(random.integer(-50, 50));
    test::under_all_sets([&] {
      const auto got = this->run(problem);
      for (Index c = 0; c < 3; ++c) {
        TypeParam sum = 0;
        for (Index j = 0; j < keys; ++j) sum += problem.value_at(0, 0, j, c);
        for (Index i = 0; i < 5; ++i)
          ASSERT_EQ(got.out[test::to_size(i * 3 + c)], sum / static_cast<TypeParam>(keys)) << keys;
      }
    });
  }
}

TYPED_TEST(FullAttention, N02_OneScoreFarAbove) {
  using T = TypeParam;
  Random random(302);
  for (const Index winner : {0, 1, 63, 64, 100, 2047, 2048, 2999}) {
    Problem<T> problem({1, 1, 1, 60, 3000, 1, 7}, random);
    std::fill(problem.query.begin(), problem.query.end(), T(1));
    std::fill(problem.key.begin(), problem.key.end(), T(0));
    problem.key[test::to_size(winner)] = 2000;
    test::under_all_sets([&] {
      Answer<T> got = this->run(problem);
      for (Index i = 0; i < 60; ++i)
        for (Index c = 0; c < 7; ++c)
          ASSERT_EQ(this->rows(got, problem.sizes)(0, 0, i, c), problem.value_at(0, 0, winner, c)) << winner;
    });
  }
}

TYPED_TEST(FullAttention, N07_ValuesNearTheLargest) {
  using T = TypeParam;
  const T huge = std::numeric_limits<T>::max() * T(0.9);
  Random random(307);
  Problem<T> problem({1, 1, 1, 1, 130, 1, 1}, random);
  problem.query[0] = 1;
  std::fill(problem.key.begin(), problem.key.end(), T(0));
  std::fill(problem.value.begin(), problem.value.end(), T(1));
  problem.value[0] = problem.value[1] = huge;
  test::under_all_sets([&] {
    EXPECT_EQ(this->run(problem).out[0], this->infinity);
    // Where a later key takes all the weight, nothing of the overflow is left.
    problem.key[100] = 5000;
    EXPECT_EQ(this->run(problem).out[0], T(1));
    problem.key[100] = 0;
  });
}

TYPED_TEST(FullAttention, N10_SubnormalInputs) {
  using T = TypeParam;
  Random random(310);
  Problem<T> problem({1, 2, 1, 50, 70, 5, 6}, random, 1);
  const T tiny = std::numeric_limits<T>::min() / 8;
  for (auto* const all : {&problem.query, &problem.key, &problem.value})
    for (T& x : *all) x *= tiny;
  const auto expected = test::reference_attention(problem, ScoresCase<T>{});
  auto flushed = expected;
  for (auto& radius : flushed.out.radius.elements())
    radius += static_cast<test::RealOf<T>>(std::numeric_limits<T>::min()) * test::RealOf<T>(70);
  test::under_all_sets([&] {
    EXPECT_TRUE(test::within_bound("subnormal", problem.sizes, expected, this->run(problem)));
#if defined(__SSE2__)
    const unsigned control = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(control | 0x8040);
    const Answer<T> got = this->run(problem);
    const unsigned after = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(control);
    EXPECT_TRUE(test::within_bound("subnormal, flushed", problem.sizes, flushed, got));
    EXPECT_EQ(after & 0x8040, 0x8040U);
#endif
  });
}

TYPED_TEST(FullAttention, N17_AMillionEqualScores) {
  const Index keys = Index{1} << 20;
  const TypeParam zero = 0, one = 1;
  const TensorView<const TypeParam, 4> key(&zero, {1, 1, keys, 1}, {0, 0, 0, 0}), value(&one, {1, 1, keys, 1}, {0, 0, 0, 0});
  test::under_all_sets([&] {
    Answer<TypeParam> got(Sizes{});
    longview::full_attention(TensorView<const TypeParam, 4>(&zero, {1, 1, 1, 1}), key, value, got.output(Sizes{}));
    EXPECT_EQ(got.out[0], TypeParam(1));
    EXPECT_NEAR(got.lse[0], std::log(TypeParam(keys)), 8 * std::numeric_limits<TypeParam>::epsilon());
  });
}

TYPED_TEST(FullAttention, N04_LargeSpreadOfScores) {
  Random random(4);
  for (const double sigma : {0.01, 1.0, 8.0, 60.0})
    this->expect_bound(Problem<TypeParam>({1, 1, 1, 20, 300, 16, 5}, random, sigma), {}, std::to_string(sigma));
}

// ---- Against the reference, all options mixed

TYPED_TEST(FullAttention, MixedOptions) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    Random random(seed + 1000);
    const Index key_heads = random.integer(1, 3);
    const Sizes sizes{random.integer(1, 3),   key_heads * random.integer(1, 3), key_heads,
                      random.integer(1, 70),  random.integer(1, 150),           random.integer(1, 40),
                      random.integer(1, 40)};
    const Problem<TypeParam> problem(sizes, random, random.uniform(0.1, 2));
    this->expect_bound(problem, test::random_scores<TypeParam>(sizes, random, true, true), "seed " + std::to_string(seed));
  }
}

TYPED_TEST(FullAttention, N18_SinksAlone) {
  Random random(1);
  const Problem<TypeParam> problem({2, 3, 1, 50, 4, 3, 3}, random);
  for (const TypeParam sink : {TypeParam(-1e4), TypeParam(0), TypeParam(50)}) {
    ScoresCase<TypeParam> scores;
    scores.sinks.assign(3, sink);
    scores.key_lengths = {0, 4};
    this->expect_bound(problem, scores, "sink");
  }
}

TYPED_TEST(FullAttention, D04_PermutedQueries) {
  using T = TypeParam;
  Random random(406);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  const auto order = random.permutation(s.queries);
  test::under_all_sets([&] {
    Answer<T> expected = this->run(problem);
    Problem<T> permuted = problem;
    Answer<T> moved(s);
    for (Index b = 0; b < s.batch; ++b)
      for (Index h = 0; h < s.heads; ++h)
        for (Index i = 0; i < s.queries; ++i) {
          const Index from = order[test::to_size(i)];
          for (Index c = 0; c < s.head_dim; ++c)
            permuted.query[test::to_size(((b * s.heads + h) * s.queries + i) * s.head_dim + c)] =
                problem.query_view()(b, h, from, c);
          for (Index c = 0; c < s.value_dim; ++c)
            this->rows(moved, s)(b, h, i, c) = this->rows(expected, s)(b, h, from, c);
          this->lse(moved, s)(b, h, i) = this->lse(expected, s)(b, h, from);
        }
    EXPECT_TRUE(test::same_answer(s, moved, this->run(permuted)));
  });
}

// ---- Streaming

TYPED_TEST(FullAttention, D01_D02_ChunksAndPieces) {
  const auto run = [](auto query, const KeyValueView<TypeParam>& keys, const Output<TypeParam>& out) {
    longview::full_attention(query, keys, out, {.causal = true});
  };
  test::expect_the_same_in_chunks<TypeParam>({1, 4, 2, 300, 300, 7, 9}, longview::unlimited, run, 1);
  test::expect_the_same_in_chunks<TypeParam>({2, 2, 1, 60, 200, 5, 3}, longview::unlimited, run, 2);
  test::expect_the_same_in_chunks<TypeParam>({1, 1, 1, 130, 4200, 3, 2}, longview::unlimited, run, 3);
}

TYPED_TEST(FullAttention, D05_PiecesOfKeys) {
  Random random(5);
  std::vector<TypeParam> bias = random.values<TypeParam>(140 * 300), slopes = random.values<TypeParam>(4, 0.1);
  const auto keep = random.bytes(140 * 300, 60);
  const std::vector<Index> lengths{250, 300};
  for (const Scores<TypeParam>& scores :
       {Scores<TypeParam>{}, Scores<TypeParam>{.causal = true},
        Scores<TypeParam>{.alignment = Alignment::at(20), .key_lengths = lengths, .alibi_slopes = slopes},
        Scores<TypeParam>{.keep_mask = {keep.data(), {1, 1, 140, 300}}, .bias = {bias.data(), {1, 1, 140, 300}}},
        Scores<TypeParam>{.keep_mask = {keep.data(), {1, 1, 1, 300}}}}) {
    const auto run = [&](auto query, const KeyValueView<TypeParam>& keys, const Output<TypeParam>& out) {
      longview::full_attention(query, keys, out, scores);
    };
    test::expect_the_same_in_pieces<TypeParam>({2, 4, 2, 140, 300, 5, 6}, run, 6);
  }
}

TYPED_TEST(FullAttention, D03_PiecesWithGaps) {
  for (const bool causal : {false, true}) {
    const auto run = [&](auto query, const KeyValueView<TypeParam>& keys, const Output<TypeParam>& out,
                         Scores<TypeParam> scores) {
      scores.causal = causal;
      longview::full_attention(query, keys, out, scores);
    };
    test::expect_the_same_with_gaps<TypeParam>(60, 210, true, run, 30);
    test::expect_the_same_with_gaps<TypeParam>(3, 210, true, run, 130);
  }
}

/// A chunk by its offset, without pieces.
TYPED_TEST(FullAttention, D02_ChunksByOffset) {
  Random random(7);
  const Sizes sizes{1, 2, 1, 150, 260, 6, 5};
  const Problem<TypeParam> problem(sizes, random);
  const auto slopes = random.values<TypeParam>(2, 0.1);
  test::under_all_sets([&] {
    const auto scores = [&](Index offset) {
      return Scores<TypeParam>{.causal = true, .alignment = Alignment::at(offset), .alibi_slopes = slopes};
    };
    const auto whole = this->run(problem, scores(100));
    for (const Index size : {1, 10, 64, 149}) {
      Answer<TypeParam> got(sizes);
      const auto out = got.output(sizes);
      for (Index begin = 0; begin < sizes.queries; begin += size) {
        const Index count = std::min(size, sizes.queries - begin);
        longview::full_attention(test::rows_of(problem.query_view(), begin, count), problem.key_view(), problem.value_view(),
                                 {test::rows_of(out.out, begin, count), test::rows_of(out.lse, begin, count)},
                                 scores(100 + begin));
      }
      EXPECT_TRUE(test::same_answer(sizes, whole, got)) << size;
    }
  });
}

}  // namespace
