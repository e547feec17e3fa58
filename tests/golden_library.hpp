// SPDX-License-Identifier: Apache-2.0
// What the library answers to a golden case: one function for each operator of the schema.
#pragma once

#include <longview/compressive_memory.hpp>
#include <longview/full_attention.hpp>
#include <longview/linformer_attention.hpp>
#include <longview/longformer_attention.hpp>
#include <longview/performer_attention.hpp>
#include <longview/projection.hpp>
#include <longview/relative_attention.hpp>
#include <longview/sliding_window_attention.hpp>
#include <map>
#include <string>
#include <vector>

#include "golden_answer.hpp"

namespace golden {

// ---- full_attention: with a window, sliding_window_attention

inline longview::Window library_window(const reference::Window& window) {
  return {.before = window.before.value_or(longview::unlimited),
          .after = window.after.value_or(longview::unlimited),
          .dilation = window.dilation};
}

/// Points into `from`, too.
template <typename T>
longview::Scores<T> library_scores(const reference::Scores<double>& from, Inputs<T>& inputs) {
  return {.scale = from.scale,
          .softcap = from.softcap,
          .causal = from.causal,
          .key_lengths = from.key_lengths,
          .keep_mask = inputs.template mask<4>(from.keep_mask),
          .bias = inputs.template tensor<4>(from.bias),
          .alibi_slopes = inputs.list(from.alibi_slopes),
          .sinks = inputs.list(from.sinks)};
}

template <typename T>
Answer<T> answer_attention(const Case& of, Layout layout) {
  const auto problem = attention_problem<double>(of);
  Inputs<T> inputs(layout);
  AttentionAnswer<T> written(of, problem.query, problem.value, layout);
  const auto query = inputs.template tensor<4>(problem.query), key = inputs.template tensor<4>(problem.key),
             value = inputs.template tensor<4>(problem.value);
  longview::Scores<T> scores = library_scores(problem.scores, inputs);
  scores.alignment =
      problem.alignment == Alignment::top_left ? longview::Alignment::top_left : longview::Alignment::bottom_right;
  const bool windowed = problem.window.before || problem.window.after;
  const longview::SlidingWindowOptions<T> window{.window = library_window(problem.window), .scores = scores};
  if (windowed)
    longview::sliding_window_attention(query, key, value, written.output(), window);
  else
    longview::full_attention(query, key, value, written.output(), scores);
  Answer<T> answer = written.answer();
  GradientAnswer<T> d(of, layout);
  if (!d.wanted()) return answer;
  const longview::AttentionGradients<T> gradients{.out = d.out(inputs),
                                                  .lse = d.lse(inputs),
                                                  .query = d.template tensor<4>("d_query"),
                                                  .key = d.template tensor<4>("d_key"),
                                                  .value = d.template tensor<4>("d_value"),
                                                  .scores = d.scores()};
  if (windowed)
    longview::sliding_window_attention_backward(query, key, value, written.output(), gradients, window);
  else
    longview::full_attention_backward(query, key, value, written.output(), gradients, scores);
  d.add_to(answer);
  return answer;
}

// ---- longformer_attention

template <typename T>
Answer<T> answer_longformer(const Case& of, Layout layout) {
  const auto problem = longformer_problem<double>(of);
  Inputs<T> inputs(layout);
  AttentionAnswer<T> written(of, problem.query, problem.value, layout);
  std::vector<longview::Window> windows;
  for (const reference::Window& window : problem.windows) windows.push_back(library_window(window));
  std::vector<Index> tokens;
  longview::LongformerOptions<T> options{.head_windows = windows,
                                         .global = {.query = inputs.template tensor<4>(problem.query_global),
                                                    .key = inputs.template tensor<4>(problem.key_global),
                                                    .value = inputs.template tensor<4>(problem.value_global)},
                                         .scores = {.scale = problem.scale, .causal = problem.causal},
                                         .keep_tokens = inputs.template mask<2>(problem.keep_tokens)};
  if (problem.global_tokens.present())
    options.global.tokens = longview::token_sets(inputs.template mask<2>(problem.global_tokens), tokens);
  const auto query = inputs.template tensor<4>(problem.query), key = inputs.template tensor<4>(problem.key),
             value = inputs.template tensor<4>(problem.value);
  longview::longformer_attention(query, key, value, written.output(), options);
  Answer<T> answer = written.answer();
  GradientAnswer<T> d(of, layout);
  if (!d.wanted()) return answer;
  longview::longformer_attention_backward(query, key, value, written.output(),
                                          {.out = d.out(inputs),
                                           .lse = d.lse(inputs),
                                           .query = d.template tensor<4>("d_query"),
                                           .key = d.template tensor<4>("d_key"),
                                           .value = d.template tensor<4>("d_value"),
                                           .query_global = d.template tensor<4>("d_query_global"),
                                           .key_global = d.template tensor<4>("d_key_global"),
                                           .value_global = d.template tensor<4>("d_value_global"),
                                           .scores = d.scores()},
                                          options);
  d.add_to(answer);
  return answer;
}

// ---- linformer_attention, compression

template <typename T>
longview::Projection<T> library_projection(const reference::Projection<double>& from, Inputs<T>& inputs) {
  return {.matrix = inputs.template tensor<3>(from.matrix),
          .mean_pool = from.mean_pool,
          .max_pool = from.max_pool,
          .convolution = inputs.template tensor<3>(from.convolution),
          .slot_bias = inputs.template tensor<2>(from.slot_bias),
          .channel_bias = inputs.template tensor<2>(from.channel_bias)};
}

/// A sequence shorter than the matrix reads its first columns.
template <typename T>
longview::Projection<T> first_columns(longview::Projection<T> projection, Index length) {
  if (projection.matrix) projection.matrix = projection.matrix.slice(2, 0, length);
  return projection;
}

/// The gradient of those columns; that of the others is 0.
template <typename T>
longview::TensorView<T, 3> first_columns(const longview::TensorView<T, 3>& gradient, Index length) {
  for (Index column = length; gradient && column < gradient.extent(2); ++column)
    for (Index head = 0; head < gradient.extent(0); ++head)
      for (Index slot = 0; slot < gradient.extent(1); ++slot) gradient(head, slot, column) = 0;
  return gradient ? gradient.slice(2, 0, length) : gradient;
}

/// Of "key" or "value". The same tensor of the library has another name for each of the references.
template <typename T>
longview::ProjectionGradients<T> projection_gradients(const Case& of, const std::string& side, Index length,
                                                      GradientAnswer<T>& d) {
  const std::string channel_bias = of.has("d_slot_" + side + "_bias") ? "d_slot_" + side + "_bias" : "d_" + side + "_conv_bias";
  return {.matrix = first_columns(d.template tensor<3>("d_" + side + "_projection"), length),
          .convolution = d.template tensor<3>("d_" + side + "_conv_weight"),
          .slot_bias = d.template tensor<2>("d_" + side + "_projection_bias"),
          .channel_bias = d.template tensor<2>(channel_bias)};
}

template <typename T>
Answer<T> answer_linformer(const Case& of, Layout layout) {
  const auto problem = linformer_problem<double>(of);
  Inputs<T> inputs(layout);
  AttentionAnswer<T> written(of, problem.query, problem.value, layout);
  const Index length = problem.key.extent(2);
  longview::LinformerOptions<T> options{
      .key_projection = first_columns(library_projection(problem.options.key_projection, inputs), length),
      .keep_keys = inputs.template mask<2>(problem.options.keep_keys),
      .scores = library_scores(problem.options.scores, inputs)};
  if (problem.options.value_projection)
    options.value_projection = first_columns(library_projection(*problem.options.value_projection, inputs), length);
  const auto query = inputs.template tensor<4>(problem.query), key = inputs.template tensor<4>(problem.key),
             value = inputs.template tensor<4>(problem.value);
  longview::linformer_attention(query, key, value, written.output(), options);
  Answer<T> answer = written.answer();
  GradientAnswer<T> d(of, layout);
  if (!d.wanted()) return answer;
  const bool one_tensor = of.flag("shared_key_value");  // d_key is of both
  Written<T, 4> apart(value.shape(), layout);
  longview::LinformerGradients<T> gradients{.out = d.out(inputs),
                                            .lse = d.lse(inputs),
                                            .query = d.template tensor<4>("d_query"),
                                            .key = d.template tensor<4>("d_key"),
                                            .value = one_tensor ? apart.view() : d.template tensor<4>("d_value"),
                                            .key_projection = projection_gradients(of, "key", length, d)};
  if (problem.options.value_projection) gradients.value_projection = projection_gradients(of, "value", length, d);
  longview::linformer_attention_backward(query, key, value, written.output(), gradients, options);
  d.add_to(answer);
  if (one_tensor)
    for (std::size_t at = 0; at < answer["d_key"].elements().size(); ++at)
      answer["d_key"].elements()[at] += apart.copy().elements()[at];
  return answer;
}

template <typename T>
Answer<T> answer_compression(const Case& of, Layout layout) {
  const auto problem = compression_problem<double>(of);
  const Tensor<double>& input = problem.input;
  Inputs<T> inputs(layout);
  Written<T, 4> out({input.extent(0), input.extent(1), reference::slots_of(problem.compression, input.extent(2)),
                     reference::dim_of(problem.compression, input.extent(3))},
                    layout);
  const auto rows = inputs.template tensor<4>(input);
  const longview::Projection<T> compression = library_projection(problem.compression, inputs);
  longview::project(rows, out.view(), compression);
  Answer<T> answer{{"out", out.copy()}};
  GradientAnswer<T> d(of, layout);
  longview::project_backward(rows,
                             {.out = d.out(inputs),
                              .input = d.template tensor<4>("d_input"),
                              .convolution = d.template tensor<3>("d_compression_weight"),
                              .channel_bias = d.template tensor<2>("d_compression_bias")},
                             compression);
  d.add_to(answer);
  return answer;
}

// ---- performer_attention, random_features

inline longview::FeatureMap library_features(reference::FeatureMap map) {
  switch (map) {
    case reference::FeatureMap::positive:
      return longview::FeatureMap::positive;
    case reference::FeatureMap::hyperbolic:
      return longview::FeatureMap::hyperbolic;
    case reference::FeatureMap::trigonometric:
      return longview::FeatureMap::trigonometric;
    case reference::FeatureMap::relu:
      return longview::FeatureMap::relu;
    case reference::FeatureMap::elu_plus_one:
      return longview::FeatureMap::elu_plus_one;
    case reference::FeatureMap::softmax:
      return longview::FeatureMap::softmax;
  }
  throw FormatError("feature map");
}

inline longview::Stabiliser library_stabiliser(reference::Stabiliser stabiliser) {
  switch (stabiliser) {
    case reference::Stabiliser::prefix:
      return longview::Stabiliser::prefix;
    case reference::Stabiliser::reference:
      return longview::Stabiliser::reference;
    case reference::Stabiliser::fixed:
      return longview::Stabiliser::fixed;
  }
  throw FormatError("stabiliser");
}

/// Of the features alone. The schema's epsilon says nothing about trigonometric ones.
template <typename T>
longview::PerformerOptions<T> library_features(const reference::PerformerOptions<double>& from, Inputs<T>& inputs) {
  longview::PerformerOptions<T> options{.features = library_features(from.features),
                                        .projection = inputs.template tensor<2>(from.projection),
                                        .input_scale = from.input_scale,
                                        .stabiliser = library_stabiliser(from.stabiliser)};
  if (from.features != reference::FeatureMap::trigonometric) options.epsilon = from.epsilon;
  return options;
}

template <typename T>
Answer<T> answer_performer(const Case& of, Layout layout) {
  const auto problem = performer_problem<double>(of);
  const reference::PerformerOptions<double>& stated = problem.options;
  Inputs<T> inputs(layout);
  Written<T, 4> out(
      {problem.query.extent(0), problem.query.extent(1), problem.query.extent(2), problem.value.extent(3)}, layout);
  longview::PerformerOptions<T> options = library_features(stated, inputs);
  options.causal = stated.causal;
  options.normalize = stated.normalize;
  options.denominator_guard = stated.denominator_guard;
  options.key_sum_epsilon = stated.key_sum_epsilon;
  options.differentiate_maximum = stated.differentiate_maximum;
  options.keep_keys = inputs.template mask<2>(stated.keep_keys);
  const auto query = inputs.template tensor<4>(problem.query), key = inputs.template tensor<4>(problem.key),
             value = inputs.template tensor<4>(problem.value);
  longview::performer_attention(query, key, value, out.view(), options);
  Answer<T> answer{{"out", out.copy()}};
  GradientAnswer<T> d(of, layout);
  longview::performer_attention_backward(query, key, value, out.view(),
                                         {.out = d.out(inputs),
                                          .query = d.template tensor<4>("d_query"),
                                          .key = d.template tensor<4>("d_key"),
                                          .value = d.template tensor<4>("d_value")},
                                         options);
  d.add_to(answer);
  return answer;
}

template <typename T>
Answer<T> answer_features(const Case& of, Layout layout) {
  const auto problem = features_problem<double>(of);
  const Tensor<double>& input = problem.input;
  Inputs<T> inputs(layout);
  const longview::PerformerOptions<T> options = library_features(problem.options, inputs);
  const Index rows = options.projection ? options.projection.extent(0) : input.extent(3);
  Written<T, 4> out(
      {input.extent(0), input.extent(1), input.extent(2), longview::feature_count(options.features, rows)}, layout);
  const bool query = problem.side == reference::FeatureSide::query;
  longview::performer_features(inputs.template tensor<4>(input),
                               query ? longview::FeatureSide::query : longview::FeatureSide::key, out.view(), options);
  return {{"out", out.copy()}};
}

// ---- relative_attention, sinusoidal_positions

/// [compressed, memory, current] of keys and values, or of their gradients.
template <typename Pieces, typename Piece, typename View>
Pieces three_pieces(const RelativeProblem<double>& problem, const View& key, const View& value) {
  const auto rows = [&](Index first, Index count) {
    return Piece{.key = key.slice(2, first, count), .value = value.slice(2, first, count)};
  };
  const Index current = problem.compressed_length + problem.memory_length;
  return {rows(0, problem.compressed_length), rows(problem.compressed_length, problem.memory_length),
          rows(current, problem.key.extent(2) - current)};
}

template <typename T>
Answer<T> answer_relative(const Case& of, Layout layout) {
  const auto problem = relative_problem<double>(of);
  check_visible(problem);
  Inputs<T> inputs(layout);
  AttentionAnswer<T> written(of, problem.query, problem.value, layout);
  const auto query = inputs.template tensor<4>(problem.query);
  const longview::RelativeOptions<T> options{.position = inputs.template tensor<3>(problem.position),
                                             .content_bias = inputs.template tensor<2>(problem.content_bias),
                                             .position_bias = inputs.template tensor<2>(problem.position_bias),
                                             .before = problem.before,
                                             .scores = {.scale = problem.scale}};
  const auto key = inputs.template tensor<4>(problem.key), value = inputs.template tensor<4>(problem.value);
  const bool in_pieces = of.has_option("compressed_length");
  const auto pieces = three_pieces<longview::KeyValueView<T>, longview::KeyValue<T>>(problem, key, value);
  if (in_pieces)
    longview::relative_attention(query, pieces, written.output(), options);
  else
    longview::relative_attention(query, key, value, written.output(), options);
  Answer<T> answer = written.answer();
  GradientAnswer<T> d(of, layout);
  if (!d.wanted()) return answer;
  longview::RelativeGradients<T> gradients{.out = d.out(inputs),
                                           .lse = d.lse(inputs),
                                           .query = d.template tensor<4>("d_query"),
                                           .position = d.template tensor<3>("d_position"),
                                           .content_bias = d.template tensor<2>("d_content_bias"),
                                           .position_bias = d.template tensor<2>("d_position_bias"),
                                           .scores = d.scores()};
  const auto d_key = d.template tensor<4>("d_key"), d_value = d.template tensor<4>("d_value");
  if (in_pieces) {
    gradients.segments =
        three_pieces<longview::SegmentGradients<T>, longview::KeyValueGradient<T>>(problem, d_key, d_value);
    longview::relative_attention_backward(query, pieces, written.output(), gradients, options);
  } else {
    gradients.key = d_key, gradients.value = d_value;
    longview::relative_attention_backward(query, key, value, written.output(), gradients, options);
  }
  d.add_to(answer);
  return answer;
}

template <typename T>
Answer<T> answer_positions(const Case& of, Layout layout) {
  const PositionsProblem problem = positions_problem(of);
  Written<T, 2> out({problem.length, problem.width}, layout);
  longview::sinusoidal_positions(out.view(), problem.clamp);
  return {{"out", out.copy()}};
}

// ---- compressive_memory

/// y = x W^T, split into heads: (batch, 1, length, width) -> (batch, heads, length, width out / heads)
template <typename T>
Tensor<T> linear_heads(const longview::TensorView<const T, 4>& rows, const Tensor<double>& weight, Index heads) {
  const Index dim = weight.extent(0) / heads;
  Tensor<T> output({rows.extent(0), heads, rows.extent(2), dim});
  for (Index b = 0; b < rows.extent(0); ++b)
    for (Index h = 0; h < heads; ++h)
      for (Index i = 0; i < rows.extent(2); ++i)
        for (Index c = 0; c < dim; ++c)
          for (Index in = 0; in < weight.extent(1); ++in)
            output(b, h, i, c) += static_cast<T>(weight(h * dim + c, in)) * rows(b, 0, i, in);
  return output;
}

/// dX += dY W of the same.
template <typename T>
void linear_heads_backward(const Tensor<T>& d_out, const Tensor<double>& weight, Tensor<T>& d_rows) {
  const Index dim = d_out.extent(3);
  for (Index b = 0; b < d_out.extent(0); ++b)
    for (Index h = 0; h < d_out.extent(1); ++h)
      for (Index i = 0; i < d_out.extent(2); ++i)
        for (Index c = 0; c < dim; ++c)
          for (Index in = 0; in < weight.extent(1); ++in)
            d_rows(b, 0, i, in) += static_cast<T>(weight(h * dim + c, in)) * d_out(b, h, i, c);
}

template <typename T>
class LibraryStream {
 public:
  LibraryStream(const Case& of, const StreamProblem<double>& problem, Layout layout)
      : of_(of),
        problem_(problem),
        layout_(layout),
        memory_({problem.pushes.front().extent(0), 1, problem.pushes.front().extent(3)},
                {.memory = problem.lengths.memory, .compressed = problem.lengths.compressed}) {}

