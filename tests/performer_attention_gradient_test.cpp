// SPDX-License-Identifier: Apache-2.0
// Gradients of kernelised attention against the reference and its certified bounds, and the promises of the contract.
#include <array>

#include "performer_case.hpp"
#include "reference/performer_gradient.hpp"

namespace {

using namespace performer;

enum Wanted { of_query = 1, of_key = 2, of_value = 4, everything = 7 };

/// The gradients of one call.
template <typename T>
struct Answer {
  std::vector<T> query, key, value;

  bool operator==(const Answer& other) const {
    return same_bits(query, other.query) && same_bits(key, other.key) && same_bits(value, other.value);
  }
};

template <typename T>
struct BackwardData : Data<T> {
  using Data<T>::c;

  explicit BackwardData(const Case& of, unsigned seed = 7) : Data<T>(of, seed) {
    d_out = this->draw({c.batch, c.heads, c.queries, c.value_dim}, 1);
    g = this->rounded(d_out);
    this->run();
  }
  TensorView<T, 4> d_out_view() { return {g.data(), this->out_view().shape()}; }
  /// What is not wanted stays empty.
  Answer<T> differentiate(int wanted = everything, Run how = {}) {
    Answer<T> answer;
    PerformerGradients<T> gradients{.out = d_out_view()};
    const auto ask = [&](Wanted which, TensorView<T, 4>& view, std::vector<T>& storage, const TensorView<T, 4>& like) {
      if ((wanted & which) == 0) return;
      storage.assign(static_cast<std::size_t>(like.extent(0) * like.extent(1) * like.extent(2) * like.extent(3)),
                     static_cast<T>(not_a_number));
      view = {storage.data(), like.shape()};
    };
    ask(of_query, gradients.query, answer.query, this->query_view());
    ask(of_key, gradients.key, answer.key, this->key_view());
    ask(of_value, gradients.value, answer.value, this->value_view());
    performer_attention_backward(this->query_view(), this->key_view(), this->value_view(), this->out_view(), gradients,
                                 this->options(), how);
    return answer;
  }

