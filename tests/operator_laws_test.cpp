// SPDX-License-Identifier: Apache-2.0
// What holds for every operator, bit for bit: shapes with nothing in them, tensors wherever they lie, items and heads that
// know nothing of each other.
#include "test_operators.hpp"

namespace {

using test::Answer;
using test::Guarded;
using test::Index;
using test::Output;
using test::Problem;
using test::Random;
using test::Scores;
using test::Shape;
using test::Sizes;
using test::Stored;
using test::TensorView;
using test::all_layouts;
using test::assign;
using test::copy_of;
using test::count_of;
using test::same_answer;
using test::same_bits;
using test::to_size;
using test::under_all_sets;

template <typename Operator>
class OperatorLaws : public test::OperatorTest<Operator> {
 public:
  using Number = typename Operator::Element;

  /// Items and rows so many elements apart, in memory of which only the pages in use exist.
  static void expect_the_same_far_apart(const Sizes& s, Index item, Index row) {
    const std::size_t bytes = to_size(item * (s.batch - 1) + row * (s.keys - 1) + 256) * sizeof(Number);
    void* const memory =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) GTEST_SKIP() << "no address space for " << bytes << " bytes";
    Random random(19);
    const Problem<Number> problem(s, random);
    const auto far = [&](Index at, Index channels) {
      return TensorView<Number, 4>(static_cast<Number*>(memory) + at, {s.batch, 1, s.keys, channels}, {item, 1, row, 1});
    };
    const auto query = far(0, s.head_dim), key = far(64, s.head_dim), value = far(128, s.value_dim),
               out = far(192, s.value_dim);
    assign(query, problem.query), assign(key, problem.key), assign(value, problem.value);
    under_all_sets([&] {
      Operator::run(query, key, value, out);
      EXPECT_TRUE(same_bits(OperatorLaws::run(problem).out, copy_of(out), s.out()));
    });
    munmap(memory, bytes);
  }
};
TYPED_TEST_SUITE(OperatorLaws, test::AllOperatorsOfBothNumbers, test::TypeName);

// ---- Shapes and sizes

TYPED_TEST(OperatorLaws, S01_NoQueries) {
  using T = typename TypeParam::Element;
  Random random(1);
  const Problem<T> problem({2, 4, 2, 0, TypeParam::same_lengths ? 0 : 5, 3, 3}, random);
  under_all_sets([&] { EXPECT_NO_THROW(this->run(problem)); });
}

TYPED_TEST(OperatorLaws, S03_NoBatch) {
  using T = typename TypeParam::Element;
  Random random(3);
  const Problem<T> problem({0, 4, 2, 6, 6, 3, 3}, random);
  under_all_sets([&] { EXPECT_NO_THROW(this->run(problem)); });
}

TYPED_TEST(OperatorLaws, S03_NoHeads) {
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

TYPED_TEST(OperatorLaws, S05_NoValues) {
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

TYPED_TEST(OperatorLaws, S19_RowsFarApart) {
  this->expect_the_same_far_apart({1, 1, 1, 4, 4, 5, 6}, 1, (Index{1} << 31) + 7);
}

TYPED_TEST(OperatorLaws, S20_BatchFarApart) {
  this->expect_the_same_far_apart({2, 1, 1, 7, 7, 5, 6},
                                  (Index{1} << 33) / static_cast<Index>(sizeof(typename TypeParam::Element)) + 11, 256);
}

// ---- Layouts

TYPED_TEST(OperatorLaws, L01_L02_AllLayouts) {
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
      EXPECT_TRUE(!TypeParam::gives_lse || same_bits(expected.lse, lse.copy(), s.lse())) << "turn " << turn;
      EXPECT_TRUE(out.filler_is_intact() && lse.filler_is_intact()) << "turn " << turn;
    }
  });
}

TYPED_TEST(OperatorLaws, L01_L09_OnePackedBuffer) {
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

TYPED_TEST(OperatorLaws, L03_L04_RepeatedKeys) {
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

TYPED_TEST(OperatorLaws, L05_AllPhasesOfACacheLine) {
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

TYPED_TEST(OperatorLaws, L16_GuardPages) {
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
        Scores<T> masked{};
        if (TypeParam::takes_masks)
          masked = {.keep_mask = {mask.data(), {1, 1, length, length}}, .bias = {biases.data(), {1, 1, length, length}}};
        under_all_sets([&] {
          for (const Scores<T>& scores : {Scores<T>{}, masked})
            TypeParam::run({query.data(), s.query()}, {key.data(), s.key()}, {value.data(), s.value()},
                           {TensorView<T, 4>(out.data(), s.out()), TensorView<T, 3>(lse.data(), s.lse())}, scores);
        });
      }
    }
}

// ---- Laws without tolerance

TYPED_TEST(OperatorLaws, D03_ValuesScaledByPowersOfTwo) {
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

TYPED_TEST(OperatorLaws, D04_BatchAndHeadsStandAlone) {
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

TYPED_TEST(OperatorLaws, D04_PermutedBatchAndHeads) {
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

TYPED_TEST(OperatorLaws, D05_GroupedHeadsAreRepeatedKeys) {
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

}  // namespace
