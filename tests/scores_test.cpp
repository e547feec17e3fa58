// SPDX-License-Identifier: Apache-2.0
// What Scores says beside the laws of each operator: dropout.
#include "longview/scores.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <longview/full_attention.hpp>
#include <longview/sliding_window_attention.hpp>
#include <vector>

#include "test_support.hpp"

namespace {

using longview::ContractError;
using longview::Dropout;
using longview::Index;
using longview::Scores;
using longview::TensorView;

constexpr Index batch = 2, heads = 2, queries = 70, keys = 200, head_dim = 5;

/// One call of full attention, forward and backward, whose values are one-hot: out is the matrix of probabilities.
template <typename T>
struct Call {
  Call() {
    for (std::size_t i = 0; i < query.size(); ++i) query[i] = static_cast<T>(std::sin(0.37 * static_cast<double>(i)));
    for (std::size_t i = 0; i < key.size(); ++i) key[i] = static_cast<T>(std::cos(0.23 * static_cast<double>(i)));
    for (Index head = 0; head < batch * heads; ++head)
      for (Index j = 0; j < keys; ++j) value[static_cast<std::size_t>((head * keys + j) * keys + j)] = 1;
    for (std::size_t i = 0; i < d_out.size(); ++i) d_out[i] = static_cast<T>(1 + i % 7);
  }
  void forward(const Scores<T>& options, longview::Run run = {}) {
    longview::full_attention(view(query, queries, head_dim), view(key, keys, head_dim), view(value, keys, keys),
                             {view(out, queries, keys), TensorView<T, 3>(lse.data(), {batch, heads, queries})}, options, run);
  }
  void backward(const Scores<T>& options, longview::Run run = {}) {
    longview::full_attention_backward(view(query, queries, head_dim), view(key, keys, head_dim), view(value, keys, keys),
                                      {view(out, queries, keys), TensorView<T, 3>(lse.data(), {batch, heads, queries})},
                                      {.out = view(d_out, queries, keys),
                                       .query = view(d_query, queries, head_dim),
                                       .key = view(d_key, keys, head_dim),
                                       .value = view(d_value, keys, keys)},
                                      options, run);
  }
  static TensorView<T, 4> view(std::vector<T>& x, Index rows, Index dim) { return {x.data(), {batch, heads, rows, dim}}; }
  static std::vector<T> make(Index rows, Index dim) { return std::vector<T>(static_cast<std::size_t>(batch * heads * rows * dim)); }

