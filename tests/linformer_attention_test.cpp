// SPDX-License-Identifier: Apache-2.0
#include "longview/linformer_attention.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>

#include "longview/full_attention.hpp"
#include "operator_inputs.hpp"
#include "reference/linformer_gradient.hpp"

namespace {

std::atomic<long> allocations{0};

}  // namespace

// Not inlined: GCC would see malloc meet delete, and new meet free.
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* const memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

using namespace inputs;

enum class Kind { matrix, mean, maximum, convolution };
constexpr Kind all_kinds[] = {Kind::matrix, Kind::mean, Kind::maximum, Kind::convolution};

struct Size {
  Index batch, heads, key_heads, queries, keys, dim, value_dim, slots;
  bool shared = false, per_head = false, biases = false;
};

template <typename T>
reference::Projection<Real<T>> projection_of(const Size& size, Kind kind, Index dim, unsigned seed) {
  reference::Projection<Real<T>> projection;
  const Index rate = std::max<Index>(1, size.keys / std::max<Index>(1, size.slots));
  const Index heads = size.per_head ? size.key_heads : 1;
  if (kind == Kind::matrix) projection.matrix = normal<T>({heads, size.slots, size.keys}, seed);
  if (kind == Kind::mean) projection.mean_pool = rate;
  if (kind == Kind::maximum) projection.max_pool = rate;
  if (kind == Kind::convolution) projection.convolution = normal<T>({dim, dim, rate}, seed);
  // Keeps scores in a range where softmax is interesting.
  const auto share = static_cast<Real<T>>(static_cast<T>(1 / std::sqrt(static_cast<double>(dim * size.keys))));
  for (auto& element : projection.matrix.elements()) element = static_cast<T>(element * share);
  for (auto& element : projection.convolution.elements()) element = static_cast<T>(element * share);
  if (size.biases) {
    projection.slot_bias = normal<T>({heads, reference::slots_of(projection, size.keys)}, seed + 1);
    projection.channel_bias = normal<T>({heads, dim}, seed + 2);
  }
  return projection;
}

template <typename T>
struct Problem {
  reference::Tensor<Real<T>> query, key, value;
  reference::LinformerOptions<Real<T>> options;

  Problem(const Size& size, Kind kind)
      : query(normal<T>({size.batch, size.heads, size.queries, size.dim}, 1)),
        key(normal<T>({size.batch, size.key_heads, size.keys, size.dim}, 2)),
        value(normal<T>({size.batch, size.key_heads, size.keys, size.value_dim}, 3)) {
    options.key_projection = projection_of<T>(size, kind, size.dim, 4);
    if (!size.shared) options.value_projection = projection_of<T>(size, kind, size.value_dim, 14);
  }
  reference::AttentionResult<Real<T>> expected() const {
    return reference::linformer_attention<Real<T>>(query, key, value, options, precision_of<T>());
  }
};

template <typename T>
struct Sides {
  Laid<T, 3> matrix, convolution;
  Laid<T, 2> slot_bias, channel_bias;
  Index mean_pool, max_pool;

  Sides(const reference::Projection<Real<T>>& of, Layout layout)
      : matrix(of.matrix, layout),
        convolution(of.convolution, layout),
        slot_bias(of.slot_bias, layout),
        channel_bias(of.channel_bias, layout),
        mean_pool(of.mean_pool),
        max_pool(of.max_pool) {}
  longview::Projection<T> projection() {
    return {.matrix = matrix.view(),
            .mean_pool = mean_pool,
            .max_pool = max_pool,
            .convolution = convolution.view(),
            .slot_bias = slot_bias.view(),
            .channel_bias = channel_bias.view()};
  }
};

template <typename T>
struct Results {
  std::vector<T> out, lse;
  bool operator==(const Results& other) const { return same_bits(out, other.out) && same_bits(lse, other.lse); }
};

template <typename T>
struct Call {
  Laid<T, 4> query, key, value, out;
  Laid<T, 3> lse;
  Sides<T> keys, values;
  Laid<std::uint8_t, 2> keep;
  std::vector<Index> lengths;
  std::vector<T> sinks;
  std::optional<double> scale, softcap;

  explicit Call(const Problem<T>& of, Layout layout = Layout::packed)
      : query(of.query, layout),
        key(of.key, layout),
        value(of.value, layout),
        out(room<T, 4>({of.query.extent(0), of.query.extent(1), of.query.extent(2), of.value.extent(3)}, layout)),
        lse(room<T, 3>({of.query.extent(0), of.query.extent(1), of.query.extent(2)}, layout)),
        keys(of.options.key_projection, layout),
        values(of.options.value_projection.value_or(reference::Projection<Real<T>>{}), layout),
        keep(of.options.keep_keys, layout),
        lengths(of.options.scores.key_lengths) {
    for (const auto sink : of.options.scores.sinks) sinks.push_back(static_cast<T>(sink));
    if (of.options.scores.scale) scale = static_cast<double>(*of.options.scores.scale);
    if (of.options.scores.softcap) softcap = static_cast<double>(*of.options.scores.softcap);
  }
  longview::LinformerOptions<T> options() {
    return {.key_projection = keys.projection(),
            .value_projection = values.projection(),
            .keep_keys = keep.view(),
            .scores = {.scale = scale, .softcap = softcap, .key_lengths = lengths, .sinks = sinks}};
  }
  void run(longview::Run run) {
    longview::linformer_attention(query.view(), key.view(), value.view(), {out.view(), lse.view()}, options(), run);
  }
  Results<T> operator()(longview::Run how = {}) {
    run(how);
    return {out.values(), lse.values()};
  }
};

template <typename T>
void expect_certified(const Problem<T>& problem) {
  const auto expected = problem.expected();
  const auto got = Call<T>(problem)();
  EXPECT_TRUE(within(expected.out, got.out));
  EXPECT_TRUE(within(expected.lse, got.lse));
}

const Size sizes[] = {{1, 1, 1, 1, 1, 1, 1, 1},
                      {2, 4, 2, 33, 50, 5, 7, 6, false, true, true},
                      {1, 3, 3, 60, 130, 16, 16, 20, true, false, true},
                      {2, 6, 1, 7, 65, 33, 20, 64},
                      {1, 2, 2, 100, 64, 64, 64, 70, false, true},
                      {1, 1, 1, 5, 200, 80, 80, 100, true}};

template <typename T>
void expect_all_certified() {
  for (const Size& size : sizes)
    for (const Kind kind : all_kinds) {
      if (kind == Kind::convolution && size.shared && size.dim != size.value_dim) continue;
      SCOPED_TRACE(std::to_string(size.keys) + ", kind " + std::to_string(static_cast<int>(kind)));
      expect_certified<T>(Problem<T>(size, kind));
    }
}

TEST(LinformerAttention, S18WithinTheCertifiedBound) {
  on_every_set([] {
    expect_all_certified<float>();
    expect_all_certified<double>();
  });
}

TEST(LinformerAttention, N13N14N18ScaleSoftcapAndSinks) {
  on_every_set([] {
    for (const double scale : {0.0, -0.5, 0.25}) {
      Problem<float> problem({2, 4, 2, 20, 30, 8, 6, 10}, Kind::matrix);
      problem.options.scores.scale = scale;
      problem.options.scores.softcap = 2;
      problem.options.scores.sinks = {0.5, -1, 3, 0};
      expect_certified(problem);
    }
  });
}

