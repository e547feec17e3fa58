// SPDX-License-Identifier: Apache-2.0
#include "longview/partial.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <deque>
#include <limits>
#include <longview/full_attention.hpp>
#include <string>
#include <vector>

#include "operator_inputs.hpp"
#include "reference/partial_gradient.hpp"

namespace {

using namespace inputs;

constexpr double infinity = std::numeric_limits<double>::infinity();

struct Size {
  Index parts, batch, heads, queries, channels;
};

template <typename T>
using Parts = std::vector<reference::Partial<Real<T>>>;

/// Every fifth log-sum-exp says that the part is empty; its rows hold NaN.
template <typename T>
Parts<T> random_parts(const Size& size, double spread = 3) {
  Parts<T> parts;
  for (Index p = 0; p < size.parts; ++p) {
    const auto seed = static_cast<unsigned>(10 * p);
    auto out = normal<T>({size.batch, size.heads, size.queries, size.channels}, seed + 1);
    auto lse = normal<T>({size.batch, size.heads, size.queries}, seed + 2);
    for (std::size_t row = 0; row < lse.elements().size(); ++row) {
      Real<T>& x = lse.elements()[row];
      x = static_cast<T>(x * static_cast<Real<T>>(spread));
      if ((row + static_cast<std::size_t>(3 * p)) % 5 != 0) continue;
      x = -infinity;
      for (std::size_t c = 0; c < static_cast<std::size_t>(size.channels); ++c)
        out.elements()[row * static_cast<std::size_t>(size.channels) + c] = nan_value;
    }
    parts.push_back({out, lse});
  }
  return parts;
}

/// Partial results in memory, and room for their merge.
template <typename T>
struct Call {
  std::deque<Laid<T, 4>> rows;
  std::deque<Laid<T, 3>> sums;
  Laid<T, 4> out;
  Laid<T, 3> lse;

