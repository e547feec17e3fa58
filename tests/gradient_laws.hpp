// SPDX-License-Identifier: Apache-2.0
// What holds for the gradients of every softmax operator, bit for bit where it can, within the certified bound of the
// reference elsewhere. Each operator's gradient test instantiates it for its types.
#pragma once

#include <cfenv>

#include "test_gradients.hpp"

namespace test {

template <typename Operator>
class GradientLaws : public ::testing::Test {
 public:
  using Number = typename Operator::Element;
  static constexpr Number infinity = std::numeric_limits<Number>::infinity();
  static constexpr Number nan = std::numeric_limits<Number>::quiet_NaN();

  /// More rows than a block has, more keys than a tile, keys that fill no vector and values that fill some.
  static Sizes sizes() { return {2, 4, 2, 75, Operator::same_lengths ? 75 : 133, 19, 32}; }

  static Gradients<Number> run(const Problem<Number>& problem, const Arrived<Number>& arrived,
                               const Scores<Number>& scores = {}, longview::Run how = {}) {
    return gradients<Operator, Number>(problem, arrived, scores, how);
  }
  /// A mask of every (query, key) for all batch items and heads.
  static Scores<Number> with_mask(const std::vector<std::uint8_t>& keep, const Sizes& s) {
    return {.keep_mask = {keep.data(), {1, 1, s.queries, s.keys}}};
  }
  static void expect_zero(const std::vector<Number>& gradient, const char* name) {
    for (const Number x : gradient) ASSERT_EQ(x, Number(0)) << name;
  }
  static void fill_row(const TensorView<Number, 4>& of, Index batch, Index head, Index row, Number with) {
    for (Index c = 0; c < of.extent(3); ++c) of(batch, head, row, c) = with;
  }
  static void expect_bound(const Problem<Number>& problem, const Arrived<Number>& arrived,
                           const ScoresCase<Number>& scores, const std::string& what = "") {
    const Sizes& s = problem.sizes;
    const auto expected = exact_gradients(Operator(), problem, arrived, scores.exact_scores(s.keys - s.queries));
    under_all_sets([&] {
      EXPECT_TRUE(within_bound(Operator::name, expected, run(problem, arrived, scores.view())))
          << s << scores.text() << (arrived.lse.empty() ? "" : " d_lse") << " " << what;
    });
  }

  /// Everything that scores may say at once, for T01, R02 and the like.
  struct Everything {
    std::vector<std::uint8_t> keep;
    std::vector<Number> bias, slopes, sinks;
    std::vector<Index> lengths;
    Sizes sizes;

    Everything(const Sizes& s, Random& random)
        : keep(random.bytes(s.queries * s.keys, 70)),
          bias(random.values<Number>(s.heads * s.keys)),
          slopes(random.values<Number>(s.heads, 0.1)),
          sinks(random.values<Number>(s.heads)),
          lengths(to_size(s.batch), s.keys - 5),
          sizes(s) {}

    Scores<Number> scores() const {
      Scores<Number> all{.scale = 0.25, .softcap = 4.0, .key_lengths = lengths};
      all.keep_mask = {keep.data(), {1, 1, sizes.queries, sizes.keys}};
      all.bias = {bias.data(), {1, sizes.heads, 1, sizes.keys}};
      all.sinks = sinks, all.dropout = {.probability = 0.25, .seed = 11};
      if (Operator::takes_slopes) all.alibi_slopes = slopes, all.alignment = longview::Alignment::bottom_right;
      return all;
    }
  };
};
TYPED_TEST_SUITE_P(GradientLaws);

// ---- Shapes and sizes

TYPED_TEST_P(GradientLaws, S01_NoQueries) {
  using T = typename TypeParam::Element;
  Random random(1);
  const Problem<T> problem({2, 4, 2, 0, TypeParam::same_lengths ? 0 : 5, 3, 3}, random);
  const Arrived<T> arrived(problem.sizes, random);
  under_all_sets([&] {
    const Gradients<T> got = this->run(problem, arrived);
    this->expect_zero(got.key, "key"), this->expect_zero(got.value, "value");
  });
}

TYPED_TEST_P(GradientLaws, S02_NoKeys) {
  using T = typename TypeParam::Element;
  Random random(2);
  const Problem<T> problem({2, 4, 2, TypeParam::same_lengths ? 0 : 60, 0, 3, 3}, random);
  const Arrived<T> arrived(problem.sizes, random, true);
  under_all_sets([&] { this->expect_zero(this->run(problem, arrived).query, "query"); });
}

TYPED_TEST_P(GradientLaws, S03_NoBatchOrHeads) {
  using T = typename TypeParam::Element;
  Random random(3);
  for (const Sizes& sizes : {Sizes{0, 4, 2, 6, 6, 3, 3}, Sizes{2, 0, 2, 6, 6, 3, 3}, Sizes{2, 0, 0, 6, 6, 3, 3}}) {
    const Problem<T> problem(sizes, random);
    const Arrived<T> arrived(sizes, random);
    under_all_sets([&] {
      const Gradients<T> got = this->run(problem, arrived);
      this->expect_zero(got.key, "key"), this->expect_zero(got.value, "value");
    });
  }
}

/// Without values only the log-sum-exp has gradients.
TYPED_TEST_P(GradientLaws, S05_NoValues) {
  using T = typename TypeParam::Element;
  Random random(5);
  Sizes sizes = this->sizes();
  sizes.value_dim = 0;
  const Problem<T> problem(sizes, random);
  this->expect_bound(problem, Arrived<T>(sizes, random, true), {});
}

TYPED_TEST_P(GradientLaws, G01_S15_OneKey) {
  using T = typename TypeParam::Element;
  Random random(15);
  for (const Index dim : {1, 2, 15, 16, 17, 70}) {
    const Problem<T> problem({3, 4, 4, 1, 1, dim, dim}, random, 3);
    const Arrived<T> arrived(problem.sizes, random);
    under_all_sets([&] {
      const Gradients<T> got = this->run(problem, arrived);
      this->expect_zero(got.query, "query"), this->expect_zero(got.key, "key");
      EXPECT_TRUE(same_bits(arrived.out, got.value, problem.sizes.value()));
    });
  }
}

TYPED_TEST_P(GradientLaws, S19_RowsFarApart) {
  using T = typename TypeParam::Element;
  constexpr Index stride = (Index{1} << 31) + 7, length = 4;
  const std::size_t bytes = to_size(stride * (length - 1) + 1024) * sizeof(T);
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) GTEST_SKIP() << "no room for a sparse mapping";
  Random random(19);
  const Problem<T> problem({1, 1, 1, length, length, 5, 6}, random);
  const Arrived<T> arrived(problem.sizes, random);
  T* const first = static_cast<T*>(memory);
  const auto far = [&](Index at, Index channels) {
    return TensorView<T, 4>(first + at, {1, 1, length, channels}, {1, 1, stride, 1});
  };
  assign(far(0, 5), problem.query), assign(far(64, 5), problem.key), assign(far(128, 6), problem.value);
  assign(far(256, 6), arrived.out);
  under_all_sets([&] {
    Answer<T> forward = answer<TypeParam>(problem);
    assign(far(192, 6), forward.out);
    run_backward(TypeParam(), far(0, 5), far(64, 5), far(128, 6),
                 Output<const T>(far(192, 6), TensorView<const T, 3>(forward.lse.data(), problem.sizes.lse())),
                 {.out = far(256, 6), .query = far(320, 5), .key = far(384, 5), .value = far(448, 6)});
    Gradients<T> got = this->run(problem, arrived);
    const Gradients<T> expected = got;
    got.query = copy_of(far(320, 5)), got.key = copy_of(far(384, 5)), got.value = copy_of(far(448, 6));
    EXPECT_TRUE(same_gradients(expected, got));
  });
  munmap(memory, bytes);
}

// ---- Layouts