TEST(LinformerAttention, P01TheIdentityIsFullAttention) {
  on_every_set([] {
    Problem<float> problem({1, 2, 2, 30, 70, 16, 12, 70, true}, Kind::matrix);
    for (Index s = 0; s < 70; ++s)
      for (Index j = 0; j < 70; ++j) problem.options.key_projection.matrix(0, s, j) = s == j;
    Call<float> call(problem);
    const auto got = call();
    longview::full_attention(call.query.view(), call.key.view(), call.value.view(), {call.out.view(), call.lse.view()});
    EXPECT_EQ(got.out, call.out.values());
    EXPECT_EQ(got.lse, call.lse.values());
  });
}

TEST(LinformerAttention, S15D2OneSlotIsItsValue) {
  const Problem<float> problem({1, 1, 1, 9, 20, 8, 5, 1, true}, Kind::matrix);
  Call<float> call(problem);
  const auto got = call();
  auto projected = room<float, 4>({1, 1, 1, 5});
  longview::project(call.value.view(), projected.view(), call.keys.projection());
  for (std::size_t i = 0; i < got.out.size(); ++i) EXPECT_EQ(got.out[i], projected.values()[i % 5]);
}

TEST(LinformerAttention, L01L02EveryLayoutGivesTheSameBits) {
  on_every_set([] {
    for (const Kind kind : all_kinds) {
      Problem<float> problem({2, 4, 2, 33, 50, 5, 7, 6, false, true, true}, kind);
      problem.options.keep_keys = reference::Tensor<std::uint8_t>({2, 50}, 1);
      problem.options.keep_keys(1, 3) = 0;
      const auto expected = Call<float>(problem)();
      for (const Layout layout : all_layouts) EXPECT_EQ(Call<float>(problem, layout)(), expected);
    }
  });
}

TEST(LinformerAttention, L03SharedKeysRepeatOverTheBatch) {
  const Problem<float> problem({1, 2, 2, 9, 20, 8, 8, 5}, Kind::matrix);
  Call<float> call(problem);
  const auto alone = call();
  auto out = room<float, 4>({3, 2, 9, 8});
  longview::linformer_attention(call.query.view().slice(0, 0, 3, 0), call.key.view().slice(0, 0, 3, 0),
                                call.value.view().slice(0, 0, 3, 0), out.view(), call.options());
  for (std::size_t i = 0; i < 3 * alone.out.size(); ++i) EXPECT_EQ(out.values()[i], alone.out[i % alone.out.size()]);
}

TEST(LinformerAttention, T01T02EveryExecutorGivesTheSameBits) {
  on_every_set([] {
    for (const Kind kind : all_kinds)
      for (const Size& size : {Size{1, 1, 1, 300, 400, 24, 80, 200}, Size{2, 4, 2, 33, 50, 5, 7, 6}}) {
        const Problem<float> problem(size, kind);
        const auto expected = Call<float>(problem)();
        on_every_executor([&](const auto& executor) { EXPECT_EQ(Call<float>(problem)(executor), expected); });
      }
  });
}

TEST(LinformerAttention, D4ItemsHeadsAndQueriesStandAlone) {
  const Problem<float> problem({2, 4, 2, 40, 50, 6, 5, 9, false, true}, Kind::matrix);
  Call<float> call(problem);
  const auto whole = call();
  auto options = call.options();
  for (Index b = 0; b < 2; ++b)
    for (Index h = 0; h < 4; ++h)
      for (const Index i : {0, 17, 39}) {
        auto part = options;
        part.key_projection.matrix = options.key_projection.matrix.slice(0, h / 2, 1);
        part.value_projection.matrix = options.value_projection.matrix.slice(0, h / 2, 1);
        float row[5];
        longview::linformer_attention(call.query.view().slice(0, b, 1).slice(1, h, 1).slice(2, i, 1),
                                      call.key.view().slice(0, b, 1).slice(1, h / 2, 1),
                                      call.value.view().slice(0, b, 1).slice(1, h / 2, 1),
                                      TensorView<float, 4>(row, {1, 1, 1, 5}), part);
        for (Index c = 0; c < 5; ++c) EXPECT_EQ(row[c], call.out.view()(b, h, i, c));
      }
}

/// Leaves out keys of item 0 in the middle, all keys of item 1, and a suffix of item 2.
template <typename T>
Problem<T> padded(Kind kind, bool by_mask, bool by_length) {
  Problem<T> problem({3, 2, 2, 12, 70, 6, 5, 10, false, true, true}, kind);
  if (by_mask) {
    problem.options.keep_keys = reference::Tensor<std::uint8_t>({3, 70}, 1);
    for (Index j = 0; j < 70; ++j) {
      problem.options.keep_keys(0, j) = static_cast<std::uint8_t>(j % 3 == 1 || (j > 20 && j < 40) ? 0 : j + 1);
      problem.options.keep_keys(1, j) = 0;
      problem.options.keep_keys(2, j) = j < 31;
    }
  }
  if (by_length) problem.options.scores.key_lengths = {70, 0, 33};
  return problem;
}

TEST(LinformerAttention, P03P04M29PaddedRowsAreZerosAndNotRead) {
  on_every_set([] {
    for (const Kind kind : all_kinds)
      for (const auto& [by_mask, by_length] : {std::pair{true, false}, {false, true}, {true, true}}) {
        SCOPED_TRACE(std::to_string(static_cast<int>(kind)) + (by_mask ? " mask" : "") + (by_length ? " length" : ""));
        Problem<float> problem = padded<float>(kind, by_mask, by_length);
        expect_certified(problem);
        const auto expected = Call<float>(problem)();
        // Zeros there give the same; NaN there is not seen.
        for (const double poison : {0.0, nan_value}) {
          Problem<float> changed = problem;
          for (Index b = 0; b < 3; ++b)
            for (Index j = 0; j < 70; ++j) {
              if ((!by_mask || problem.options.keep_keys(b, j)) &&
                  (!by_length || j < problem.options.scores.key_lengths[static_cast<std::size_t>(b)]))
                continue;
              for (Index h = 0; h < 2; ++h) {
                for (Index c = 0; c < 6; ++c) changed.key(b, h, j, c) = poison;
                for (Index c = 0; c < 5; ++c) changed.value(b, h, j, c) = poison;
              }
            }
          EXPECT_EQ(Call<float>(changed)(), expected);
          if (poison == 0) {
            changed.options.keep_keys = {}, changed.options.scores.key_lengths.clear();
            const auto unmasked = Call<float>(changed)();
            EXPECT_EQ(unmasked.out, expected.out);
            EXPECT_EQ(unmasked.lse, expected.lse);
          }
        }
      }
  });
}

TEST(LinformerAttention, M11AMaskForTheWholeBatch) {
  Problem<float> problem({2, 1, 1, 5, 20, 4, 4, 5}, Kind::matrix);
  problem.options.keep_keys = reference::Tensor<std::uint8_t>({2, 20}, 1);
  for (Index b = 0; b < 2; ++b) problem.options.keep_keys(b, 7) = problem.options.keep_keys(b, 19) = 0;
  Call<float> call(problem);
  const auto expected = call();
  auto options = call.options();
  options.keep_keys = options.keep_keys.slice(0, 1, 1);
  longview::linformer_attention(call.query.view(), call.key.view(), call.value.view(), call.out.view(), options);
  EXPECT_TRUE(same_bits(call.out.values(), expected.out));
}