  explicit Call(const Parts<T>& parts, Layout layout = Layout::packed)
      : out(room<T, 4>(parts.front().out.value.shape(), layout)),
        lse(room<T, 3>(parts.front().lse.value.shape(), layout)) {
    for (const auto& part : parts) rows.emplace_back(part.out.value, layout), sums.emplace_back(part.lse.value, layout);
  }
  std::vector<longview::Output<const T>> parts() {
    std::vector<longview::Output<const T>> views;
    for (std::size_t p = 0; p < rows.size(); ++p)
      views.emplace_back(TensorView<const T, 4>(rows[p].view()), TensorView<const T, 3>(sums[p].view()));
    return views;
  }
  /// Rows, then sums.
  std::vector<T> operator()(longview::Run run = {}) {
    const auto all = parts();
    longview::merge(all, longview::Output(out.view(), lse.view()), run);
    return results();
  }
  std::vector<T> results() const {
    std::vector<T> values = out.values();
    for (const T x : lse.values()) values.push_back(x);
    return values;
  }
};

template <typename T>
void expect_certified(const Size& size, double spread = 3) {
  const Parts<T> parts = random_parts<T>(size, spread);
  const auto expected = reference::merge(parts, precision_of<T>());
  Call<T> call(parts);
  call();
  EXPECT_TRUE(within(expected.out, call.out.values()));
  EXPECT_TRUE(within(expected.lse, call.lse.values()));
}

const Size sizes[] = {{1, 1, 1, 1, 1}, {2, 2, 3, 37, 16}, {3, 1, 2, 70, 64}, {5, 2, 1, 17, 33}, {8, 1, 1, 130, 5}};

TEST(Merge, S16WithinTheCertifiedBound) {
  on_every_set([] {
    for (const Size& size : sizes)
      for (const double spread : {0.1, 3.0, 40.0}) {
        SCOPED_TRACE(size.parts);
        expect_certified<float>(size, spread);
        expect_certified<double>(size, spread);
      }
    for (Index channels = 1; channels <= 50; ++channels) expect_certified<float>({3, 1, 1, 9, channels});
  });
}

TEST(Merge, ManyParts) {
  expect_certified<float>({70, 1, 2, 20, 8});
  expect_certified<double>({200, 1, 1, 3, 3});
}

/// One row of each part.
template <typename T>
Parts<T> single_rows(const std::vector<std::vector<double>>& rows, const std::vector<double>& lse) {
  Parts<T> parts;
  for (std::size_t p = 0; p < rows.size(); ++p) {
    reference::Tensor<Real<T>> out({1, 1, 1, static_cast<Index>(rows[p].size())}), sum({1, 1, 1});
    for (std::size_t c = 0; c < rows[p].size(); ++c) out.elements()[c] = static_cast<Real<T>>(rows[p][c]);
    sum.elements()[0] = static_cast<Real<T>>(lse[p]);
    parts.push_back({out, sum});
  }
  return parts;
}

template <typename T>
void expect_empty_adds_nothing() {
  std::vector<double> x(20), poison(20, nan_value);
  for (std::size_t c = 0; c < x.size(); ++c)
    x[c] = static_cast<double>(static_cast<T>(std::sin(static_cast<double>(c) + 1)));
  x[3] = -0.0, x[4] = nan_value, x[5] = infinity, x[6] = -infinity, x[7] = 5e-324, x[8] = 1e300;
  for (const double lse : {-0.0, 3.25, -1000.0, 88.0, 1e30}) {
    std::vector<T> expected(x.begin(), x.end());
    expected.push_back(static_cast<T>(lse));
    EXPECT_TRUE(same_bits(Call<T>(single_rows<T>({x}, {lse}))(), expected));
    EXPECT_TRUE(same_bits(Call<T>(single_rows<T>({poison, x}, {-infinity, lse}))(), expected));
    EXPECT_TRUE(same_bits(Call<T>(single_rows<T>({x, poison}, {lse, -infinity}))(), expected));
    EXPECT_TRUE(same_bits(Call<T>(single_rows<T>({poison, x, poison}, {-infinity, lse, -infinity}))(), expected));
  }
}

TEST(Merge, AnEmptyPartAddsNothingBitwise) {
  on_every_set([] {
    expect_empty_adds_nothing<float>();
    expect_empty_adds_nothing<double>();
  });
}

TEST(Merge, P05AllEmptyOrNoPartsGiveZero) {
  on_every_set([] {
    const std::vector<float> expected{0, 0, 0, -std::numeric_limits<float>::infinity()};
    EXPECT_TRUE(
        same_bits(Call<float>(single_rows<float>({{nan_value, 1, 2}, {3, 4, 5}}, {-infinity, -infinity}))(), expected));
    Call<float> none(single_rows<float>({{1, 2, 3}}, {1}));
    none.rows.clear();
    EXPECT_TRUE(same_bits(none(), expected));
  });
}

TEST(Merge, N02AFarLargerPartWinsBitwise) {
  on_every_set([] {
    const std::vector<float> expected{1.5F, -2, 3, 7};
    EXPECT_TRUE(
        same_bits(Call<float>(single_rows<float>({{9, infinity, -infinity}, {1.5, -2, 3}}, {-500, 7}))(), expected));
  });
}

TEST(Merge, NonFinitePartsStayVisibleInTheirRow) {
  on_every_set([] {
    const double nan = nan_value;
    // A row is undefined if the log-sum-exp of a part is.
    for (const double lse : {nan, infinity})
      for (const float x : Call<float>(single_rows<float>({{1, 2}, {3, 4}, {5, 6}}, {0, lse, -infinity}))())
        EXPECT_TRUE(std::isnan(x)) << lse;
    // A NaN in a channel stays there, also beside a part that is larger by far.
    for (const double lse : {0.0, -3.0, -500.0}) {
      const auto got = Call<float>(single_rows<float>({{nan, 2}, {3, 4}}, {lse, 1}))();
      EXPECT_TRUE(std::isnan(got[0])) << lse;
      EXPECT_FALSE(std::isnan(got[1])) << lse;
      EXPECT_FALSE(std::isnan(got[2])) << lse;
    }
    Parts<float> parts = random_parts<float>({3, 1, 1, 40, 5});
    const auto clean = Call<float>(parts)();
    parts[1].lse.value(0, 0, 21) = nan;
    const auto got = Call<float>(parts)();
    for (std::size_t at = 0; at < got.size(); ++at) {
      const bool touched = at < 200 ? at / 5 == 21 : at == 221;
      EXPECT_TRUE(touched ? std::isnan(got[at]) : got[at] == clean[at]) << at;
    }
  });
}

TEST(Merge, L01L02EveryLayoutGivesTheSameBits) {
  on_every_set([] {
    for (const Size& size : sizes) {
      const Parts<float> parts = random_parts<float>(size);
      const auto expected = Call<float>(parts)();
      for (const Layout layout : all_layouts) EXPECT_TRUE(same_bits(Call<float>(parts, layout)(), expected));
    }
  });
}

TEST(Merge, T01T02EveryExecutorGivesTheSameBits) {
  on_every_set([] {
    const Parts<float> parts = random_parts<float>({3, 2, 3, 150, 20});
    const auto expected = Call<float>(parts)();
    on_every_executor([&](const auto& executor) { EXPECT_TRUE(same_bits(Call<float>(parts)(executor), expected)); });
  });
}

TEST(Merge, M30R02ExactWorkspaceHoldingNan) {
  const Parts<double> parts = random_parts<double>({4, 1, 2, 90, 10});
  const auto expected = Call<double>(parts)();
  longview::DryRun rehearsal;
  Call<double> call(parts);
  EXPECT_EQ(call({longview::Sequential(), rehearsal})[0], -77);
  ASSERT_TRUE(rehearsal.ok());
  std::vector<std::byte> memory(rehearsal.workspace_bytes(), std::byte{0xff});
  EXPECT_TRUE(same_bits(call({longview::Sequential(), memory}), expected));
}

/// Attention to the keys first ... first + count - 1, and what the library makes of it.
template <typename T>
struct SplitAttention {
  reference::Tensor<Real<T>> query = normal<T>({2, 4, 9, 16}, 1), key = normal<T>({2, 2, 300, 16}, 2),
                             value = normal<T>({2, 2, 300, 24}, 3);
  Laid<T, 4> q{query}, k{key}, v{value};