  /// Attends, then remembers.
  void step(Index number, Answer<T>& answer) {
    Inputs<T> inputs(layout_);
    const std::string suffix = "_" + std::to_string(number);
    const Tensor<double>& pushed = problem_.pushes[reference::to_size(number)];
    const auto segment = inputs.template tensor<4>(pushed);
    answer["out" + suffix] = answer["out"] = attend(segment, inputs);
    if (pushed.extent(2) == problem_.segment_length) remember(segment, suffix, inputs, answer);
    answer["memory" + suffix] = copy_of(memory_.memory());
    answer["compressed_memory" + suffix] = copy_of(memory_.compressed());
  }

 private:
  using Rows = longview::TensorView<const T, 4>;

  Rows projected(const Rows& rows, const Tensor<double>& weight, Inputs<T>& inputs) const {
    return inputs.template tensor<4>(linear_heads<T>(rows, weight, problem_.heads));
  }
  longview::KeyValue<T> key_value(const Rows& rows, Inputs<T>& inputs) const {
    return {.key = projected(rows, problem_.key_weight, inputs),
            .value = projected(rows, problem_.value_weight, inputs)};
  }

  Tensor<T> attend(const Rows& segment, Inputs<T>& inputs) const {
    const Index length = segment.extent(2);
    const Rows query = projected(segment, problem_.query_weight, inputs);
    const longview::KeyValueView<T> keys{key_value(memory_.compressed(), inputs), key_value(memory_.memory(), inputs),
                                         key_value(segment, inputs)};
    Written<T, 4> out(query.shape(), layout_);
    if (problem_.position_table.present()) {
      const Index count = memory_.compressed().extent(2) + memory_.memory().extent(2) + length;
      const auto table = inputs.template tensor<3>(problem_.position_table);
      // Its rows run backwards, from where distance 0 stands while the memories fill.
      const auto position = table.slice(1, problem_.segment_length - length + count - 1, count, -1);
      longview::relative_attention(query, keys, out.view(),
                                   {.position = position, .scores = {.scale = problem_.scale}});
    } else {
      longview::full_attention(query, keys, out.view(), {.scale = problem_.scale, .causal = true});
    }
    return out.copy();
  }

