// SPDX-License-Identifier: Apache-2.0
#include "longview/sliding_window_attention.hpp"

#include "attention_laws.hpp"
#include "attention_streaming.hpp"

namespace test {

INSTANTIATE_TYPED_TEST_SUITE_P(Laws, AttentionLaws, WithBothNumbers<SlidingWindowAttention>, TypeName);
INSTANTIATE_TYPED_TEST_SUITE_P(Laws, CrossAttentionLaws, WithBothNumbers<SlidingWindowAttention>, TypeName);

}  // namespace test

namespace {

using longview::Alignment;
using longview::KeyValueView;
using longview::unlimited;
using longview::Window;
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
class SlidingWindow : public ::testing::Test {
 public:
  using Options = longview::SlidingWindowOptions<T>;
  static Answer<T> run(const Problem<T>& problem, const Options& options) {
    Answer<T> got(problem.sizes);
    longview::sliding_window_attention(problem.query_view(), problem.key_view(), problem.value_view(),
                                       got.output(problem.sizes), options);
    return got;
  }
  static void expect_membership(Sizes sizes, const Options& options, auto sees, const std::string& what) {
    const Problem<T> problem = test::membership_problem<T>(sizes);
    const auto expected = test::mean_of_unit_vectors<T>(problem.sizes, sees);
    test::under_all_sets([&] {
      ASSERT_TRUE(test::same_bits(expected, run(problem, options).out, problem.sizes.out())) << problem.sizes << what;
    });
  }
  static bool within(const Window& window, Index query, Index key) {
    const Index distance = key - query;
    if (distance % window.dilation != 0) return false;
    return distance <= 0 ? -distance / window.dilation <= window.before : distance / window.dilation <= window.after;
  }
};
TYPED_TEST_SUITE(SlidingWindow, test::Numbers, test::TypeName);

TYPED_TEST(SlidingWindow, M16_ReachZeroGivesTheOwnValue) {
  Random random(16);
  for (const Index length : {1, 5, 64, 65, 200})
    for (const Index dilation : {1, 3}) {
      const Problem<TypeParam> problem({2, 4, 4, length, length, 7, 9}, random, 3);
      test::under_all_sets([&] {
        EXPECT_TRUE(test::same_bits(problem.value, this->run(problem, {.window = {0, 0, dilation}}).out, problem.sizes.out()));
      });
    }
}

TYPED_TEST(SlidingWindow, M17_WholeReachBackIsCausal) {
  Random random(17);
  for (const Index length : {1, 64, 130}) {
    const Problem<TypeParam> problem({1, 4, 2, length, length, 7, 9}, random);
    test::under_all_sets([&] {
      const auto causal = test::answer<test::FullAttention<TypeParam>>(problem, Scores<TypeParam>{.causal = true});
      for (const Window& window : {Window{length - 1, 0}, Window{length, 0}, Window{unlimited, 0}})
        EXPECT_TRUE(test::same_answer(problem.sizes, causal, this->run(problem, {.window = window})));
      for (const Index after : {Index{0}, Index{7}, unlimited})
        EXPECT_TRUE(test::same_answer(
            problem.sizes, causal, this->run(problem, {.window = {unlimited, after}, .scores = {.causal = true}})));
    });
  }
}

TYPED_TEST(SlidingWindow, M18_ReachBeyondTheLengthIsEverything) {
  Random random(18);
  const Problem<TypeParam> problem({1, 2, 1, 70, 130, 5, 6}, random);
  test::under_all_sets([&] {
    const auto full = test::answer<test::FullAttention<TypeParam>>(problem);
    for (const Index reach : {Index{200}, Index{1} << 31, Index{1} << 59, Index{1} << 60, unlimited - 1, unlimited})
      for (const Alignment alignment : {Alignment::bottom_right, Alignment::top_left, Alignment::at(60)})
        EXPECT_TRUE(test::same_answer(
            problem.sizes, full, this->run(problem, {.window = {reach, reach}, .scores = {.alignment = alignment}})))
            << reach;
  });
}

TYPED_TEST(SlidingWindow, M18_PositionsFarFromAllKeys) {
  Random random(19);
  const Problem<TypeParam> problem({1, 1, 1, 5, 5, 3, 3}, random);
  test::under_all_sets([&] {
    for (const Index offset : {Index{1} << 40, -(Index{1} << 40), (Index{1} << 57), -(Index{1} << 57)}) {
      const auto got = this->run(problem, {.window = {3, 3}, .scores = {.alignment = Alignment::at(offset)}});
      for (const TypeParam x : got.out) ASSERT_EQ(test::bits_of(x), test::bits_of(TypeParam(0)));
      const auto all = this->run(problem, {.window = {unlimited, unlimited}, .scores = {.alignment = Alignment::at(offset)}});
      EXPECT_TRUE(test::same_answer(problem.sizes, test::answer<test::FullAttention<TypeParam>>(problem), all)) << offset;
    }
  });
}

TYPED_TEST(SlidingWindow, M20_DilationBeyondTheLengthIsTheTokenItself) {
  Random random(20);
  const Problem<TypeParam> problem({1, 1, 1, 50, 50, 3, 3}, random);
  test::under_all_sets([&] {
    for (const Index dilation : {Index{50}, Index{51}, Index{1000}, Index{1} << 40, unlimited})
      for (const Index reach : {Index{1}, unlimited})
        EXPECT_TRUE(test::same_bits(problem.value, this->run(problem, {.window = {reach, reach, dilation}}).out,
                                    problem.sizes.out()))
            << dilation;
  });
}

/// All lengths up to 9, all reaches (one head for each), dilations up to 4, alignments from no key to no key.
TYPED_TEST(SlidingWindow, M16_M18_M21_ExhaustiveWindows) {
  for (Index dilation = 1; dilation <= 4; ++dilation) {
    std::vector<Window> windows;
    for (Index before = 0; before <= 9; ++before)
      for (Index after = 0; after <= 9; ++after) windows.push_back({before, after, dilation});
    for (Index queries = 1; queries <= 9; ++queries)
      for (Index keys = 1; keys <= 9; ++keys)
        for (const Index offset : {Index{-10}, Index{-3}, Index{0}, Index{1}, Index{4}, Index{10}, keys - queries})
          for (const bool causal : {false, true}) {
            if (causal && (offset + queries + dilation) % 3 != 0) continue;
            this->expect_membership(
                {1, 100, 1, queries, keys, 1, 1},
                {.head_windows = windows, .scores = {.causal = causal, .alignment = Alignment::at(offset)}},
                [&](Index, Index h, Index i, Index j) {
                  return this->within(windows[test::to_size(h)], i + offset, j) && (!causal || j <= i + offset);
                },
                " offset " + std::to_string(offset) + " dilation " + std::to_string(dilation));
            if (this->HasFatalFailure()) return;
          }
  }
}

TYPED_TEST(SlidingWindow, M21_ExhaustiveDilationThree) {
  for (Index length = 1; length <= 12; ++length)
    for (Index before = 0; before <= 5; ++before)
      for (Index after = 0; after <= 5; ++after) {
        const Window window{before, after, 3};
        this->expect_membership({1, 2, 1, length, length, 1, 1}, {.window = window},
                                [&](Index, Index, Index i, Index j) { return this->within(window, i, j); }, "");
        if (this->HasFatalFailure()) return;
      }
}

/// Beyond blocks, tiles and ranges.
TYPED_TEST(SlidingWindow, M16_M21_MembershipOfLongSequences) {
  for (const Index length : {63, 64, 65, 127, 128, 129, 191, 200})
    for (const Window& window : {Window{1, 1}, Window{63, 0}, Window{64, 0}, Window{0, 64}, Window{65, 62}, Window{5, 3, 3},
                                 Window{100, 0, 2}, Window{1, 1, 64}, Window{2, 1, 65}, Window{unlimited, 2, 5}})
      this->expect_membership({1, 2, 2, length, length, 1, 1}, {.window = window},
                              [&](Index, Index, Index i, Index j) { return this->within(window, i, j); },
                              " window " + std::to_string(window.before) + ", " + std::to_string(window.after) + ", " +
                                  std::to_string(window.dilation));
}

TYPED_TEST(SlidingWindow, HeadWindowsAreTheWindowsOfTheirHeads) {
  Random random(22);
  const Sizes sizes{2, 6, 3, 150, 150, 8, 8};
  const Problem<TypeParam> problem(sizes, random);
  const std::vector<Window> windows{{0, 0}, {10, 3}, {64, 64, 2}, {5, 5, 7}, {unlimited, 0}, {3, unlimited, 3}};
  test::under_all_sets([&] {
    const auto all = this->run(problem, {.head_windows = windows});
    Answer<TypeParam> got(sizes);
    const auto out = got.output(sizes);
    for (Index h = 0; h < sizes.heads; ++h)
      longview::sliding_window_attention(problem.query_view().slice(1, h, 1), problem.key_view().slice(1, h / 2, 1),
                                         problem.value_view().slice(1, h / 2, 1),
                                         {out.out.slice(1, h, 1), out.lse.slice(1, h, 1)},
                                         {.window = windows[test::to_size(h)]});
    EXPECT_TRUE(test::same_answer(sizes, all, got));
  });
}

TYPED_TEST(SlidingWindow, M29_NothingOutsideTheWindowIsRead) {
  // Keys that no query sees lie on pages that may not be touched.
  const Index length = 4096, dim = 8;
  using Guarded = test::Guarded<TypeParam>;
  const Guarded key(length * dim, Guarded::Side::before_page);
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t all = static_cast<std::size_t>(length * dim) * sizeof(TypeParam), forbidden = all / 2 / page * page;
  ASSERT_EQ(reinterpret_cast<std::uintptr_t>(key.data()) % page, 0U);
  std::fill_n(key.data(), length * dim, TypeParam(1));
  ASSERT_EQ(mprotect(key.data(), forbidden, PROT_NONE), 0);
  const Index first = static_cast<Index>(forbidden / sizeof(TypeParam)) / dim;
  const Sizes sizes{1, 1, 1, length - first - 20, length, dim, dim};
  Random random(29);
  const auto query = random.values<TypeParam>(test::count_of(sizes.query()));
  test::under_all_sets([&] {
    for (const Index dilation : {1, 2, 5}) {
      Answer<TypeParam> got(sizes);
      longview::sliding_window_attention(
          TensorView<const TypeParam, 4>(query.data(), sizes.query()), {key.data(), sizes.key()},
          {key.data(), sizes.value()}, got.output(sizes),
          {.window = {20 / dilation, 0, dilation}, .scores = {.alignment = Alignment::at(first + 20)}});
      for (const TypeParam x : got.out) ASSERT_EQ(x, TypeParam(1));
    }
  });
  mprotect(key.data(), forbidden, PROT_READ | PROT_WRITE);
}

// ---- Against the reference

TYPED_TEST(SlidingWindow, MixedOptions) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    Random random(seed + 5000);
    const Index key_heads = random.integer(1, 3);
    const Sizes sizes{random.integer(1, 2),   key_heads * random.integer(1, 3), key_heads,
                      random.integer(1, 100), random.integer(1, 200),           random.integer(1, 24),
                      random.integer(1, 24)};
    const Problem<TypeParam> problem(sizes, random, random.uniform(0.1, 2));
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
    const auto expected = test::reference_attention(problem, scores, exact);
    typename SlidingWindow<TypeParam>::Options options{.window = windows[0], .scores = scores.view()};
    if (by_head) options.window = {}, options.head_windows = windows;
    test::under_all_sets([&] {
      EXPECT_TRUE(test::within_bound("sliding_window_attention", sizes, expected, this->run(problem, options)))
          << sizes << scores.text() << " window " << windows[0].before << ", " << windows[0].after << ", "
          << windows[0].dilation << (by_head ? " by head" : "") << " seed " << seed;
    });
  }
}

