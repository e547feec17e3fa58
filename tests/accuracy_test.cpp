// SPDX-License-Identifier: Apache-2.0
// Errors over pools of 10^5 elements beside those of plain code in the same arithmetic: two passes over the keys, one sum
// after the other in order of the keys. A certified bound has room for a slow drift, this has not.
#include <cmath>

#include "test_operators.hpp"

namespace {

using test::Index;
using test::Problem;
using test::Random;
using test::Sizes;
using test::to_size;

/// The definition evaluated in Number by the plainest loops.
template <typename Number, typename Operator>
class Plain {
 public:
  using T = typename Operator::Element;

  explicit Plain(const Problem<T>& problem) : problem_(problem), s_(problem.sizes), rows_(s_.keys) {
    for (Index b = 0; b < s_.batch; ++b)
      for (Index g = 0; g < s_.key_heads; ++g) {
        const Index at = (b * s_.key_heads + g) * s_.keys;
        key_ = mixed(problem.key, at, s_.head_dim), value_ = mixed(problem.value, at, s_.value_dim);
        const Index group = s_.heads / s_.key_heads;
        for (Index h = 0; h < group; ++h)
          for (Index i = 0; i < s_.queries; ++i) {
            const auto first = (((b * s_.key_heads + g) * group + h) * s_.queries + i) * s_.head_dim;
            query_.assign(problem.query.begin() + first, problem.query.begin() + first + s_.head_dim);
            if constexpr (requires { Operator::projection(); })
              add_row_of_features();
            else
              add_row(i);
          }
      }
  }
  const std::vector<Number>& out() const { return out_; }

 private:
  static Number dot(const Number* a, const Number* b, Index count) {
    Number sum = 0;
    for (Index c = 0; c < count; ++c) sum += a[c] * b[c];
    return sum;
  }

  /// The keys or values of a head, in Linformer their projection.
  std::vector<Number> mixed(const std::vector<T>& all, Index first, Index dim) {
    std::vector<Number> rows(all.begin() + first * dim, all.begin() + (first + s_.keys) * dim);
    features_.clear();
    if constexpr (requires { Operator::matrix(); }) {
      rows_ = Operator::slots;
      std::vector<Number> slots(to_size(rows_ * dim));
      for (Index slot = 0; slot < rows_; ++slot)
        for (Index j = 0; j < s_.keys; ++j)
          for (Index c = 0; c < dim; ++c)
            slots[to_size(slot * dim + c)] +=
                Number(Operator::matrix()[to_size(slot * Operator::most_keys + j)]) * rows[to_size(j * dim + c)];
      return slots;
    }
    return rows;
  }

  Number score(Index i, Index j) const {
    Number sum = dot(query_.data(), key_.data() + j * s_.head_dim, s_.head_dim);
    if constexpr (requires { Operator::table(); }) {
      const T* const position = Operator::table().data() + (s_.keys - s_.queries + i - j) * Operator::most_channels;
      Number by_distance = 0;
      for (Index c = 0; c < s_.head_dim; ++c) by_distance += query_[to_size(c)] * Number(position[c]);
      sum += by_distance;
    }
    return sum * (Number(1) / std::sqrt(Number(s_.head_dim)));
  }

  void add_row(Index i) {
    scores_.clear(), seen_.clear();
    for (Index j = 0; j < rows_; ++j)
      if (Operator::sees(s_, i, j)) scores_.push_back(score(i, j)), seen_.push_back(j);
    const Number maximum = *std::max_element(scores_.begin(), scores_.end());
    Number sum = 0;
    std::vector<Number> row(to_size(s_.value_dim));
    for (std::size_t at = 0; at < seen_.size(); ++at) {
      const Number weight = std::exp(scores_[at] - maximum);
      sum += weight;
      for (Index c = 0; c < s_.value_dim; ++c) row[to_size(c)] += weight * value_[to_size(seen_[at] * s_.value_dim + c)];
    }
    for (const Number x : row) out_.push_back(x / sum);
  }