  reference::Partial<Real<T>> expected(Index first, Index count) const {
    reference::Scores<Real<T>> scores;
    scores.causal = true, scores.offset = 291 - first;
    const auto part = reference::attention<Real<T>>(query, slice_rows(key, first, count),
                                                    slice_rows(value, first, count), scores, {}, precision_of<T>());
    return {part.out, part.lse};
  }
  reference::Partial<Real<T>> got(Index first, Index count) {
    Laid<T, 4> out = room<T, 4>({2, 4, 9, 24});
    Laid<T, 3> lse = room<T, 3>({2, 4, 9});
    longview::full_attention(q.view(), k.view().slice(2, first, count), v.view().slice(2, first, count),
                             {out.view(), lse.view()},
                             {.causal = true, .alignment = longview::Alignment::at(291 - first)});
    reference::Tensor<Real<T>> rows({2, 4, 9, 24}), sums({2, 4, 9});
    std::copy_n(out.values().data(), rows.elements().size(), rows.elements().begin());
    std::copy_n(lse.values().data(), sums.elements().size(), sums.elements().begin());
    return {rows, sums};
  }
};

template <typename T>
void expect_split_equals_whole(const std::vector<Index>& cuts) {
  SplitAttention<T> attention;
  Parts<T> exact, parts;
  for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
    exact.push_back(attention.expected(cuts[i], cuts[i + 1] - cuts[i]));
    parts.push_back(attention.got(cuts[i], cuts[i + 1] - cuts[i]));
  }
  // The merge of bounds is a bound of the merge, and its centre is attention to all keys.
  const auto expected = reference::merge(exact, precision_of<T>());
  const auto whole = attention.expected(0, 300);
  for (std::size_t i = 0; i < whole.out.value.elements().size(); ++i)
    EXPECT_NEAR(static_cast<double>(expected.out.value.elements()[i]),
                static_cast<double>(whole.out.value.elements()[i]), 1e-13);
  Call<T> call(parts);
  call();
  EXPECT_TRUE(within(expected.out, call.out.values()));
  EXPECT_TRUE(within(expected.lse, call.lse.values()));
}