  void remember(const Rows& segment, const std::string& suffix, Inputs<T>& inputs, Answer<T>& answer) {
    const Tensor<T> before = copy_of(memory_.memory());
    const longview::Projection<T> compression = library_projection(problem_.compression, inputs);
    const auto pushed = memory_.push(segment, compression);
    if (pushed.evicted.extent(2) == 0) return;
    const auto fresh = key_value(pushed.compressed, inputs);
    Written<T, 4> d_key(fresh.key.shape(), layout_), d_value(fresh.value.shape(), layout_);
    Tensor<T>& loss = answer["reconstruction_loss" + suffix] = Tensor<T>({1});
    loss(0) = static_cast<T>(longview::attention_reconstruction_loss(
        projected(segment, problem_.query_weight, inputs), {.old = key_value(inputs.template tensor<4>(before), inputs),
                                                            .fresh = fresh,
                                                            .scale = problem_.scale,
                                                            .d_fresh = {d_key.view(), d_value.view()}}));
    if (!of_.has("d_compression_weight" + suffix)) return;
    Tensor<T> d_rows(std::vector<Index>(pushed.compressed.shape().begin(), pushed.compressed.shape().end()));
    linear_heads_backward(d_key.copy(), problem_.key_weight, d_rows);
    linear_heads_backward(d_value.copy(), problem_.value_weight, d_rows);
    GradientAnswer<T> d(of_, layout_);
    longview::project_backward(pushed.evicted,
                               {.out = inputs.template tensor<4>(d_rows),
                                .convolution = d.template tensor<3>("d_compression_weight" + suffix),
                                .channel_bias = d.template tensor<2>("d_compression_bias" + suffix)},
                               compression);
    d.add_to(answer);
  }