TEST(LinformerAttention, P04NonFiniteKeysStayVisible) {
  Problem<float> problem({2, 1, 1, 5, 20, 4, 4, 5}, Kind::matrix);
  const auto clean = Call<float>(problem)();
  problem.value(1, 0, 7, 2) = nan_value;
  const auto got = Call<float>(problem)();
  for (std::size_t at = 0; at < got.out.size(); ++at)
    EXPECT_TRUE(at >= 20 && at % 4 == 2 ? std::isnan(got.out[at]) : got.out[at] == clean.out[at]) << at;
  EXPECT_TRUE(same_bits(got.lse, clean.lse));
}

TEST(LinformerAttention, P05NoSlots) {
  on_every_set([] {
    for (const Kind kind : all_kinds) {
      Problem<float> problem({2, 2, 1, 5, kind == Kind::matrix ? 6 : 0, 4, 3, 0}, kind);
      const auto got = Call<float>(problem)();
      for (const float x : got.out) EXPECT_TRUE(x == 0 && !std::signbit(x));
      for (const float x : got.lse) EXPECT_EQ(x, -std::numeric_limits<float>::infinity());
    }
    Problem<float> tail({1, 1, 1, 2, 3, 4, 3, 1}, Kind::mean);
    tail.options.key_projection.mean_pool = tail.options.value_projection->mean_pool = 4;
    EXPECT_EQ(Call<float>(tail)().lse[1], -std::numeric_limits<float>::infinity());
  });
}

TEST(LinformerAttention, S01S03S05EmptyExtents) {
  for (const Size& size : {Size{0, 2, 2, 5, 8, 4, 3, 2}, Size{2, 0, 1, 5, 8, 4, 3, 2}, Size{2, 0, 0, 5, 8, 4, 3, 2},
                           Size{2, 2, 2, 0, 8, 4, 3, 2}}) {
    Call<float> call(Problem<float>(size, Kind::matrix));
    longview::DryRun rehearsal;
    call.run({longview::Sequential(), rehearsal});
    EXPECT_EQ(rehearsal.workspace_bytes(), 0U);
    call();
  }
  const Problem<float> problem({1, 2, 2, 5, 8, 4, 0, 2}, Kind::matrix);
  EXPECT_TRUE(within(problem.expected().lse, Call<float>(problem)().lse));
}

TEST(LinformerAttention, S02NoKeysButSlots) {
  const Problem<float> problem({1, 1, 1, 3, 0, 4, 3, 8}, Kind::matrix);
  const auto got = Call<float>(problem)();
  for (const float x : got.out) EXPECT_EQ(x, 0);
  for (const float x : got.lse) EXPECT_FLOAT_EQ(x, std::log(8.0F));
}

TEST(LinformerAttention, M30R02ExactWorkspaceHoldingNan) {
  for (const Kind kind : all_kinds) {
    Problem<float> problem({2, 4, 2, 60, 90, 12, 10, 20, false, true, true}, kind);
    problem.options.keep_keys = reference::Tensor<std::uint8_t>({2, 90}, 1);
    problem.options.scores.key_lengths = {90, 71};
    problem.options.scores.sinks = {0.5, -1, 3, 0};
    const auto expected = Call<float>(problem)();
    for (const Index threads : {1, 3}) {
      const longview::Parallel executor{threads, [](Index count, longview::TaskBody body) {
                                          while (count-- > 0) body(count);
                                        }};
      Call<float> call(problem);
      longview::DryRun rehearsal;
      call.run({executor, rehearsal});
      ASSERT_TRUE(rehearsal.ok());
      EXPECT_EQ(call.out.values()[0], -77.0F);
      std::vector<std::byte> memory(rehearsal.workspace_bytes() + 64, std::byte{0xff});
      for (const std::size_t phase : {std::size_t{0}, std::size_t{1}, std::size_t{63}}) {
        const long before = allocations;
        call.run({executor, std::span(memory).subspan(phase, rehearsal.workspace_bytes())});
        EXPECT_EQ(allocations, before);
        EXPECT_EQ((Results<float>{call.out.values(), call.lse.values()}), expected);
      }
    }
  }
}

TEST(LinformerAttention, R03WorkspaceOneByteShort) {
  Call<float> call(Problem<float>({1, 1, 1, 5, 20, 4, 4, 5}, Kind::matrix));
  longview::DryRun rehearsal;
  call.run({longview::Sequential(), rehearsal});
  std::vector<std::byte> memory(rehearsal.workspace_bytes() - 1);
  try {
    call.run({longview::Sequential(), memory});
    FAIL();
  } catch (const longview::ContractError& error) {
    EXPECT_EQ(error.what(), "linformer_attention: run: workspace too small (got " + std::to_string(memory.size()) +
                                " bytes, expected " + std::to_string(memory.size() + 1) + ")");
  }
  EXPECT_EQ(call.out.values()[0], -77.0F);
}

// ---- Gradients

enum Gradient { d_query, d_key, d_value, d_key_projection, d_value_projection, d_sinks, gradient_count };

template <typename T>
struct Arriving {
  reference::Tensor<Real<T>> out, lse;

  explicit Arriving(const Problem<T>& of)
      : out(normal<T>({of.query.extent(0), of.query.extent(1), of.query.extent(2), of.value.extent(3)}, 31)),
        lse(normal<T>({of.query.extent(0), of.query.extent(1), of.query.extent(2)}, 32)) {}
};

/// Room for the gradients of a projection.
template <typename T>
struct SideGradients {
  Laid<T, 3> matrix, convolution;
  Laid<T, 2> slot_bias, channel_bias;

  SideGradients(const reference::Projection<Real<T>>& of, Layout layout)
      : matrix(room_like<3>(of.matrix, layout)),
        convolution(room_like<3>(of.convolution, layout)),
        slot_bias(room_like<2>(of.slot_bias, layout)),
        channel_bias(room_like<2>(of.channel_bias, layout)) {}
  longview::ProjectionGradients<T> gradients() {
    return {.matrix = matrix.view(),
            .convolution = convolution.view(),
            .slot_bias = slot_bias.view(),
            .channel_bias = channel_bias.view()};
  }
  /// All of them in turn.
  std::vector<T> values() const {
    std::vector<T> all = matrix.values();
    for (const auto& more : {convolution.values(), slot_bias.values(), channel_bias.values()})
      all.insert(all.end(), more.begin(), more.end());
    return all;
  }

 private:
  template <std::size_t Rank>
  static Laid<T, Rank> room_like(const reference::Tensor<Real<T>>& tensor, Layout layout) {
    return tensor.present() ? room<T, Rank>(tensor.shape(), layout) : Laid<T, Rank>(reference::Tensor<double>());
  }
};

/// A backward call in memory, after the forward one.
template <typename T>
struct Backward {
  Call<T> forward;
  Laid<T, 4> d_out, query, key, value;
  Laid<T, 3> d_lse;
  SideGradients<T> keys, values;
  std::vector<T> sinks;

