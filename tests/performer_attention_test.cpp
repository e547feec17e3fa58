// SPDX-License-Identifier: Apache-2.0
// Kernelised attention against its definition, and the promises of the contract, under every instruction set.
#include "longview/performer_attention.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <thread>

#include "kernels/kernels.hpp"
#include "reference/performer.hpp"

namespace {

using namespace longview;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> sets;
  for (const auto set : {InstructionSet::portable, InstructionSet::baseline, InstructionSet::avx2, InstructionSet::avx512})
    if (available(set)) sets.push_back(set);
  return sets;
}

/// One call, without data.
struct Case {
  FeatureMap features = FeatureMap::positive;
  Stabiliser stabiliser = Stabiliser::prefix;
  bool causal = false, normalize = true, projected = true, padded = false;
  double guard = 0, key_sum_epsilon = 0;
  std::optional<double> epsilon{};
  Index batch = 2, heads = 2, key_heads = 1, queries = 53, keys = 53, head_dim = 8, value_dim = 5, rows = 17;
  double size = 0.5, shift = 0;
};
std::ostream& operator<<(std::ostream& out, const Case& of) {
  return out << "map " << static_cast<int>(of.features) << " stabiliser " << static_cast<int>(of.stabiliser) << " causal "
             << of.causal << " normalize " << of.normalize << " projected " << of.projected << " padded " << of.padded
             << " guard " << of.guard << " epsilon " << of.epsilon.value_or(-1) << " shape " << of.queries << "x" << of.keys
             << "x" << of.head_dim << "x" << of.value_dim << "x" << of.rows;
}

/// Inputs that float holds exactly, in both precisions.
template <typename T>
struct Data {
  explicit Data(const Case& of, unsigned seed = 7) : c(of), generator(seed) {
    query = draw({c.batch, c.heads, c.queries, c.head_dim}, c.size);
    key = draw({c.batch, c.key_heads, c.keys, c.head_dim}, c.size);
    value = draw({c.batch, c.key_heads, c.keys, c.value_dim}, 1);
    projection = draw({c.rows, c.head_dim}, 1);
    keep = reference::Tensor<std::uint8_t>({c.batch, c.keys}, 1);
    for (Index b = 0; c.padded && b < c.batch; ++b) {
      lengths.push_back(std::max<Index>(0, c.keys - 3 - b));
      for (Index j = 0; j < c.keys; j += 5) keep(b, j) = 0;
    }
    q = rounded(query), k = rounded(key), v = rounded(value), w = rounded(projection);
    out.assign(static_cast<std::size_t>(c.batch * c.heads * c.queries * c.value_dim), static_cast<T>(nan));
  }
  reference::Tensor<double> draw(const std::vector<Index>& shape, double size) {
    reference::Tensor<double> tensor(shape);
    std::normal_distribution<double> normal;
    for (double& x : tensor.elements()) x = static_cast<double>(static_cast<float>(size * normal(generator)));
    return tensor;
  }
  static std::vector<T> rounded(const reference::Tensor<double>& tensor) {
    return std::vector<T>(tensor.elements().begin(), tensor.elements().end());
  }

  TensorView<T, 4> query_view() { return {q.data(), {c.batch, c.heads, c.queries, c.head_dim}}; }
  TensorView<T, 4> key_view() { return {k.data(), {c.batch, c.key_heads, c.keys, c.head_dim}}; }
  TensorView<T, 4> value_view() { return {v.data(), {c.batch, c.key_heads, c.keys, c.value_dim}}; }
  TensorView<T, 4> out_view() { return {out.data(), {c.batch, c.heads, c.queries, c.value_dim}}; }
  PerformerOptions<T> options() const {
    PerformerOptions<T> result{.features = c.features, .epsilon = c.epsilon, .stabiliser = c.stabiliser,
                               .fixed_shift = c.shift, .causal = c.causal, .normalize = c.normalize,
                               .denominator_guard = c.guard, .key_sum_epsilon = c.key_sum_epsilon};
    if (c.projected) result.projection = {w.data(), {c.rows, c.head_dim}};
    if (c.padded) {
      result.key_lengths = lengths;
      result.keep_keys = {keep.elements().data(), {c.batch, c.keys}};
    }
    return result;
  }
  reference::PerformerOptions<double> definition() const {
    reference::PerformerOptions<double> result;
    result.features = static_cast<reference::FeatureMap>(c.features);
    result.stabiliser = static_cast<reference::Stabiliser>(c.stabiliser);
    if (c.projected) result.projection = projection;
    if (c.epsilon) result.epsilon = static_cast<double>(static_cast<T>(*c.epsilon));
    result.fixed_shift = c.shift, result.causal = c.causal, result.normalize = c.normalize;
    result.denominator_guard = static_cast<double>(static_cast<T>(c.guard));
    result.key_sum_epsilon = static_cast<double>(static_cast<T>(c.key_sum_epsilon));
    if (c.padded) result.key_lengths = lengths, result.keep_keys = keep;
    return result;
  }
  static reference::Precision precision() {
    return sizeof(T) == 4 ? reference::float_kernel() : reference::double_kernel();
  }
  const std::vector<T>& run(Run how = {}) {
    std::fill(out.begin(), out.end(), static_cast<T>(nan));
    performer_attention(query_view(), key_view(), value_view(), out_view(), options(), how);
    return out;
  }

