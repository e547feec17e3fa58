// Backward of Linformer: attention over the slots, then back through the projections.
#pragma once

#include "reference/attention_gradient.hpp"
#include "reference/linformer.hpp"
#include "reference/projection_gradient.hpp"

namespace reference {

/// Without a value_projection that of the keys holds the sums of both.
template <typename Real>
struct LinformerGradients {
  Bounded<Real> query, key, value;
  ProjectionGradients<Real> key_projection, value_projection;
  ScoreGradients<Real> scores;
};

template <typename Real>
LinformerGradients<Real> linformer_backward(const Bounded<Real>& query, const Bounded<Real>& key,
                                            const Bounded<Real>& value, const OutputGradient<Real>& arrived,
                                            const LinformerOptions<Real>& options, const Precision& precision) {
  const std::vector<Index>& lengths = options.scores.key_lengths;
  const bool shared = !options.value_projection;
  const Projection<Real>& of_values = shared ? options.key_projection : *options.value_projection;
  const Bounded<Real> keys = without_padding(key, options.keep_keys, lengths),
                      values = without_padding(value, options.keep_keys, lengths);
  Scores<Real> over_slots = options.scores;
  over_slots.key_lengths.clear();
  AttentionGradients<Real> slots =
      attention_backward(query, project(keys, options.key_projection, precision), project(values, of_values, precision),
                         arrived, over_slots, {}, precision);
  ProjectionSums<Real> of_key(keys, options.key_projection), of_value(values, of_values);
  project_backward(keys, slots.key, options.key_projection, of_key, precision);
  LinformerGradients<Real> result;
  if (shared) {
    ProjectionSums<Real> both = of_key;
    both.input = of_value.input;
    project_backward(values, slots.value, of_values, both, precision);
    result.value = stored(both.input, precision);
    both.input = of_key.input;
    result.key_projection = both.finished(precision);
  } else {
    project_backward(values, slots.value, of_values, of_value, precision);
    result.value_projection = of_value.finished(precision);
    result.value = result.value_projection.input;
    result.key_projection = of_key.finished(precision);
  }
  result.query = slots.query;
  result.scores = slots.scores;
  result.key = without_padding(result.key_projection.input, options.keep_keys, lengths);
  result.value = without_padding(result.value, options.keep_keys, lengths);
  return result;
}

}  // namespace reference
