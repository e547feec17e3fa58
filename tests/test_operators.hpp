// SPDX-License-Identifier: Apache-2.0
// The operators behind one signature, their problems, and the answers of the reference.
#pragma once

#include <iostream>
#include <map>
#include <optional>

#include "longview/full_attention.hpp"
#include "longview/linformer_attention.hpp"
#include "longview/longformer_attention.hpp"
#include "longview/performer_attention.hpp"
#include "longview/relative_attention.hpp"
#include "longview/sliding_window_attention.hpp"
#include "reference/attention.hpp"
#include "reference/longformer.hpp"
#include "reference/relative.hpp"
#include "test_support.hpp"

namespace test {

using longview::KeyValueView;
using longview::Output;
using longview::Run;
using longview::Scores;

struct Sizes {
  Index batch = 1, heads = 1, key_heads = 1, queries = 1, keys = 1, head_dim = 1, value_dim = 1;

  Shape<4> query() const { return {batch, heads, queries, head_dim}; }
  Shape<4> key() const { return {batch, key_heads, keys, head_dim}; }
  Shape<4> value() const { return {batch, key_heads, keys, value_dim}; }
  Shape<4> out() const { return {batch, heads, queries, value_dim}; }
  Shape<3> lse() const { return {batch, heads, queries}; }
  Shape<4> pairs() const { return {batch, heads, queries, keys}; }
};

inline std::ostream& operator<<(std::ostream& out, const Sizes& s) {
  return out << "batch " << s.batch << " heads " << s.heads << "/" << s.key_heads << " lengths " << s.queries << ", "
             << s.keys << " dims " << s.head_dim << ", " << s.value_dim;
}

template <typename T>
struct Problem {
  Sizes sizes;
  std::vector<T> query, key, value;

  Problem(const Sizes& of, Random& random, double sigma = 1)
      : sizes(of),
        query(random.values<T>(count_of(of.query()), sigma)),
        key(random.values<T>(count_of(of.key()), sigma)),
        value(random.values<T>(count_of(of.value()))) {}

  TensorView<const T, 4> query_view() const { return {query.data(), sizes.query()}; }
  TensorView<const T, 4> key_view() const { return {key.data(), sizes.key()}; }
  TensorView<const T, 4> value_view() const { return {value.data(), sizes.value()}; }
  T& key_at(Index batch, Index head, Index row, Index channel) {
    return element(TensorView<T, 4>(key.data(), sizes.key()), {batch, head, row, channel});
  }
  T& value_at(Index batch, Index head, Index row, Index channel) {
    return element(TensorView<T, 4>(value.data(), sizes.value()), {batch, head, row, channel});
  }
};

template <typename T>
struct Answer {
  std::vector<T> out, lse;

  /// Where nothing is written, it shows.
  explicit Answer(const Sizes& sizes)
      : out(to_size(count_of(sizes.out())), T(12345)), lse(to_size(count_of(sizes.lse())), T(12345)) {}
  Output<T> output(const Sizes& sizes) {
    return {TensorView<T, 4>(out.data(), sizes.out()), TensorView<T, 3>(lse.data(), sizes.lse())};
  }
};

template <typename T>
::testing::AssertionResult same_answer(const Sizes& sizes, const Answer<T>& expected, const Answer<T>& got) {
  const auto out = same_bits(expected.out, got.out, sizes.out());
  return out ? same_bits(expected.lse, got.lse, sizes.lse()) : out;
}

// ---- Operators. Each sees its keys by a rule of its own, sees(), where the scores say nothing.

/// What is true of most of them.
template <typename T>
struct OperatorDefaults {
  using Element = T;
  static constexpr const char* scores = "options.scores.";  // where its Scores stand
  static constexpr bool same_lengths = false, takes_slopes = false, takes_masks = true, gives_lse = true;
  static constexpr std::size_t most_scratch = std::size_t{256} * 1024;  // for dimensions up to 128
  static constexpr std::size_t most_gradient_scratch = std::size_t{512} * 1024;

