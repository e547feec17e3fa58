// The reference's gradients against its own forward definitions, evaluated with numbers that carry a derivative:
// <d_out, J x> = <J' d_out, x> for random directions x of one input at a time. And their bounds against float.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "reference/attention_gradient.hpp"
#include "reference/compressive_gradient.hpp"
#include "reference/dual.hpp"
#include "reference/linformer_gradient.hpp"
#include "reference/longformer_gradient.hpp"
#include "reference/partial_gradient.hpp"
#include "reference/performer_gradient.hpp"
#include "reference/projection_gradient.hpp"
#include "reference/relative_gradient.hpp"

namespace {

using reference::Bounded;
using reference::Dual;
using reference::Estimate;
using reference::Index;
using reference::OutputGradient;
using reference::Precision;
using reference::Projection;
using reference::Scores;
using reference::Tensor;
using reference::to_size;
using reference::Window;

const Precision in_float = reference::float_kernel(), in_double = reference::double_kernel();

class Random {
 public:
  explicit Random(std::uint32_t seed) : engine_(seed) {}
  Index index(Index least, Index most) { return std::uniform_int_distribution<Index>(least, most)(engine_); }
  double uniform(double least, double most) { return std::uniform_real_distribution<double>(least, most)(engine_); }
  bool coin() { return index(0, 1) == 1; }
  /// Numbers that float holds.
  Tensor<double> normal(std::vector<Index> shape, double sigma = 1) {
    std::normal_distribution<double> distribution(0, sigma);
    Tensor<double> tensor(std::move(shape));
    for (double& element : tensor.elements()) element = static_cast<float>(distribution(engine_));
    return tensor;
  }
  std::vector<double> list(Index count) { return normal({count}).elements(); }
  Tensor<std::uint8_t> bytes(std::vector<Index> shape, int percent) {
    Tensor<std::uint8_t> tensor(std::move(shape));
    for (std::uint8_t& element : tensor.elements()) element = index(0, 99) < percent ? 1 : 0;
    return tensor;
  }

 private:
  std::mt19937 engine_;
};

template <typename Real>
Tensor<Real> as(const Tensor<double>& tensor) {
  if (!tensor.present()) return {};
  Tensor<Real> result(tensor.shape());
  for (std::size_t at = 0; at < tensor.elements().size(); ++at)
    result.elements()[at] = static_cast<Real>(tensor.elements()[at]);
  return result;
}

// ---- Inputs by name, in any kind of number.

/// Gives out inputs; those of the name that is asked for are differentiated in a random direction.
template <typename Real>
class Inputs {
 public:
  explicit Inputs(std::string along = "", std::uint32_t seed = 0) : along_(std::move(along)), random_(seed) {}

  Tensor<Real> operator()(const std::string& name, const Tensor<double>& tensor) {
    Tensor<Real> result = as<Real>(tensor);
    if (name != along_ || !tensor.present()) return result;
    direction_ = random_.normal(tensor.shape());
    if constexpr (std::is_same_v<Real, Dual>)
      for (std::size_t at = 0; at < result.elements().size(); ++at)
        result.elements()[at].slope = direction_.elements()[at];
    return result;
  }
  std::vector<Real> operator()(const std::string& name, const std::vector<double>& list) {
    if (list.empty()) return {};
    Tensor<double> tensor({static_cast<Index>(list.size())});
    tensor.elements() = list;
    return (*this)(name, tensor).elements();
  }
  const Tensor<double>& direction() const { return direction_; }

