// SPDX-License-Identifier: Apache-2.0
#include "longview/projection.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "operator_inputs.hpp"
#include "reference/projection_gradient.hpp"

namespace {

using namespace inputs;

enum class Kind { matrix, mean, maximum, convolution };
constexpr Kind all_kinds[] = {Kind::matrix, Kind::mean, Kind::maximum, Kind::convolution};

struct Size {
  Index batch, heads, length, dim, slots, dim_out;
  bool per_head = false, biases = false;
  Index rate() const { return std::max<Index>(1, length / std::max<Index>(1, slots)); }
};

template <typename T>
struct Problem {
  reference::Tensor<Real<T>> input;
  reference::Projection<Real<T>> projection;

  Problem(const Size& size, Kind kind) : input(normal<T>({size.batch, size.heads, size.length, size.dim}, 1)) {
    const Index heads = size.per_head ? size.heads : 1, rate = size.rate();
    if (kind == Kind::matrix) projection.matrix = normal<T>({heads, size.slots, size.length}, 2);
    if (kind == Kind::mean) projection.mean_pool = rate;
    if (kind == Kind::maximum) projection.max_pool = rate;
    if (kind == Kind::convolution) projection.convolution = normal<T>({size.dim_out, size.dim, rate}, 3);
    if (!size.biases) return;
    projection.slot_bias = normal<T>({heads, reference::slots_of(projection, size.length)}, 4);
    projection.channel_bias = normal<T>({heads, reference::dim_of(projection, size.dim)}, 5);
  }
  std::vector<Index> out_shape() const {
    return {input.extent(0), input.extent(1), reference::slots_of(projection, input.extent(2)),
            reference::dim_of(projection, input.extent(3))};
  }
};

/// A problem in memory, each tensor in the same layout.
template <typename T>
struct Call {
  Laid<T, 4> input, out;
  Laid<T, 3> matrix, convolution;
  Laid<T, 2> slot_bias, channel_bias;
  Index mean_pool, max_pool;

  explicit Call(const Problem<T>& of, Layout layout = Layout::packed)
      : input(of.input, layout),
        out(room<T, 4>(of.out_shape(), layout)),
        matrix(of.projection.matrix, layout),
        convolution(of.projection.convolution, layout),
        slot_bias(of.projection.slot_bias, layout),
        channel_bias(of.projection.channel_bias, layout),
        mean_pool(of.projection.mean_pool),
        max_pool(of.projection.max_pool) {}