  static bool sees(const Sizes&, Index, Index) { return true; }
};

template <typename T>
struct FullAttention : OperatorDefaults<T> {
  static constexpr const char* name = "full_attention";
  static constexpr const char* scores = "options.";
  static constexpr bool takes_slopes = true;

  static void run(TensorView<const T, 4> query, TensorView<const T, 4> key, TensorView<const T, 4> value,
                  const Output<T>& out, const Scores<T>& options = {}, Run how = {}) {
    longview::full_attention(query, key, value, out, options, how);
  }
};

template <typename T>
struct SlidingWindowAttention : OperatorDefaults<T> {
  static constexpr const char* name = "sliding_window_attention";
  static constexpr bool takes_slopes = true;
  static constexpr Index before = 20, after = 3;

  static bool sees(const Sizes& s, Index query, Index key) {
    const Index distance = key - (query + s.keys - s.queries);
    return -before <= distance && distance <= after;
  }
  static void run(TensorView<const T, 4> query, TensorView<const T, 4> key, TensorView<const T, 4> value,
                  const Output<T>& out, const Scores<T>& options = {}, Run how = {}) {
    longview::SlidingWindowOptions<T> all{.window = {before, after, 1}, .scores = options};
    if (!options.alignment) all.scores.alignment = longview::Alignment::bottom_right;
    longview::sliding_window_attention(query, key, value, out, all, how);
  }
};

/// Tokens 1 and length - 2 are global.
template <typename T>
struct LongformerAttention : OperatorDefaults<T> {
  static constexpr const char* name = "longformer_attention";
  static constexpr bool same_lengths = true;
  static constexpr Index before = 20, after = 3;

  static bool is_global(const Sizes& s, Index token) { return s.keys >= 4 && (token == 1 || token == s.keys - 2); }
  static bool sees(const Sizes& s, Index query, Index key) {
    return is_global(s, query) || is_global(s, key) || (query - before <= key && key <= query + after);
  }
  static void run(TensorView<const T, 4> query, TensorView<const T, 4> key, TensorView<const T, 4> value,
                  const Output<T>& out, const Scores<T>& options = {}, Run how = {}) {
    const Index length = query.extent(2), tokens[] = {length >= 4 ? length - 2 : 0, 1};
    longview::LongformerOptions<T> all{.window = {before, after, 1}, .scores = options};
    if (length >= 4) all.global.tokens.indices = tokens;
    longview::longformer_attention(query, key, value, out, all, how);
  }
};

/// Rows of the position table are the same for all heads.
template <typename T>
struct RelativeAttention : OperatorDefaults<T> {
  static constexpr const char* name = "relative_attention";
  static constexpr std::size_t most_gradient_scratch = std::size_t{552} * 1024;  // of double, one block
  static constexpr Index most_distances = 4096, most_channels = 128;

  static bool sees(const Sizes& s, Index query, Index key) { return key <= query + s.keys - s.queries; }
  static const std::vector<T>& table() {
    static const std::vector<T> rows = Random(7).values<T>(most_distances * most_channels, 0.5);
    return rows;
  }
  static void run(TensorView<const T, 4> query, TensorView<const T, 4> key, TensorView<const T, 4> value,
                  const Output<T>& out, const Scores<T>& options = {}, Run how = {}) {
    const Shape<3> shape{1, most_distances, query.extent(3)}, stride{0, most_channels, 1};
    longview::relative_attention(query, key, value, out,
                                 {.position = {table().data(), shape, stride}, .scores = options}, how);
  }
};

/// One matrix for keys and values of all heads; its rows repeat.
template <typename T>
struct LinformerAttention : OperatorDefaults<T> {
  static constexpr const char* name = "linformer_attention";
  static constexpr bool takes_masks = false;
  static constexpr Index slots = 24, most_keys = 4096;