 private:
  std::string along_;
  Random random_;
  Tensor<double> direction_;
};

using Gradients = std::map<std::string, Bounded<double>>;

void add(Gradients& to, const std::string& name, const Bounded<double>& gradient) {
  if (gradient.present()) to[name] = gradient;
}
void add(Gradients& to, const reference::ScoreGradients<double>& gradients) {
  add(to, "bias", gradients.bias), add(to, "alibi_slopes", gradients.alibi_slopes), add(to, "sinks", gradients.sinks);
}

/// A sum of products and what it is made of.
struct Inner {
  double value = 0, magnitude = 0;
  void add(double a, double b) {
    if (a == 0 || b == 0) return;
    value += a * b, magnitude += std::abs(a * b);
  }
  void add(const Tensor<double>& a, const Tensor<double>& b) {
    ASSERT_EQ(a.shape(), b.shape());
    for (std::size_t at = 0; at < a.elements().size(); ++at) add(a.elements()[at], b.elements()[at]);
  }
  void add(const Tensor<double>& a, const Tensor<Dual>& b) {
    ASSERT_EQ(a.shape(), b.shape());
    for (std::size_t at = 0; at < a.elements().size(); ++at) add(a.elements()[at], b.elements()[at].slope);
  }
};

/// forward(inputs) gives the outputs that go with `arrived`. What is 0 in exact arithmetic is held with rounding
/// errors, for which the gradients' own bounds stand.
template <typename Forward>
void expect_adjoint(const Gradients& gradients, const std::vector<Tensor<double>>& arrived, Forward forward) {
  std::uint32_t seed = 1;
  for (const auto& [name, gradient] : gradients) {
    Inputs<Dual> inputs(name, ++seed);
    const std::vector<Tensor<Dual>> outputs = forward(inputs);
    ASSERT_EQ(outputs.size(), arrived.size());
    Inner there, back, rounding;
    for (std::size_t n = 0; n < outputs.size(); ++n)
      if (arrived[n].present()) there.add(arrived[n], outputs[n]);
    back.add(gradient.value, inputs.direction()), rounding.add(gradient.radius, inputs.direction());
    if (testing::Test::HasFatalFailure()) return;
    EXPECT_LE(std::abs(there.value - back.value), 1e-11 * (there.magnitude + back.magnitude) + 2 * rounding.magnitude)
        << name << ": forward " << there.value << ", backward " << back.value;
  }
}

// ---- What is said about scores

struct ScoresCase {
  Scores<double> plain;

  ScoresCase(Random& random, const std::vector<Index>& pairs, bool positions) {
    const Index heads = pairs[1], keys = pairs[3];
    if (random.coin()) plain.scale = random.uniform(-1, 1);
    if (random.coin()) plain.softcap = random.uniform(0.5, 5);
    plain.causal = positions && random.coin();
    plain.offset = positions ? random.index(-3, keys) : 0;
    if (random.coin())
      for (Index b = 0; b < pairs[0]; ++b) plain.key_lengths.push_back(random.index(0, keys));
    const auto repeated = [&](std::vector<Index> shape) {
      for (Index& extent : shape)
        if (random.coin()) extent = 1;
      return shape;
    };
    if (random.coin()) plain.keep_mask = random.bytes(repeated(pairs), 70);
    if (random.coin()) {
      plain.bias = random.normal(repeated(pairs));
      for (double& x : plain.bias.elements())
        if (random.index(0, 9) == 0) x = -std::numeric_limits<double>::infinity();
    }
    if (positions && random.coin()) plain.alibi_slopes = random.list(heads);
    if (random.coin()) plain.sinks = random.list(heads);
    if (random.coin()) {
      const double kept = 1 / (1 - random.uniform(0.1, 0.6));
      plain.dropout = random.normal(pairs);
      for (double& x : plain.dropout.elements()) x = x < 0.5 ? kept : 0;
    }
  }

  template <typename Real>
  Scores<Real> in(Inputs<Real>& inputs) const {
    Scores<Real> scores;
    if (plain.scale) scores.scale = static_cast<Real>(*plain.scale);
    if (plain.softcap) scores.softcap = static_cast<Real>(*plain.softcap);
    scores.causal = plain.causal, scores.offset = plain.offset, scores.key_lengths = plain.key_lengths;
    scores.keep_mask = plain.keep_mask;
    scores.bias = inputs("bias", plain.bias);
    scores.alibi_slopes = inputs("alibi_slopes", plain.alibi_slopes), scores.sinks = inputs("sinks", plain.sinks);
    scores.dropout = as<Real>(plain.dropout);
    return scores;
  }
};

struct Shapes {
  Index batch, key_heads, heads, queries, keys, dim, value_dim;

  explicit Shapes(Random& random, bool same_lengths = false)
      : batch(random.index(1, 2)),
        key_heads(random.index(1, 2)),
        heads(key_heads * random.index(1, 2)),
        queries(random.index(1, 9)),
        keys(same_lengths ? queries : random.index(1, 11)),
        dim(random.index(1, 6)),
        value_dim(random.index(1, 5)) {}
  std::vector<Index> query() const { return {batch, heads, queries, dim}; }
  std::vector<Index> key() const { return {batch, key_heads, keys, dim}; }
  std::vector<Index> value() const { return {batch, key_heads, keys, value_dim}; }
  std::vector<Index> out() const { return {batch, heads, queries, value_dim}; }
  std::vector<Index> lse() const { return {batch, heads, queries}; }
  std::vector<Index> pairs() const { return {batch, heads, queries, keys}; }
};

/// What every operator of queries, keys and values has.
struct Problem {
  Tensor<double> query, key, value, d_out, d_lse;

