// SPDX-License-Identifier: Apache-2.0
// The backward calls of the operators behind one signature, and the gradients of the reference.
#pragma once

#include "reference/attention_gradient.hpp"
#include "reference/longformer_gradient.hpp"
#include "reference/relative_gradient.hpp"
#include "test_operators.hpp"

namespace test {

using longview::AttentionGradients;
using longview::In;
using longview::Value;

/// The gradients that arrive; without an lse the loss does not depend on it.
template <typename T>
struct Arrived {
  std::vector<T> out, lse{};

  Arrived(const Sizes& sizes, Random& random, bool with_lse = false)
      : out(random.values<T>(count_of(sizes.out()))),
        lse(with_lse ? random.values<T>(count_of(sizes.lse())) : std::vector<T>()) {}

  TensorView<const T, 4> out_view(const Sizes& sizes) const { return {out.data(), sizes.out()}; }
  TensorView<const T, 3> lse_view(const Sizes& sizes) const {
    return lse.empty() ? TensorView<const T, 3>() : TensorView<const T, 3>(lse.data(), sizes.lse());
  }
  T& at(const Sizes& sizes, Index batch, Index head, Index query, Index channel) {
    return element(TensorView<T, 4>(out.data(), sizes.out()), {batch, head, query, channel});
  }
};

/// The gradients that leave. Where nothing is written, it shows.
template <typename T>
struct Gradients {
  Sizes sizes;
  Shape<4> bias_shape{};
  std::vector<T> query, key, value, bias{}, slopes{}, sinks{};

  Gradients(const Sizes& of, const Scores<T>& scores)
      : sizes(of), query(room(count_of(of.query()))), key(room(count_of(of.key()))), value(room(count_of(of.value()))) {
    if (scores.bias) bias_shape = scores.bias.shape(), bias = room(count_of(bias_shape));
    slopes = room(static_cast<Index>(scores.alibi_slopes.size())),
    sinks = room(static_cast<Index>(scores.sinks.size()));
  }

  TensorView<T, 4> query_view() { return {query.data(), sizes.query()}; }
  TensorView<T, 4> key_view() { return {key.data(), sizes.key()}; }
  TensorView<T, 4> value_view() { return {value.data(), sizes.value()}; }
  TensorView<T, 4> bias_view() { return {bias.data(), bias_shape}; }

  AttentionGradients<T> views(const Arrived<T>& arrived) {
    AttentionGradients<T> all{.out = arrived.out_view(sizes),
                              .lse = arrived.lse_view(sizes),
                              .query = query_view(),
                              .key = key_view(),
                              .value = value_view()};
    if (bias_shape != Shape<4>{}) all.scores.bias = bias_view();
    all.scores.alibi_slopes = slopes, all.scores.sinks = sinks;
    return all;
  }