TYPED_TEST_P(GradientLaws, L01_L02_L07_AllLayouts) {
  using T = typename TypeParam::Element;
  Random random(101);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  const Arrived<T> arrived(s, random, true);
  under_all_sets([&] {
    Answer<T> forward = answer<TypeParam>(problem);
    const Gradients<T> expected = gradients_from<TypeParam>(problem, forward, arrived);
    constexpr std::size_t count = std::size(all_layouts);
    for (std::size_t turn = 0; turn < 2 * count; ++turn) {
      const auto layout = [&](std::size_t tensor) { return all_layouts[(turn + (turn < count ? 0 : tensor)) % count]; };
      Stored<T> query(s.query(), layout(0), problem.query), key(s.key(), layout(1), problem.key),
          value(s.value(), layout(2), problem.value), out(s.out(), layout(3), forward.out),
          d_out(s.out(), layout(4), arrived.out), d_query(s.query(), layout(5)), d_key(s.key(), layout(6)),
          d_value(s.value(), layout(7));
      Stored<T, 3> lse(s.lse(), layout(1), forward.lse), d_lse(s.lse(), layout(2), arrived.lse);
      run_backward(TypeParam(), query.view(), key.view(), value.view(), Output<const T>(out.view(), lse.view()),
                   {.out = d_out.view(),
                    .lse = d_lse.view(),
                    .query = d_query.view(),
                    .key = d_key.view(),
                    .value = d_value.view()});
      Gradients<T> got(s, {});
      got.query = d_query.copy(), got.key = d_key.copy(), got.value = d_value.copy();
      EXPECT_TRUE(same_gradients(expected, got)) << "turn " << turn;
      EXPECT_TRUE(d_query.filler_is_intact() && d_key.filler_is_intact() && d_value.filler_is_intact())
          << "turn " << turn;
    }
  });
}

/// Gradients beside each other in a packed buffer, as queries, keys and values are.
TYPED_TEST_P(GradientLaws, L01_L09_OnePackedBuffer) {
  using T = typename TypeParam::Element;
  Random random(109);
  const Sizes s{2, 3, 3, 40, 40, 8, 8};
  const Problem<T> problem(s, random);
  const Arrived<T> arrived(s, random);
  // (batch, length, query | key | value | their gradients, heads, dim)
  std::vector<T> memory(to_size(s.batch * s.queries * 6 * s.heads * s.head_dim), this->nan);
  const TensorView<T, 5> all(memory.data(), {s.batch, s.queries, 6, s.heads, s.head_dim});
  const auto part = [&](Index which) { return all.select(2, which).transpose(1, 2); };
  under_all_sets([&] {
    assign(part(0), problem.query), assign(part(1), problem.key), assign(part(2), problem.value);
    Answer<T> forward = answer<TypeParam>(problem);
    run_backward(TypeParam(), part(0), part(1), part(2), forward.output(s),
                 {.out = arrived.out_view(s), .query = part(3), .key = part(4), .value = part(5)});
    Gradients<T> got(s, {});
    got.query = copy_of(part(3)), got.key = copy_of(part(4)), got.value = copy_of(part(5));
    EXPECT_TRUE(same_gradients(gradients_from<TypeParam>(problem, forward, arrived), got));
  });
}

TYPED_TEST_P(GradientLaws, L03_RepeatedKeys) {
  using T = typename TypeParam::Element;
  Random random(103);
  for (const Index keys : {65, 129}) {
    const Sizes s{3, 4, 4, keys, keys, 7, 9};
    const Problem<T> problem(s, random);
    const Arrived<T> arrived(s, random);
    // The keys of item 0, head 0, and the gradient of one row, for all.
    const auto key = problem.key_view().slice(0, 0, 3, 0).slice(1, 0, 4, 0);
    const auto value = problem.value_view().slice(0, 0, 3, 0).slice(1, 0, 4, 0);
    const auto d_out = arrived.out_view(s).slice(2, 0, keys, 0);
    Problem<T> copied = problem;
    copied.key = copy_of(key), copied.value = copy_of(value);
    Arrived<T> one = arrived;
    one.out = copy_of(d_out);
    under_all_sets([&] {
      Answer<T> forward = answer<TypeParam>(copied);
      Gradients<T> got(s, {});
      AttentionGradients<T> views = got.views(arrived);
      views.out = d_out;
      run_backward(TypeParam(), problem.query_view(), key, value, forward.output(s), views);
      EXPECT_TRUE(same_gradients(gradients_from<TypeParam>(copied, forward, one), got));
    });
  }
}

TYPED_TEST_P(GradientLaws, L05_AllPhasesOfACacheLine) {
  using T = typename TypeParam::Element;
  Random random(105);
  const Problem<T> problem({1, 2, 1, 50, 50, 19, 21}, random);
  const Sizes& s = problem.sizes;
  const Arrived<T> arrived(s, random);
  const auto phased = [](const std::vector<T>& values, Index phase) {
    std::vector<T> memory(values.size() + 128 / sizeof(T));
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
    const auto first = static_cast<Index>((64 - address % 64) % 64 / sizeof(T)) + phase;
    std::copy(values.begin(), values.end(), memory.begin() + first);
    return std::pair(std::move(memory), first);
  };
  under_all_sets([&] {
    Answer<T> forward = answer<TypeParam>(problem);
    const Gradients<T> expected = gradients_from<TypeParam>(problem, forward, arrived);
    for (Index phase = 0; phase < 64 / static_cast<Index>(sizeof(T)); ++phase) {
      const auto query = phased(problem.query, phase), key = phased(problem.key, phase),
                 value = phased(problem.value, phase), out = phased(forward.out, phase),
                 d_out = phased(arrived.out, phase);
      auto d_query = phased(expected.query, phase), d_key = phased(expected.key, phase),
           d_value = phased(expected.value, phase);
      for (auto* const written : {&d_query, &d_key, &d_value})
        std::fill(written->first.begin(), written->first.end(), T(12345));
      const auto at = [](const auto& of, const Shape<4>& shape) {
        return TensorView<const T, 4>(of.first.data() + of.second, shape);
      };
      const auto into = [](auto& of, const Shape<4>& shape) {
        return TensorView<T, 4>(of.first.data() + of.second, shape);
      };
      run_backward(TypeParam(), at(query, s.query()), at(key, s.key()), at(value, s.value()),
                   Output<const T>(at(out, s.out()), TensorView<const T, 3>(forward.lse.data(), s.lse())),
                   {.out = at(d_out, s.out()),
                    .query = into(d_query, s.query()),
                    .key = into(d_key, s.key()),
                    .value = into(d_value, s.value())});
      Gradients<T> got(s, {});
      got.query = copy_of(into(d_query, s.query())), got.key = copy_of(into(d_key, s.key())),
      got.value = copy_of(into(d_value, s.value()));
      EXPECT_TRUE(same_gradients(expected, got)) << "phase " << phase;
    }
  });
}

