// The reference's gradients of a golden case. `d_out` and `d_lse` arrive with the file; it asks for the others by name.
#pragma once

#include "golden_case.hpp"
#include "reference/attention_gradient.hpp"
#include "reference/compressive_gradient.hpp"
#include "reference/linformer_gradient.hpp"
#include "reference/longformer_gradient.hpp"
#include "reference/performer_gradient.hpp"
#include "reference/projection_gradient.hpp"
#include "reference/relative_gradient.hpp"

namespace golden {
namespace detail {

template <typename Real>
reference::OutputGradient<Real> arrived_gradient(const Case& of) {
  return {of.tensor<Real>("d_out"), of.optional<Real>("d_lse")};
}

template <typename Real>
Tensor<Real> reshaped(const Tensor<Real>& tensor, const std::vector<Index>& shape) {
  Tensor<Real> result(shape);
  require(result.elements().size() == tensor.elements().size(), "shape of a gradient");
  result.elements() = tensor.elements();
  return result;
}

/// Where the file has it, in the file's shape: some of its tensors lack an axis of extent 1.
template <typename Real>
void add_gradient(Solution<Real>& to, const Case& of, const std::string& name, const Bounded<Real>& gradient) {
  if (!of.has(name)) return;
  require(gradient.present(), "no gradient " + name);
  const std::vector<Index>& shape = of.shape(name);
  Bounded<Real> result(reshaped(gradient.value, shape));
  result.radius = reshaped(gradient.radius, shape);
  to.emplace(name, std::move(result));
}

template <typename Real>
void add_gradients(Solution<Real>& to, const Case& of, const reference::ScoreGradients<Real>& scores) {
  add_gradient(to, of, "d_bias", scores.bias);
  add_gradient(to, of, "d_alibi_slopes", scores.alibi_slopes);
  add_gradient(to, of, "d_sinks", scores.sinks);
}

template <typename Real, typename Gradients>
Solution<Real> query_key_value(const Case& of, const Gradients& gradients) {
  Solution<Real> all;
  add_gradient(all, of, "d_query", gradients.query);
  add_gradient(all, of, "d_key", gradients.key);
  add_gradient(all, of, "d_value", gradients.value);
  return all;
}

template <typename Real>
Bounded<Real> sum_of(const Bounded<Real>& a, const Bounded<Real>& b, const Precision& precision) {
  Bounded<Real> sum(a.value.shape());
  for (std::size_t at = 0; at < sum.value.elements().size(); ++at) {
    const auto each = reference::plus(a.element(at), b.element(at), precision);
    sum.value.elements()[at] = each.value, sum.radius.elements()[at] = each.radius;
  }
  return sum;
}

}  // namespace detail

template <typename Real>
Solution<Real> attention_gradients(const Case& of, const Precision& precision) {
  const auto problem = attention_problem<Real>(of);
  const auto gradients =
      reference::attention_backward<Real>(problem.query, problem.key, problem.value, detail::arrived_gradient<Real>(of),
                                          problem.scores, {problem.window}, precision);
  auto all = detail::query_key_value<Real>(of, gradients);
  detail::add_gradients(all, of, gradients.scores);
  return all;
}

template <typename Real>
Solution<Real> longformer_gradients(const Case& of, const Precision& precision) {
  const auto problem = longformer_problem<Real>(of);
  const auto gradients =
      reference::longformer_backward<Real>(problem.query, problem.key, problem.value,
                                           detail::arrived_gradient<Real>(of), longformer_options(problem), precision);
  auto all = detail::query_key_value<Real>(of, gradients);
  detail::add_gradient(all, of, "d_query_global", gradients.query_global);
  detail::add_gradient(all, of, "d_key_global", gradients.key_global);
  detail::add_gradient(all, of, "d_value_global", gradients.value_global);
  return all;
}

template <typename Real>
Solution<Real> linformer_gradients(const Case& of, const Precision& precision) {
  const auto problem = linformer_problem<Real>(of);
  auto gradients = reference::linformer_backward<Real>(problem.query, problem.key, problem.value,
                                                       detail::arrived_gradient<Real>(of), problem.options, precision);
  if (of.flag("shared_key_value")) gradients.key = detail::sum_of(gradients.key, gradients.value, precision);
  auto all = detail::query_key_value<Real>(of, gradients);
  for (const std::string side : {"key", "value"}) {
    const auto& projection = side == "key" ? gradients.key_projection : gradients.value_projection;
    detail::add_gradient(all, of, "d_" + side + "_projection", projection.matrix);
    detail::add_gradient(all, of, "d_" + side + "_projection_bias", projection.slot_bias);
    detail::add_gradient(all, of, "d_slot_" + side + "_bias", projection.channel_bias);
    detail::add_gradient(all, of, "d_" + side + "_conv_weight", projection.convolution);
    detail::add_gradient(all, of, "d_" + side + "_conv_bias", projection.channel_bias);
  }
  return all;
}

template <typename Real>
Solution<Real> performer_gradients(const Case& of, const Precision& precision) {
  const auto problem = performer_problem<Real>(of);
  return detail::query_key_value<Real>(
      of, reference::performer_backward<Real>(problem.query, problem.key, problem.value, of.tensor<Real>("d_out"),
                                              problem.options, precision));
}

template <typename Real>
Solution<Real> relative_gradients(const Case& of, const Precision& precision) {
  const auto problem = relative_problem<Real>(of);
  const auto gradients =
      reference::relative_backward<Real>(problem.query, problem.key, problem.value, detail::arrived_gradient<Real>(of),
                                         relative_options(problem), precision);
  auto all = detail::query_key_value<Real>(of, gradients);
  detail::add_gradient(all, of, "d_position", gradients.position);
  detail::add_gradient(all, of, "d_content_bias", gradients.content_bias);
  detail::add_gradient(all, of, "d_position_bias", gradients.position_bias);
  return all;
}

template <typename Real>
Solution<Real> compression_gradients(const Case& of, const Precision& precision) {
  const auto problem = compression_problem<Real>(of);
  const auto gradients =
      reference::project_backward<Real>(problem.input, of.tensor<Real>("d_out"), problem.compression, precision);
  Solution<Real> all;
  detail::add_gradient(all, of, "d_input", gradients.input);
  detail::add_gradient(all, of, "d_compression_weight", gradients.convolution);
  detail::add_gradient(all, of, "d_compression_bias", gradients.channel_bias);
  return all;
}

/// Of each step's loss with respect to the compression, through the keys and values of the compressed rows.
template <typename Real>
Solution<Real> stream_gradients(const Case& of, const Precision& precision) {
  const auto problem = stream_problem<Real>(of);
  Stream<Real> stream(problem, precision);
  Solution<Real> forward, all;
  for (Index step = 0; step < static_cast<Index>(problem.pushes.size()); ++step) stream.step(step, forward);
  for (const auto& eviction : stream.evictions()) {
    const auto d_fresh = reference::attention_reconstruction_backward<Real>(
        stream.projected(eviction.segment, problem.query_weight), stream.keys_and_values(eviction.before),
        stream.keys_and_values(eviction.compressed), problem.scale, true, precision);
    reference::Sums<Real> d_rows(eviction.compressed.value.shape());
    reference::linear_heads_backward(d_fresh.key, problem.key_weight, d_rows);
    reference::linear_heads_backward(d_fresh.value, problem.value_weight, d_rows);
    const auto gradients = reference::project_backward<Real>(eviction.evicted, reference::stored(d_rows, precision),
                                                             problem.compression, precision);
    const std::string suffix = "_" + std::to_string(eviction.step);
    detail::add_gradient(all, of, "d_compression_weight" + suffix, gradients.convolution);
    detail::add_gradient(all, of, "d_compression_bias" + suffix, gradients.channel_bias);
  }
  return all;
}

/// All gradients the file asks for and the reference knows, by name; none for operators without.
template <typename Real>
Solution<Real> gradients(const Case& of, const Precision& precision) {
  using Solve = Solution<Real> (*)(const Case&, const Precision&);
  static const std::map<std::string, Solve> known{
      {"full_attention", &attention_gradients<Real>},      {"longformer_attention", &longformer_gradients<Real>},
      {"linformer_attention", &linformer_gradients<Real>}, {"performer_attention", &performer_gradients<Real>},
      {"relative_attention", &relative_gradients<Real>},   {"compression", &compression_gradients<Real>},
      {"compressive_memory", &stream_gradients<Real>}};
  return known.contains(of.op()) ? known.at(of.op())(of, precision) : Solution<Real>();
}

/// Forward and backward.
template <typename Real>
Solution<Real> solve_all(const Case& of, const Precision& precision) {
  Solution<Real> all = solve<Real>(of, precision);
  all.merge(gradients<Real>(of, precision));
  return all;
}

}  // namespace golden
