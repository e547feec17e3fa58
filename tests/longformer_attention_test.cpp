// SPDX-License-Identifier: Apache-2.0
#include "longview/longformer_attention.hpp"

#include "attention_laws.hpp"
#include "attention_streaming.hpp"

namespace test {

// Queries are keys.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(CrossAttentionLaws);
INSTANTIATE_TYPED_TEST_SUITE_P(Laws, AttentionLaws, WithBothNumbers<LongformerAttention>, TypeName);

}  // namespace test

namespace {

using longview::unlimited;
using longview::Window;
using test::Answer;
using test::Index;
using test::Problem;
using test::Random;
using test::Scores;
using test::Shape;
using test::Sizes;
using test::TensorView;

template <typename T>
class Longformer : public ::testing::Test {
 public:
  using Options = longview::LongformerOptions<T>;
  static Answer<T> run(const Problem<T>& problem, const Options& options) {
    Answer<T> got(problem.sizes);
    longview::longformer_attention(problem.query_view(), problem.key_view(), problem.value_view(),
                                   got.output(problem.sizes), options);
    return got;
  }
};
TYPED_TEST_SUITE(Longformer, test::Numbers, test::TypeName);

/// All lengths up to 9, all sets of up to three global tokens (one batch item each), all reaches up to the length, causal
/// or not, with and without padding.
TYPED_TEST(Longformer, M24_M26_ExhaustiveMembership) {
  for (Index length = 1; length <= 9; ++length) {
    std::vector<Index> tokens, offsets{0};
    std::vector<std::vector<Index>> sets;
    for (Index mask = 0; mask < Index{1} << length; ++mask) {
      if (__builtin_popcountll(static_cast<unsigned long long>(mask)) > 3) continue;
      sets.emplace_back();
      // In falling order: the order of a set does not matter.
      for (Index token = length; token-- > 0;)
        if ((mask >> token & 1) != 0) sets.back().push_back(token);
      tokens.insert(tokens.end(), sets.back().begin(), sets.back().end());
      offsets.push_back(static_cast<Index>(tokens.size()));
    }
    const auto items = static_cast<Index>(sets.size());
    const auto is_global = [&](Index b, Index token) {
      const auto& set = sets[test::to_size(b)];
      return std::find(set.begin(), set.end(), token) != set.end();
    };
    for (const int padding : {0, 1, 2})
      for (Index before = 0; before <= length; before += before < 3 ? 1 : 3)
        for (Index after = 0; after <= length; after += after < 2 ? 1 : 4)
          for (const Index dilation : {1, 2})
            for (const bool causal : {false, true}) {
              if ((before + after + padding + length) % 2 != 0 && length > 5) continue;
              // Padding: none; the last token; every third.
              std::vector<std::uint8_t> keep(test::to_size(length));
              for (Index j = 0; j < length; ++j)
                keep[test::to_size(j)] = padding == 0 || (padding == 1 ? j + 1 < length : j % 3 != 1);
              const auto real = [&](Index token) { return keep[test::to_size(token)] != 0; };
              const Problem<TypeParam> problem =
                  test::membership_problem<TypeParam>({items, 2, 1, length, length, 1, 1});
              const auto expected = test::mean_of_unit_vectors<TypeParam>(
                  problem.sizes, [&](Index b, Index, Index i, Index j) {
                    if (!real(i) || !real(j) || (causal && j > i)) return false;
                    if (is_global(b, i) || is_global(b, j)) return true;
                    const Index distance = j - i;
                    return distance % dilation == 0 && -before <= distance / dilation && distance / dilation <= after;
                  });
              typename Longformer<TypeParam>::Options options{
                  .window = {before, after, dilation},
                  .global = {.tokens = {.indices = tokens, .offsets = offsets}},
                  .scores = {.causal = causal}};
              if (padding != 0) options.keep_tokens = {keep.data(), {1, length}};
              test::under_all_sets([&] {
                ASSERT_TRUE(test::same_bits(expected, this->run(problem, options).out, problem.sizes.out()))
                    << "window " << before << ", " << after << ", " << dilation << " causal " << causal << " padding " << padding;
              });
              if (this->HasFatalFailure()) return;
            }
  }
}

TYPED_TEST(Longformer, M22_OrderOfTokensDoesNotMatter) {
  Random random(22);
  const Sizes sizes{2, 4, 2, 200, 200, 9, 7};
  const Problem<TypeParam> problem(sizes, random);
  std::vector<Index> tokens = random.permutation(200);
  tokens.resize(70);
  auto sorted = tokens;
  std::sort(sorted.begin(), sorted.end());
  test::under_all_sets([&] {
    const auto expected = this->run(problem, {.window = {10, 10}, .global = {.tokens = {.indices = sorted}}});
    for (int turn = 0; turn < 5; ++turn) {
      EXPECT_TRUE(test::same_answer(
          sizes, expected, this->run(problem, {.window = {10, 10}, .global = {.tokens = {.indices = tokens}}})));
      std::rotate(tokens.begin(), tokens.begin() + 7, tokens.end());
      std::reverse(tokens.begin() + 20, tokens.end());
    }
  });
}

TYPED_TEST(Longformer, M22_AllTokensGlobalIsFullAttention) {
  Random random(23);
  const Problem<TypeParam> problem({1, 2, 1, 150, 150, 9, 7}, random);
  std::vector<Index> tokens(150);
  for (Index at = 0; at < 150; ++at) tokens[test::to_size(at)] = at;
  test::under_all_sets([&] {
    EXPECT_TRUE(test::same_answer(problem.sizes, test::answer<test::FullAttention<TypeParam>>(problem),
                                  this->run(problem, {.window = {1, 1}, .global = {.tokens = {.indices = tokens}}})));
  });
}

TYPED_TEST(Longformer, M22_NoneIsTheWindow) {
  Random random(24);
  const Problem<TypeParam> problem({2, 4, 2, 150, 150, 9, 7}, random);
  const std::vector<Window> windows{{3, 3}, {10, 0}, {5, 5, 3}, {unlimited, 1}};
  test::under_all_sets([&] {
    Answer<TypeParam> expected(problem.sizes);
    longview::sliding_window_attention(problem.query_view(), problem.key_view(), problem.value_view(),
                                       expected.output(problem.sizes), {.head_windows = windows});
    EXPECT_TRUE(test::same_answer(problem.sizes, expected, this->run(problem, {.head_windows = windows})));
  });
}

TYPED_TEST(Longformer, M25_SetsOfEachItem) {
  Random random(25);
  const Sizes sizes{4, 4, 2, 130, 130, 9, 7};
  const Problem<TypeParam> problem(sizes, random);
  const std::vector<Index> tokens{5, 129, 0, 64, 63, 1, 2, 3}, offsets{0, 2, 2, 5, 8};
  std::vector<std::uint8_t> keep = random.bytes(4 * 130, 80);
  test::under_all_sets([&] {
    const auto all = this->run(problem, {.window = {7, 4},
                                         .global = {.tokens = {.indices = tokens, .offsets = offsets}},
                                         .keep_tokens = {keep.data(), {4, 130}}});
    Answer<TypeParam> got(sizes);
    const auto out = got.output(sizes);
    for (Index b = 0; b < 4; ++b) {
      const std::span<const Index> set =
          std::span(tokens).subspan(test::to_size(offsets[test::to_size(b)]),
                                    test::to_size(offsets[test::to_size(b) + 1] - offsets[test::to_size(b)]));
      longview::longformer_attention(problem.query_view().slice(0, b, 1), problem.key_view().slice(0, b, 1),
                                     problem.value_view().slice(0, b, 1), {out.out.slice(0, b, 1), out.lse.slice(0, b, 1)},
                                     {.window = {7, 4},
                                      .global = {.tokens = {.indices = set}},
                                      .keep_tokens = {keep.data() + b * 130, {1, 130}}});
    }
    EXPECT_TRUE(test::same_answer(sizes, all, got));
  });
}

TYPED_TEST(Longformer, TokenSetsOfAMask) {
  Random random(26);
  const auto mask = random.bytes(3 * 40, 30);
  std::vector<Index> storage;
  const longview::TokenSets sets = longview::token_sets({mask.data(), {3, 40}}, storage);
  ASSERT_EQ(sets.offsets.size(), 4U);
  for (std::size_t b = 0; b < 3; ++b) {
    std::vector<Index> expected;
    for (std::size_t j = 0; j < 40; ++j)
      if (mask[b * 40 + j] != 0) expected.push_back(static_cast<Index>(j));
    const auto set = sets.indices.subspan(test::to_size(sets.offsets[b]), test::to_size(sets.offsets[b + 1] - sets.offsets[b]));
    EXPECT_EQ(std::vector<Index>(set.begin(), set.end()), expected);
  }
}

/// What is padding may be poison in every tensor, and padded rows are 0.
TYPED_TEST(Longformer, M29_PoisonInPadding) {
  Random random(29);
  const Sizes sizes{2, 2, 1, 150, 150, 9, 7};
  const Problem<TypeParam> problem(sizes, random), own(sizes, random);
  const auto keep = random.bytes(2 * 150, 70);
  const std::vector<Index> tokens{0, 3, 70, 149, 64};
  const TypeParam nan = std::numeric_limits<TypeParam>::quiet_NaN();
  const auto poison = [&](Problem<TypeParam> of) {
    for (Index b = 0; b < 2; ++b)
      for (Index j = 0; j < 150; ++j) {
        if (keep[test::to_size(b * 150 + j)] != 0) continue;
        for (Index c = 0; c < 9; ++c) of.key_at(b, 0, j, c) = nan;
        for (Index c = 0; c < 7; ++c) of.value_at(b, 0, j, c) = nan;
        for (Index h = 0; h < 2; ++h)
          for (Index c = 0; c < 9; ++c) of.query[test::to_size(((b * 2 + h) * 150 + j) * 9 + c)] = nan;
      }
    return of;
  };
  const Problem<TypeParam> poisoned = poison(problem), own_poisoned = poison(own);
  const auto sinks = random.values<TypeParam>(2);
  const auto options = [&](const Problem<TypeParam>& global, bool with_sinks) {
    typename Longformer<TypeParam>::Options all{.window = {9, 9},
                                                .global = {.tokens = {.indices = tokens},
                                                           .query = global.query_view(),
                                                           .key = global.key_view(),
                                                           .value = global.value_view()},
                                                .keep_tokens = {keep.data(), {2, 150}}};
    if (with_sinks) all.scores.sinks = sinks;
    return all;
  };
  test::under_all_sets([&] {
    for (const bool with_sinks : {false, true}) {
      const auto expected = this->run(problem, options(own, with_sinks));
      EXPECT_TRUE(test::same_answer(sizes, expected, this->run(poisoned, options(own_poisoned, with_sinks))));
      for (Index b = 0; b < 2; ++b)
        for (Index i = 0; i < 150; ++i)
          if (keep[test::to_size(b * 150 + i)] == 0) {
            ASSERT_EQ(test::bits_of(expected.out[test::to_size((b * 2 * 150 + i) * 7)]), test::bits_of(TypeParam(0)));
            ASSERT_EQ(expected.lse[test::to_size(b * 2 * 150 + i)], -std::numeric_limits<TypeParam>::infinity());
          }
    }
  });
}

TYPED_TEST(Longformer, M27_KeyLengthsArePadding) {
  Random random(27);
  const Sizes sizes{3, 2, 1, 100, 100, 9, 7};
  const Problem<TypeParam> problem(sizes, random);
  const std::vector<Index> lengths{0, 61, 100}, tokens{0, 60, 61, 99};
  std::vector<std::uint8_t> keep(300);
  for (Index at = 0; at < 300; ++at) keep[test::to_size(at)] = at % 100 < lengths[test::to_size(at / 100)];
  test::under_all_sets([&] {
    EXPECT_TRUE(test::same_answer(
        sizes,
        this->run(problem, {.window = {9, 9}, .global = {.tokens = {.indices = tokens}}, .keep_tokens = {keep.data(), {3, 100}}}),
        this->run(problem, {.window = {9, 9}, .global = {.tokens = {.indices = tokens}}, .scores = {.key_lengths = lengths}})));
  });
}

TYPED_TEST(Longformer, MixedOptions) {
  using Real = test::RealOf<TypeParam>;
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    Random random(seed + 7000);
    const Index key_heads = random.integer(1, 2), length = random.integer(1, 180);
    const Sizes sizes{random.integer(1, 3), key_heads * random.integer(1, 3), key_heads, length, length,
                      random.integer(1, 24), random.integer(1, 24)};
    const double sigma = random.uniform(0.1, 2);
    const Problem<TypeParam> problem(sizes, random, sigma), own(sizes, random, sigma);
    const auto scores = test::random_scores<TypeParam>(sizes, random, false, false);
    const auto globals = random.bytes(sizes.batch * length, random.chance(30) ? 0 : static_cast<int>(random.integer(1, 20)));
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
    typename Longformer<TypeParam>::Options options{
        .window = windows[0],
        .global = {.tokens = longview::token_sets({globals.data(), {sizes.batch, length}}, storage)},
        .scores = scores.view()};
    if (by_head) options.window = {}, options.head_windows = windows;
    if (padded) options.keep_tokens = {keep.data(), {sizes.batch, length}}, exact.keep_tokens = tokens_of(keep);
    if (random.chance(50)) options.global.query = own.query_view(), exact.query_global = test::exact(own.query, sizes.query());
    if (random.chance(50)) {
      options.global.key = own.key_view(), options.global.value = own.value_view();
      exact.key_global = test::exact(own.key, sizes.key()), exact.value_global = test::exact(own.value, sizes.value());
    }
    const auto expected = reference::longformer_attention<Real>(
        test::exact(problem.query, sizes.query()), test::exact(problem.key, sizes.key()),
        test::exact(problem.value, sizes.value()), exact, test::Exact<TypeParam>::precision);
    test::under_all_sets([&] {
      EXPECT_TRUE(test::within_bound("longformer_attention", sizes, expected, this->run(problem, options)))
          << sizes << scores.text() << " window " << windows[0].before << ", " << windows[0].after << ", "
          << windows[0].dilation << (by_head ? " by head" : "") << (padded ? " padded" : "")
          << (options.global.query ? " own queries" : "") << (options.global.key ? " own keys" : "") << " seed " << seed;
    });
  }
}