TYPED_TEST_P(GradientLaws, L16_GuardPages) {
  using T = typename TypeParam::Element;
  Random random(116);
  for (const Index length : {1, 3, 64, 65, 100})
    for (const Index dim : {1, 3, 16, 17}) {
      const Problem<T> problem({1, 2, 1, length, length, dim, dim == 17 ? 5 : dim}, random);
      const Sizes& s = problem.sizes;
      const Arrived<T> arrived(s, random, true);
      const auto keep = random.bytes(length * length, 60);
      const auto bias = random.values<T>(length * length);
      using Side = typename Guarded<T>::Side;
      for (const Side side : {Side::before_page, Side::after_page}) {
        const auto byte_side = side == Side::before_page ? Guarded<std::uint8_t>::Side::before_page
                                                         : Guarded<std::uint8_t>::Side::after_page;
        const Guarded<std::uint8_t> mask(length * length, byte_side, keep);
        const Guarded<T> biases(length * length, side, bias), d_bias(length * length, side);
        Scores<T> masked{.keep_mask = {mask.data(), {1, 1, length, length}},
                         .bias = {biases.data(), {1, 1, length, length}}};
        const Guarded<T> query(count_of(s.query()), side, problem.query), key(count_of(s.key()), side, problem.key),
            value(count_of(s.value()), side, problem.value), d_out(count_of(s.out()), side, arrived.out),
            d_lse(count_of(s.lse()), side, arrived.lse), d_query(count_of(s.query()), side),
            d_key(count_of(s.key()), side), d_value(count_of(s.value()), side);
        under_all_sets([&] {
          for (const bool with_mask : {false, true}) {
            const Scores<T> scores = with_mask ? masked : Scores<T>{};
            Answer<T> forward = answer<TypeParam>(problem, scores);
            const Guarded<T> out(count_of(s.out()), side, forward.out), lse(count_of(s.lse()), side, forward.lse);
            AttentionGradients<T> gradients{.out = {d_out.data(), s.out()},
                                            .lse = {d_lse.data(), s.lse()},
                                            .query = {d_query.data(), s.query()},
                                            .key = {d_key.data(), s.key()},
                                            .value = {d_value.data(), s.value()}};
            if (with_mask) gradients.scores.bias = {d_bias.data(), {1, 1, length, length}};
            run_backward(TypeParam(), TensorView<const T, 4>(query.data(), s.query()), {key.data(), s.key()},
                         {value.data(), s.value()},
                         Output<const T>(TensorView<const T, 4>(out.data(), s.out()),
                                         TensorView<const T, 3>(lse.data(), s.lse())),
                         gradients, scores);
          }
        });
      }
    }
}

// ---- Masks

/// A row without keys takes part in nothing: its gradient is exactly 0, and what arrives there is invisible.
TYPED_TEST_P(GradientLaws, M02_RowsMaskedEntirely) {
  using T = typename TypeParam::Element;
  Random random(202);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  const Arrived<T> arrived(s, random, true);
  auto keep = random.bytes(s.queries * s.keys, 70);
  const Index rows[] = {0, 3, s.queries - 1};
  for (const Index row : rows) std::fill_n(keep.begin() + row * s.keys, s.keys, std::uint8_t{0});
  const auto bias = random.values<T>(s.queries * s.keys);
  Scores<T> scores = this->with_mask(keep, s);
  scores.bias = {bias.data(), {1, 1, s.queries, s.keys}};
  Arrived<T> poisoned = arrived;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h)
      for (const Index row : rows) {
        for (Index c = 0; c < s.value_dim; ++c) poisoned.at(s, b, h, row, c) = this->nan;
        poisoned.lse[to_size((b * s.heads + h) * s.queries + row)] = this->infinity;
      }
  Problem<T> poisoned_rows = problem;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h)
      for (const Index row : rows) this->fill_row({poisoned_rows.query.data(), s.query()}, b, h, row, this->nan);
  under_all_sets([&] {
    Gradients<T> got = this->run(problem, arrived, scores);
    for (const auto* const all : {&got.query, &got.key, &got.value, &got.bias})
      for (const T x : *all) ASSERT_TRUE(std::isfinite(x));
    for (Index b = 0; b < s.batch; ++b)
      for (Index h = 0; h < s.heads; ++h)
        for (const Index row : rows)
          for (Index c = 0; c < s.head_dim; ++c) ASSERT_EQ(bits_of(got.query_view()(b, h, row, c)), bits_of(T(0)));
    for (const Index row : rows)
      for (Index j = 0; j < s.keys; ++j) ASSERT_EQ(bits_of(got.bias_view()(0, 0, row, j)), bits_of(T(0)));
    EXPECT_TRUE(same_gradients(got, this->run(problem, poisoned, scores))) << "what arrives there";
    EXPECT_TRUE(same_gradients(got, this->run(poisoned_rows, arrived, scores))) << "its query";
  });
}

TYPED_TEST_P(GradientLaws, M03_BiasOfMinusInfinityIsAMask) {
  using T = typename TypeParam::Element;
  Random random(203);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  const Arrived<T> arrived(s, random);
  auto keep = random.bytes(s.queries * s.keys, 50);
  std::fill_n(keep.begin(), s.keys, std::uint8_t{0});
  std::vector<T> bias(keep.size());
  const std::vector<T> zeros(keep.size(), T(0));
  for (std::size_t at = 0; at < keep.size(); ++at) bias[at] = keep[at] != 0 ? T(0) : -this->infinity;
  under_all_sets([&] {
    Scores<T> masked = this->with_mask(keep, s);
    masked.bias = {zeros.data(), {1, 1, s.queries, s.keys}};
    const Gradients<T> expected = this->run(problem, arrived, masked);
    const Gradients<T> got = this->run(problem, arrived, {.bias = {bias.data(), {1, 1, s.queries, s.keys}}});
    EXPECT_TRUE(same_gradients(expected, got));
    for (std::size_t at = 0; at < keep.size(); ++at)
      if (keep[at] == 0) {
        ASSERT_EQ(bits_of(got.bias[at]), bits_of(T(0)));
      }
  });
}

TYPED_TEST_P(GradientLaws, M11_RepeatedMasks) {
  using T = typename TypeParam::Element;
  Random random(211);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  const Arrived<T> arrived(s, random);
  for (int axes = 0; axes < 16; ++axes) {
    Shape<4> shape = s.pairs();
    for (std::size_t axis = 0; axis < 4; ++axis)
      if ((axes >> axis & 1) != 0) shape[axis] = 1;
    const auto keep = random.bytes(count_of(shape), 60);
    const auto bias = random.values<T>(count_of(shape));
    const TensorView<const std::uint8_t, 4> mask(keep.data(), shape);
    Shape<4> steps{};
    for (std::size_t axis = 0; axis < 4; ++axis) steps[axis] = shape[axis] == 1 ? 0 : mask.stride(axis);
    const auto whole_mask = copy_of(TensorView<const std::uint8_t, 4>(keep.data(), s.pairs(), steps));
    const auto whole_bias = copy_of(TensorView<const T, 4>(bias.data(), s.pairs(), steps));
    under_all_sets([&] {
      const Gradients<T> expected = this->run(
          problem, arrived, {.keep_mask = {whole_mask.data(), s.pairs()}, .bias = {whole_bias.data(), s.pairs()}});
      Gradients<T> got = this->run(problem, arrived, {.keep_mask = mask, .bias = {bias.data(), shape}});
      got.bias = expected.bias, got.bias_shape = expected.bias_shape;  // summed: within the bound, in MixedOptions
      EXPECT_TRUE(same_gradients(expected, got)) << text_of(shape);
    });
  }
}

/// Keys that nobody sees: poison there is invisible, their gradients are exactly 0.
TYPED_TEST_P(GradientLaws, M27_M29_KeysBeyondTheLength) {
  using T = typename TypeParam::Element;
  Random random(227);
  Sizes s = this->sizes();
  s.batch = 5;
  const Problem<T> problem(s, random);
  const Arrived<T> arrived(s, random);
  const std::vector<Index> lengths{0, 1, s.keys, s.keys - 1, 64};
  Problem<T> poisoned = problem;
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.key_heads; ++h)
      for (Index j = lengths[to_size(b)]; j < s.keys; ++j) {
        for (Index c = 0; c < s.head_dim; ++c) poisoned.key_at(b, h, j, c) = this->infinity;
        for (Index c = 0; c < s.value_dim; ++c) poisoned.value_at(b, h, j, c) = this->nan;
      }
  under_all_sets([&] {
    Gradients<T> got = this->run(problem, arrived, {.key_lengths = lengths});
    EXPECT_TRUE(same_gradients(got, this->run(poisoned, arrived, {.key_lengths = lengths})));
    for (Index b = 0; b < s.batch; ++b)
      for (Index h = 0; h < s.key_heads; ++h)
        for (Index j = lengths[to_size(b)]; j < s.keys; ++j) {
          for (Index c = 0; c < s.head_dim; ++c) ASSERT_EQ(bits_of(got.key_view()(b, h, j, c)), bits_of(T(0)));
          for (Index c = 0; c < s.value_dim; ++c) ASSERT_EQ(bits_of(got.value_view()(b, h, j, c)), bits_of(T(0)));
        }
  });
}

