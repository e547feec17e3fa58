// SPDX-License-Identifier: Apache-2.0
#include "gradient_laws.hpp"
#include "longview/relative_attention.hpp"

namespace test {

using Operators = ::testing::Types<RelativeAttention<float>, RelativeAttention<double>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Laws, GradientLaws, Operators, GradientOperatorName);

}  // namespace test

namespace {

using test::Arrived;
using test::Gradients;
using test::Index;
using test::Problem;
using test::Random;
using test::Shape;
using test::Sizes;

template <typename T>
struct AllGradients {
  Gradients<T> own;
  std::vector<T> position, content_bias, position_bias;
};

template <typename T>
class RelativeGradients : public ::testing::Test {
 public:
  using Options = longview::RelativeOptions<T>;
  static AllGradients<T> run(const Problem<T>& problem, const Arrived<T>& arrived, const Options& options) {
    const Sizes& s = problem.sizes;
    test::Answer<T> forward(s);
    longview::relative_attention(problem.query_view(), problem.key_view(), problem.value_view(), forward.output(s),
                                 options);
    const auto room = [](const auto& like) {
      return std::vector<T>(like ? test::to_size(test::count_of(like.shape())) : 0, T(12345));
    };
    AllGradients<T> got{Gradients<T>(s, options.scores), room(options.position), room(options.content_bias),
                        room(options.position_bias)};
    const auto own = got.own.views(arrived);
    longview::RelativeGradients<T> gradients{.out = own.out,
                                             .lse = own.lse,
                                             .query = own.query,
                                             .key = own.key,
                                             .value = own.value,
                                             .position = {got.position.data(), options.position.shape()},
                                             .scores = own.scores};
    if (options.content_bias) gradients.content_bias = {got.content_bias.data(), options.content_bias.shape()};
    if (options.position_bias) gradients.position_bias = {got.position_bias.data(), options.position_bias.shape()};
    longview::relative_attention_backward(problem.query_view(), problem.key_view(), problem.value_view(),
                                          forward.output(s), gradients, options);
    return got;
  }
  static void expect_bound(const Problem<T>& problem, const Arrived<T>& arrived, const Options& options,
                           const reference::RelativeOptions<test::RealOf<T>>& exact, const std::string& what) {
    const Sizes& s = problem.sizes;
    const auto expected = reference::relative_backward<test::RealOf<T>>(
        test::exact(problem.query, s.query()), test::exact(problem.key, s.key()), test::exact(problem.value, s.value()),
        test::exact_arrived(s, arrived), exact, test::Exact<T>::precision);
    test::under_all_sets([&] {
      const auto got = run(problem, arrived, options);
      const std::string name = "relative_attention, positions";
      EXPECT_TRUE(test::within_bound(name, expected, got.own)) << s << what;
      EXPECT_TRUE(
          test::gradient_within_bound(name + " d_position", expected.position, got.position, options.position.shape()))
          << s << what;
      EXPECT_TRUE(test::gradient_within_bound(name + " d_content_bias", expected.content_bias, got.content_bias,
                                              options.content_bias.shape()))
          << s << what;
      EXPECT_TRUE(test::gradient_within_bound(name + " d_position_bias", expected.position_bias, got.position_bias,
                                              options.position_bias.shape()))
          << s << what;
    });
  }
};
struct Name {
  template <typename T>
  static std::string GetName(int) {
    return sizeof(T) == 4 ? "float" : "double";
  }
};
using Numbers = ::testing::Types<float, double>;
TYPED_TEST_SUITE(RelativeGradients, Numbers, Name);

TYPED_TEST(RelativeGradients, M12_PositionsAndBiases) {
  using Real = test::RealOf<TypeParam>;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    Random random(seed + 9000);
    const Index key_heads = random.integer(1, 3), queries = random.integer(1, 70);
    const Sizes sizes{random.integer(1, 2),
                      key_heads * random.integer(1, 3),
                      key_heads,
                      queries,
                      random.chance(80) ? queries + random.integer(0, 90) : random.integer(1, queries),
                      random.integer(1, 24),
                      random.integer(1, 24)};
    const Problem<TypeParam> problem(sizes, random, random.uniform(0.1, 1.5));
    const Arrived<TypeParam> arrived(sizes, random, random.chance(40));
    auto scores = test::random_scores<TypeParam>(sizes, random, false, false);
    reference::RelativeOptions<Real> exact;
    typename RelativeGradients<TypeParam>::Options options{.scores = scores.view()};
    exact.scores = scores.exact_scores(sizes.keys - sizes.queries);
    if (random.chance(40)) options.before = exact.before = random.integer(0, sizes.keys + 3);
    if (random.chance(40)) options.clamp = exact.clamp = random.integer(0, sizes.keys + 3);
    // The fewest rows that the call accepts, sometimes more.
    Index distances = sizes.keys;
    if (options.before) distances = std::min(distances, *options.before + 1);
    if (options.clamp) distances = std::min(distances, *options.clamp + 1);
    if (random.chance(30)) distances += 3;
    const Shape<3> shape{random.chance(50) ? 1 : sizes.heads, distances, sizes.head_dim};
    const Shape<2> bias_shape{random.chance(50) ? 1 : sizes.heads, sizes.head_dim};
    const auto table = random.values<TypeParam>(test::count_of(shape)),
               u = random.values<TypeParam>(test::count_of(bias_shape)),
               v = random.values<TypeParam>(test::count_of(bias_shape));
    options.position = {table.data(), shape}, exact.position = test::exact(table, shape);
    if (random.chance(60))
      options.content_bias = {u.data(), bias_shape}, exact.content_bias = test::exact(u, bias_shape);
    if (random.chance(60))
      options.position_bias = {v.data(), bias_shape}, exact.position_bias = test::exact(v, bias_shape);
    this->expect_bound(problem, arrived, options, exact,
                       scores.text() + (options.before ? " before " + std::to_string(*options.before) : "") +
                           (options.clamp ? " clamp " + std::to_string(*options.clamp) : "") + " seed " +
                           std::to_string(seed));
  }
}

