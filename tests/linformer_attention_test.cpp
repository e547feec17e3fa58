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
#include "reference/linformer.hpp"

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