/// Whole tiles that are masked, first, last and every second.
TYPED_TEST_P(GradientLaws, M07_M08_M29_TilesMaskedEntirely) {
  using T = typename TypeParam::Element;
  Random random(207);
  const Index length = 300;
  const Problem<T> problem({1, 2, 1, length, length, 5, 6}, random);
  const Sizes& s = problem.sizes;
  const Arrived<T> arrived(s, random);
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
      const Gradients<T> expected = this->run(problem, arrived, this->with_mask(keep, s));
      EXPECT_TRUE(same_gradients(expected, this->run(poisoned, arrived, this->with_mask(keep, s))))
          << "pattern " << pattern;
      for (const auto* const all : {&expected.query, &expected.key, &expected.value})
        for (const T x : *all) ASSERT_TRUE(std::isfinite(x));
    });
  }
}

/// Which pairs exist, with a mask over all batch items and heads; empty: no mask.
template <typename Operator>
bool attends(const Sizes& s, const std::vector<std::uint8_t>& keep, Index query, Index key) {
  return Operator::sees(s, query, key) && (keep.empty() || keep[to_size(query * s.keys + key)] != 0);
}

/// NaN in one row of d_out: in its d_query, in the gradients of the keys it sees, nowhere else.
TYPED_TEST_P(GradientLaws, G03_NaNThatArrivesStaysWithItsRow) {
  using T = typename TypeParam::Element;
  Random random(303);
  Sizes s = this->sizes();
  s.batch = 1, s.heads = 2, s.key_heads = 1;
  const Problem<T> problem(s, random);
  const Arrived<T> arrived(s, random);
  for (const auto& keep : {std::vector<std::uint8_t>(), random.bytes(s.queries * s.keys, 50)})
    for (const Index row : {Index{0}, Index{47}, s.queries - 1})
      for (const T poison : {this->nan, this->infinity}) {
        const Index channel = 11;
        Arrived<T> poisoned = arrived;
        poisoned.at(s, 0, 1, row, channel) = poison;
        const Scores<T> scores = keep.empty() ? Scores<T>{} : this->with_mask(keep, s);
        under_all_sets([&] {
          Gradients<T> expected = this->run(problem, arrived, scores), got = this->run(problem, poisoned, scores);
          for (Index c = 0; c < s.head_dim; ++c) {
            ASSERT_FALSE(std::isfinite(got.query_view()(0, 1, row, c))) << "row " << row;
            expected.query_view()(0, 1, row, c) = got.query_view()(0, 1, row, c);
          }
          for (Index j = 0; j < s.keys; ++j) {
            if (!attends<TypeParam>(s, keep, row, j)) continue;
            ASSERT_FALSE(std::isfinite(got.value_view()(0, 0, j, channel))) << "row " << row << " key " << j;
            expected.value_view()(0, 0, j, channel) = got.value_view()(0, 0, j, channel);
            for (Index c = 0; c < s.head_dim; ++c) {
              ASSERT_FALSE(std::isfinite(got.key_view()(0, 0, j, c))) << "row " << row << " key " << j;
              expected.key_view()(0, 0, j, c) = got.key_view()(0, 0, j, c);
            }
          }
          EXPECT_TRUE(same_gradients(expected, got))
              << "row " << row << " poison " << poison << " mask " << !keep.empty();
        });
      }
}

/// Also where a sink makes its log-sum-exp finite: the result of such a row is 0 whatever arrives.
TYPED_TEST_P(GradientLaws, G03_NaNThatArrivesAtARowWithoutKeysReachesNothing) {
  using T = typename TypeParam::Element;
  Random random(305);
  const Sizes s = this->sizes();
  const Problem<T> problem(s, random);
  const Arrived<T> arrived(s, random);
  const auto sinks = random.values<T>(s.heads);
  const Index row = 50;
  auto keep = random.bytes(s.queries * s.keys, 50);
  std::fill_n(keep.begin() + row * s.keys, s.keys, std::uint8_t{0});
  Arrived<T> poisoned = arrived;
  for (Index h = 0; h < s.heads; ++h)
    for (Index c = 0; c < s.value_dim; ++c) poisoned.at(s, 0, h, row, c) = this->nan;
  for (const bool has_sinks : {false, true}) {
    Scores<T> scores = this->with_mask(keep, s);
    if (has_sinks) scores.sinks = sinks;
    under_all_sets([&] {
      EXPECT_TRUE(same_gradients(this->run(problem, arrived, scores), this->run(problem, poisoned, scores)))
          << "sinks " << has_sinks;
    });
  }
}

TYPED_TEST_P(GradientLaws, G03_NothingArrives) {
  using T = typename TypeParam::Element;
  Random random(304);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  const typename GradientLaws<TypeParam>::Everything all(s, random);
  Arrived<T> arrived(s, random, true);
  std::fill(arrived.out.begin(), arrived.out.end(), T(0)), std::fill(arrived.lse.begin(), arrived.lse.end(), T(0));
  under_all_sets([&] {
    const Gradients<T> got = this->run(problem, arrived, all.scores());
    for (const auto* const gradient : {&got.query, &got.key, &got.value, &got.bias, &got.slopes, &got.sinks})
      this->expect_zero(*gradient, "a gradient");
  });
}

/// Poison in a key or a value: in the rows that see it and in the keys that those see; everything else keeps its bits.
TYPED_TEST_P(GradientLaws, M29_PoisonShowsExactlyWhereItIsAttended) {
  using T = typename TypeParam::Element;
  Random random(229);
  Sizes s = this->sizes();
  s.batch = 1, s.heads = 2, s.key_heads = 1;
  const Problem<T> problem(s, random);
  const Arrived<T> arrived(s, random);
  // Few rows see a key, so that most of the gradients have to keep their bits.
  auto sparse = random.bytes(s.queries * s.keys, 4);
  for (const auto& keep : {std::vector<std::uint8_t>(), sparse})
    for (const Index key : {Index{0}, Index{5}, Index{63}, Index{64}, s.keys - 1})
      for (const bool in_value : {false, true}) {
        Problem<T> poisoned = problem;
        (in_value ? poisoned.value_at(0, 0, key, 11) : poisoned.key_at(0, 0, key, 11)) = this->nan;
        const Scores<T> scores = keep.empty() ? Scores<T>{} : this->with_mask(keep, s);
        under_all_sets([&] {
          Gradients<T> expected = this->run(problem, arrived, scores), got = this->run(poisoned, arrived, scores);
          const auto spoil = [&](const TensorView<T, 4>& of, Index h, Index row) {
            this->fill_row(of, 0, h, row, this->nan);
          };
          for (Index i = 0; i < s.queries; ++i) {
            if (!attends<TypeParam>(s, keep, i, key)) continue;
            for (Index h = 0; h < s.heads; ++h) spoil(expected.query_view(), h, i);
            for (Index j = 0; j < s.keys; ++j) {
              if (!attends<TypeParam>(s, keep, i, j)) continue;
              spoil(expected.key_view(), 0, j);
              if (!in_value) spoil(expected.value_view(), 0, j);
            }
          }
          EXPECT_TRUE(same_gradients(expected, got))
              << "key " << key << (in_value ? " in value" : " in key") << " mask " << !keep.empty();
        });
      }
}