  Backward(const Problem<T>& of, const Arriving<T>& arriving, Layout layout = Layout::packed)
      : forward(of, layout),
        d_out(arriving.out, layout),
        query(room<T, 4>(of.query.shape(), layout)),
        key(room<T, 4>(of.key.shape(), layout)),
        value(room<T, 4>(of.value.shape(), layout)),
        d_lse(arriving.lse, layout),
        keys(of.options.key_projection, layout),
        values(of.options.value_projection.value_or(reference::Projection<Real<T>>{}), layout),
        sinks(of.options.scores.sinks.size(), T(-77)) {
    forward();
  }
  longview::LinformerGradients<T> gradients(unsigned wanted = ~0U) {
    longview::LinformerGradients<T> all{.out = d_out.view(), .lse = d_lse.view()};
    if (wanted >> Gradient::d_query & 1U) all.query = query.view();
    if (wanted >> Gradient::d_key & 1U) all.key = key.view();
    if (wanted >> Gradient::d_value & 1U) all.value = value.view();
    if (wanted >> d_key_projection & 1U) all.key_projection = keys.gradients();
    if (wanted >> d_value_projection & 1U) all.value_projection = values.gradients();
    if (wanted >> d_sinks & 1U) all.scores.sinks = sinks;
    return all;
  }
  void run(longview::Run how, unsigned wanted = ~0U) {
    longview::linformer_attention_backward(forward.query.view(), forward.key.view(), forward.value.view(),
                                           {forward.out.view(), forward.lse.view()}, gradients(wanted),
                                           forward.options(), how);
  }
  using All = std::vector<std::vector<T>>;
  All results() const { return {query.values(), key.values(), value.values(), keys.values(), values.values(), sinks}; }
  All operator()(longview::Run how = {}, unsigned wanted = ~0U) {
    run(how, wanted);
    return results();
  }
};

template <typename T>
bool same_bits(const std::vector<std::vector<T>>& a, const std::vector<std::vector<T>>& b) {
  bool same = a.size() == b.size();
  for (std::size_t i = 0; same && i < a.size(); ++i) same = inputs::same_bits(a[i], b[i]);
  return same;
}

template <typename T>
void expect_side(const reference::ProjectionGradients<Real<T>>& expected, const SideGradients<T>& got) {
  const auto expect = [](const reference::Bounded<Real<T>>& of, const std::vector<T>& values) {
    if (of.present()) {
      EXPECT_TRUE(within(of, values));
    }
  };
  expect(expected.matrix, got.matrix.values());
  expect(expected.convolution, got.convolution.values());
  expect(expected.slot_bias, got.slot_bias.values());
  expect(expected.channel_bias, got.channel_bias.values());
}

template <typename T>
void expect_certified_gradients(const Problem<T>& problem) {
  const Arriving<T> arriving(problem);
  const auto expected = reference::linformer_backward<Real<T>>(
      problem.query, problem.key, problem.value, {arriving.out, arriving.lse}, problem.options, precision_of<T>());
  Backward<T> call(problem, arriving);
  call();
  EXPECT_TRUE(within(expected.query, call.query.values()));
  EXPECT_TRUE(within(expected.key, call.key.values()));
  EXPECT_TRUE(within(expected.value, call.value.values()));
  expect_side<T>(expected.key_projection, call.keys);
  expect_side<T>(expected.value_projection, call.values);
  if (!call.sinks.empty()) {
    EXPECT_TRUE(within(expected.scores.sinks, call.sinks));
  }
}

template <typename T>
void expect_all_gradients_certified() {
  for (const Size& size : sizes)
    for (const Kind kind : all_kinds) {
      if (kind == Kind::convolution && size.shared && size.dim != size.value_dim) continue;
      SCOPED_TRACE(std::to_string(size.keys) + ", kind " + std::to_string(static_cast<int>(kind)));
      expect_certified_gradients<T>(Problem<T>(size, kind));
    }
}

TEST(LinformerBackward, S18WithinTheCertifiedBound) {
  on_every_set([] {
    expect_all_gradients_certified<float>();
    expect_all_gradients_certified<double>();
  });
}

TEST(LinformerBackward, N13N14N18ScaleSoftcapAndSinks) {
  on_every_set([] {
    for (const double scale : {0.0, -0.5, 0.25}) {
      Problem<float> problem({2, 4, 2, 20, 30, 8, 6, 10}, Kind::matrix);
      problem.options.scores.scale = scale;
      problem.options.scores.softcap = 2;
      problem.options.scores.sinks = {0.5, -1, 3, 0};
      expect_certified_gradients(problem);
    }
  });
}

TEST(LinformerBackward, P01TheIdentityIsFullAttention) {
  on_every_set([] {
    Problem<float> problem({1, 2, 2, 30, 70, 16, 12, 70, true}, Kind::matrix);
    for (Index s = 0; s < 70; ++s)
      for (Index j = 0; j < 70; ++j) problem.options.key_projection.matrix(0, s, j) = s == j;
    Backward<float> call(problem, Arriving<float>(problem));
    const auto got = call();
    auto& forward = call.forward;
    longview::full_attention_backward(forward.query.view(), forward.key.view(), forward.value.view(),
                                      {forward.out.view(), forward.lse.view()},
                                      {.out = call.d_out.view(),
                                       .lse = call.d_lse.view(),
                                       .query = call.query.view(),
                                       .key = call.key.view(),
                                       .value = call.value.view()});
    EXPECT_EQ(got[Gradient::d_query], call.query.values());
    EXPECT_EQ(got[Gradient::d_key], call.key.values());
    EXPECT_EQ(got[Gradient::d_value], call.value.values());
  });
}

TEST(LinformerBackward, AFiniteDifferenceThroughBothPasses) {
  for (const bool shared : {true, false})
    for (const Kind kind : all_kinds) {
      Problem<double> problem({2, 2, 1, 5, 13, 4, 4, 3, shared, false, true}, kind);
      problem.options.keep_keys = reference::Tensor<std::uint8_t>({2, 13}, 1);
      problem.options.keep_keys(1, 5) = problem.options.keep_keys(0, 12) = 0;
      const Arriving<double> arriving(problem);
      const auto loss = [&] {
        const auto got = Call<double>(problem)();
        long double sum = 0;
        for (std::size_t at = 0; at < got.out.size(); ++at) sum += arriving.out.elements()[at] * got.out[at];
        for (std::size_t at = 0; at < got.lse.size(); ++at) sum += arriving.lse.elements()[at] * got.lse[at];
        return sum;
      };
      const auto got = Backward<double>(problem, arriving)();
      const auto expect = [&](reference::Tensor<long double>& x, const std::vector<double>& slopes) {
        for (std::size_t i = 0; i < x.elements().size(); i += 7) {
          const long double step = 0x1p-9L, before = x.elements()[i];
          const auto at = [&](long double offset) {
            x.elements()[i] = before + offset;
            const long double value = loss();
            x.elements()[i] = before;
            return value;
          };
          const long double slope = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step);
          EXPECT_NEAR(static_cast<double>(slope), slopes[i], 1e-6) << static_cast<int>(kind) << ", " << i;
        }
      };
      expect(problem.query, got[Gradient::d_query]);
      expect(problem.key, got[Gradient::d_key]);
      expect(problem.value, got[Gradient::d_value]);
      if (kind == Kind::matrix) expect(problem.options.key_projection.matrix, got[d_key_projection]);
      if (kind == Kind::convolution) expect(problem.options.key_projection.convolution, got[d_key_projection]);
    }
}