  longview::Projection<T> projection() {
    return {.matrix = matrix.view(),
            .mean_pool = mean_pool,
            .max_pool = max_pool,
            .convolution = convolution.view(),
            .slot_bias = slot_bias.view(),
            .channel_bias = channel_bias.view()};
  }
  std::vector<T> operator()(longview::Run run = {}) {
    longview::project(input.view(), out.view(), projection(), run);
    return out.values();
  }
};

template <typename T>
void expect_certified(const Size& size) {
  for (const Kind kind : all_kinds) {
    SCOPED_TRACE(static_cast<int>(kind));
    const Problem<T> problem(size, kind);
    const auto expected = reference::stored(
        reference::project<Real<T>>(problem.input, problem.projection, precision_of<T>()), precision_of<T>());
    EXPECT_TRUE(within(expected, Call<T>(problem)()));
  }
}

const Size sizes[] = {{1, 1, 1, 1, 1, 1},
                      {2, 3, 37, 5, 4, 7, true, true},
                      {1, 2, 64, 16, 8, 16, false, true},
                      {2, 1, 65, 33, 9, 3},
                      {1, 2, 129, 49, 64, 50, true},
                      {1, 1, 300, 64, 70, 64, false, true},
                      {1, 1, 130, 200, 3, 150},
                      {1, 1, 40, 8, 600, 8}};

TEST(Projection, S16WithinTheCertifiedBound) {
  on_every_set([] {
    for (const Size& size : sizes) {
      SCOPED_TRACE(size.length);
      expect_certified<float>(size);
      expect_certified<double>(size);
    }
  });
}

TEST(Projection, S17EveryLengthAndWidthAroundTheTiles) {
  on_every_set([] {
    for (Index dim = 1; dim <= 52; ++dim) expect_certified<float>({1, 1, 11, dim, 3, 53 - dim});
    for (const Index length : {63, 64, 65, 127, 128, 129, 192}) expect_certified<float>({1, 1, length, 3, 5, 2});
    for (Index slots = 1; slots <= 18; ++slots) expect_certified<float>({1, 1, 36, 3, slots, 2});
  });
}

TEST(Projection, L01L02EveryLayoutGivesTheSameBits) {
  on_every_set([] {
    for (const Size& size : sizes)
      for (const Kind kind : all_kinds) {
        const Problem<float> problem(size, kind);
        const auto expected = Call<float>(problem)();
        for (const Layout layout : all_layouts) EXPECT_TRUE(same_bits(Call<float>(problem, layout)(), expected));
      }
  });
}

TEST(Projection, L03RepeatedInputs) {
  const Problem<float> problem({3, 2, 20, 5, 4, 5}, Kind::matrix);
  Call<float> whole(problem);
  auto view = whole.input.view().slice(0, 1, 3, 0);
  longview::project(view, whole.out.view(), whole.projection());
  const auto first = whole.out.values();
  longview::project(whole.input.view().slice(0, 1, 1), whole.out.view().slice(0, 0, 1), whole.projection());
  const auto alone = whole.out.values();
  const std::size_t item = first.size() / 3;
  for (std::size_t i = 0; i < first.size(); ++i) EXPECT_EQ(first[i], alone[i % item]);
}

TEST(Projection, L05EveryPhaseOfACacheLine) {
  const Problem<float> problem({1, 1, 70, 20, 5, 20, false, true}, Kind::convolution);
  const auto expected = Call<float>(problem)();
  std::vector<float> buffer(70 * 20 + 16);
  for (Index phase = 0; phase < 16; ++phase) {
    Call<float> call(problem);
    const auto values = call.input.values();
    std::copy(values.begin(), values.end(), buffer.begin() + phase);
    longview::project(TensorView<float, 4>(buffer.data() + phase, {1, 1, 70, 20}), call.out.view(), call.projection());
    EXPECT_TRUE(same_bits(call.out.values(), expected)) << phase;
  }
}

TEST(Projection, NothingBesideTheOutputIsWritten) {
  for (const Kind kind : all_kinds) {
    Call<float> call(Problem<float>({2, 2, 30, 7, 5, 6}, kind), Layout::gaps);
    const auto expected = call().size();
    std::size_t written = 0;
    for (const float x : call.out.memory()) written += !std::isnan(x);
    EXPECT_EQ(written, expected);
  }
}

TEST(Projection, T01T02EveryExecutorGivesTheSameBits) {
  on_every_set([] {
    for (const Size size : {Size{1, 1, 500, 130, 300, 140, false, true}, Size{3, 2, 40, 6, 5, 6, true, true}})
      for (const Kind kind : all_kinds) {
        const Problem<float> problem(size, kind);
        const auto expected = Call<float>(problem)();
        on_every_executor(
            [&](const auto& executor) { EXPECT_TRUE(same_bits(Call<float>(problem)(executor), expected)); });
      }
  });
}

TEST(Projection, S01S03NothingToDo) {
  for (const auto& shape : {std::vector<Index>{0, 2, 8, 3}, {2, 0, 8, 3}, {2, 2, 3, 3}, {2, 2, 8, 0}}) {
    auto input = room<float, 4>(shape), out = room<float, 4>({shape[0], shape[1], shape[2] / 4, shape[3]});
    longview::project(input.view(), out.view(), {.mean_pool = 4});
    for (const float x : out.values()) EXPECT_EQ(x, -77.0F);
  }
}

TEST(Projection, S02NoRowsLeaveTheBiases) {
  const Problem<float> problem({1, 2, 0, 3, 4, 3, true, true}, Kind::matrix);
  Call<float> call(problem);
  const auto got = call();
  for (Index h = 0, at = 0; h < 2; ++h)
    for (Index s = 0; s < 4; ++s)
      for (Index c = 0; c < 3; ++c, ++at)
        EXPECT_EQ(got[static_cast<std::size_t>(at)], static_cast<float>(problem.projection.slot_bias(h, s)) +
                                                         static_cast<float>(problem.projection.channel_bias(h, c)));
}

TEST(Projection, ATailBelowTheRateIsNotRead) {
  for (const Kind kind : {Kind::mean, Kind::maximum, Kind::convolution}) {
    Problem<float> problem({1, 1, 12, 5, 3, 5}, kind);
    const auto expected = Call<float>(problem)();
    auto longer = reference::Tensor<double>({1, 1, 15, 5}, nan_value);
    for (Index i = 0; i < 12; ++i)
      for (Index c = 0; c < 5; ++c) longer(0, 0, i, c) = problem.input(0, 0, i, c);
    problem.input = longer;
    EXPECT_TRUE(same_bits(Call<float>(problem)(), expected));
  }
}

TEST(Projection, NonFiniteElementsStayVisibleInTheirChannel) {
  on_every_set([] {
    for (const Kind kind : {Kind::matrix, Kind::mean, Kind::maximum})
      for (const Index row : {0, 3, 6, 7}) {
        Problem<float> problem({1, 1, 8, 20, 2, 20}, kind);
        const auto clean = Call<float>(problem)();
        problem.input(0, 0, row, 17) = nan_value;
        const auto got = Call<float>(problem)();
        for (Index s = 0; s < 2; ++s)
          for (Index c = 0; c < 20; ++c) {
            const auto at = static_cast<std::size_t>(s * 20 + c);
            const bool touched = c == 17 && (kind == Kind::matrix || row / 4 == s);
            EXPECT_TRUE(touched ? std::isnan(got[at]) : got[at] == clean[at]) << s << ", " << c;
          }
      }
  });
}

TEST(Projection, MaximaOfInfinities) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float x : {infinity, -infinity}) {
    std::vector<float> rows(6, x), out(3);
    longview::project(TensorView<float, 4>(rows.data(), {1, 1, 2, 3}), TensorView<float, 4>(out.data(), {1, 1, 1, 3}),
                      {.max_pool = 2});
    EXPECT_EQ(out, std::vector<float>(3, x));
  }
}

TEST(Projection, M30R02ExactWorkspaceHoldingNan) {
  for (const Kind kind : all_kinds) {
    const Problem<float> problem({2, 1, 100, 30, 20, 20, false, true}, kind);
    const auto expected = Call<float>(problem)();
    for (const Index threads : {1, 3}) {
      const longview::Parallel executor{threads, [](Index count, longview::TaskBody body) {
                                          while (count-- > 0) body(count);
                                        }};
      longview::DryRun rehearsal;
      Call<float> call(problem);
      EXPECT_EQ(call({executor, rehearsal})[0], -77.0F);
      ASSERT_TRUE(rehearsal.ok());
      std::vector<std::byte> memory(rehearsal.workspace_bytes() + 64, std::byte{0xff});
      for (const std::size_t phase : {std::size_t{0}, std::size_t{1}, std::size_t{63}})
        EXPECT_TRUE(
            same_bits(call({executor, std::span(memory).subspan(phase, rehearsal.workspace_bytes())}), expected));
    }
  }
}