TEST(Merge, SplitKeysEqualTheWhole) {
  on_every_set([] {
    for (const auto& cuts : std::vector<std::vector<Index>>{
             {0, 150, 300}, {0, 1, 300}, {0, 0, 64, 64, 299, 300}, {0, 37, 101, 202, 291, 300}, {0, 295, 300}}) {
      expect_split_equals_whole<float>(cuts);
      expect_split_equals_whole<double>(cuts);
    }
  });
}

// ---- Gradients

template <typename T>
struct Arriving {
  reference::Tensor<Real<T>> out, lse;

  explicit Arriving(const Parts<T>& parts)
      : out(normal<T>(parts.front().out.value.shape(), 91)), lse(normal<T>(parts.front().lse.value.shape(), 92)) {}
};

/// A backward call in memory, after the forward one.
template <typename T>
struct Backward {
  Call<T> forward;
  Laid<T, 4> d_out;
  Laid<T, 3> d_lse;
  std::deque<Laid<T, 4>> rows;
  std::deque<Laid<T, 3>> sums;

  Backward(const Parts<T>& parts, const Arriving<T>& arriving, Layout layout = Layout::packed)
      : forward(parts, layout), d_out(arriving.out, layout), d_lse(arriving.lse, layout) {
    forward();
    for (const auto& part : parts) {
      rows.push_back(room<T, 4>(part.out.value.shape(), layout));
      sums.push_back(room<T, 3>(part.lse.value.shape(), layout));
    }
  }
  /// `wanted`: of parts in turn, two bits each, rows and then sums.
  std::vector<longview::Output<T>> gradients(unsigned wanted = ~0U) {
    std::vector<longview::Output<T>> views;
    for (std::size_t p = 0; p < rows.size(); ++p)
      views.emplace_back(wanted >> (2 * p % 32) & 1U ? rows[p].view() : TensorView<T, 4>(),
                         wanted >> (2 * p % 32 + 1) & 1U ? sums[p].view() : TensorView<T, 3>());
    return views;
  }
  void run(longview::Run run, unsigned wanted = ~0U) {
    const auto parts = forward.parts();
    const auto to = gradients(wanted);
    longview::merge_backward(parts, longview::Output(forward.out.view(), forward.lse.view()),
                             {d_out.view(), d_lse.view()}, to, run);
  }
  /// Rows of all parts, then sums of all parts.
  std::vector<T> results() const {
    std::vector<T> all;
    for (const auto& part : rows)
      for (const T x : part.values()) all.push_back(x);
    for (const auto& part : sums)
      for (const T x : part.values()) all.push_back(x);
    return all;
  }
  std::vector<T> operator()(longview::Run how = {}, unsigned wanted = ~0U) {
    run(how, wanted);
    return results();
  }
};

template <typename T>
void expect_certified_gradients(const Size& size, double spread = 3) {
  const Parts<T> parts = random_parts<T>(size, spread);
  const Arriving<T> arriving(parts);
  const auto expected = reference::merge_backward<Real<T>>(parts, {arriving.out, arriving.lse}, precision_of<T>());
  Backward<T> call(parts, arriving);
  call();
  for (std::size_t p = 0; p < parts.size(); ++p) {
    EXPECT_TRUE(within(expected[p].out, call.rows[p].values())) << p;
    EXPECT_TRUE(within(expected[p].lse, call.sums[p].values())) << p;
  }
}