TYPED_TEST_P(GradientLaws, M29_PoisonOfOneQuery) {
  using T = typename TypeParam::Element;
  Random random(230);
  Sizes s = this->sizes();
  s.batch = 1, s.heads = 2, s.key_heads = 1;
  const Problem<T> problem(s, random);
  const Arrived<T> arrived(s, random);
  const auto keep = random.bytes(s.queries * s.keys, 10);
  for (const Index row : {Index{0}, Index{47}, s.queries - 1}) {
    Problem<T> poisoned = problem;
    poisoned.query[to_size(row * s.head_dim)] = this->nan;
    under_all_sets([&] {
      Gradients<T> expected = this->run(problem, arrived, this->with_mask(keep, s));
      bool sees_any = false;
      for (Index j = 0; j < s.keys; ++j) {
        if (!attends<TypeParam>(s, keep, row, j)) continue;
        sees_any = true;
        this->fill_row(expected.key_view(), 0, 0, j, this->nan);
        this->fill_row(expected.value_view(), 0, 0, j, this->nan);
      }
      if (sees_any) this->fill_row(expected.query_view(), 0, 0, row, this->nan);
      EXPECT_TRUE(same_gradients(expected, this->run(poisoned, arrived, this->with_mask(keep, s)))) << "query " << row;
    });
  }
}

TYPED_TEST_P(GradientLaws, M30_PoisonInTheWorkspace) {
  using T = typename TypeParam::Element;
  Random random(232);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  const Arrived<T> arrived(s, random, true);
  const typename GradientLaws<TypeParam>::Everything all(s, random);
  Problem<T> poisoned = problem;
  poisoned.value_at(0, 0, 2, 0) = this->nan;  // takes the way of tiles that hold one
  const longview::Sequential sequential;
  under_all_sets([&] {
    for (const Problem<T>& one : {problem, poisoned})
      for (const Scores<T>& options : {Scores<T>{}, all.scores()}) {
        Answer<T> forward = answer<TypeParam>(one, options);
        const Gradients<T> expected = gradients_from<TypeParam>(one, forward, arrived, options);
        longview::DryRun dry;
        gradients_from<TypeParam>(one, forward, arrived, options, longview::Run(sequential, dry));
        ASSERT_TRUE(dry.ok()) << dry.error();
        for (const T poison : {this->nan, this->infinity, std::numeric_limits<T>::max()})
          for (const std::size_t shift : {std::size_t{0}, std::size_t{1}, std::size_t{63}}) {
            std::vector<T> words(dry.workspace_bytes() / sizeof(T) + 64, poison);
            const std::span<std::byte> bytes = std::as_writable_bytes(std::span<T>(words)).subspan(shift);
            EXPECT_TRUE(same_gradients(
                expected, gradients_from<TypeParam>(one, forward, arrived, options, longview::Run(sequential, bytes))))
                << "poison " << poison << " shift " << shift;
          }
      }
  });
}

TYPED_TEST_P(GradientLaws, N12_NoFlagsFromWhatIsMasked) {
  using T = typename TypeParam::Element;
  Random random(312);
  Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  Arrived<T> arrived(s, random);
  auto keep = random.bytes(s.queries * s.keys, 70);
  for (const Index key : {Index{2}, Index{33}, s.keys - 1}) {
    for (Index i = 0; i < s.queries; ++i) keep[to_size(i * s.keys + key)] = 0;
    for (Index b = 0; b < s.batch; ++b)
      for (Index h = 0; h < s.key_heads; ++h) {
        for (Index c = 0; c < s.head_dim; ++c)
          problem.key_at(b, h, key, c) = c % 2 != 0 ? this->infinity : -this->infinity;
        problem.value_at(b, h, key, 0) = std::numeric_limits<T>::signaling_NaN();
      }
  }
  std::fill_n(keep.begin() + 3 * s.keys, s.keys, std::uint8_t{0});
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.heads; ++h) arrived.at(s, b, h, 3, 1) = this->infinity;
  const auto sinks = random.values<T>(s.heads);
  for (const bool has_sinks : {false, true})
    under_all_sets([&] {
      Scores<T> scores = this->with_mask(keep, s);
      if (has_sinks) scores.sinks = sinks;
      Answer<T> forward = answer<TypeParam>(problem, scores);
      std::feclearexcept(FE_ALL_EXCEPT);
      const Gradients<T> got = gradients_from<TypeParam>(problem, forward, arrived, scores);
      EXPECT_EQ(std::fetestexcept(FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW), 0) << "sinks " << has_sinks;
      for (const auto* const gradient : {&got.query, &got.key, &got.value, &got.sinks})
        for (const T x : *gradient) ASSERT_TRUE(std::isfinite(x)) << "sinks " << has_sinks;
    });
}

/// Scratch that nobody has written yet is not computed with.
TYPED_TEST_P(GradientLaws, N12_NoFlagsFromScratch) {
  using T = typename TypeParam::Element;
  Random random(315);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  const Arrived<T> arrived(s, random, true);
  const typename GradientLaws<TypeParam>::Everything all(s, random);
  const longview::Sequential sequential;
  under_all_sets([&] {
    Answer<T> forward = answer<TypeParam>(problem, all.scores());
    longview::DryRun dry;
    gradients_from<TypeParam>(problem, forward, arrived, all.scores(), longview::Run(sequential, dry));
    for (const T poison : {std::numeric_limits<T>::signaling_NaN(), std::numeric_limits<T>::max()}) {
      std::vector<T> words(dry.workspace_bytes() / sizeof(T) + 1);
      for (T& word : words) std::memcpy(&word, &poison, sizeof word);
      std::feclearexcept(FE_ALL_EXCEPT);
      gradients_from<TypeParam>(problem, forward, arrived, all.scores(),
                                longview::Run(sequential, std::as_writable_bytes(std::span<T>(words))));
      EXPECT_EQ(std::fetestexcept(FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW), 0) << poison;
    }
  });
}

TYPED_TEST_P(GradientLaws, N11_RoundingModes) {
  using T = typename TypeParam::Element;
  Random random(311);
  const Problem<T> problem(this->sizes(), random);
  const Arrived<T> arrived(problem.sizes, random);
  under_all_sets([&] {
    Answer<T> forward = answer<TypeParam>(problem);
    const Gradients<T> nearest = gradients_from<TypeParam>(problem, forward, arrived);
    for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
      std::fesetround(mode);
      const Gradients<T> got = gradients_from<TypeParam>(problem, forward, arrived);
      const int after = std::fegetround();
      std::fesetround(FE_TONEAREST);
      EXPECT_EQ(after, mode);
      const auto expect_near = [&](const std::vector<T>& expected, const std::vector<T>& is) {
        T most = 0;
        for (const T x : expected) most = std::max(most, std::abs(x));
        for (std::size_t at = 0; at < is.size(); ++at)
          ASSERT_NEAR(is[at], expected[at], T(1e-4) * most) << "mode " << mode << " element " << at;
      };
      expect_near(nearest.query, got.query), expect_near(nearest.key, got.key), expect_near(nearest.value, got.value);
    }
  });
}

// ---- What is asked for, and on what it runs

TYPED_TEST_P(GradientLaws, G02_EverySubset) {
  using T = typename TypeParam::Element;
  Random random(402);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  const Arrived<T> arrived(s, random, true);
  const typename GradientLaws<TypeParam>::Everything all(s, random);
  Scores<T> with_bias;
  with_bias.bias = all.scores().bias;
  under_all_sets([&] {
    for (const Scores<T>& scores : {with_bias, all.scores()}) {
      Answer<T> forward = answer<TypeParam>(problem, scores);
      const Gradients<T> expected = gradients_from<TypeParam>(problem, forward, arrived, scores);
      for (int subset = 0; subset < 16; ++subset)
        for (const bool others : {false, true}) {
          const Gradients<T> untouched(s, scores);
          Gradients<T> got(s, scores), only = expected;
          AttentionGradients<T> views = got.views(arrived);
          if ((subset & 1) == 0) views.query = {}, only.query = untouched.query;
          if ((subset & 2) == 0) views.key = {}, only.key = untouched.key;
          if ((subset & 4) == 0) views.value = {}, only.value = untouched.value;
          if ((subset & 8) == 0) views.scores.bias = {}, only.bias = untouched.bias;
          if (!others) {
            views.scores.alibi_slopes = {}, views.scores.sinks = {};
            only.slopes = untouched.slopes, only.sinks = untouched.sinks;
          }
          run_backward(TypeParam(), problem.query_view(), problem.key_view(), problem.value_view(), forward.output(s),
                       views, scores);
          EXPECT_TRUE(same_gradients(only, got)) << "subset " << subset << " others " << others;
        }
    }
  });
}