TEST(Projection, R03WorkspaceOneByteShort) {
  Call<float> call(Problem<float>({1, 1, 20, 3, 4, 3}, Kind::matrix));
  longview::DryRun rehearsal;
  call({longview::Sequential(), rehearsal});
  std::vector<std::byte> memory(rehearsal.workspace_bytes() - 1);
  try {
    call({longview::Sequential(), memory});
    FAIL();
  } catch (const longview::ContractError& error) {
    EXPECT_EQ(error.what(), "project: run: workspace too small (got " + std::to_string(memory.size()) +
                                " bytes, expected " + std::to_string(memory.size() + 1) + ")");
  }
  EXPECT_EQ(call.out.values()[0], -77.0F);
}

// ---- Gradients

enum Gradient { d_input, d_matrix, d_convolution, d_slot_bias, d_channel_bias, gradient_count };

/// A backward call in memory, with room for every gradient that the projection has.
template <typename T>
struct Backward {
  Call<T> forward;
  Laid<T, 4> out, input;
  Laid<T, 3> matrix, convolution;
  Laid<T, 2> slot_bias, channel_bias;

  /// `summed`: gradients of what heads have of their own are summed over them.
  Backward(const Problem<T>& of, const reference::Tensor<Real<T>>& d_out, Layout layout = Layout::packed,
           bool summed = false)
      : forward(of, layout),
        out(d_out, layout),
        input(room<T, 4>(of.input.shape(), layout)),
        matrix(room_like<3>(of.projection.matrix, layout, summed)),
        convolution(room_like<3>(of.projection.convolution, layout, false)),
        slot_bias(room_like<2>(of.projection.slot_bias, layout, summed)),
        channel_bias(room_like<2>(of.projection.channel_bias, layout, summed)) {}

  longview::ProjectionGradients<T> gradients(unsigned wanted = ~0U) {
    longview::ProjectionGradients<T> all{.out = out.view()};
    if (wanted >> d_input & 1U) all.input = input.view();
    if (wanted >> d_matrix & 1U) all.matrix = matrix.view();
    if (wanted >> d_convolution & 1U) all.convolution = convolution.view();
    if (wanted >> d_slot_bias & 1U) all.slot_bias = slot_bias.view();
    if (wanted >> d_channel_bias & 1U) all.channel_bias = channel_bias.view();
    return all;
  }
  std::vector<T> values(Gradient of) const {
    if (of == d_input) return input.values();
    if (of == d_matrix) return matrix.values();
    if (of == d_convolution) return convolution.values();
    return (of == d_slot_bias ? slot_bias : channel_bias).values();
  }
  using All = std::vector<std::vector<T>>;
  All values() const {
    All all;
    for (int of = 0; of < gradient_count; ++of) all.push_back(values(static_cast<Gradient>(of)));
    return all;
  }
  All operator()(longview::Run run = {}, unsigned wanted = ~0U) {
    longview::project_backward(forward.input.view(), gradients(wanted), forward.projection(), run);
    return values();
  }

 private:
  template <std::size_t Rank>
  static Laid<T, Rank> room_like(const reference::Tensor<Real<T>>& tensor, Layout layout, bool summed) {
    if (!tensor.present()) return Laid<T, Rank>(reference::Tensor<double>());
    std::vector<Index> shape = tensor.shape();
    if (summed) shape[0] = 1;
    return room<T, Rank>(shape, layout);
  }
};

template <typename T>
bool same_bits(const std::vector<std::vector<T>>& a, const std::vector<std::vector<T>>& b) {
  bool same = a.size() == b.size();
  for (std::size_t i = 0; same && i < a.size(); ++i) same = inputs::same_bits(a[i], b[i]);
  return same;
}

template <typename T>
reference::Tensor<Real<T>> arriving(const Problem<T>& problem) {
  return normal<T>(problem.out_shape(), 6);
}

template <typename T>
void expect_within(const reference::ProjectionGradients<Real<T>>& expected, const Backward<T>& got) {
  const auto expect = [&](const reference::Bounded<Real<T>>& of, Gradient gradient) {
    if (of.present()) {
      EXPECT_TRUE(within(of, got.values(gradient))) << gradient;
    }
  };
  expect(expected.input, d_input);
  expect(expected.matrix, d_matrix);
  expect(expected.convolution, d_convolution);
  expect(expected.slot_bias, d_slot_bias);
  expect(expected.channel_bias, d_channel_bias);
}

template <typename T>
reference::ProjectionGradients<Real<T>> expected_gradients(const Problem<T>& problem,
                                                           const reference::Tensor<Real<T>>& d_out) {
  reference::Precision precision = precision_of<T>();
  // The weights of a wide convolution are very many sums of very few terms, whose errors have no statistics.
  precision.worst_case = problem.projection.convolution.present() && d_out.extent(2) < 8;
  return reference::project_backward<Real<T>>(problem.input, d_out, problem.projection, precision);
}

template <typename T>
void expect_certified_gradients(const Size& size) {
  for (const Kind kind : all_kinds) {
    SCOPED_TRACE(static_cast<int>(kind));
    const Problem<T> problem(size, kind);
    const auto d_out = arriving(problem);
    Backward<T> call(problem, d_out);
    call();
    expect_within<T>(expected_gradients<T>(problem, d_out), call);
  }
}

