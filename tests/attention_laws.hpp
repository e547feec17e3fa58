// SPDX-License-Identifier: Apache-2.0
// What holds for every softmax operator, bit for bit where it can. Each operator's test instantiates it for its types.
#pragma once

#include <cfenv>

#include "test_operators.hpp"

namespace test {

template <typename Operator>
class AttentionLaws : public ::testing::Test {
 public:
  using Number = typename Operator::Element;
  static constexpr Number infinity = std::numeric_limits<Number>::infinity();
  static constexpr Number nan = std::numeric_limits<Number>::quiet_NaN();

  /// More rows than a block has, more keys than a tile, dimensions that fill no vector.
  static Sizes sizes() { return {2, 4, 2, 75, Operator::same_lengths ? 75 : 133, 19, 21}; }
  static Sizes small(Index queries, Index keys) {
    return {1, 1, 1, Operator::same_lengths ? keys : queries, keys, 3, 5};
  }
  static Answer<Number> run(const Problem<Number>& problem, const Scores<Number>& scores = {}, longview::Run how = {}) {
    return answer<Operator, Number>(problem, scores, how);
  }
  /// A mask of every (query, key) of one batch item and head.
  static Scores<Number> with_mask(const std::vector<std::uint8_t>& keep, const Sizes& s) {
    return {.keep_mask = {keep.data(), {1, 1, s.queries, s.keys}}};
  }
  static TensorView<Number, 4> rows(Answer<Number>& of, const Sizes& s) { return of.output(s).out; }
  static TensorView<Number, 3> lse(Answer<Number>& of, const Sizes& s) { return of.output(s).lse; }
};
TYPED_TEST_SUITE_P(AttentionLaws);

// ---- Shapes and sizes

TYPED_TEST_P(AttentionLaws, S01_NoQueries) {
  using T = typename TypeParam::Element;
  Random random(1);
  const Problem<T> problem({2, 4, 2, 0, TypeParam::same_lengths ? 0 : 5, 3, 3}, random);
  under_all_sets([&] { EXPECT_NO_THROW(this->run(problem)); });
}

TYPED_TEST_P(AttentionLaws, S02_NoKeys) {
  using T = typename TypeParam::Element;
  if (TypeParam::same_lengths) GTEST_SKIP() << "queries are keys";
  Random random(2);
  const Problem<T> problem({2, 4, 2, 60, 0, 3, 3}, random);
  under_all_sets([&] {
    const Answer<T> got = this->run(problem);
    for (const T x : got.out) ASSERT_EQ(bits_of(x), bits_of(T(0)));
    for (const T x : got.lse) ASSERT_EQ(x, -this->infinity);
  });
}

TYPED_TEST_P(AttentionLaws, S03_NoBatch) {
  using T = typename TypeParam::Element;
  Random random(3);
  const Problem<T> problem({0, 4, 2, 6, 6, 3, 3}, random);
  under_all_sets([&] { EXPECT_NO_THROW(this->run(problem)); });
}

TYPED_TEST_P(AttentionLaws, S03_NoHeads) {
  using T = typename TypeParam::Element;
  Random random(3);
  const Problem<T> some_key_heads({2, 0, 2, 6, 6, 3, 3}, random), no_key_heads({2, 0, 0, 6, 6, 3, 3}, random);
  EXPECT_EXIT(
      {
        under_all_sets([&] {
          this->run(some_key_heads);
          this->run(no_key_heads);
        });
        std::exit(0);
      },
      ::testing::ExitedWithCode(0), "");
}

TYPED_TEST_P(AttentionLaws, S05_NoValues) {
  using T = typename TypeParam::Element;
  Random random(5);
  Sizes sizes = this->sizes();
  const Problem<T> whole(sizes, random);
  Problem<T> problem = whole;
  problem.sizes.value_dim = 0, problem.value.clear();
  under_all_sets([&] {
    Answer<T> got(problem.sizes);
    const Output<T> output{TensorView<T, 4>(nullptr, problem.sizes.out()),
                           TensorView<T, 3>(got.lse.data(), problem.sizes.lse())};
    TypeParam::run(problem.query_view(), problem.key_view(), {nullptr, problem.sizes.value()}, output);
    EXPECT_TRUE(same_bits(this->run(whole).lse, got.lse, sizes.lse()));
  });
}

TYPED_TEST_P(AttentionLaws, S15_OneKeyGivesItsValue) {
  using T = typename TypeParam::Element;
  Random random(15);
  for (const Index dim : {1, 2, 15, 16, 17, 70}) {
    const Problem<T> problem({3, 4, 4, 1, 1, dim, dim}, random, 3);
    under_all_sets([&] { EXPECT_TRUE(same_bits(problem.value, this->run(problem).out, problem.sizes.out())); });
  }
}

TYPED_TEST_P(AttentionLaws, S19_RowsFarApart) {
  using T = typename TypeParam::Element;
  constexpr Index stride = (Index{1} << 31) + 7, length = 4;
  const std::size_t bytes = to_size(stride * (length - 1) + 256) * sizeof(T);
  void* const memory =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) GTEST_SKIP() << "no room for a sparse mapping";
  Random random(19);
  const Problem<T> problem({1, 1, 1, length, length, 5, 6}, random);
  T* const first = static_cast<T*>(memory);
  const auto far = [&](Index at, Index channels) {
    return TensorView<T, 4>(first + at, {1, 1, length, channels}, {1, 1, stride, 1});
  };
  assign(far(0, 5), problem.query), assign(far(64, 5), problem.key), assign(far(128, 6), problem.value);
  under_all_sets([&] {
    TypeParam::run(far(0, 5), far(64, 5), far(128, 6), far(192, 6));
    EXPECT_TRUE(same_bits(this->run(problem).out, copy_of(far(192, 6)), problem.sizes.out()));
  });
  munmap(memory, bytes);
}