  std::vector<T> query = make(queries, head_dim), key = make(keys, head_dim), value = make(keys, keys), out = make(queries, keys),
                 lse = make(queries, 1), d_out = make(queries, keys), d_query = make(queries, head_dim),
                 d_key = make(keys, head_dim), d_value = make(keys, keys);
};

/// Which pairs are kept, by (batch, head, query, key).
template <typename T>
std::vector<bool> kept(const Dropout& dropout, longview::Run run = {}) {
  Call<T> call;
  call.forward({.dropout = dropout}, run);
  return std::vector<bool>(call.out.begin(), call.out.end());
}

TEST(Dropout, G05_NoneIsTheSameBitsAsWithoutIt) {
  Call<float> with, without;
  with.forward({.dropout = {.probability = 0, .seed = 5}});
  without.forward({});
  EXPECT_EQ(with.out, without.out);
  EXPECT_EQ(with.lse, without.lse);
  with.backward({.dropout = {.probability = 0, .seed = 5}});
  without.backward({});
  EXPECT_EQ(with.d_query, without.d_query);
  EXPECT_EQ(with.d_key, without.d_key);
  EXPECT_EQ(with.d_value, without.d_value);
}

TEST(Dropout, G05_AllGivesZerosAndTheLogSumExpOfAllKeys) {
  Call<double> all, none;
  all.forward({.dropout = {.probability = 1}});
  none.forward({});
  EXPECT_EQ(all.out, std::vector<double>(all.out.size()));
  EXPECT_EQ(all.lse, none.lse);
  all.backward({.dropout = {.probability = 1}});
  EXPECT_EQ(all.d_query, std::vector<double>(all.d_query.size()));
  EXPECT_EQ(all.d_key, std::vector<double>(all.d_key.size()));
  EXPECT_EQ(all.d_value, std::vector<double>(all.d_value.size()));
}

TEST(Dropout, G05_ProbabilitiesAreChecked) {
  for (const double wrong : {-0.1, 1.1, std::numeric_limits<double>::quiet_NaN()}) {
    Call<float> call;
    EXPECT_THROW(call.forward({.dropout = {.probability = wrong}}), ContractError) << wrong;
    EXPECT_THROW(call.backward({.dropout = {.probability = wrong}}), ContractError) << wrong;
  }
}

TEST(Dropout, G06_KeptWeightsGrowAndTheLogSumExpStays) {
  Call<double> some, none;
  some.forward({.dropout = {.probability = 0.25, .seed = 3}});
  none.forward({});
  EXPECT_EQ(some.lse, none.lse);
  for (std::size_t i = 0; i < some.out.size(); ++i) {
    if (some.out[i] == 0) continue;
    ASSERT_NEAR(some.out[i], none.out[i] / 0.75, 1e-15) << i;
  }
}

TEST(Dropout, G06_TheSamePatternForEveryInstructionSetTypeAndExecutor) {
  const Dropout dropout{.probability = 0.3, .seed = 11};
  const auto expected = kept<float>(dropout);
  test::under_all_sets([&] {
    EXPECT_EQ(kept<float>(dropout), expected);
    EXPECT_EQ(kept<double>(dropout), expected);
    EXPECT_EQ(kept<float>(dropout, longview::Parallel{5, [](Index count, longview::TaskBody body) {
                                                         while (count-- > 0) body(count);
                                                       }}),
              expected);
  });
  EXPECT_NE(kept<float>({.probability = 0.3, .seed = 12}), expected);
}

TEST(Dropout, G06_BackwardLeavesOutTheSamePairs) {
  // With one-hot d_out, d_value is the transposed matrix of kept probabilities.
  Call<double> call;
  const Scores<double> options{.dropout = {.probability = 0.4, .seed = 2}};
  call.forward(options);
  for (Index query = 0; query < queries; query += 9) {
    for (double& x : call.d_out) x = 0;
    for (Index head = 0; head < batch * heads; ++head)
      for (Index channel = 0; channel < keys; ++channel)
        call.d_out[static_cast<std::size_t>((head * queries + query) * keys + channel)] = 1;
    call.backward(options);
    for (Index head = 0; head < batch * heads; ++head)
      for (Index j = 0; j < keys; ++j) {
        const double forward = call.out[static_cast<std::size_t>((head * queries + query) * keys + j)];
        const double backward = call.d_value[static_cast<std::size_t>((head * keys + j) * keys)];
        ASSERT_EQ(forward == 0, backward == 0) << head << ' ' << query << ' ' << j;
        ASSERT_NEAR(forward, backward, 1e-15);
      }
  }
}

TEST(Dropout, G06_OtherTilesLeaveOutTheSamePairs) {
  // A window moves the tiles of each query's keys; the pattern belongs to the pair.
  const Dropout dropout{.probability = 0.5, .seed = 9};
  const auto expected = kept<float>(dropout);
  Call<float> call;
  longview::sliding_window_attention(
      Call<float>::view(call.query, queries, head_dim), Call<float>::view(call.key, keys, head_dim),
      Call<float>::view(call.value, keys, keys), Call<float>::view(call.out, queries, keys),
      {.window = {.before = 40, .after = 20, .dilation = 3},
       .scores = {.alignment = longview::Alignment::at(60), .dropout = dropout}});
  std::size_t seen = 0;
  for (Index head = 0; head < batch * heads; ++head)
    for (Index i = 0; i < queries; ++i)
      for (Index j = 0; j < keys; ++j) {
        const Index distance = j - (i + 60);
        const bool inside = distance % 3 == 0 && distance >= -120 && distance <= 60;
        const auto at = static_cast<std::size_t>((head * queries + i) * keys + j);
        if (!inside) continue;
        ++seen;
        ASSERT_EQ(call.out[at] != 0, expected[at]) << i << ' ' << j;
      }
  EXPECT_GT(seen, 1000u);
}

TEST(Dropout, KeepsPairsIndependentlyAndAsOftenAsAsked) {
  // 56,000 pairs. Six standard deviations: a fair pattern fails once in 5 * 10^8 statistics.
  for (const double probability : {0.1, 0.5, 0.9})
    for (const std::uint64_t seed : {0u, 1u, 12345u}) {
      const auto pattern = kept<float>({.probability = probability, .seed = seed});
      const double keep = 1 - probability, count = static_cast<double>(pattern.size());
      double all = 0;
      for (const bool one : pattern) all += one;
      EXPECT_LT(std::abs(all - keep * count), 6 * std::sqrt(count * keep * probability));
      // Neighbours along every axis: queries, keys, heads and batch items.
      for (const std::size_t step : {std::size_t{1}, std::size_t{2}, std::size_t{keys}, std::size_t{keys + 1},
                                     std::size_t{queries * keys}, std::size_t{2 * queries * keys}}) {
        double both = 0;
        const std::size_t pairs = pattern.size() - step;
        for (std::size_t at = 0; at < pairs; ++at) both += (pattern[at] - keep) * (pattern[at + step] - keep);
        EXPECT_LT(std::abs(both), 6 * std::sqrt(static_cast<double>(pairs)) * keep * probability)
            << probability << ' ' << seed << ' ' << step;
      }
    }
}

}  // namespace