  reference::Tensor<double> d_out;
  std::vector<T> g;
};

/// In double, the reference has errors of the same bound itself.
template <typename T>
void expect_near(const std::vector<T>& got, const reference::Bounded<double>& expected, const std::string& what) {
  ASSERT_EQ(got.size(), expected.value.elements().size()) << what;
  for (std::size_t at = 0; at < got.size(); ++at) {
    const double wanted = expected.value.elements()[at], bound = expected.radius.elements()[at];
    ASSERT_LE(std::abs(static_cast<double>(got[at]) - wanted), (sizeof(T) == 8 ? 2 : 1) * bound)
        << what << " at " << at << ": " << got[at] << ", expected " << wanted;
  }
}

/// Under every instruction set.
template <typename T>
void check_reference(const Case& c) {
  BackwardData<T> data(c);
  const auto expected = reference::performer_backward<double>(data.query, data.key, data.value, data.d_out,
                                                              data.definition(), Data<T>::precision());
  for (const InstructionSet set : instruction_sets()) {
    use_instruction_set(set);
    data.run();
    const Answer<T> got = data.differentiate();
    const std::string what = testing::PrintToString(c) + " " + name_of(set) + (sizeof(T) == 8 ? " double" : " float");
    expect_near(got.query, expected.query, what + " query");
    expect_near(got.key, expected.key, what + " key");
    expect_near(got.value, expected.value, what + " value");
    if (testing::Test::HasFatalFailure()) return;
  }
}

/// All maps, stabilisers and options, and those that are differentiated through their maximum.
std::vector<Case> gradient_cases() {
  std::vector<Case> cases = definition_cases();
  for (std::size_t at = 0, count = cases.size(); at < count; ++at) {
    Case c = cases[at];
    if (c.stabiliser != Stabiliser::reference || c.features == FeatureMap::softmax) continue;
    c.differentiate_maximum = true;
    cases.push_back(c);
  }
  return cases;
}

TEST(PerformerBackward, MatchesTheReferenceInFloat) {
  for (const Case& c : gradient_cases()) {
    check_reference<float>(c);
    if (HasFatalFailure()) return;
  }
}
TEST(PerformerBackward, MatchesTheReferenceInDouble) {
  for (const Case& c : gradient_cases()) {
    check_reference<double>(c);
    if (HasFatalFailure()) return;
  }
}

TEST(PerformerBackward, S16_DimensionsAroundEveryEdge) {
  for (const Index d : {1, 15, 17, 48, 65})
    for (const Index dv : {1, 8, 9, 64})
      for (const Index rows : {1, 16, 17, 49, 96, 97, 193}) {
        check_reference<float>({.causal = (d + rows) % 2 == 0,
                                .batch = 1,
                                .heads = 1,
                                .queries = 11,
                                .keys = 11,
                                .head_dim = d,
                                .value_dim = dv,
                                .rows = rows,
                                .size = 0.3});
        if (HasFatalFailure()) return;
      }
}

TEST(PerformerBackward, S17_LengthsAroundEveryEdge) {
  for (const Index n : {1, 2, 15, 16, 17, 47, 48, 49, 95, 96, 97, 145})
    for (const bool causal : {false, true}) {
      check_reference<float>({.causal = causal, .batch = 1, .queries = n, .keys = n, .value_dim = 9});
      check_reference<double>({.causal = causal, .batch = 1, .queries = n, .keys = n, .value_dim = 9});
      if (HasFatalFailure()) return;
    }
}

/// Keys whose sums are moved again and again.
TEST(PerformerBackward, F03_GrowingKeys) {
  for (const FeatureMap map : {FeatureMap::positive, FeatureMap::hyperbolic, FeatureMap::trigonometric})
    for (const bool normalize : {true, false}) {
      const Case c{.features = map,
                   .causal = true,
                   .normalize = normalize,
                   .padded = true,
                   .batch = 1,
                   .queries = 200,
                   .keys = 200,
                   .head_dim = 4,
                   .value_dim = 3,
                   .rows = 24,
                   .size = normalize ? 0.5 : 0.3};
      BackwardData<float> data(c);
      for (Index h = 0; h < c.key_heads; ++h)
        for (Index j = 0; j < c.keys; ++j)
          for (Index e = 0; e < c.head_dim; ++e) {
            const auto at = static_cast<std::size_t>((h * c.keys + j) * c.head_dim + e);
            data.k[at] = static_cast<float>(data.key.elements()[at] * (1 + static_cast<double>(j) / 64));
            data.key.elements()[at] = static_cast<double>(data.k[at]);
          }
      const auto expected = reference::performer_backward<double>(data.query, data.key, data.value, data.d_out,
                                                                  data.definition(), reference::float_kernel());
      for (const InstructionSet set : instruction_sets()) {
        use_instruction_set(set);
        data.run();
        const Answer<float> got = data.differentiate();
        expect_near(got.query, expected.query, testing::PrintToString(c) + " query");
        expect_near(got.key, expected.key, testing::PrintToString(c) + " key");
        expect_near(got.value, expected.value, testing::PrintToString(c) + " value");
      }
    }
}

/// Equal maxima: the same key and the same row of the projection twice.
TEST(PerformerBackward, MaximaThatOccurAgainShareTheGradient) {
  for (const FeatureMap map : {FeatureMap::positive, FeatureMap::hyperbolic, FeatureMap::trigonometric})
    for (const bool causal : {false, true}) {
      const Case c{.features = map,
                   .stabiliser = Stabiliser::reference,
                   .causal = causal,
                   .normalize = false,
                   .batch = 1,
                   .heads = 1,
                   .queries = 60,
                   .keys = 60,
                   .head_dim = 6,
                   .value_dim = 3,
                   .rows = 9,
                   .size = 0.4,
                   .differentiate_maximum = true};
      BackwardData<double> data(c);
      const auto set = [&](auto&& tensor, auto& values, Index at, double x) {
        tensor.elements()[static_cast<std::size_t>(at)] = x, values[static_cast<std::size_t>(at)] = x;
      };
      for (Index e = 0; e < c.head_dim; ++e) {
        const double x = 1 + static_cast<double>(e) / 4;
        set(data.key, data.k, 7 * c.head_dim + e, x), set(data.key, data.k, 50 * c.head_dim + e, x);
        set(data.query, data.q, 20 * c.head_dim + e, x), set(data.query, data.q, 59 * c.head_dim + e, x);
        set(data.projection, data.w, 3 * c.head_dim + e, x), set(data.projection, data.w, 8 * c.head_dim + e, x);
      }
      const auto expected = reference::performer_backward<double>(data.query, data.key, data.value, data.d_out,
                                                                  data.definition(), reference::double_kernel());
      data.run();
      const Answer<double> got = data.differentiate();
      // The bound lets either of two near maxima have everything; these are equal.
      const auto close = [&](const std::vector<double>& some, const reference::Bounded<double>& wanted) {
        double largest = 0;
        for (const double x : wanted.value.elements()) largest = std::max(largest, std::abs(x));
        for (std::size_t at = 0; at < some.size(); ++at)
          ASSERT_NEAR(some[at], wanted.value.elements()[at], 1e-12 * largest) << c << " at " << at;
      };
      close(got.query, expected.query), close(got.key, expected.key), close(got.value, expected.value);
    }
}

// ---- Exactness.

class PerformerBackwardBits : public testing::TestWithParam<InstructionSet> {
 protected:
  void SetUp() override { use_instruction_set(GetParam()); }
  void TearDown() override { use_instruction_set(instruction_sets().back()); }