TEST(LinformerBackward, G02EverySubsetGivesTheSameBits) {
  on_every_set([] {
    for (const bool shared : {true, false})
      for (const Kind kind : all_kinds) {
        Problem<float> problem({2, 4, 2, 33, 50, 7, 7, 6, shared, true, true}, kind);
        problem.options.scores.sinks = {0.5, -1, 3, 0};
        const Arriving<float> arriving(problem);
        const unsigned every = shared ? ~0U & ~(1U << d_value_projection) : ~0U;
        const auto expected = Backward<float>(problem, arriving)({}, every);
        for (unsigned wanted = 0; wanted < 1U << gradient_count; ++wanted) {
          if (shared && (wanted >> d_value_projection & 1U)) continue;
          const auto got = Backward<float>(problem, arriving)({}, wanted);
          for (unsigned of = 0; of < gradient_count; ++of) {
            const std::vector<float> untouched(expected[of].size(), -77.0F);
            EXPECT_TRUE(inputs::same_bits(got[of], wanted >> of & 1U ? expected[of] : untouched))
                << wanted << ", " << of;
          }
        }
      }
  });
}

TEST(LinformerBackward, L01L02L07EveryLayoutGivesTheSameBits) {
  on_every_set([] {
    for (const bool shared : {true, false})
      for (const Kind kind : all_kinds) {
        Problem<float> problem({2, 4, 2, 33, 50, 7, 7, 6, shared, true, true}, kind);
        problem.options.keep_keys = reference::Tensor<std::uint8_t>({2, 50}, 1);
        problem.options.keep_keys(1, 3) = 0;
        const Arriving<float> arriving(problem);
        const auto expected = Backward<float>(problem, arriving)();
        for (const Layout layout : all_layouts)
          EXPECT_TRUE(same_bits(Backward<float>(problem, arriving, layout)(), expected));
      }
  });
}

/// Room for the projected keys and values of a problem.
template <typename T>
struct Projected {
  Laid<T, 4> key, value;

  Projected(const Problem<T>& of, Layout layout)
      : key(room<T, 4>(slots(of.key, of.options.key_projection), layout)),
        value(room<T, 4>(slots(of.value, of.options.value_projection.value_or(of.options.key_projection)), layout)) {}
  void hand_to(longview::LinformerOptions<T>& options) {
    options.projected_key = key.view(), options.projected_value = value.view();
  }

 private:
  static std::vector<Index> slots(const reference::Tensor<Real<T>>& input,
                                  const reference::Projection<Real<T>>& projection) {
    return {input.extent(0), input.extent(1), reference::slots_of(projection, input.extent(2)), input.extent(3)};
  }
};

TEST(LinformerBackward, G02L01ProjectedRowsThatAreHandedOverChangeNoBits) {
  on_every_set([] {
    for (const bool shared : {true, false})
      for (const Kind kind : all_kinds)
        for (const Layout layout : all_layouts) {
          Problem<float> problem({2, 4, 2, 33, 50, 7, 7, 6, shared, true, true}, kind);
          problem.options.keep_keys = reference::Tensor<std::uint8_t>({2, 50}, 1);
          problem.options.keep_keys(1, 3) = 0;
          const Arriving<float> arriving(problem);
          const auto expected = Backward<float>(problem, arriving)();
          Backward<float> call(problem, arriving);
          auto& forward = call.forward;
          const auto out = forward.out.values(), lse = forward.lse.values();
          Projected<float> projected(problem, layout);
          auto options = forward.options();
          projected.hand_to(options);
          longview::linformer_attention(forward.query.view(), forward.key.view(), forward.value.view(),
                                        {forward.out.view(), forward.lse.view()}, options);
          EXPECT_EQ(forward.out.values(), out);
          EXPECT_EQ(forward.lse.values(), lse);
          const auto key = projected.key.values(), value = projected.value.values();
          longview::linformer_attention_backward(forward.query.view(), forward.key.view(), forward.value.view(),
                                                 {forward.out.view(), forward.lse.view()}, call.gradients(), options);
          EXPECT_TRUE(same_bits(call.results(), expected));
          EXPECT_EQ(projected.key.values(), key);
          EXPECT_EQ(projected.value.values(), value);
        }
  });
}

TEST(LinformerAttention, ProjectedRowsAreThoseOfProject) {
  const Problem<float> problem({1, 2, 2, 0, 50, 7, 5, 6, false, true, true}, Kind::matrix);
  Call<float> call(problem);  // no queries: projected all the same
  Projected<float> projected(problem, Layout::packed);
  auto options = call.options();
  projected.hand_to(options);
  longview::linformer_attention(call.query.view(), call.key.view(), call.value.view(), call.out.view(), options);
  auto key = room<float, 4>({1, 2, 6, 7}), value = room<float, 4>({1, 2, 6, 5});
  longview::project(call.key.view(), key.view(), call.keys.projection());
  longview::project(call.value.view(), value.view(), call.values.projection());
  EXPECT_EQ(projected.key.values(), key.values());
  EXPECT_EQ(projected.value.values(), value.values());
}

TEST(LinformerBackward, M30ProjectedRowsThatAreHandedOverNeedNoScratch) {
  Problem<float> problem({1, 2, 2, 60, 90, 16, 16, 64}, Kind::matrix);
  Backward<float> call(problem, Arriving<float>(problem));
  Projected<float> projected(problem, Layout::packed);
  auto options = call.forward.options();
  const auto bytes = [&](bool backward) {
    longview::DryRun rehearsal;
    const longview::Run how{longview::Sequential(), rehearsal};
    auto& of = call.forward;
    if (backward)
      longview::linformer_attention_backward(of.query.view(), of.key.view(), of.value.view(), {of.out.view(), of.lse.view()},
                                             call.gradients(), options, how);
    else
      longview::linformer_attention(of.query.view(), of.key.view(), of.value.view(), {of.out.view(), of.lse.view()}, options,
                                    how);
    return rehearsal.workspace_bytes();
  };
  const auto forward = bytes(false), backward = bytes(true);
  projected.hand_to(options);
  const std::size_t rows = 2 * 2 * 64 * 16 * sizeof(float);
  EXPECT_EQ(bytes(false), forward - rows);
  EXPECT_EQ(bytes(true), backward - rows);
}

TEST(LinformerBackward, T01T02EveryExecutorGivesTheSameBits) {
  on_every_set([] {
    for (const Kind kind : all_kinds)
      for (const Size& size :
           {Size{1, 1, 1, 300, 400, 24, 80, 200}, Size{2, 4, 2, 33, 50, 5, 5, 6, true, false, true}}) {
        const Problem<float> problem(size, kind);
        const Arriving<float> arriving(problem);
        const auto expected = Backward<float>(problem, arriving)();
        on_every_executor([&](const auto& executor) {
          EXPECT_TRUE(same_bits(Backward<float>(problem, arriving)(executor), expected));
        });
      }
  });
}

TEST(LinformerBackward, T01AnyNumberOfWorkers) {
  for (const bool shared : {true, false}) {
    const Problem<float> problem({2, 4, 2, 9, 20, 5, 5, 6, shared, false, true}, Kind::matrix);
    const Arriving<float> arriving(problem);
    const auto expected = Backward<float>(problem, arriving)();
    for (const Index workers : {Index{1} << 31, Index{1} << 60, std::numeric_limits<Index>::max()}) {
      const longview::Parallel executor{workers, [](Index count, longview::TaskBody body) {
                                          while (count-- > 0) body(count);
                                        }};
      EXPECT_EQ(Call<float>(problem)(executor), Call<float>(problem)());
      EXPECT_TRUE(same_bits(Backward<float>(problem, arriving)(executor), expected));
    }
  }
}