  static const std::vector<T>& matrix() {
    static const std::vector<T> rows = Random(8).values<T>(slots * most_keys, 0.1);
    return rows;
  }
  static void run(TensorView<const T, 4> query, TensorView<const T, 4> key, TensorView<const T, 4> value,
                  const Output<T>& out, const Scores<T>& options = {}, Run how = {}) {
    const Index keys = key.extent(2);
    const Shape<3> shape{1, slots, keys}, stride{0, keys <= most_keys ? most_keys : 0, keys <= most_keys ? 1 : 0};
    longview::linformer_attention(query, key, value, out,
                                  {.key_projection = {.matrix = {matrix().data(), shape, stride}}, .scores = options}, how);
  }
};

/// Without scores and their log-sum-exp.
template <typename T>
struct PerformerAttention : OperatorDefaults<T> {
  static constexpr const char* name = "performer_attention";
  static constexpr bool takes_masks = false, gives_lse = false;
  static constexpr std::size_t most_scratch = std::size_t{512} * 1024;
  static constexpr Index features = 48, most_channels = 128;

  static const std::vector<T>& projection() {
    static const std::vector<T> rows = Random(9).values<T>(features * most_channels);
    return rows;
  }
  static void run(TensorView<const T, 4> query, TensorView<const T, 4> key, TensorView<const T, 4> value,
                  const Output<T>& out, const Scores<T>& options = {}, Run how = {}) {
    const Shape<2> shape{features, query.extent(3)}, stride{most_channels, 1};
    longview::performer_attention(
        query, key, value, out.out,
        {.projection = {projection().data(), shape, stride}, .causal = options.causal, .key_lengths = options.key_lengths},
        how);
  }
};

template <typename T>
using ExactOperators =
    ::testing::Types<FullAttention<T>, SlidingWindowAttention<T>, LongformerAttention<T>, RelativeAttention<T>>;
template <typename T>
using AllOperators = ::testing::Types<FullAttention<T>, SlidingWindowAttention<T>, LongformerAttention<T>,
                                      RelativeAttention<T>, LinformerAttention<T>, PerformerAttention<T>>;
using AllOperatorsOfBothNumbers =
    ::testing::Types<FullAttention<float>, FullAttention<double>, SlidingWindowAttention<float>,
                     SlidingWindowAttention<double>, LongformerAttention<float>, LongformerAttention<double>,
                     RelativeAttention<float>, RelativeAttention<double>, LinformerAttention<float>,
                     LinformerAttention<double>, PerformerAttention<float>, PerformerAttention<double>>;

template <template <typename> class Operator>
using WithBothNumbers = ::testing::Types<Operator<float>, Operator<double>>;

/// Names of typed tests: of an operator, or of a number.
struct TypeName {
  template <typename Type>
  static std::string GetName(int) {
    if constexpr (std::is_floating_point_v<Type>)
      return sizeof(Type) == 4 ? "float" : "double";
    else
      return Type::name + ("_" + GetName<typename Type::Element>(0));
  }
};
using Numbers = ::testing::Types<float, double>;

template <typename Operator, typename T>
Answer<T> answer(const Problem<T>& problem, const Scores<T>& scores = {}, Run run = {}) {
  Answer<T> result(problem.sizes);
  Operator::run(problem.query_view(), problem.key_view(), problem.value_view(), result.output(problem.sizes), scores, run);
  return result;
}

/// What the tests of one operator share.
template <typename Operator>
class OperatorTest : public ::testing::Test {
 public:
  using Number = typename Operator::Element;
  static constexpr Number infinity = std::numeric_limits<Number>::infinity();
  static constexpr Number nan = std::numeric_limits<Number>::quiet_NaN();