  Case c;
  std::mt19937 generator;
  reference::Tensor<double> query, key, value, projection;
  reference::Tensor<std::uint8_t> keep;
  std::vector<Index> lengths;
  std::vector<T> q, k, v, w, out;
};

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// The double oracle is itself evaluated in double: a few roundoffs of its own are allowed for.
template <typename T>
void expect_within(const std::vector<T>& got, const reference::Bounded<double>& expected, const std::string& what) {
  const double own = sizeof(T) == 8 ? 64 * 0x1p-53 : 0;
  for (std::size_t at = 0; at < got.size(); ++at) {
    const double wanted = expected.value.elements()[at], bound = expected.radius.elements()[at] + own * std::abs(wanted);
    ASSERT_LE(std::abs(static_cast<double>(got[at]) - wanted), bound)
        << what << " at " << at << ": " << got[at] << ", expected " << wanted;
  }
}

class Performer : public testing::TestWithParam<InstructionSet> {
 protected:
  void SetUp() override { use_instruction_set(GetParam()); }
  void TearDown() override { use_instruction_set(instruction_sets().back()); }
};
INSTANTIATE_TEST_SUITE_P(Sets, Performer, testing::ValuesIn(instruction_sets()),
                         [](const auto& test) { return std::string(name_of(test.param)); });

std::vector<Case> definition_cases() {
  std::vector<Case> cases;
  for (int map = 0; map < 6; ++map)
    for (int stabiliser = 0; stabiliser < 3; ++stabiliser)
      for (int flags = 0; flags < 8; ++flags)
        for (int variant = 0; variant < 3; ++variant) {
          Case c{.features = static_cast<FeatureMap>(map), .stabiliser = static_cast<Stabiliser>(stabiliser)};
          const bool exponential = map < 3, softmax = c.features == FeatureMap::softmax;
          if ((softmax && stabiliser != 1) || (!exponential && !softmax && stabiliser != 0)) continue;
          c.causal = (flags & 1) != 0, c.normalize = (flags & 2) == 0, c.projected = (flags & 4) == 0;
          if (c.stabiliser == Stabiliser::fixed) c.shift = 0.5;
          if (variant == 1) {
            c.guard = 1e-6, c.key_sum_epsilon = c.causal ? 1e-6 : 0;
            const bool refused = c.features == FeatureMap::trigonometric || softmax ||
                                 (exponential && c.causal && c.stabiliser == Stabiliser::prefix);
            if (!refused) c.epsilon = 1e-4;
            c.queries = c.keys = 20, c.head_dim = 16, c.value_dim = 16, c.rows = 40, c.size = 1;
          } else if (variant == 2) {
            c.queries = c.keys = 101, c.head_dim = 3, c.value_dim = 33, c.rows = 130, c.padded = true, c.batch = 1;
          }
          if (!c.causal) c.keys += 30;
          cases.push_back(c);
        }
  return cases;
}

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
      std::vector<float> out(static_cast<std::size_t>(c.batch * c.key_heads * c.keys * count), static_cast<float>(nan));
      performer_features(data.key_view(), side, TensorView(out.data(), {c.batch, c.key_heads, c.keys, count}),
                         data.options());
      expect_within(out, expected, testing::PrintToString(c) + (side == FeatureSide::query ? " query" : " key"));
      if (HasFatalFailure()) return;
    }
  }
}

// ---- Exactness.

/// Cases in which streams, layouts and executors must agree to the bit.
std::vector<Case> bitwise_cases(bool causal) {
  std::vector<Case> cases;
  for (const FeatureMap map : {FeatureMap::positive, FeatureMap::hyperbolic, FeatureMap::trigonometric, FeatureMap::relu,
                               FeatureMap::elu_plus_one, FeatureMap::softmax})
    for (const bool padded : {false, true})
      cases.push_back({.features = map,
                       .stabiliser = map == FeatureMap::softmax ? Stabiliser::fixed : Stabiliser::prefix,
                       .causal = causal, .padded = padded, .heads = 4, .key_heads = 2, .queries = 151, .keys = 151,
                       .value_dim = 9, .rows = 100, .size = padded ? 2.0 : 0.5});
  return cases;
}