TEST(LinformerBackward, P03P04M29PaddedRowsGetZerosAndGiveNothing) {
  on_every_set([] {
    for (const Kind kind : all_kinds)
      for (const auto& [by_mask, by_length] : {std::pair{true, false}, {false, true}, {true, true}}) {
        SCOPED_TRACE(std::to_string(static_cast<int>(kind)) + (by_mask ? " mask" : "") + (by_length ? " length" : ""));
        const Problem<float> problem = padded<float>(kind, by_mask, by_length);
        expect_certified_gradients(problem);
        const Arriving<float> arriving(problem);
        Backward<float> call(problem, arriving);
        const auto expected = call();
        Problem<float> poisoned = problem, zeroed = problem;
        for (Index b = 0; b < 3; ++b)
          for (Index j = 0; j < 70; ++j) {
            if ((!by_mask || problem.options.keep_keys(b, j)) &&
                (!by_length || j < problem.options.scores.key_lengths[static_cast<std::size_t>(b)]))
              continue;
            for (Index h = 0; h < 2; ++h) {
              for (Index c = 0; c < 6; ++c) {
                EXPECT_EQ(call.key.view()(b, h, j, c), 0.0F);
                poisoned.key(b, h, j, c) = nan_value, zeroed.key(b, h, j, c) = 0;
              }
              for (Index c = 0; c < 5; ++c) {
                EXPECT_EQ(call.value.view()(b, h, j, c), 0.0F);
                poisoned.value(b, h, j, c) = nan_value, zeroed.value(b, h, j, c) = 0;
              }
            }
          }
        EXPECT_TRUE(same_bits(Backward<float>(poisoned, arriving)(), expected));
        // Rows of zeros say the same of what is shared, and of maxima to which no row of zeros belongs.
        zeroed.options.keep_keys = {}, zeroed.options.scores.key_lengths.clear();
        const auto unmasked = Backward<float>(zeroed, arriving)();
        for (const Gradient of : {Gradient::d_query, d_key_projection, d_value_projection})
          EXPECT_EQ(unmasked[of], expected[of]) << of;
      }
  });
}

TEST(LinformerBackward, G03NanArrivingMeetsNoPaddedRow) {
  on_every_set([] {
    for (const Kind kind : all_kinds) {
      const Problem<float> problem = padded<float>(kind, true, true);
      Arriving<float> arriving(problem);
      const auto clean = Backward<float>(problem, arriving)();
      arriving.out(2, 1, 5, 3) = nan_value;
      const auto got = Backward<float>(problem, arriving)();
      const auto kept = [&](Index b, Index j) {
        return problem.options.keep_keys(b, j) != 0 &&
               j < problem.options.scores.key_lengths[static_cast<std::size_t>(b)];
      };
      for (std::size_t at = 0; at < got[Gradient::d_key].size(); ++at) {
        const auto place = static_cast<Index>(at / 6);
        const Index j = place % 70, head = place / 70 % 2, b = place / 140;
        EXPECT_TRUE((b == 2 && head == 1) || got[Gradient::d_key][at] == clean[Gradient::d_key][at]) << at;
        if (!kept(b, j)) {
          EXPECT_EQ(got[Gradient::d_key][at], 0.0F);
        }
      }
      // One query row is undefined, and of the matrices the columns that an item with it keeps.
      for (std::size_t at = 0; at < got[Gradient::d_query].size(); ++at)
        EXPECT_EQ(std::isnan(got[Gradient::d_query][at]), at / 6 == (2 * 2 + 1) * 12 + 5) << at;
      if (kind != Kind::matrix) continue;
      for (std::size_t at = 0; at < 2 * 10 * 70; ++at) {
        const bool reached = at / 700 == 1 && kept(2, static_cast<Index>(at % 70));
        EXPECT_EQ(std::isnan(got[d_key_projection][at]), reached) << at;
      }
    }
  });
}

TEST(LinformerBackward, P05S01S02S03EmptyExtents) {
  on_every_set([] {
    for (const Size& size : {Size{2, 2, 1, 5, 6, 4, 3, 0}, Size{2, 2, 1, 0, 6, 4, 3, 2}, Size{2, 2, 1, 5, 0, 4, 3, 2},
                             Size{0, 2, 1, 5, 6, 4, 3, 2}, Size{2, 0, 1, 5, 6, 4, 3, 2}}) {
      const Problem<float> problem(size, Kind::matrix);
      Backward<float> call(problem, Arriving<float>(problem));
      const auto got = call();
      const bool has_scores = size.queries > 0 && size.slots > 0 && size.batch > 0 && size.heads > 0;
      for (const Gradient of : {Gradient::d_query, Gradient::d_key, Gradient::d_value, d_key_projection})
        for (const float x : got[of]) EXPECT_TRUE(has_scores ? std::isfinite(x) : x == 0) << of;
    }
  });
}

TEST(LinformerBackward, G05DropoutIsThatOfTheForwardCall) {
  Problem<double> problem({1, 2, 1, 6, 20, 4, 4, 8}, Kind::matrix);
  const Arriving<double> arriving(problem);
  Backward<double> call(problem, arriving);
  auto options = call.forward.options();
  const auto forward = [&] {
    longview::linformer_attention(call.forward.query.view(), call.forward.key.view(), call.forward.value.view(),
                                  {call.forward.out.view(), call.forward.lse.view()}, options);
  };
  forward();
  const auto without = call.forward.out.values(), sums = call.forward.lse.values();
  options.scores.dropout = {.probability = 0.5, .seed = 3};
  forward();
  EXPECT_NE(call.forward.out.values(), without);
  EXPECT_EQ(call.forward.lse.values(), sums);
  longview::linformer_attention_backward(call.forward.query.view(), call.forward.key.view(), call.forward.value.view(),
                                         {call.forward.out.view(), call.forward.lse.view()}, call.gradients(), options);
  // The output is linear in the values: their gradient times themselves is the loss.
  double loss = 0, by_gradient = 0;
  for (std::size_t at = 0; at < without.size(); ++at)
    loss += static_cast<double>(arriving.out.elements()[at]) * call.forward.out.values()[at];
  for (std::size_t at = 0; at < call.value.values().size(); ++at)
    by_gradient += call.value.values()[at] * static_cast<double>(problem.value.elements()[at]);
  EXPECT_NEAR(by_gradient, loss, 1e-12);
}

TEST(LinformerBackward, M30R02ExactWorkspaceHoldingNan) {
  for (const bool shared : {true, false})
    for (const Kind kind : all_kinds) {
      Problem<float> problem({2, 4, 2, 60, 90, 12, 12, 20, shared, true, true}, kind);
      problem.options.keep_keys = reference::Tensor<std::uint8_t>({2, 90}, 1);
      problem.options.scores.key_lengths = {90, 71};
      problem.options.scores.sinks = {0.5, -1, 3, 0};
      const Arriving<float> arriving(problem);
      const auto expected = Backward<float>(problem, arriving)();
      for (const Index threads : {1, 3}) {
        const longview::Parallel executor{threads, [](Index count, longview::TaskBody body) {
                                            while (count-- > 0) body(count);
                                          }};
        Backward<float> call(problem, arriving);
        longview::DryRun rehearsal;
        call.run({executor, rehearsal});
        ASSERT_STREQ(rehearsal.error(), "");
        EXPECT_EQ(call.query.values()[0], -77.0F);
        std::vector<std::byte> memory(rehearsal.workspace_bytes() + 64, std::byte{0xff});
        for (const std::size_t phase : {std::size_t{0}, std::size_t{1}, std::size_t{63}}) {
          const long before = allocations;
          call.run({executor, std::span(memory).subspan(phase, rehearsal.workspace_bytes())});
          EXPECT_EQ(allocations, before);
          EXPECT_TRUE(same_bits(call.results(), expected));
        }
      }
    }
}