/// What was there before does not matter: gradients are overwritten.
TYPED_TEST_P(GradientLaws, GradientsAreOverwritten) {
  using T = typename TypeParam::Element;
  Random random(403);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  const Arrived<T> arrived(s, random);
  const typename GradientLaws<TypeParam>::Everything all(s, random);
  under_all_sets([&] {
    Answer<T> forward = answer<TypeParam>(problem, all.scores());
    const Gradients<T> expected = gradients_from<TypeParam>(problem, forward, arrived, all.scores());
    Gradients<T> got = expected;
    for (auto* const gradient : {&got.query, &got.key, &got.value, &got.bias, &got.slopes, &got.sinks})
      std::fill(gradient->begin(), gradient->end(), this->nan);
    run_backward(TypeParam(), problem.query_view(), problem.key_view(), problem.value_view(), forward.output(s),
                 got.views(arrived), all.scores());
    EXPECT_TRUE(same_gradients(expected, got));
  });
}

TYPED_TEST_P(GradientLaws, G04_T01_T02_AnyExecutor) {
  using T = typename TypeParam::Element;
  Random random(501);
  Sizes s = this->sizes();
  s.heads = 6, s.queries = s.keys = 140;
  const Problem<T> problem(s, random);
  const Arrived<T> arrived(s, random, true);
  const typename GradientLaws<TypeParam>::Everything all(s, random);
  under_all_sets([&] {
    for (const Scores<T>& scores : {Scores<T>{}, all.scores()}) {
      Answer<T> forward = answer<TypeParam>(problem, scores);
      const Gradients<T> expected = gradients_from<TypeParam>(problem, forward, arrived, scores);
      const auto expect_same = [&](longview::Run how, const std::string& what) {
        EXPECT_TRUE(same_gradients(expected, gradients_from<TypeParam>(problem, forward, arrived, scores, how)))
            << what;
      };
      for (Index threads = 1; threads <= 16; ++threads) {
        const Threads executor{threads};
        expect_same(executor, std::to_string(threads) + " threads");
      }
      const Threads many{200};
      expect_same(many, "more threads than rows");
      for (const Index workers : {2, 3, 7, 16}) {
        const Reversed reversed{workers};
        const Shuffled shuffled{workers, 5};
        const Twice twice{workers};
        expect_same(reversed, "reversed"), expect_same(shuffled, "shuffled"), expect_same(twice, "twice");
      }
    }
  });
}

TYPED_TEST_P(GradientLaws, R02_R03_WorkspaceIsExact) {
  using T = typename TypeParam::Element;
  Random random(502);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  const Arrived<T> arrived(s, random, true);
  const typename GradientLaws<TypeParam>::Everything all(s, random);
  const Reversed three{3};
  under_all_sets([&] {
    for (const Scores<T>& scores : {Scores<T>{}, all.scores()}) {
      Answer<T> forward = answer<TypeParam>(problem, scores);
      const Gradients<T> expected = gradients_from<TypeParam>(problem, forward, arrived, scores), untouched(s, scores);
      longview::DryRun dry;
      const Gradients<T> rehearsed =
          gradients_from<TypeParam>(problem, forward, arrived, scores, longview::Run(three, dry));
      ASSERT_TRUE(dry.ok()) << dry.error();
      EXPECT_TRUE(same_gradients(untouched, rehearsed)) << "a rehearsal writes nothing";
      const std::size_t needed = dry.workspace_bytes();
      for (const std::size_t offset : {std::size_t{0}, std::size_t{1}, std::size_t{5}, std::size_t{63}}) {
        using Side = Guarded<std::byte>::Side;
        const Guarded<std::byte> high(static_cast<Index>(needed + offset), Side::before_page),
            low(static_cast<Index>(needed + offset), Side::after_page);
        for (std::byte* const bytes : {high.data(), low.data() + offset})
          EXPECT_TRUE(
              same_gradients(expected, gradients_from<TypeParam>(problem, forward, arrived, scores,
                                                                 longview::Run(three, std::span(bytes, needed)))))
              << offset;
      }
      std::vector<std::byte> bytes(needed);
      Gradients<T> got(s, scores);
      for (const std::size_t size : {needed - 1, std::size_t{1}, std::size_t{0}}) {
        const std::string text = error_of<longview::ContractError>([&] {
          run_backward(TypeParam(), problem.query_view(), problem.key_view(), problem.value_view(), forward.output(s),
                       got.views(arrived), scores, longview::Run(three, std::span(bytes).first(size)));
        });
        EXPECT_EQ(text, std::string(TypeParam::name) + "_backward: run: workspace too small (got " +
                            std::to_string(size) + " bytes, expected " + std::to_string(needed) + ")");
      }
      EXPECT_TRUE(same_gradients(untouched, got));
    }
  });
}

/// For dimensions up to 128, whatever the length.
TYPED_TEST_P(GradientLaws, R02_ScratchStaysNearItsPromise) {
  using T = typename TypeParam::Element;
  const longview::Sequential sequential;
  for (const Index length : {64, 1000, 4096})
    for (const Index dim : {40, 64, 128}) {
      const TensorView<T, 4> query(nullptr, {1, 4, length, dim}), key(nullptr, {1, 2, length, dim});
      const TensorView<T, 3> lse(nullptr, {1, 4, length});
      Scores<T> all{.softcap = 4.0};
      all.bias = {nullptr, {1, 1, length, length}};
      for (const Scores<T>& scores : {Scores<T>{}, all})
        under_all_sets([&] {
          longview::DryRun dry;
          run_backward<T>(TypeParam(), query, key, key, {query, lse},
                          {.out = query, .query = query, .key = key, .value = key}, scores,
                          longview::Run(sequential, dry));
          ASSERT_TRUE(dry.ok()) << dry.error();
          EXPECT_LE(dry.workspace_bytes(), TypeParam::most_gradient_scratch) << length << ", " << dim;
        });
    }
}

// ---- Dropout

TYPED_TEST_P(GradientLaws, G05_DropoutOfNothingAndOfEverything) {
  using T = typename TypeParam::Element;
  Random random(605);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  const Arrived<T> arrived(s, random), with_lse(s, random, true);
  const auto sinks = random.values<T>(s.heads);
  under_all_sets([&] {
    const Answer<T> plain = answer<TypeParam>(problem);
    EXPECT_TRUE(same_answer(s, plain, answer<TypeParam>(problem, Scores<T>{.dropout = {.probability = 0, .seed = 3}})));
    EXPECT_TRUE(same_gradients(this->run(problem, with_lse),
                               this->run(problem, with_lse, {.dropout = {.probability = 0, .seed = 3}})));
    Answer<T> nothing = answer<TypeParam>(problem, Scores<T>{.dropout = {.probability = 1, .seed = 3}});
    this->expect_zero(nothing.out, "out");
    EXPECT_TRUE(same_bits(plain.lse, nothing.lse, s.lse()));
    const Gradients<T> got = this->run(problem, arrived, {.sinks = sinks, .dropout = {.probability = 1, .seed = 3}});
    for (const auto* const gradient : {&got.query, &got.key, &got.value, &got.sinks})
      this->expect_zero(*gradient, "a gradient");
  });
}