TEST(ProjectBackward, S16WithinTheCertifiedBound) {
  on_every_set([] {
    for (const Size& size : sizes) {
      SCOPED_TRACE(size.length);
      expect_certified_gradients<float>(size);
      expect_certified_gradients<double>(size);
    }
  });
}

TEST(ProjectBackward, S17EveryLengthAndWidthAroundTheTiles) {
  on_every_set([] {
    for (Index dim = 1; dim <= 52; ++dim) expect_certified_gradients<float>({1, 1, 11, dim, 3, 53 - dim});
    for (const Index length : {63, 64, 65, 127, 128, 129, 143, 144, 145, 400})
      expect_certified_gradients<float>({1, 1, length, 3, 5, 2});
    for (Index slots = 1; slots <= 18; ++slots) expect_certified_gradients<float>({1, 1, 36, 3, slots, 2});
    for (const Index slots : {63, 64, 65, 129, 257}) expect_certified_gradients<float>({1, 1, 2 * slots, 3, slots, 9});
  });
}

TEST(ProjectBackward, G04GradientsOfExtentOneAreSummedOverHeads) {
  on_every_set([] {
    Problem<float> problem({3, 4, 30, 7, 5, 7, true, true}, Kind::matrix);
    const auto d_out = arriving(problem);
    Backward<float> call(problem, d_out, Layout::packed, true);
    call();
    auto expected = expected_gradients<float>(problem, d_out);
    // Neither depends on the projection, so that one for all heads has the sums.
    const Problem<float> shared({3, 4, 30, 7, 5, 7, false, true}, Kind::matrix);
    const auto sums = expected_gradients<float>(shared, d_out);
    expected.matrix = sums.matrix, expected.slot_bias = sums.slot_bias, expected.channel_bias = sums.channel_bias;
    expect_within<float>(expected, call);
  });
}

TEST(ProjectBackward, L01L02L07EveryLayoutGivesTheSameBits) {
  on_every_set([] {
    for (const Size& size : sizes)
      for (const Kind kind : all_kinds) {
        const Problem<float> problem(size, kind);
        const auto d_out = arriving(problem);
        const auto expected = Backward<float>(problem, d_out)();
        for (const Layout layout : all_layouts)
          EXPECT_TRUE(same_bits(Backward<float>(problem, d_out, layout)(), expected));
      }
  });
}

TEST(ProjectBackward, L03RepeatedGradients) {
  for (const Kind kind : all_kinds) {
    const Problem<float> problem({2, 3, 20, 5, 4, 5}, kind);
    auto d_out = arriving(problem);
    for (std::size_t at = 0; at < d_out.elements().size(); ++at) d_out.elements()[at] = 0.5;
    Backward<float> call(problem, d_out);
    const auto expected = call();
    const float half = 0.5F;
    auto gradients = call.gradients();
    gradients.out = {&half, {2, 3, 4, 5}, {0, 0, 0, 0}};
    longview::project_backward(call.forward.input.view(), gradients, call.forward.projection());
    EXPECT_TRUE(same_bits(call.values(), expected));
  }
}

TEST(ProjectBackward, NothingBesideTheGradientsIsWritten) {
  for (const Kind kind : all_kinds) {
    const Problem<float> problem({2, 2, 30, 7, 5, 6, false, true}, kind);
    Backward<float> call(problem, arriving(problem), Layout::gaps);
    call();
    const auto written = [](const std::vector<float>& memory) {
      return static_cast<std::size_t>(std::count_if(memory.begin(), memory.end(), [](float x) { return x == x; }));
    };
    EXPECT_EQ(written(call.input.memory()), call.input.values().size());
    EXPECT_EQ(written(call.matrix.memory()), call.matrix.values().size());
    EXPECT_EQ(written(call.convolution.memory()), call.convolution.values().size());
    EXPECT_EQ(written(call.slot_bias.memory()), call.slot_bias.values().size());
    EXPECT_EQ(written(call.channel_bias.memory()), call.channel_bias.values().size());
  }
}

TEST(ProjectBackward, T01T02EveryExecutorGivesTheSameBits) {
  on_every_set([] {
    for (const Size size : {Size{1, 1, 500, 130, 300, 140, false, true}, Size{3, 2, 40, 6, 5, 6, true, true}})
      for (const Kind kind : all_kinds) {
        const Problem<float> problem(size, kind);
        const auto d_out = arriving(problem);
        const auto expected = Backward<float>(problem, d_out)();
        on_every_executor(
            [&](const auto& executor) { EXPECT_TRUE(same_bits(Backward<float>(problem, d_out)(executor), expected)); });
      }
  });
}

TEST(ProjectBackward, T01AnyNumberOfWorkers) {
  for (const Kind kind : all_kinds) {
    const Problem<float> problem({2, 2, 30, 7, 5, 6, false, true}, kind);
    const auto d_out = arriving(problem);
    const auto expected = Call<float>(problem)();
    const auto gradients = Backward<float>(problem, d_out)();
    for (const Index workers : {Index{1} << 31, Index{1} << 60, std::numeric_limits<Index>::max()}) {
      const longview::Parallel executor{workers, [](Index count, longview::TaskBody body) {
                                          while (count-- > 0) body(count);
                                        }};
      EXPECT_TRUE(inputs::same_bits(Call<float>(problem)(executor), expected));
      EXPECT_TRUE(same_bits(Backward<float>(problem, d_out)(executor), gradients));
    }
  }
}