TEST(LinformerBackward, R03WorkspaceOneByteShort) {
  const Problem<float> problem({1, 1, 1, 5, 20, 4, 4, 5}, Kind::matrix);
  Backward<float> call(problem, Arriving<float>(problem));
  longview::DryRun rehearsal;
  call.run({longview::Sequential(), rehearsal});
  std::vector<std::byte> memory(rehearsal.workspace_bytes() - 1);
  try {
    call.run({longview::Sequential(), memory});
    FAIL();
  } catch (const longview::ContractError& error) {
    EXPECT_EQ(error.what(), "linformer_attention_backward: run: workspace too small (got " +
                                std::to_string(memory.size()) + " bytes, expected " +
                                std::to_string(memory.size() + 1) + ")");
  }
  EXPECT_EQ(call.query.values()[0], -77.0F);
}

class LinformerErrors : public ::testing::Test {
 protected:
  using View3 = TensorView<const float, 3>;
  using View4 = TensorView<const float, 4>;

  std::string text(const longview::LinformerOptions<float>& options) {
    return error_of([&](longview::Run run) {
      longview::linformer_attention(View4(query, {1, 2, 3, 4}), View4(key, {1, 2, 6, 4}), View4(value, {1, 2, 6, 5}),
                                    TensorView<float, 4>(out, {1, 2, 3, 5}), options, run);
    });
  }
  longview::LinformerOptions<float> valid() { return {.key_projection = {.matrix = View3(weights, {1, 2, 6})}}; }

  float query[24] = {}, key[48] = {}, value[60] = {}, out[30] = {}, weights[200] = {};
  const std::string op = "linformer_attention: ";
};

TEST_F(LinformerErrors, P02AndOtherScoresWithoutMeaning) {
  EXPECT_EQ(text(valid()), "no error");
  auto options = valid();
  options.scores.causal = true;
  EXPECT_EQ(text(options), op + "options.scores.causal: causal masking is undefined for projected keys");
  options = valid(), options.scores.alignment = longview::Alignment::bottom_right;
  EXPECT_EQ(text(options), op + "options.scores.alignment: has no meaning here: slots have no position");
  const std::uint8_t mask[1] = {1};
  options = valid(), options.scores.keep_mask = {mask, {1, 1, 1, 1}};
  EXPECT_EQ(text(options), op + "options.scores.keep_mask: has no meaning here: keep_keys leaves out keys");
  options = valid(), options.scores.bias = {weights, {1, 1, 1, 1}};
  EXPECT_EQ(text(options), op + "options.scores.bias: has no meaning here: every slot mixes all keys");
  const float slopes[2] = {1, 1};
  options = valid(), options.scores.alibi_slopes = slopes;
  EXPECT_EQ(text(options), op + "options.scores.alibi_slopes: has no meaning here: slots have no position");
}

TEST_F(LinformerErrors, L08ProjectedRows) {
  float key_room[16] = {}, value_room[20] = {};
  auto options = valid();
  options.projected_value = {value_room, {1, 2, 2, 5}};
  EXPECT_EQ(text(options), op + "options.projected_key: is required beside the other projection");
  options.projected_key = {key_room, {1, 1, 2, 4}};
  EXPECT_EQ(text(options), op + "options.projected_key: shape (got 1x1x2x4, expected 1x2x2x4)");
  options.projected_key = {key, {1, 2, 2, 4}};
  EXPECT_EQ(text(options), op + "options.projected_key: overlaps key");
  options.projected_key = {key_room, {1, 2, 2, 4}};
  EXPECT_EQ(text(options), "no error");
}

TEST_F(LinformerErrors, P03Projections) {
  const std::string kinds = "exactly one of matrix, mean_pool, max_pool, convolution (got ";
  EXPECT_EQ(text({}), op + "options.key_projection: " + kinds + "0, expected 1)");
  auto options = valid();
  options.value_projection.mean_pool = 2, options.value_projection.max_pool = 2;
  EXPECT_EQ(text(options), op + "options.value_projection: " + kinds + "2, expected 1)");
  EXPECT_EQ(text({.key_projection = {.matrix = View3(weights, {1, 2, 7})}}),
            op + "options.key_projection.matrix: length (got 7, expected 6 from key)");
  options = valid(), options.value_projection.matrix = View3(weights, {3, 2, 6});
  EXPECT_EQ(text(options), op + "options.value_projection.matrix: heads (got 3, expected 2 from value)");
  options = valid(), options.value_projection.mean_pool = 2;
  EXPECT_EQ(text(options), op + "options.value_projection: slots (got 3, expected 2 from options.key_projection)");
  options = valid(), options.value_projection.slot_bias = {weights, {1, 2}};
  EXPECT_EQ(text(options), op + "options.value_projection: " + kinds + "0, expected 1)");
  EXPECT_EQ(text({.key_projection = {.convolution = View3(weights, {4, 4, 2})}}),
            op + "options.key_projection.convolution: dim in (got 4, expected 5 from value)");
  EXPECT_EQ(text({.key_projection = {.convolution = View3(weights, {5, 4, 2})}}),
            op + "options.key_projection.convolution: dim out (got 5, expected 4 from key)");
  EXPECT_EQ(text({.key_projection = {.mean_pool = -2}}),
            op + "options.key_projection.mean_pool: rate must be >= 1 (got -2)");
  EXPECT_EQ(text({.key_projection = {.most_used = 2}}),
            op + "options.key_projection.most_used: has no meaning outside a compressive memory, which counts uses");
}

TEST_F(LinformerErrors, M10M27N14PaddingAndScores) {
  const std::uint8_t mask[12] = {};
  auto options = valid();
  options.keep_keys = {mask, {2, 6}};
  EXPECT_EQ(text(options), op + "options.keep_keys: shape (got 2x6, expected 1x6)");
  const Index lengths[2] = {7, 0};
  options = valid(), options.scores.key_lengths = std::span(lengths).first(1);
  EXPECT_EQ(text(options), op + "options.scores.key_lengths[0]: out of range (got 7, expected 0 to 6)");
  options.scores.key_lengths = lengths;
  EXPECT_EQ(text(options), op + "options.scores.key_lengths: size (got 2, expected 1 from batch)");
  options = valid(), options.scores.scale = nan_value;
  EXPECT_EQ(text(options), op + "options.scores.scale: must be finite");
  options = valid(), options.scores.softcap = 0;
  EXPECT_EQ(text(options), op + "options.scores.softcap: must be finite and > 0 (got 0.000000)");
  const float sinks[3] = {};
  options = valid(), options.scores.sinks = sinks;
  EXPECT_EQ(text(options), op + "options.scores.sinks: size (got 3, expected 2 from query)");
}

TEST_F(LinformerErrors, L13PaddingWithoutData) {
  auto options = valid();
  options.keep_keys = {nullptr, {1, 6}};
  try {
    longview::linformer_attention(View4(query, {1, 2, 3, 4}), View4(key, {1, 2, 6, 4}), View4(value, {1, 2, 6, 5}),
                                  TensorView<float, 4>(out, {1, 2, 3, 5}), options);
    FAIL();
  } catch (const longview::ContractError& error) {
    EXPECT_EQ(error.what(), op + "options.keep_keys: null data for 6 elements");
  }
}

