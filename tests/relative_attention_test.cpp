// SPDX-License-Identifier: Apache-2.0
#include "longview/relative_attention.hpp"

#include "attention_laws.hpp"
#include "attention_streaming.hpp"

namespace test {

INSTANTIATE_TYPED_TEST_SUITE_P(Laws, AttentionLaws, WithBothNumbers<RelativeAttention>, TypeName);
INSTANTIATE_TYPED_TEST_SUITE_P(Laws, CrossAttentionLaws, WithBothNumbers<RelativeAttention>, TypeName);

}  // namespace test

namespace {

using longview::KeyValueView;
using test::Answer;
using test::Index;
using test::Output;
using test::Problem;
using test::Random;
using test::Scores;
using test::ScoresCase;
using test::Shape;
using test::Sizes;
using test::TensorView;

template <typename T>
class Relative : public ::testing::Test {
 public:
  using Options = longview::RelativeOptions<T>;
  static Answer<T> run(const Problem<T>& problem, const Options& options) {
    Answer<T> got(problem.sizes);
    longview::relative_attention(problem.query_view(), problem.key_view(), problem.value_view(),
                                 got.output(problem.sizes), options);
    return got;
  }
};
TYPED_TEST_SUITE(Relative, test::Numbers, test::TypeName);

/// All lengths up to 9, all memories, all limits.
TYPED_TEST(Relative, M12_ExhaustiveMembership) {
  const std::vector<TypeParam> zeros(64);
  for (Index queries = 1; queries <= 9; ++queries)
    for (Index keys = 1; keys <= 18; ++keys)
      for (Index before = -1; before <= 10; ++before) {
        const Problem<TypeParam> problem = test::membership_problem<TypeParam>({1, 2, 1, queries, keys, 1, 1});
        typename Relative<TypeParam>::Options options{.position = {zeros.data(), {1, 32, 2}}};
        if (before >= 0) options.before = before;
        const auto expected = test::mean_of_unit_vectors<TypeParam>(problem.sizes, [&](Index, Index, Index i, Index j) {
          const Index distance = keys - queries + i - j;
          return distance >= 0 && (before < 0 || distance <= before);
        });
        test::under_all_sets([&] {
          ASSERT_TRUE(test::same_bits(expected, this->run(problem, options).out, problem.sizes.out()))
              << problem.sizes << " before " << before;
        });
        if (this->HasFatalFailure()) return;
      }
}

/// Which row of the table each pair reads: scores are 0 or far below it, and one distance after the other is open.
TYPED_TEST(Relative, DistancesReadTheirRows) {
  const Index queries = 70, keys = 150;
  Random random(2);
  Problem<TypeParam> problem({1, 1, 1, queries, keys, 1, 3}, random);
  std::fill(problem.query.begin(), problem.query.end(), TypeParam(1));
  std::fill(problem.key.begin(), problem.key.end(), TypeParam(0));
  for (const std::optional<Index> clamp : {std::optional<Index>{}, std::optional<Index>{40}})
    for (Index open = 0; open < (clamp ? *clamp : keys); open += 13) {
      std::vector<TypeParam> table(test::to_size(keys), TypeParam(-2000));
      table[test::to_size(open)] = 0;
      test::under_all_sets([&] {
        const auto got = this->run(problem, {.position = {table.data(), {1, keys, 1}}, .clamp = clamp});
        for (Index i = 0; i < queries; ++i) {
          const Index key = keys - queries + i - open;
          for (Index c = 0; c < 3 && key >= 0; ++c)
            ASSERT_EQ(got.out[test::to_size(i * 3 + c)], problem.value_at(0, 0, key, c)) << "query " << i << " distance " << open;
        }
      });
    }
}

TYPED_TEST(Relative, MixedOptions) {
  using Real = test::RealOf<TypeParam>;
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    Random random(seed + 9000);
    const Index key_heads = random.integer(1, 3), queries = random.integer(1, 100);
    const Sizes sizes{random.integer(1, 2),    key_heads * random.integer(1, 3),
                      key_heads,               queries,
                      random.chance(80) ? queries + random.integer(0, 120) : random.integer(1, queries),
                      random.integer(1, 24),   random.integer(1, 24)};
    const Problem<TypeParam> problem(sizes, random, random.uniform(0.1, 1.5));
    auto scores = test::random_scores<TypeParam>(sizes, random, false, false);
    reference::RelativeOptions<Real> exact;
    typename Relative<TypeParam>::Options options{.scores = scores.view()};
    exact.scores = scores.exact_scores(sizes.keys - sizes.queries);
    if (random.chance(40)) options.before = exact.before = random.integer(0, sizes.keys + 3);
    if (random.chance(40)) options.clamp = exact.clamp = random.integer(0, sizes.keys + 3);
    // The fewest rows that the call accepts.
    Index distances = sizes.keys;
    if (options.before) distances = std::min(distances, *options.before + 1);
    if (options.clamp) distances = std::min(distances, *options.clamp + 1);
    const Shape<3> shape{random.chance(50) ? 1 : sizes.heads, distances, sizes.head_dim};
    const Shape<2> bias_shape{random.chance(50) ? 1 : sizes.heads, sizes.head_dim};
    const auto table = random.values<TypeParam>(test::count_of(shape)), u = random.values<TypeParam>(test::count_of(bias_shape)),
               v = random.values<TypeParam>(test::count_of(bias_shape));
    const test::Guarded<TypeParam> guarded(test::count_of(shape), test::Guarded<TypeParam>::Side::before_page, table);
    options.position = {guarded.data(), shape}, exact.position = test::exact(table, shape);
    if (random.chance(60)) options.content_bias = {u.data(), bias_shape}, exact.content_bias = test::exact(u, bias_shape);
    if (random.chance(60)) options.position_bias = {v.data(), bias_shape}, exact.position_bias = test::exact(v, bias_shape);
    const auto expected = reference::relative_attention<Real>(
        test::exact(problem.query, sizes.query()), test::exact(problem.key, sizes.key()),
        test::exact(problem.value, sizes.value()), exact, test::Exact<TypeParam>::precision);
    test::under_all_sets([&] {
      EXPECT_TRUE(test::within_bound("relative_attention", sizes, expected, this->run(problem, options)))
          << sizes << scores.text() << (options.before ? " before " + std::to_string(*options.before) : "")
          << (options.clamp ? " clamp " + std::to_string(*options.clamp) : "") << " seed " << seed;
    });
  }
}