  Problem(const Shapes& shapes, Random& random, double sigma = 1)
      : query(random.normal(shapes.query(), sigma)),
        key(random.normal(shapes.key(), sigma)),
        value(random.normal(shapes.value())),
        d_out(random.normal(shapes.out())) {
    if (random.coin()) d_lse = random.normal(shapes.lse());
  }
  template <typename Real>
  OutputGradient<Real> arrived() const {
    return {as<Real>(d_out), as<Real>(d_lse)};
  }
};

template <typename Real>
std::vector<Tensor<Real>> outputs_of(const reference::AttentionResult<Real>& result) {
  return {result.out.value, result.lse.value};
}

std::vector<Window> windows_for(Random& random, Index heads) {
  std::vector<Window> windows;
  const auto side = [&] { return random.coin() ? std::optional<Index>(random.index(0, 4)) : std::nullopt; };
  for (Index h = 0; h < heads; ++h) windows.push_back({side(), side(), random.index(1, 2)});
  return windows;
}

TEST(Adjoint, Attention) {
  for (std::uint32_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const Shapes shapes(random);
    const Problem problem(shapes, random);
    const ScoresCase scores(random, shapes.pairs(), true);
    const auto windows = random.coin() ? windows_for(random, shapes.heads) : std::vector<Window>();
    Inputs<double> plain;
    const auto got = reference::attention_backward<double>(
        problem.query, problem.key, problem.value, problem.arrived<double>(), scores.in(plain), windows, in_double);
    Gradients gradients{{"query", got.query}, {"key", got.key}, {"value", got.value}};
    add(gradients, got.scores);
    expect_adjoint(gradients, {problem.d_out, problem.d_lse}, [&](Inputs<Dual>& in) {
      const auto query = in("query", problem.query), key = in("key", problem.key), value = in("value", problem.value);
      return outputs_of(reference::attention<Dual>(query, key, value, scores.in(in), windows, in_double));
    });
  }
}

TEST(Adjoint, Longformer) {
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const Shapes shapes(random, true);
    const Problem problem(shapes, random), own(shapes, random);
    const ScoresCase scores(random, shapes.pairs(), false);
    const bool causal = random.coin(), own_queries = random.coin(), own_keys = random.coin();
    const auto windows = windows_for(random, shapes.heads);
    const auto globals = random.bytes({shapes.batch, shapes.keys}, 25),
               keep = random.bytes({shapes.batch, shapes.keys}, 80);
    const bool padded = random.coin();
    const auto options_in = [&]<typename Real>(Inputs<Real>& in) {
      reference::LongformerOptions<Real> options;
      options.windows = windows;
      options.global_tokens = globals;
      if (padded) options.keep_tokens = keep;
      if (own_queries) options.query_global = in("query_global", own.query);
      if (own_keys)
        options.key_global = in("key_global", own.key), options.value_global = in("value_global", own.value);
      options.scores = scores.in(in);
      options.scores.causal = causal;
      return options;
    };
    Inputs<double> plain;
    const auto got = reference::longformer_backward<double>(problem.query, problem.key, problem.value,
                                                            problem.arrived<double>(), options_in(plain), in_double);
    Gradients gradients{{"query", got.query}, {"key", got.key}, {"value", got.value}};
    add(gradients, "query_global", got.query_global), add(gradients, "key_global", got.key_global);
    add(gradients, "value_global", got.value_global), add(gradients, got.scores);
    expect_adjoint(gradients, {problem.d_out, problem.d_lse}, [&](Inputs<Dual>& in) {
      const auto query = in("query", problem.query), key = in("key", problem.key), value = in("value", problem.value);
      return outputs_of(reference::longformer_attention<Dual>(query, key, value, options_in(in), in_double));
    });
  }
}