TYPED_TEST(SlidingWindow, S17_WindowsThatCrossRanges) {
  Random random(23);
  for (const Window& window : {Window{2100, 0}, Window{5, 2500}, Window{700, 700, 3}}) {
    const Sizes sizes{1, 1, 1, 4, 6000, 4, 3};
    const Problem<TypeParam> problem(sizes, random, 2);
    for (const Index offset : {2046, 4094, 5000}) {
      ScoresCase<TypeParam> scores;
      scores.offset = offset;
      const auto expected = test::reference_attention(problem, scores, {test::exact_window(window)});
      test::under_all_sets([&] {
        EXPECT_TRUE(test::within_bound("sliding_window_attention", sizes, expected,
                                       this->run(problem, {.window = window, .scores = scores.view()})));
      });
    }
  }
}

// ---- Streaming

TYPED_TEST(SlidingWindow, D01_D02_D03_ChunksAndPieces) {
  for (const Window& window : {Window{0, 0}, Window{20, 0}, Window{64, 0}, Window{100, 0}, Window{9, 0, 3}, Window{30, 0, 7}}) {
    const auto run = [&](auto query, const KeyValueView<TypeParam>& keys, const Output<TypeParam>& out) {
      longview::sliding_window_attention(query, keys, out, {.window = window});
    };
    test::expect_the_same_in_chunks<TypeParam>({1, 4, 2, 200, 200, 5, 6}, window.before * window.dilation, run, 1);
    test::expect_the_same_in_chunks<TypeParam>({1, 1, 1, 120, 2130, 5, 6}, window.before * window.dilation, run, 2);
  }
}