TYPED_TEST_P(AttentionLaws, S20_BatchFarApart) {
  using T = typename TypeParam::Element;
  constexpr Index stride = (Index{1} << 33) / static_cast<Index>(sizeof(T)) + 11;
  const std::size_t bytes = to_size(stride + 2048) * sizeof(T);
  void* const memory =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) GTEST_SKIP() << "no room for a sparse mapping";
  Random random(20);
  const Problem<T> problem({2, 1, 1, 7, 7, 5, 6}, random);
  T* const first = static_cast<T*>(memory);
  const auto far = [&](Index at, Index channels) {
    return TensorView<T, 4>(first + at, {2, 1, 7, channels}, {stride, 1, 256, 1});
  };
  assign(far(0, 5), problem.query), assign(far(64, 5), problem.key), assign(far(128, 6), problem.value);
  under_all_sets([&] {
    TypeParam::run(far(0, 5), far(64, 5), far(128, 6), far(192, 6));
    EXPECT_TRUE(same_bits(this->run(problem).out, copy_of(far(192, 6)), problem.sizes.out()));
  });
  munmap(memory, bytes);
}

// ---- Layouts

TYPED_TEST_P(AttentionLaws, L01_L02_AllLayouts) {
  using T = typename TypeParam::Element;
  Random random(101);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  under_all_sets([&] {
    const Answer<T> expected = this->run(problem);
    constexpr std::size_t count = std::size(all_layouts);
    for (std::size_t turn = 0; turn < 2 * count; ++turn) {
      const auto layout = [&](std::size_t tensor) { return all_layouts[(turn + (turn < count ? 0 : tensor)) % count]; };
      Stored<T> query(s.query(), layout(0), problem.query), key(s.key(), layout(1), problem.key),
          value(s.value(), layout(2), problem.value), out(s.out(), layout(3));
      Stored<T, 3> lse(s.lse(), layout(4));
      TypeParam::run(query.view(), key.view(), value.view(), {out.view(), lse.view()});
      EXPECT_TRUE(same_bits(expected.out, out.copy(), s.out())) << "turn " << turn;
      EXPECT_TRUE(same_bits(expected.lse, lse.copy(), s.lse())) << "turn " << turn;
      EXPECT_TRUE(out.filler_is_intact() && lse.filler_is_intact()) << "turn " << turn;
    }
  });
}