TEST(Adjoint, Relative) {
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    Shapes shapes(random);
    shapes.keys = std::max(shapes.keys, shapes.queries);
    const Problem problem(shapes, random);
    const ScoresCase scores(random, shapes.pairs(), false);
    const auto table = random.normal({random.coin() ? 1 : shapes.heads, shapes.keys, shapes.dim});
    const auto u = random.normal({random.coin() ? 1 : shapes.heads, shapes.dim}),
               v = random.normal({random.coin() ? 1 : shapes.heads, shapes.dim});
    const bool has_u = random.coin(), has_v = random.coin();
    const auto before = random.coin() ? std::optional<Index>(random.index(0, shapes.keys)) : std::nullopt;
    const auto clamp = random.coin() ? std::optional<Index>(random.index(0, shapes.keys - 1)) : std::nullopt;
    const auto options_in = [&]<typename Real>(Inputs<Real>& in) {
      reference::RelativeOptions<Real> options;
      options.position = in("position", table);
      if (has_u) options.content_bias = in("content_bias", u);
      if (has_v) options.position_bias = in("position_bias", v);
      options.before = before, options.clamp = clamp, options.scores = scores.in(in);
      return options;
    };
    Inputs<double> plain;
    const auto got = reference::relative_backward<double>(problem.query, problem.key, problem.value,
                                                          problem.arrived<double>(), options_in(plain), in_double);
    Gradients gradients{{"query", got.query}, {"key", got.key}, {"value", got.value}};
    add(gradients, "position", got.position), add(gradients, "content_bias", got.content_bias);
    add(gradients, "position_bias", got.position_bias), add(gradients, got.scores);
    expect_adjoint(gradients, {problem.d_out, problem.d_lse}, [&](Inputs<Dual>& in) {
      const auto query = in("query", problem.query), key = in("key", problem.key), value = in("value", problem.value);
      return outputs_of(reference::relative_attention<Dual>(query, key, value, options_in(in), in_double));
    });
  }
}

// ---- Projections

/// Of any kind, with biases or without, in memory.
struct ProjectionCase {
  Tensor<double> matrix, convolution, slot_bias, channel_bias;
  Index mean_pool = 0, max_pool = 0;

  ProjectionCase(Random& random, Index heads, Index length, Index dim, Index dim_out) {
    const Index kind = random.index(0, 3), rate = random.index(1, std::min<Index>(length, 4));
    Index slots = length / rate, channels = dim;
    if (kind == 0)
      slots = random.index(1, 4),
      matrix = random.normal({random.coin() ? 1 : heads, slots, length + random.index(0, 2)});
    if (kind == 1) mean_pool = rate;
    if (kind == 2) max_pool = rate;
    if (kind == 3) channels = dim_out, convolution = random.normal({dim_out, dim, rate});
    if (random.coin()) slot_bias = random.normal({random.coin() ? 1 : heads, slots});
    if (random.coin()) channel_bias = random.normal({random.coin() ? 1 : heads, channels});
  }
  template <typename Real>
  Projection<Real> in(Inputs<Real>& inputs, const std::string& name) const {
    Projection<Real> projection;
    projection.matrix = inputs(name + ".matrix", matrix),
    projection.convolution = inputs(name + ".convolution", convolution);
    projection.mean_pool = mean_pool, projection.max_pool = max_pool;
    projection.slot_bias = inputs(name + ".slot_bias", slot_bias);
    projection.channel_bias = inputs(name + ".channel_bias", channel_bias);
    return projection;
  }
};

void add(Gradients& to, const std::string& name, const reference::ProjectionGradients<double>& gradients) {
  add(to, name + ".matrix", gradients.matrix), add(to, name + ".convolution", gradients.convolution);
  add(to, name + ".slot_bias", gradients.slot_bias), add(to, name + ".channel_bias", gradients.channel_bias);
}

TEST(Adjoint, Projection) {
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const Index heads = random.index(1, 3), length = random.index(1, 12), dim = random.index(1, 5);
    const auto input = random.normal({random.index(1, 2), heads, length, dim});
    const ProjectionCase projection(random, heads, length, dim, random.index(1, 5));
    Inputs<double> plain;
    const auto in_double_numbers = projection.in(plain, "projection");
    const auto out = reference::project<double>(input, in_double_numbers, in_double);
    const auto d_out = random.normal(out.value.shape());
    const auto got = reference::project_backward<double>(input, d_out, in_double_numbers, in_double);
    Gradients gradients{{"input", got.input}};
    add(gradients, "projection", got);
    expect_adjoint(gradients, {d_out}, [&](Inputs<Dual>& in) {
      const auto rows = in("input", input);
      return std::vector<Tensor<Dual>>{
          reference::project<Dual>(rows, projection.in(in, "projection"), in_double).value};
    });
  }
}