TEST(ProjectBackward, G02EverySubsetGivesTheSameBits) {
  on_every_set([] {
    for (const Kind kind : all_kinds) {
      const Problem<float> problem({2, 3, 70, 20, 9, 21, true, true}, kind);
      const auto d_out = arriving(problem);
      const auto expected = Backward<float>(problem, d_out)();
      for (unsigned wanted = 0; wanted < 1U << gradient_count; ++wanted) {
        const auto got = Backward<float>(problem, d_out)({}, wanted);
        for (unsigned of = 0; of < gradient_count; ++of) {
          const auto untouched = std::vector<float>(expected[of].size(), -77.0F);
          EXPECT_TRUE(inputs::same_bits(got[of], wanted >> of & 1U ? expected[of] : untouched)) << wanted << ", " << of;
        }
      }
    }
  });
}

TEST(ProjectBackward, S01S02S03EmptyExtents) {
  on_every_set([] {
    // Nothing arrives: gradients are zeros.
    for (const Kind kind : all_kinds)
      for (const Size& size : {Size{0, 2, 12, 3, 4, 3, true, true}, Size{2, 2, 3, 3, 0, 3, true, true},
                               Size{2, 2, 12, 0, 4, 0, true, true}}) {
        Problem<float> problem(size, kind);
        if (size.slots == 0 && kind != Kind::matrix) {
          problem = Problem<float>({2, 2, 3, 3, 1, 3}, kind);
          if (kind == Kind::mean) problem.projection.mean_pool = 4;
          if (kind == Kind::maximum) problem.projection.max_pool = 4;
          if (kind == Kind::convolution) problem.projection.convolution = normal<float>({3, 3, 4}, 1);
        }
        Backward<float> call(problem, arriving(problem));
        for (const auto& gradient : call())
          for (const float x : gradient) EXPECT_TRUE(x == 0 && !std::signbit(x));
      }
  });
  auto input = room<float, 4>({2, 0, 8, 3}), d_out = room<float, 4>({2, 0, 2, 3});
  longview::project_backward(input.view(), {.out = d_out.view(), .input = input.view()}, {.mean_pool = 4});
}

TEST(ProjectBackward, RowsWithoutASlotGetZeros) {
  on_every_set([] {
    for (const Kind kind : {Kind::mean, Kind::maximum, Kind::convolution}) {
      Problem<float> problem({1, 2, 12, 5, 3, 5}, kind);
      const auto d_out = arriving(problem);
      const auto expected = Backward<float>(problem, d_out)();
      auto longer = reference::Tensor<double>({1, 2, 15, 5}, nan_value);
      for (Index h = 0; h < 2; ++h)
        for (Index i = 0; i < 12; ++i)
          for (Index c = 0; c < 5; ++c) longer(0, h, i, c) = problem.input(0, h, i, c);
      problem.input = longer;
      Backward<float> call(problem, d_out);
      const auto got = call();
      EXPECT_TRUE(inputs::same_bits(got[d_convolution], expected[d_convolution]));
      for (Index h = 0; h < 2; ++h)
        for (Index i = 0; i < 15; ++i)
          for (Index c = 0; c < 5; ++c)
            EXPECT_EQ(call.input.view()(0, h, i, c),
                      i < 12 ? expected[d_input][static_cast<std::size_t>((h * 12 + i) * 5 + c)] : 0.0F);
    }
  });
}

/// d_input of one channel under max_pool, with 2, 3, ... arriving.
std::vector<float> through_maximum(const std::vector<float>& rows, Index rate) {
  const auto length = static_cast<Index>(rows.size());
  std::vector<float> d_out(static_cast<std::size_t>(length / rate)), result(rows.size(), -77.0F);
  for (std::size_t s = 0; s < d_out.size(); ++s) d_out[s] = static_cast<float>(s + 2);
  longview::project_backward(
      TensorView<const float, 4>(rows.data(), {1, 1, length, 1}),
      {.out = {d_out.data(), {1, 1, length / rate, 1}}, .input = {result.data(), {1, 1, length, 1}}},
      {.max_pool = rate});
  return result;
}

TEST(ProjectBackward, TheFirstMaximumGetsTheGradient) {
  on_every_set([] {
    const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    EXPECT_EQ(through_maximum({1, 3, 3, 2, 5, 5}, 3), (std::vector<float>{0, 2, 0, 0, 3, 0}));
    EXPECT_EQ(through_maximum({-0.0F, 0.0F, 0.0F, -0.0F}, 2), (std::vector<float>{2, 0, 3, 0}));
    EXPECT_EQ(through_maximum({-infinity, -infinity, 1, infinity}, 2), (std::vector<float>{2, 0, 0, 3}));
    EXPECT_EQ(through_maximum({-1, -3, -2, -2}, 4), (std::vector<float>{2, 0, 0, 0}));
    EXPECT_EQ(through_maximum({infinity, nan, nan, 1, -nan, 5}, 3), (std::vector<float>{0, 2, 0, 0, 3, 0}));
    EXPECT_EQ(through_maximum({nan, 7}, 1), (std::vector<float>{2, 3}));
  });
}