TYPED_TEST(Relative, S17_KeysThatCrossRanges) {
  using Real = test::RealOf<TypeParam>;
  Random random(17);
  const Sizes sizes{1, 1, 1, 3, 4200, 4, 3};
  const Problem<TypeParam> problem(sizes, random, 1);
  const Shape<3> shape{1, 4200, 4};
  const auto table = random.values<TypeParam>(test::count_of(shape));
  reference::RelativeOptions<Real> exact;
  exact.position = test::exact(table, shape);
  const auto expected = reference::relative_attention<Real>(
      test::exact(problem.query, sizes.query()), test::exact(problem.key, sizes.key()),
      test::exact(problem.value, sizes.value()), exact, test::Exact<TypeParam>::precision);
  test::under_all_sets([&] {
    EXPECT_TRUE(test::within_bound("relative_attention", sizes, expected,
                                   this->run(problem, {.position = {table.data(), shape}})));
  });
}

TYPED_TEST(Relative, L01_L02_LayoutsOfPositionsAndBiases) {
  Random random(3);
  const Sizes sizes{2, 3, 3, 70, 110, 9, 6};
  const Problem<TypeParam> problem(sizes, random);
  const Shape<3> shape{3, 110, 9};
  const Shape<2> bias_shape{3, 9};
  const auto table = random.values<TypeParam>(test::count_of(shape)), u = random.values<TypeParam>(27),
             v = random.values<TypeParam>(27);
  test::under_all_sets([&] {
    const auto expected = this->run(problem, {.position = {table.data(), shape},
                                              .content_bias = {u.data(), bias_shape},
                                              .position_bias = {v.data(), bias_shape}});
    for (const test::Layout layout : test::all_layouts) {
      test::Stored<TypeParam, 3> positions(shape, layout, table);
      test::Stored<TypeParam, 2> content(bias_shape, layout, u), position(bias_shape, layout, v);
      EXPECT_TRUE(test::same_answer(sizes, expected,
                                    this->run(problem, {.position = positions.view(),
                                                        .content_bias = content.view(),
                                                        .position_bias = position.view()})));
    }
  });
}