/// The factors of dropout, by the probabilities with and without it: with q = 0 and values that are one-hot, a row of
/// the output is a row of probabilities.
template <typename Operator, typename T>
reference::Tensor<RealOf<T>> dropout_factors(const Sizes& s, const longview::Dropout& dropout, bool causal = false) {
  Sizes probe = s;
  probe.head_dim = 1, probe.value_dim = s.keys;
  Random random(1);
  Problem<T> problem(probe, random);
  std::fill(problem.query.begin(), problem.query.end(), T(0)), std::fill(problem.key.begin(), problem.key.end(), T(0));
  std::fill(problem.value.begin(), problem.value.end(), T(0));
  for (Index b = 0; b < s.batch; ++b)
    for (Index h = 0; h < s.key_heads; ++h)
      for (Index j = 0; j < s.keys; ++j) problem.value_at(b, h, j, j) = 1;
  Scores<T> scores{.scale = 0.0, .dropout = dropout};
  if (causal) scores.causal = true;
  Answer<T> got = answer<Operator>(problem, scores);
  reference::Tensor<RealOf<T>> factors({s.batch, s.heads, s.queries, s.keys});
  const RealOf<T> kept = RealOf<T>(1) / (RealOf<T>(1) - static_cast<RealOf<T>>(dropout.probability));
  for (std::size_t at = 0; at < got.out.size(); ++at) factors.elements()[at] = got.out[at] != 0 ? kept : RealOf<T>(0);
  return factors;
}

/// As often as it says, and independently of everything but the seed and the place: instruction set, executor, layout,
/// the other items and heads, what scores say.
TYPED_TEST_P(GradientLaws, G06_ThePatternOfDropout) {
  using T = typename TypeParam::Element;
  Random random(606);
  Sizes s{2, 4, 2, 150, 150, 8, 150};
  for (const double probability : {0.1, 0.5}) {
    const longview::Dropout dropout{.probability = probability, .seed = 77};
    const auto factors = dropout_factors<TypeParam, T>(s, dropout);
    double seen = 0, dropped = 0;
    for (Index b = 0; b < s.batch; ++b)
      for (Index h = 0; h < s.heads; ++h)
        for (Index i = 0; i < s.queries; ++i)
          for (Index j = 0; j < s.keys; ++j)
            if (TypeParam::sees(s, i, j)) seen += 1, dropped += factors(b, h, i, j) == 0;
    // Six standard deviations of a binomial distribution.
    EXPECT_NEAR(dropped, probability * seen, 6 * std::sqrt(seen * probability * (1 - probability)));
    under_all_sets([&] { EXPECT_EQ(factors.elements(), (dropout_factors<TypeParam, T>(s, dropout).elements())); });
    const longview::Dropout other{.probability = probability, .seed = 78};
    EXPECT_NE(factors.elements(), (dropout_factors<TypeParam, T>(s, other).elements()));
    // Without softmax changing who sees whom, fewer heads and items have the same pattern.
    Sizes fewer = s;
    fewer.batch = 1, fewer.heads = 2, fewer.key_heads = 1;
    const auto part = dropout_factors<TypeParam, T>(fewer, dropout);
    for (Index h = 0; h < 2; ++h)
      for (Index i = 0; i < s.queries; ++i)
        for (Index j = 0; j < s.keys; ++j)
          ASSERT_EQ(part(0, h, i, j), factors(0, h, i, j)) << h << " " << i << " " << j;
  }
}

/// The backward pass drops what the forward pass dropped: within the bound of the reference given those factors.
TYPED_TEST_P(GradientLaws, G06_TheSamePatternBackwards) {
  using T = typename TypeParam::Element;
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    Random random(seed + 660);
    const Index keys = random.integer(1, 150), queries = TypeParam::same_lengths ? keys : random.integer(1, 150);
    const Sizes s{2, 4, 2, queries, keys, random.integer(1, 20), random.integer(1, 20)};
    const Problem<T> problem(s, random);
    const Arrived<T> arrived(s, random, random.chance(50));
    const longview::Dropout dropout{.probability = random.uniform(0.05, 0.9), .seed = seed};
    reference::Scores<RealOf<T>> exact;
    exact.offset = s.keys - s.queries;
    exact.dropout = dropout_factors<TypeParam, T>(s, dropout);
    const auto expected = exact_gradients(TypeParam(), problem, arrived, exact);
    under_all_sets([&] {
      EXPECT_TRUE(within_bound(std::string(TypeParam::name) + " dropout", expected,
                               this->run(problem, arrived, {.dropout = dropout})))
          << s << " probability " << dropout.probability << " seed " << seed;
    });
  }
}

// ---- Laws without tolerance

TYPED_TEST_P(GradientLaws, D03_ArrivingScaledByPowersOfTwo) {
  using T = typename TypeParam::Element;
  Random random(701);
  const Problem<T> problem(this->sizes(), random);
  const Arrived<T> arrived(problem.sizes, random, true);
  for (const T factor : {T(0x1p-20), T(-8), T(0x1p20)}) {
    Arrived<T> scaled = arrived;
    for (T& x : scaled.out) x *= factor;
    for (T& x : scaled.lse) x *= factor;
    under_all_sets([&] {
      Gradients<T> expected = this->run(problem, arrived);
      for (auto* const gradient : {&expected.query, &expected.key, &expected.value})
        for (T& x : *gradient) x = x * factor + T(0);  // zeros are positive
      EXPECT_TRUE(same_gradients(expected, this->run(problem, scaled))) << factor;
    });
  }
}

TYPED_TEST_P(GradientLaws, D04_BatchAndHeadsStandAlone) {
  using T = typename TypeParam::Element;
  Random random(704);
  Sizes s = this->sizes();
  s.key_heads = s.heads;
  const Problem<T> problem(s, random);
  const Arrived<T> arrived(s, random, true);
  under_all_sets([&] {
    Answer<T> forward = answer<TypeParam>(problem);
    const Gradients<T> whole = gradients_from<TypeParam>(problem, forward, arrived);
    Gradients<T> got(s, {});
    const auto part = [](const auto& view, Index item, Index head) { return view.slice(0, item, 1).slice(1, head, 1); };
    const auto out = forward.output(s);
    for (Index b = 0; b < s.batch; ++b)
      for (Index h = 0; h < s.heads; ++h)
        run_backward(TypeParam(), part(problem.query_view(), b, h), part(problem.key_view(), b, h),
                     part(problem.value_view(), b, h), Output<const T>(part(out.out, b, h), part(out.lse, b, h)),
                     {.out = part(arrived.out_view(s), b, h),
                      .lse = part(arrived.lse_view(s), b, h),
                      .query = part(got.query_view(), b, h),
                      .key = part(got.key_view(), b, h),
                      .value = part(got.value_view(), b, h)});
    EXPECT_TRUE(same_gradients(whole, got));
  });
}

/// Queries know nothing of who else reads their keys.
TYPED_TEST_P(GradientLaws, D05_GroupedHeadsAreRepeatedKeys) {
  using T = typename TypeParam::Element;
  Random random(707);
  Sizes s = this->sizes();
  s.heads = 6;
  for (const Index key_heads : {1, 2, 3}) {
    s.key_heads = key_heads;
    const Problem<T> problem(s, random);
    const Arrived<T> arrived(s, random);
    Sizes all = s;
    all.key_heads = s.heads;
    Problem<T> repeated(all, random);
    repeated.query = problem.query;
    for (Index b = 0; b < s.batch; ++b)
      for (Index h = 0; h < s.heads; ++h)
        for (Index j = 0; j < s.keys; ++j) {
          const Index from = h / (s.heads / key_heads);
          for (Index c = 0; c < s.head_dim; ++c) repeated.key_at(b, h, j, c) = problem.key_view()(b, from, j, c);
          for (Index c = 0; c < s.value_dim; ++c) repeated.value_at(b, h, j, c) = problem.value_view()(b, from, j, c);
        }
    under_all_sets([&] {
      EXPECT_TRUE(same_bits(this->run(repeated, arrived).query, this->run(problem, arrived).query, s.query()))
          << key_heads;
    });
  }
}

// ---- Against the reference

