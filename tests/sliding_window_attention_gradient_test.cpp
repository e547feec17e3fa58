// SPDX-License-Identifier: Apache-2.0
#include "gradient_laws.hpp"
#include "longview/sliding_window_attention.hpp"

namespace test {

using Operators = ::testing::Types<SlidingWindowAttention<float>, SlidingWindowAttention<double>>;
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

template <typename T>
class SlidingWindowGradients : public ::testing::Test {
 public:
  using Options = longview::SlidingWindowOptions<T>;
  static Gradients<T> run(const Problem<T>& problem, const Arrived<T>& arrived, const Options& options) {
    test::Answer<T> forward(problem.sizes);
    longview::sliding_window_attention(problem.query_view(), problem.key_view(), problem.value_view(),
                                       forward.output(problem.sizes), options);
    Gradients<T> got(problem.sizes, options.scores);
    longview::sliding_window_attention_backward(problem.query_view(), problem.key_view(), problem.value_view(),
                                                forward.output(problem.sizes), got.views(arrived), options);
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
TYPED_TEST_SUITE(SlidingWindowGradients, Numbers, Name);

/// Each query sees itself alone.
TYPED_TEST(SlidingWindowGradients, G01_M16_ReachZero) {
  Random random(16);
  for (const Index length : {1, 5, 64, 65, 200})
    for (const Index dilation : {1, 3}) {
      const Problem<TypeParam> problem({2, 4, 4, length, length, 7, 9}, random, 3);
      const Arrived<TypeParam> arrived(problem.sizes, random);
      test::under_all_sets([&] {
        const auto got = this->run(problem, arrived, {.window = {0, 0, dilation}});
        for (const TypeParam x : got.query) ASSERT_EQ(x, TypeParam(0));
        for (const TypeParam x : got.key) ASSERT_EQ(x, TypeParam(0));
        EXPECT_TRUE(test::same_bits(arrived.out, got.value, problem.sizes.value()));
      });
    }
}

TYPED_TEST(SlidingWindowGradients, M17_M18_WholeReach) {
  Random random(17);
  for (const Index length : {1, 64, 130}) {
    const Problem<TypeParam> problem({1, 4, 2, length, length, 7, 9}, random);
    const Arrived<TypeParam> arrived(problem.sizes, random, true);
    test::under_all_sets([&] {
      const auto causal = test::gradients<test::FullAttention<TypeParam>>(problem, arrived, {.causal = true});
      const auto full = test::gradients<test::FullAttention<TypeParam>>(problem, arrived);
      for (const Window& window : {Window{length - 1, 0}, Window{length, 0}, Window{unlimited, 0}})
        EXPECT_TRUE(test::same_gradients(causal, this->run(problem, arrived, {.window = window})));
      for (const Window& window : {Window{length, length}, Window{unlimited, unlimited}})
        EXPECT_TRUE(test::same_gradients(full, this->run(problem, arrived, {.window = window})));
    });
  }
}

TYPED_TEST(SlidingWindowGradients, M21_WindowsOfEveryKind) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    Random random(seed + 5000);
    const Index key_heads = random.integer(1, 3);
    const Sizes sizes{random.integer(1, 2),   key_heads * random.integer(1, 3), key_heads,
                      random.integer(1, 100), random.integer(1, 160),           random.integer(1, 24),
                      random.integer(1, 24)};
    const Problem<TypeParam> problem(sizes, random, random.uniform(0.1, 2));
    const Arrived<TypeParam> arrived(sizes, random, random.chance(40));
    const auto scores = test::random_scores<TypeParam>(sizes, random, true, true);
    const auto window = [&] {
      const auto side = [&] { return random.chance(15) ? unlimited : random.integer(0, random.chance(50) ? 8 : 90); };
      return Window{side(), side(), random.chance(50) ? 1 : random.integer(1, 9)};
    };
    std::vector<Window> windows{window()};
    const bool by_head = random.chance(40);
    while (by_head && static_cast<Index>(windows.size()) < sizes.heads) windows.push_back(window());
    std::vector<reference::Window> exact;
    for (const Window& one : windows) exact.push_back(test::exact_window(one));
    const auto expected = test::exact_gradients(problem, arrived, scores.exact_scores(), exact);
    typename SlidingWindowGradients<TypeParam>::Options options{.window = windows[0], .scores = scores.view()};
    if (by_head) options.window = {}, options.head_windows = windows;
    test::under_all_sets([&] {
      EXPECT_TRUE(
          test::within_bound("sliding_window_attention, windows", expected, this->run(problem, arrived, options)))
          << sizes << scores.text() << " window " << windows[0].before << ", " << windows[0].after << ", "
          << windows[0].dilation << (by_head ? " by head" : "") << " seed " << seed;
    });
  }
}

TYPED_TEST(SlidingWindowGradients, D02_KeysInPieces) {
  for (const Window& window : {Window{30, 0, 1}, Window{12, 5, 3}}) {
    const longview::SlidingWindowOptions<TypeParam> options{.window = window};
    test::expect_the_same_gradients_in_pieces<TypeParam>(
        {2, 4, 2, 60, 150, 9, 10}, 22,
        [&](auto query, const auto& keys, const auto& out) {
          longview::sliding_window_attention(query, keys, out, options);
        },
        [&](auto query, const auto& keys, const auto& out, const auto& gradients) {
          longview::sliding_window_attention_backward(query, keys, test::Output<const TypeParam>(out), gradients,
                                                      options);
        });
  }
}

/// Tasks of one line follow each other over its keys: those of a narrow window are shorter, so that two workers have work.
TEST(SlidingWindowBackward, T02_TasksOfANarrowWindowAreShort) {
  const longview::Shape<4> shape{1, 1, 8192, 64};
  const longview::TensorView<float, 4> rows(nullptr, shape);
  const longview::TensorView<float, 3> lse(nullptr, {1, 1, 8192});
  const auto bytes = [&](Index window, Index threads) {
    longview::DryRun rehearsal;
    const longview::Parallel executor{threads, longview::Sequential()};
    longview::sliding_window_attention_backward(rows, rows, rows, {rows, lse},
                                                {.out = rows, .query = rows, .key = rows, .value = rows},
                                                {.window = {window, window}}, {executor, rehearsal});
    EXPECT_TRUE(rehearsal.ok()) << rehearsal.error();
    return rehearsal.workspace_bytes() / static_cast<std::size_t>(threads);
  };
  EXPECT_EQ(bytes(64, 1), bytes(4096, 1));
  EXPECT_LT(bytes(64, 2), bytes(4096, 2) * 3 / 4);
}

}  // namespace