TYPED_TEST(RelativeGradients, S17_KeysThatCrossRanges) {
  using Real = test::RealOf<TypeParam>;
  Random random(17);
  const Sizes sizes{1, 2, 1, 3, 2049, 4, 3};
  const Problem<TypeParam> problem(sizes, random, 1);
  const Arrived<TypeParam> arrived(sizes, random);
  const Shape<3> shape{1, 2049, 4};
  const auto table = random.values<TypeParam>(test::count_of(shape));
  reference::RelativeOptions<Real> exact;
  exact.position = test::exact(table, shape);
  this->expect_bound(problem, arrived, {.position = {table.data(), shape}}, exact, "");
}

/// The same bits on any executor, from any scratch, whatever else is asked for.
TYPED_TEST(RelativeGradients, G02_T01_GradientsOfPositions) {
  Random random(18);
  const Sizes sizes{2, 4, 2, 70, 110, 9, 7};
  const Problem<TypeParam> problem(sizes, random);
  const Arrived<TypeParam> arrived(sizes, random);
  const Shape<3> shape{4, 110, 9};
  const Shape<2> bias_shape{1, 9};
  const auto table = random.values<TypeParam>(test::count_of(shape)), u = random.values<TypeParam>(9),
             v = random.values<TypeParam>(9);
  const longview::RelativeOptions<TypeParam> options{.position = {table.data(), shape},
                                                     .content_bias = {u.data(), bias_shape},
                                                     .position_bias = {v.data(), bias_shape}};
  const auto same = [](const std::vector<TypeParam>& a, const std::vector<TypeParam>& b) {
    return test::same_bits(a, b, Shape<1>{static_cast<Index>(a.size())});
  };
  test::under_all_sets([&] {
    const auto expected = this->run(problem, arrived, options);
    test::Answer<TypeParam> forward(sizes);
    longview::relative_attention(problem.query_view(), problem.key_view(), problem.value_view(), forward.output(sizes),
                                 options);
    for (Index threads = 1; threads <= 16; ++threads)
      for (int subset = 1; subset < 8; ++subset) {
        std::vector<TypeParam> position(table.size()), content(u.size()), shift(v.size());
        longview::RelativeGradients<TypeParam> gradients{.out = arrived.out_view(sizes)};
        if ((subset & 1) != 0) gradients.position = {position.data(), shape};
        if ((subset & 2) != 0) gradients.content_bias = {content.data(), bias_shape};
        if ((subset & 4) != 0) gradients.position_bias = {shift.data(), bias_shape};
        const test::Threads executor{threads};
        longview::relative_attention_backward(problem.query_view(), problem.key_view(), problem.value_view(),
                                              forward.output(sizes), gradients, options, executor);
        if ((subset & 1) != 0) {
          EXPECT_TRUE(same(expected.position, position)) << threads << " subset " << subset;
        }
        if ((subset & 2) != 0) {
          EXPECT_TRUE(same(expected.content_bias, content)) << threads << " subset " << subset;
        }
        if ((subset & 4) != 0) {
          EXPECT_TRUE(same(expected.position_bias, shift)) << threads << " subset " << subset;
        }
      }
  });
}

