// SPDX-License-Identifier: Apache-2.0
#include "longview/random_features.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace {

using longview::Index;
using longview::RandomFeatures;
using longview::TensorView;
using longview::detail::normal;
using longview::detail::Stream;

constexpr RandomFeatures all_kinds[] = {RandomFeatures::orthogonal, RandomFeatures::regularised,
                                        RandomFeatures::independent};
// Two-sided 7e-9 for a normal statistic: all comparisons of this file together stay below 1e-6.
constexpr double certain = 5.8;

template <typename T = double>
std::vector<T> draw(Index rows, Index dim, std::uint64_t seed, RandomFeatures kind = {}) {
  std::vector<T> values(static_cast<std::size_t>(rows * dim));
  longview::random_features(TensorView<T, 2>(values.data(), {rows, dim}), seed, kind);
  return values;
}

template <typename T>
std::vector<std::uint64_t> bits(const std::vector<T>& values) {
  std::vector<std::uint64_t> words;
  for (const T x : values) words.push_back(std::bit_cast<std::uint64_t>(double{x}));
  return words;
}

std::uint64_t digest(const std::vector<double>& values) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const std::uint64_t word : bits(values)) hash = std::rotl(hash ^ word, 29) * 0x100000001b3u;
  return hash;
}

template <typename Error, typename Body>
std::string text_of(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

double dot(const double* a, const double* b, Index dim) {
  long double sum = 0;
  for (Index i = 0; i < dim; ++i) sum += static_cast<long double>(a[i]) * static_cast<long double>(b[i]);
  return static_cast<double>(sum);
}

/// Mean and variance of estimates whose expectation is 1: exp(<q, k>) by `rows` features, as a share of its true value.
struct Estimates {
  double mean, variance;
  int count;
  Estimates(Index rows, RandomFeatures kind, const std::vector<double>& query, const std::vector<double>& key,
            int draws)
      : count(draws) {
    std::vector<double> z = query;
    for (std::size_t i = 0; i < z.size(); ++i) z[i] += key[i];
    const auto dim = static_cast<Index>(z.size());
    const double half = dot(z.data(), z.data(), dim) / 2;
    double sum = 0, squares = 0;
    for (int seed = 0; seed < draws; ++seed) {
      const std::vector<double> w = draw(rows, dim, static_cast<std::uint64_t>(seed), kind);
      double estimate = 0;
      for (Index t = 0; t < rows; ++t)
        estimate += std::exp(dot(w.data() + t * dim, z.data(), dim) - half) / static_cast<double>(rows);
      sum += estimate, squares += (estimate - 1) * (estimate - 1);
    }
    mean = sum / draws;
    variance = squares / draws - (mean - 1) * (mean - 1);
  }
};

TEST(RandomFeatures, GeneratorGivesThePublishedWords) {
  using Words = std::array<std::uint32_t, 4>;
  const std::uint32_t ones = 0xffffffffu;
  EXPECT_EQ(longview::detail::philox({0, 0, 0, 0}, 0), (Words{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  EXPECT_EQ(longview::detail::philox({ones, ones, ones, ones}, ~std::uint64_t{0}),
            (Words{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
  EXPECT_EQ(longview::detail::philox({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, 0x299f31d0a4093822u),
            (Words{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}));
}

// The bits below come from a model of the algorithm in Python, whose floats are IEEE doubles.
TEST(RandomFeatures, F04GoldenBits) {
  const std::vector<std::uint64_t> orthogonal{
      0xbfd7dd47338e56cd, 0xbfd5599bb98e8d0c, 0x3fe364f4002bb9a9, 0x3fe425ceaee0c1b7, 0x4007d3ebac24e97e,
      0x400036d59bcabbcd, 0xbff8589eedd4346e, 0x3fe651a0238b7cd9, 0xbfe1ac3b1d8f826b, 0x3fdd5d327f9bde42,
      0xbfe38e001cc7e09b, 0xbfe1250a59b04516, 0xbfe755ce6aa72821, 0xbff175f7a02d5aaa, 0x3fe3d8e09b05925c};
  const std::vector<std::uint64_t> regularised{
      0xbfea4c14767433b8, 0xbfe786cac5f13dab, 0x3ff55f192b804f76, 0x3fd315658ea1ace2, 0x3ff691c085f6b8df,
      0x3feeb736e86989c3, 0xbff7ec84c8992f71, 0x3fe5ee867101d884, 0xbfe15dc29479e830, 0x3feb3f98c4aec731,
      0xbff22553bf08a2bb, 0xbfefd1a2ce807efa, 0xbfebd78b98c4f7ea, 0xbff4d543ef244c89, 0x3fe7ae298e329d83};
  const std::vector<std::uint64_t> independent{
      0xbfd099f18d185c80, 0xbfcdb4581c107fc0, 0x3fdafbc756a3f980, 0xbfe72318cb23b230, 0x3fb3991393be9600,
      0x4000b5db4e0d92d8, 0x3fdef765197c56e0, 0x3fdb1fb28d5803c0, 0xbff7122e8e29c6d8, 0x3fe66ac231f56120,
      0xbfeddb55b99f3e70, 0xbfea2d56c5a8c6b0, 0xbfce62cb9ce88800, 0xbfd4ffd5885978a0, 0x3fca3bd28946d680};
  EXPECT_EQ(bits(draw(5, 3, 42)), orthogonal);
  EXPECT_EQ(bits(draw(5, 3, 42, RandomFeatures::regularised)), regularised);
  EXPECT_EQ(bits(draw(5, 3, 42, RandomFeatures::independent)), independent);
}

TEST(RandomFeatures, F04GoldenBitsOfManyBlocks) {
  const std::uint64_t seed = 0x123456789abcdef0u;
  EXPECT_EQ(digest(draw(70, 32, seed)), 0xa398e610b775f7d4u);
  EXPECT_EQ(digest(draw(70, 32, seed, RandomFeatures::regularised)), 0x5fb27bc280760c97u);
  EXPECT_EQ(digest(draw(70, 32, seed, RandomFeatures::independent)), 0xb4be532112beb434u);
}

TEST(RandomFeatures, F04EqualSeedsGiveEqualBits) {
  for (const RandomFeatures kind : all_kinds) {
    EXPECT_EQ(bits(draw(33, 16, 5, kind)), bits(draw(33, 16, 5, kind)));
    EXPECT_EQ(bits(draw<float>(33, 16, 5, kind)), bits(draw<float>(33, 16, 5, kind)));
  }
}

TEST(RandomFeatures, DifferentSeedsDiffer) {
  for (const RandomFeatures kind : all_kinds)
    for (int bit = 0; bit < 64; ++bit) {
      const auto one = draw(4, 4, 9, kind), other = draw(4, 4, 9 ^ (std::uint64_t{1} << bit), kind);
      EXPECT_NE(one[0], other[0]) << bit;
    }
}

TEST(RandomFeatures, StreamsAndIndicesDiffer) {
  EXPECT_NE(normal(1, Stream::feature_rows, 0), normal(1, Stream::feature_lengths, 0));
  EXPECT_NE(normal(1, Stream::feature_rows, 0), normal(1, Stream::projection, 0));
  for (int bit = 0; bit < 64; ++bit)
    EXPECT_NE(normal(1, Stream::projection, 0), normal(1, Stream::projection, std::uint64_t{1} << bit)) << bit;
}

TEST(RandomFeatures, F04OneDimension) {
  int negative = 0;
  const auto unit = draw(4000, 1, 3, RandomFeatures::regularised);
  for (const double w : unit) {
    EXPECT_EQ(std::abs(w), 1.0);
    negative += w < 0;
  }
  EXPECT_LT(std::abs(negative - 2000), certain * std::sqrt(1000.0));
  const auto free = draw(4000, 1, 3, RandomFeatures::independent);
  for (std::size_t t = 0; t < free.size(); ++t) EXPECT_EQ(unit[t] < 0, free[t] < 0);
}

TEST(RandomFeatures, F06RowsOfABlockAreOrthogonal) {
  double worst = 0;
  for (const Index dim : {2, 3, 8, 17, 64, 80, 128})
    for (const RandomFeatures kind : {RandomFeatures::orthogonal, RandomFeatures::regularised}) {
      const Index rows = 2 * dim + dim / 2;
      const auto w = draw(rows, dim, static_cast<std::uint64_t>(dim), kind);
      for (Index t = 0; t < rows; ++t)
        for (Index s = t - t % dim; s < t; ++s) {
          const double *a = w.data() + t * dim, *b = w.data() + s * dim;
          worst = std::max(worst, std::abs(dot(a, b, dim)) / std::sqrt(dot(a, a, dim) * dot(b, b, dim)));
        }
    }
  RecordProperty("worst", std::to_string(worst * 0x1p53));
  EXPECT_LE(worst, 32 * 0x1p-53);
}

TEST(RandomFeatures, F06BlocksAreIndependent) {
  const Index dim = 16, blocks = 60;
  const auto w = draw(blocks * dim, dim, 77, RandomFeatures::regularised);
  // The diagonal of U^T V, both uniformly distributed, has a sum of squares of mean 1 and variance 2 / (D + 2).
  double sum = 0;
  for (Index t = dim; t < blocks * dim; ++t) {
    const double cosine = dot(w.data() + t * dim, w.data() + (t - dim) * dim, dim) / static_cast<double>(dim);
    sum += cosine * cosine;
  }
  const double pairs = static_cast<double>(blocks - 1), variance = 2 / static_cast<double>(dim + 2);
  EXPECT_LT(std::abs(sum - pairs), certain * std::sqrt(pairs * variance));
}

TEST(RandomFeatures, F06LastBlockIsTruncated) {
  for (const RandomFeatures kind : all_kinds) {
    const auto whole = draw(24, 8, 11, kind);
    for (Index rows = 1; rows <= 24; ++rows) {
      const auto part = draw(rows, 8, 11, kind);
      EXPECT_EQ(bits(part), bits(std::vector<double>(whole.begin(), whole.begin() + rows * 8))) << rows;
    }
  }
}

TEST(RandomFeatures, RegularisedRowsHaveLengthOfRootDim) {
  for (const Index dim : {1, 2, 5, 64, 100}) {
    const Index rows = dim + 3;
    const auto w = draw(rows, dim, 8, RandomFeatures::regularised);
    for (Index t = 0; t < rows; ++t)
      EXPECT_NEAR(dot(w.data() + t * dim, w.data() + t * dim, dim) / static_cast<double>(dim), 1, 64 * 0x1p-53);
  }
}

TEST(RandomFeatures, OrthogonalRowsHaveChiLengths) {
  for (const Index dim : {1, 2, 16}) {
    const Index rows = 40000;
    const auto w = draw(rows, dim, 21);
    double length = 0, square = 0;
    for (Index t = 0; t < rows; ++t) {
      const double squared = dot(w.data() + t * dim, w.data() + t * dim, dim);
      square += squared / static_cast<double>(rows), length += std::sqrt(squared) / static_cast<double>(rows);
    }
    const double d = static_cast<double>(dim), count = static_cast<double>(rows);
    const double mean = std::sqrt(2.0) * std::exp(std::lgamma((d + 1) / 2) - std::lgamma(d / 2));
    EXPECT_LT(std::abs(square - d), certain * std::sqrt(2 * d / count)) << dim;
    EXPECT_LT(std::abs(length - mean), certain * std::sqrt((d - mean * mean) / count)) << dim;
  }
}

TEST(RandomFeatures, EveryElementOfAnOrthogonalRowIsCentred) {
  const Index dim = 8, draws = 4000;
  std::vector<double> sum(64);
  for (Index seed = 0; seed < draws; ++seed) {
    const auto w = draw(dim, dim, static_cast<std::uint64_t>(seed));
    for (std::size_t i = 0; i < 64; ++i) sum[i] += w[i];
  }
  for (std::size_t i = 0; i < 64; ++i)
    EXPECT_LT(std::abs(sum[i]), certain * std::sqrt(static_cast<double>(draws))) << i / 8 << ", " << i % 8;
}

TEST(RandomFeatures, IndependentElementsHaveNormalMoments) {
  const Index rows = 4000, dim = 100;
  const auto w = draw(rows, dim, 1234, RandomFeatures::independent);
  const double count = static_cast<double>(w.size());
  double moment[9] = {}, neighbours = 0;
  for (const double x : w)
    for (int power = 1; power <= 8; ++power) moment[power] += std::pow(x, power) / count;
  for (std::size_t i = 1; i < w.size(); ++i) neighbours += w[i] * w[i - 1] / count;
  const double expected[] = {1, 0, 1, 0, 3, 0, 15}, variance[] = {0, 1, 2, 15, 96, 945, 10170};
  for (int power = 1; power <= 6; ++power)
    EXPECT_LT(std::abs(moment[power] - expected[power]), certain * std::sqrt(variance[power] / count)) << power;
  EXPECT_LT(std::abs(neighbours), certain / std::sqrt(count));
}

TEST(RandomFeatures, NormalNumbersFillTheirCells) {
  const int count = 400000, cells = 48;  // of width 1/6 on [-4, 4], and the tails
  std::vector<double> found(cells + 2);
  for (int i = 0; i < count; ++i) {
    const double at = std::floor((normal(99, Stream::projection, static_cast<std::uint64_t>(i)) + 4) * 6);
    found[static_cast<std::size_t>(std::min(std::max(at, -1.0), double{cells}) + 1)] += 1;
  }
  const auto below = [](double x) { return std::erfc(-x / std::sqrt(2.0)) / 2; };
  double chi_squared = 0;
  for (int cell = -1; cell <= cells; ++cell) {
    const double left = cell < 0 ? 0 : below(cell / 6.0 - 4), right = cell == cells ? 1 : below((cell + 1) / 6.0 - 4);
    const double expected = count * (right - left), seen = found[static_cast<std::size_t>(cell + 1)];
    chi_squared += (seen - expected) * (seen - expected) / expected;
  }
  // 49 degrees of freedom: beyond 124 with probability 2e-8.
  EXPECT_LT(chi_squared, 124);
}

// Contract 3.F, with inputs that do not average out over the axes.
TEST(RandomFeatures, EstimatesOfTheSoftmaxKernelAreUnbiased) {
  for (const RandomFeatures kind : {RandomFeatures::orthogonal, RandomFeatures::independent})
    for (const Index dim : {1, 4, 16})
      for (const Index rows : {dim, 3 * dim + dim / 2}) {
        const std::vector<double> query(static_cast<std::size_t>(dim), 0.6 / std::sqrt(static_cast<double>(dim)));
        std::vector<double> key = query;
        if (dim > 1) key[0] = -key[0];
        const Estimates estimates(rows, kind, query, key, 200);
        std::vector<double> z = query;
        for (std::size_t i = 0; i < z.size(); ++i) z[i] += key[i];
        // The variance of independent rows, which bounds that of orthogonal ones.
        const double variance = std::expm1(dot(z.data(), z.data(), dim)) / static_cast<double>(rows);
        EXPECT_LE(std::abs(estimates.mean - 1), certain * std::sqrt(variance / estimates.count)) << dim << ", " << rows;
      }
}

TEST(RandomFeatures, OrthogonalEstimatesAreUnbiasedToAPercent) {
  const std::vector<double> half(16, 0.15);
  const Estimates estimates(16, RandomFeatures::orthogonal, half, half, 4000);
  EXPECT_LT(std::abs(estimates.mean - 1), certain * std::sqrt(estimates.variance / estimates.count));
  EXPECT_LT(std::abs(estimates.mean - 1), 0.04);
}

TEST(RandomFeatures, VarianceIsThatOfTheoryAndOrthogonalRowsHaveLess) {
  const Index dim = 8, rows = 8;
  const std::vector<double> half(8, std::sqrt(1.0 / 32));  // |z|^2 = 1
  const Estimates free(rows, RandomFeatures::independent, half, half, 20000);
  const Estimates orthogonal(rows, RandomFeatures::orthogonal, half, half, 20000);
  const double m = rows, kernel = std::exp(0.25), norms = std::exp(-0.25);
  const double theory = std::exp(1.0) * (1 - std::exp(-1.0)) / m;  // as a share of the squared kernel
  const double less = 2 * (m - 1) / (m * (dim + 2)) * (kernel - norms) * (kernel - norms) / (kernel * kernel);
  EXPECT_LE(free.variance, theory * 1.1);
  EXPECT_GE(free.variance, theory / 1.1);
  EXPECT_LE(orthogonal.variance, (theory - less) * 1.1);
  EXPECT_LT(orthogonal.variance, free.variance);
}

TEST(RandomFeatures, RegularisedEstimatesAreOfTheirOwnKernel) {
  const std::vector<double> half(8, std::sqrt(1.0 / 32));
  const Estimates estimates(8, RandomFeatures::regularised, half, half, 4000);
  // E exp(sqrt(D) <u, z>) for a uniform direction u: the sum of (D |z|^2 / 4)^k / (k! (D/2) .. (D/2 + k - 1)).
  double term = 1, sum = 1;
  for (int k = 0; k < 40; ++k) sum += term *= 2.0 / ((k + 1) * (4.0 + k));
  const double expected = sum * std::exp(-0.5);
  EXPECT_LT(expected, 1);
  EXPECT_LT(std::abs(estimates.mean - expected), certain * std::sqrt(estimates.variance / estimates.count));
}

TEST(RandomFeatures, AnyStrides) {
  for (const RandomFeatures kind : all_kinds) {
    const auto packed = draw(7, 3, 2, kind);
    std::vector<double> buffer(200, -77.0);
    const TensorView<double, 2> columns(buffer.data() + 60, {7, 3}, {-2, 40}), padded(buffer.data(), {7, 3}, {5, 1});
    for (const TensorView<double, 2>& out : {columns, padded}) {
      std::fill(buffer.begin(), buffer.end(), -77.0);
      longview::random_features(out, 2, kind);
      int written = 0;
      for (const double x : buffer) written += x != -77.0;
      EXPECT_EQ(written, 21);
      for (Index t = 0; t < 7; ++t)
        for (Index i = 0; i < 3; ++i) EXPECT_EQ(out(t, i), packed[static_cast<std::size_t>(3 * t + i)]);
    }
  }
}

TEST(RandomFeatures, FloatIsTheRoundedDouble) {
  for (const RandomFeatures kind : all_kinds) {
    const auto exact = draw(20, 8, 6, kind);
    const std::vector<float> rounded(exact.begin(), exact.end());
    EXPECT_EQ(bits(draw<float>(20, 8, 6, kind)), bits(rounded));
  }
}

TEST(RandomFeatures, F04Errors) {
  float element = -7;
  const auto text = [&](const TensorView<float, 2>& view) {
    return text_of<longview::ContractError>([&] { longview::random_features(view, 1); });
  };
  const std::string op = "random_features: projection: ";
  EXPECT_EQ(text({}), op + "head_dim must be >= 1 (got 0)");
  EXPECT_EQ(text({&element, {4, 0}}), op + "head_dim must be >= 1 (got 0)");
  EXPECT_EQ(text({&element, {0, 4}}), op + "features must be >= 1 (got 0)");
  EXPECT_EQ(text({&element, {-1, 4}}), op + "extent must be >= 0 (got -1)");
  EXPECT_EQ(text({&element, {4, -2}}), op + "extent must be >= 0 (got -2)");
  EXPECT_EQ(text({nullptr, {4, 3}}), op + "null data for 12 elements");
  EXPECT_EQ(text({&element, {4, 3}, {3, 0}}), op + "elements overlap (stride 0 on dim 1)");
  EXPECT_EQ(text({&element, {4, 3}, {1, 1}}), op + "elements overlap");
  EXPECT_EQ(element, -7.0f);
}

TEST(RandomFeatures, F04SizeErrors) {
  float element = -7;
  const auto text = [&](Index rows, Index dim) {
    return text_of<longview::SizeError>([&] {
      longview::random_features(TensorView<float, 2>(&element, {rows, dim}), 1);
    });
  };
  const Index most = std::numeric_limits<Index>::max(), side = Index{1} << (std::numeric_limits<Index>::digits / 2 - 1);
  EXPECT_EQ(text(most, 2), "random_features: projection: element count overflows");
  EXPECT_EQ(text(most, 1), "random_features: projection: byte count overflows");
  EXPECT_EQ(text(side, side), "random_features: projection: byte count of the working memory overflows");
  EXPECT_EQ(element, -7.0f);
}

}  // namespace