TYPED_TEST(Longformer, S17_LengthsThatCrossRanges) {
  using Real = test::RealOf<TypeParam>;
  Random random(17);
  const Index length = 4200;
  const Sizes sizes{1, 1, 1, length, length, 3, 2};
  const Problem<TypeParam> problem(sizes, random);
  const std::vector<Index> tokens{0, 2047, 2048, 4100};
  reference::LongformerOptions<Real> exact;
  exact.windows = {{20, 5}};
  exact.global_tokens = reference::Tensor<std::uint8_t>({1, length});
  for (const Index token : tokens) exact.global_tokens(0, token) = 1;
  const auto expected = reference::longformer_attention<Real>(
      test::exact(problem.query, sizes.query()), test::exact(problem.key, sizes.key()),
      test::exact(problem.value, sizes.value()), exact, test::Exact<TypeParam>::precision);
  test::under_all_sets([&] {
    EXPECT_TRUE(test::within_bound("longformer_attention", sizes, expected,
                                   this->run(problem, {.window = {20, 5}, .global = {.tokens = {.indices = tokens}}})));
  });
}

/// A causal prefix does not know of what follows it.
TYPED_TEST(Longformer, D02_CausalPrefixes) {
  Random random(18);
  const Sizes sizes{1, 4, 2, 200, 200, 7, 5};
  const Problem<TypeParam> problem(sizes, random);
  const std::vector<Index> tokens{0, 60, 64, 130, 190};
  test::under_all_sets([&] {
    auto whole = this->run(problem, {.window = {15, 0}, .global = {.tokens = {.indices = tokens}}, .scores = {.causal = true}});
    for (const Index length : {1, 60, 61, 100, 131, 199}) {
      std::vector<Index> some;
      for (const Index token : tokens)
        if (token < length) some.push_back(token);
      Sizes shorter = sizes;
      shorter.queries = shorter.keys = length;
      Answer<TypeParam> got(shorter);
      longview::longformer_attention(test::rows_of(problem.query_view(), 0, length), test::rows_of(problem.key_view(), 0, length),
                                     test::rows_of(problem.value_view(), 0, length), got.output(shorter),
                                     {.window = {15, 0}, .global = {.tokens = {.indices = some}}, .scores = {.causal = true}});
      const auto out = whole.output(sizes);
      EXPECT_TRUE(test::same_bits(test::copy_of(test::rows_of(out.out, 0, length)), got.out, shorter.out())) << length;
      EXPECT_TRUE(test::same_bits(test::copy_of(test::rows_of(out.lse, 0, length)), got.lse, shorter.lse())) << length;
    }
  });
}