TEST(MergeBackward, S16WithinTheCertifiedBound) {
  on_every_set([] {
    for (const Size& size : sizes)
      for (const double spread : {0.1, 3.0, 40.0}) {
        SCOPED_TRACE(size.parts);
        expect_certified_gradients<float>(size, spread);
        expect_certified_gradients<double>(size, spread);
      }
    for (Index channels = 1; channels <= 50; ++channels) expect_certified_gradients<float>({3, 1, 1, 9, channels});
  });
}

TEST(MergeBackward, ManyParts) { expect_certified_gradients<float>({70, 1, 2, 20, 8}); }

TEST(MergeBackward, AFiniteDifferenceOfEachPart) {
  on_every_set([] {
    Parts<double> parts = random_parts<double>({3, 1, 1, 5, 4});
    for (auto& part : parts) {
      part.lse.value = normal<double>({1, 1, 5}, static_cast<unsigned>(&part - parts.data()) + 50);
      part.out.value = normal<double>({1, 1, 5, 4}, static_cast<unsigned>(&part - parts.data()) + 60);
    }
    const Arriving<double> arriving(parts);
    const auto loss = [&] {
      Call<double> call(parts);
      call();
      long double sum = 0;
      for (std::size_t at = 0; at < 20; ++at) sum += arriving.out.elements()[at] * call.out.values()[at];
      for (std::size_t at = 0; at < 5; ++at) sum += arriving.lse.elements()[at] * call.lse.values()[at];
      return sum;
    };
    // Four points: the error falls with the fourth power of the step.
    const auto slope = [&](long double& x) {
      const long double step = 0x1p-9L, before = x;
      const auto at = [&](long double offset) {
        x = before + offset;
        const long double value = loss();
        x = before;
        return value;
      };
      return static_cast<double>((8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step));
    };
    Backward<double> call(parts, arriving);
    call();
    for (std::size_t p = 0; p < parts.size(); ++p) {
      const auto rows = call.rows[p].values(), sums = call.sums[p].values();
      for (std::size_t at = 0; at < 20; ++at) EXPECT_NEAR(slope(parts[p].out.value.elements()[at]), rows[at], 1e-6);
      for (std::size_t at = 0; at < 5; ++at) EXPECT_NEAR(slope(parts[p].lse.value.elements()[at]), sums[at], 1e-6);
    }
  });
}

TEST(MergeBackward, M02EmptyPartsGetZerosWhateverTheyHold) {
  on_every_set([] {
    // Part 1 is empty; row 1 is, as a whole.
    Parts<float> parts = random_parts<float>({2, 1, 1, 2, 3});
    parts[0].lse.value.elements() = {0.5, -infinity}, parts[1].lse.value.elements() = {-infinity, -infinity};
    parts[0].out.value.elements() = {1, 2, 3, nan_value, nan_value, infinity};
    for (double& x : parts[1].out.value.elements()) x = nan_value;
    Arriving<float> arriving(parts);
    arriving.out(0, 0, 1, 2) = nan_value;
    Backward<float> call(parts, arriving);
    call();
    const auto zero = [](float x) { return x == 0 && !std::signbit(x); };
    for (const float x : call.rows[1].values()) EXPECT_TRUE(zero(x));
    for (const float x : call.sums[1].values()) EXPECT_TRUE(zero(x));
    for (std::size_t c = 0; c < 6; ++c)
      EXPECT_TRUE(c < 3 ? call.rows[0].values()[c] == static_cast<float>(arriving.out.elements()[c])
                        : zero(call.rows[0].values()[c]));
    EXPECT_EQ(call.sums[0].values()[0], static_cast<float>(arriving.lse.elements()[0]));
    EXPECT_TRUE(zero(call.sums[0].values()[1]));
  });
}