TEST(Adjoint, Linformer) {
  for (std::uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    Shapes shapes(random);
    shapes.value_dim = shapes.dim;
    const ProjectionCase keys(random, shapes.key_heads, shapes.keys, shapes.dim, shapes.dim);
    ProjectionCase values(random, shapes.key_heads, shapes.keys, shapes.dim, shapes.dim);
    Inputs<double> plain;
    // As many slots for values as for keys.
    const bool shared =
        reference::slots_of(keys.in(plain, ""), shapes.keys) != reference::slots_of(values.in(plain, ""), shapes.keys);
    const Problem problem(shapes, random);
    const auto keep = random.bytes({shapes.batch, shapes.keys}, 80);
    const bool padded = random.coin(), with_sinks = random.coin(), capped = random.coin();
    const auto sinks = random.list(shapes.heads);
    const auto lengths =
        random.coin() ? std::vector<Index>(to_size(shapes.batch), random.index(0, shapes.keys)) : std::vector<Index>();
    const auto options_in = [&]<typename Real>(Inputs<Real>& in) {
      reference::LinformerOptions<Real> options;
      options.key_projection = keys.in(in, "key_projection");
      if (!shared) options.value_projection = values.in(in, "value_projection");
      if (padded) options.keep_keys = keep;
      options.scores.key_lengths = lengths;
      if (with_sinks) options.scores.sinks = in("sinks", sinks);
      if (capped) options.scores.softcap = Real(2);
      return options;
    };
    const auto got = reference::linformer_backward<double>(problem.query, problem.key, problem.value,
                                                           problem.arrived<double>(), options_in(plain), in_double);
    Gradients gradients{{"query", got.query}, {"key", got.key}, {"value", got.value}};
    add(gradients, "key_projection", got.key_projection), add(gradients, "value_projection", got.value_projection);
    add(gradients, got.scores);
    expect_adjoint(gradients, {problem.d_out, problem.d_lse}, [&](Inputs<Dual>& in) {
      const auto query = in("query", problem.query), key = in("key", problem.key), value = in("value", problem.value);
      return outputs_of(reference::linformer_attention<Dual>(query, key, value, options_in(in), in_double));
    });
  }
}

// ---- Performer

struct PerformerCase {
  reference::PerformerOptions<double> plain;

  PerformerCase(Random& random, const Shapes& shapes) {
    using reference::FeatureMap;
    using reference::Stabiliser;
    plain.features = static_cast<FeatureMap>(random.index(0, 5));
    plain.causal = random.coin();
    plain.normalize = random.index(0, 2) > 0;
    plain.stabiliser = static_cast<Stabiliser>(random.index(0, 2));
    if (plain.features == FeatureMap::softmax) plain.stabiliser = Stabiliser::reference;
    plain.fixed_shift = random.uniform(-1, 1);
    plain.differentiate_maximum = random.coin();
    if (plain.features != FeatureMap::softmax && random.coin())
      plain.projection = random.normal({random.index(1, 7), shapes.dim});
    if (random.coin()) plain.input_scale = random.uniform(0.5, 1.5);
    if (random.coin()) plain.key_lengths.assign(to_size(shapes.batch), random.index(0, shapes.keys));
    if (random.coin()) plain.keep_keys = random.bytes({shapes.batch, shapes.keys}, 80);
    const bool streams = plain.stabiliser == Stabiliser::prefix && reference::is_exponential(plain);
    if (!streams && random.coin()) plain.epsilon = 0.01;
    if (random.coin()) plain.denominator_guard = 1e-3;
    if (!streams && random.coin()) plain.key_sum_epsilon = 0.01;
  }
  template <typename Real>
  reference::PerformerOptions<Real> in() const {
    reference::PerformerOptions<Real> options;
    options.features = plain.features, options.causal = plain.causal, options.normalize = plain.normalize;
    options.stabiliser = plain.stabiliser, options.fixed_shift = static_cast<Real>(plain.fixed_shift);
    options.differentiate_maximum = plain.differentiate_maximum, options.projection = as<Real>(plain.projection);
    if (plain.input_scale) options.input_scale = static_cast<Real>(*plain.input_scale);
    if (plain.epsilon) options.epsilon = static_cast<Real>(*plain.epsilon);
    options.denominator_guard = static_cast<Real>(plain.denominator_guard);
    options.key_sum_epsilon = static_cast<Real>(plain.key_sum_epsilon);
    options.key_lengths = plain.key_lengths, options.keep_keys = plain.keep_keys;
    return options;
  }
};

