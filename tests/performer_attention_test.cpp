// SPDX-License-Identifier: Apache-2.0
// Kernelised attention against its definition, and the promises of the contract, under every instruction set.
#include "longview/performer_attention.hpp"

#include "performer_case.hpp"

namespace {

using namespace performer;

class Performer : public testing::TestWithParam<InstructionSet> {
 protected:
  void SetUp() override { use_instruction_set(GetParam()); }
  void TearDown() override { use_instruction_set(instruction_sets().back()); }
};
INSTANTIATE_TEST_SUITE_P(Sets, Performer, testing::ValuesIn(instruction_sets()),
                         [](const auto& test) { return std::string(name_of(test.param)); });

template <typename T>
void check_definition(const Case& c) {
  Data<T> data(c);
  const auto expected = reference::performer_attention<double>(data.query, data.key, data.value, data.definition(),
                                                               Data<T>::precision());
  expect_within(data.run(), expected, testing::PrintToString(c));
}

TEST_P(Performer, MatchesTheDefinition) {
  for (const Case& c : definition_cases()) {
    check_definition<float>(c);
    check_definition<double>(c);
    if (HasFatalFailure()) return;
  }
}

TEST_P(Performer, S16_DimensionsAroundEveryEdge) {
  for (const Index d : {1, 2, 15, 16, 17, 31, 48, 64, 65})
    for (const Index dv : {1, 7, 8, 9, 64})
      for (const Index rows : {1, 15, 16, 17, 47, 48, 49, 95, 96, 97, 193}) {
        check_definition<float>({.causal = (d + rows) % 2 == 0, .batch = 1, .heads = 1, .queries = 11, .keys = 11,
                                 .head_dim = d, .value_dim = dv, .rows = rows, .size = 0.3});
        if (HasFatalFailure()) return;
      }
}

TEST_P(Performer, S17_LengthsAroundEveryEdge) {
  for (const Index n : {1, 2, 15, 16, 17, 47, 48, 49, 95, 96, 97, 145})
    for (const bool causal : {false, true}) {
      check_definition<float>({.causal = causal, .batch = 1, .queries = n, .keys = n, .value_dim = 9});
      check_definition<double>({.causal = causal, .batch = 1, .queries = n, .keys = n, .value_dim = 9});
      if (HasFatalFailure()) return;
    }
}

TEST_P(Performer, FeaturesMatchTheDefinition) {
  for (Case c : definition_cases()) {
    if (!c.normalize || c.guard > 0 || c.key_sum_epsilon > 0) continue;
    for (const FeatureSide side : {FeatureSide::query, FeatureSide::key}) {
      if (side == FeatureSide::query) c.padded = false;
      Data<float> data(c);
      const auto expected = reference::performer_features<double>(
          data.key, static_cast<reference::FeatureSide>(side), data.definition(), Data<float>::precision());
      const Index count = feature_count(c.features, c.projected ? c.rows : c.head_dim);
      std::vector<float> out(static_cast<std::size_t>(c.batch * c.key_heads * c.keys * count), static_cast<float>(not_a_number));
      performer_features(data.key_view(), side, TensorView(out.data(), {c.batch, c.key_heads, c.keys, count}),
                         data.options());
      expect_within(out, expected, testing::PrintToString(c) + (side == FeatureSide::query ? " query" : " key"));
      if (HasFatalFailure()) return;
    }
  }
}

// ---- Exactness.

template <typename T>
std::vector<T> streamed(Data<T>& data, const std::vector<Index>& steps, bool fork) {
  const Case& c = data.c;
  const Index features = feature_count(c.features, c.rows);
  PerformerState<T> state({c.batch, c.key_heads, features, c.value_dim});
  std::fill(data.out.begin(), data.out.end(), static_cast<T>(not_a_number));
  Index first = 0;
  std::vector<Index> lengths(static_cast<std::size_t>(c.batch));
  for (std::size_t at = 0; first < c.queries; ++at) {
    const Index count = std::min(steps[at % steps.size()], c.queries - first);
    PerformerOptions<T> options = data.options();
    if (c.padded) {
      for (std::size_t b = 0; b < lengths.size(); ++b)
        lengths[b] = std::clamp<Index>(data.lengths[b] - first, 0, count);
      options.key_lengths = lengths;
      options.keep_keys = TensorView<const std::uint8_t, 2>(options.keep_keys).slice(1, first, count);
    }
    PerformerState<T> copy = state;
    performer_attention(data.query_view().slice(2, first, count), data.key_view().slice(2, first, count),
                        data.value_view().slice(2, first, count), data.out_view().slice(2, first, count),
                        fork ? copy : state, options);
    if (fork) state = copy;
    first += count;
  }
  EXPECT_EQ(state.length(), c.queries);
  return data.out;
}

TEST_P(Performer, D01_D02_F03_StreamsAreBitwiseOneCall) {
  for (const Case& c : bitwise_cases(true)) {
    Data<float> data(c);
    const std::vector<float> whole = data.run();
    const std::vector<std::vector<Index>> chunkings{{1}, {7}, {48}, {50, 1, 3}, {100, 2}, {13, 29, 1, 1}};
    for (const std::vector<Index>& steps : chunkings)
      EXPECT_TRUE(same_bits(streamed(data, steps, steps.size() > 1), whole)) << c << " steps " << steps[0];
    Data<double> wide(c);
    const std::vector<double> all = wide.run();
    EXPECT_TRUE(same_bits(streamed(wide, {1, 31}, false), all)) << c;
  }
}

TEST_P(Performer, F02_LaterKeysChangeNothing) {
  for (const Case& c : bitwise_cases(true)) {
    Data<float> data(c);
    const std::vector<float> before = data.run();
    for (const float poison : {1e3F, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      for (const Index j : {Index{20}, Index{75}, Index{140}}) {
        Data<float> changed(c);
        for (Index b = 0; b < c.batch; ++b)
          for (Index h = 0; h < c.key_heads; ++h)
            for (Index t = j; t < c.keys; ++t) {
              for (Index e = 0; e < c.head_dim; ++e) changed.key_view()(b, h, t, e) = poison;
              for (Index e = 0; e < c.value_dim; ++e) changed.value_view()(b, h, t, e) = poison;
            }
        changed.run();
        Data<float> original(c);
        original.out = before;
        for (Index b = 0; b < c.batch; ++b)
          for (Index h = 0; h < c.heads; ++h)
            for (Index i = 0; i < j; ++i)
              ASSERT_EQ(std::memcmp(&changed.out_view()(b, h, i, 0), &original.out_view()(b, h, i, 0),
                                    static_cast<std::size_t>(c.value_dim) * sizeof(float)),
                        0)
                  << c << " row " << i << " key " << j;
      }
    }
  }
}

template <typename T>
void expect_same_through_executors(const Case& c) {
  Data<T> data(c);
  const std::vector<T> expected = data.run();
  through_executors({2, 3, 4, 5, 8, 16, 64}, [&](Run how, Index threads) {
    EXPECT_TRUE(same_bits(data.run(how), expected)) << c << " threads " << threads;
  });
}

TEST_P(Performer, T01_T02_AnyExecutorGivesTheSameBits) {
  for (const bool causal : {false, true})
    for (Case c : bitwise_cases(causal)) {
      expect_same_through_executors<float>(c);
      if (c.features >= FeatureMap::relu) continue;
      c.stabiliser = Stabiliser::reference, c.epsilon.reset();
      if (c.features != FeatureMap::trigonometric) c.epsilon = 1e-6;
      c.guard = 1e-6;
      expect_same_through_executors<double>(c);
    }
}

/// Segments of a causal call begin with the very sums of one sweep, also where keys grow and their shift moves.
TEST_P(Performer, T01_SegmentsOfGrowingKeys) {
  for (const FeatureMap map : {FeatureMap::positive, FeatureMap::hyperbolic, FeatureMap::trigonometric})
    for (const Stabiliser stabiliser : {Stabiliser::prefix, Stabiliser::reference, Stabiliser::fixed})
      for (const bool padded : {false, true}) {
        const Case c{.features = map,
                     .stabiliser = stabiliser,
                     .causal = true,
                     .padded = padded,
                     .batch = 1,
                     .queries = 500,
                     .keys = 500,
                     .head_dim = 4,
                     .value_dim = 3,
                     .rows = 100};
        Data<float> data(c);
        for (Index j = 0; j < c.keys; ++j)
          for (Index e = 0; e < c.head_dim; ++e) data.key_view()(0, 0, j, e) *= 1 + static_cast<float>(j) / 64;
        for (Index j = 0; padded && j < 160; ++j) data.keep(0, j) = 0;
        const std::vector<float> expected = data.run();
        for (const Index threads : {2, 3, 5, 11, 40})
          EXPECT_TRUE(same_bits(data.run(longview::Run(Parallel{threads, Sequential()})), expected))
              << c << " threads " << threads;
      }
}

TEST_P(Performer, L01_L02_L03_AnyLayoutGivesTheSameBits) {
  for (const bool causal : {false, true})
    for (const Case& c : bitwise_cases(causal)) {
      Data<float> data(c);
      const std::vector<float> expected = data.run();
      // (batch, length, heads, dim) with an inner step of 3, length backwards, one element off any alignment.
      const auto spread = [&](TensorView<float, 4> from, std::vector<float>& storage) {
        const Index b = from.extent(0), h = from.extent(1), n = from.extent(2), d = from.extent(3);
        storage.assign(static_cast<std::size_t>(b * h * n * d * 3 + 1), static_cast<float>(not_a_number));
        TensorView<float, 4> to(storage.data() + 1, {b, h, n, d}, {n * h * d * 3, d * 3, h * d * 3, 3});
        to = to.slice(2, n - 1, n, -1);
        for (Index i = 0; i < b; ++i)
          for (Index j = 0; j < h; ++j)
            for (Index k = 0; k < n; ++k)
              for (Index e = 0; e < d; ++e) to(i, j, k, e) = from(i, j, k, e);
        return to;
      };
      std::vector<float> q, k, v, o, w(static_cast<std::size_t>(2 * c.rows * c.head_dim));
      const auto query = spread(data.query_view(), q), key = spread(data.key_view(), k);
      const auto value = spread(data.value_view(), v), out = spread(data.out_view(), o);
      const TensorView<float, 2> projection(w.data(), {c.rows, c.head_dim}, {1, 2 * c.rows});
      for (Index f = 0; f < c.rows; ++f)
        for (Index e = 0; e < c.head_dim; ++e) projection(f, e) = data.w[static_cast<std::size_t>(f * c.head_dim + e)];
      auto options = data.options();
      options.projection = projection;
      performer_attention(query, key, value, out, options);
      for (Index b = 0; b < c.batch; ++b)
        for (Index h = 0; h < c.heads; ++h)
          for (Index i = 0; i < c.queries; ++i)
            for (Index e = 0; e < c.value_dim; ++e) data.out_view()(b, h, i, e) = out(b, h, i, e);
      EXPECT_TRUE(same_bits(data.out, expected)) << c;

      // Heads that repeat by a stride of 0 are those of a group.
      const auto repeated = [&](TensorView<float, 4> from) {
        const Shape<4> shape{from.extent(0), c.heads / 2, from.extent(2), from.extent(3)};
        return TensorView<const float, 4>(from.data_handle(), shape, {from.stride(0), 0, from.stride(2), from.stride(3)});
      };
      performer_attention(data.query_view().slice(1, 0, 2), repeated(data.key_view()), repeated(data.value_view()),
                          data.out_view().slice(1, 0, 2), data.options());
      EXPECT_TRUE(same_bits(data.out, expected)) << c;
    }
}

TEST_P(Performer, BatchNeighboursDoNotMatter) {
  for (const bool causal : {false, true})
    for (const Case& c : bitwise_cases(causal)) {
      if (c.padded) continue;
      Data<float> data(c);
      const std::vector<float> expected = data.run();
      std::fill(data.out.begin(), data.out.end(), 0.0F);
      for (Index b = 0; b < c.batch; ++b)
        performer_attention(data.query_view().slice(0, b, 1), data.key_view().slice(0, b, 1),
                            data.value_view().slice(0, b, 1), data.out_view().slice(0, b, 1), data.options());
      EXPECT_TRUE(same_bits(data.out, expected)) << c;
    }
}

TEST_P(Performer, M29_M30_PaddingAndWorkspaceAreNeverRead) {
  for (const bool causal : {false, true})
    for (Case c : bitwise_cases(causal)) {
      if (!c.padded) continue;
      for (const Stabiliser stabiliser : {Stabiliser::prefix, Stabiliser::reference}) {
        c.stabiliser = c.features == FeatureMap::softmax ? Stabiliser::reference : stabiliser;
        Data<float> data(c);
        const std::vector<float> expected = data.run();
        EXPECT_TRUE(std::none_of(expected.begin(), expected.end(), [](float x) { return std::isnan(x); })) << c;
        for (Index b = 0; b < c.batch; ++b)
          for (Index j = 0; j < c.keys; ++j) {
            if (j < data.lengths[static_cast<std::size_t>(b)] && data.keep(b, j) != 0) continue;
            for (Index h = 0; h < c.key_heads; ++h) {
              for (Index e = 0; e < c.head_dim; ++e) data.key_view()(b, h, j, e) = static_cast<float>(not_a_number);
              for (Index e = 0; e < c.value_dim; ++e) data.value_view()(b, h, j, e) = static_cast<float>(not_a_number);
            }
          }
        for (const Index threads : {1, 7}) {
          const Parallel executor{threads, Sequential()};
          DryRun rehearsal;
          data.run(longview::Run(executor, rehearsal));
          ASSERT_TRUE(rehearsal.ok());
          std::vector<std::byte> workspace(rehearsal.workspace_bytes(), std::byte{0xff});
          EXPECT_TRUE(same_bits(data.run(longview::Run(executor, workspace)), expected)) << c;
        }
      }
    }
}

TEST_P(Performer, M30_WhatTheWorkspaceHeldRaisesNoFlags) {
  for (const bool causal : {false, true})
    for (const Case& c : bitwise_cases(causal)) {
      Data<float> data(c);
      for (const Index threads : {1, 3}) {
        const Parallel executor{threads, Sequential()};
        EXPECT_EQ(test::flags_of(executor, [&](longview::Run how) { data.run(how); }), 0) << c << " threads " << threads;
      }
    }
}

TEST_P(Performer, RowsWithoutKeysAreZero) {
  for (const bool causal : {false, true}) {
    Case c{.causal = causal, .padded = true, .queries = 60, .keys = 60};
    Data<float> data(c);
    data.lengths = {0, 60};
    for (Index j = 0; j < 60; ++j) data.keep(1, j) = j >= 50;
    data.run();
    for (Index h = 0; h < c.heads; ++h)
      for (Index i = 0; i < c.queries; ++i)
        for (Index e = 0; e < c.value_dim; ++e) {
          EXPECT_EQ(data.out_view()(0, h, i, e), 0);
          EXPECT_EQ(data.out_view()(1, h, i, e) == 0, causal && i < 50) << i;
        }
  }
}

TEST_P(Performer, NonFiniteValuesStayInTheirRowsAndColumns) {
  Case c{.causal = true, .batch = 1, .heads = 1, .queries = 100, .keys = 100};
  Data<float> data(c);
  const std::vector<float> before = data.run();
  data.value_view()(0, 0, 60, 2) = static_cast<float>(not_a_number);
  data.run();
  for (Index i = 0; i < 100; ++i)
    for (Index e = 0; e < c.value_dim; ++e) {
      const float got = data.out_view()(0, 0, i, e);
      if (i >= 60 && e == 2)
        EXPECT_TRUE(std::isnan(got));
      else
        EXPECT_EQ(got, before[static_cast<std::size_t>(i * c.value_dim + e)]) << i << " " << e;
    }
}

// ---- Range.

TEST_P(Performer, F01_KeysOfNormAThousand) {
  for (const bool causal : {false, true}) {
    Case c{.causal = causal, .batch = 1, .heads = 1, .queries = 200, .keys = 200, .head_dim = 64, .rows = 256};
    Data<float> data(c);
    for (float& x : data.k) x *= 250;
    for (const float x : data.run()) ASSERT_TRUE(std::isfinite(x));
    for (float& x : data.v) x = 3;
    for (const float x : data.run()) ASSERT_NEAR(x, 3, 1e-5);
  }
}

TEST_P(Performer, F05_QueriesWhoseFeaturesUnderflow) {
  for (const bool causal : {false, true}) {
    Case c{.causal = causal, .batch = 1, .heads = 1, .queries = 60, .keys = 60, .head_dim = 64, .rows = 64};
    Data<float> data(c);
    for (float& x : data.q) x *= 32;
    for (double& x : data.query.elements()) x *= 32;
    for (const float x : data.run()) ASSERT_TRUE(std::isfinite(x));
    Data<double> wide(c);
    wide.query = data.query;
    for (double& x : wide.q) x *= 32;
    const auto expected = reference::performer_attention<double>(wide.query, wide.key, wide.value, wide.definition(),
                                                                 Data<double>::precision());
    expect_within(data.out, reference::performer_attention<double>(data.query, data.key, data.value, data.definition(),
                                                                   Data<float>::precision()),
                  "float");
    expect_within(wide.run(), expected, "double");
  }
}

TEST_P(Performer, F07_SumsDoNotStagnate) {
  const Index n = 200000;
  for (const bool causal : {false, true}) {
    Case c{.features = FeatureMap::relu, .causal = causal, .projected = false, .epsilon = 0.1, .batch = 1, .heads = 1,
           .queries = causal ? n : 1, .keys = n, .head_dim = 1, .value_dim = 1};
    c.normalize = false;
    Data<float> data(c);
    std::fill(data.k.begin(), data.k.end(), 0.7F);
    std::fill(data.q.begin(), data.q.end(), 0.9F);
    std::fill(data.v.begin(), data.v.end(), 0.3F);
    const double epsilon = static_cast<double>(0.1F), phi = static_cast<double>(0.7F) + epsilon;
    const double psi = static_cast<double>(0.9F) + epsilon;
    const double expected = static_cast<double>(n) * phi * psi * static_cast<double>(0.3F);
    // A chain of one chunk and a few roundings more; one chain over all keys would be off by thousands.
    EXPECT_NEAR(static_cast<double>(data.run().back()) / expected, 1, 56 * 0x1p-24);
  }
}

TEST_P(Performer, F03_LongStreamsStayWithinTheBound) {
  // Keys grow, so that the sums are moved again and again.
  Case c{.causal = true, .batch = 1, .heads = 1, .queries = 700, .keys = 700, .head_dim = 4, .value_dim = 3, .rows = 24};
  Data<float> data(c);
  for (Index j = 0; j < c.keys; ++j)
    for (Index e = 0; e < c.head_dim; ++e) {
      const auto at = static_cast<std::size_t>(j * c.head_dim + e);
      data.key.elements()[at] *= 1 + static_cast<double>(j) / 64;
      data.k[at] = static_cast<float>(data.key.elements()[at]);
      data.key.elements()[at] = static_cast<double>(data.k[at]);
    }
  const auto expected = reference::performer_attention<double>(data.query, data.key, data.value, data.definition(),
                                                               Data<float>::precision());
  const std::vector<float> whole = data.run();
  expect_within(whole, expected, "growing keys");
  EXPECT_TRUE(same_bits(streamed(data, {1}, false), whole));
}

// ---- The door.

TEST_P(Performer, S01_S02_S03_S05_EmptyExtents) {
  for (const bool causal : {false, true}) {
    for (Case c : {Case{.causal = causal, .queries = 0, .keys = causal ? 0 : 3}, Case{.causal = causal, .batch = 0},
                   Case{.causal = causal, .heads = 0, .key_heads = 0}, Case{.causal = causal, .value_dim = 0},
                   Case{.features = FeatureMap::trigonometric, .stabiliser = Stabiliser::reference, .causal = causal,
                        .normalize = false, .heads = 0, .key_heads = 0}})
      Data<float>(c).run();
  }
  Data<float> none(Case{.keys = 0});
  for (const float x : none.run()) EXPECT_EQ(x, 0);
}

// ---- What is left to the backward call.

TEST_P(Performer, ProjectedRowsAreThoseOfTheDefinition) {
  for (Case c : definition_cases()) {
    if (!c.projected) continue;
    Data<float> data(c);
    const std::vector<float> expected = data.run();
    data.leave(data.may_leave());
    EXPECT_TRUE(same_bits(data.run(), expected)) << c;
    const bool exponential = c.features <= FeatureMap::trigonometric;
    const auto scale = static_cast<double>(
        static_cast<float>(exponential ? 1 / std::sqrt(std::sqrt(static_cast<double>(c.head_dim))) : 1));
    // One rounding of the scaled input, and a chain of head_dim fused multiply-adds.
    const double unit = 0x1p-24, roundings = static_cast<double>(c.head_dim + 1);
    const auto check = [&](int side, const reference::Tensor<double>& input, const auto& exists) {
      const TensorView<float, 4>& got = data.left_views[side];
      for (Index b = 0; b < got.extent(0); ++b)
        for (Index h = 0; h < got.extent(1); ++h)
          for (Index i = 0; i < got.extent(2); ++i)
            for (Index f = 0; f < c.rows; ++f) {
              if (!exists(b, i)) {
                ASSERT_EQ(got(b, h, i, f), 0) << c;
                continue;
              }
              double exact = 0, size = 0;
              for (Index e = 0; e < c.head_dim; ++e) {
                const double term = data.projection(f, e) * input(b, h, i, e) * scale;
                exact += term, size += std::abs(term);
              }
              ASSERT_LE(std::abs(static_cast<double>(got(b, h, i, f)) - exact), 1.01 * roundings * unit * size) << c;
            }
    };
    check(0, data.query, [](Index, Index) { return true; });
    check(1, data.key, [&](Index b, Index j) {
      return !c.padded || (j < data.lengths[static_cast<std::size_t>(b)] && data.keep(b, j) != 0);
    });
    if (HasFatalFailure()) return;
  }
}

/// The result is what features of queries make of the sums.
TEST_P(Performer, KeySumsAreThoseOfTheResult) {
  for (Case c : definition_cases()) {
    if (c.causal || c.guard > 0 || !c.normalize) continue;
    Data<double> data(c);
    data.leave(Data<double>::left_sums);
    data.run();
    const TensorView<double, 4>& sums = data.left_views[2];
    const Index count = sums.extent(3);
    std::vector<double> storage(static_cast<std::size_t>(c.batch * c.heads * c.queries * count));
    const TensorView<double, 4> features(storage.data(), {c.batch, c.heads, c.queries, count});
    auto options = data.options();
    options.key_lengths = {}, options.keep_keys = {}, options.key_sums = {};
    performer_features(data.query_view(), FeatureSide::query, features, options);
    const double roundings = 0x1p-53 * 4 * static_cast<double>(count + c.keys);
    for (Index b = 0; b < c.batch; ++b)
      for (Index h = 0; h < c.heads; ++h)
        for (Index i = 0; i < c.queries; ++i)
          for (Index e = 0; e < c.value_dim; ++e) {
            const Index g = h / (c.heads / c.key_heads);
            double numerator = 0, denominator = 0, sizes[2] = {};
            for (Index f = 0; f < count; ++f) {
              // Softmax over positions: features of a channel sum to 1, wherever their shift.
              const double z = sums(b, g, c.value_dim, f), shift = std::exp2(sums(b, g, c.value_dim + 1, f));
              const double factor = features(b, h, i, f) * (c.features == FeatureMap::softmax ? 1 / z : shift);
              const double above = factor * sums(b, g, e, f), below = factor * z;
              numerator += above, denominator += below, sizes[0] += std::abs(above), sizes[1] += std::abs(below);
            }
            const double ratio = numerator / denominator;
            const double bound = roundings * (sizes[0] + sizes[1] * std::abs(ratio)) / std::abs(denominator);
            ASSERT_LE(std::abs(data.out_view()(b, h, i, e) - ratio), bound) << c;
          }
  }
}

TEST_P(Performer, KeySumsAreSumsOfFeatures) {
  const Case c{.stabiliser = Stabiliser::fixed, .padded = true, .keys = 90, .shift = 0.5};
  Data<double> data(c);
  data.leave(Data<double>::left_sums);
  data.run();
  std::vector<double> storage(static_cast<std::size_t>(c.batch * c.key_heads * c.keys * c.rows));
  const TensorView<double, 4> features(storage.data(), {c.batch, c.key_heads, c.keys, c.rows}), &sums = data.left_views[2];
  auto options = data.options();
  options.key_sums = {};
  performer_features(data.key_view(), FeatureSide::key, features, options);
  for (Index b = 0; b < c.batch; ++b)
    for (Index f = 0; f < c.rows; ++f) {
      EXPECT_DOUBLE_EQ(sums(b, 0, c.value_dim + 1, f), 0.5 * 1.4426950408889634);
      for (Index e = 0; e <= c.value_dim; ++e) {
        double sum = 0, size = 0;
        for (Index j = 0; j < c.keys; ++j) {
          const double feature = features(b, 0, j, f) * std::sqrt(static_cast<double>(c.rows));
          const double term = feature == 0 ? 0 : feature * (e < c.value_dim ? data.value(b, 0, j, e) : 1);
          sum += term, size += std::abs(term);
        }
        ASSERT_LE(std::abs(sums(b, 0, e, f) - sum), 0x1p-53 * static_cast<double>(c.keys + 8) * size);
      }
    }
}

TEST_P(Performer, S02_WithoutQueriesKeysAreLeftAllTheSame) {
  Case c{.queries = 0, .keys = 60};
  Data<float> none(c);
  none.leave(none.may_leave());
  none.run();
  c.queries = 5;
  Data<float> some(c);
  some.k = none.k, some.v = none.v, some.w = none.w;
  some.leave(some.may_leave());
  some.run();
  EXPECT_TRUE(same_bits(none.left[1], some.left[1]));
  EXPECT_TRUE(same_bits(none.left[2], some.left[2]));
}

TEST_P(Performer, D01_StreamsLeaveTheirRows) {
  for (const Case& c : bitwise_cases(true)) {
    if (c.padded) continue;
    Data<float> data(c);
    data.leave(data.may_leave());
    data.run();
    const std::vector<float> query = data.left[0], key = data.left[1];
    data.leave(data.may_leave());
    PerformerState<float> state({c.batch, c.key_heads, feature_count(c.features, c.rows), c.value_dim});
    for (Index first = 0; first < c.queries; first += 31) {
      const Index count = std::min<Index>(31, c.queries - first);
      auto options = data.options();
      options.projected_query = options.projected_query.slice(2, first, count);
      options.projected_key = options.projected_key.slice(2, first, count);
      performer_attention(data.query_view().slice(2, first, count), data.key_view().slice(2, first, count),
                          data.value_view().slice(2, first, count), data.out_view().slice(2, first, count), state, options);
    }
    EXPECT_TRUE(same_bits(data.left[0], query)) << c;
    EXPECT_TRUE(same_bits(data.left[1], key)) << c;
  }
}

TEST(PerformerContract, R02_R03_WorkspaceIsExact) {
  for (const bool causal : {false, true})
    for (const Index threads : {1, 3, 16}) {
      Data<float> data(Case{.causal = causal});
      const std::vector<float> expected = data.run();
      const Parallel executor{threads, Sequential()};
      DryRun rehearsal;
      const std::vector<float> before = data.out;
      performer_attention(data.query_view(), data.key_view(), data.value_view(), data.out_view(), data.options(),
                          longview::Run(executor, rehearsal));
      EXPECT_TRUE(same_bits(data.out, before));
      std::vector<std::byte> workspace(rehearsal.workspace_bytes() + 1);
      const auto exact = std::span(workspace).subspan(1);
      EXPECT_TRUE(same_bits(data.run(longview::Run(executor, exact)), expected));
      EXPECT_EQ(error_of([&] { data.run(longview::Run(executor, exact.subspan(1))); }),
                "performer_attention: run: workspace too small (got " + std::to_string(exact.size() - 1) +
                    " bytes, expected " + std::to_string(exact.size()) + ")");
    }
}

TEST(PerformerContract, ErrorTexts) {
  const auto refused = [](const std::string& text, const Case& c, const auto& change) {
    Data<float> data(c);
    auto query = data.query_view(), key = data.key_view(), value = data.value_view(), out = data.out_view();
    auto options = data.options();
    change(data, query, key, value, out, options);
    EXPECT_EQ(error_of([&] { performer_attention(query, key, value, out, options); }), text);
    DryRun rehearsal;
    performer_attention(query, key, value, out, options, longview::Run(Sequential(), rehearsal));
    // A rehearsal has no data yet.
    EXPECT_EQ(rehearsal.error(), text.find("null data") == std::string::npos ? text : "");
  };
#define LONGVIEW_CHANGE                                                                                                 \
  []([[maybe_unused]] auto& data, [[maybe_unused]] auto& query, [[maybe_unused]] auto& key, [[maybe_unused]] auto& value, \
     [[maybe_unused]] auto& out, [[maybe_unused]] auto& options)
  const Case plain, causal{.causal = true};
  refused("performer_attention: options.projection: head_dim (got 7, expected 8 from query)", plain,
          LONGVIEW_CHANGE { options.projection = options.projection.slice(1, 0, 7); });
  refused("performer_attention: options.projection: rows must be >= 1 (got 0)", plain,
          LONGVIEW_CHANGE { options.projection = options.projection.slice(0, 0, 0); });
  refused("performer_attention: query: head_dim must be >= 1 (got 0)", plain,
          LONGVIEW_CHANGE { query = query.slice(3, 0, 0); });
  refused("performer_attention: key: head_dim (got 7, expected 8 from query)", plain,
          LONGVIEW_CHANGE { key = key.slice(3, 0, 7); });
  refused("performer_attention: value: length (got 52, expected 53 from key)", plain,
          LONGVIEW_CHANGE { value = value.slice(2, 0, 52); });
  refused("performer_attention: key: heads must be >= 1 (got 0)", plain,
          LONGVIEW_CHANGE { key = key.slice(1, 0, 0), value = value.slice(1, 0, 0); });
  refused("performer_attention: key: heads 2 do not divide query heads 3", Case{.heads = 3, .key_heads = 2},
          LONGVIEW_CHANGE {});
  refused("performer_attention: key: length (got 54, expected 53 from query, under causal)",
          Case{.causal = true, .keys = 54}, LONGVIEW_CHANGE {});
  refused("performer_attention: out: shape (got 2x2x52x5, expected 2x2x53x5)", plain,
          LONGVIEW_CHANGE { out = out.slice(2, 0, 52); });
  refused("performer_attention: out: overlaps query", plain,
          LONGVIEW_CHANGE { out = {query.data_handle(), out.shape()}; });
  refused("performer_attention: out: elements overlap (stride 0 on dim 2)", plain,
          LONGVIEW_CHANGE { out = {out.data_handle(), out.shape(), {1000, 100, 0, 1}}; });
  refused("performer_attention: value: null data for 530 elements", plain,
          LONGVIEW_CHANGE { value = {nullptr, value.shape()}; });
  refused("performer_attention: options.input_scale: must be finite", plain, LONGVIEW_CHANGE { options.input_scale = not_a_number; });
  refused("performer_attention: options.epsilon: must be >= 0 (got -1.000000)", plain,
          LONGVIEW_CHANGE { options.epsilon = -1; });
  refused("performer_attention: options.denominator_guard: must be >= 0 (got -1.000000)", plain,
          LONGVIEW_CHANGE { options.denominator_guard = -1; });
  refused("performer_attention: options.key_sum_epsilon: must be finite", causal,
          LONGVIEW_CHANGE { options.key_sum_epsilon = not_a_number; });
  refused("performer_attention: options.key_sum_epsilon: has no meaning without causal", plain,
          LONGVIEW_CHANGE { options.key_sum_epsilon = 1; });
  refused("performer_attention: options.fixed_shift: must be finite", plain, LONGVIEW_CHANGE { options.fixed_shift = not_a_number; });
  refused("performer_attention: options.fixed_shift: has no meaning without Stabiliser::fixed", plain,
          LONGVIEW_CHANGE { options.fixed_shift = 1; });
  refused("performer_attention: options.fixed_shift: has no meaning for relu, elu_plus_one and softmax features",
          Case{.features = FeatureMap::relu, .stabiliser = Stabiliser::fixed}, LONGVIEW_CHANGE { options.fixed_shift = 1; });
  refused("performer_attention: options.epsilon: has no meaning for trigonometric and softmax features",
          Case{.features = FeatureMap::trigonometric}, LONGVIEW_CHANGE { options.epsilon = 1; });
  refused("performer_attention: options.epsilon: must be 0 under causal and Stabiliser::prefix, whose shift moves from row "
          "to row", causal, LONGVIEW_CHANGE { options.epsilon = 1e-6; });
  refused("performer_attention: options.stabiliser: prefix has no meaning for softmax features, whose channels have a sum "
          "each", Case{.features = FeatureMap::softmax}, LONGVIEW_CHANGE {});
  refused("performer_attention: options.key_lengths: size (got 1, expected 2 from batch)", Case{.padded = true},
          LONGVIEW_CHANGE { options.key_lengths = options.key_lengths.first(1); });
  refused("performer_attention: options.key_lengths[1]: out of range (got 54, expected 0 to 53)", Case{.padded = true},
          LONGVIEW_CHANGE { data.lengths[1] = 54; });
  refused("performer_attention: options.keep_keys: shape (got 2x52, expected 2x53)", Case{.padded = true},
          LONGVIEW_CHANGE { options.keep_keys = options.keep_keys.slice(1, 0, 52); });
  const auto leaving = [](auto& of, int which) {
    of.leave(which);
    return of.options();
  };
  refused("performer_attention: options.projected_query: has no meaning without a projection", Case{.projected = false},
          [&](auto& data, auto&, auto&, auto&, auto&, auto& options) { options = leaving(data, 1); });
  refused("performer_attention: options.projected_key: has no meaning without a projection", Case{.projected = false},
          [&](auto& data, auto&, auto&, auto&, auto&, auto& options) { options = leaving(data, 2); });
  refused("performer_attention: options.key_sums: has no meaning under causal: every query has sums of its own", causal,
          [&](auto& data, auto&, auto&, auto&, auto&, auto& options) { options = leaving(data, 4); });
  refused("performer_attention: options.projected_query: shape (got 2x2x53x16, expected 2x2x53x17)", plain,
          [&](auto& data, auto&, auto&, auto&, auto&, auto& options) {
            options = leaving(data, 7), options.projected_query = options.projected_query.slice(3, 0, 16);
          });
  refused("performer_attention: options.projected_key: shape (got 2x1x52x17, expected 2x1x53x17)", plain,
          [&](auto& data, auto&, auto&, auto&, auto&, auto& options) {
            options = leaving(data, 7), options.projected_key = options.projected_key.slice(2, 0, 52);
          });
  refused("performer_attention: options.key_sums: shape (got 2x1x6x17, expected 2x1x7x17)", plain,
          [&](auto& data, auto&, auto&, auto&, auto&, auto& options) {
            options = leaving(data, 7), options.key_sums = options.key_sums.slice(2, 0, 6);
          });
  refused("performer_attention: options.projected_key: overlaps query", plain,
          [&](auto& data, auto& query, auto&, auto&, auto&, auto& options) {
            options = leaving(data, 7), options.projected_key = {query.data_handle(), options.projected_key.shape()};
          });
  refused("performer_attention: options.key_sums: overlaps options.projected_key", plain,
          [&](auto& data, auto&, auto&, auto&, auto&, auto& options) {
            options = leaving(data, 7),
            options.key_sums = {options.projected_key.data_handle(), options.key_sums.shape()};
          });
#undef LONGVIEW_CHANGE
}

TEST(PerformerContract, S09_SizesThatOverflowAreRefusedBeforeTheyAreUsed) {
  const auto error = [](const Shape<4>& keys, const Shape<4>& values) {
    const TensorView<float, 4> rows(nullptr, keys), value(nullptr, values);
    DryRun rehearsal;
    const PerformerOptions<float> options{.features = FeatureMap::trigonometric};
    performer_attention(rows, rows, value, value, options, longview::Run(Sequential(), rehearsal));
    return std::string(rehearsal.error());
  };
  constexpr Index most = std::numeric_limits<Index>::max();
  EXPECT_NE(error({0, 1, 4, 4}, {0, 1, 4, most}), "");
  EXPECT_NE(error({0, 1, 4, most}, {0, 1, 4, 4}), "");
}

TEST(PerformerContract, StatesAreCheckedAndUnchangedByErrors) {
  Data<float> data(Case{.causal = true});
  const auto call = [&](PerformerState<float>& state, const PerformerOptions<float>& options) {
    return error_of([&] {
      performer_attention(data.query_view(), data.key_view(), data.value_view(), data.out_view(), state, options);
    });
  };
  PerformerState<float> wrong({2, 1, 16, 5}), right({2, 1, 17, 5});
  EXPECT_EQ(call(wrong, data.options()), "performer_attention: state: shape (got 2x1x16x5, expected 2x1x17x5)");
  auto options = data.options();
  options.causal = false;
  EXPECT_EQ(call(right, options), "performer_attention: options.causal: must be set: a state holds a prefix");
  options.causal = true, options.stabiliser = Stabiliser::reference;
  EXPECT_EQ(call(right, options),
            "performer_attention: options.stabiliser: reference has no meaning with a state: later keys are not known");
  EXPECT_EQ(right.length(), 0);
  EXPECT_EQ(call(right, data.options()), "");
  const std::vector<float> first = data.out;
  EXPECT_TRUE(same_bits(data.run(), first));
  right.reset();
  EXPECT_EQ(right.length(), 0);
  EXPECT_EQ(call(right, data.options()), "");
  EXPECT_TRUE(same_bits(data.out, first));
  EXPECT_EQ(error_of([] { PerformerState<float>({1, -1, 4, 4}); }), "PerformerState: shape: heads must be >= 0 (got -1)");
  EXPECT_EQ(error_of([] { PerformerState<float>({Index{1} << 40, 1, 64, Index{1} << 20}); }),
            "SizeError PerformerState: shape: byte count overflows");
}

TEST(PerformerContract, FeaturesAreChecked) {
  Data<float> data(Case{});
  std::vector<float> out(2 * 1 * 53 * 17);
  const auto call = [&](const PerformerOptions<float>& options, FeatureSide side, Index count) {
    return error_of([&] { performer_features(data.key_view(), side, TensorView(out.data(), {2, 1, 53, count}), options); });
  };
  auto options = data.options();
  EXPECT_EQ(call(options, FeatureSide::key, 16), "performer_features: out: shape (got 2x1x53x16, expected 2x1x53x17)");
  options.normalize = false;
  EXPECT_EQ(call(options, FeatureSide::key, 17), "performer_features: options.normalize: has no meaning for features alone");
  options = data.options(), options.denominator_guard = 1;
  EXPECT_EQ(call(options, FeatureSide::key, 17),
            "performer_features: options.denominator_guard: has no meaning for features alone");
  data.leave(Data<float>::left_sums);
  EXPECT_EQ(call(data.options(), FeatureSide::key, 17),
            "performer_features: options.key_sums: has no meaning for features alone");
  data.leave(0);
  options = data.options();
  const std::vector<Index> lengths{53, 53};
  options.key_lengths = lengths;
  EXPECT_EQ(call(options, FeatureSide::query, 17), "performer_features: options.key_lengths: has no meaning for queries");
  EXPECT_EQ(call(options, FeatureSide::key, 17), "");
}

}  // namespace