/// A distance that no pair takes, and a query whose distances are few: NaN reaches what attends it, all else keeps its bits.
TYPED_TEST(RelativeGradients, M29_NaNStaysWithItsDistancesAndItsRow) {
  const TypeParam nan = std::numeric_limits<TypeParam>::quiet_NaN();
  for (const Index dim : {16, 9}) {
    Random random(21);
    const Sizes sizes{1, 2, 1, 70, 70, dim, dim};
    const Problem<TypeParam> problem(sizes, random);
    const Arrived<TypeParam> arrived(sizes, random);
    const Shape<3> shape{1, 70, dim};
    const auto table = random.values<TypeParam>(test::count_of(shape));
    auto poisoned_table = table;
    std::vector<std::uint8_t> keep(70 * 70, 1);
    for (Index i = 3; i < 70; ++i) keep[test::to_size(i * 70 + i - 3)] = 0;
    std::fill_n(poisoned_table.begin() + 3 * dim, dim, nan);
    longview::RelativeOptions<TypeParam> options{.position = {table.data(), shape}}, poisoned = options;
    poisoned.position = {poisoned_table.data(), shape};
    options.scores.keep_mask = poisoned.scores.keep_mask = {keep.data(), {1, 1, 70, 70}};
    Problem<TypeParam> poisoned_query = problem;
    for (Index h = 0; h < 2; ++h) std::fill_n(poisoned_query.query.begin() + h * 70 * dim, dim, nan);
    test::under_all_sets([&] {
      auto expected = this->run(problem, arrived, options);
      const auto by_table = this->run(problem, arrived, poisoned);
      EXPECT_TRUE(same_gradients(expected.own, by_table.own)) << "distance 3";
      EXPECT_TRUE(test::same_bits(expected.position, by_table.position, shape)) << "distance 3";

      auto by_query = this->run(poisoned_query, arrived, options);  // sees key 0 alone, at distance 0
      const auto take = [&](TypeParam& mine, TypeParam& other) {
        EXPECT_TRUE(std::isnan(other));
        mine = other;
      };
      for (Index c = 0; c < dim; ++c) {
        for (Index h = 0; h < 2; ++h) take(expected.own.query_view()(0, h, 0, c), by_query.own.query_view()(0, h, 0, c));
        take(expected.own.key_view()(0, 0, 0, c), by_query.own.key_view()(0, 0, 0, c));
        take(expected.own.value_view()(0, 0, 0, c), by_query.own.value_view()(0, 0, 0, c));
        take(expected.position[test::to_size(c)], by_query.position[test::to_size(c)]);
      }
      EXPECT_TRUE(same_gradients(expected.own, by_query.own)) << "query 0";
      EXPECT_TRUE(test::same_bits(expected.position, by_query.position, shape)) << "query 0";
    });
  }
}

TYPED_TEST(RelativeGradients, D02_KeysInPieces) {
  Random random(19);
  const Shape<3> shape{1, 150, 9};
  const auto table = random.values<TypeParam>(test::count_of(shape));
  const longview::RelativeOptions<TypeParam> options{.position = {table.data(), shape}};
  test::expect_the_same_gradients_in_pieces<TypeParam>(
      {2, 4, 2, 60, 150, 9, 10}, 23,
      [&](auto query, const auto& keys, const auto& out) { longview::relative_attention(query, keys, out, options); },
      [&](auto query, const auto& keys, const auto& out, const auto& of) {
        const longview::RelativeGradients<TypeParam> gradients{
            .out = of.out, .lse = of.lse, .query = of.query, .segments = of.segments};
        longview::relative_attention_backward(query, keys, test::Output<const TypeParam>(out), gradients, options);
      });
}

}  // namespace