TYPED_TEST_P(AttentionLaws, L01_L09_OnePackedBuffer) {
  using T = typename TypeParam::Element;
  Random random(109);
  Sizes s{2, 3, 3, 40, 40, 8, 8};
  const Problem<T> problem(s, random);
  // (batch, length, query | key | value | out, heads, dim)
  std::vector<T> memory(to_size(s.batch * s.queries * 4 * s.heads * s.head_dim), this->nan);
  const TensorView<T, 5> all(memory.data(), {s.batch, s.queries, 4, s.heads, s.head_dim});
  const auto part = [&](Index which) { return all.select(2, which).transpose(1, 2); };
  under_all_sets([&] {
    assign(part(0), problem.query), assign(part(1), problem.key), assign(part(2), problem.value);
    TypeParam::run(part(0), part(1), part(2), part(3));
    EXPECT_TRUE(same_bits(this->run(problem).out, copy_of(part(3)), s.out()));
  });
}

TYPED_TEST_P(AttentionLaws, L03_L04_RepeatedKeys) {
  using T = typename TypeParam::Element;
  Random random(103);
  for (const Index keys : {65, 129}) {
    Sizes s{3, 4, 4, keys, keys, 7, 9};
    Problem<T> problem(s, random);
    // The keys of item 0, head 0, for all.
    const auto key = problem.key_view().slice(0, 0, 3, 0).slice(1, 0, 4, 0);
    const auto value = problem.value_view().slice(0, 0, 3, 0).slice(1, 0, 4, 0);
    under_all_sets([&] {
      Problem<T> copied = problem;
      copied.key = copy_of(key), copied.value = copy_of(value);
      Answer<T> got(s);
      TypeParam::run(problem.query_view(), key, value, got.output(s));
      EXPECT_TRUE(same_answer(s, this->run(copied), got));
    });
  }
}

TYPED_TEST_P(AttentionLaws, L05_AllPhasesOfACacheLine) {
  using T = typename TypeParam::Element;
  Random random(105);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  const auto phased = [](const std::vector<T>& values, Index phase) {
    std::vector<T> memory(values.size() + 128 / sizeof(T));
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data());
    const auto first = static_cast<Index>((64 - address % 64) % 64 / sizeof(T)) + phase;
    std::copy(values.begin(), values.end(), memory.begin() + first);
    return std::pair(std::move(memory), first);
  };
  under_all_sets([&] {
    const Answer<T> expected = this->run(problem);
    for (Index phase = 0; phase < 64 / static_cast<Index>(sizeof(T)); ++phase) {
      const auto query = phased(problem.query, phase), key = phased(problem.key, phase),
                 value = phased(problem.value, phase);
      auto out = phased(expected.out, phase);
      std::fill(out.first.begin(), out.first.end(), T(0));
      TypeParam::run({query.first.data() + query.second, s.query()}, {key.first.data() + key.second, s.key()},
                     {value.first.data() + value.second, s.value()},
                     TensorView<T, 4>(out.first.data() + out.second, s.out()));
      EXPECT_TRUE(
          same_bits(expected.out, copy_of(TensorView<T, 4>(out.first.data() + out.second, s.out())), s.out()))
          << "phase " << phase;
    }
  });
}

TYPED_TEST_P(AttentionLaws, L12_NullDataWithoutElements) {
  using T = typename TypeParam::Element;
  if (TypeParam::same_lengths) GTEST_SKIP() << "queries are keys";
  const Sizes s{1, 1, 1, 3, 0, 2, 2};
  Random random(112);
  const Problem<T> problem(s, random);
  Answer<T> got(s);
  EXPECT_NO_THROW(
      TypeParam::run(problem.query_view(), {nullptr, s.key()}, {nullptr, s.value()}, got.output(s)));
}