TYPED_TEST(SlidingWindow, D05_PiecesOfKeys) {
  for (const Window& window : {Window{20, 5}, Window{9, 4, 3}, Window{unlimited, 0}}) {
    const auto run = [&](auto query, const KeyValueView<TypeParam>& keys, const Output<TypeParam>& out) {
      longview::sliding_window_attention(query, keys, out, {.window = window, .scores = {.alignment = Alignment::at(30)}});
    };
    test::expect_the_same_in_pieces<TypeParam>({2, 2, 1, 120, 180, 5, 6}, run, 6);
  }
}

TYPED_TEST(SlidingWindow, D03_PiecesWithGaps) {
  for (const Window& window : {Window{20, 5}, Window{9, 4, 3}, Window{unlimited, 0, 2}}) {
    const auto run = [&](auto query, const KeyValueView<TypeParam>& keys, const Output<TypeParam>& out,
                         const Scores<TypeParam>& scores) {
      longview::sliding_window_attention(query, keys, out, {.window = window, .scores = scores});
    };
    test::expect_the_same_with_gaps<TypeParam>(60, 210, true, run, 31);
  }
}

/// Pinned keys at the start, then a gap, then a ring in two parts: the same as a mask over everything.
TYPED_TEST(SlidingWindow, D03_PiecesWithAGap) {
  Random random(9);
  const Sizes sizes{1, 2, 1, 6, 500, 5, 6};
  const Problem<TypeParam> problem(sizes, random);
  const Index pinned = 10, first = 395, cut = 448;
  std::vector<std::uint8_t> keep(500, 0);
  for (Index j = 0; j < 500; ++j) keep[test::to_size(j)] = j < pinned || j >= first;
  const auto piece = [&](Index begin, Index end) {
    return longview::KeyValue<TypeParam>{test::rows_of(problem.key_view(), begin, end - begin),
                                         test::rows_of(problem.value_view(), begin, end - begin), begin};
  };
  test::under_all_sets([&] {
    const auto expected = test::answer<test::FullAttention<TypeParam>>(
        problem, Scores<TypeParam>{
                     .causal = true, .alignment = Alignment::bottom_right, .keep_mask = {keep.data(), {1, 1, 1, 500}}});
    Answer<TypeParam> got(sizes);
    longview::sliding_window_attention(problem.query_view(),
                                       KeyValueView<TypeParam>{piece(0, pinned), piece(first, cut), piece(cut, 500)},
                                       got.output(sizes), {.window = {unlimited, 0}});
    EXPECT_TRUE(test::same_answer(sizes, expected, got));
  });
}

}  // namespace