TEST(ProjectBackward, G03ZeroAndNanArriving) {
  on_every_set([] {
    for (const Kind kind : all_kinds) {
      const Problem<float> problem({2, 2, 24, 20, 6, 20, false, true}, kind);
      auto d_out = arriving(problem);
      const auto clean = Backward<float>(problem, d_out)();
      d_out(1, 0, 3, 17) = nan_value;
      Backward<float> call(problem, d_out);
      const auto got = call();
      // Of group 3 where slots are groups, of channel 17 where channels are apart.
      const bool by_channel = kind != Kind::convolution;
      std::size_t at = 0;
      for (Index b = 0; b < 2; ++b)
        for (Index h = 0; h < 2; ++h)
          for (Index i = 0; i < 24; ++i)
            for (Index c = 0; c < 20; ++c, ++at) {
              const bool reached = b == 1 && h == 0 && (kind == Kind::matrix || i / 4 == 3) && (!by_channel || c == 17);
              EXPECT_TRUE(reached || got[d_input][at] == clean[d_input][at]);
              EXPECT_TRUE(!reached || kind == Kind::maximum || std::isnan(got[d_input][at]));
            }
      if (kind == Kind::maximum) {
        const auto count = std::count_if(got[d_input].begin(), got[d_input].end(), [](float x) { return x != x; });
        EXPECT_EQ(count, 1);
      }
      for (std::size_t j = 0; j < got[d_matrix].size(); ++j)
        EXPECT_TRUE(j / 24 == 3 ? std::isnan(got[d_matrix][j]) : got[d_matrix][j] == clean[d_matrix][j]);
      for (std::size_t w = 0; w < got[d_convolution].size(); ++w)
        EXPECT_TRUE(w / 80 == 17 ? std::isnan(got[d_convolution][w])
                                 : got[d_convolution][w] == clean[d_convolution][w]);
      for (std::size_t s = 0; s < 6; ++s)
        EXPECT_TRUE(s == 3 ? std::isnan(got[d_slot_bias][s]) : got[d_slot_bias][s] == clean[d_slot_bias][s]);
      for (std::size_t c = 0; c < 20; ++c)
        EXPECT_TRUE(c == 17 ? std::isnan(got[d_channel_bias][c]) : got[d_channel_bias][c] == clean[d_channel_bias][c]);
    }
    const Problem<float> problem({2, 2, 24, 20, 6, 20, false, true}, Kind::matrix);
    for (const auto& gradient : Backward<float>(problem, reference::Tensor<double>(problem.out_shape()))())
      for (const float x : gradient) EXPECT_EQ(x, 0);
  });
}

TEST(ProjectBackward, M30R02ExactWorkspaceHoldingNan) {
  for (const Kind kind : all_kinds) {
    const Problem<float> problem({2, 1, 100, 30, 20, 20, false, true}, kind);
    const auto d_out = arriving(problem);
    const auto expected = Backward<float>(problem, d_out)();
    for (const Index threads : {1, 3}) {
      const longview::Parallel executor{threads, [](Index count, longview::TaskBody body) {
                                          while (count-- > 0) body(count);
                                        }};
      longview::DryRun rehearsal;
      Backward<float> call(problem, d_out);
      EXPECT_EQ(call({executor, rehearsal})[d_input][0], -77.0F);
      ASSERT_TRUE(rehearsal.ok());
      std::vector<std::byte> memory(rehearsal.workspace_bytes() + 64, std::byte{0xff});
      for (const std::size_t phase : {std::size_t{0}, std::size_t{1}, std::size_t{63}})
        EXPECT_TRUE(
            same_bits(call({executor, std::span(memory).subspan(phase, rehearsal.workspace_bytes())}), expected));
    }
  }
}

TEST(ProjectBackward, R03WorkspaceOneByteShort) {
  const Problem<float> problem({1, 1, 20, 3, 4, 3}, Kind::matrix);
  Backward<float> call(problem, arriving(problem));
  longview::DryRun rehearsal;
  call({longview::Sequential(), rehearsal});
  EXPECT_LE(rehearsal.workspace_bytes(), std::size_t{256} * 1024);
  std::vector<std::byte> memory(rehearsal.workspace_bytes() - 1);
  try {
    call({longview::Sequential(), memory});
    FAIL();
  } catch (const longview::ContractError& error) {
    EXPECT_EQ(error.what(), "project_backward: run: workspace too small (got " + std::to_string(memory.size()) +
                                " bytes, expected " + std::to_string(memory.size() + 1) + ")");
  }
  EXPECT_EQ(call.input.values()[0], -77.0F);
}

TEST(ProjectBackward, ScratchDoesNotGrowWithTheLength) {
  const auto bytes = [](Index length) {
    longview::DryRun rehearsal;
    longview::project_backward(TensorView<const float, 4>(nullptr, {2, 8, length, 128}),
                               {.out = {nullptr, {2, 8, 256, 128}},
                                .input = {nullptr, {2, 8, length, 128}},
                                .matrix = {nullptr, {1, 256, length}}},
                               {.matrix = {nullptr, {1, 256, length}}}, {longview::Sequential(), rehearsal});
    EXPECT_STREQ(rehearsal.error(), "");
    return rehearsal.workspace_bytes();
  };
  EXPECT_EQ(bytes(Index{1} << 20), bytes(Index{1} << 10));
  EXPECT_LE(bytes(Index{1} << 20), std::size_t{256} * 1024);
}

class ProjectionErrors : public ::testing::Test {
 protected:
  using View3 = TensorView<const float, 3>;
  using View2 = TensorView<const float, 2>;

  std::string text(const longview::Projection<float>& projection, const longview::Shape<4>& out_shape = {1, 2, 2, 3}) {
    return error_of([&](longview::Run run) {
      longview::project(TensorView<const float, 4>(input, {1, 2, 8, 3}), TensorView<float, 4>(out, out_shape),
                        projection, run);
    });
  }
  float input[48] = {}, out[48] = {}, weights[64] = {};
};

