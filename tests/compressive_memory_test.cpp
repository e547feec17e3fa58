// SPDX-License-Identifier: Apache-2.0
#include "longview/compressive_memory.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <longview/full_attention.hpp>
#include <longview/relative_attention.hpp>
#include <string>
#include <utility>
#include <vector>

#include "operator_inputs.hpp"
#include "reference/compressive_gradient.hpp"

namespace {

using namespace inputs;
using longview::KeyValueView;
using longview::MemoryLengths;

/// The elements of a view in row-major order.
template <typename T>
std::vector<T> values(const TensorView<const T, 4>& view) {
  std::vector<T> all;
  for (Index b = 0; b < view.extent(0); ++b)
    for (Index h = 0; h < view.extent(1); ++h)
      for (Index r = 0; r < view.extent(2); ++r)
        for (Index c = 0; c < view.extent(3); ++c) all.push_back(view(b, h, r, c));
  return all;
}

/// What a memory shows.
template <typename T>
struct Contents {
  std::vector<T> memory, compressed;
  Index rows, slots;

  explicit Contents(const longview::CompressiveMemory<T>& of)
      : memory(values<T>(of.memory())),
        compressed(values<T>(of.compressed())),
        rows(of.memory().extent(2)),
        slots(of.compressed().extent(2)) {}
  friend bool operator==(const Contents& a, const Contents& b) {
    return a.rows == b.rows && a.slots == b.slots && same_bits(a.memory, b.memory) &&
           same_bits(a.compressed, b.compressed);
  }
};

// ---- the queues

enum class Kind { mean, maximum, convolution };

template <typename T>
struct Compression {
  reference::Projection<Real<T>> expected;
  Laid<T, 3> weight;
  Laid<T, 2> bias;