TYPED_TEST_P(AttentionLaws, L16_GuardPages) {
  using T = typename TypeParam::Element;
  Random random(116);
  for (const Index length : {1, 3, 64, 65, 100})
    for (const Index dim : {1, 3, 16, 17}) {
      const Problem<T> problem({1, 2, 1, length, length, dim, dim == 17 ? 5 : dim}, random);
      const Sizes& s = problem.sizes;
      const auto keep = random.bytes(length * length, 60);
      const auto bias = random.values<T>(length * length);
      using Side = typename Guarded<T>::Side;
      for (const Side side : {Side::before_page, Side::after_page}) {
        const Guarded<T> query(count_of(s.query()), side, problem.query), key(count_of(s.key()), side, problem.key),
            value(count_of(s.value()), side, problem.value), out(count_of(s.out()), side),
            lse(count_of(s.lse()), side), biases(length * length, side, bias);
        const auto byte_side =
            side == Side::before_page ? Guarded<std::uint8_t>::Side::before_page : Guarded<std::uint8_t>::Side::after_page;
        const Guarded<std::uint8_t> mask(length * length, byte_side, keep);
        Scores<T> masked{.keep_mask = {mask.data(), {1, 1, length, length}}, .bias = {biases.data(), {1, 1, length, length}}};
        under_all_sets([&] {
          for (const Scores<T>& scores : {Scores<T>{}, masked})
            TypeParam::run({query.data(), s.query()}, {key.data(), s.key()}, {value.data(), s.value()},
                           {TensorView<T, 4>(out.data(), s.out()), TensorView<T, 3>(lse.data(), s.lse())}, scores);
        });
      }
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

TYPED_TEST_P(AttentionLaws, M27_KeyLengthsAreMasks) {
  using T = typename TypeParam::Element;
  if (TypeParam::same_lengths) GTEST_SKIP() << "there, queries beyond the length are padding, too";
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

/// A NaN score is not forgotten when a larger score, or the first finite one, comes along.
TYPED_TEST_P(AttentionLaws, M29_NaNScoresStayVisible) {
  using T = typename TypeParam::Element;
  if (!TypeParam::sees_everything) GTEST_SKIP() << "the rule is tested where every key is seen";
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
        under_all_sets([&] {
          const Answer<T> got = this->run(problem);
          EXPECT_TRUE(std::isnan(got.out[0]) && std::isnan(got.lse[0]))
              << count << " NaN keys from " << from << " on, the last key " << later << ": " << got.out[0] << ", "
              << got.lse[0];
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

TYPED_TEST_P(AttentionLaws, N02_OneScoreFarAbove) {
  using T = typename TypeParam::Element;
  if (!TypeParam::sees_everything) GTEST_SKIP() << "the rule is tested where every key is seen";
  Random random(302);
  for (const Index winner : {0, 1, 63, 64, 100, 2047, 2048, 2999}) {
    Problem<T> problem({1, 1, 1, 60, 3000, 1, 7}, random);
    std::fill(problem.query.begin(), problem.query.end(), T(1));
    std::fill(problem.key.begin(), problem.key.end(), T(0));
    problem.key[to_size(winner)] = 2000;
    under_all_sets([&] {
      Answer<T> got = this->run(problem);
      for (Index i = 0; i < 60; ++i)
        for (Index c = 0; c < 7; ++c)
          ASSERT_EQ(this->rows(got, problem.sizes)(0, 0, i, c), problem.value_at(0, 0, winner, c)) << winner;
    });
  }
}

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

TYPED_TEST_P(AttentionLaws, N07_ValuesNearTheLargest) {
  using T = typename TypeParam::Element;
  if (!TypeParam::sees_everything) GTEST_SKIP() << "the rule is tested where every key is seen";
  const T huge = std::numeric_limits<T>::max() * T(0.9);
  Random random(307);
  Problem<T> problem({1, 1, 1, 1, 130, 1, 1}, random);
  problem.query[0] = 1;
  std::fill(problem.key.begin(), problem.key.end(), T(0));
  std::fill(problem.value.begin(), problem.value.end(), T(1));
  problem.value[0] = problem.value[1] = huge;
  under_all_sets([&] {
    EXPECT_EQ(this->run(problem).out[0], this->infinity);
    // Where a later key takes all the weight, nothing of the overflow is left.
    problem.key[100] = 5000;
    EXPECT_EQ(this->run(problem).out[0], T(1));
    problem.key[100] = 0;
  });
}

TYPED_TEST_P(AttentionLaws, N10_SubnormalInputs) {
  using T = typename TypeParam::Element;
  if (!TypeParam::sees_everything) GTEST_SKIP() << "the rule is tested where every key is seen";
  Random random(310);
  Problem<T> problem({1, 2, 1, 50, 70, 5, 6}, random, 1);
  const T tiny = std::numeric_limits<T>::min() / 8;
  for (auto* const all : {&problem.query, &problem.key, &problem.value})
    for (T& x : *all) x *= tiny;
  const auto expected = reference_attention(problem, ScoresCase<T>{});
  auto flushed = expected;
  for (auto& radius : flushed.out.radius.elements())
    radius += static_cast<RealOf<T>>(std::numeric_limits<T>::min()) * RealOf<T>(70);
  under_all_sets([&] {
    EXPECT_TRUE(within_bound("subnormal", problem.sizes, expected, this->run(problem)));
#if defined(__SSE2__)
    const unsigned control = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(control | 0x8040);
    const Answer<T> got = this->run(problem);
    const unsigned after = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(control);
    EXPECT_TRUE(within_bound("subnormal, flushed", problem.sizes, flushed, got));
    EXPECT_EQ(after & 0x8040, 0x8040U);
#endif
  });
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

TYPED_TEST_P(AttentionLaws, N14_NegativeScaleMirrorsTheKeys) {
  using T = typename TypeParam::Element;
  if (std::string(TypeParam::name) == "relative_attention") GTEST_SKIP() << "positions do not change their sign";
  Random random(317);
  const Problem<T> problem(this->sizes(), random);
  Problem<T> mirrored = problem;
  for (T& x : mirrored.key) x = -x;
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

// ---- Laws without tolerance

TYPED_TEST_P(AttentionLaws, D03_ValuesScaledByPowersOfTwo) {
  using T = typename TypeParam::Element;
  Random random(403);
  const Problem<T> problem(this->sizes(), random);
  for (const T factor : {T(0x1p-20), T(-8), T(0x1p20)}) {
    Problem<T> scaled = problem;
    for (T& x : scaled.value) x *= factor;
    under_all_sets([&] {
      Answer<T> expected = this->run(problem);
      for (T& x : expected.out) x *= factor;
      EXPECT_TRUE(same_answer(problem.sizes, expected, this->run(scaled)));
    });
  }
}

TYPED_TEST_P(AttentionLaws, D04_BatchAndHeadsStandAlone) {
  using T = typename TypeParam::Element;
  Random random(404);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  under_all_sets([&] {
    Answer<T> whole = this->run(problem), got(s);
    for (Index b = 0; b < s.batch; ++b)
      for (Index h = 0; h < s.heads; ++h) {
        const Index key_head = h / (s.heads / s.key_heads);
        const auto part = [](const auto& view, Index item, Index head) { return view.slice(0, item, 1).slice(1, head, 1); };
        TypeParam::run(part(problem.query_view(), b, h), part(problem.key_view(), b, key_head),
                       part(problem.value_view(), b, key_head),
                       {part(this->rows(got, s), b, h), part(this->lse(got, s), b, h)});
      }
    EXPECT_TRUE(same_answer(s, whole, got));
  });
}

TYPED_TEST_P(AttentionLaws, D04_PermutedBatchAndHeads) {
  using T = typename TypeParam::Element;
  Random random(405);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  under_all_sets([&] {
    const Answer<T> expected = this->run(problem);
    Answer<T> got(s);
    const auto turned = [](const auto& view) {
      return view.slice(0, view.extent(0) - 1, view.extent(0), -1).slice(1, view.extent(1) - 1, view.extent(1), -1);
    };
    TypeParam::run(turned(problem.query_view()), turned(problem.key_view()), turned(problem.value_view()),
                   {turned(this->rows(got, s)), turned(this->lse(got, s))});
    EXPECT_TRUE(same_answer(s, expected, got));
  });
}

TYPED_TEST_P(AttentionLaws, D04_PermutedQueries) {
  using T = typename TypeParam::Element;
  if (!TypeParam::equivariant_in_queries) GTEST_SKIP() << "positions matter";
  Random random(406);
  const Problem<T> problem(this->sizes(), random);
  const Sizes& s = problem.sizes;
  const auto order = random.permutation(s.queries);
  under_all_sets([&] {
    Answer<T> expected = this->run(problem);
    Problem<T> permuted = problem;
    Answer<T> moved(s);
    for (Index b = 0; b < s.batch; ++b)
      for (Index h = 0; h < s.heads; ++h)
        for (Index i = 0; i < s.queries; ++i) {
          const Index from = order[to_size(i)];
          for (Index c = 0; c < s.head_dim; ++c)
            permuted.query[to_size(((b * s.heads + h) * s.queries + i) * s.head_dim + c)] =
                problem.query_view()(b, h, from, c);
          for (Index c = 0; c < s.value_dim; ++c)
            this->rows(moved, s)(b, h, i, c) = this->rows(expected, s)(b, h, from, c);
          this->lse(moved, s)(b, h, i) = this->lse(expected, s)(b, h, from);
        }
    EXPECT_TRUE(same_answer(s, moved, this->run(permuted)));
  });
}

TYPED_TEST_P(AttentionLaws, D05_GroupedHeadsAreRepeatedKeys) {
  using T = typename TypeParam::Element;
  Random random(407);
  Sizes s = this->sizes();
  s.heads = 6;
  for (const Index key_heads : {1, 2, 3}) {
    s.key_heads = key_heads;
    const Problem<T> problem(s, random);
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
    under_all_sets([&] { EXPECT_TRUE(same_answer(s, this->run(repeated), this->run(problem))) << key_heads; });
  }
}

REGISTER_TYPED_TEST_SUITE_P(AttentionLaws, S01_NoQueries, S02_NoKeys, S03_NoBatch, S03_NoHeads, S05_NoValues,
                            S15_OneKeyGivesItsValue, S19_RowsFarApart, S20_BatchFarApart, L01_L02_AllLayouts,
                            L01_L09_OnePackedBuffer, L03_L04_RepeatedKeys, L05_AllPhasesOfACacheLine,
                            L12_NullDataWithoutElements, L16_GuardPages, M01_RowsMaskedEntirely,
                            M03_BiasOfMinusInfinityIsAMask, M04_HugeNegativeBiasIsNoMask, M05_M06_BiasThatIsNotFinite,
                            M07_M08_TilesMaskedEntirely, M08_OneOpenKeyAtEachPosition, M09_EveryByteBesidesZeroKeeps,
                            M11_RepeatedMasks, M27_KeyLengthsAreMasks, M29_PoisonShowsExactlyWhereItIsAttended,
                            M29_PoisonOfOneQueryStaysInItsRow, M29_NaNScoresStayVisible, M30_PoisonInTheWorkspace,
                            N02_OneScoreFarAbove, N03_ScoresOfMinus1e30, N06_ScoresThatOverflow,
                            N07_ValuesNearTheLargest, N10_SubnormalInputs, N11_RoundingModes, N12_NoFlagsFromMaskedKeys,
                            N12_NoFlagsFromPairMasks, N12_NoFlagsFromRowsWithoutKeys, N12_NoFlagsFromScratch,
                            N13_ScaleZeroIsTheMean, N14_NegativeScaleMirrorsTheKeys, N15_ZeroesOfEitherSign,
                            N18_SoftcapsOfAnySize, D03_ValuesScaledByPowersOfTwo, D04_BatchAndHeadsStandAlone,
                            D04_PermutedBatchAndHeads, D04_PermutedQueries, D05_GroupedHeadsAreRepeatedKeys);

struct OperatorName {
  template <typename Operator>
  static std::string GetName(int) {
    return std::string(Operator::name) + (sizeof(typename Operator::Element) == 4 ? "_float" : "_double");
  }
};

}  // namespace test