  /// More rows than a block has, more keys than a tile, dimensions that fill no vector.
  static Sizes sizes() { return {2, 4, 2, 75, Operator::same_lengths ? 75 : 133, 19, 21}; }
  static Answer<Number> run(const Problem<Number>& problem, const Scores<Number>& scores = {}, longview::Run how = {}) {
    return answer<Operator, Number>(problem, scores, how);
  }
  static TensorView<Number, 4> rows(Answer<Number>& of, const Sizes& s) { return of.output(s).out; }
  static TensorView<Number, 3> lse(Answer<Number>& of, const Sizes& s) { return of.output(s).lse; }
};

// ---- The reference

template <typename T>
struct Exact;
template <>
struct Exact<float> {
  using Real = double;
  static constexpr reference::Precision precision = reference::float_kernel();
};
template <>
struct Exact<double> {
  using Real = long double;
  static constexpr reference::Precision precision = reference::double_kernel();
};
template <typename T>
using RealOf = typename Exact<T>::Real;

template <typename T, std::size_t Rank>
reference::Tensor<RealOf<T>> exact(const std::vector<T>& values, const Shape<Rank>& shape) {
  reference::Tensor<RealOf<T>> tensor(std::vector<Index>(shape.begin(), shape.end()));
  for (std::size_t at = 0; at < values.size(); ++at) tensor.elements()[at] = values[at];
  return tensor;
}

/// What is said about scores, with its memory.
template <typename T>
struct ScoresCase {
  std::optional<double> scale{}, softcap{};
  bool causal = false;
  std::optional<Index> offset{};
  std::vector<Index> key_lengths{};
  std::vector<std::uint8_t> keep{};
  std::vector<T> bias{}, slopes{}, sinks{};
  Shape<4> keep_shape{}, bias_shape{};

  Scores<T> view() const {
    Scores<T> scores{.scale = scale, .softcap = softcap, .causal = causal, .key_lengths = key_lengths};
    if (offset) scores.alignment = longview::Alignment::at(*offset);
    if (!keep.empty()) scores.keep_mask = {keep.data(), keep_shape};
    if (!bias.empty()) scores.bias = {bias.data(), bias_shape};
    scores.alibi_slopes = slopes, scores.sinks = sinks;
    return scores;
  }
  reference::Scores<RealOf<T>> exact_scores(Index offset_otherwise = 0) const {
    reference::Scores<RealOf<T>> scores;
    if (scale) scores.scale = static_cast<RealOf<T>>(*scale);
    if (softcap) scores.softcap = static_cast<RealOf<T>>(*softcap);
    scores.causal = causal, scores.offset = offset.value_or(offset_otherwise), scores.key_lengths = key_lengths;
    if (!keep.empty()) {
      scores.keep_mask = reference::Tensor<std::uint8_t>(std::vector<Index>(keep_shape.begin(), keep_shape.end()));
      scores.keep_mask.elements() = keep;
    }
    if (!bias.empty()) scores.bias = exact(bias, bias_shape);
    scores.alibi_slopes.assign(slopes.begin(), slopes.end()), scores.sinks.assign(sinks.begin(), sinks.end());
    return scores;
  }
  /// What distinguishes a failing case.
  std::string text() const {
    std::ostringstream out;
    if (scale) out << " scale " << *scale;
    if (softcap) out << " softcap " << *softcap;
    if (causal) out << " causal";
    if (offset) out << " offset " << *offset;
    if (!key_lengths.empty()) out << " key_lengths " << test::text_of(key_lengths);
    if (!keep.empty()) out << " keep_mask " << test::text_of(keep_shape);
    if (!bias.empty()) out << " bias " << test::text_of(bias_shape);
    if (!slopes.empty()) out << " slopes";
    if (!sinks.empty()) out << " sinks";
    return out.str();
  }
};

inline Shape<4> some_of(const Shape<4>& shape, Random& random) {
  Shape<4> some = shape;
  for (Index& extent : some)
    if (random.chance(40)) extent = 1;
  return some;
}

/// Numbers in options that the element type holds exactly.
template <typename T>
ScoresCase<T> random_scores(const Sizes& sizes, Random& random, bool positions, bool slopes) {
  ScoresCase<T> scores;
  if (random.chance(25)) scores.scale = static_cast<double>(static_cast<T>(random.uniform(-1, 1)));
  if (random.chance(25)) scores.softcap = static_cast<double>(static_cast<T>(random.uniform(0.5, 20)));
  scores.causal = random.chance(40);
  if (positions) scores.offset = random.chance(50) ? sizes.keys - sizes.queries : random.integer(-10, sizes.keys);
  if (random.chance(30))
    for (Index b = 0; b < sizes.batch; ++b) scores.key_lengths.push_back(random.integer(0, sizes.keys));
  if (random.chance(30)) {
    scores.keep_shape = some_of(sizes.pairs(), random);
    scores.keep = random.bytes(count_of(scores.keep_shape), static_cast<int>(random.integer(5, 95)));
  }
  if (random.chance(30)) {
    scores.bias_shape = some_of(sizes.pairs(), random);
    scores.bias = random.values<T>(count_of(scores.bias_shape));
    for (T& x : scores.bias)
      if (random.chance(10)) x = -std::numeric_limits<T>::infinity();
  }
  if (slopes && random.chance(30)) scores.slopes = random.values<T>(sizes.heads, 0.1);
  if (random.chance(30)) scores.sinks = random.values<T>(sizes.heads);
  return scores;
}

/// The worst share of the bound that any answer took up, by name; printed when the program ends.
class WorstRatios : public ::testing::Environment {
 public:
  static WorstRatios& all() {
    static WorstRatios* const ratios =
        static_cast<WorstRatios*>(::testing::AddGlobalTestEnvironment(new WorstRatios));
    return *ratios;
  }
  void note(const std::string& name, double ratio) { worst_[name] = std::max(worst_[name], ratio); }
  void TearDown() override {
    for (const auto& [name, ratio] : worst_) std::cout << "worst share of the bound, " << name << ": " << ratio << "\n";
  }