TEST_F(LinformerErrors, G07Gradients) {
  float lse[6] = {}, room[200] = {}, more[200] = {};
  const auto call = [&](const longview::LinformerGradients<float>& gradients,
                        const longview::LinformerOptions<float>& options, TensorView<const float, 3> of_lse) {
    return error_of([&](longview::Run run) {
      longview::linformer_attention_backward(View4(query, {1, 2, 3, 4}), View4(key, {1, 2, 6, 4}),
                                             View4(value, {1, 2, 6, 5}), {View4(out, {1, 2, 3, 5}), of_lse}, gradients,
                                             options, run);
    });
  };
  const std::string name = "linformer_attention_backward: ";
  const auto text = [&](const longview::LinformerGradients<float>& gradients) {
    return call(gradients, valid(), {lse, {1, 2, 3}});
  };
  const View4 d_out(value, {1, 2, 3, 5});
  EXPECT_EQ(text({.out = d_out, .query = {room, {1, 2, 3, 4}}, .key_projection = {.matrix = {more, {1, 2, 6}}}}),
            "no error");
  EXPECT_EQ(text({.query = {room, {1, 2, 3, 4}}}), name + "gradients.out: is required");
  EXPECT_EQ(call({.out = d_out}, valid(), {}), name + "lse: is required");
  EXPECT_EQ(call({.out = d_out}, valid(), {lse, {1, 3, 2}}), name + "lse: shape (got 1x3x2, expected 1x2x3)");
  EXPECT_EQ(text({.out = {value, {1, 2, 3, 4}}}), name + "gradients.out: shape (got 1x2x3x4, expected 1x2x3x5)");
  EXPECT_EQ(text({.out = d_out, .lse = {lse, {1, 2, 2}}}), name + "gradients.lse: shape (got 1x2x2, expected 1x2x3)");
  EXPECT_EQ(text({.out = d_out, .key = {room, {1, 2, 6, 5}}}),
            name + "gradients.key: shape (got 1x2x6x5, expected 1x2x6x4)");
  EXPECT_EQ(text({.out = d_out, .key_projection = {.matrix = {room, {3, 2, 6}}}}),
            name + "gradients.key_projection.matrix: shape (got 3x2x6, expected 2x2x6)");
  EXPECT_EQ(text({.out = d_out, .key_projection = {.convolution = {room, {4, 4, 2}}}}),
            name + "gradients.key_projection.convolution: has no meaning without a convolution");
  EXPECT_EQ(text({.out = d_out, .key_projection = {.input = {room, {1, 2, 6, 4}}}}),
            name + "gradients.key_projection: out and input belong to project_backward alone");
  EXPECT_EQ(text({.out = d_out, .value_projection = {.matrix = {room, {1, 2, 6}}}}),
            name +
                "gradients.value_projection: is the gradient of something absent: gradients.key_projection holds the "
                "sum of both");
  EXPECT_EQ(text({.out = d_out, .scores = {.sinks = std::span(room).first(2)}}),
            name + "gradients.scores.sinks: is the gradient of something absent");
  EXPECT_EQ(text({.out = d_out, .query = {query, {1, 2, 3, 4}}}), name + "gradients.query: overlaps query");
  EXPECT_EQ(text({.out = d_out, .query = {room, {1, 2, 3, 4}}, .key = {room + 1, {1, 2, 6, 4}}}),
            name + "gradients.key: overlaps gradients.query");
  auto options = valid();
  options.scores.causal = true;
  EXPECT_EQ(call({.out = d_out}, options, {lse, {1, 2, 3}}),
            name + "options.scores.causal: causal masking is undefined for projected keys");
  options = valid(), options.projected_key = {room, {1, 2, 2, 4}};
  EXPECT_EQ(call({.out = d_out}, options, {lse, {1, 2, 3}}),
            name + "options.projected_value: is required beside the other projection");
  options.projected_value = {more, {1, 2, 2, 4}};
  EXPECT_EQ(call({.out = d_out}, options, {lse, {1, 2, 3}}),
            name + "options.projected_value: shape (got 1x2x2x4, expected 1x2x2x5)");
  options.projected_value = {more, {1, 2, 2, 5}};
  EXPECT_EQ(call({.out = d_out, .query = {room + 8, {1, 2, 3, 4}}}, options, {lse, {1, 2, 3}}),
            name + "gradients.query: overlaps options.projected_key");
}

TEST_F(LinformerErrors, S04S06S08S09L08Tensors) {
  const auto call = [&](View4 q, View4 k, View4 v, TensorView<float, 4> to) {
    return error_of([&](longview::Run run) {
      longview::linformer_attention(q, k, v, to, {.key_projection = {.mean_pool = 2}}, run);
    });
  };
  const View4 q(query, {1, 2, 3, 4}), k(key, {1, 2, 6, 4}), v(value, {1, 2, 6, 5});
  const TensorView<float, 4> o(out, {1, 2, 3, 5});
  EXPECT_EQ(call(q, k, v, o), "no error");
  EXPECT_EQ(call({query, {1, 2, 3, 0}}, k, v, o), op + "query: head_dim must be >= 1 (got 0)");
  EXPECT_EQ(call({query, {1, 3, 2, 4}}, k, v, {out, {1, 3, 2, 5}}), op + "key: heads 2 do not divide query heads 3");
  EXPECT_EQ(call(q, {key, {1, 2, 6, 3}}, v, o), op + "key: head_dim (got 3, expected 4 from query)");
  EXPECT_EQ(call(q, k, {value, {1, 2, 5, 5}}, o), op + "value: length (got 5, expected 6 from key)");
  EXPECT_EQ(call(q, k, v, {out, {1, 2, 3, 4}}), op + "out: shape (got 1x2x3x4, expected 1x2x3x5)");
  EXPECT_EQ(call(q, k, v, {value, {1, 2, 3, 5}}), op + "out: overlaps value");
}

TEST_F(LinformerErrors, S11S12SlotsThatDoNotFit) {
  const Index huge = Index{1} << (std::numeric_limits<Index>::digits - 2);
  EXPECT_EQ(error_of<longview::SizeError>([&](longview::Run run) {
              longview::linformer_attention(View4(query, {1, 2, 3, 4}), View4(key, {1, 2, 1, 4}),
                                            View4(value, {1, 2, 1, 5}), TensorView<float, 4>(out, {1, 2, 3, 5}),
                                            {.key_projection = {.matrix = View3(weights, {1, huge, 1}, {0, 0, 1})}},
                                            run);
            }),
            op + "options.key_projection.matrix: byte count overflows");
  const Index many = Index{1} << (std::numeric_limits<Index>::digits - 5);
  EXPECT_EQ(error_of<longview::SizeError>([&](longview::Run run) {
              longview::linformer_attention(View4(query, {1, 2, 3, 4}), View4(key, {1, 2, 1, 4}),
                                            View4(value, {1, 2, 1, 5}), TensorView<float, 4>(out, {1, 2, 3, 5}),
                                            {.key_projection = {.matrix = View3(weights, {1, many, 1}, {0, 0, 1})}},
                                            run);
            }),
            op + "options.key_projection: byte count of the projected rows overflows");
}

}  // namespace