TEST_F(ProjectionErrors, Kinds) {
  const std::string kinds = "project: projection: exactly one of matrix, mean_pool, max_pool, convolution ";
  EXPECT_EQ(text({}), kinds + "(got 0, expected 1)");
  EXPECT_EQ(text({.mean_pool = 4, .max_pool = 4}), kinds + "(got 2, expected 1)");
  EXPECT_EQ(text({.matrix = View3(weights, {1, 2, 8}), .convolution = View3(weights, {3, 3, 4})}),
            kinds + "(got 2, expected 1)");
  EXPECT_EQ(text({.most_used = 4}),
            "project: projection.most_used: has no meaning outside a compressive memory, which counts uses");
}

TEST_F(ProjectionErrors, C04Rates) {
  EXPECT_EQ(text({.mean_pool = -1}), "project: projection.mean_pool: rate must be >= 1 (got -1)");
  EXPECT_EQ(text({.max_pool = -3}), "project: projection.max_pool: rate must be >= 1 (got -3)");
  EXPECT_EQ(text({.convolution = View3(weights, {3, 3, 0})}),
            "project: projection.convolution: rate must be >= 1 (got 0)");
}

TEST_F(ProjectionErrors, P03Shapes) {
  EXPECT_EQ(text({.matrix = View3(weights, {1, 2, 7})}),
            "project: projection.matrix: length (got 7, expected 8 from input)");
  EXPECT_EQ(text({.matrix = View3(weights, {3, 2, 8})}),
            "project: projection.matrix: heads (got 3, expected 2 from input)");
  EXPECT_EQ(text({.convolution = View3(weights, {3, 4, 4})}),
            "project: projection.convolution: dim in (got 4, expected 3 from input)");
  EXPECT_EQ(text({.mean_pool = 3}, {1, 2, 3, 3}), "project: out: shape (got 1x2x3x3, expected 1x2x2x3)");
  EXPECT_EQ(text({.convolution = View3(weights, {5, 3, 4})}), "project: out: shape (got 1x2x2x3, expected 1x2x2x5)");
  EXPECT_EQ(text({.mean_pool = 4, .slot_bias = View2(weights, {1, 3})}),
            "project: projection.slot_bias: shape (got 1x3, expected 1x2)");
  EXPECT_EQ(text({.mean_pool = 4, .channel_bias = View2(weights, {3, 3})}),
            "project: projection.channel_bias: shape (got 3x3, expected 2x3)");
}

TEST_F(ProjectionErrors, L08L10L13Memory) {
  EXPECT_EQ(text({.matrix = View3(out, {1, 2, 8})}), "project: out: overlaps projection.matrix");
  EXPECT_EQ(text({.mean_pool = 4, .channel_bias = View2(out + 2, {1, 3})}),
            "project: out: overlaps projection.channel_bias");
  const auto call = [&](const float* from, TensorView<float, 4> to, longview::Run run) {
    longview::project(TensorView<const float, 4>(from, {1, 2, 8, 3}), to, {.mean_pool = 4}, run);
  };
  EXPECT_EQ(error_of([&](longview::Run run) {
              call(input, {input, {1, 2, 2, 3}}, run);
            }),
            "project: out: overlaps input");
  EXPECT_EQ(error_of([&](longview::Run run) {
              call(input, {out, {1, 2, 2, 3}, {0, 0, 3, 1}}, run);
            }),
            "project: out: elements overlap (stride 0 on dim 1)");
  try {
    call(nullptr, {out, {1, 2, 2, 3}}, {});
    FAIL();
  } catch (const longview::ContractError& error) {
    EXPECT_STREQ(error.what(), "project: input: null data for 48 elements");
  }
}

TEST_F(ProjectionErrors, S10S11Extents) {
  EXPECT_EQ(error_of([&](longview::Run run) {
              longview::project(TensorView<const float, 4>(input, {1, 2, -1, 3}),
                                TensorView<float, 4>(out, {1, 2, 2, 3}), {.mean_pool = 4}, run);
            }),
            "project: input: extent must be >= 0 (got -1)");
  const Index huge = Index{1} << (std::numeric_limits<Index>::digits / 2 + 1);
  EXPECT_EQ(error_of<longview::SizeError>([&](longview::Run run) {
              longview::project(TensorView<const float, 4>(input, {1, huge, huge, 3}),
                                TensorView<float, 4>(out, {1, 2, 2, 3}), {.mean_pool = 4}, run);
            }),
            "project: input: element count overflows");
}