 private:
  std::map<std::string, double> worst_;
};

template <typename Real, typename T, std::size_t Rank>
::testing::AssertionResult within_bound(const std::string& name, const reference::Bounded<Real>& expected,
                                        const std::vector<T>& got, const Shape<Rank>& shape) {
  std::ostringstream text;
  std::size_t outside = 0;
  double worst = 0;
  for (std::size_t at = 0; at < got.size(); ++at) {
    const reference::Estimate<Real> one = expected.element(at);
    const Real error = std::abs(static_cast<Real>(got[at]) - one.value);
    const double ratio = error == 0 || one.radius == 0 ? 0 : static_cast<double>(error / one.radius);
    if (std::isfinite(ratio)) worst = std::max(worst, ratio);
    if (reference::agrees(one, got[at])) continue;
    if (++outside <= 10)
      text << "\n  " << text_of(place_of(static_cast<Index>(at), shape)) << " expected " << std::setprecision(17)
           << one.value << ", got " << got[at] << ", bound " << one.radius << ", ratio " << ratio;
  }
  WorstRatios::all().note(name + (sizeof(T) == 4 ? " float" : " double"), worst);
  if (outside == 0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << outside << " of " << got.size() << " elements outside" << text.str() << "\n  "
                                       << reproducer();
}

template <typename Real, typename T>
::testing::AssertionResult within_bound(const std::string& name, const Sizes& sizes,
                                        const reference::AttentionResult<Real>& expected, const Answer<T>& got) {
  const auto out = within_bound(name, expected.out, got.out, sizes.out());
  return out ? within_bound(name + " lse", expected.lse, got.lse, sizes.lse()) : out;
}

inline reference::Window exact_window(const longview::Window& window) {
  const auto side = [](Index steps) { return steps == longview::unlimited ? std::nullopt : std::optional<Index>(steps); };
  return {side(window.before), side(window.after), window.dilation};
}

template <typename T>
reference::AttentionResult<RealOf<T>> reference_attention(const Problem<T>& problem, const ScoresCase<T>& scores,
                                                          const std::vector<reference::Window>& windows = {}) {
  const Sizes& s = problem.sizes;
  return reference::attention<RealOf<T>>(exact(problem.query, s.query()), exact(problem.key, s.key()),
                                         exact(problem.value, s.value()), scores.exact_scores(), windows,
                                         Exact<T>::precision);
}

}  // namespace test