  /// Exponents U - |x|^2 / 2 of a row's positive features.
  void exponents(const Number* row, std::vector<Number>& all) const {
    std::vector<Number> scaled(row, row + s_.head_dim);
    for (Number& x : scaled) x /= std::sqrt(std::sqrt(Number(s_.head_dim)));
    const Number half = dot(scaled.data(), scaled.data(), s_.head_dim) / 2;
    for (Index f = 0; f < Operator::features; ++f) {
      Number sum = 0;
      for (Index c = 0; c < s_.head_dim; ++c)
        sum += Number(Operator::projection()[to_size(f * Operator::most_channels + c)]) * scaled[to_size(c)];
      all.push_back(sum - half);
    }
  }
  static void exponentials(std::vector<Number>& all) {
    const Number maximum = *std::max_element(all.begin(), all.end());
    for (Number& x : all) x = std::exp(x - maximum);
  }
  void sum_features() {
    for (Index j = 0; j < s_.keys; ++j) exponents(key_.data() + j * s_.head_dim, features_);
    exponentials(features_);
    key_sum_.assign(to_size(Operator::features), Number(0));
    product_sum_.assign(to_size(Operator::features * s_.value_dim), Number(0));
    for (Index j = 0; j < s_.keys; ++j)
      for (Index f = 0; f < Operator::features; ++f) {
        const Number phi = features_[to_size(j * Operator::features + f)];
        key_sum_[to_size(f)] += phi;
        for (Index c = 0; c < s_.value_dim; ++c)
          product_sum_[to_size(f * s_.value_dim + c)] += phi * value_[to_size(j * s_.value_dim + c)];
      }
  }
  void add_row_of_features() {
    if (features_.empty()) sum_features();
    std::vector<Number> phi;
    exponents(query_.data(), phi);
    exponentials(phi);
    const Number sum = dot(phi.data(), key_sum_.data(), Operator::features);
    for (Index c = 0; c < s_.value_dim; ++c) {
      Number x = 0;
      for (Index f = 0; f < Operator::features; ++f) x += phi[to_size(f)] * product_sum_[to_size(f * s_.value_dim + c)];
      out_.push_back(x / sum);
    }
  }

  const Problem<T>& problem_;
  const Sizes s_;
  Index rows_;
  std::vector<Number> query_, key_, value_, scores_, features_, key_sum_, product_sum_, out_;
  std::vector<Index> seen_;
};

struct Errors {
  double rms = 0, most = 0;

  template <typename T, typename Real>
  Errors(const std::vector<T>& got, const std::vector<Real>& exact) {
    for (std::size_t at = 0; at < got.size(); ++at) {
      const double error = static_cast<double>(std::abs(static_cast<Real>(got[at]) - exact[at]));
      rms += error * error, most = std::max(most, error);
    }
    rms = std::sqrt(rms / static_cast<double>(got.size()));
  }
};

template <typename Operator>
class Accuracy : public ::testing::Test {
 public:
  using T = typename Operator::Element;

  static void expect_no_worse_than_plain_code(const Sizes& sizes, double sigma) {
    Random random(31);
    const Problem<T> problem(sizes, random, sigma);
    const auto exact = Plain<test::RealOf<T>, Operator>(problem).out();
    const Errors plain(Plain<T, Operator>(problem).out(), exact);
    double largest = 0;
    for (const T x : problem.value) largest = std::max(largest, std::abs(static_cast<double>(x)));
    const double roundoff = test::Exact<T>::precision.roundoff;
    ASSERT_GE(exact.size(), 100000U);
    test::under_all_sets([&] {
      const Errors own(test::answer<Operator, T>(problem).out, exact);
      EXPECT_LE(own.rms, 1.25 * plain.rms) << "share " << own.rms / plain.rms << ", " << sizes << " sigma " << sigma;
      EXPECT_LE(own.most, 2 * plain.most + 8 * roundoff * largest) << sizes << " sigma " << sigma;
      test::WorstRatios::all().note(std::string(Operator::name) + " RMS beside plain code" +
                                        (sizeof(T) == 4 ? " float" : " double"),
                                    own.rms / plain.rms);
    });
  }
};

TYPED_TEST_SUITE(Accuracy, test::AllOperatorsOfBothNumbers, test::TypeName);

TYPED_TEST(Accuracy, ManyShortRows) {
  for (const double sigma : {0.3, 1.0, 2.0}) this->expect_no_worse_than_plain_code({2, 4, 2, 260, 260, 16, 64}, sigma);
}

TYPED_TEST(Accuracy, KeysOfMoreThanARange) { this->expect_no_worse_than_plain_code({1, 1, 1, 2100, 2100, 16, 64}, 1); }

}  // namespace