TEST(Adjoint, Performer) {
  for (std::uint32_t seed = 0; seed < 600; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const Shapes shapes(random);
    const Problem problem(shapes, random, 0.7);
    const PerformerCase options(random, shapes);
    const auto got = reference::performer_backward<double>(problem.query, problem.key, problem.value, problem.d_out,
                                                           options.in<double>(), in_double);
    const Gradients gradients{{"query", got.query}, {"key", got.key}, {"value", got.value}};
    expect_adjoint(gradients, {problem.d_out}, [&](Inputs<Dual>& in) {
      const auto query = in("query", problem.query), key = in("key", problem.key), value = in("value", problem.value);
      return std::vector<Tensor<Dual>>{
          reference::performer_attention<Dual>(query, key, value, options.in<Dual>(), in_double).value};
    });
  }
}

/// Keys that share the maximum share its gradient, too, and together have all of it.
TEST(Adjoint, PerformerTiesAreSplitEqually) {
  Random random(7);
  Shapes shapes(random);
  shapes.batch = 1, shapes.heads = shapes.key_heads = 1, shapes.queries = 4, shapes.keys = 6, shapes.dim = 3;
  Problem problem(shapes, random);
  for (Index c = 0; c < 3; ++c) problem.key(0, 0, 4, c) = problem.key(0, 0, 1, c) = 2 + static_cast<double>(c);
  for (Index c = 0; c < shapes.value_dim; ++c) problem.value(0, 0, 4, c) = problem.value(0, 0, 1, c);
  for (const auto map :
       {reference::FeatureMap::positive, reference::FeatureMap::hyperbolic, reference::FeatureMap::trigonometric}) {
    reference::PerformerOptions<double> options;
    options.features = map;
    options.stabiliser = reference::Stabiliser::reference, options.differentiate_maximum = true;
    options.epsilon = 0.01, options.key_sum_epsilon = 0.01;
    options.normalize = false;  // the shift of trigonometric features cancels otherwise
    const auto got = reference::performer_backward<double>(problem.query, problem.key, problem.value, problem.d_out,
                                                           options, in_double);
    Tensor<Dual> key = as<Dual>(problem.key);
    double back = 0;
    for (Index c = 0; c < 3; ++c) {
      EXPECT_NEAR(got.key.value(0, 0, 1, c), got.key.value(0, 0, 4, c), 1e-13);
      const double along = 0.5 - static_cast<double>(c);
      for (const Index j : {Index{1}, Index{4}})
        key(0, 0, j, c).slope = along, back += got.key.value(0, 0, j, c) * along;
    }
    reference::PerformerOptions<Dual> of_duals;
    of_duals.features = map;
    of_duals.stabiliser = reference::Stabiliser::reference, of_duals.differentiate_maximum = true;
    of_duals.epsilon = Dual(0.01), of_duals.key_sum_epsilon = Dual(0.01), of_duals.normalize = false;
    Inner there;
    there.add(problem.d_out, reference::performer_attention<Dual>(as<Dual>(problem.query), key, as<Dual>(problem.value),
                                                                  of_duals, in_double)
                                 .value);
    EXPECT_NEAR(there.value, back, 1e-12 * there.magnitude);
  }
}

// ---- Partial results and losses

TEST(Adjoint, Merge) {
  for (std::uint32_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const std::vector<Index> out_shape{1, 2, random.index(1, 5), random.index(1, 4)}, lse_shape{1, 2, out_shape[2]};
    std::vector<Tensor<double>> outs, lses;
    for (Index part = 0, parts = random.index(1, 4); part < parts; ++part) {
      outs.push_back(random.normal(out_shape)), lses.push_back(random.normal(lse_shape, 2));
      for (double& x : lses.back().elements())
        if (random.index(0, 3) == 0) x = -std::numeric_limits<double>::infinity();
    }
    const auto d_out = random.normal(out_shape);
    const auto d_lse = random.coin() ? random.normal(lse_shape) : Tensor<double>();
    std::vector<reference::Partial<double>> parts;
    for (std::size_t p = 0; p < outs.size(); ++p) parts.push_back({outs[p], lses[p]});
    const auto got = reference::merge_backward<double>(parts, {d_out, d_lse}, in_double);
    Gradients gradients;
    for (std::size_t p = 0; p < outs.size(); ++p) {
      add(gradients, "out" + std::to_string(p), got[p].out);
      add(gradients, "lse" + std::to_string(p), got[p].lse);
    }
    expect_adjoint(gradients, {d_out, d_lse}, [&](Inputs<Dual>& in) {
      std::vector<reference::Partial<Dual>> duals;
      for (std::size_t p = 0; p < outs.size(); ++p)
        duals.push_back({in("out" + std::to_string(p), outs[p]), in("lse" + std::to_string(p), lses[p])});
      return outputs_of(reference::merge<Dual>(duals, in_double));
    });
  }
}