  Compression(Kind kind, Index rate, Index width)
      : expected{.mean_pool = kind == Kind::mean ? rate : 0, .max_pool = kind == Kind::maximum ? rate : 0},
        weight(kind == Kind::convolution ? normal<T>({width, width, rate}, 8) : reference::Tensor<Real<T>>()),
        bias(normal<T>({1, width}, 9)) {
    if (kind == Kind::convolution) expected.convolution = normal<T>({width, width, rate}, 8);
    expected.channel_bias = normal<T>({1, width}, 9);
  }
  longview::Projection<T> view() {
    return {.mean_pool = expected.mean_pool,
            .max_pool = expected.max_pool,
            .convolution = weight.view(),
            .channel_bias = bias.view()};
  }
};

struct Stream {
  Kind kind;
  Index rate;
  MemoryLengths lengths;
  std::vector<Index> pushes;
};

template <typename T>
void expect_stream(const Stream& stream, Layout layout) {
  const Index batch = 2, heads = 2, width = 5;
  Compression<T> compression(stream.kind, stream.rate, width);
  longview::CompressiveMemory<T> memory({batch, heads, width}, stream.lengths);
  reference::CompressiveMemory<Real<T>> expected(batch, heads, width,
                                                 {stream.lengths.memory, stream.lengths.compressed});
  unsigned seed = 1;
  for (const Index rows : stream.pushes) {
    const auto segment = normal<T>({batch, heads, rows, width}, ++seed);
    const auto pushed = memory.push(Laid<T, 4>(segment, layout).view(), compression.view());
    const auto step = expected.push(segment, compression.expected, precision_of<T>());
    ASSERT_EQ(pushed.evicted.shape(), (longview::Shape<4>{batch, heads, step.evicted.extent(2), width}));
    ASSERT_EQ(pushed.compressed.shape(), (longview::Shape<4>{batch, heads, step.compressed.extent(2), width}));
    ASSERT_EQ(memory.memory().extent(2), expected.memory.extent(2));
    ASSERT_EQ(memory.compressed().extent(2), expected.compressed.extent(2));
    reference::Bounded<Real<T>> evicted(step.evicted.shape()), kept(expected.memory.shape());
    evicted.value = step.evicted, kept.value = expected.memory;
    EXPECT_TRUE(within(evicted, values<T>(pushed.evicted)));
    EXPECT_TRUE(within(kept, values<T>(memory.memory())));
    EXPECT_TRUE(within(step.compressed, values<T>(pushed.compressed)));
    if (expected.compressed.extent(2) > 0) {
      reference::Bounded<Real<T>> slots = expected.compressed;
      slots.radius = radius_of(slots);
      EXPECT_TRUE(within(slots, values<T>(memory.compressed())));
    }
  }
}

const Stream streams[] = {
    {Kind::mean, 3, {6, 4}, {4, 4, 4, 4, 4, 4, 4, 4, 4}},
    {Kind::maximum, 2, {5, 3}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
    {Kind::convolution, 4, {8, 2}, {8, 8, 8, 8}},
    {Kind::convolution, 1, {4, 3}, {4, 4, 4}},
    {Kind::mean, 3, {4, 2}, {0, 5, 0, 40, 1, 2}},
    {Kind::maximum, 3, {0, 4}, {2, 2, 2, 7, 1}},
    {Kind::mean, 2, {6, 0}, {5, 5, 5, 5}},
    {Kind::mean, 5, {0, 0}, {3, 3, 9}},
};

TEST(CompressiveMemory, QueuesFollowTheReference) {
  on_every_set([] {
    for (const Stream& stream : streams)
      for (const Layout layout : all_layouts) {
        SCOPED_TRACE(stream.rate);
        expect_stream<float>(stream, layout);
        expect_stream<double>(stream, layout);
      }
  });
}

TEST(CompressiveMemory, C01RateOneKeepsEveryRow) {
  const auto rows = normal<float>({1, 2, 30, 4}, 1);
  Laid<float, 4> all(rows);
  for (const longview::Projection<float>& identity :
       {longview::Projection<float>{.mean_pool = 1}, longview::Projection<float>{.max_pool = 1},
        longview::Projection<float>{.most_used = 1}}) {
    longview::CompressiveMemory<float> memory({1, 2, 4}, {7, 23});
    for (Index first = 0; first < 30; first += 5) memory.push(all.view().slice(2, first, 5), identity);
    EXPECT_TRUE(same_bits(values<float>(memory.compressed()), values<float>(all.view().slice(2, 0, 23))));
    EXPECT_TRUE(same_bits(values<float>(memory.memory()), values<float>(all.view().slice(2, 23, 7))));
  }
}

TEST(CompressiveMemory, C02PushesOfOneTwoAndSevenInAnyOrderEqualOneOfTen) {
  on_every_set([] {
    const auto rows = normal<float>({2, 1, 10, 6}, 3);
    Laid<float, 4> all(rows);
    for (const Kind kind : {Kind::mean, Kind::maximum, Kind::convolution})
      for (const MemoryLengths& lengths : {MemoryLengths{0, 9}, MemoryLengths{4, 9}, MemoryLengths{3, 1}}) {
        Compression<float> compression(kind, 3, 6);
        longview::CompressiveMemory<float> once({2, 1, 6}, lengths);
        once.push(all.view(), compression.view());
        std::vector<Index> order{1, 2, 7};
        do {
          longview::CompressiveMemory<float> memory({2, 1, 6}, lengths);
          Index first = 0;
          for (const Index count : order)
            memory.push(all.view().slice(2, first, count), compression.view()), first += count;
          EXPECT_EQ(Contents<float>(memory), Contents<float>(once));
        } while (std::next_permutation(order.begin(), order.end()));
      }
  });
}

TEST(CompressiveMemory, C03APushLongerThanBothQueues) {
  std::vector<float> rows(50);
  for (std::size_t r = 0; r < rows.size(); ++r) rows[r] = static_cast<float>(r);
  longview::CompressiveMemory<float> memory({1, 1, 1}, {5, 3});
  const auto pushed = memory.push(TensorView<const float, 4>(rows.data(), {1, 1, 50, 1}), {.max_pool = 2});
  // 45 rows too many: 44 leave in pairs, the 45th stays as the oldest.
  EXPECT_EQ(pushed.evicted.extent(2), 44);
  EXPECT_EQ(pushed.compressed.extent(2), 22);
  EXPECT_EQ(values<float>(memory.memory()), (std::vector<float>{44, 45, 46, 47, 48, 49}));
  EXPECT_EQ(values<float>(memory.compressed()), (std::vector<float>{39, 41, 43}));
}

TEST(CompressiveMemory, C04NoMemory) {
  std::vector<float> rows{1, 2, 3, 4, 5};
  const TensorView<const float, 4> segment(rows.data(), {1, 1, 5, 1});
  longview::CompressiveMemory<float> straight({1, 1, 1}, {0, 8}), forgetful({1, 1, 1}, {2, 0});
  straight.push(segment, {.mean_pool = 2});
  EXPECT_EQ(values<float>(straight.memory()), (std::vector<float>{5}));
  EXPECT_EQ(values<float>(straight.compressed()), (std::vector<float>{1.5, 3.5}));
  EXPECT_EQ(forgetful.push(segment, {.mean_pool = 1}).compressed.extent(2), 3);
  EXPECT_EQ(values<float>(forgetful.memory()), (std::vector<float>{4, 5}));
  EXPECT_EQ(forgetful.compressed().extent(2), 0);
}

class MemoryErrors : public ::testing::Test {
 protected:
  using View3 = TensorView<const float, 3>;
  using View2 = TensorView<const float, 2>;

  std::string text(const longview::Projection<float>& compression, const longview::Shape<4>& shape = {1, 2, 4, 3}) {
    const Contents<float> before(memory);
    const std::string found = error_of([&](longview::Run run) { memory.push({rows.data(), shape}, compression, run); });
    if (found != "no error") {
      EXPECT_EQ(Contents<float>(memory), before);
    }
    return found.substr(0, found.find(": ")) == "CompressiveMemory::push" ? found.substr(found.find(": ") + 2) : found;
  }
  void SetUp() override { memory.push({rows.data(), {1, 2, 7, 3}}, {.mean_pool = 2}); }

  std::vector<float> rows = std::vector<float>(60, 1), weights = std::vector<float>(60, 1);
  longview::CompressiveMemory<float> memory{{1, 2, 3}, {4, 5}};
};

TEST_F(MemoryErrors, C04Rates) {
  const std::string kinds = "compression: exactly one of mean_pool, max_pool, convolution, most_used ";
  EXPECT_EQ(text({}), kinds + "(got 0, expected 1)");
  EXPECT_EQ(text({.mean_pool = 2, .most_used = 2}), kinds + "(got 2, expected 1)");
  EXPECT_EQ(text({.max_pool = -1}), "compression: rate must be >= 1 (got -1)");
  EXPECT_EQ(text({.convolution = View3(weights.data(), {3, 3, 0})}), "compression: rate must be >= 1 (got 0)");
  EXPECT_EQ(text({.mean_pool = 5}), "compression: rate must not exceed the memory length (got 5, expected at most 4)");
  EXPECT_EQ(text({.most_used = 5}), "compression: rate must not exceed the memory length (got 5, expected at most 4)");
  EXPECT_EQ(text({.mean_pool = 4}), "no error");
}

TEST_F(MemoryErrors, D07ShapesAndCompressions) {
  EXPECT_EQ(text({.mean_pool = 2}, {1, 2, 4, 4}), "segment: width (got 4, expected 3 from the memory)");
  EXPECT_EQ(text({.mean_pool = 2}, {2, 2, 4, 3}), "segment: batch (got 2, expected 1 from the memory)");
  EXPECT_EQ(text({.mean_pool = 2}, {1, 1, 4, 3}), "segment: heads (got 1, expected 2 from the memory)");
  EXPECT_EQ(text({.matrix = View3(weights.data(), {1, 2, 4})}),
            "compression.matrix: has no rate, and rows arrive one after another");
  EXPECT_EQ(text({.mean_pool = 2, .slot_bias = View2(weights.data(), {1, 2})}),
            "compression.slot_bias: has no meaning where slots arrive one after another");
  EXPECT_EQ(text({.most_used = 2, .channel_bias = View2(weights.data(), {1, 3})}),
            "compression.channel_bias: has no meaning for rows that are kept as they are");
  EXPECT_EQ(text({.mean_pool = 2, .channel_bias = View2(weights.data(), {1, 4})}),
            "compression.channel_bias: shape (got 1x4, expected 1x3)");
  EXPECT_EQ(text({.convolution = View3(weights.data(), {4, 3, 2})}),
            "compression.convolution: dim out (got 4, expected 3 from the memory)");
  EXPECT_EQ(text({.convolution = View3(weights.data(), {3, 2, 2})}),
            "compression.convolution: dim in (got 2, expected 3 from the memory)");
  EXPECT_EQ(text({.mean_pool = 2}), "no error");
}

TEST(CompressiveMemory, S10ErrorsOfTheConstructorAndOfUse) {
  const auto text = [](const longview::Shape<3>& shape, const MemoryLengths& lengths) {
    return error_of([&](longview::Run run) {
      if (longview::DryRun* rehearsal = run.rehearsal()) {
        try {
          longview::CompressiveMemory<float>(shape, lengths);
        } catch (const longview::ContractError& error) {
          rehearsal->report_error(error.what());
        }
      } else {
        longview::CompressiveMemory<float>(shape, lengths);
      }
    });
  };
  EXPECT_EQ(text({1, 1, 4}, {-1, 0}), "CompressiveMemory: lengths.memory: must be >= 0 (got -1)");
  EXPECT_EQ(text({1, 1, 4}, {0, -2}), "CompressiveMemory: lengths.compressed: must be >= 0 (got -2)");
  EXPECT_EQ(text({1, 1, 0}, {}), "CompressiveMemory: batch_heads_width: width must be >= 1 (got 0)");
  EXPECT_EQ(text({-1, 1, 1}, {}), "CompressiveMemory: batch_heads_width: batch must be >= 0 (got -1)");

  longview::CompressiveMemory<float> memory({1, 1, 2}, {4, 4});
  std::vector<float> rows(20, 1), received(10, 1);
  memory.push(TensorView<const float, 4>(rows.data(), {1, 1, 8, 2}), {.mean_pool = 2});
  try {
    memory.record_use(TensorView<const float, 2>(received.data(), {1, 5}));
    FAIL();
  } catch (const longview::ContractError& error) {
    EXPECT_STREQ(error.what(), "CompressiveMemory::record_use: received: shape (got 1x5, expected 1x6)");
  }
}

TEST_F(MemoryErrors, T03R03AFailureInsideChangesNothing) {
  const Contents<float> before(memory);
  const longview::Projection<float> compression{.convolution = View3(weights.data(), {3, 3, 2})};
  struct Failed {};
  const longview::Parallel broken{2, [](Index, longview::TaskBody) { throw Failed(); }};
  EXPECT_THROW(memory.push({rows.data(), {1, 2, 9, 3}}, compression, broken), Failed);
  EXPECT_EQ(Contents<float>(memory), before);
  longview::DryRun rehearsal;
  memory.push({rows.data(), {1, 2, 9, 3}}, compression, {longview::Sequential(), rehearsal});
  ASSERT_TRUE(rehearsal.ok());
  ASSERT_GT(rehearsal.workspace_bytes(), 0U);
  EXPECT_EQ(Contents<float>(memory), before);
  std::vector<std::byte> workspace(rehearsal.workspace_bytes());
  EXPECT_THROW(memory.push({rows.data(), {1, 2, 9, 3}}, compression,
                           {longview::Sequential(), std::span(workspace).first(workspace.size() - 1)}),
               longview::ContractError);
  EXPECT_EQ(Contents<float>(memory), before);
  memory.push({rows.data(), {1, 2, 9, 3}}, compression, {longview::Sequential(), workspace});
  EXPECT_EQ(memory.compressed().extent(2), 5);
}

TEST_F(MemoryErrors, D08CopiesAndMoves) {
  const Contents<float> before(memory);
  longview::CompressiveMemory<float> copy = memory;
  memory.push({rows.data(), {1, 2, 9, 3}}, {.mean_pool = 2});
  EXPECT_FALSE(Contents<float>(memory) == before);
  EXPECT_EQ(Contents<float>(copy), before);
  memory = copy;
  EXPECT_EQ(Contents<float>(memory), before);
  const longview::CompressiveMemory<float> moved = std::move(copy);
  EXPECT_EQ(Contents<float>(moved), before);
  const Contents<float> left(copy);  // NOLINT: a moved-from memory is empty
  EXPECT_EQ(left.rows, 0);
  EXPECT_EQ(left.slots, 0);
  copy.push({rows.data(), {1, 2, 9, 3}}, {.mean_pool = 2});
  EXPECT_EQ(copy.memory().extent(2), 5);
  copy = std::move(memory);
  EXPECT_EQ(Contents<float>(copy), before);
  EXPECT_EQ(memory.memory().extent(2), 0);  // NOLINT
  copy.reset();
  EXPECT_EQ(copy.memory().extent(2) + copy.compressed().extent(2), 0);
}

TEST(CompressiveMemory, PushesOfItsOwnRows) {
  const auto rows = normal<float>({1, 2, 8, 3}, 4);
  Laid<float, 4> segment(rows);
  longview::CompressiveMemory<float> memory({1, 2, 3}, {5, 4}), other = memory;
  memory.push(segment.view(), {.mean_pool = 2});
  other.push(segment.view(), {.mean_pool = 2});
  const std::vector<float> copy = values<float>(memory.memory());
  const Index held = memory.memory().extent(2);
  memory.push(memory.memory(), {.mean_pool = 2});
  other.push({copy.data(), {1, 2, held, 3}}, {.mean_pool = 2});
  EXPECT_EQ(Contents<float>(memory), Contents<float>(other));
}

TEST(CompressiveMemory, T01T02EveryExecutorGivesTheSameBits) {
  on_every_set([] {
    const auto rows = normal<float>({2, 2, 300, 24}, 4);
    Laid<float, 4> segment(rows);
    Compression<float> compression(Kind::convolution, 3, 24);
    longview::CompressiveMemory<float> expected({2, 2, 24}, {40, 90});
    expected.push(segment.view(), compression.view());
    on_every_executor([&](const auto& executor) {
      longview::CompressiveMemory<float> memory({2, 2, 24}, {40, 90});
      memory.push(segment.view(), compression.view(), executor);
      EXPECT_EQ(Contents<float>(memory), Contents<float>(expected));
    });
  });
}

// ---- use

TEST(CompressiveMemory, MostUsedRowsStayInOrderOfTime) {
  // Width 2, two heads, two items; rows are numbered, the heads and items told apart.
  const auto numbered = [](Index first, Index count) {
    reference::Tensor<double> rows({2, 2, count, 2});
    for (Index b = 0; b < 2; ++b)
      for (Index h = 0; h < 2; ++h)
        for (Index r = 0; r < count; ++r)
          for (Index c = 0; c < 2; ++c)
            rows(b, h, r, c) = static_cast<double>(1000 * b + 100 * h + first + r) + 0.5 * static_cast<double>(c);
    return rows;
  };
  const auto numbers = [](const TensorView<const float, 4>& view, Index item, Index head) {
    std::vector<float> all;
    for (Index r = 0; r < view.extent(2); ++r)
      all.push_back(view(item, head, r, 0) - static_cast<float>(1000 * item + 100 * head));
    return all;
  };
  longview::CompressiveMemory<float> memory({2, 2, 2}, {6, 5});
  memory.push(Laid<float, 4>(numbered(0, 6)).view(), {.most_used = 2});
  // Twice, so that use accumulates: item 0 ends with 4 6 2 8 6 0, item 1 with nothing but ties and what is not finite.
  std::vector<float> use{2, 3, 1, 4, 3, 0, 1, 1, nan_value, 1, 1, 1};
  memory.record_use(TensorView<const float, 2>(use.data(), {2, 6}));
  memory.record_use(TensorView<const float, 2>(use.data(), {2, 6}));
  const auto first = memory.push(Laid<float, 4>(numbered(6, 4)).view(), {.most_used = 2});
  for (const Index head : {0, 1}) {
    EXPECT_EQ(numbers(first.evicted, 0, head), (std::vector<float>{0, 1, 2, 3}));
    EXPECT_EQ(numbers(first.compressed, 0, head), (std::vector<float>{1, 3}));
    EXPECT_EQ(numbers(first.compressed, 1, head), (std::vector<float>{0, 1}));
    EXPECT_EQ(numbers(memory.memory(), 0, head), (std::vector<float>{4, 5, 6, 7, 8, 9}));
  }
  EXPECT_EQ(first.compressed(0, 1, 1, 1), 103.5F);
  // Use travels with its row: row 4 brings its 6 along, the others have what they get now.
  std::vector<float> more(16, 0);
  more[2 + 1] = 7, more[2 + 3] = 6.5;
  memory.record_use(TensorView<const float, 2>(more.data(), {2, 8}));
  const auto second = memory.push(Laid<float, 4>(numbered(10, 4)).view(), {.most_used = 2});
  EXPECT_EQ(numbers(second.evicted, 0, 0), (std::vector<float>{4, 5, 6, 7}));
  EXPECT_EQ(numbers(second.compressed, 0, 1), (std::vector<float>{5, 7}));
  EXPECT_EQ(numbers(memory.compressed(), 0, 0), (std::vector<float>{1, 3, 5, 7}));
}

TEST(CompressiveMemory, MostUsedEqualsTheReferencesChoice) {
  const Index rows = 120, rate = 4;
  const auto segment = normal<float>({1, 1, rows, 1}, 5);
  auto use = normal<float>({1, rows}, 6);
  for (double& x : use.elements()) x = std::floor(3 * x);  // with many ties
  longview::CompressiveMemory<float> memory({1, 1, 1}, {rows, rows});
  memory.push(Laid<float, 4>(segment).view(), {.most_used = rate});
  memory.record_use(Laid<float, 2>(use, Layout::backwards).view());
  const auto pushed = memory.push(Laid<float, 4>(normal<float>({1, 1, 80, 1}, 7)).view(), {.most_used = rate});
  const std::vector<double> of_evicted(use.elements().begin(), use.elements().begin() + 80);
  std::vector<float> expected;
  for (const Index row : reference::most_used(of_evicted, 80 / rate))
    expected.push_back(static_cast<float>(segment(0, 0, row, 0)));
  EXPECT_TRUE(same_bits(values<float>(pushed.compressed), expected));
}

// ---- attention over it

TEST(CompressiveMemory, C01C05SegmentsEqualTheConcatenationBitwise) {
  on_every_set([] {
    const Index heads = 2, dim = 24, now = 21;
    Laid<float, 4> old_rows(normal<float>({2, heads, 90, dim}, 1)), old_values(normal<float>({2, heads, 90, dim}, 2));
    Laid<float, 4> q(normal<float>({2, heads, now, dim}, 3)), k(normal<float>({2, heads, now, dim}, 4)),
        v(normal<float>({2, heads, now, dim}, 5));
    Laid<float, 3> position(normal<float>({heads, 200, dim}, 6));
    Laid<float, 2> bias(normal<float>({heads, dim}, 7));
    longview::CompressiveMemory<float> keys({2, heads, dim}, {30, 15}), contents({2, heads, dim}, {30, 15});
    for (const Index first : {0, 45}) {
      keys.push(old_rows.view().slice(2, first, 45), {.mean_pool = 3});
      contents.push(old_values.view().slice(2, first, 45), {.mean_pool = 3});
    }
    const KeyValueView<float> segments{
        {keys.compressed(), contents.compressed()}, {keys.memory(), contents.memory()}, {k.view(), v.view()}};
    const auto joined = [](const KeyValueView<float>& of, bool value) {
      std::vector<TensorView<const float, 4>> pieces;
      Index rows = 0;
      for (std::size_t s = 0; s < of.size(); ++s)
        pieces.push_back(value ? of[s].value : of[s].key), rows += pieces.back().extent(2);
      reference::Tensor<double> all({2, heads, rows, dim});
      Index first = 0;
      for (const auto& piece : pieces) {
        for (Index b = 0; b < 2; ++b)
          for (Index h = 0; h < heads; ++h)
            for (Index r = 0; r < piece.extent(2); ++r)
              for (Index c = 0; c < dim; ++c) all(b, h, first + r, c) = piece(b, h, r, c);
        first += piece.extent(2);
      }
      return Laid<float, 4>(all);
    };
    Laid<float, 4> all_keys = joined(segments, false), all_values = joined(segments, true);
    const Index slots = keys.compressed().extent(2);
    ASSERT_EQ(slots, 15);
    // C05: also with every slot masked.
    for (const bool masked : {false, true}) {
      reference::Tensor<int> keep({1, 1, 1, all_keys.view().extent(2)}, 1);
      for (Index j = 0; j < slots && masked; ++j) keep(0, 0, 0, j) = 0;
      Laid<std::uint8_t, 4> mask(keep);
      const longview::RelativeOptions<float> options{.position = position.view(),
                                                     .content_bias = bias.view(),
                                                     .position_bias = bias.view(),
                                                     .scores = {.keep_mask = mask.view()}};
      auto out = room<float, 4>({2, heads, now, dim}), expected = out;
      auto lse = room<float, 3>({2, heads, now}), expected_lse = lse;
      longview::relative_attention(q.view(), segments, {out.view(), lse.view()}, options);
      longview::relative_attention(q.view(), all_keys.view(), all_values.view(), {expected.view(), expected_lse.view()},
                                   options);
      EXPECT_TRUE(same_bits(out.values(), expected.values()));
      EXPECT_TRUE(same_bits(lse.values(), expected_lse.values()));
      const longview::Scores<float> scores{
          .causal = true, .alignment = longview::Alignment::bottom_right, .keep_mask = mask.view()};
      longview::full_attention(q.view(), segments, {out.view(), lse.view()}, scores);
      longview::full_attention(q.view(), all_keys.view(), all_values.view(), {expected.view(), expected_lse.view()},
                               scores);
      EXPECT_TRUE(same_bits(out.values(), expected.values()));
    }
  });
}

// ---- received attention

struct Shape {
  Index batch, heads, key_heads, queries, keys, dim;
};

template <typename T>
struct Received {
  Shape shape;
  reference::Tensor<Real<T>> query, key;
  reference::Scores<Real<T>> scores{};
  Layout layout = Layout::packed;

  explicit Received(const Shape& of)
      : shape(of),
        query(normal<T>({of.batch, of.heads, of.queries, of.dim}, 1)),
        key(normal<T>({of.batch, of.key_heads, of.keys, of.dim}, 2)) {
    scores.offset = of.keys - of.queries;
  }

  reference::Bounded<Real<T>> expected() const {
    return reference::received_attention<Real<T>>(query, key, scores, {}, precision_of<T>());
  }
  std::vector<T> operator()(longview::Run run = {}, const std::vector<Index>& cuts = {}) {
    Laid<T, 4> q(query, layout), k(key, layout), bias(scores.bias, layout), out(query, layout);
    Laid<std::uint8_t, 4> mask(scores.keep_mask, layout);
    Laid<T, 3> lse = room<T, 3>({shape.batch, shape.heads, shape.queries}, layout);
    Laid<T, 2> received = room<T, 2>({shape.batch, shape.keys}, layout);
    const std::vector<T> slopes(scores.alibi_slopes.begin(), scores.alibi_slopes.end());
    const std::vector<T> sinks(scores.sinks.begin(), scores.sinks.end());
    longview::Scores<T> options{.causal = scores.causal,
                                .key_lengths = scores.key_lengths,
                                .keep_mask = mask.view(),
                                .bias = bias.view(),
                                .alibi_slopes = slopes,
                                .sinks = sinks};
    if (scores.scale) options.scale = static_cast<double>(*scores.scale);
    if (scores.softcap) options.softcap = static_cast<double>(*scores.softcap);
    const KeyValueView<T> whole{k.view(), k.view()};
    longview::full_attention(q.view(), whole, {out.view(), lse.view()}, options);
    const longview::Output<const T> result(TensorView<const T, 4>(out.view()), TensorView<const T, 3>(lse.view()));
    if (cuts.empty()) {
      longview::received_attention(q.view(), whole, result, received.view(), options, run);
    } else {
      const auto piece = [&](std::size_t i) {
        const auto rows = k.view().slice(2, cuts[i], cuts[i + 1] - cuts[i]);
        return longview::KeyValue<T>{rows, rows, {}};
      };
      longview::received_attention(q.view(), KeyValueView<T>{piece(0), piece(1), piece(2)}, result, received.view(),
                                   options, run);
    }
    return received.values();
  }
};

const Shape shapes[] = {{1, 1, 1, 1, 1, 1},    {2, 4, 2, 33, 70, 16}, {1, 2, 2, 130, 200, 5},
                        {1, 3, 1, 7, 1100, 8}, {2, 2, 2, 50, 20, 33}, {1, 1, 1, 97, 65, 64}};

/// Each option alone, then together.
template <typename T, typename Body>
void with_every_option(const Shape& shape, const Body& body) {
  for (int option = 0; option < 9; ++option) {
    SCOPED_TRACE(option);
    Received<T> call(shape);
    const auto is = [option](int number) { return option == number || option == 8; };
    if (is(1)) call.scores.causal = true;
    if (is(2)) call.scores.softcap = Real<T>(1.5);
    if (is(3)) call.scores.scale = Real<T>(0.25);
    if (is(4)) call.scores.bias = normal<T>({1, shape.heads, shape.queries, shape.keys}, 3);
    if (is(5))
      for (Index h = 0; h < shape.heads; ++h)
        call.scores.alibi_slopes.push_back(Real<T>(0.25) / static_cast<Real<T>>(h + 1));
    if (is(6))
      for (Index h = 0; h < shape.heads; ++h) call.scores.sinks.push_back(Real<T>(0.5) * static_cast<Real<T>>(h));
    if (is(7)) {
      call.scores.keep_mask = reference::Tensor<std::uint8_t>({shape.batch, 1, shape.queries, shape.keys});
      std::mt19937 generator(5);
      for (auto& keep : call.scores.keep_mask.elements()) keep = generator() % 3 != 0;
      for (Index j = 0; j < shape.keys; ++j) call.scores.keep_mask(0, 0, 0, j) = 0;
      for (Index b = 0; b < shape.batch; ++b) call.scores.key_lengths.push_back(shape.keys - b * (shape.keys / 3));
    }
    body(call);
  }
}

TEST(ReceivedAttention, WithinTheCertifiedBound) {
  on_every_set([] {
    for (const Shape& shape : shapes) {
      SCOPED_TRACE(shape.keys);
      with_every_option<float>(shape, [](Received<float>& call) { EXPECT_TRUE(within(call.expected(), call())); });
      with_every_option<double>(shape, [](Received<double>& call) { EXPECT_TRUE(within(call.expected(), call())); });
    }
  });
}

TEST(ReceivedAttention, L01L02LayoutsAndSegmentsGiveTheSameBits) {
  on_every_set([] {
    with_every_option<float>(shapes[1], [](Received<float>& call) {
      const auto expected = call();
      for (const Layout layout : all_layouts) {
        call.layout = layout;
        EXPECT_TRUE(same_bits(call(), expected));
        EXPECT_TRUE(same_bits(call({}, {0, 13, 37, 70}), expected));
        EXPECT_TRUE(same_bits(call({}, {0, 0, 64, 70}), expected));
      }
    });
  });
}

TEST(ReceivedAttention, T01T02EveryExecutorGivesTheSameBits) {
  on_every_set([] {
    Received<float> call({2, 3, 1, 40, 1500, 8});
    call.scores.causal = true;
    const auto expected = call();
    on_every_executor([&](const auto& executor) { EXPECT_TRUE(same_bits(call(executor), expected)); });
  });
}

TEST(ReceivedAttention, ProbabilitiesSumToOne) {
  Received<double> call({1, 2, 2, 60, 300, 16});
  double sum = 0;
  for (const double share : call()) sum += share;
  EXPECT_NEAR(sum, 1, 1e-13);
}

TEST(ReceivedAttention, D1OneOpenKeyGetsEverything) {
  on_every_set([] {
    Received<float> call({1, 2, 2, 40, 90, 8});
    call.scores.keep_mask = reference::Tensor<std::uint8_t>({1, 1, 1, 90});
    call.scores.keep_mask(0, 0, 0, 71) = 2;
    std::vector<float> expected(90, 0);
    expected[71] = 1;
    EXPECT_EQ(call(), expected);
  });
}

TEST(ReceivedAttention, M29NonFiniteKeys) {
  on_every_set([] {
    Received<float> call({1, 1, 1, 20, 40, 4});
    call.scores.causal = true, call.scores.key_lengths = {40};
    call.scores.keep_mask = reference::Tensor<std::uint8_t>({1, 1, 20, 40}, 1);
    for (Index i = 0; i < 20; ++i) call.scores.keep_mask(0, 0, i, 7) = 0;
    const auto expected = call();
    EXPECT_EQ(expected[7], 0);
    for (Index c = 0; c < 4; ++c) call.key(0, 0, 7, c) = nan_value;
    EXPECT_TRUE(same_bits(call(), expected));
    // Seen by the last query alone, whose row is then NaN for every key that it sees.
    call.key(0, 0, 39, 0) = nan_value;
    const auto got = call();
    for (std::size_t j = 0; j < got.size(); ++j) EXPECT_EQ(std::isnan(got[j]), j != 7) << j;
  });
}

TEST(ReceivedAttention, S01S02S03NothingToSee) {
  std::vector<float> lse(6, -std::numeric_limits<float>::infinity()), received(8, -77);
  const auto call = [&](const longview::Shape<4>& query, const longview::Shape<4>& key) {
    const TensorView<const float, 4> keys(lse.data(), key);
    longview::received_attention(TensorView<const float, 4>(lse.data(), query), KeyValueView<float>{keys, keys},
                                 longview::Output<const float>({}, {lse.data(), {query[0], query[1], query[2]}}),
                                 TensorView<float, 2>(received.data(), {query[0], key[2]}));
  };
  call({1, 1, 0, 2}, {1, 1, 3, 2});
  EXPECT_EQ(std::vector<float>(received.begin(), received.begin() + 4), (std::vector<float>{0, 0, 0, -77}));
  call({0, 1, 3, 2}, {0, 1, 3, 2});
  call({1, 1, 3, 2}, {1, 1, 0, 2});
}

TEST(ReceivedAttention, M30R02ExactWorkspaceHoldingNan) {
  Received<float> call({2, 2, 1, 50, 300, 8});
  const auto expected = call();
  longview::DryRun rehearsal;
  EXPECT_EQ(call({longview::Sequential(), rehearsal})[0], -77.0F);
  ASSERT_TRUE(rehearsal.ok());
  std::vector<std::byte> memory(rehearsal.workspace_bytes(), std::byte{0xff});
  EXPECT_TRUE(same_bits(call({longview::Sequential(), memory}), expected));
}

TEST(ReceivedAttention, Errors) {
  std::vector<float> data(200, 1), lse(50), received(50);
  const TensorView<const float, 4> query(data.data(), {1, 2, 3, 4}), key(data.data(), {1, 2, 5, 4});
  const auto text = [&](const longview::Output<const float>& out, TensorView<float, 2> to,
                        const longview::Scores<float>& options) {
    return error_of([&](longview::Run run) {
      longview::received_attention(query, KeyValueView<float>{key, key}, out, to, options, run);
    });
  };
  const longview::Output<const float> good({}, {lse.data(), {1, 2, 3}});
  const TensorView<float, 2> room_for_it(received.data(), {1, 5});
  EXPECT_EQ(text(good, room_for_it, {}), "no error");
  EXPECT_EQ(text(TensorView<const float, 4>(data.data(), {1, 2, 3, 4}), room_for_it, {}),
            "received_attention: lse: is required");
  EXPECT_EQ(text({{}, {lse.data(), {1, 3, 2}}}, room_for_it, {}),
            "received_attention: lse: shape (got 1x3x2, expected 1x2x3)");
  EXPECT_EQ(text(good, {received.data(), {1, 4}}, {}), "received_attention: received: shape (got 1x4, expected 1x5)");
  EXPECT_EQ(text(good, {lse.data(), {1, 5}}, {}), "received_attention: received: overlaps lse");
  EXPECT_EQ(text(good, room_for_it, {.scale = nan_value}), "received_attention: options.scale: must be finite");
}

// ---- losses

template <typename T>
void expect_reconstruction_loss(Index heads, Index queries, Index old_rows, Index fresh_rows,
                                std::optional<double> scale) {
  const Index key_heads = heads > 1 ? heads / 2 : 1;
  const auto query = normal<T>({2, heads, queries, 16}, 1);
  const reference::KeysAndValues<Real<T>> old{normal<T>({2, key_heads, old_rows, 16}, 2),
                                              normal<T>({2, key_heads, old_rows, 20}, 3)},
      fresh{normal<T>({2, key_heads, fresh_rows, 16}, 4), normal<T>({2, key_heads, fresh_rows, 20}, 5)};
  std::optional<Real<T>> exact_scale;
  if (scale) exact_scale = static_cast<Real<T>>(*scale);
  for (const Layout layout : all_layouts) {
    Laid<T, 4> q(query, layout), old_k(old.key.value, layout), old_v(old.value.value, layout),
        new_k(fresh.key.value, layout), new_v(fresh.value.value, layout);
    for (const bool mean : {true, false}) {
      const auto expected =
          reference::attention_reconstruction_loss<Real<T>>(query, old, fresh, exact_scale, mean, precision_of<T>());
      const longview::ReconstructionLoss<T> of{
          .old = {old_k.view(), old_v.view(), {}},
          .fresh = {new_k.view(), new_v.view(), {}},
          .scale = scale,
          .norm = mean ? longview::LossNorm::mean_squared : longview::LossNorm::plain};
      const double got = longview::attention_reconstruction_loss(q.view(), of);
      EXPECT_TRUE(reference::agrees(expected, got)) << static_cast<double>(expected.value) << " " << got;
      longview::DryRun rehearsal;
      EXPECT_EQ(longview::attention_reconstruction_loss(q.view(), of, {longview::Sequential(), rehearsal}), 0);
      std::vector<std::byte> memory(rehearsal.workspace_bytes(), std::byte{0xff});
      EXPECT_EQ(longview::attention_reconstruction_loss(q.view(), of, {longview::Sequential(), memory}), got);
      on_every_executor([&](const auto& executor) {
        EXPECT_EQ(longview::attention_reconstruction_loss(q.view(), of, executor), got);
      });
    }
  }
}

TEST(ReconstructionLoss, WithinTheCertifiedBoundAndTheSameOnEveryExecutor) {
  on_every_set([] {
    expect_reconstruction_loss<float>(4, 19, 36, 12, {});
    expect_reconstruction_loss<float>(1, 50, 130, 43, 0.5);
    expect_reconstruction_loss<double>(2, 19, 36, 12, 0.25);
  });
}

TEST(ReconstructionLoss, NothingLostNothingToSeeAndErrors) {
  std::vector<float> data(400);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<float>(std::sin(static_cast<double>(i)));
  const TensorView<const float, 4> query(data.data(), {1, 2, 5, 4}), rows(data.data() + 40, {1, 2, 6, 4}),
      none(nullptr, {1, 2, 0, 4});
  const longview::KeyValue<float> old{rows, rows, {}};
  EXPECT_EQ(longview::attention_reconstruction_loss(query, {.old = old, .fresh = old}), 0);
  EXPECT_GT(longview::attention_reconstruction_loss(query, {.old = old, .fresh = {none, none, {}}}), 0);
  EXPECT_EQ(longview::attention_reconstruction_loss(query.slice(2, 0, 0), {.old = old, .fresh = old}), 0);
  const auto text = [&](const longview::ReconstructionLoss<float>& of) {
    return error_of([&](longview::Run run) { longview::attention_reconstruction_loss(query, of, run); });
  };
  const std::string name = "attention_reconstruction_loss: ";
  EXPECT_EQ(text({.old = old}), name + "of.fresh.key: batch (got 0, expected 1 from query)");
  EXPECT_EQ(text({.old = old, .fresh = {rows.slice(3, 0, 3), rows, {}}}),
            name + "of.fresh.key: head_dim (got 3, expected 4 from query)");
  EXPECT_EQ(text({.old = old, .fresh = {rows, rows.slice(3, 0, 3), {}}}),
            name + "of.fresh.value: value_dim (got 3, expected 4 from the first value)");
  EXPECT_EQ(text({.old = old, .fresh = old, .scale = nan_value}), name + "of.scale: must be finite");
  EXPECT_EQ(text({.old = old, .fresh = old, .scale = -1e300}), name + "of.scale: beyond the range of the elements");
}

/// A call of attention_reconstruction_loss in memory, with room for its gradients.
template <typename T>
struct Reconstruction {
  reference::Tensor<Real<T>> query;
  reference::KeysAndValues<Real<T>> old, fresh;
  std::optional<double> scale;
  bool mean = true;

  Reconstruction(Index heads, Index queries, Index old_rows, Index fresh_rows)
      : query(normal<T>({2, heads, queries, 16}, 1)),
        old{normal<T>({2, (heads + 1) / 2, old_rows, 16}, 2), normal<T>({2, (heads + 1) / 2, old_rows, 20}, 3)},
        fresh{normal<T>({2, (heads + 1) / 2, fresh_rows, 16}, 4), normal<T>({2, (heads + 1) / 2, fresh_rows, 20}, 5)} {}

  reference::KeysAndValues<Real<T>> expected() const {
    std::optional<Real<T>> exact_scale;
    if (scale) exact_scale = static_cast<Real<T>>(*scale);
    return reference::attention_reconstruction_backward<Real<T>>(query, old, fresh, exact_scale, mean,
                                                                 precision_of<T>());
  }
  struct Result {
    std::vector<T> key, value;
    double loss;
    bool operator==(const Result& other) const {
      return same_bits(key, other.key) && same_bits(value, other.value) && loss == other.loss;
    }
  };
  Result operator()(longview::Run run = {}, Layout layout = Layout::packed, bool key = true, bool value = true) const {
    Laid<T, 4> q(query, layout), old_k(old.key.value, layout), old_v(old.value.value, layout),
        new_k(fresh.key.value, layout), new_v(fresh.value.value, layout);
    auto d_key = room<T, 4>(fresh.key.value.shape(), layout), d_value = room<T, 4>(fresh.value.value.shape(), layout);
    longview::ReconstructionLoss<T> of{.old = {old_k.view(), old_v.view(), {}},
                                       .fresh = {new_k.view(), new_v.view(), {}},
                                       .scale = scale,
                                       .norm = mean ? longview::LossNorm::mean_squared : longview::LossNorm::plain};
    if (key) of.d_fresh.key = d_key.view();
    if (value) of.d_fresh.value = d_value.view();
    const double loss = longview::attention_reconstruction_loss(q.view(), of, run);
    return {d_key.values(), d_value.values(), loss};
  }
};

template <typename T>
void expect_reconstruction_gradients(Reconstruction<T> problem) {
  for (const bool mean : {true, false}) {
    problem.mean = mean;
    const auto expected = problem.expected();
    const auto got = problem();
    EXPECT_TRUE(within(expected.key, got.key));
    EXPECT_TRUE(within(expected.value, got.value));
    EXPECT_EQ(got.loss, problem({}, Layout::packed, false, false).loss);
  }
}

TEST(ReconstructionLoss, GradientsWithinTheCertifiedBound) {
  on_every_set([] {
    expect_reconstruction_gradients<float>({4, 19, 36, 12});
    Reconstruction<float> scaled(1, 50, 130, 43);
    scaled.scale = 0.5;
    expect_reconstruction_gradients<float>(scaled);
    expect_reconstruction_gradients<double>({2, 19, 36, 12});
  });
}

TEST(ReconstructionLoss, L01T01G02GradientsHaveTheSameBits) {
  on_every_set([] {
    const Reconstruction<float> problem(4, 60, 130, 70);
    const auto expected = problem();
    for (const Layout layout : all_layouts) EXPECT_EQ(problem({}, layout), expected);
    on_every_executor([&](const auto& executor) { EXPECT_EQ(problem(executor), expected); });
    EXPECT_TRUE(same_bits(problem({}, Layout::packed, true, false).key, expected.key));
    EXPECT_TRUE(same_bits(problem({}, Layout::packed, false, true).value, expected.value));
  });
}

TEST(ReconstructionLoss, T01AnyNumberOfWorkers) {
  const Reconstruction<float> problem(2, 9, 13, 7);
  const auto expected = problem();
  Received<float> received({2, 2, 1, 5, 30, 8});
  const auto shares = received();
  for (const Index workers : {Index{1} << 31, Index{1} << 60, std::numeric_limits<Index>::max()}) {
    const longview::Parallel executor{workers, [](Index count, longview::TaskBody body) {
                                        while (count-- > 0) body(count);
                                      }};
    EXPECT_EQ(problem(executor), expected);
    EXPECT_TRUE(same_bits(received(executor), shares));
  }
}

TEST(ReconstructionLoss, M30R02R03GradientsInExactWorkspace) {
  const Reconstruction<float> problem(4, 60, 130, 70);
  const auto expected = problem();
  for (const Index threads : {1, 3, 16}) {
    const longview::Parallel executor{threads, [](Index count, longview::TaskBody body) {
                                        while (count-- > 0) body(count);
                                      }};
    longview::DryRun rehearsal;
    EXPECT_EQ(problem({executor, rehearsal}).key[0], -77.0F);
    ASSERT_TRUE(rehearsal.ok());
    std::vector<std::byte> memory(rehearsal.workspace_bytes(), std::byte{0xff});
    EXPECT_EQ(problem({executor, memory}), expected);
    const std::span<std::byte> shorter = std::span(memory).first(memory.size() - 1);
    EXPECT_THROW(problem({executor, shorter}), longview::ContractError);
  }
}

TEST(ReconstructionLoss, NothingLostHasNoGradient) {
  on_every_set([] {
    Reconstruction<float> problem(2, 9, 14, 14);
    problem.fresh = problem.old;
    for (const bool mean : {true, false}) {
      problem.mean = mean;
      const auto got = problem();
      EXPECT_EQ(got.loss, 0);
      for (const float x : got.key) EXPECT_EQ(x, 0);
      for (const float x : got.value) EXPECT_EQ(x, 0);
    }
  });
  // No query asks for anything.
  const auto got = Reconstruction<float>(2, 0, 14, 7)();
  for (const float x : got.key) EXPECT_EQ(x, 0);
  for (const float x : got.value) EXPECT_EQ(x, 0);
}

TEST(ReconstructionLoss, C06TheFreshRowsAloneAreDifferentiated) {
  // The gradient is the slope of the loss along the fresh rows while the target stays.
  Reconstruction<double> problem(2, 7, 12, 6);
  for (const bool mean : {true, false}) {
    problem.mean = mean;
    const auto got = problem();
    const auto expect = [&](reference::Tensor<long double>& x, const std::vector<double>& slopes) {
      for (std::size_t i = 0; i < slopes.size(); i += 17) {
        const long double step = 0x1p-10L, before = x.elements()[i];
        const auto at = [&](long double offset) {
          x.elements()[i] = before + offset;
          const double loss = problem().loss;
          x.elements()[i] = before;
          return static_cast<long double>(loss);
        };
        const long double slope = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step);
        EXPECT_NEAR(static_cast<double>(slope), slopes[i], 1e-6);
      }
    };
    expect(problem.fresh.key.value, got.key);
    expect(problem.fresh.value.value, got.value);
  }
}

TEST(ReconstructionLoss, G07GradientErrors) {
  std::vector<float> data(400), to(400);
  const TensorView<const float, 4> query(data.data(), {1, 2, 5, 4}), rows(data.data() + 40, {1, 2, 6, 4});
  const longview::KeyValue<float> keys{rows, rows, {}};
  const auto text = [&](const longview::KeyValueGradient<float>& d_fresh) {
    return error_of([&](longview::Run run) {
      longview::attention_reconstruction_loss(query, {.old = keys, .fresh = keys, .d_fresh = d_fresh}, run);
    });
  };
  const std::string name = "attention_reconstruction_loss: ";
  EXPECT_EQ(text({.key = {to.data(), {1, 2, 6, 4}}, .value = {to.data() + 48, {1, 2, 6, 4}}}), "no error");
  EXPECT_EQ(text({.key = {to.data(), {1, 2, 5, 4}}}), name + "of.d_fresh.key: shape (got 1x2x5x4, expected 1x2x6x4)");
  EXPECT_EQ(text({.value = {to.data(), {1, 1, 6, 4}}}),
            name + "of.d_fresh.value: shape (got 1x1x6x4, expected 1x2x6x4)");
  EXPECT_EQ(text({.key = {data.data() + 40, {1, 2, 6, 4}}}), name + "of.d_fresh.key: overlaps of.old.key");
  EXPECT_EQ(text({.key = {to.data(), {1, 2, 6, 4}}, .value = {to.data() + 1, {1, 2, 6, 4}}}),
            name + "of.d_fresh.value: overlaps of.d_fresh.key");
}

TEST(AutoEncodingLoss, WithinTheCertifiedBound) {
  const auto a = normal<float>({2, 1, 30, 7}, 1), b = normal<float>({2, 1, 30, 7}, 2);
  for (const Layout layout : all_layouts)
    for (const bool mean : {true, false}) {
      Laid<float, 4> old(a, layout), decoded(b, layout);
      const double got = longview::auto_encoding_loss(
          old.view(), decoded.view(), {}, mean ? longview::LossNorm::mean_squared : longview::LossNorm::plain);
      EXPECT_TRUE(reference::agrees(reference::auto_encoding_loss<double>(a, b, mean, precision_of<double>()), got));
    }
  std::vector<float> data(24);
  const TensorView<const float, 4> rows(data.data(), {1, 1, 6, 4});
  try {
    longview::auto_encoding_loss(rows, rows.slice(2, 0, 5));
    FAIL();
  } catch (const longview::ContractError& error) {
    EXPECT_STREQ(error.what(), "auto_encoding_loss: decoded: shape (got 1x1x5x4, expected 1x1x6x4)");
  }
}

TEST(AutoEncodingLoss, GradientsWithinTheCertifiedBound) {
  const auto a = normal<float>({2, 1, 30, 7}, 1), b = normal<float>({2, 1, 30, 7}, 2);
  for (const Layout layout : all_layouts)
    for (const bool mean : {true, false}) {
      Laid<float, 4> old(a, layout), decoded(b, layout);
      auto gradient = room<float, 4>({2, 1, 30, 7}, layout);
      const auto norm = mean ? longview::LossNorm::mean_squared : longview::LossNorm::plain;
      const double loss = longview::auto_encoding_loss(old.view(), decoded.view(), gradient.view(), norm);
      EXPECT_EQ(loss, longview::auto_encoding_loss(old.view(), decoded.view(), {}, norm));
      EXPECT_TRUE(
          within(reference::auto_encoding_backward<double>(a, b, mean, precision_of<float>()), gradient.values()));
    }
}

TEST(AutoEncodingLoss, GradientsAtZeroAndErrors) {
  std::vector<float> data(24, 1.5F), to(24, -77.0F);
  const TensorView<const float, 4> rows(data.data(), {1, 1, 6, 4});
  const TensorView<float, 4> gradient(to.data(), {1, 1, 6, 4});
  for (const auto norm : {longview::LossNorm::mean_squared, longview::LossNorm::plain}) {
    EXPECT_EQ(longview::auto_encoding_loss(rows, rows, gradient, norm), 0);
    EXPECT_EQ(to, std::vector<float>(24, 0.0F));
  }
  const auto text = [&](const TensorView<float, 4>& d_decoded) {
    try {
      longview::auto_encoding_loss(rows, rows, d_decoded);
    } catch (const longview::ContractError& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(text(gradient.slice(2, 0, 5)), "auto_encoding_loss: d_decoded: shape (got 1x1x5x4, expected 1x1x6x4)");
  EXPECT_EQ(text({data.data(), {1, 1, 6, 4}}), "auto_encoding_loss: d_decoded: overlaps old");
  const TensorView<const float, 4> none(nullptr, {0, 1, 6, 4});
  EXPECT_EQ(longview::auto_encoding_loss(none, none, TensorView<float, 4>(nullptr, {0, 1, 6, 4})), 0);
}

}  // namespace