/// Rows of the table beyond what is needed, and biases of masked pairs, may be poison.
TYPED_TEST(Relative, M29_PoisonInRowsOfTheTableThatNobodyReads) {
  Random random(4);
  const Sizes sizes{1, 2, 2, 60, 100, 5, 6};
  const Problem<TypeParam> problem(sizes, random);
  const Shape<3> shape{2, 120, 5};
  auto table = random.values<TypeParam>(test::count_of(shape));
  const typename Relative<TypeParam>::Options clean{.position = {table.data(), shape}, .before = 50};
  test::under_all_sets([&] {
    const auto expected = this->run(problem, clean);
    auto poisoned = table;
    for (Index h = 0; h < 2; ++h)
      for (Index r = 51; r < 120; ++r)
        for (Index c = 0; c < 5; ++c)
          poisoned[test::to_size((h * 120 + r) * 5 + c)] = std::numeric_limits<TypeParam>::quiet_NaN();
    EXPECT_TRUE(test::same_answer(sizes, expected, this->run(problem, {.position = {poisoned.data(), shape}, .before = 50})));
  });
}

TYPED_TEST(Relative, PoisonInARowOfTheTableShowsAtItsDistance) {
  Random random(5);
  const Sizes sizes{1, 1, 1, 60, 100, 5, 6};
  const Problem<TypeParam> problem(sizes, random);
  const Shape<3> shape{1, 100, 5};
  const auto table = random.values<TypeParam>(test::count_of(shape));
  for (const Index distance : {0, 39, 40, 64, 99}) {
    auto poisoned = table;
    poisoned[test::to_size(distance * 5 + 2)] = std::numeric_limits<TypeParam>::quiet_NaN();
    test::under_all_sets([&] {
      auto expected = this->run(problem, {.position = {table.data(), shape}});
      for (Index i = 0; i < sizes.queries; ++i)
        if (sizes.keys - sizes.queries + i >= distance) {
          for (Index c = 0; c < 6; ++c) expected.out[test::to_size(i * 6 + c)] = std::numeric_limits<TypeParam>::quiet_NaN();
          expected.lse[test::to_size(i)] = std::numeric_limits<TypeParam>::quiet_NaN();
        }
      EXPECT_TRUE(test::same_answer(sizes, expected, this->run(problem, {.position = {poisoned.data(), shape}}))) << distance;
    });
  }
}

TYPED_TEST(Relative, D01_D02_ChunksAndPieces) {
  Random random(6);
  const auto table = random.values<TypeParam>(2 * 400 * 7), u = random.values<TypeParam>(14), v = random.values<TypeParam>(14);
  for (const std::optional<Index> before : {std::optional<Index>{}, std::optional<Index>{90}}) {
    const auto run = [&](auto query, const KeyValueView<TypeParam>& keys, const Output<TypeParam>& out) {
      longview::relative_attention(query, keys, out,
                                   {.position = {table.data(), {2, 400, 7}},
                                    .content_bias = {u.data(), {2, 7}},
                                    .position_bias = {v.data(), {2, 7}},
                                    .before = before});
    };
    const Index reach = before.value_or(longview::unlimited);
    test::expect_the_same_in_chunks<TypeParam>({1, 2, 2, 200, 200, 7, 5}, reach, run, 1);
    test::expect_the_same_in_chunks<TypeParam>({1, 2, 1, 90, 300, 7, 5}, reach, run, 2);
    test::expect_the_same_in_pieces<TypeParam>({2, 2, 1, 90, 300, 7, 5}, run, 3);
  }
}

TYPED_TEST(Relative, D03_PiecesWithGaps) {
  Random random(8);
  const auto table = random.values<TypeParam>(210 * 5);
  const auto run = [&](auto query, const KeyValueView<TypeParam>& keys, const Output<TypeParam>& out,
                       const Scores<TypeParam>& scores) {
    longview::relative_attention(query, keys, out, {.position = {table.data(), {1, 210, 5}}, .scores = scores});
  };
  test::expect_the_same_with_gaps<TypeParam>(60, 210, false, run, 32);
}

TYPED_TEST(Relative, SinusoidalPositions) {
  for (const Index width : {2, 8, 40})
    for (const std::optional<Index> clamp : {std::optional<Index>{}, std::optional<Index>{0}, std::optional<Index>{100}}) {
      const Index length = 700;
      std::vector<TypeParam> table(test::to_size(length * width));
      longview::sinusoidal_positions(TensorView<TypeParam, 2>(table.data(), {length, width}), clamp);
      const auto expected = reference::sinusoidal_positions<test::RealOf<TypeParam>>(length, width, clamp,
                                                                                     test::Exact<TypeParam>::precision);
      EXPECT_TRUE(test::within_bound("sinusoidal_positions", expected, table, Shape<2>{length, width}));
    }
}

}  // namespace