  const Case& of_;
  const StreamProblem<double>& problem_;
  Layout layout_;
  longview::CompressiveMemory<T> memory_;
};

template <typename T>
Answer<T> answer_stream(const Case& of, Layout layout) {
  const auto problem = stream_problem<double>(of);
  LibraryStream<T> stream(of, problem, layout);
  Answer<T> answer;
  for (Index step = 0; step < static_cast<Index>(problem.pushes.size()); ++step) stream.step(step, answer);
  return answer;
}

// ---- all

template <typename T>
using Solve = Answer<T> (*)(const Case&, Layout);

/// Throws if the operator is none of the schema.
template <typename T>
Solve<T> operator_of(const Case& of) {
  static const std::map<std::string, Solve<T>> known{
      {"full_attention", &answer_attention<T>},       {"longformer_attention", &answer_longformer<T>},
      {"linformer_attention", &answer_linformer<T>},  {"performer_attention", &answer_performer<T>},
      {"random_features", &answer_features<T>},       {"relative_attention", &answer_relative<T>},
      {"sinusoidal_positions", &answer_positions<T>}, {"compression", &answer_compression<T>},
      {"compressive_memory", &answer_stream<T>}};
  require(known.contains(of.op()), "unknown op " + of.op());
  return known.at(of.op());
}

}  // namespace golden