TEST(MergeBackward, G03NanStaysInItsRow) {
  on_every_set([] {
    const Parts<float> parts = random_parts<float>({3, 1, 1, 40, 5});
    Arriving<float> arriving(parts);
    const auto clean = Backward<float>(parts, arriving)();
    arriving.out(0, 0, 21, 3) = nan_value;
    Backward<float> call(parts, arriving);
    const auto got = call();
    for (std::size_t at = 0; at < got.size(); ++at) {
      const std::size_t p = at < 600 ? at / 200 : (at - 600) / 40, row = at < 600 ? at % 200 / 5 : (at - 600) % 40;
      const bool empty = parts[p].lse.value.elements()[row] == -infinity;
      const bool touched = row == 21 && !empty && (at >= 600 || at % 5 == 3);
      EXPECT_TRUE(touched ? std::isnan(got[at]) : got[at] == clean[at]) << at;
    }
  });
}

TEST(MergeBackward, G02EverySubsetGivesTheSameBits) {
  on_every_set([] {
    const Parts<float> parts = random_parts<float>({3, 2, 1, 21, 20});
    const Arriving<float> arriving(parts);
    Backward<float> all(parts, arriving);
    all();
    for (unsigned wanted = 0; wanted < 1U << 6; ++wanted) {
      Backward<float> call(parts, arriving);
      call.run({}, wanted);
      for (std::size_t p = 0; p < 3; ++p) {
        const std::vector<float> no_rows(840, -77.0F), no_sums(42, -77.0F);
        EXPECT_TRUE(same_bits(call.rows[p].values(), wanted >> 2 * p & 1U ? all.rows[p].values() : no_rows)) << wanted;
        EXPECT_TRUE(same_bits(call.sums[p].values(), wanted >> (2 * p + 1) & 1U ? all.sums[p].values() : no_sums));
      }
    }
  });
}

TEST(MergeBackward, SomeOfThePartsGetTheSameBits) {
  const Parts<float> parts = random_parts<float>({3, 1, 2, 21, 20});
  const Arriving<float> arriving(parts);
  Backward<float> all(parts, arriving), some(parts, arriving);
  all();
  const auto views = some.forward.parts();
  const auto to = some.gradients();
  longview::merge_backward(std::span(views).subspan(1, 1),
                           longview::Output<const float>(some.forward.out.view(), some.forward.lse.view()),
                           {some.d_out.view(), some.d_lse.view()}, std::span(to).subspan(1, 1));
  EXPECT_TRUE(same_bits(some.rows[1].values(), all.rows[1].values()));
  EXPECT_TRUE(same_bits(some.sums[1].values(), all.sums[1].values()));
}

TEST(MergeBackward, WithoutAGradientOfTheSumItIsZero) {
  const Parts<float> parts = random_parts<float>({2, 1, 1, 9, 5});
  Arriving<float> arriving(parts);
  for (double& x : arriving.lse.elements()) x = 0;
  const auto expected = Backward<float>(parts, arriving)();
  Backward<float> call(parts, arriving);
  const auto views = call.forward.parts();
  const auto to = call.gradients();
  longview::merge_backward(views, longview::Output(call.forward.out.view(), call.forward.lse.view()),
                           TensorView<const float, 4>(call.d_out.view()), to);
  EXPECT_TRUE(same_bits(call.results(), expected));
}

TEST(MergeBackward, L01L02EveryLayoutGivesTheSameBits) {
  on_every_set([] {
    for (const Size& size : sizes) {
      const Parts<float> parts = random_parts<float>(size);
      const Arriving<float> arriving(parts);
      const auto expected = Backward<float>(parts, arriving)();
      for (const Layout layout : all_layouts)
        EXPECT_TRUE(same_bits(Backward<float>(parts, arriving, layout)(), expected));
    }
  });
}

TEST(MergeBackward, T01T02EveryExecutorGivesTheSameBits) {
  on_every_set([] {
    const Parts<float> parts = random_parts<float>({3, 2, 3, 150, 20});
    const Arriving<float> arriving(parts);
    const auto expected = Backward<float>(parts, arriving)();
    on_every_executor(
        [&](const auto& executor) { EXPECT_TRUE(same_bits(Backward<float>(parts, arriving)(executor), expected)); });
  });
}