Tensor<double> one() {
  Tensor<double> tensor({1});
  tensor(0) = 1;
  return tensor;
}

std::vector<Tensor<Dual>> loss_of(const Estimate<Dual>& loss) {
  Tensor<Dual> tensor({1});
  tensor(0) = loss.value;
  return {tensor};
}

TEST(Adjoint, LossesOfTheCompressiveMemory) {
  for (std::uint32_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const Shapes shapes(random);
    const Problem fresh(shapes, random), old(shapes, random);
    const bool mean_squared = random.coin();
    const std::optional<double> scale = random.coin() ? std::optional<double>(0.3) : std::nullopt;
    const auto got = reference::attention_reconstruction_backward<double>(
        fresh.query, {old.key, old.value}, {fresh.key, fresh.value}, scale, mean_squared, in_double);
    expect_adjoint({{"key", got.key}, {"value", got.value}}, {one()}, [&](Inputs<Dual>& in) {
      const auto key = in("key", fresh.key), value = in("value", fresh.value);
      return loss_of(reference::attention_reconstruction_loss<Dual>(
          as<Dual>(fresh.query), {as<Dual>(old.key), as<Dual>(old.value)}, {key, value},
          scale ? std::optional<Dual>(*scale) : std::nullopt, mean_squared, in_double));
    });
    const auto decoded = reference::auto_encoding_backward<double>(old.value, fresh.value, mean_squared, in_double);
    expect_adjoint({{"decoded", decoded}}, {one()}, [&](Inputs<Dual>& in) {
      const auto rows = in("decoded", fresh.value);
      return loss_of(reference::auto_encoding_loss<Dual>(as<Dual>(old.value), rows, mean_squared, in_double));
    });
    const auto none = reference::auto_encoding_backward<double>(old.value, old.value, mean_squared, in_double);
    for (const double x : none.value.elements()) EXPECT_EQ(x, 0);
  }
}

// ---- Bounds: the same definitions evaluated in float keep within what is certified for float, and come near it.

void expect_within(const std::string& name, const Bounded<double>& expected, const Bounded<float>& got, double& worst) {
  ASSERT_EQ(expected.value.shape(), got.value.shape()) << name;
  for (std::size_t at = 0; at < got.value.elements().size(); ++at) {
    const Estimate<double> element = expected.element(at);
    const double is = got.value.elements()[at];
    ASSERT_FALSE(std::isnan(element.radius)) << name << " at " << at;
    ASSERT_TRUE(agrees(element, is)) << name << " at " << at << ": got " << is << ", expected " << element.value
                                     << " within " << element.radius;
    if (element.radius > 0 && std::isfinite(element.value))
      worst = std::max(worst, std::abs(element.value - is) / element.radius);
  }
}

/// compute(random, Real()) of float and of double; by name.
template <typename Compute>
void expect_bounds(std::uint32_t cases, double least_worst, Compute compute) {
  double worst = 0;
  for (std::uint32_t seed = 0; seed < cases; ++seed) {
    SCOPED_TRACE(seed);
    Random for_double(seed), for_float(seed);
    const auto expected = compute(for_double, double());
    const auto got = compute(for_float, float());
    for (const auto& [name, gradient] : expected)
      if (gradient.present()) expect_within(name, gradient, got.at(name), worst);
    if (testing::Test::HasFatalFailure()) return;
  }
  testing::Test::RecordProperty("worst_ratio", std::to_string(worst));
  EXPECT_GT(worst, least_worst) << "the bound is so loose that it tests nothing";
}

template <typename Real>
using Named = std::map<std::string, Bounded<Real>>;

TEST(GradientBounds, HoldForAttention) {
  expect_bounds(100, 0.1, []<typename Real>(Random& random, Real) {
    Shapes shapes(random);
    shapes.keys = random.index(1, 50), shapes.queries = random.index(1, 20), shapes.dim = random.index(1, 30);
    const Problem problem(shapes, random, std::exp(random.uniform(-2, 1)));
    const ScoresCase scores(random, shapes.pairs(), true);
    Inputs<Real> inputs;
    const auto got =
        reference::attention_backward<Real>(as<Real>(problem.query), as<Real>(problem.key), as<Real>(problem.value),
                                            problem.arrived<Real>(), scores.in(inputs), {}, in_float);
    return Named<Real>{{"query", got.query},
                       {"key", got.key},
                       {"value", got.value},
                       {"bias", got.scores.bias},
                       {"slopes", got.scores.alibi_slopes},
                       {"sinks", got.scores.sinks}};
  });
}