  static std::vector<Case> cases() {
    std::vector<Case> all;
    for (const bool causal : {false, true})
      for (Case c : bitwise_cases(causal)) {
        all.push_back(c);
        if (c.features >= FeatureMap::relu) continue;
        c.stabiliser = Stabiliser::reference, c.differentiate_maximum = true, c.guard = 1e-6;
        if (c.features != FeatureMap::trigonometric) c.epsilon = 1e-6;
        all.push_back(c);
      }
    return all;
  }
};
INSTANTIATE_TEST_SUITE_P(Sets, PerformerBackwardBits, testing::ValuesIn(instruction_sets()),
                         [](const auto& test) { return std::string(name_of(test.param)); });

TEST_P(PerformerBackwardBits, G02_AnySubsetHasTheSameBits) {
  for (const Case& c : cases()) {
    BackwardData<float> data(c);
    const Answer<float> all = data.differentiate();
    for (int wanted = 0; wanted < everything; ++wanted) {
      const Answer<float> some = data.differentiate(wanted);
      EXPECT_TRUE(some.query.empty() || same_bits(some.query, all.query)) << c << " wanted " << wanted;
      EXPECT_TRUE(some.key.empty() || same_bits(some.key, all.key)) << c << " wanted " << wanted;
      EXPECT_TRUE(some.value.empty() || same_bits(some.value, all.value)) << c << " wanted " << wanted;
    }
  }
}

template <typename T>
void expect_same_through_executors(const Case& c) {
  BackwardData<T> data(c);
  const Answer<T> expected = data.differentiate();
  through_executors({2, 3, 5, 16}, [&](Run how, Index threads) {
    EXPECT_TRUE(data.differentiate(everything, how) == expected) << c << " threads " << threads;
  });
}
TEST_P(PerformerBackwardBits, G04_T01_T02_AnyExecutorGivesTheSameBits) {
  for (const Case& c : cases()) {
    expect_same_through_executors<float>(c);
    if (c.differentiate_maximum) expect_same_through_executors<double>(c);
  }
}

/// Scratch is for as many as there can be tasks.
TEST_P(PerformerBackwardBits, T01_AnyNumberOfWorkers) {
  for (const bool causal : {false, true}) {
    BackwardData<float> data(Case{.causal = causal});
    const std::vector<float> out = data.out;
    const Answer<float> expected = data.differentiate();
    for (const Index workers : {Index{1} << 31, Index{1} << 60, std::numeric_limits<Index>::max()}) {
      const auto backwards = [](Index count, TaskBody body) {
        while (count-- > 0) body(count);
      };
      const Parallel executor{workers, backwards};
      EXPECT_TRUE(same_bits(data.run(longview::Run(executor)), out));
      EXPECT_TRUE(data.differentiate(everything, longview::Run(executor)) == expected);
    }
  }
}

TEST_P(PerformerBackwardBits, L01_L02_L03_L07_AnyLayoutGivesTheSameBits) {
  for (const Case& c : cases()) {
    BackwardData<float> data(c);
    const Answer<float> expected = data.differentiate();
    // (batch, length, heads, dim) with an inner step, length backwards, one element off any alignment.
    const auto spread = [](TensorView<const float, 4> from, std::vector<float>& storage, Index step) {
      const Index b = from.extent(0), h = from.extent(1), n = from.extent(2), d = from.extent(3);
      storage.assign(static_cast<std::size_t>(b * h * n * d * step + 1), static_cast<float>(not_a_number));
      TensorView<float, 4> to(storage.data() + 1, {b, h, n, d}, {n * h * d * step, d * step, h * d * step, step});
      to = to.slice(2, n - 1, n, -1);
      for (Index i = 0; i < b; ++i)
        for (Index j = 0; j < h; ++j)
          for (Index k = 0; k < n; ++k)
            for (Index e = 0; e < d; ++e) to(i, j, k, e) = from(i, j, k, e);
      return to;
    };
    const auto dense = [](TensorView<const float, 4> from) {
      std::vector<float> all;
      for (Index i = 0; i < from.extent(0); ++i)
        for (Index j = 0; j < from.extent(1); ++j)
          for (Index k = 0; k < from.extent(2); ++k)
            for (Index e = 0; e < from.extent(3); ++e) all.push_back(from(i, j, k, e));
      return all;
    };
    for (const Index step : {1, 3}) {
      std::vector<float> q, k, v, o, g, a, b, d;
      const auto query = spread(data.query_view(), q, 3), key = spread(data.key_view(), k, step);
      const auto value = spread(data.value_view(), v, step);
      const PerformerGradients<float> gradients{.out = spread(data.d_out_view(), g, step),
                                                .query = spread(data.query_view(), a, step),
                                                .key = spread(data.key_view(), b, 3),
                                                .value = spread(data.value_view(), d, step)};
      performer_attention_backward(query, key, value, spread(data.out_view(), o, 2), gradients, data.options());
      const Answer<float> got{dense(gradients.query), dense(gradients.key), dense(gradients.value)};
      EXPECT_TRUE(got == expected) << c << " step " << step;
    }
    // The first item again through a batch stride of 0.
    const auto repeated = [](TensorView<const float, 4> from) {
      return TensorView<const float, 4>(from.data_handle(), from.shape(),
                                        {0, from.stride(1), from.stride(2), from.stride(3)});
    };
    if (c.padded) continue;
    Answer<float> twice = expected;
    performer_attention_backward(repeated(data.query_view()), repeated(data.key_view()), repeated(data.value_view()),
                                 repeated(data.out_view()),
                                 {.out = repeated(data.d_out_view()),
                                  .query = {twice.query.data(), data.query_view().shape()},
                                  .key = {twice.key.data(), data.key_view().shape()},
                                  .value = {twice.value.data(), data.value_view().shape()}},
                                 data.options());
    for (const auto member : {&Answer<float>::query, &Answer<float>::key, &Answer<float>::value}) {
      const std::vector<float>&got = twice.*member, &wanted = expected.*member;
      const std::size_t half = got.size() / 2;
      EXPECT_EQ(std::memcmp(got.data(), wanted.data(), half * sizeof(float)), 0) << c;
      EXPECT_EQ(std::memcmp(got.data() + half, wanted.data(), half * sizeof(float)), 0) << c;
    }
  }
}

TEST_P(PerformerBackwardBits, BatchNeighboursDoNotMatter) {
  for (const Case& c : cases()) {
    if (c.padded) continue;
    BackwardData<float> data(c);
    const Answer<float> expected = data.differentiate();
    Answer<float> got = expected;
    for (std::vector<float>* values : {&got.query, &got.key, &got.value})
      std::fill(values->begin(), values->end(), 0.0F);
    const TensorView<float, 4> d_query(got.query.data(), data.query_view().shape());
    const TensorView<float, 4> d_key(got.key.data(), data.key_view().shape());
    const TensorView<float, 4> d_value(got.value.data(), data.value_view().shape());
    for (Index b = 0; b < c.batch; ++b)
      performer_attention_backward(data.query_view().slice(0, b, 1), data.key_view().slice(0, b, 1),
                                   data.value_view().slice(0, b, 1), data.out_view().slice(0, b, 1),
                                   {.out = data.d_out_view().slice(0, b, 1),
                                    .query = d_query.slice(0, b, 1),
                                    .key = d_key.slice(0, b, 1),
                                    .value = d_value.slice(0, b, 1)},
                                   data.options());
    EXPECT_TRUE(got == expected) << c;
  }
}

TEST_P(PerformerBackwardBits, M02_M29_M30_PaddingAndWorkspaceAreNeverRead) {
  for (const Case& c : cases()) {
    if (!c.padded) continue;
    BackwardData<float> data(c);
    const Answer<float> expected = data.differentiate();
    for (Index b = 0; b < c.batch; ++b)
      for (Index j = 0; j < c.keys; ++j) {
        if (j < data.lengths[static_cast<std::size_t>(b)] && data.keep(b, j) != 0) continue;
        for (Index h = 0; h < c.key_heads; ++h) {
          for (Index e = 0; e < c.head_dim; ++e) {
            EXPECT_EQ(expected.key[static_cast<std::size_t>(((b * c.key_heads + h) * c.keys + j) * c.head_dim + e)], 0);
            data.key_view()(b, h, j, e) = static_cast<float>(not_a_number);
          }
          for (Index e = 0; e < c.value_dim; ++e) {
            EXPECT_EQ(expected.value[static_cast<std::size_t>(((b * c.key_heads + h) * c.keys + j) * c.value_dim + e)],
                      0);
            data.value_view()(b, h, j, e) = static_cast<float>(not_a_number);
          }
        }
      }
    for (const Index threads : {1, 7}) {
      const Parallel executor{threads, Sequential()};
      DryRun rehearsal;
      data.differentiate(everything, longview::Run(executor, rehearsal));
      ASSERT_TRUE(rehearsal.ok()) << rehearsal.error();
      std::vector<std::byte> workspace(rehearsal.workspace_bytes(), std::byte{0xff});
      EXPECT_TRUE(data.differentiate(everything, longview::Run(executor, workspace)) == expected) << c;
    }
  }
}

TEST_P(PerformerBackwardBits, M30_WhatTheWorkspaceHeldRaisesNoFlags) {
  for (const Case& c : cases()) {
    BackwardData<float> data(c);
    for (const Index threads : {1, 3}) {
      const Parallel executor{threads, Sequential()};
      EXPECT_EQ(test::flags_of(executor, [&](longview::Run how) { data.differentiate(everything, how); }), 0)
          << c << " threads " << threads;
    }
  }
}

TEST_P(PerformerBackwardBits, M02_RowsWithoutKeysHaveNoGradient) {
  for (const bool causal : {false, true})
    for (int variant = 0; variant < 5; ++variant) {
      Case c{.causal = causal, .padded = true, .queries = 60, .keys = 60};
      c.features = std::array{FeatureMap::positive, FeatureMap::trigonometric, FeatureMap::relu, FeatureMap::softmax,
                              FeatureMap::trigonometric}[static_cast<std::size_t>(variant)];
      if (c.features == FeatureMap::softmax) c.stabiliser = Stabiliser::reference;
      // One maximum for all rows: a row without keys must not speak through it.
      if (variant == 4) c.stabiliser = Stabiliser::reference, c.differentiate_maximum = true, c.normalize = false;
      BackwardData<float> data(c);
      data.lengths = {0, 60};
      for (Index j = 0; j < 60; ++j) data.keep(1, j) = j >= 50;
      data.run();
      const Answer<float> clean = data.differentiate();
      // Their row of gradients is not looked at.
      for (Index h = 0; h < c.heads; ++h)
        for (Index i = 0; i < c.queries; ++i)
          for (Index e = 0; e < c.value_dim; ++e) {
            data.d_out_view()(0, h, i, e) = static_cast<float>(not_a_number);
            if (causal && i < 50) data.d_out_view()(1, h, i, e) = static_cast<float>(not_a_number);
          }
      const Answer<float> got = data.differentiate();
      EXPECT_TRUE(got == clean) << c;
      for (std::size_t at = 0; at < got.query.size(); ++at) {
        ASSERT_TRUE(std::isfinite(got.query[at])) << c;
        const Index i = static_cast<Index>(at) / c.head_dim % c.queries;
        // The longest query may be one of them: then it has what comes through the maximum.
        if (at < got.query.size() / 2 || (causal && i < 50 && !c.differentiate_maximum)) {
          ASSERT_EQ(got.query[at], 0) << c << " at " << at;
        }
      }
      for (const float x : got.key) ASSERT_TRUE(std::isfinite(x)) << c;
      for (const float x : got.value) ASSERT_TRUE(std::isfinite(x)) << c;
    }
}

TEST_P(PerformerBackwardBits, G03_NothingArrivesNothingLeaves) {
  for (const Case& c : cases()) {
    BackwardData<float> data(c);
    std::fill(data.g.begin(), data.g.end(), 0.0F);
    const Answer<float> got = data.differentiate();
    for (const std::vector<float>* values : {&got.query, &got.key, &got.value})
      for (const float x : *values) ASSERT_EQ(x, 0) << c;
  }
}

TEST_P(PerformerBackwardBits, G03_NaNStaysInItsRowAndItsKeys) {
  for (Case c : cases()) {
    if (c.differentiate_maximum) continue;
    c.batch = 1, c.heads = 2, c.key_heads = 1;
    BackwardData<float> data(c);
    const Answer<float> before = data.differentiate();
    const Index row = 100;
    data.d_out_view()(0, 1, row, 2) = static_cast<float>(not_a_number);
    const Answer<float> got = data.differentiate();
    for (Index h = 0; h < 2; ++h)
      for (Index i = 0; i < c.queries; ++i)
        for (Index e = 0; e < c.head_dim; ++e) {
          const auto at = static_cast<std::size_t>((h * c.queries + i) * c.head_dim + e);
          if (h == 1 && i == row)
            ASSERT_TRUE(std::isnan(got.query[at])) << c;
          else
            ASSERT_EQ(got.query[at], before.query[at]) << c << " row " << i;
        }
    for (Index j = 0; j < c.keys; ++j) {
      const bool exists = !c.padded || (j < data.lengths[0] && data.keep(0, j) != 0);
      if (exists && (!c.causal || j <= row)) {
        EXPECT_TRUE(std::isnan(got.value[static_cast<std::size_t>(j * c.value_dim + 2)])) << c << " key " << j;
        continue;
      }
      for (Index e = 0; e < c.head_dim; ++e) {
        const auto at = static_cast<std::size_t>(j * c.head_dim + e);
        ASSERT_EQ(got.key[at], before.key[at]) << c << " key " << j;
      }
      for (Index e = 0; e < c.value_dim; ++e) {
        const auto at = static_cast<std::size_t>(j * c.value_dim + e);
        ASSERT_EQ(got.value[at], before.value[at]) << c << " key " << j;
      }
    }
  }
}

TEST_P(PerformerBackwardBits, F02_LaterKeysAndEarlierQueriesChangeNothing) {
  for (const Case& c : cases()) {
    if (!c.causal || c.stabiliser == Stabiliser::reference) continue;
    BackwardData<float> data(c);
    const Answer<float> before = data.differentiate();
    for (const Index from : {Index{20}, Index{75}, Index{140}}) {
      BackwardData<float> later(c), earlier(c);
      for (Index b = 0; b < c.batch; ++b)
        for (Index t = 0; t < c.keys; ++t)
          for (Index h = 0; h < c.heads; ++h) {
            for (Index e = 0; t >= from && h < c.key_heads && e < c.head_dim; ++e)
              later.key_view()(b, h, t, e) = static_cast<float>(not_a_number);
            for (Index e = 0; t >= from && h < c.key_heads && e < c.value_dim; ++e)
              later.value_view()(b, h, t, e) = static_cast<float>(not_a_number);
            for (Index e = 0; t < from && e < c.head_dim; ++e)
              earlier.query_view()(b, h, t, e) = static_cast<float>(not_a_number);
            for (Index e = 0; t < from && e < c.value_dim; ++e)
              earlier.d_out_view()(b, h, t, e) = static_cast<float>(not_a_number);
          }
      const Answer<float> with_later = later.differentiate(of_query), with_earlier = earlier.differentiate();
      for (Index bh = 0; bh < c.batch * c.heads; ++bh)
        for (Index i = 0; i < from; ++i)
          for (Index e = 0; e < c.head_dim; ++e) {
            const auto at = static_cast<std::size_t>((bh * c.queries + i) * c.head_dim + e);
            ASSERT_EQ(with_later.query[at], before.query[at]) << c << " row " << i << " key " << from;
          }
      for (Index bh = 0; bh < c.batch * c.key_heads; ++bh)
        for (Index j = from; j < c.keys; ++j) {
          for (Index e = 0; e < c.head_dim; ++e) {
            const auto at = static_cast<std::size_t>((bh * c.keys + j) * c.head_dim + e);
            ASSERT_EQ(with_earlier.key[at], before.key[at]) << c << " key " << j << " query " << from;
          }
          for (Index e = 0; e < c.value_dim; ++e) {
            const auto at = static_cast<std::size_t>((bh * c.keys + j) * c.value_dim + e);
            ASSERT_EQ(with_earlier.value[at], before.value[at]) << c << " key " << j << " query " << from;
          }
        }
    }
  }
}

// ---- Range.

TEST_P(PerformerBackwardBits, F01_KeysOfNormAThousand) {
  for (const bool causal : {false, true}) {
    const Case c{.causal = causal, .batch = 1, .heads = 1, .queries = 200, .keys = 200, .head_dim = 64, .rows = 256};
    BackwardData<float> data(c);
    for (float& x : data.k) x *= 250;
    data.run();
    const Answer<float> got = data.differentiate();
    for (const std::vector<float>* values : {&got.query, &got.key, &got.value})
      for (const float x : *values) ASSERT_TRUE(std::isfinite(x)) << c;
  }
}

/// The error against the double kernels, as a share of the root mean square of each gradient.
std::vector<double> relative_errors(const Case& c) {
  BackwardData<float> narrow(c);
  BackwardData<double> wide(c);
  const Answer<float> got = narrow.differentiate();
  const Answer<double> expected = wide.differentiate();
  const auto share = [](const std::vector<float>& some, const std::vector<double>& wanted) {
    double error = 0, size = 0;
    for (std::size_t at = 0; at < some.size(); ++at) {
      const double off = static_cast<double>(some[at]) - wanted[at];
      error += off * off, size += wanted[at] * wanted[at];
    }
    return std::sqrt(error / size);
  };
  return {share(got.query, expected.query), share(got.key, expected.key), share(got.value, expected.value)};
}
TEST(PerformerBackward, ErrorsDoNotGrowWithTheLength) {
  for (const FeatureMap map : {FeatureMap::positive, FeatureMap::relu})
    for (const bool causal : {false, true}) {
      Case c{.features = map,
             .causal = causal,
             .batch = 1,
             .heads = 1,
             .queries = 1024,
             .keys = 1024,
             .head_dim = 16,
             .value_dim = 16,
             .rows = 64,
             .size = 0.7};
      const std::vector<double> at_first = relative_errors(c);
      c.queries = c.keys = 16384;
      const std::vector<double> at_last = relative_errors(c);
      for (std::size_t of = 0; of < 3; ++of) EXPECT_LE(at_last[of], 2 * at_first[of]) << c << " gradient " << of;
    }
}

// ---- The door.

TEST(PerformerBackwardContract, S01_S02_S03_S05_EmptyExtents) {
  for (const bool causal : {false, true})
    for (const Case& c : {Case{.causal = causal, .queries = 0, .keys = causal ? 0 : 3},
                          Case{.causal = causal, .batch = 0}, Case{.causal = causal, .heads = 0, .key_heads = 2},
                          Case{.causal = causal, .heads = 0, .key_heads = 0}, Case{.causal = causal, .value_dim = 0},
                          Case{.queries = 4, .keys = 0}}) {
      BackwardData<float> data(c);
      const Answer<float> got = data.differentiate();
      for (const std::vector<float>* values : {&got.query, &got.key, &got.value})
        for (const float x : *values) EXPECT_EQ(x, 0) << c;
    }
}

/// Whatever of it is handed over, however it is laid out and the work is split.
TEST_P(PerformerBackwardBits, G02_G04_L01_WhatTheForwardCallLeavesChangesNoBits) {
  std::vector<Case> all = cases();
  for (const FeatureMap map : {FeatureMap::positive, FeatureMap::hyperbolic, FeatureMap::trigonometric, FeatureMap::softmax})
    all.push_back({.features = map,
                   .stabiliser = map == FeatureMap::softmax ? Stabiliser::reference : Stabiliser::prefix,
                   .projected = false,
                   .padded = true,
                   .head_dim = 100});
  for (const Case& c : all) {
    BackwardData<float> data(c);
    const std::vector<float> out = data.out;
    const Answer<float> expected = data.differentiate();
    for (int which = 1; which <= data.may_leave(); ++which) {
      if ((which & ~data.may_leave()) != 0) continue;
      for (const Index threads : {1, 3, 16}) {
        const Parallel executor{threads, Sequential()};
        data.leave(which, threads == 3 ? 3 : 1);
        EXPECT_TRUE(same_bits(data.run(longview::Run(executor)), out)) << c << " left " << which << " threads " << threads;
        const std::vector<float> left[] = {data.left[0], data.left[1], data.left[2]};
        EXPECT_TRUE(data.differentiate(everything, longview::Run(executor)) == expected)
            << c << " left " << which << " threads " << threads;
        for (int at = 0; at < 3; ++at) EXPECT_TRUE(same_bits(data.left[at], left[at])) << c;
      }
    }
  }
}

/// Half of what is left gives other gradients.
TEST_P(PerformerBackwardBits, WhatTheForwardCallLeavesIsRead) {
  for (const bool causal : {false, true}) {
    BackwardData<float> data(Case{.causal = causal});
    for (const int which : {1, 2, 4}) {
      if ((which & data.may_leave()) == 0) continue;
      data.leave(which);
      data.run();
      const Answer<float> expected = data.differentiate();
      for (std::vector<float>& values : data.left)
        for (float& x : values) x /= 2;
      EXPECT_FALSE(data.differentiate() == expected) << which;
    }
  }
}

TEST_P(PerformerBackwardBits, M29_KeysThatDoNotExistAreNotReadWhereTheyAreLeft) {
  for (const Case& c : cases()) {
    if (!c.padded) continue;
    BackwardData<float> data(c);
    const Answer<float> expected = data.differentiate();
    data.leave(data.may_leave());
    data.run();
    for (Index b = 0; b < c.batch; ++b)
      for (Index j = 0; j < c.keys; ++j) {
        if (j < data.lengths[static_cast<std::size_t>(b)] && data.keep(b, j) != 0) continue;
        for (Index h = 0; h < c.key_heads; ++h)
          for (Index f = 0; f < c.rows; ++f) {
            EXPECT_EQ(data.left_views[1](b, h, j, f), 0);
            data.left_views[1](b, h, j, f) = static_cast<float>(not_a_number);
          }
      }
    EXPECT_TRUE(data.differentiate() == expected) << c;
  }
}

TEST(PerformerBackwardContract, R02_R03_WorkspaceIsExact) {
  for (const bool causal : {false, true})
    for (const Index threads : {1, 3, 16}) {
      BackwardData<float> data(
          Case{.stabiliser = Stabiliser::reference, .causal = causal, .epsilon = 1e-4, .differentiate_maximum = true});
      const Answer<float> expected = data.differentiate();
      const Parallel executor{threads, Sequential()};
      DryRun rehearsal;
      const Answer<float> untouched = data.differentiate(everything, longview::Run(executor, rehearsal));
      for (const float x : untouched.query) ASSERT_TRUE(std::isnan(x));
      std::vector<std::byte> workspace(rehearsal.workspace_bytes() + 1);
      const auto exact = std::span(workspace).subspan(1);
      EXPECT_TRUE(data.differentiate(everything, longview::Run(executor, exact)) == expected);
      EXPECT_EQ(error_of([&] { data.differentiate(everything, longview::Run(executor, exact.subspan(1))); }),
                "performer_attention_backward: run: workspace too small (got " + std::to_string(exact.size() - 1) +
                    " bytes, expected " + std::to_string(exact.size()) + ")");
    }
}

/// Nothing that grows with the length but three numbers a query, and one a key: no state is kept on the way.
TEST(PerformerBackwardContract, WorkspaceGrowsByThreeNumbersAQuery) {
  const auto bytes = [](Index length, bool causal) {
    BackwardData<float> data(Case{.causal = causal, .batch = 1, .heads = 2, .queries = length, .keys = length});
    DryRun rehearsal;
    data.differentiate(everything, longview::Run(Sequential(), rehearsal));
    return static_cast<Index>(rehearsal.workspace_bytes());
  };
  EXPECT_EQ(bytes(4096, false) - bytes(1024, false), 3072 * 2 * 3 * 4);
  EXPECT_EQ(bytes(4096, true) - bytes(1024, true), 3072 * (2 * 3 + 1) * 4);
}

/// Segments of a causal call begin with the very sums of one sweep, also where keys grow and their shift moves.
TEST(PerformerBackwardContract, T01_SegmentsOfGrowingKeys) {
  for (const FeatureMap map : {FeatureMap::positive, FeatureMap::hyperbolic, FeatureMap::trigonometric})
    for (const bool padded : {false, true}) {
      const Case c{.features = map,
                   .causal = true,
                   .padded = padded,
                   .batch = 1,
                   .heads = 2,
                   .queries = 500,
                   .keys = 500,
                   .head_dim = 4,
                   .value_dim = 3,
                   .rows = 100};
      BackwardData<float> data(c);
      for (Index j = 0; j < c.keys; ++j)
        for (Index e = 0; e < c.head_dim; ++e) data.key_view()(0, 0, j, e) *= 1 + static_cast<float>(j) / 64;
      for (Index j = 0; padded && j < 160; ++j) data.keep(0, j) = 0;
      data.run();
      const Answer<float> expected = data.differentiate();
      for (const Index threads : {2, 3, 5, 11, 40})
        EXPECT_TRUE(data.differentiate(everything, longview::Run(Parallel{threads, Sequential()})) == expected)
            << c << " threads " << threads;
    }
}

TEST(PerformerBackwardContract, ErrorTexts) {
  const auto refused = [](const std::string& text, const Case& c, const auto& change) {
    BackwardData<float> data(c);
    Answer<float> into = data.differentiate();
    auto query = data.query_view(), key = data.key_view(), value = data.value_view(), out = data.out_view();
    auto options = data.options();
    PerformerGradients<float> gradients{.out = data.d_out_view(),
                                        .query = {into.query.data(), query.shape()},
                                        .key = {into.key.data(), key.shape()},
                                        .value = {into.value.data(), value.shape()}};
    change(query, key, value, out, gradients, options);
    EXPECT_EQ(error_of([&] { performer_attention_backward(query, key, value, out, gradients, options); }),
              "performer_attention_backward: " + text);
    DryRun rehearsal;
    performer_attention_backward(query, key, value, out, gradients, options, longview::Run(Sequential(), rehearsal));
    EXPECT_EQ(rehearsal.error(), "performer_attention_backward: " + text);
  };
#define LONGVIEW_CHANGE                                                                      \
  []([[maybe_unused]] auto& query, [[maybe_unused]] auto& key, [[maybe_unused]] auto& value, \
     [[maybe_unused]] auto& out, [[maybe_unused]] auto& gradients, [[maybe_unused]] auto& options)
  const Case plain;
  refused(
      "query: head_dim must be >= 1 (got 0)", plain, LONGVIEW_CHANGE { query = query.slice(3, 0, 0); });
  refused(
      "key: head_dim (got 7, expected 8 from query)", plain, LONGVIEW_CHANGE { key = key.slice(3, 0, 7); });
  refused(
      "out: shape (got 2x2x52x5, expected 2x2x53x5)", plain, LONGVIEW_CHANGE { out = out.slice(2, 0, 52); });
  refused(
      "gradients.out: is required", plain, LONGVIEW_CHANGE { gradients.out = {}; });
  refused(
      "gradients.out: shape (got 2x2x53x4, expected 2x2x53x5)", plain,
      LONGVIEW_CHANGE { gradients.out = gradients.out.slice(3, 0, 4); });
  refused(
      "gradients.query: shape (got 2x2x53x7, expected 2x2x53x8)", plain,
      LONGVIEW_CHANGE { gradients.query = gradients.query.slice(3, 0, 7); });
  refused(
      "gradients.key: shape (got 1x1x53x8, expected 2x1x53x8)", plain,
      LONGVIEW_CHANGE { gradients.key = gradients.key.slice(0, 0, 1); });
  refused(
      "gradients.value: shape (got 2x1x52x5, expected 2x1x53x5)", plain,
      LONGVIEW_CHANGE { gradients.value = gradients.value.slice(2, 0, 52); });
  refused(
      "gradients.query: overlaps options.projected_query", plain, [](auto&, auto&, auto&, auto&, auto& gradients, auto& options) {
        options.projected_query = {gradients.query.data_handle(), {2, 2, 53, 17}};
      });
  refused(
      "options.key_sums: shape (got 2x1x7x16, expected 2x1x7x17)", plain,
      [](auto&, auto&, auto&, auto&, auto& gradients, auto& options) {
        options.key_sums = {gradients.query.data_handle(), {2, 1, 7, 16}};
      });
  refused(
      "gradients.query: overlaps query", plain, LONGVIEW_CHANGE {
        gradients.query = {query.data_handle(), query.shape()};
      });
  refused(
      "gradients.value: overlaps value", plain, LONGVIEW_CHANGE {
        gradients.value = {value.data_handle(), value.shape()};
      });
  refused(
      "gradients.query: overlaps out", Case{.head_dim = 5}, LONGVIEW_CHANGE {
        gradients.query = {out.data_handle(), query.shape()};
      });
  refused(
      "gradients.value: overlaps gradients.key", Case{.head_dim = 5}, LONGVIEW_CHANGE {
        gradients.value = {gradients.key.data_handle(), value.shape()};
      });
  refused(
      "gradients.key: elements overlap (stride 0 on dim 2)", plain, LONGVIEW_CHANGE {
        gradients.key = {gradients.key.data_handle(), key.shape(), {1000, 100, 0, 1}};
      });
  refused(
      "options.differentiate_maximum: has no meaning without Stabiliser::reference", plain,
      LONGVIEW_CHANGE { options.differentiate_maximum = true; });
  refused(
      "options.differentiate_maximum: has no meaning for relu, elu_plus_one and softmax features",
      Case{.features = FeatureMap::relu, .stabiliser = Stabiliser::reference},
      LONGVIEW_CHANGE { options.differentiate_maximum = true; });
  refused(
      "options.key_sum_epsilon: has no meaning without causal", plain,
      LONGVIEW_CHANGE { options.key_sum_epsilon = 1; });
  refused(
      "key: length (got 54, expected 53 from query, under causal)", Case{.causal = false, .keys = 54},
      LONGVIEW_CHANGE { options.causal = true; });
#undef LONGVIEW_CHANGE
}

}  // namespace