 private:
  static std::vector<T> room(Index count) { return std::vector<T>(to_size(count), T(12345)); }
};

template <typename T>
::testing::AssertionResult same_gradients(const Gradients<T>& expected, const Gradients<T>& got) {
  const Sizes& s = expected.sizes;
  const auto named = [](const char* name, const ::testing::AssertionResult& result) {
    return result ? result : ::testing::AssertionFailure() << "gradient of " << name << ": " << result.message();
  };
  const auto flat = [](const std::vector<T>& of) { return Shape<1>{static_cast<Index>(of.size())}; };
  if (auto result = named("query", same_bits(expected.query, got.query, s.query())); !result) return result;
  if (auto result = named("key", same_bits(expected.key, got.key, s.key())); !result) return result;
  if (auto result = named("value", same_bits(expected.value, got.value, s.value())); !result) return result;
  if (auto result = named("bias", same_bits(expected.bias, got.bias, expected.bias_shape)); !result) return result;
  if (auto result = named("slopes", same_bits(expected.slopes, got.slopes, flat(expected.slopes))); !result)
    return result;
  return named("sinks", same_bits(expected.sinks, got.sinks, flat(expected.sinks)));
}

// ---- Operators: the tag names the type of the elements, the others convert to it.

template <typename T>
void run_backward(FullAttention<T>, In<T> query, In<T> key, In<T> value, const Output<const Value<T>>& out,
                  const AttentionGradients<Value<T>>& gradients, const Scores<Value<T>>& options = {}, Run how = {}) {
  longview::full_attention_backward(query, key, value, out, gradients, options, how);
}

template <typename T>
void run_backward(SlidingWindowAttention<T>, In<T> query, In<T> key, In<T> value, const Output<const Value<T>>& out,
                  const AttentionGradients<Value<T>>& gradients, const Scores<Value<T>>& options = {}, Run how = {}) {
  using Operator = SlidingWindowAttention<T>;
  longview::SlidingWindowOptions<T> all{.window = {Operator::before, Operator::after, 1}, .scores = options};
  if (!options.alignment) all.scores.alignment = longview::Alignment::bottom_right;
  longview::sliding_window_attention_backward(query, key, value, out, gradients, all, how);
}

template <typename T>
void run_backward(LongformerAttention<T>, In<T> query, In<T> key, In<T> value, const Output<const Value<T>>& out,
                  const AttentionGradients<Value<T>>& gradients, const Scores<Value<T>>& options = {}, Run how = {}) {
  using Operator = LongformerAttention<T>;
  const Index length = query.extent(2), tokens[] = {length >= 4 ? length - 2 : 0, 1};
  longview::LongformerOptions<T> all{.window = {Operator::before, Operator::after, 1}, .scores = options};
  if (length >= 4) all.global.tokens.indices = tokens;
  longview::longformer_attention_backward(query, key, value, out,
                                          {.out = gradients.out,
                                           .lse = gradients.lse,
                                           .query = gradients.query,
                                           .key = gradients.key,
                                           .value = gradients.value,
                                           .scores = gradients.scores},
                                          all, how);
}

template <typename T>
void run_backward(RelativeAttention<T>, In<T> query, In<T> key, In<T> value, const Output<const Value<T>>& out,
                  const AttentionGradients<Value<T>>& gradients, const Scores<Value<T>>& options = {}, Run how = {}) {
  using Operator = RelativeAttention<T>;
  const Shape<3> shape{1, Operator::most_distances, query.extent(3)}, stride{0, Operator::most_channels, 1};
  longview::relative_attention_backward(query, key, value, out,
                                        {.out = gradients.out,
                                         .lse = gradients.lse,
                                         .query = gradients.query,
                                         .key = gradients.key,
                                         .value = gradients.value,
                                         .scores = gradients.scores},
                                        {.position = {Operator::table().data(), shape, stride}, .scores = options},
                                        how);
}

/// From a forward pass whose answer is known.
template <typename Operator, typename T>
Gradients<T> gradients_from(const Problem<T>& problem, Answer<T>& forward, const Arrived<T>& arrived,
                            const Scores<T>& scores = {}, Run run = {}) {
  Gradients<T> result(problem.sizes, scores);
  run_backward(Operator(), problem.query_view(), problem.key_view(), problem.value_view(),
               forward.output(problem.sizes), result.views(arrived), scores, run);
  return result;
}

/// Forward and backward.
template <typename Operator, typename T>
Gradients<T> gradients(const Problem<T>& problem, const Arrived<T>& arrived, const Scores<T>& scores = {},
                       Run run = {}) {
  Answer<T> forward = answer<Operator>(problem, scores);
  return gradients_from<Operator>(problem, forward, arrived, scores, run);
}

// ---- Keys in pieces

/// forward(query, keys, out) and backward(query, keys, out, gradients) of a KeyValueView: keys in up to four pieces,
/// some of them empty, have the gradients of the whole, bit for bit. A piece whose gradient nobody wants changes
/// nothing.
template <typename T, typename Forward, typename Backward>
void expect_the_same_gradients_in_pieces(const Sizes& sizes, std::uint64_t seed, Forward forward, Backward backward) {
  Random random(seed);
  const Problem<T> problem(sizes, random);
  const Arrived<T> arrived(sizes, random, true);
  under_all_sets([&] {
    Answer<T> out(sizes);
    const KeyValueView<T> all{problem.key_view(), problem.value_view()};
    forward(problem.query_view(), all, out.output(sizes));
    Gradients<T> expected(sizes, {});
    AttentionGradients<T> whole = expected.views(arrived);
    whole.segments = {{whole.key, whole.value}}, whole.key = {}, whole.value = {};
    backward(problem.query_view(), all, out.output(sizes), whole);
    for (int round = 0; round < 6; ++round) {
      std::vector<Index> cuts{0, random.integer(0, sizes.keys), random.integer(0, sizes.keys), sizes.keys};
      if (round == 0) cuts[1] = cuts[2] = 64;
      std::sort(cuts.begin(), cuts.end());
      const auto rows = [&](const auto& view, std::size_t piece) {
        return view.slice(2, cuts[piece], cuts[piece + 1] - cuts[piece]);
      };
      const auto keys = [&](std::size_t piece) {
        return longview::KeyValue<T>{rows(problem.key_view(), piece), rows(problem.value_view(), piece)};
      };
      Gradients<T> got(sizes, {});
      const auto d_keys = [&](std::size_t piece) {
        return longview::KeyValueGradient<T>{rows(got.key_view(), piece), rows(got.value_view(), piece)};
      };
      AttentionGradients<T> pieces = got.views(arrived);
      pieces.key = {}, pieces.value = {}, pieces.segments = {d_keys(0), d_keys(1), d_keys(2)};
      const KeyValueView<T> three{keys(0), keys(1), keys(2)};
      backward(problem.query_view(), three, out.output(sizes), pieces);
      EXPECT_TRUE(same_gradients(expected, got)) << "cuts " << text_of(cuts);

      Gradients<T> some(sizes, {}), last = some;
      pieces = some.views(arrived);
      const longview::KeyValueGradient<T> wanted{rows(some.key_view(), 2), rows(some.value_view(), 2)};
      pieces.key = {}, pieces.value = {}, pieces.segments = {{}, {}, wanted};
      backward(problem.query_view(), three, out.output(sizes), pieces);
      last.query = expected.query;
      assign(rows(last.key_view(), 2), copy_of(rows(expected.key_view(), 2)));
      assign(rows(last.value_view(), 2), copy_of(rows(expected.value_view(), 2)));
      EXPECT_TRUE(same_gradients(last, some)) << "the last piece alone, cuts " << text_of(cuts);
    }
  });
}

// ---- The reference

template <typename T>
reference::OutputGradient<RealOf<T>> exact_arrived(const Sizes& sizes, const Arrived<T>& arrived) {
  reference::OutputGradient<RealOf<T>> gradient{exact(arrived.out, sizes.out())};
  if (!arrived.lse.empty()) gradient.lse = exact(arrived.lse, sizes.lse());
  return gradient;
}

template <typename T>
reference::AttentionGradients<RealOf<T>> exact_gradients(const Problem<T>& problem, const Arrived<T>& arrived,
                                                         const reference::Scores<RealOf<T>>& scores,
                                                         const std::vector<reference::Window>& windows) {
  const Sizes& s = problem.sizes;
  return reference::attention_backward<RealOf<T>>(exact(problem.query, s.query()), exact(problem.key, s.key()),
                                                  exact(problem.value, s.value()), exact_arrived(s, arrived), scores,
                                                  windows, Exact<T>::precision);
}

template <typename T>
reference::AttentionGradients<RealOf<T>> exact_gradients(FullAttention<T>, const Problem<T>& problem,
                                                         const Arrived<T>& arrived,
                                                         const reference::Scores<RealOf<T>>& scores) {
  return exact_gradients(problem, arrived, scores, {});
}

template <typename T>
reference::AttentionGradients<RealOf<T>> exact_gradients(SlidingWindowAttention<T>, const Problem<T>& problem,
                                                         const Arrived<T>& arrived,
                                                         const reference::Scores<RealOf<T>>& scores) {
  return exact_gradients(problem, arrived, scores,
                         {{SlidingWindowAttention<T>::before, SlidingWindowAttention<T>::after, 1}});
}

template <typename T>
reference::AttentionGradients<RealOf<T>> exact_gradients(LongformerAttention<T>, const Problem<T>& problem,
                                                         const Arrived<T>& arrived,
                                                         const reference::Scores<RealOf<T>>& scores) {
  using Real = RealOf<T>;
  const Sizes& s = problem.sizes;
  reference::LongformerOptions<Real> options;
  options.windows = {{LongformerAttention<T>::before, LongformerAttention<T>::after, 1}};
  options.scores = scores;
  options.global_tokens = reference::Tensor<std::uint8_t>({s.batch, s.keys});
  for (Index b = 0; b < s.batch; ++b)
    for (Index j = 0; j < s.keys; ++j) options.global_tokens(b, j) = LongformerAttention<T>::is_global(s, j);
  const auto all = reference::longformer_backward<Real>(exact(problem.query, s.query()), exact(problem.key, s.key()),
                                                        exact(problem.value, s.value()), exact_arrived(s, arrived),
                                                        options, Exact<T>::precision);
  return {all.query, all.key, all.value, all.scores};
}

template <typename T>
reference::AttentionGradients<RealOf<T>> exact_gradients(RelativeAttention<T>, const Problem<T>& problem,
                                                         const Arrived<T>& arrived,
                                                         const reference::Scores<RealOf<T>>& scores) {
  using Real = RealOf<T>;
  using Operator = RelativeAttention<T>;
  const Sizes& s = problem.sizes;
  reference::Tensor<Real> position({1, Operator::most_distances, s.head_dim});
  for (Index r = 0; r < Operator::most_distances; ++r)
    for (Index c = 0; c < s.head_dim; ++c)
      position(0, r, c) = Operator::table()[to_size(r * Operator::most_channels + c)];
  reference::RelativeOptions<Real> options;
  options.position = position;
  options.scores = scores;
  const auto all = reference::relative_backward<Real>(exact(problem.query, s.query()), exact(problem.key, s.key()),
                                                      exact(problem.value, s.value()), exact_arrived(s, arrived),
                                                      options, Exact<T>::precision);
  return {all.query, all.key, all.value, all.scores};
}

/// Absent gradients of the reference go with empty ones of the library.
template <typename Real, typename T, std::size_t Rank>
::testing::AssertionResult gradient_within_bound(const std::string& name, const reference::Bounded<Real>& expected,
                                                 const std::vector<T>& got, const Shape<Rank>& shape) {
  if (!expected.present() && got.empty()) return ::testing::AssertionSuccess();
  if (expected.value.elements().size() != got.size())
    return ::testing::AssertionFailure() << name << ": number of elements";
  const auto result = within_bound(name, expected, got, shape);
  return result ? result : ::testing::AssertionFailure() << name << ": " << result.message();
}

template <typename Real, typename T>
::testing::AssertionResult within_bound(const std::string& name, const reference::ScoreGradients<Real>& expected,
                                        const Gradients<T>& got) {
  const auto flat = [](const std::vector<T>& of) { return Shape<1>{static_cast<Index>(of.size())}; };
  if (auto r = gradient_within_bound(name + " d_bias", expected.bias, got.bias, got.bias_shape); !r) return r;
  if (auto r = gradient_within_bound(name + " d_alibi_slopes", expected.alibi_slopes, got.slopes, flat(got.slopes)); !r)
    return r;
  return gradient_within_bound(name + " d_sinks", expected.sinks, got.sinks, flat(got.sinks));
}

/// Gradients: of the reference, with `query`, `key`, `value` and `scores`.
template <typename Expected, typename T>
requires requires(const Expected& of) { of.scores.sinks; }
::testing::AssertionResult within_bound(const std::string& name, const Expected& expected, const Gradients<T>& got) {
  const Sizes& s = got.sizes;
  if (auto r = gradient_within_bound(name + " d_query", expected.query, got.query, s.query()); !r) return r;
  if (auto r = gradient_within_bound(name + " d_key", expected.key, got.key, s.key()); !r) return r;
  if (auto r = gradient_within_bound(name + " d_value", expected.value, got.value, s.value()); !r) return r;
  return within_bound(name, expected.scores, got);
}

}  // namespace test