TEST(GradientBounds, HoldForRelativeAttention) {
  expect_bounds(100, 0.05, []<typename Real>(Random& random, Real) {
    Shapes shapes(random);
    shapes.queries = random.index(1, 12), shapes.keys = shapes.queries + random.index(0, 30);
    const Problem problem(shapes, random);
    const ScoresCase scores(random, shapes.pairs(), false);
    Inputs<Real> inputs;
    reference::RelativeOptions<Real> options;
    options.position = as<Real>(random.normal({1, shapes.keys, shapes.dim}));
    options.content_bias = as<Real>(random.normal({1, shapes.dim}));
    options.position_bias = as<Real>(random.normal({shapes.heads, shapes.dim}));
    options.scores = scores.in(inputs);
    const auto got =
        reference::relative_backward<Real>(as<Real>(problem.query), as<Real>(problem.key), as<Real>(problem.value),
                                           problem.arrived<Real>(), options, in_float);
    return Named<Real>{{"query", got.query},       {"key", got.key},        {"value", got.value},
                       {"position", got.position}, {"u", got.content_bias}, {"v", got.position_bias}};
  });
}

TEST(GradientBounds, HoldForLinformer) {
  expect_bounds(100, 0.03, []<typename Real>(Random& random, Real) {
    Shapes shapes(random);
    shapes.value_dim = shapes.dim, shapes.keys = random.index(4, 60);
    const ProjectionCase projection(random, shapes.key_heads, shapes.keys, shapes.dim, shapes.dim);
    const Problem problem(shapes, random);
    Inputs<Real> inputs;
    reference::LinformerOptions<Real> options;
    options.key_projection = projection.in(inputs, "");
    const auto got =
        reference::linformer_backward<Real>(as<Real>(problem.query), as<Real>(problem.key), as<Real>(problem.value),
                                            problem.arrived<Real>(), options, in_float);
    return Named<Real>{{"query", got.query},
                       {"key", got.key},
                       {"value", got.value},
                       {"matrix", got.key_projection.matrix},
                       {"convolution", got.key_projection.convolution},
                       {"slot_bias", got.key_projection.slot_bias},
                       {"channel_bias", got.key_projection.channel_bias}};
  });
}

TEST(GradientBounds, HoldForPerformer) {
  expect_bounds(200, 0.003, []<typename Real>(Random& random, Real) {
    Shapes shapes(random);
    shapes.keys = random.index(1, 40), shapes.queries = random.index(1, 40), shapes.dim = random.index(1, 12);
    const Problem problem(shapes, random, std::exp(random.uniform(-2, 0.3)));
    PerformerCase options(random, shapes);
    const auto got =
        reference::performer_backward<Real>(as<Real>(problem.query), as<Real>(problem.key), as<Real>(problem.value),
                                            as<Real>(problem.d_out), options.in<Real>(), in_float);
    return Named<Real>{{"query", got.query}, {"key", got.key}, {"value", got.value}};
  });
}

TEST(GradientBounds, HoldForLosses) {
  expect_bounds(100, 0.03, []<typename Real>(Random& random, Real) {
    Shapes shapes(random);
    shapes.keys = random.index(1, 30), shapes.queries = random.index(1, 30);
    const Problem fresh(shapes, random), old(shapes, random);
    const auto got = reference::attention_reconstruction_backward<Real>(
        as<Real>(fresh.query), {as<Real>(old.key), as<Real>(old.value)}, {as<Real>(fresh.key), as<Real>(fresh.value)},
        std::nullopt, random.coin(), in_float);
    return Named<Real>{{"key", got.key}, {"value", got.value}};
  });
}

/// Of a single key: dQ = dK = 0, dV = dO.
TEST(GradientBounds, OfASingleKey) {
  Random random(1);
  Shapes shapes(random);
  shapes.keys = 1, shapes.heads = shapes.key_heads;
  shapes.queries = 1;
  Problem problem(shapes, random);
  problem.d_lse = {};
  const auto got = reference::attention_backward<double>(problem.query, problem.key, problem.value,
                                                         problem.arrived<double>(), Scores<double>(), {}, in_double);
  for (const double x : got.query.value.elements()) EXPECT_NEAR(x, 0, 1e-15);
  for (const double x : got.key.value.elements()) EXPECT_NEAR(x, 0, 1e-15);
  EXPECT_EQ(got.value.value.elements(), problem.d_out.elements());
}

}  // namespace