TEST_F(ProjectionErrors, G07Gradients) {
  using View4 = TensorView<const float, 4>;
  const auto call = [&](const longview::ProjectionGradients<float>& gradients,
                        const longview::Projection<float>& projection) {
    return error_of([&](longview::Run run) {
      longview::project_backward(View4(input, {1, 2, 8, 3}), gradients, projection, run);
    });
  };
  const std::string op = "project_backward: ";
  const longview::Projection<float> matrix{.matrix = View3(weights, {1, 2, 8})}, pool{.max_pool = 4},
      convolution{.convolution = View3(weights, {5, 3, 4})};
  const View4 d_out(input, {1, 2, 2, 3});
  const TensorView<float, 4> d_rows(out, {1, 2, 8, 3});
  EXPECT_EQ(call({.out = d_out, .input = d_rows}, matrix), "no error");
  EXPECT_EQ(call({.input = d_rows}, matrix), op + "gradients.out: is required");
  EXPECT_EQ(call({.out = d_out}, {}),
            op + "projection: exactly one of matrix, mean_pool, max_pool, convolution (got 0, expected 1)");
  EXPECT_EQ(call({.out = {input, {1, 2, 3, 3}}}, matrix), op + "gradients.out: shape (got 1x2x3x3, expected 1x2x2x3)");
  EXPECT_EQ(call({.out = d_out, .input = {out, {1, 2, 7, 3}}}, matrix),
            op + "gradients.input: shape (got 1x2x7x3, expected 1x2x8x3)");
  EXPECT_EQ(call({.out = d_out, .matrix = {out, {1, 2, 8}}}, pool),
            op + "gradients.matrix: has no meaning without a matrix");
  EXPECT_EQ(call({.out = d_out, .convolution = {out, {5, 3, 1}}}, matrix),
            op + "gradients.convolution: has no meaning without a convolution");
  EXPECT_EQ(call({.out = d_out, .matrix = {out, {1, 2, 7}}}, matrix),
            op + "gradients.matrix: shape (got 1x2x7, expected 1x2x8)");
  EXPECT_EQ(call({.out = d_out, .matrix = {out, {3, 2, 8}}}, matrix),
            op + "gradients.matrix: shape (got 3x2x8, expected 2x2x8)");
  EXPECT_EQ(call({.out = {input, {1, 2, 2, 5}}, .convolution = {out, {5, 3, 3}}}, convolution),
            op + "gradients.convolution: shape (got 5x3x3, expected 5x3x4)");
  EXPECT_EQ(call({.out = d_out, .slot_bias = {out, {1, 3}}}, pool),
            op + "gradients.slot_bias: shape (got 1x3, expected 1x2)");
  EXPECT_EQ(call({.out = d_out, .channel_bias = {out, {2, 2}}}, pool),
            op + "gradients.channel_bias: shape (got 2x2, expected 2x3)");
  EXPECT_EQ(call({.out = d_out, .input = {input, {1, 2, 8, 3}}}, pool), op + "gradients.input: overlaps input");
  EXPECT_EQ(call({.out = d_out, .input = d_rows, .matrix = {out, {1, 2, 8}}}, matrix),
            op + "gradients.matrix: overlaps gradients.input");
  EXPECT_EQ(call({.out = d_out, .slot_bias = {out, {2, 2}, {0, 1}}}, pool),
            op + "gradients.slot_bias: elements overlap (stride 0 on dim 0)");
}

template <typename T = double>
std::vector<T> draw(Index heads, Index slots, Index length, std::uint64_t seed) {
  std::vector<T> values(static_cast<std::size_t>(heads * slots * length));
  longview::random_projection(TensorView<T, 3>(values.data(), {heads, slots, length}), seed);
  return values;
}

TEST(RandomProjection, F04TheSameBitsForEqualSeeds) {
  EXPECT_EQ(draw(2, 5, 7, 3), draw(2, 5, 7, 3));
  EXPECT_NE(draw(2, 5, 7, 3), draw(2, 5, 7, 4));
  const auto all = draw(2, 4, 6, 9);
  EXPECT_EQ(std::set<double>(all.begin(), all.end()).size(), all.size());
  // Four slots: the normal numbers of the stream, halved exactly.
  for (Index h = 0; h < 2; ++h)
    for (Index s = 0; s < 4; ++s)
      for (Index j = 0; j < 6; ++j)
        EXPECT_EQ(all[static_cast<std::size_t>((h * 4 + s) * 6 + j)],
                  longview::detail::normal(9, longview::detail::Stream::projection,
                                           static_cast<std::uint64_t>((j * 2 + h) * 4 + s)) /
                      2);
}

TEST(RandomProjection, AShorterOneHoldsTheFirstColumns) {
  const auto whole = draw(2, 3, 10, 1), part = draw(2, 3, 4, 1);
  for (std::size_t row = 0; row < 6; ++row)
    for (std::size_t j = 0; j < 4; ++j) EXPECT_EQ(part[row * 4 + j], whole[row * 10 + j]);
}

TEST(RandomProjection, FloatIsTheRoundedDouble) {
  const auto exact = draw(1, 7, 30, 5);
  const auto rounded = draw<float>(1, 7, 30, 5);
  for (std::size_t i = 0; i < exact.size(); ++i) EXPECT_EQ(rounded[i], static_cast<float>(exact[i]));
}

TEST(RandomProjection, VarianceIsOneOverTheSlots) {
  const auto all = draw(1, 16, 8000, 11);
  double sum = 0, squares = 0;
  for (const double x : all) sum += x, squares += x * x;
  const double count = static_cast<double>(all.size());
  EXPECT_LT(std::abs(sum), 5.8 * std::sqrt(count / 16));
  EXPECT_LT(std::abs(squares / count * 16 - 1), 5.8 * std::sqrt(2 / count));
}

TEST(RandomProjection, AnyStridesAndErrors) {
  const auto packed = draw<double>(1, 3, 5, 2);
  std::vector<double> buffer(15);
  longview::random_projection(TensorView<double, 3>(buffer.data(), {1, 3, 5}, {0, 1, 3}), 2);
  for (std::size_t s = 0; s < 3; ++s)
    for (std::size_t j = 0; j < 5; ++j) EXPECT_EQ(buffer[j * 3 + s], packed[s * 5 + j]);
  const auto text = [](const TensorView<double, 3>& view) {
    try {
      longview::random_projection(view, 2);
    } catch (const longview::ContractError& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(text({nullptr, {1, 3, 5}}), "random_projection: matrix: null data for 15 elements");
  EXPECT_EQ(text({buffer.data(), {2, 3, 5}, {0, 5, 1}}),
            "random_projection: matrix: elements overlap (stride 0 on dim 0)");
  EXPECT_EQ(text({buffer.data(), {1, 0, 5}}), "no error");
}

}  // namespace