TEST(MergeBackward, M30R02R03ExactWorkspaceAndOneByteShort) {
  const Parts<double> parts = random_parts<double>({4, 1, 2, 90, 10});
  const Arriving<double> arriving(parts);
  const auto expected = Backward<double>(parts, arriving)();
  longview::DryRun rehearsal;
  Backward<double> call(parts, arriving);
  EXPECT_EQ(call({longview::Sequential(), rehearsal})[0], -77);
  ASSERT_TRUE(rehearsal.ok());
  std::vector<std::byte> memory(rehearsal.workspace_bytes(), std::byte{0xff});
  const std::span<std::byte> shorter = std::span(memory).first(memory.size() - 1);
  try {
    call({longview::Sequential(), shorter});
    FAIL();
  } catch (const longview::ContractError& error) {
    EXPECT_EQ(error.what(), "merge_backward: run: workspace too small (got " + std::to_string(shorter.size()) +
                                " bytes, expected " + std::to_string(memory.size()) + ")");
  }
  EXPECT_EQ(call.results()[0], -77);
  EXPECT_TRUE(same_bits(call({longview::Sequential(), memory}), expected));
}

class MergeErrors : public ::testing::Test {
 protected:
  using Part = longview::Output<const float>;
  using Rows = TensorView<const float, 4>;
  using Sums = TensorView<const float, 3>;

  std::string text(const std::vector<Part>& parts) {
    return error_of([&](longview::Run run) {
      longview::merge(
          parts, longview::Output(TensorView<float, 4>(out, {1, 2, 3, 4}), TensorView<float, 3>(sums, {1, 2, 3})), run);
    });
  }
  float rows[24] = {}, lse[6] = {}, out[24] = {}, sums[6] = {};
  const Part good{Rows(rows, {1, 2, 3, 4}), Sums(lse, {1, 2, 3})};
};

TEST_F(MergeErrors, ShapesAndMemory) {
  EXPECT_EQ(text({good, good}), "no error");
  EXPECT_EQ(text({good, Rows(rows, {1, 2, 3, 4})}), "merge: parts[1].lse: is required");
  EXPECT_EQ(text({{Rows(rows, {1, 2, 3, 3}), Sums(lse, {1, 2, 3})}}),
            "merge: parts[0].out: shape (got 1x2x3x3, expected 1x2x3x4)");
  EXPECT_EQ(text({good, good, {Rows(rows, {1, 2, 3, 4}), Sums(lse, {1, 3, 2})}}),
            "merge: parts[2].lse: shape (got 1x3x2, expected 1x2x3)");
  EXPECT_EQ(text({good, {Rows(out, {1, 2, 3, 4}), Sums(lse, {1, 2, 3})}}), "merge: whole.out: overlaps parts[1].out");
  EXPECT_EQ(text({{Rows(rows, {1, 2, 3, 4}), Sums(sums, {1, 2, 3})}}), "merge: whole.lse: overlaps parts[0].lse");
  EXPECT_EQ(text({{Rows(rows, {1, 2, 3, 4}, {0, 0, 0, 0}), Sums(lse, {1, 2, 3}, {0, 0, 0})}}), "no error");
  const std::vector<Part> none;
  EXPECT_EQ(error_of([&](longview::Run run) {
              longview::merge(none, longview::Output(TensorView<float, 4>(out, {1, 2, 3, 4}, {0, 0, 4, 1})), run);
            }),
            "merge: whole.out: elements overlap (stride 0 on dim 1)");
}

