// SPDX-License-Identifier: Apache-2.0
#include "gradient_laws.hpp"
#include "longview/longformer_attention.hpp"

namespace test {

using Operators = ::testing::Types<LongformerAttention<float>, LongformerAttention<double>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Laws, GradientLaws, Operators, GradientOperatorName);

}  // namespace test

namespace {

using longview::unlimited;
using longview::Window;
using test::Arrived;
using test::Gradients;
using test::Index;
using test::Problem;
using test::Random;
using test::Sizes;

/// With the gradients of the global projections, where the options have these.
template <typename T>
struct AllGradients {
  Gradients<T> own, global;
};

template <typename T>
class LongformerGradients : public ::testing::Test {
 public:
  using Options = longview::LongformerOptions<T>;
  static AllGradients<T> run(const Problem<T>& problem, const Arrived<T>& arrived, const Options& options,
                             longview::Run how = {}) {
    const Sizes& s = problem.sizes;
    test::Answer<T> forward(s);
    longview::longformer_attention(problem.query_view(), problem.key_view(), problem.value_view(), forward.output(s),
                                   options);
    AllGradients<T> got{Gradients<T>(s, options.scores), Gradients<T>(s, {})};
    const auto own = got.own.views(arrived);
    longview::LongformerGradients<T> gradients{
        .out = own.out, .lse = own.lse, .query = own.query, .key = own.key, .value = own.value, .scores = own.scores};
    if (options.global.query)
      gradients.query_global = got.global.query_view();
    else
      got.global.query.clear();
    if (options.global.key)
      gradients.key_global = got.global.key_view(), gradients.value_global = got.global.value_view();
    else
      got.global.key.clear(), got.global.value.clear();
    longview::longformer_attention_backward(problem.query_view(), problem.key_view(), problem.value_view(),
                                            forward.output(s), gradients, options, how);
    return got;
  }
};
struct Name {
  template <typename T>
  static std::string GetName(int) {
    return sizeof(T) == 4 ? "float" : "double";
  }
};
using Numbers = ::testing::Types<float, double>;
TYPED_TEST_SUITE(LongformerGradients, Numbers, Name);

TYPED_TEST(LongformerGradients, M24_M26_GlobalTokensPaddingAndWindows) {
  using Real = test::RealOf<TypeParam>;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    Random random(seed + 7000);
    const Index key_heads = random.integer(1, 2), length = random.integer(1, 140);
    const Sizes sizes{
        random.integer(1, 3), key_heads * random.integer(1, 3), key_heads, length, length, random.integer(1, 24),
        random.integer(1, 24)};
    const double sigma = random.uniform(0.1, 2);
    const Problem<TypeParam> problem(sizes, random, sigma), own(sizes, random, sigma);
    const Arrived<TypeParam> arrived(sizes, random, random.chance(40));
    const auto scores = test::random_scores<TypeParam>(sizes, random, false, false);
    const auto globals =
        random.bytes(sizes.batch * length, random.chance(30) ? 0 : static_cast<int>(random.integer(1, 20)));
    const auto keep = random.bytes(sizes.batch * length, 80);
    const auto side = [&] { return random.chance(10) ? unlimited : random.integer(0, random.chance(50) ? 5 : 70); };
    std::vector<Window> windows{{side(), side(), random.chance(60) ? 1 : random.integer(1, 6)}};
    const bool by_head = random.chance(40), padded = random.chance(50);
    while (by_head && static_cast<Index>(windows.size()) < sizes.heads)
      windows.push_back({side(), side(), random.chance(60) ? 1 : random.integer(1, 6)});

    reference::LongformerOptions<Real> exact;
    for (const Window& one : windows) exact.windows.push_back(test::exact_window(one));
    exact.scores = scores.exact_scores();
    const auto tokens_of = [&](const std::vector<std::uint8_t>& values) {
      reference::Tensor<std::uint8_t> tensor({sizes.batch, length});
      tensor.elements() = values;
      return tensor;
    };
    exact.global_tokens = tokens_of(globals);
    std::vector<Index> storage;
    typename LongformerGradients<TypeParam>::Options options{
        .window = windows[0],
        .global = {.tokens = longview::token_sets({globals.data(), {sizes.batch, length}}, storage)},
        .scores = scores.view()};
    if (by_head) options.window = {}, options.head_windows = windows;
    if (padded) options.keep_tokens = {keep.data(), {sizes.batch, length}}, exact.keep_tokens = tokens_of(keep);
    if (random.chance(50))
      options.global.query = own.query_view(), exact.query_global = test::exact(own.query, sizes.query());
    if (random.chance(50)) {
      options.global.key = own.key_view(), options.global.value = own.value_view();
      exact.key_global = test::exact(own.key, sizes.key()), exact.value_global = test::exact(own.value, sizes.value());
    }
    const auto expected = reference::longformer_backward<Real>(
        test::exact(problem.query, sizes.query()), test::exact(problem.key, sizes.key()),
        test::exact(problem.value, sizes.value()), test::exact_arrived(sizes, arrived), exact,
        test::Exact<TypeParam>::precision);
    test::under_all_sets([&] {
      const auto got = this->run(problem, arrived, options);
      const std::string name = "longformer_attention, global", where = " seed " + std::to_string(seed);
      EXPECT_TRUE(test::within_bound(name, expected, got.own)) << sizes << scores.text() << where;
      EXPECT_TRUE(
          test::gradient_within_bound(name + " d_query_global", expected.query_global, got.global.query, sizes.query()))
          << sizes << scores.text() << where;
      EXPECT_TRUE(test::gradient_within_bound(name + " d_key_global", expected.key_global, got.global.key, sizes.key()))
          << sizes << scores.text() << where;
      EXPECT_TRUE(
          test::gradient_within_bound(name + " d_value_global", expected.value_global, got.global.value, sizes.value()))
          << sizes << scores.text() << where;
    });
  }
}

/// Rows of all residues of a dilated window add to the same global tokens.
TYPED_TEST(LongformerGradients, G04_T01_T02_GlobalTokensBesideDilatedWindows) {
  Random random(71);
  const Sizes sizes{1, 2, 1, 400, 400, 16, 19};
  const Problem<TypeParam> problem(sizes, random);
  const Arrived<TypeParam> arrived(sizes, random);
  const Index tokens[] = {0, 70, 71, 390};
  for (const Index dilation : {2, 3}) {
    const typename LongformerGradients<TypeParam>::Options options{.window = {8, 8, dilation},
                                                                   .global = {.tokens = {.indices = tokens}}};
    test::under_all_sets([&] {
      const auto expected = this->run(problem, arrived, options);
      for (const Index workers : {2, 3, 7}) {
        const test::Reversed reversed{workers};
        const test::Shuffled shuffled{workers, 5};
        const test::Threads threads{workers};
        for (const longview::Run& how : {longview::Run(reversed), longview::Run(shuffled), longview::Run(threads)})
          EXPECT_TRUE(same_gradients(expected.own, this->run(problem, arrived, options, how).own))
              << workers << " workers, dilation " << dilation;
      }
    });
  }
}

}  // namespace
