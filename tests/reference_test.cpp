// The reference against results of existing implementations, against vectors computed by hand-written loops elsewhere,
// and its error bounds against its own evaluation in float.
#include <gtest/gtest.h>

#include <cctype>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include "golden_gradient.hpp"

namespace {

using golden::Case;
using golden::Solution;
using reference::AttentionResult;
using reference::Bounded;
using reference::Estimate;
using reference::Index;
using reference::Precision;
using reference::Projection;
using reference::Scores;
using reference::Tensor;
using reference::Window;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();
const Precision in_float = reference::float_kernel(), in_double = reference::double_kernel();

// ---- Golden files.

/// Cases whose reference is not to be imitated; each says QUIRK in its note.
const std::set<std::string> quirks{"compressive_memory__quirk-front-zero-padding"};

double largest_of(const Tensor<double>& tensor) {
  double most = 0;
  for (const double element : tensor.elements())
    if (std::isfinite(element)) most = std::max(most, std::abs(element));
  return most;
}

void expect_close(const std::string& name, const Tensor<double>& got, const Tensor<double>& expected) {
  ASSERT_EQ(got.shape(), expected.shape()) << name;
  const double tolerance = 1e-12 * largest_of(expected) + 1e-14;
  for (std::size_t at = 0; at < got.elements().size(); ++at) {
    const double is = got.elements()[at], should = expected.elements()[at];
    if (is == should) continue;
    ASSERT_LE(std::abs(is - should), tolerance) << name << " at " << at << ": got " << is << ", expected " << should;
  }
}

class Golden : public testing::TestWithParam<std::string> {};

TEST_P(Golden, Agrees) {
  const Case of(std::filesystem::path(LONGVIEW_GOLDEN_DIR) / (GetParam() + ".safetensors"));
  ASSERT_EQ(of.quirk(), quirks.contains(GetParam()));
  if (of.quirk()) GTEST_SKIP() << of.note();
  const Solution<double> solution = golden::solve_all<double>(of, in_double);
  for (const auto& [name, result] : solution) {
    expect_close(name, result.value, of.tensor<double>(name));
    for (const double radius : result.radius.elements()) ASSERT_GE(radius, 0) << name;
  }
  EXPECT_EQ(of.unconsumed(), std::vector<std::string>());
}

/// The same numbers within the bound of a double kernel, judged in long double.
TEST_P(Golden, IsWithinTheBoundOfDouble) {
  const Case of(std::filesystem::path(LONGVIEW_GOLDEN_DIR) / (GetParam() + ".safetensors"));
  if (of.quirk()) GTEST_SKIP() << of.note();
  const Solution<double> got = golden::solve_all<double>(of, in_double);
  for (const auto& [name, expected] : golden::solve_all<long double>(of, in_double))
    for (std::size_t at = 0; at < expected.value.elements().size(); ++at) {
      const Estimate<long double> element = expected.element(at);
      ASSERT_FALSE(std::isnan(element.radius)) << name << " at " << at;
      ASSERT_TRUE(agrees(element, got.at(name).value.elements()[at]))
          << name << " at " << at << ": got " << got.at(name).value.elements()[at] << ", expected " << element.value
          << " within " << element.radius;
    }
}

std::vector<std::string> golden_names() {
  std::vector<std::string> names;
  for (const auto& path : golden::files_in(LONGVIEW_GOLDEN_DIR)) names.push_back(path.stem().string());
  return names;
}

std::string test_name(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  for (char& letter : name)
    if (std::isalnum(static_cast<unsigned char>(letter)) == 0) letter = '_';
  return name;
}

INSTANTIATE_TEST_SUITE_P(Files, Golden, testing::ValuesIn(golden_names()), test_name);

TEST(GoldenFiles, AreThere) { EXPECT_GE(golden_names().size(), 147U); }

/// The bytes of a golden file with a name replaced by one of the same length, as a case.
Case renamed(const std::string& file, const std::string& from, const std::string& to) {
  std::ifstream stream(std::filesystem::path(LONGVIEW_GOLDEN_DIR) / (file + ".safetensors"), std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  std::size_t at = bytes.find(from);
  EXPECT_NE(at, std::string::npos);
  for (; at != std::string::npos; at = bytes.find(from, at + to.size())) bytes.replace(at, to.size(), to);
  const std::filesystem::path path = testing::TempDir() + to + ".safetensors";
  std::ofstream(path, std::ios::binary) << bytes;
  const Case of(path);
  std::filesystem::remove(path);
  return of;
}

TEST(GoldenFiles, UnknownNamesAreFailures) {
  const auto solve = [](const Case& of) { return golden::solve_all<double>(of, in_double); };
  EXPECT_THROW(solve(renamed("full_attention__d1", "full_attention", "null_attention")), golden::FormatError);
  EXPECT_THROW(solve(renamed("full_attention__d1", "causal", "casual")), golden::FormatError);
  EXPECT_THROW(solve(renamed("full_attention__d1", "F64", "F16")), golden::FormatError);
  const auto unknown = [&](const Case& of) {
    for (const auto& [name, result] : solve(of)) of.tensor<double>(name);
    return of.unconsumed();
  };
  EXPECT_EQ(unknown(renamed("full_attention__d1", "torch", "torch")), std::vector<std::string>());
  EXPECT_EQ(unknown(renamed("full_attention__softcap", "softcap", "softcup")),
            std::vector{std::string("option softcup")});
  EXPECT_EQ(unknown(renamed("full_attention__sinks-gqa", "sinks", "zincs")),
            (std::vector<std::string>{"d_zincs", "zincs"}));
}

// ---- Vectors of ten decimals. wave: X[i][j] = sin(a i + b j + g).

template <typename Real = double>
Tensor<Real> wave(Index rows, Index columns, Real a, Real b, Real g, Real times = 1) {
  Tensor<Real> x({1, 1, rows, columns});
  for (Index i = 0; i < rows; ++i)
    for (Index j = 0; j < columns; ++j)
      x(0, 0, i, j) = times * std::sin(a * static_cast<Real>(i) + b * static_cast<Real>(j) + g);
  return x;
}

/// The same elements under another shape.
template <typename Real>
Tensor<Real> shaped(const Tensor<Real>& input, std::vector<Index> shape) {
  Tensor<Real> output(std::move(shape));
  output.elements() = input.elements();
  return output;
}

void expect_row(const Bounded<double>& result, Index row, const std::vector<double>& expected) {
  for (std::size_t c = 0; c < expected.size(); ++c)
    EXPECT_NEAR(result.value(0, 0, row, static_cast<Index>(c)), expected[c], 6e-11) << "row " << row;
}

TEST(Vectors, Full) {
  const auto q = wave(4, 3, .7, 1.3, .1), k = wave(6, 3, .5, -.9, .2), v = wave(6, 2, .3, .4, -.5);
  const auto expect = [&](const Scores<double>& scores, const std::vector<std::vector<double>>& rows,
                          const std::vector<double>& lse) {
    const auto result = reference::attention<double>(q, k, v, scores, {}, in_double);
    for (Index i = 0; i < 4; ++i) {
      expect_row(result.out, i, rows.at(reference::to_size(i)));
      EXPECT_NEAR(result.lse.value(0, 0, i), lse.at(reference::to_size(i)), 6e-11);
    }
  };
  expect({},
         {{0.4213938201, 0.6969775473},
          {0.3108731274, 0.6138144133},
          {0.1664190866, 0.4967613467},
          {0.0406426779, 0.3879412987}},
         {2.0907722678, 2.3187572689, 2.3861882508, 2.2654827845});
  expect({.causal = true, .offset = 2},
         {{-0.1270215230, 0.2581228026},
          {0.0525846081, 0.4180423150},
          {0.0929944300, 0.4436072458},
          {0.0406426779, 0.3879412987}},
         {0.8661912197, 1.8408968267, 2.2829379445, 2.2654827845});
  expect({.causal = true},
         {{-0.4794255386, -0.0998334166},
          {-0.3119754165, 0.0782011917},
          {-0.1558446253, 0.2299523899},
          {-0.0950192990, 0.2804060322}},
         {-0.6017190432, 0.8160882200, 1.8044714641, 2.0841669272});
}

TEST(Vectors, Longformer) {
  const auto q = wave(8, 3, .7, 1.3, .1), k = wave(8, 3, .5, -.9, .2), v = wave(8, 3, .3, .4, -.5);
  reference::LongformerOptions<double> options;
  options.windows = {{2, 2}};
  auto result = reference::longformer_attention<double>(q, k, v, options, in_double).out;
  expect_row(result, 0, {-0.1270215230, 0.2581228026, 0.6025152133});
  expect_row(result, 3, {0.1964505545, 0.5340743255, 0.7873795038});
  expect_row(result, 7, {0.9506884609, 0.9548903747, 0.8083360944});

  options.query_global = wave(8, 3, .45, .2, .6);
  options.key_global = wave(8, 3, -.6, .7, .3);
  options.value_global = wave(8, 3, .8, -.3, .9);
  options.global_tokens = Tensor<std::uint8_t>({1, 8});
  options.global_tokens(0, 0) = 1;
  options.keep_tokens = Tensor<std::uint8_t>({1, 8}, 1);
  options.keep_tokens(0, 7) = 0;
  result = reference::longformer_attention<double>(q, k, v, options, in_double).out;
  const std::vector<std::vector<double>> rows{
      {0.4526157135, 0.4135003571, 0.3374482453}, {0.0525846081, 0.4180423150, 0.7175003323},
      {0.0929944300, 0.4436072458, 0.7241842316}, {0.0406426779, 0.3879412987, 0.6739925185},
      {0.1117560814, 0.4226948820, 0.6668994549}, {0.2367252360, 0.4957066804, 0.6764269397},
      {0.5098820614, 0.6916826781, 0.7642818086}, {0, 0, 0}};
  for (Index i = 0; i < 8; ++i) expect_row(result, i, rows[reference::to_size(i)]);

  reference::LongformerOptions<double> causal;
  causal.windows = {{2, 0, 2}};
  causal.scores.causal = true;
  result = reference::longformer_attention<double>(q, k, v, causal, in_double).out;
  expect_row(result, 1, {-0.1986693308, 0.1986693308, 0.5646424734});
  expect_row(result, 4, {-0.1319783700, 0.2279246111, 0.5518433077});
  expect_row(result, 7, {0.8690800461, 0.9064541567, 0.8007190871});
}

TEST(Vectors, Linformer) {
  const auto q = wave(6, 3, .7, 1.3, .1), k = wave(6, 3, .5, -.9, .2), v = wave(6, 3, .3, .4, -.5);
  const Projection<double> e{.matrix = shaped(wave(2, 6, .35, .8, .15), {1, 2, 6})};
  const Projection<double> f{.matrix = shaped(wave(2, 6, .6, -.5, .4), {1, 2, 6})};
  const auto expect = [](const Bounded<double>& out, Index last, const std::vector<double>& first_row,
                         const std::vector<double>& last_row) {
    expect_row(out, 0, first_row);
    expect_row(out, last, last_row);
  };
  expect(reference::linformer_attention<double>(q, k, v, {.key_projection = e, .value_projection = f}, in_double).out,
         5, {-1.9819775470, -2.4988670720, -2.6212404315}, {-2.0253266411, -2.2774887881, -2.1700855329});
  expect(reference::linformer_attention<double>(q, k, v, {.key_projection = e}, in_double).out, 5,
         {-0.9737487796, -0.2313298324, 0.5476110089}, {-1.1945114834, -0.4740908318, 0.3211783377});
  expect(reference::linformer_attention<double>(q, k, v, {.key_projection = {.mean_pool = 3}}, in_double).out, 5,
         {0.3896908655, 0.6713056097, 0.8469359587}, {0.0785257523, 0.4156442106, 0.6871415872});
  const auto first = [](const Tensor<double>& rows) { return Bounded<double>(slice_rows(rows, 0, 4)); };
  expect(reference::linformer_attention<double>(first(q), first(k), first(v),
                                                {.key_projection = e, .value_projection = f}, in_double)
             .out,
         3, {-0.6166557499, -0.7124432762, -0.6957516744}, {-0.6332065160, -0.6209676773, -0.5106916962});
}

TEST(Vectors, Performer) {
  using reference::FeatureMap;
  using reference::FeatureSide;
  const auto q = wave(5, 3, .7, 1.3, .1), k = wave(5, 3, .5, -.9, .2), v = wave(5, 3, .3, .4, -.5);
  reference::PerformerOptions<double> options;
  options.projection = shaped(wave(4, 3, 1.1, .77, .3, 1.5), {4, 3});
  options.epsilon = 1e-6;
  options.stabiliser = reference::Stabiliser::reference;
  expect_row(reference::performer_features<double>(q, FeatureSide::query, options, in_double), 0,
             {0.3573333739, 0.2514880267, 0.0510819545, 0.0170932936});
  expect_row(reference::performer_features<double>(k, FeatureSide::key, options, in_double), 0,
             {0.0091686547, 0.0265717659, 0.1502004151, 0.2494493395});
  const auto out = [&] { return reference::performer_attention<double>(q, k, v, options, in_double); };
  const auto expect = [](const Bounded<double>& result, const std::vector<std::vector<double>>& rows) {
    for (std::size_t i = 0; i < rows.size(); ++i) expect_row(result, static_cast<Index>(i), rows[i]);
  };
  expect(out(), {{0.3432962113, 0.6566988724, 0.8664232211},
                 {0.2769549445, 0.6008718165, 0.8299242406},
                 {0.1544342566, 0.4942647745, 0.7560617525},
                 {0.0031266723, 0.3598108269, 0.6596887636},
                 {-0.1168280967, 0.2500448430, 0.5774412000}});
  options.causal = true;
  expect(out(), {{-0.4794255386, -0.0998334166, 0.2955202067},
                 {-0.3108177444, 0.0794320401, 0.4571412519},
                 {-0.1624143111, 0.2230771543, 0.5733496419},
                 {-0.1000186908, 0.2743142484, 0.6053389993},
                 {-0.1168280967, 0.2500448430, 0.5774412000}});
  options.causal = false;
  options.features = FeatureMap::trigonometric;
  expect_row(out(), 0, {0.9865356387, 1.2318028380, 1.2825954540});
  options.features = FeatureMap::relu;
  options.epsilon.reset();
  expect_row(out(), 0, {0.4465125733, 0.7460286883, 0.9277632772});
  options.projection = {};
  expect_row(out(), 0, {0.4441420873, 0.7433221816, 0.9251480475});
}

TEST(Vectors, TransformerXL) {
  reference::RelativeOptions<double> options;
  options.position = shaped(wave(5, 2, -.4, 1.1, .25), {1, 5, 2});
  options.content_bias = Tensor<double>({1, 2});
  options.content_bias.elements() = {.3, -.2};
  options.position_bias = Tensor<double>({1, 2});
  options.position_bias.elements() = {-.1, .4};
  const auto out = reference::relative_attention<double>(wave(3, 2, .7, 1.3, .1), wave(5, 2, .5, -.9, .2),
                                                         wave(5, 2, .3, .4, -.5), options, in_double)
                       .out;
  expect_row(out, 0, {-0.0876990239, 0.2974543622});
  expect_row(out, 1, {0.1867580147, 0.5414630587});
  expect_row(out, 2, {0.3352561593, 0.6518538767});
  const auto positions = reference::sinusoidal_positions<double>(4, 4, std::nullopt, in_double);
  const std::vector<double> at_three{0.1411200081, 0.0299955002, -0.9899924966, 0.9995500337};
  for (Index c = 0; c < 4; ++c) EXPECT_NEAR(positions.value(3, c), at_three[reference::to_size(c)], 6e-11);
}

TEST(Vectors, Compression) {
  const Bounded<double> x(wave(6, 2, .9, .5, .2));
  const auto expect = [&](const Projection<double>& projection, const std::vector<double>& first,
                          const std::vector<double>& second) {
    const Bounded<double> rows = project(x, projection, in_double);
    ASSERT_EQ(rows.extent(2), 2);
    expect_row(rows, 0, first);
    expect_row(rows, 1, second);
  };
  expect({.mean_pool = 3}, {0.6663913726, 0.7474211448}, {-0.4575106064, -0.6850538982});
  expect({.max_pool = 3}, {0.9092974268, 0.9995736030}, {0.2392493292, -0.2555411020});
  Projection<double> convolution{.convolution = Tensor<double>({2, 2, 3}), .channel_bias = Tensor<double>({1, 2})};
  convolution.convolution.elements() = {.5, .2, -.1, -.2, .4, .2, .1, -.3, .7, .3, .6, .05};  // out, in, step
  convolution.channel_bias.elements() = {.01, -.02};
  expect(convolution, {0.5873267273, 1.1919459990}, {-0.3848036733, -1.1829986055});
}

// ---- Rows that are empty, poisoned or overflowing.

struct Small {
  Tensor<double> q{{1, 1, 2, 2}, 0.5}, k{{1, 1, 3, 2}, 0.25}, v{{1, 1, 3, 2}, 2.0};
  AttentionResult<double> attend(const Scores<double>& scores) const {
    return reference::attention<double>(q, k, v, scores, {}, in_float);
  }
};

TEST(Rows, EmptyOnesAreZero) {
  const Small small;
  const auto result = small.attend({.causal = true, .offset = -1});
  EXPECT_EQ(result.out.value(0, 0, 0, 0), 0);
  EXPECT_EQ(result.lse.value(0, 0, 0), -infinity);
  EXPECT_EQ(result.lse.radius(0, 0, 0), 0);
  EXPECT_EQ(result.out.value(0, 0, 1, 0), 2);
}

TEST(Rows, OnlyASinkIsItsLogarithm) {
  const auto result = Small().attend({.key_lengths = {0}, .sinks = {1.5}});
  EXPECT_EQ(result.out.value(0, 0, 1, 1), 0);
  EXPECT_EQ(result.lse.value(0, 0, 1), 1.5);
}

TEST(Rows, MaskedKeysAreInvisible) {
  Small small;
  const auto clean = small.attend({.key_lengths = {2}});
  small.k(0, 0, 2, 0) = nan;
  small.v(0, 0, 2, 1) = infinity;
  const auto poisoned = small.attend({.key_lengths = {2}});
  EXPECT_EQ(clean.out.value.elements(), poisoned.out.value.elements());
  EXPECT_EQ(clean.out.radius.elements(), poisoned.out.radius.elements());
}

TEST(Rows, NaNStaysInItsRowOrColumn) {
  Small small;
  small.q(0, 0, 0, 1) = nan;
  small.v(0, 0, 2, 1) = nan;
  const auto result = small.attend({});
  EXPECT_TRUE(std::isnan(result.out.value(0, 0, 0, 0)));
  EXPECT_TRUE(std::isnan(result.lse.value(0, 0, 0)));
  EXPECT_EQ(result.out.value(0, 0, 1, 0), 2);
  EXPECT_TRUE(std::isnan(result.out.value(0, 0, 1, 1)));
}

TEST(Rows, OverflowIsNaN) {
  Small small;
  small.q(0, 0, 0, 0) = 3e38, small.k(0, 0, 0, 0) = 3e38;
  EXPECT_TRUE(std::isnan(small.attend({}).out.value(0, 0, 0, 0)));
  small.q(0, 0, 0, 0) = -3e38;
  for (Index j = 0; j < 3; ++j) small.k(0, 0, j, 0) = 3e38;
  EXPECT_TRUE(std::isnan(small.attend({}).out.value(0, 0, 0, 0)));
  EXPECT_TRUE(std::isnan(small.attend({}).lse.value(0, 0, 0)));
}

TEST(Rows, LongformerPaddingBeatsGlobalAndCausalGlobalsSeeThePast) {
  const Tensor<double> q({1, 1, 5, 1}), k({1, 1, 5, 1});
  Tensor<double> v({1, 1, 5, 5});
  for (Index j = 0; j < 5; ++j) v(0, 0, j, j) = 1;
  reference::LongformerOptions<double> options;
  options.windows = {{0, 0}};
  options.global_tokens = Tensor<std::uint8_t>({1, 5});
  options.keep_tokens = Tensor<std::uint8_t>({1, 5}, 1);
  options.global_tokens(0, 0) = options.global_tokens(0, 2) = options.keep_tokens(0, 2) = 0;
  options.global_tokens(0, 1) = options.global_tokens(0, 2) = options.global_tokens(0, 3) = 1;
  const auto sees = [&] {
    const auto out = reference::longformer_attention<double>(q, k, v, options, in_float).out;
    std::vector<std::string> rows(5, std::string(5, '.'));
    for (Index i = 0; i < 5; ++i)
      for (Index j = 0; j < 5; ++j)
        if (out.value(0, 0, i, j) > 0) rows[reference::to_size(i)][reference::to_size(j)] = 'x';
    return rows;
  };
  EXPECT_EQ(sees(), (std::vector<std::string>{"xx.x.", "xx.xx", ".....", "xx.xx", ".x.xx"}));
  options.scores.causal = true;
  EXPECT_EQ(sees(), (std::vector<std::string>{"x....", "xx...", ".....", "xx.x.", ".x.xx"}));
}

TEST(CompressiveMemory, KeepsTheRemainderAsItsOldestRows) {
  reference::CompressiveMemory<double> memory(1, 1, 1, {.memory = 4, .compressed = 2});
  const Projection<double> mean{.mean_pool = 3};
  const auto push = [&](Index first, Index count) {
    Tensor<double> rows({1, 1, count, 1});
    for (Index i = 0; i < count; ++i) rows(0, 0, i, 0) = static_cast<double>(first + i);
    return memory.push(rows, mean, in_float).evicted.extent(2);
  };
  EXPECT_EQ(push(0, 6), 0);
  EXPECT_EQ(memory.memory.extent(2), 6);
  EXPECT_EQ(push(6, 1), 3);
  EXPECT_EQ(push(7, 7), 6);
  EXPECT_EQ(memory.memory.elements(), (std::vector<double>{9, 10, 11, 12, 13}));
  EXPECT_EQ(memory.compressed.value.elements(), (std::vector<double>{4, 7}));
}

// ---- Bounds. The reference in float is a plain two-pass evaluation; it must stay within the bound of a float kernel.

template <typename Real>
Tensor<Real> as(const Tensor<float>& input) {
  Tensor<Real> output(input.shape());
  for (std::size_t at = 0; at < input.elements().size(); ++at)
    output.elements()[at] = static_cast<Real>(input.elements()[at]);
  return output;
}

class Random {
 public:
  explicit Random(std::uint32_t seed) : engine_(seed) {}
  Index index(Index least, Index most) { return std::uniform_int_distribution<Index>(least, most)(engine_); }
  double uniform(double least, double most) { return std::uniform_real_distribution<double>(least, most)(engine_); }
  bool coin() { return index(0, 1) == 1; }
  Tensor<float> normal(std::vector<Index> shape, double sigma) {
    std::normal_distribution<double> distribution(0, sigma);
    Tensor<float> tensor(std::move(shape));
    for (float& element : tensor.elements()) element = static_cast<float>(distribution(engine_));
    return tensor;
  }

 private:
  std::mt19937 engine_;
};

/// The largest error in units of its bound; fails above 1.
void expect_within(const Bounded<double>& expected, const Bounded<float>& got, double& worst) {
  ASSERT_EQ(expected.value.shape(), got.value.shape());
  for (std::size_t at = 0; at < got.value.elements().size(); ++at) {
    const Estimate<double> element = expected.element(at);
    ASSERT_FALSE(std::isnan(element.radius));
    ASSERT_TRUE(agrees(element, got.value.elements()[at]))
        << at << ": got " << got.value.elements()[at] << ", expected " << element.value << " within " << element.radius;
    if (element.radius > 0 && std::isfinite(element.value))
      worst = std::max(worst, std::abs(element.value - static_cast<double>(got.value.elements()[at])) / element.radius);
  }
}

/// Runs `compute` (a template on Real, from the same seed) in float and in double.
template <typename Compute>
void expect_bounds(std::uint32_t cases, double least_worst, Compute compute) {
  double worst = 0;
  for (std::uint32_t seed = 0; seed < cases; ++seed) {
    SCOPED_TRACE(seed);
    Random for_double(seed), for_float(seed);
    const auto expected = compute(for_double, double());
    const auto got = compute(for_float, float());
    for (std::size_t n = 0; n < expected.size(); ++n) expect_within(expected[n], got[n], worst);
    if (testing::Test::HasFatalFailure()) return;
  }
  testing::Test::RecordProperty("worst_ratio", std::to_string(worst));
  EXPECT_GT(worst, least_worst) << "the bound is so loose that it tests nothing";
}

/// softmax(scale q k^T) v in float by itself, without the reference's code.
Bounded<float> two_pass(const Tensor<float>& q, const Tensor<float>& k, const Tensor<float>& v) {
  const Index keys = k.extent(2), dim = q.extent(3);
  const float scale = 1.0F / std::sqrt(static_cast<float>(dim));
  Bounded<float> out(std::vector<Index>{1, 1, q.extent(2), v.extent(3)});
  for (Index i = 0; i < q.extent(2); ++i) {
    std::vector<float> score(reference::to_size(keys), 0.0F);
    float maximum = -std::numeric_limits<float>::infinity(), sum = 0;
    for (Index j = 0; j < keys; ++j) {
      float& s = score[reference::to_size(j)];
      for (Index c = 0; c < dim; ++c) s += q(0, 0, i, c) * k(0, 0, j, c);
      s *= scale;
      maximum = std::max(maximum, s);
    }
    for (float& s : score) sum += s = std::exp(s - maximum);
    for (Index c = 0; c < v.extent(3); ++c) {
      float total = 0;
      for (Index j = 0; j < keys; ++j) total += score[reference::to_size(j)] * v(0, 0, j, c);
      out.value(0, 0, i, c) = total / sum;
    }
  }
  return out;
}

TEST(Bounds, HoldForAPlainTwoPassEvaluation) {
  double worst = 0;
  for (std::uint32_t seed = 0; seed < 300; ++seed) {
    Random random(seed);
    const Index keys = seed % 10 == 0 ? random.index(200, 900) : random.index(1, 60), dim = random.index(1, 96);
    const double sigma = std::exp(random.uniform(-3, 1.5));
    const auto q = random.normal({1, 1, 3, dim}, sigma), k = random.normal({1, 1, keys, dim}, sigma);
    const auto v = random.normal({1, 1, keys, random.index(1, 6)}, 1);
    const auto expected =
        reference::attention<double>(as<double>(q), as<double>(k), as<double>(v), {}, {}, in_float).out;
    SCOPED_TRACE(seed);
    expect_within(expected, two_pass(q, k, v), worst);
    if (HasFatalFailure()) return;
  }
  RecordProperty("worst_ratio", std::to_string(worst));
  EXPECT_GT(worst, 0.1);
}

TEST(Bounds, HoldForAttentionWithEveryOption) {
  expect_bounds(200, 0.1, []<typename Real>(Random& random, Real) {
    const Index batch = random.index(1, 2), groups = random.index(1, 2), heads = groups * random.index(1, 2);
    const Index queries = random.index(1, 12), keys = random.index(0, 40), dim = random.index(1, 40);
    const double sigma = std::exp(random.uniform(-2, 1));
    const auto q = as<Real>(random.normal({batch, heads, queries, dim}, sigma));
    const auto k = as<Real>(random.normal({batch, groups, keys, dim}, sigma));
    const auto v = as<Real>(random.normal({batch, groups, keys, random.index(1, 5)}, 1));
    Scores<Real> scores;
    if (random.coin()) scores.scale = static_cast<Real>(random.index(-4, 4)) / Real(4);
    if (random.coin()) scores.softcap = static_cast<Real>(random.index(1, 64)) / Real(2);
    if (random.coin()) scores.bias = as<Real>(random.normal({1, heads, queries, keys}, 3));
    if (random.coin()) scores.alibi_slopes.assign(reference::to_size(heads), Real(0.25));
    if (random.coin()) scores.sinks.assign(reference::to_size(heads), Real(0.5));
    if (random.coin()) scores.key_lengths.assign(reference::to_size(batch), random.index(0, keys));
    scores.causal = random.coin();
    scores.offset = keys - queries;
    const std::vector<Window> windows{{random.index(0, 9), random.index(0, 9), random.index(1, 3)}};
    const auto result =
        reference::attention<Real>(q, k, v, scores, random.coin() ? windows : std::vector<Window>(), in_float);
    const auto received = reference::received_attention<Real>(q, k, scores, {}, in_float);
    return std::vector<Bounded<Real>>{result.out, result.lse, received};
  });
}

TEST(Bounds, HoldWhereScoresAreHuge) {
  expect_bounds(100, 0.001, []<typename Real>(Random& random, Real) {
    const Index keys = random.index(1, 20), dim = random.index(1, 8);
    const double sigma = std::exp(random.uniform(2, 9));
    const auto result = reference::attention<Real>(as<Real>(random.normal({1, 1, 4, dim}, sigma)),
                                                   as<Real>(random.normal({1, 1, keys, dim}, sigma)),
                                                   as<Real>(random.normal({1, 1, keys, 2}, 1)), {}, {}, in_float);
    return std::vector<Bounded<Real>>{result.out, result.lse};
  });
}

TEST(Bounds, HoldForLinformer) {
  expect_bounds(100, 0.03, []<typename Real>(Random& random, Real) {
    const Index keys = random.index(4, 60), dim = random.index(1, 24), slots = random.index(1, 9);
    const auto q = as<Real>(random.normal({1, 2, 5, dim}, 1)), k = as<Real>(random.normal({1, 2, keys, dim}, 1));
    const auto v = as<Real>(random.normal({1, 2, keys, dim}, 1));
    reference::LinformerOptions<Real> options;
    const Index kind = random.index(0, 3);
    if (kind == 0) options.key_projection.matrix = as<Real>(random.normal({2, slots, keys}, 0.4));
    if (kind == 1) options.key_projection.mean_pool = 3;
    if (kind == 2) options.key_projection.max_pool = 4;
    if (kind == 3) options.key_projection.convolution = as<Real>(random.normal({dim, dim, 4}, 0.3));
    if (random.coin()) options.key_projection.channel_bias = as<Real>(random.normal({1, dim}, 1));
    if (random.coin()) options.scores.key_lengths = {random.index(0, keys)};
    const auto result = reference::linformer_attention<Real>(q, k, v, options, in_float);
    return std::vector<Bounded<Real>>{result.out, result.lse};
  });
}

TEST(Bounds, HoldForPerformer) {
  using reference::FeatureMap;
  using reference::Stabiliser;
  expect_bounds(200, 0.003, []<typename Real>(Random& random, Real) {
    const Index keys = random.index(1, 60), dim = random.index(1, 16);
    const double sigma = std::exp(random.uniform(-2, 0.5));
    const auto q = as<Real>(random.normal({1, 2, keys, dim}, sigma));
    const auto k = as<Real>(random.normal({1, 2, keys, dim}, sigma));
    const auto v = as<Real>(random.normal({1, 2, keys, 3}, 1));
    reference::PerformerOptions<Real> options;
    options.features = static_cast<FeatureMap>(random.index(0, 5));
    options.causal = random.coin();
    options.normalize = random.coin();
    options.stabiliser =
        random.coin() || options.features == FeatureMap::softmax ? Stabiliser::reference : Stabiliser::prefix;
    if (options.features != FeatureMap::softmax && random.coin())
      options.projection = as<Real>(random.normal({random.index(1, 24), dim}, 1));
    if (random.coin()) options.key_lengths = {random.index(0, keys)};
    if (options.stabiliser == Stabiliser::reference && random.coin()) {
      options.epsilon = Real(1e-4);
      options.denominator_guard = Real(1e-6);
      options.key_sum_epsilon = Real(1e-6);
    }
    return std::vector<Bounded<Real>>{reference::performer_attention<Real>(q, k, v, options, in_float)};
  });
}

TEST(Bounds, HoldForRelativeAttention) {
  expect_bounds(100, 0.05, []<typename Real>(Random& random, Real) {
    const Index queries = random.index(1, 12), keys = queries + random.index(0, 30), dim = random.index(1, 24);
    const auto q = as<Real>(random.normal({1, 2, queries, dim}, 1)), k = as<Real>(random.normal({1, 2, keys, dim}, 1));
    const auto v = as<Real>(random.normal({1, 2, keys, 3}, 1));
    reference::RelativeOptions<Real> options;
    options.position = as<Real>(random.normal({1, keys, dim}, 1));
    options.content_bias = as<Real>(random.normal({2, dim}, 1));
    options.position_bias = as<Real>(random.normal({2, dim}, 1));
    if (random.coin()) options.before = random.index(0, keys);
    if (random.coin()) options.clamp = random.index(0, keys - 1);
    const auto result = reference::relative_attention<Real>(q, k, v, options, in_float);
    return std::vector<Bounded<Real>>{result.out, result.lse,
                                      reference::sinusoidal_positions<Real>(keys, 2 * dim, std::nullopt, in_float)};
  });
}

/// A key put away by a large finite bias keeps the row's bound small: its own score is uncertain, its weight is not.
TEST(Bounds, AreNotSpoiltByALargeNegativeBias) {
  Scores<double> scores;
  scores.bias = Tensor<double>({1, 1, 1, 3});
  scores.bias(0, 0, 0, 2) = -1e9;
  const auto result = Small().attend(scores);
  EXPECT_EQ(result.out.value(0, 0, 1, 0), 2);
  EXPECT_LT(result.out.radius(0, 0, 1, 0), 1e-5);
}

TEST(Bounds, OfTheWorstCaseAreWider) {
  const Bounded<double> q(wave(4, 3, .7, 1.3, .1)), k(wave(6, 3, .5, -.9, .2)), v(wave(6, 2, .3, .4, -.5));
  const auto usual = reference::attention<double>(q, k, v, {}, {}, in_float);
  const auto worst = reference::attention<double>(q, k, v, {}, {}, reference::worst_case(in_float));
  EXPECT_EQ(usual.out.value.elements(), worst.out.value.elements());
  for (std::size_t at = 0; at < usual.out.value.elements().size(); ++at)
    EXPECT_LT(usual.out.radius.elements()[at], worst.out.radius.elements()[at]);
}

// ---- Performer: shifts cancel where there is no epsilon.

/// sum_j exp(x.y) estimated without any shift, per visible key.
std::vector<double> unshifted_kernel(const Tensor<double>& q, const Tensor<double>& k, const Tensor<double>& w,
                                     Index i) {
  const double scale = std::pow(static_cast<double>(q.extent(3)), -0.25);
  const auto features = [&](const Tensor<double>& x, Index row) {
    std::vector<double> all;
    double h = 0;
    for (Index c = 0; c < x.extent(3); ++c) h += std::pow(scale * x(0, 0, row, c), 2) / 2;
    for (Index f = 0; f < w.extent(0); ++f) {
      double u = 0;
      for (Index c = 0; c < x.extent(3); ++c) u += scale * x(0, 0, row, c) * w(f, c);
      all.push_back(std::exp(u - h));
      all.push_back(std::exp(-u - h));
    }
    return all;
  };
  std::vector<double> kernel;
  const auto of_query = features(q, i);
  for (Index j = 0; j < k.extent(2); ++j) {
    const auto of_key = features(k, j);
    double sum = 0;
    for (std::size_t f = 0; f < of_key.size(); ++f) sum += of_query[f] * of_key[f] / static_cast<double>(of_key.size());
    kernel.push_back(sum);
  }
  return kernel;
}

TEST(Performer, ShiftsCancelUnderEveryStabiliser) {
  const auto q = wave(5, 3, .7, 1.3, .1), k = wave(5, 3, .5, -.9, .2, 3.0), v = wave(5, 2, .3, .4, -.5);
  reference::PerformerOptions<double> options;
  options.features = reference::FeatureMap::hyperbolic;
  options.projection = shaped(wave(4, 3, 1.1, .77, .3, 1.5), {4, 3});
  options.fixed_shift = 0.7;
  options.causal = true;
  for (const auto stabiliser :
       {reference::Stabiliser::prefix, reference::Stabiliser::reference, reference::Stabiliser::fixed})
    for (const bool normalize : {true, false}) {
      options.stabiliser = stabiliser;
      options.normalize = normalize;
      if (!normalize && stabiliser != reference::Stabiliser::prefix) continue;
      const auto out = reference::performer_attention<double>(q, k, v, options, in_double);
      for (Index i = 0; i < 5; ++i) {
        const auto kernel = unshifted_kernel(q, k, options.projection, i);
        double numerator = 0, denominator = 0;
        for (Index j = 0; j <= i; ++j) {
          numerator += kernel[reference::to_size(j)] * v(0, 0, j, 1);
          denominator += kernel[reference::to_size(j)];
        }
        EXPECT_NEAR(out.value(0, 0, i, 1), normalize ? numerator / denominator : numerator, 1e-13);
      }
    }
}

TEST(Performer, KeysOfGreatNormAreFinite) {
  const auto q = wave(5, 3, .7, 1.3, .1), k = wave(5, 3, .5, -.9, .2, 1000.0), v = wave(5, 2, .3, .4, -.5);
  reference::PerformerOptions<double> options;
  options.projection = shaped(wave(4, 3, 1.1, .77, .3, 1.5), {4, 3});
  for (const bool causal : {false, true}) {
    options.causal = causal;
    const auto result = reference::performer_attention<double>(q, k, v, options, in_float);
    for (const double out : result.value.elements()) EXPECT_TRUE(std::isfinite(out));
  }
}

/// Merging the parts of a split key sequence gives the whole, and the bound covers the parts' own roundings.
TEST(Bounds, HoldForMergedParts) {
  expect_bounds(100, 0.03, []<typename Real>(Random& random, Real) {
    const Index keys = random.index(0, 40), dim = random.index(1, 16), cut = random.index(0, keys);
    const auto q = as<Real>(random.normal({1, 1, 4, dim}, 1)), k = as<Real>(random.normal({1, 1, keys, dim}, 1));
    const auto v = as<Real>(random.normal({1, 1, keys, 3}, 1));
    const auto part = [&](Index first, Index count) {
      const auto result =
          reference::attention<Real>(q, slice_rows(k, first, count), slice_rows(v, first, count), {}, {}, in_float);
      return reference::Partial<Real>{result.out, result.lse};
    };
    const auto whole = reference::attention<Real>(q, k, v, {}, {}, in_float);
    auto merged = reference::merge<Real>({part(0, cut), part(cut, keys - cut)}, in_float);
    if constexpr (std::is_same_v<Real, double>) {
      for (std::size_t at = 0; at < whole.out.value.elements().size(); ++at)
        EXPECT_NEAR(merged.out.value.elements()[at], whole.out.value.elements()[at], 1e-12);
    }
    return std::vector<Bounded<Real>>{merged.out, merged.lse};
  });
}

}  // namespace