TEST_F(MergeErrors, G07Gradients) {
  using Gradient = longview::Output<float>;
  float d_rows[24] = {}, d_sums[6] = {}, more[24] = {};
  const Gradient d_good{TensorView<float, 4>(d_rows, {1, 2, 3, 4}), TensorView<float, 3>(d_sums, {1, 2, 3})};
  const Part whole{Rows(out, {1, 2, 3, 4}), Sums(sums, {1, 2, 3})};
  const auto call = [&](const std::vector<Part>& parts, const Part& of_whole, const Part& d_whole,
                        const std::vector<Gradient>& d_parts) {
    return error_of([&](longview::Run run) { longview::merge_backward(parts, of_whole, d_whole, d_parts, run); });
  };
  const std::string op = "merge_backward: ";
  EXPECT_EQ(call({good}, whole, good, {d_good}), "no error");
  EXPECT_EQ(call({good, good}, whole, good, {d_good, TensorView<float, 4>(more, {1, 2, 3, 4})}), "no error");
  EXPECT_EQ(call({good, good}, whole, good, {TensorView<float, 4>(), TensorView<float, 4>()}), "no error");
  EXPECT_EQ(call({good, good}, whole, good, {d_good}), op + "d_parts: size (got 1, expected 2 from parts)");
  EXPECT_EQ(call({good}, Rows(out, {1, 2, 3, 4}), good, {d_good}), op + "whole.lse: is required");
  EXPECT_EQ(call({Rows(rows, {1, 2, 3, 4})}, whole, good, {d_good}), op + "parts[0].lse: is required");
  EXPECT_EQ(call({good}, whole, Rows(), {d_good}), op + "d_whole.out: is required");
  EXPECT_EQ(call({good}, whole, Rows(rows, {1, 2, 3, 3}), {d_good}),
            op + "d_whole.out: shape (got 1x2x3x3, expected 1x2x3x4)");
  EXPECT_EQ(call({good}, whole, {Rows(rows, {1, 2, 3, 4}), Sums(lse, {1, 2, 2})}, {d_good}),
            op + "d_whole.lse: shape (got 1x2x2, expected 1x2x3)");
  EXPECT_EQ(call({good, good}, whole, good, {d_good, TensorView<float, 4>(more, {1, 2, 2, 4})}),
            op + "d_parts[1].out: shape (got 1x2x2x4, expected 1x2x3x4)");
  EXPECT_EQ(call({good}, whole, good, {{TensorView<float, 4>(), TensorView<float, 3>(d_sums, {1, 2, 2})}}),
            op + "d_parts[0].lse: shape (got 1x2x2, expected 1x2x3)");
  EXPECT_EQ(call({good}, whole, good, {TensorView<float, 4>(out, {1, 2, 3, 4})}),
            op + "d_parts[0].out: overlaps whole.out");
  EXPECT_EQ(call({good, good}, whole, good, {d_good, d_good}), op + "d_parts[1].out: overlaps d_parts[0].out");
  const Part second{Rows(more, {1, 2, 3, 4}), Sums(lse, {1, 2, 3})};
  EXPECT_EQ(call({good, second}, whole, good, {TensorView<float, 4>(more, {1, 2, 3, 4}), TensorView<float, 4>()}),
            op + "d_parts[0].out: overlaps parts[1].out");
}

TEST(Merge, S03S05NothingToDo) {
  std::vector<float> lse{1, 2}, sums(2, -77);
  const longview::Output<const float> part(TensorView<const float, 4>(nullptr, {1, 1, 2, 0}),
                                           TensorView<const float, 3>(lse.data(), {1, 1, 2}));
  longview::merge(std::span(&part, 1), longview::Output(TensorView<float, 4>(nullptr, {1, 1, 2, 0}),
                                                        TensorView<float, 3>(sums.data(), {1, 1, 2})));
  EXPECT_EQ(sums, lse);
  const longview::Output<const float> nothing(TensorView<const float, 4>(nullptr, {0, 1, 2, 3}),
                                              TensorView<const float, 3>(nullptr, {0, 1, 2}));
  longview::merge(std::span(&nothing, 1), longview::Output(TensorView<float, 4>(nullptr, {0, 1, 2, 3})));
}

}  // namespace