TYPED_TEST(Longformer, L01_L02_LayoutsOfItsOwnProjections) {
  Random random(19);
  const Sizes sizes{2, 4, 2, 90, 90, 7, 5};
  const Problem<TypeParam> problem(sizes, random), own(sizes, random);
  const auto keep = random.bytes(180, 80);
  const std::vector<Index> tokens{89, 0, 33};
  test::under_all_sets([&] {
    typename Longformer<TypeParam>::Options options{.window = {5, 5},
                                                    .global = {.tokens = {.indices = tokens},
                                                               .query = own.query_view(),
                                                               .key = own.key_view(),
                                                               .value = own.value_view()},
                                                    .keep_tokens = {keep.data(), {2, 90}}};
    const auto expected = this->run(problem, options);
    for (const test::Layout layout : test::all_layouts) {
      test::Stored<TypeParam> query(sizes.query(), layout, own.query), key(sizes.key(), layout, own.key),
          value(sizes.value(), layout, own.value);
      test::Stored<std::uint8_t, 2> kept({2, 90}, layout, keep);
      options.global.query = query.view(), options.global.key = key.view(), options.global.value = value.view();
      options.keep_tokens = kept.view();
      EXPECT_TRUE(test::same_answer(sizes, expected, this->run(problem, options)));
    }
  });
}

}  // namespace