TYPED_TEST_P(GradientLaws, S16_S18_ManyDimensions) {
  using T = typename TypeParam::Element;
  Random random(816);
  for (Index dim = 1; dim <= 70; ++dim) {
    const Problem<T> problem({1, 2, 1, TypeParam::same_lengths ? 9 : 5, 9, dim, (dim * 37) % 70 + 1}, random);
    this->expect_bound(problem, Arrived<T>(problem.sizes, random), {});
  }
  for (const auto& [dim, value_dim] : {std::pair<Index, Index>{128, 192}, {1, 256}, {128, 1}, {100, 7}}) {
    const Problem<T> problem({1, 2, 1, 60, TypeParam::same_lengths ? 60 : 70, dim, value_dim}, random);
    this->expect_bound(problem, Arrived<T>(problem.sizes, random), {});
  }
}

TYPED_TEST_P(GradientLaws, S17_LengthsAroundEveryTile) {
  using T = typename TypeParam::Element;
  Random random(817);
  for (const Index keys :
       {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 95, 96, 97, 127, 128, 129, 200}) {
    const Problem<T> problem({1, 1, 1, TypeParam::same_lengths ? keys : 3, keys, 5, 6}, random, 2);
    this->expect_bound(problem, Arrived<T>(problem.sizes, random), {});
    if (TypeParam::same_lengths) continue;
    const Problem<T> many({1, 2, 1, keys, 20, 4, 3}, random);
    this->expect_bound(many, Arrived<T>(many.sizes, random), {});
    const Problem<T> square({1, 1, 1, keys, keys, 3, 4}, random);
    ScoresCase<T> causal;
    causal.causal = true;
    this->expect_bound(square, Arrived<T>(square.sizes, random), causal);
  }
}

TYPED_TEST_P(GradientLaws, S17_LengthsThatCrossRanges) {
  using T = typename TypeParam::Element;
  Random random(818);
  for (const Index keys : {2047, 2048, 2049}) {
    const Problem<T> problem({1, 2, 1, TypeParam::same_lengths ? keys : 3, keys, 3, 2}, random, 2);
    this->expect_bound(problem, Arrived<T>(problem.sizes, random), {});
    if (TypeParam::same_lengths) continue;
    const Problem<T> many({1, 1, 1, keys, 3, 3, 2}, random, 2);
    this->expect_bound(many, Arrived<T>(many.sizes, random), {});
  }
}

TYPED_TEST_P(GradientLaws, MixedOptions) {
  using T = typename TypeParam::Element;
  for (std::uint64_t seed = 0; seed < 150; ++seed) {
    Random random(seed + 8000);
    const Index key_heads = random.integer(1, 2), keys = random.integer(1, 150);
    const Sizes sizes{random.integer(1, 2),
                      key_heads * random.integer(1, 3),
                      key_heads,
                      TypeParam::same_lengths ? keys : random.integer(1, 100),
                      keys,
                      random.integer(1, 24),
                      random.integer(1, 24)};
    const Problem<T> problem(sizes, random, random.uniform(0.1, 2));
    const Arrived<T> arrived(sizes, random, random.chance(40));
    const bool placed = TypeParam::takes_slopes;
    this->expect_bound(problem, arrived, random_scores<T>(sizes, random, placed, placed),
                       "seed " + std::to_string(seed));
  }
}

/// The gradient of a bias may have extent 1 on any axis, which is then summed.
TYPED_TEST_P(GradientLaws, M11_GradientsOfBiasesOfAnyShape) {
  using T = typename TypeParam::Element;
  using Real = RealOf<T>;
  Random random(811);
  const Problem<T> problem({2, 4, 2, 40, TypeParam::same_lengths ? 40 : 70, 6, 5}, random);
  const Sizes& s = problem.sizes;
  const Arrived<T> arrived(s, random);
  ScoresCase<T> scores;
  scores.bias_shape = s.pairs(), scores.bias = random.values<T>(count_of(s.pairs()));
  scores.keep_shape = s.pairs(), scores.keep = random.bytes(count_of(s.pairs()), 80);
  const auto whole =
      exact_gradients(TypeParam(), problem, arrived, scores.exact_scores(s.keys - s.queries)).scores.bias;
  for (int axes = 0; axes < 16; ++axes) {
    Shape<4> shape = s.pairs();
    for (std::size_t axis = 0; axis < 4; ++axis)
      if ((axes >> axis & 1) != 0) shape[axis] = 1;
    reference::Sums<Real> sums(std::vector<Index>(shape.begin(), shape.end()));
    for (Index at = 0; at < count_of(s.pairs()); ++at) {
      const Shape<4> place = place_of(at, s.pairs());
      sums.repeated(place[0], place[1], place[2], place[3]).add(whole.element(to_size(at)));
    }
    const auto expected = reference::stored(sums, Exact<T>::precision);
    under_all_sets([&] {
      Answer<T> forward = answer<TypeParam>(problem, scores.view());
      std::vector<T> got(to_size(count_of(shape)), this->nan);
      AttentionGradients<T> gradients{.out = arrived.out_view(s)};
      gradients.scores.bias = {got.data(), shape};
      run_backward(TypeParam(), problem.query_view(), problem.key_view(), problem.value_view(), forward.output(s),
                   gradients, scores.view());
      EXPECT_TRUE(within_bound(std::string(TypeParam::name) + " d_bias, summed", expected, got, shape))
          << text_of(shape);
    });
  }
}

TYPED_TEST_P(GradientLaws, N01_N03_PeakedAndHugeScores) {
  using T = typename TypeParam::Element;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    Random random(seed + 8300);
    const Index length = random.integer(2, 90);
    const Problem<T> problem({1, 2, 2, length, length, random.integer(1, 8), 3}, random,
                             std::exp(random.uniform(1, 4)));
    this->expect_bound(problem, Arrived<T>(problem.sizes, random), {}, "seed " + std::to_string(seed));
  }
}

REGISTER_TYPED_TEST_SUITE_P(GradientLaws, S01_NoQueries, S02_NoKeys, S03_NoBatchOrHeads, S05_NoValues, G01_S15_OneKey,
                            S19_RowsFarApart, L01_L02_L07_AllLayouts, L01_L09_OnePackedBuffer, L03_RepeatedKeys,
                            L05_AllPhasesOfACacheLine, L16_GuardPages, M02_RowsMaskedEntirely,
                            M03_BiasOfMinusInfinityIsAMask, M11_RepeatedMasks, M27_M29_KeysBeyondTheLength,
                            M07_M08_M29_TilesMaskedEntirely, G03_NaNThatArrivesStaysWithItsRow,
                            G03_NaNThatArrivesAtARowWithoutKeysReachesNothing, G03_NothingArrives,
                            M29_PoisonShowsExactlyWhereItIsAttended, M29_PoisonOfOneQuery, M30_PoisonInTheWorkspace,
                            N12_NoFlagsFromWhatIsMasked, N12_NoFlagsFromScratch, N11_RoundingModes, G02_EverySubset,
                            GradientsAreOverwritten, G04_T01_T02_AnyExecutor, R02_R03_WorkspaceIsExact,
                            R02_ScratchStaysNearItsPromise, G05_DropoutOfNothingAndOfEverything,
                            G06_ThePatternOfDropout, G06_TheSamePatternBackwards, D03_ArrivingScaledByPowersOfTwo,
                            D04_BatchAndHeadsStandAlone, D05_GroupedHeadsAreRepeatedKeys, S16_S18_ManyDimensions,
                            S17_LengthsAroundEveryTile, S17_LengthsThatCrossRanges, MixedOptions,
                            M11_GradientsOfBiasesOfAnyShape, N01_N03_PeakedAndHugeScores);

struct GradientOperatorName {
  template <typename Operator>
  static std::string GetName(int) {
    return std::string(Operator::name) + (sizeof(typename Operator::Element) == 4 ? "_float" : "_double");
  }
};

}  // namespace test
