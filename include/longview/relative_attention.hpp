// SPDX-License-Identifier: Apache-2.0
/// \file
/// Causal attention over [memory, current] with relative positions.
///
/// Source: Dai et al., "Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context", 2019, section 3.3 and
/// appendix B, arXiv:1901.02860. Rows of the position table go by distance, so nothing has to be shifted.
#pragma once

#include <cmath>

#include "longview/detail/backward_check.hpp"
#include "longview/detail/backward_task.hpp"

namespace longview::inline v0 {

/// What is added to the content score; all extents of heads may be 1.
template <Storage T>
struct RelativeOptions {
  TensorView<const T, 3> position{};       ///< (heads, distances, head_dim), row 0 = itself; required
  TensorView<const T, 2> content_bias{};   ///< u (heads, head_dim); absent: 0
  TensorView<const T, 2> position_bias{};  ///< v (heads, head_dim); absent: 0
  std::optional<Index> before{};           ///< distances up to before only (same_length: its limit - 1)
  std::optional<Index> clamp{};            ///< distances beyond clamp read row clamp
  Scores<T> scores{};                      ///< without alignment and alibi_slopes; causal is implied
};

/// As AttentionGradients; position and biases may have extent 1 on the axis of heads, which is then summed.
template <Storage T>
struct RelativeGradients {
  TensorView<const T, 4> out{};
  TensorView<const Compute<T>, 3> lse{};
  TensorView<T, 4> query{}, key{}, value{};
  SegmentGradients<T> segments{};
  TensorView<T, 3> position{};
  TensorView<T, 2> content_bias{}, position_bias{};
  ScoreGradients<T> scores{};  ///< without alibi_slopes
};

inline namespace LONGVIEW_BUILD {

namespace detail {

/// Rows of one head at a time, so that the lanes of a block stand at consecutive positions.
template <typename T>
class RelativePattern : public BandPattern<T> {
 public:
  RelativePattern(const BandCall<T>& call, const RelativeOptions<T>& options)
      : BandPattern<T>(call, false), options_(options) {}

  void lane(const GridPlace& place, Index head, Index query, int lane, kernel::QueryBlock<T>& block) const {
    BandPattern<T>::lane(place, head, query, lane, block);
    block.content_bias[lane] = options_.content_bias ? row_of(options_.content_bias, head) : nullptr;
    block.position_bias[lane] = options_.position_bias ? row_of(options_.position_bias, head) : nullptr;
    const auto& position = options_.position;
    block.distances = position.data_handle() + head * repeated(position.extent(0), position.stride(0));
  }

 private:
  const RelativeOptions<T>& options_;
};

}  // namespace detail

/// The compiled body, named in `extern template` only.
template <Storage T>
struct RelativeAttention {
  static void forward(detail::BandCall<T> call, const RelativeOptions<T>& options, Run run);
  static void backward(detail::BandCall<T> call, const Output<const T>& out, const RelativeGradients<T>& gradients,
                       const RelativeOptions<T>& options, bool in_pieces, Run run);

 private:
  static void check_options(detail::Contract& contract, const detail::BandCall<T>& call, const RelativeOptions<T>& options) {
    detail::check_scores(contract, call, "options.scores.", false, true);
    contract.require(!options.scores.alignment, "options.scores.alignment", "is always bottom_right here");
    contract.require(options.scores.alibi_slopes.empty(), "options.scores.alibi_slopes",
                     "has no meaning beside a position table");
    if (options.before) contract.at_least("options.before", "", *options.before, 0);
    if (options.clamp) contract.at_least("options.clamp", "", *options.clamp, 0);
    check_position(contract, call, options);
  }
  /// The band of a checked call, and what the kernel needs to know.
  static kernel::AttentionShape<T> set_options(detail::BandCall<T>& call, const RelativeOptions<T>& options) {
    call.window = {options.before.value_or(unlimited), 0, 1};
    call.offset = call.positions - call.query.extent(2);
    kernel::AttentionShape<T> shape = detail::shape_of(call);
    shape.relative = true;
    shape.distance_row = options.position.stride(1), shape.distance_channel = options.position.stride(2);
    shape.content_bias_channel = options.content_bias.stride(1);
    shape.position_bias_channel = options.position_bias.stride(1);
    shape.clamp = options.clamp.value_or(unlimited);
    shape.farthest = options.before.value_or(unlimited);
    return shape;
  }
  static void check_position(detail::Contract& contract, const detail::BandCall<T>& call, const RelativeOptions<T>& options) {
    const Index heads = call.query.extent(1), head_dim = call.query.extent(3);
    contract.input("options.position", options.position);
    contract.require(static_cast<bool>(options.position), "options.position", "is required");
    if (options.position.extent(0) != 1) contract.equal("options.position", "heads", options.position.extent(0), heads, "query");
    contract.equal("options.position", "head_dim", options.position.extent(2), head_dim, "query");
    Index distances = call.query.extent(2) == 0 ? 0 : call.positions;
    if (options.before && *options.before < distances) distances = *options.before + 1;
    if (options.clamp && *options.clamp < distances) distances = *options.clamp + 1;
    if (options.position.extent(1) < distances)
      contract.fail("options.position", "distances (got " + std::to_string(options.position.extent(1)) +
                                            ", expected at least " + std::to_string(distances) + ")");
    check_bias(contract, "options.content_bias", options.content_bias, {heads, head_dim});
    check_bias(contract, "options.position_bias", options.position_bias, {heads, head_dim});
  }
  /// The gradient of something by head may have extent 1 there.
  template <std::size_t Rank>
  static void check_head_gradient(detail::Contract& contract, const char* argument, const TensorView<T, Rank>& gradient,
                                  const TensorView<const T, Rank>& of, Index heads) {
    if (gradient) contract.require(static_cast<bool>(of), argument, "is the gradient of something absent");
    Shape<Rank> expected = of.shape();
    expected[0] = heads;
    contract.head_gradient(argument, gradient, expected);
  }
  static void check_bias(detail::Contract& contract, const char* argument, const TensorView<const T, 2>& bias,
                         const Shape<2>& expected) {
    if (!bias) return;
    contract.input(argument, bias);
    if (bias.extent(0) != 1) contract.equal(argument, "heads", bias.extent(0), expected[0], "query");
    contract.equal(argument, "head_dim", bias.extent(1), expected[1], "query");
  }
};

template <Storage T>
void RelativeAttention<T>::forward(detail::BandCall<T> call, const RelativeOptions<T>& options, Run run) {
  detail::Contract contract("relative_attention", run);
  call.scores = &options.scores;
  detail::check_tensors(contract, call);
  check_options(contract, call, options);
  if (!contract.accepted()) return;
  const kernel::AttentionShape<T> shape = set_options(call, options);
  detail::attend(contract, shape, detail::RelativePattern<T>(call, options), static_cast<Index>(call.keys.size()));
}

template <Storage T>
void RelativeAttention<T>::backward(detail::BandCall<T> call, const Output<const T>& out, const RelativeGradients<T>& gradients,
                                    const RelativeOptions<T>& options, bool in_pieces, Run run) {
  detail::Contract contract("relative_attention_backward", run);
  call.scores = &options.scores;
  auto wanted = detail::check_backward(contract, call, out, gradients, in_pieces);
  check_options(contract, call, options);
  check_head_gradient(contract, "gradients.position", gradients.position, options.position, call.query.extent(1));
  check_head_gradient(contract, "gradients.content_bias", gradients.content_bias, options.content_bias, call.query.extent(1));
  check_head_gradient(contract, "gradients.position_bias", gradients.position_bias, options.position_bias, call.query.extent(1));
  if (!contract.accepted()) return;
  wanted.d_position = gradients.position;
  wanted.d_content_bias = gradients.content_bias, wanted.d_position_bias = gradients.position_bias;
  const kernel::AttentionShape<T> shape = set_options(call, options);
  detail::attend_backward(contract, shape, call, wanted, detail::RelativePattern<T>(call, options),
                          static_cast<Index>(call.keys.size()));
}

/// out[b,h,i] = sum_j softmax_j(scale (<query_i + u, key_j> + <query_i + v, position_r>)) value[b,h',j] over the distances
/// r = keys - queries + i - j >= 0.
///
/// \param query (batch, heads, queries, head_dim), the newest positions; key and value as in full_attention
/// \param out   (batch, heads, queries, value_dim) and, if wanted, the log-sum-exp; written
/// \throws ContractError on shapes that disagree, a table with too few distances, outputs that overlap anything
///
/// Work: batch * heads * queries * keys * (2 head_dim + value_dim) multiply-adds. Scratch as full_attention's.
template <Element Q>
void relative_attention(TensorView<Q, 4> query, In<Q> key, In<Q> value, const Output<Value<Q>>& out,
                        const RelativeOptions<Value<Q>>& options = {}, Run run = {}) {
  RelativeAttention<Value<Q>>::forward({.query = query, .out = out, .keys = {key, value}}, options, run);
}

/// Likewise for keys in several pieces, [compressed, memory, current].
template <Element Q, KeysFor<Q> KV>
void relative_attention(TensorView<Q, 4> query, const KeyValueView<KV>& keys, const Output<Value<Q>>& out,
                        const RelativeOptions<Value<Q>>& options = {}, Run run = {}) {
  RelativeAttention<Value<Q>>::forward({.query = query, .out = out, .keys = keys}, options, run);
}

/// The gradients of sum(out * gradients.out) + sum(lse * gradients.lse) of that call of relative_attention, in the fields of
/// `gradients` that are present, overwritten.
///
/// Arguments, errors and scratch as full_attention_backward's (in double up to 552 KiB); an extent of 1 on the axis of heads
/// sums over them. Work: batch * heads * queries * keys * (6 head_dim + 2 value_dim) multiply-adds. The table's gradient is a
/// sum over the batch: with it only heads are independent, and where it has no axis of heads, tasks follow each other over all
/// of them.
template <Element Q>
void relative_attention_backward(TensorView<Q, 4> query, In<Q> key, In<Q> value, const Output<const Value<Q>>& out,
                                 const RelativeGradients<Value<Q>>& gradients, const RelativeOptions<Value<Q>>& options,
                                 Run run = {}) {
  RelativeAttention<Value<Q>>::backward({.query = query, .keys = {key, value}}, out, gradients, options, false, run);
}

/// Likewise for keys in several pieces, with gradients.segments instead of gradients.key and gradients.value.
template <Element Q, KeysFor<Q> KV>
void relative_attention_backward(TensorView<Q, 4> query, const KeyValueView<KV>& keys, const Output<const Value<Q>>& out,
                                 const RelativeGradients<Value<Q>>& gradients, const RelativeOptions<Value<Q>>& options,
                                 Run run = {}) {
  RelativeAttention<Value<Q>>::backward({.query = query, .keys = keys}, out, gradients, options, true, run);
}

/// out[r] = [sin(t f), cos(t f)] (halves one after the other) with f_a = 10000^(-2a / width), t = min(r, clamp).
///
/// \param out (distances, width), width even; written
/// \throws ContractError on an odd width, a negative clamp, elements that overlap
template <Storage T>
void sinusoidal_positions(TensorView<T, 2> out, std::optional<Index> clamp = {}) {
  const Run run;
  detail::Contract contract("sinusoidal_positions", run);
  contract.output("out", out);
  if (out.extent(1) % 2 != 0)
    contract.fail("out", "width must be even (got " + std::to_string(out.extent(1)) + ")");
  if (clamp) contract.at_least("clamp", "", *clamp, 0);
  if (!contract.accepted()) return;
  const Index half = out.extent(1) / 2;
  for (Index channel = 0; channel < half; ++channel) {
    const double frequency = std::pow(10000.0, -static_cast<double>(channel) / static_cast<double>(half));
    for (Index distance = 0; distance < out.extent(0); ++distance) {
      const double angle = static_cast<double>(clamp && *clamp < distance ? *clamp : distance) * frequency;
      out(distance, channel) = static_cast<T>(std::sin(angle));
      out(distance, half + channel) = static_cast<T>(std::cos(angle));
    }
  }
}

}  // namespace LONGVIEW_BUILD
}  // namespace longview
