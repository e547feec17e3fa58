// SPDX-License-Identifier: Apache-2.0
// Calls of kernelised attention without and with data, for the tests of both passes.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <random>
#include <thread>

#include "instruction_sets.hpp"
#include "longview/performer_attention.hpp"
#include "reference/performer.hpp"

namespace performer {

using namespace longview;
using test::instruction_sets;

inline constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

/// One call, without data.
struct Case {
  FeatureMap features = FeatureMap::positive;
  Stabiliser stabiliser = Stabiliser::prefix;
  bool causal = false, normalize = true, projected = true, padded = false;
  double guard = 0, key_sum_epsilon = 0;
  std::optional<double> epsilon{};
  Index batch = 2, heads = 2, key_heads = 1, queries = 53, keys = 53, head_dim = 8, value_dim = 5, rows = 17;
  double size = 0.5, shift = 0;
  bool differentiate_maximum = false;
};
inline std::ostream& operator<<(std::ostream& out, const Case& of) {
  return out << "map " << static_cast<int>(of.features) << " stabiliser " << static_cast<int>(of.stabiliser)
             << " causal " << of.causal << " normalize " << of.normalize << " projected " << of.projected << " padded "
             << of.padded << " guard " << of.guard << " epsilon " << of.epsilon.value_or(-1) << " shape " << of.queries
             << "x" << of.keys << "x" << of.head_dim << "x" << of.value_dim << "x" << of.rows << " through maximum "
             << of.differentiate_maximum;
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
    out.assign(static_cast<std::size_t>(c.batch * c.heads * c.queries * c.value_dim), static_cast<T>(not_a_number));
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
    PerformerOptions<T> result{.features = c.features,
                               .epsilon = c.epsilon,
                               .stabiliser = c.stabiliser,
                               .fixed_shift = c.shift,
                               .differentiate_maximum = c.differentiate_maximum,
                               .causal = c.causal,
                               .normalize = c.normalize,
                               .denominator_guard = c.guard,
                               .key_sum_epsilon = c.key_sum_epsilon};
    if (c.projected) result.projection = {w.data(), {c.rows, c.head_dim}};
    if (c.padded) {
      result.key_lengths = lengths;
      result.keep_keys = {keep.elements().data(), {c.batch, c.keys}};
    }
    result.projected_query = left_views[0], result.projected_key = left_views[1], result.key_sums = left_views[2];
    return result;
  }

  /// What the forward call may leave to the backward call.
  enum Left { left_queries = 1, left_keys = 2, left_sums = 4 };
  int may_leave() const { return (c.projected ? left_queries | left_keys : 0) | (c.causal ? 0 : left_sums); }
  /// Room for some of it, filled with NaN, elements `step` apart; with 1 packed, else rows backwards.
  void leave(int which, Index step = 1) {
    const Index rows = c.projected ? c.rows : c.head_dim;
    const Shape<4> shapes[] = {{c.batch, c.heads, c.queries, rows},
                               {c.batch, c.key_heads, c.keys, rows},
                               {c.batch, c.key_heads, c.value_dim + 2, feature_count(c.features, rows)}};
    for (int at = 0; at < 3; ++at) {
      const auto [b, h, n, d] = shapes[at];
      left[at].assign(static_cast<std::size_t>(b * h * n * d * step), static_cast<T>(not_a_number));
      left_views[at] = {};
      if ((which >> at & 1) == 0) continue;
      const TensorView<T, 4> view(left[at].data(), {b, h, n, d}, {h * n * d * step, n * d * step, d * step, step});
      left_views[at] = step == 1 || n == 0 ? view : view.slice(2, n - 1, n, -1);
    }
  }
  reference::PerformerOptions<double> definition() const {
    reference::PerformerOptions<double> result;
    result.features = static_cast<reference::FeatureMap>(c.features);
    result.stabiliser = static_cast<reference::Stabiliser>(c.stabiliser);
    if (c.projected) result.projection = projection;
    if (c.epsilon) result.epsilon = static_cast<double>(static_cast<T>(*c.epsilon));
    result.differentiate_maximum = c.differentiate_maximum;
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
    std::fill(out.begin(), out.end(), static_cast<T>(not_a_number));
    performer_attention(query_view(), key_view(), value_view(), out_view(), options(), how);
    return out;
  }

  Case c;
  std::mt19937 generator;
  reference::Tensor<double> query, key, value, projection;
  reference::Tensor<std::uint8_t> keep;
  std::vector<Index> lengths;
  std::vector<T> q, k, v, w, out, left[3];
  TensorView<T, 4> left_views[3];
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
    const double wanted = expected.value.elements()[at],
                 bound = expected.radius.elements()[at] + own * std::abs(wanted);
    ASSERT_LE(std::abs(static_cast<double>(got[at]) - wanted), bound)
        << what << " at " << at << ": " << got[at] << ", expected " << wanted;
  }
}

inline std::vector<Case> definition_cases() {
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

/// Cases in which streams, layouts and executors must agree to the bit.
inline std::vector<Case> bitwise_cases(bool causal) {
  std::vector<Case> cases;
  for (const FeatureMap map : {FeatureMap::positive, FeatureMap::hyperbolic, FeatureMap::trigonometric,
                               FeatureMap::relu, FeatureMap::elu_plus_one, FeatureMap::softmax})
    for (const bool padded : {false, true})
      cases.push_back({.features = map,
                       .stabiliser = map == FeatureMap::softmax ? Stabiliser::fixed : Stabiliser::prefix,
                       .causal = causal,
                       .padded = padded,
                       .heads = 4,
                       .key_heads = 2,
                       .queries = 151,
                       .keys = 151,
                       .value_dim = 9,
                       .rows = 100,
                       .size = padded ? 2.0 : 0.5});
  return cases;
}

/// Calls check(run, threads) with executors that turn the tasks around, run them twice, run them in parallel.
template <typename Check>
void through_executors(std::initializer_list<Index> numbers, const Check& check) {
  for (const Index threads : numbers) {
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
    const Parallel first{threads, reversed};
    const Parallel second{threads, twice};
    const Parallel third{threads, parallel};
    check(Run(first), threads), check(Run(second), threads), check(Run(third), threads);
  }
}

}  // namespace performer
namespace test {
/// The flags of a call whose workspace holds signalling NaN.
template <typename Executor, typename Call>
int flags_of(const Executor& executor, const Call& call) {
  longview::DryRun rehearsal;
  call(longview::Run(executor, rehearsal));
  std::vector<std::byte> workspace(rehearsal.workspace_bytes());
  const std::uint32_t poison = 0x7fa5a5a5;
  for (std::size_t at = 0; at + 4 <= workspace.size(); at += 4) std::memcpy(&workspace[at], &poison, 4);
  std::feclearexcept(FE_ALL_EXCEPT);
  call(longview::Run(executor, workspace));
  return std::fetestexcept(FE_INVALID | FE_DIVBYZERO | FE_OVERFLOW);
}
}  // namespace test
namespace performer {

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

}  // namespace performer