template <typename T>
std::vector<T> streamed(Data<T>& data, const std::vector<Index>& steps, bool fork) {
  const Case& c = data.c;
  const Index features = feature_count(c.features, c.rows);
  PerformerState<T> state({c.batch, c.key_heads, features, c.value_dim});
  std::fill(data.out.begin(), data.out.end(), static_cast<T>(nan));
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
  for (const Index threads : {2, 3, 4, 5, 8, 16, 64}) {
    const auto reversed = [](Index count, TaskBody body) {
      for (Index task = count; task-- > 0;) body(task);
    };
    const auto twice = [](Index count, TaskBody body) {
      for (Index turn = 0; turn < 2; ++turn)
        for (Index task = 0; task < count; ++task) body(task);
    };
    const auto parallel = [](Index count, TaskBody body) {
      std::vector<std::thread> workers;
      for (Index task = 0; task < count; ++task) workers.emplace_back([body, task] { body(task); });
      for (std::thread& worker : workers) worker.join();
    };
    EXPECT_TRUE(same_bits(data.run(Parallel{threads, reversed}), expected)) << c << " threads " << threads;
    EXPECT_TRUE(same_bits(data.run(Parallel{threads, twice}), expected)) << c << " threads " << threads;
    EXPECT_TRUE(same_bits(data.run(Parallel{threads, parallel}), expected)) << c << " threads " << threads;
  }
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

TEST_P(Performer, L01_L02_L03_AnyLayoutGivesTheSameBits) {
  for (const bool causal : {false, true})
    for (const Case& c : bitwise_cases(causal)) {
      Data<float> data(c);
      const std::vector<float> expected = data.run();
      // (batch, length, heads, dim) with an inner step of 3, length backwards, one element off any alignment.
      const auto spread = [&](TensorView<float, 4> from, std::vector<float>& storage) {
        const Index b = from.extent(0), h = from.extent(1), n = from.extent(2), d = from.extent(3);
        storage.assign(static_cast<std::size_t>(b * h * n * d * 3 + 1), static_cast<float>(nan));
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
              for (Index e = 0; e < c.head_dim; ++e) data.key_view()(b, h, j, e) = static_cast<float>(nan);
              for (Index e = 0; e < c.value_dim; ++e) data.value_view()(b, h, j, e) = static_cast<float>(nan);
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
  data.value_view()(0, 0, 60, 2) = static_cast<float>(nan);
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
                   Case{.causal = causal, .heads = 0, .key_heads = 0}, Case{.causal = causal, .value_dim = 0}})
      Data<float>(c).run();
  }
  Data<float> none(Case{.keys = 0});
  for (const float x : none.run()) EXPECT_EQ(x, 0);
}

template <typename F>
std::string error_of(const F& call) {
  try {
    call();
  } catch (const ContractError& error) {
    return error.what();
  } catch (const SizeError& error) {
    return std::string("SizeError ") + error.what();
  }
  return "";
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
  refused("performer_attention: options.input_scale: must be finite", plain, LONGVIEW_CHANGE { options.input_scale = nan; });
  refused("performer_attention: options.epsilon: must be >= 0 (got -1.000000)", plain,
          LONGVIEW_CHANGE { options.epsilon = -1; });
  refused("performer_attention: options.denominator_guard: must be >= 0 (got -1.000000)", plain,
          LONGVIEW_CHANGE { options.denominator_guard = -1; });
  refused("performer_attention: options.key_sum_epsilon: must be finite", causal,
          LONGVIEW_CHANGE { options.key_sum_epsilon = nan; });
  refused("performer_attention: options.key_sum_epsilon: has no meaning without causal", plain,
          LONGVIEW_CHANGE { options.key_sum_epsilon = 1; });
  refused("performer_attention: options.fixed_shift: must be finite", plain, LONGVIEW_CHANGE { options.fixed_shift = nan; });
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
#undef LONGVIEW_CHANGE
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
  options = data.options();
  const std::vector<Index> lengths{53, 53};
  options.key_lengths = lengths;
  EXPECT_EQ(call(options, FeatureSide::query, 17), "performer_features: options.key_lengths: has no meaning for queries");
  EXPECT_EQ(call(options, FeatureSide::key, 17), "");
}

}  // namespace
