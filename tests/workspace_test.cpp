// SPDX-License-Identifier: Apache-2.0
// Memory of a call: what a rehearsal measures suffices, nothing else is allocated, and where there is none nothing breaks.
#include "longview/workspace.hpp"

#include <cstdlib>
#include <new>

#include "longview/eigen.hpp"
#include "test_gradients.hpp"

namespace {

// Of the whole program; a test sets `allowed` and reads `allocations`.
std::size_t allocations = 0, released = 0;
std::size_t allowed = static_cast<std::size_t>(-1);

void* allocate(std::size_t bytes) {
  if (allowed == 0) throw std::bad_alloc();
  --allowed, ++allocations;
  if (void* const memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t bytes) { return allocate(bytes); }
void* operator new[](std::size_t bytes) { return allocate(bytes); }
void operator delete(void* memory) noexcept {
  released += memory != nullptr;
  std::free(memory);
}
void operator delete[](void* memory) noexcept { operator delete(memory); }
void operator delete(void* memory, std::size_t) noexcept { operator delete(memory); }
void operator delete[](void* memory, std::size_t) noexcept { operator delete(memory); }

namespace {

using longview::ContractError;
using longview::DryRun;
using longview::Sequential;
using longview::TensorView;
using test::Answer;
using test::Index;
using test::Problem;
using test::Random;
using test::Scores;
using test::Sizes;

template <typename Operator>
class Workspace : public ::testing::Test {
 public:
  static constexpr Sizes sizes{2, 4, 2, 130, 130, 9, 10};

  Random random_{1};
  Problem<float> problem{sizes, random_};
  std::vector<std::uint8_t> keep = random_.bytes(130 * 130, 70);
  std::vector<float> bias = random_.values<float>(130 * 130), numbers = random_.values<float>(4);
  std::vector<Index> lengths{100, 130};

  /// Every field that is filled makes a check of its own run.
  std::vector<Scores<float>> all_scores() const {
    std::vector<Scores<float>> all(3);
    all[1].key_lengths = lengths, all[1].sinks = numbers, all[1].scale = 0.3, all[1].softcap = 4.0;
    if (!Operator::takes_masks) return all;
    all[1].keep_mask = {keep.data(), {1, 1, 130, 130}}, all[1].bias = {bias.data(), {1, 1, 130, 130}};
    if (Operator::takes_slopes) all[1].alibi_slopes = numbers, all[1].alignment = longview::Alignment::bottom_right;
    all[2].keep_mask = {keep.data(), {1, 1, 1, 130}};
    return all;
  }
  void call(Answer<float>& into, const Scores<float>& scores, longview::Run run) const {
    Operator::run(problem.query_view(), problem.key_view(), problem.value_view(), into.output(sizes), scores, run);
  }
  template <typename Executor>
  std::size_t measured(const Executor& executor, const Scores<float>& scores) const {
    DryRun dry;
    Answer<float> none(sizes);
    call(none, scores, longview::Run(executor, dry));
    EXPECT_TRUE(dry.ok()) << dry.error();
    return dry.workspace_bytes();
  }
};

TYPED_TEST_SUITE(Workspace, test::AllOperators<float>, test::TypeName);

TYPED_TEST(Workspace, R01_FailingAllocationsLeaveOutputsAlone) {
  const Answer<float> untouched(this->sizes);
  Answer<float> first(this->sizes);
  this->call(first, {}, {});  // the test's own static data
  test::under_all_sets([&] {
    for (const auto& scores : this->all_scores()) {
      Answer<float> got(this->sizes);
      bool failed = true;
      for (std::size_t number = 0; failed; ++number) {
        ASSERT_LT(number, 50U);
        const std::size_t held = allocations - released;
        allowed = number;
        failed = false;
        try {
          this->call(got, scores, {});
        } catch (const std::bad_alloc&) {
          failed = true;
        }
        allowed = static_cast<std::size_t>(-1);
        EXPECT_EQ(allocations - released, held) << "a leak at allocation " << number;
        EXPECT_TRUE(!failed || test::same_answer(this->sizes, untouched, got)) << number;
      }
      Answer<float> expected(this->sizes);
      this->call(expected, scores, {});
      EXPECT_TRUE(test::same_answer(this->sizes, expected, got));
    }
  });
}

TYPED_TEST(Workspace, R02_ExactWorkspaceAllocatesNothing) {
  const Sequential sequential;
  const test::Reversed four{4};
  test::under_all_sets([&] {
    int number = 0;
    for (const auto& scores : this->all_scores()) {
      Answer<float> expected(this->sizes), got(this->sizes);
      this->call(expected, scores, {});
      std::vector<std::byte> bytes(this->measured(sequential, scores)), more(this->measured(four, scores));
      const std::size_t before = allocations;
      this->call(got, scores, longview::Run(sequential, bytes));
      const std::size_t alone = allocations - before;
      EXPECT_TRUE(test::same_answer(this->sizes, expected, got));
      const std::size_t again = allocations;
      this->call(got, scores, longview::Run(four, more));
      const std::size_t together = allocations - again;
      EXPECT_TRUE(test::same_answer(this->sizes, expected, got));
      EXPECT_EQ(alone, 0U) << "scores " << number;
      EXPECT_EQ(together, 0U) << "scores " << number << ", four workers";
      ++number;
    }
  });
}

TYPED_TEST(Workspace, R02_OneAllocationWithoutWorkspace) {
  Answer<float> got(this->sizes);
  this->call(got, {}, {});  // the test's own static data
  const std::size_t before = allocations;
  this->call(got, {}, {});
  const std::size_t made = allocations - before;
  EXPECT_EQ(made, 1U);
}

TYPED_TEST(Workspace, R02_RehearsalsTouchNothing) {
  const Sequential sequential;
  const Answer<float> untouched(this->sizes);
  Answer<float> got(this->sizes);
  DryRun dry;
  this->call(got, {}, longview::Run(sequential, dry));
  EXPECT_TRUE(test::same_answer(this->sizes, untouched, got));
  // Data may be null yet.
  const auto null = [](const auto& shape) { return TensorView<float, 4>(nullptr, shape); };
  DryRun early;
  TypeParam::run(null(this->sizes.query()), null(this->sizes.key()), null(this->sizes.value()), null(this->sizes.out()), {},
                 longview::Run(sequential, early));
  EXPECT_TRUE(early.ok()) << early.error();
  EXPECT_EQ(early.workspace_bytes(), dry.workspace_bytes());
}

TYPED_TEST(Workspace, R03_OneByteShort) {
  const Sequential sequential;
  const Answer<float> untouched(this->sizes);
  Answer<float> got(this->sizes);
  const std::size_t needed = this->measured(sequential, {});
  for (const std::size_t size : {needed - 1, std::size_t{1}, std::size_t{0}}) {
    std::vector<std::byte> bytes(needed);
    const std::string text = test::error_of<ContractError>(
        [&] { this->call(got, {}, longview::Run(sequential, std::span(bytes).first(size))); });
    EXPECT_EQ(text, std::string(TypeParam::name) + ": run: workspace too small (got " + std::to_string(size) +
                        " bytes, expected " + std::to_string(needed) + ")");
  }
  EXPECT_TRUE(test::same_answer(this->sizes, untouched, got));
}

/// At any offset, with guard pages on both sides: nothing beside the workspace is used.
TYPED_TEST(Workspace, R02_WorkspaceAtAnyOffset) {
  const test::Reversed three{3};
  test::under_all_sets([&] {
    for (const auto& scores : this->all_scores()) {
      Answer<float> expected(this->sizes);
      this->call(expected, scores, {});
      const std::size_t needed = this->measured(three, scores);
      for (std::size_t offset = 0; offset < 64; offset += offset < 8 ? 1 : 7) {
        using Side = test::Guarded<std::byte>::Side;
        const test::Guarded<std::byte> high(static_cast<Index>(needed + offset), Side::before_page),
            low(static_cast<Index>(needed + offset), Side::after_page);
        Answer<float> got(this->sizes);
        this->call(got, scores, longview::Run(three, std::span(high.data(), needed)));
        EXPECT_TRUE(test::same_answer(this->sizes, expected, got)) << offset;
        this->call(got, scores, longview::Run(three, std::span(low.data() + offset, needed)));
        EXPECT_TRUE(test::same_answer(this->sizes, expected, got)) << offset;
        const test::Guarded<std::byte> end(static_cast<Index>(needed), Side::before_page);
        this->call(got, scores, longview::Run(three, std::span(end.data(), needed)));
        EXPECT_TRUE(test::same_answer(this->sizes, expected, got)) << offset;
      }
    }
  });
}

TYPED_TEST(Workspace, M30_WhatTheWorkspaceHeldIsIrrelevant) {
  const Sequential sequential;
  test::under_all_sets([&] {
    for (const auto& scores : this->all_scores()) {
      Answer<float> expected(this->sizes);
      this->call(expected, scores, {});
      std::vector<std::byte> bytes(this->measured(sequential, scores));
      for (const int fill : {0x00, 0xff, 0x7f, 0x80}) {
        std::memset(bytes.data(), fill, bytes.size());
        Answer<float> got(this->sizes);
        this->call(got, scores, longview::Run(sequential, bytes));
        EXPECT_TRUE(test::same_answer(this->sizes, expected, got)) << fill;
      }
    }
  });
}

TYPED_TEST(Workspace, ScratchStaysNearItsPromise) {
  const Sequential sequential;
  for (const Index length : {64, 4096, 100000}) {
    const TensorView<float, 4> query(nullptr, {1, 8, length, 128}), key(nullptr, {1, 2, length, 128});
    DryRun dry;
    if constexpr (requires { TypeParam::most_distances; })
      if (length > TypeParam::most_distances) continue;
    TypeParam::run(query, key, key, query, {}, longview::Run(sequential, dry));
    ASSERT_TRUE(dry.ok()) << dry.error();
    EXPECT_LE(dry.workspace_bytes(), TypeParam::most_scratch) << length;
  }
}

// ---- L14: Eigen

template <typename Matrix>
class EigenViews : public ::testing::Test {};
using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ColumnMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic>;
using Matrices = ::testing::Types<RowMajor, ColumnMajor>;
TYPED_TEST_SUITE(EigenViews, Matrices);

TYPED_TEST(EigenViews, L14_MatricesMapsRefsAndBlocks) {
  const Index length = 70, heads = 3, width = 15;
  Random random(14);
  const Problem<float> problem({1, heads, heads, length, length, 5, 5}, random);
  const auto expected = test::answer<test::FullAttention<float>>(problem);
  const auto heads_of = [&](auto& matrix) { return longview::split_heads(longview::view(matrix), heads); };
  TypeParam query(length, width), key(length, width), value(length, width), out(length, width), large(200, 100);
  test::assign(heads_of(query), problem.query), test::assign(heads_of(key), problem.key);
  test::assign(heads_of(value), problem.value);
  const Sequential sequential;
  std::vector<std::byte> bytes(1 << 20);
  const auto run = [&](auto& q, auto& k, auto& v, auto& o) {
    const std::size_t before = allocations;
    longview::full_attention(heads_of(q), heads_of(k), heads_of(v), heads_of(o), {}, longview::Run(sequential, bytes));
    const std::size_t made = allocations - before;
    EXPECT_EQ(made, 0U);
    EXPECT_TRUE(test::same_bits(expected.out, test::copy_of(heads_of(o)), problem.sizes.out()));
    test::assign(heads_of(o), std::vector<float>(expected.out.size()));
  };
  run(query, key, value, out);
  const TypeParam& const_query = query;
  run(const_query, key, value, out);
  Eigen::Map<const TypeParam> map(key.data(), length, width);
  Eigen::Ref<TypeParam> reference(value);
  auto block = large.block(11, 7, length, width);
  run(query, map, reference, block);
  auto corner = large.block(0, 40, length, width);
  corner = query;
  run(corner, key, value, out);
  Eigen::Map<TypeParam, 0, Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>> strided(
      large.data(), length, width,
      TypeParam::IsRowMajor ? Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>(100, 2)
                            : Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>(200, 2));
  run(query, key, value, strided);
}

// ---- Backward calls

template <typename Operator>
class BackwardWorkspace : public Workspace<Operator> {};
using OperatorsOfKeys = ::testing::Types<test::FullAttention<float>, test::SlidingWindowAttention<float>,
                                         test::LongformerAttention<float>, test::RelativeAttention<float>>;
TYPED_TEST_SUITE(BackwardWorkspace, OperatorsOfKeys, test::TypeName);

TYPED_TEST(BackwardWorkspace, R01_R02_AsForwardCalls) {
  const test::Arrived<float> arrived(this->sizes, this->random_, true);
  const Sequential sequential;
  const test::Reversed four{4};
  test::under_all_sets([&] {
    for (const auto& scores : this->all_scores()) {
      Answer<float> forward(this->sizes);
      this->call(forward, scores, {});
      const test::Gradients<float> untouched(this->sizes, scores);
      test::Gradients<float> expected = untouched, got = untouched;
      const auto call = [&](test::Gradients<float>& into, longview::Run run) {
        test::run_backward(TypeParam(), this->problem.query_view(), this->problem.key_view(), this->problem.value_view(),
                           forward.output(this->sizes), into.views(arrived), scores, run);
      };
      call(expected, {});
      bool failed = true;
      for (std::size_t number = 0; failed; ++number) {
        ASSERT_LT(number, 50U);
        const std::size_t held = allocations - released;
        allowed = number;
        failed = false;
        try {
          call(got, {});
        } catch (const std::bad_alloc&) {
          failed = true;
        }
        allowed = static_cast<std::size_t>(-1);
        EXPECT_EQ(allocations - released, held) << "a leak at allocation " << number;
        EXPECT_TRUE(!failed || test::same_gradients(untouched, got)) << number;
      }
      EXPECT_TRUE(test::same_gradients(expected, got));
      const std::size_t before = allocations;
      call(got, {});
      EXPECT_EQ(allocations - before, 1U) << "without a workspace";
      const auto expect_none = [&](const auto& executor) {
        DryRun dry;
        call(got, longview::Run(executor, dry));
        ASSERT_TRUE(dry.ok()) << dry.error();
        std::vector<std::byte> bytes(dry.workspace_bytes());
        const std::size_t start = allocations;
        call(got, longview::Run(executor, bytes));
        EXPECT_EQ(allocations - start, 0U);
        EXPECT_TRUE(test::same_gradients(expected, got));
      };
      expect_none(sequential), expect_none(four);
    }
  });
}

}  // namespace
