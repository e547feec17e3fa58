// SPDX-License-Identifier: Apache-2.0
/// \file
/// Attention through random features (FAVOR+): linear in the length, both ways or causal, and as a stream.
///
/// Source: Choromanski et al., "Rethinking Attention with Performers", 2021, sections 2.2 to 2.4 and B.1, arXiv:2009.14794.
/// elu + 1: Katharopoulos et al., 2020, section 3.2, arXiv:2006.16236. Softmax features: Shen et al., 2021, section 3.2,
/// arXiv:1812.01243.
#pragma once

#include "longview/detail/favor_backward_task.hpp"
#include "longview/detail/favor_task.hpp"
#include "longview/detail/scores_check.hpp"
#include "longview/performer_state.hpp"

namespace longview::inline v0 {

/// With U = W x, h = |x|^2 / 2 of the scaled input x, m rows of W and a shift c:
/// positive: m^-1/2 exp(U - h - c); hyperbolic: (2m)^-1/2 [exp(U - h - c), exp(-U - h - c)]; trigonometric: m^-1/2
/// [cos U, sin U] exp(h - c); relu: max(U, 0); elu_plus_one: exp(U) for U <= 0, else U + 1; softmax: of queries over their
/// channels, of keys over the positions (causal: plain exp U).
enum class FeatureMap { positive, hyperbolic, trigonometric, relu, elu_plus_one, softmax };

/// The shift c of keys in exponential maps: the maximum of the exponents of the keys so far, rounded up to a power of two
/// (causal: of the prefix, so that no row depends on a later key); the maximum of U over all keys, as published; given.
/// Queries have a maximum of their own each, or the given number.
enum class Stabiliser { prefix, reference, fixed };

template <Storage T>
struct PerformerOptions {
  FeatureMap features = FeatureMap::positive;
  TensorView<const T, 2> projection{};                   ///< (rows, head_dim); the identity
  std::optional<double> input_scale{};                   ///< head_dim^(-1/4) for exponential maps, 1 for the others
  std::optional<double> epsilon{};                       ///< added to every feature; 0, for relu 1e-3
  Stabiliser stabiliser = Stabiliser::prefix;
  double fixed_shift = 0;                                ///< of Stabiliser::fixed
  bool differentiate_maximum = false;                    ///< backward: through the maximum of Stabiliser::reference
  bool causal = false;                                   ///< keys j <= i only
  bool normalize = true;                                 ///< false: the numerator alone
  double denominator_guard = 0;                          ///< g: den + 2 g where |den| <= g
  double key_sum_epsilon = 0;                            ///< added to every component of the causal key sum
  std::span<const Index> key_lengths{};                  ///< (batch); keys from there on do not exist
  TensorView<const std::uint8_t, 2> keep_keys{};         ///< (batch, keys), extents of 1 repeat; 0: the key does not exist
  /// Any of these three, where it is present: the forward call leaves it here and the backward call of the same tensors and
  /// options reads it, which is faster than making it again and gives the same bits. U where there is a projection, in a
  /// stream of the positions of the call:
  TensorView<T, 4> projected_query{};                    ///< (batch, heads, queries, rows of the projection)
  TensorView<T, 4> projected_key{};                      ///< (batch, key heads, keys, rows); 0 for a key that does not exist
  /// Not causal: (batch, key heads, value_dim + 2, features): for each feature its sum over all keys times values, its sum
  /// over all keys (0 if neither normalize nor softmax asks for it), and its shift c times log2 e, -2^100 where there is no
  /// key. These are features without m^-1/2, those of softmax exp(U - c).
  TensorView<T, 4> key_sums{};
};

/// As AttentionGradients.
template <Storage T>
struct PerformerGradients {
  TensorView<const T, 4> out{};
  TensorView<T, 4> query{}, key{}, value{};
};

enum class FeatureSide { query, key };

LONGVIEW_INLINE constexpr Index feature_count(FeatureMap map, Index projection_rows) {
  return map == FeatureMap::hyperbolic || map == FeatureMap::trigonometric ? 2 * projection_rows : projection_rows;
}

inline namespace LONGVIEW_BUILD {

/// The compiled body, named in `extern template` only.
template <Storage T>
struct PerformerAttention {
  static void forward(detail::FavorCall<T> call, PerformerState<T>* state, const PerformerOptions<T>& options, Run run);
  static void backward(detail::FavorBackwardCall<T> call, const PerformerOptions<T>& options, Run run);

  static void features(detail::FavorCall<T> call, FeatureSide side, const PerformerOptions<T>& options, Run run) {
    detail::Contract contract("performer_features", run);
    contract.input("input", call.key);
    contract.at_least("input", "head_dim", call.key.extent(3), 1);
    check_options(contract, call, options);
    if (side == FeatureSide::query && (!options.key_lengths.empty() || options.keep_keys))
      contract.fail(options.keep_keys ? "options.keep_keys" : "options.key_lengths", "has no meaning for queries");
    contract.require(options.normalize, "options.normalize", "has no meaning for features alone");
    contract.require(!(options.denominator_guard > 0), "options.denominator_guard", "has no meaning for features alone");
    contract.require(!(options.key_sum_epsilon > 0), "options.key_sum_epsilon", "has no meaning for features alone");
    contract.require(!options.projected_query, "options.projected_query", "has no meaning for features alone");
    contract.require(!options.projected_key, "options.projected_key", "has no meaning for features alone");
    contract.require(!options.key_sums, "options.key_sums", "has no meaning for features alone");
    const Index rows = call.projection ? call.projection.extent(0) : call.key.extent(3);
    contract.output("out", call.out);
    if (contract.ok())
      contract.shape("out", call.out,
                     Shape<4>{call.key.extent(0), call.key.extent(1), call.key.extent(2),
                              feature_count(options.features, rows)});
    if (!contract.accepted()) return;
    call.shape.query_side = side == FeatureSide::query;
    set_shape(call, options);
    detail::favor_features(contract, call);
  }

 private:
  static bool is_exponential(FeatureMap map) { return map <= FeatureMap::trigonometric; }

  static void check_options(detail::Contract& contract, detail::FavorCall<T>& call, const PerformerOptions<T>& options) {
    const bool exponential = is_exponential(options.features), softmax = options.features == FeatureMap::softmax;
    call.projection = options.projection, call.key_lengths = options.key_lengths, call.keep_keys = options.keep_keys;
    if (options.projection) {
      contract.input("options.projection", options.projection);
      contract.at_least("options.projection", "rows", options.projection.extent(0), 1);
      contract.equal("options.projection", "head_dim", options.projection.extent(1), call.key.extent(3),
                     call.query ? "query" : "input");
    }
    check_number(contract, "options.input_scale", options.input_scale.value_or(1), true);
    check_number(contract, "options.epsilon", options.epsilon.value_or(0), false);
    check_number(contract, "options.fixed_shift", options.fixed_shift, true);
    check_number(contract, "options.denominator_guard", options.denominator_guard, false);
    check_number(contract, "options.key_sum_epsilon", options.key_sum_epsilon, false);
    if (options.epsilon.value_or(0) > 0) {
      if (options.features == FeatureMap::trigonometric || softmax)
        contract.fail("options.epsilon", "has no meaning for trigonometric and softmax features");
      if (exponential && options.causal && options.stabiliser == Stabiliser::prefix)
        contract.fail("options.epsilon", "must be 0 under causal and Stabiliser::prefix, whose shift moves from row to row");
    }
    if (options.fixed_shift < 0 || options.fixed_shift > 0) {
      contract.require(exponential, "options.fixed_shift", "has no meaning for relu, elu_plus_one and softmax features");
      contract.require(options.stabiliser == Stabiliser::fixed, "options.fixed_shift",
                       "has no meaning without Stabiliser::fixed");
    }
    if (options.differentiate_maximum) {
      contract.require(exponential, "options.differentiate_maximum",
                       "has no meaning for relu, elu_plus_one and softmax features");
      contract.require(options.stabiliser == Stabiliser::reference, "options.differentiate_maximum",
                       "has no meaning without Stabiliser::reference");
    }
    if (softmax && options.stabiliser == Stabiliser::prefix)
      contract.fail("options.stabiliser", "prefix has no meaning for softmax features, whose channels have a sum each");
    detail::check_key_mask(contract, call);
  }
  static void check_number(detail::Contract& contract, const char* name, double value, bool may_be_negative) {
    contract.require(detail::is_finite(value), name, "must be finite");
    if (!may_be_negative && value < 0) contract.fail(name, "must be >= 0 (got " + std::to_string(value) + ")");
  }
  static void check_attention(detail::Contract& contract, detail::FavorCall<T>& call, const PerformerOptions<T>& options) {
    detail::check_keys(contract, call.query, KeyValue<T>{call.key, call.value, {}}, call.value.extent(3), "key", "value");
    if (options.causal) contract.equal("key", "length", call.key.extent(2), call.query.extent(2), "query, under causal");
    check_options(contract, call, options);
    if (options.key_sum_epsilon > 0 && !options.causal)
      contract.fail("options.key_sum_epsilon", "has no meaning without causal");
  }
  /// What the forward call writes and the backward call reads.
  static void check_saved(detail::Contract& contract, detail::FavorCall<T>& call, const PerformerOptions<T>& options,
                         bool written) {
    if (!contract.ok()) return;
    const TensorView<const T, 4>&query = call.query, &key = call.key;
    const Index rows = options.projection ? options.projection.extent(0) : key.extent(3);
    for (const auto& [name, own] : {std::pair("options.projected_query", &options.projected_query),
                                    std::pair("options.projected_key", &options.projected_key)})
      if (*own && !options.projection) contract.fail(name, "has no meaning without a projection");
    if (options.key_sums && options.causal)
      contract.fail("options.key_sums", "has no meaning under causal: every query has sums of its own");
    contract.handed_over("options.projected_query", options.projected_query,
                         Shape<4>{query.extent(0), query.extent(1), query.extent(2), rows}, written);
    contract.handed_over("options.projected_key", options.projected_key,
                         Shape<4>{key.extent(0), key.extent(1), key.extent(2), rows}, written);
    contract.handed_over(
        "options.key_sums", options.key_sums,
        Shape<4>{key.extent(0), key.extent(1), call.value.extent(3) + 2, feature_count(options.features, rows)}, written);
    call.projected_query = options.projected_query, call.projected_key = options.projected_key;
    call.key_sums = options.key_sums, call.shape.reads_saved = !written;
  }
  static void check_state(detail::Contract& contract, const detail::FavorCall<T>& call, const PerformerState<T>& state,
                          const PerformerOptions<T>& options) {
    contract.require(options.causal, "options.causal", "must be set: a state holds a prefix");
    contract.require(!is_exponential(options.features) || options.stabiliser != Stabiliser::reference,
                     "options.stabiliser", "reference has no meaning with a state: later keys are not known");
    const Index rows = options.projection ? options.projection.extent(0) : call.query.extent(3);
    const Shape<4> expected{call.query.extent(0), call.key.extent(1), feature_count(options.features, rows),
                            call.value.extent(3)};
    if (state.shape() != expected)
      contract.fail("state", "shape (got " + detail::text_of(state.shape()) + ", expected " + detail::text_of(expected) + ")");
  }

  static void set_shape(detail::FavorCall<T>& call, const PerformerOptions<T>& options) {
    kernel::FavorShape<T>& shape = call.shape;
    const bool exponential = is_exponential(options.features);
    const double epsilon = options.epsilon.value_or(options.features == FeatureMap::relu ? 1e-3 : 0);
    shape.map = static_cast<kernel::FavorMap>(options.features);
    shape.causal = options.causal, shape.normalize = options.normalize;
    shape.head_dim = call.key.extent(3), shape.value_dim = call.value.extent(3);
    shape.rows = call.projection ? call.projection.extent(0) : shape.head_dim;
    shape.halves = feature_count(options.features, 1);
    shape.projection = call.projection.data_handle();
    shape.projection_row = call.projection.stride(0), shape.projection_channel = call.projection.stride(1);
    const double dim = static_cast<double>(shape.head_dim), scale = exponential ? 1 / __builtin_sqrt(__builtin_sqrt(dim)) : 1;
    shape.input_scale = static_cast<T>(options.input_scale.value_or(scale));
    shape.epsilon = static_cast<T>(epsilon);
    const Index counted = shape.rows * (options.features == FeatureMap::hyperbolic ? 2 : 1);
    shape.ratio = exponential ? static_cast<T>(1 / __builtin_sqrt(static_cast<double>(counted))) : T{1};
    shape.guard = static_cast<T>(options.denominator_guard);
    shape.key_sum_epsilon = static_cast<T>(options.key_sum_epsilon);
    shape.exact_scale = !options.normalize || options.denominator_guard > 0 || (exponential && epsilon > 0);
    shape.given_shift = static_cast<T>(options.fixed_shift * 1.4426950408889634);
    if (!exponential) return;
    const bool running = shape.query_side || options.causal || (call.query && !(epsilon > 0));
    shape.shift = options.stabiliser == Stabiliser::fixed       ? kernel::FavorShift::given
                  : options.stabiliser == Stabiliser::reference ? kernel::FavorShift::published
                  : running                                     ? kernel::FavorShift::running
                                                                : kernel::FavorShift::rounded;
  }
};

template <Storage T>
void PerformerAttention<T>::forward(detail::FavorCall<T> call, PerformerState<T>* state, const PerformerOptions<T>& options, Run run) {
  detail::Contract contract("performer_attention", run);
  detail::check_rows(contract, call.query, Output<T>(call.out), call.value.extent(3));
  check_attention(contract, call, options);
  check_saved(contract, call, options, true);
  if (state != nullptr) check_state(contract, call, *state, options);
  if (!contract.accepted()) return;
  set_shape(call, options);
  if (!options.causal) return detail::FavorBothWays<T>(contract, call).execute();
  detail::FavorStreams<T> streams;
  if (state != nullptr) streams = {state->elements(), state->indices(), state->length()};
  if (detail::favor_causal(contract, call, streams) && state != nullptr) state->advance(call.query.extent(2));
}

template <Storage T>
void PerformerAttention<T>::backward(detail::FavorBackwardCall<T> call, const PerformerOptions<T>& options, Run run) {
  detail::Contract contract("performer_attention_backward", run);
  contract.input("query", call.query);
  contract.at_least("query", "head_dim", call.query.extent(3), 1);
  for (const Index dim : {call.query.extent(3), call.value.extent(3)})
    if (dim > detail::most_channels) contract.fail("run", "workspace byte count overflows", true);
  check_attention(contract, call, options);
  const Shape<4> rows{call.query.extent(0), call.query.extent(1), call.query.extent(2), call.value.extent(3)};
  const auto input = [&](const char* name, const TensorView<const T, 4>& view) {
    contract.input(name, view);
    contract.shape(name, view, rows);
  };
  input("out", call.result);
  contract.require(static_cast<bool>(call.d_out), "gradients.out", "is required");
  input("gradients.out", call.d_out);
  check_saved(contract, call, options, false);
  contract.gradient("gradients.query", call.d_query, call.query.shape());
  contract.gradient("gradients.key", call.d_key, call.key.shape());
  contract.gradient("gradients.value", call.d_value, call.value.shape());
  if (!contract.accepted()) return;
  set_shape(call, options);
  call.differentiate_maximum = options.differentiate_maximum;
  detail::FavorBackward<T>(contract, call).execute();
}

/// out[b,h,i] = sum_j phi(query[b,h,i]) . phi(key[b,h',j]) value[b,h',j] / sum_j phi(query[b,h,i]) . phi(key[b,h',j]), with
/// the features phi of the options and h' = h / (query heads / key heads). A row without keys is 0.
///
/// \param query (batch, heads, queries, head_dim)
/// \param key   (batch, key heads, keys, head_dim), key heads dividing heads; causal: as many keys as queries
/// \param value (batch, key heads, keys, value_dim)
/// \param out   (batch, heads, queries, value_dim), written
/// \throws ContractError on shapes that disagree, numbers out of range, options without meaning, outputs that overlap
///         anything; SizeError on overflow
///
/// Work: features * (head_dim + value_dim) multiply-adds per query and per key; causal 48 * (features + value_dim) more per
/// query. Scratch per worker, whatever the lengths: the sums and what their rounding lost, about 2 * features * value_dim
/// elements, and inputs, features and values of 48 keys, causal of as many queries, too; once per call the projection,
/// transposed. With 256 features of 64 channels in float 243 KiB, causal 311, and 68. Same bits for any executor. Parallel
/// over batch and key heads; where these are fewer than workers, sums over blocks of 96 features and then rows, causal after a
/// search for the sums where stretches of rows begin (up to two thirds more work, and a number for every key).
template <Element Q>
void performer_attention(TensorView<Q, 4> query, In<Q> key, In<Q> value, const TensorView<Value<Q>, 4>& out,
                         const PerformerOptions<Value<Q>>& options = {}, Run run = {}) {
  detail::FavorCall<Value<Q>> call;
  call.query = query, call.key = key, call.value = value, call.out = out;
  PerformerAttention<Value<Q>>::forward(call, nullptr, options, run);
}

/// Goes on from the state, which then holds these keys, too: row by row the same bits as one call over all of them. Causal,
/// and with the same options in every call. A call that fails at the door changes nothing. Parallel over batch and key heads.
template <Element Q>
void performer_attention(TensorView<Q, 4> query, In<Q> key, In<Q> value, const TensorView<Value<Q>, 4>& out,
                         PerformerState<Value<Q>>& state, const PerformerOptions<Value<Q>>& options, Run run = {}) {
  detail::FavorCall<Value<Q>> call;
  call.query = query, call.key = key, call.value = value, call.out = out;
  PerformerAttention<Value<Q>>::forward(call, &state, options, run);
}

/// The gradients of performer_attention, the shifts of the stabiliser held constant unless options.differentiate_maximum.
/// A row without keys and a key that does not exist have gradients of 0, but for the maximum that trigonometric queries have
/// in common; a NaN in a row of gradients.out reaches the gradient of its query, and of the keys and values that the row
/// attends.
///
/// \param out       what performer_attention wrote, with the same options
/// \param gradients `out` arrives, `query`, `key` and `value` leave
/// \throws ContractError as performer_attention, and where a gradient overlaps anything
///
/// Work: features * (2 head_dim + 2 value_dim) multiply-adds per query and features * (3 head_dim + 3 value_dim) per key;
/// causal features * head_dim and 48 * (4 features + 3 value_dim) more per query. With all that the forward call can leave in
/// the options, features * (head_dim + 2 value_dim) per query and per key; causal features * value_dim more per key and those
/// of the 48 per query. Sums over later queries are built up from the last one: no sum is found by subtraction, no state kept on
/// the way. Scratch per worker about features * (2 value_dim + 250) elements (not causal: 3 value_dim), and three numbers for
/// every query of a group, causal one more for every key. Same bits for any executor. Parallel over batch and key heads; where
/// these are fewer than workers, sums over blocks of 96 features, rows over stretches of positions, causal after a search for
/// the sums where these begin (up to a third more work, and 2 * features * value_dim elements for each worker).
template <Element Q>
void performer_attention_backward(TensorView<Q, 4> query, In<Q> key, In<Q> value, In<Q> out,
                                  const PerformerGradients<Value<Q>>& gradients,
                                  const PerformerOptions<Value<Q>>& options = {}, Run run = {}) {
  detail::FavorBackwardCall<Value<Q>> call;
  call.query = query, call.key = key, call.value = value, call.result = out, call.d_out = gradients.out;
  call.d_query = gradients.query, call.d_key = gradients.key, call.d_value = gradients.value;
  PerformerAttention<Value<Q>>::backward(call, options, run);
}

/// The map alone: out (batch, heads, length, features) of input (batch, heads, length, head_dim). Keys that do not exist
/// have features 0.
template <Element X>
void performer_features(TensorView<X, 4> input, FeatureSide side, const TensorView<Value<X>, 4>& out,
                        const PerformerOptions<Value<X>>& options, Run run = {}) {
  detail::FavorCall<Value<X>> call;
  call.key = input, call.out = out;
  PerformerAttention<Value<X>>::features(call, side, options, run);
}

}  // namespace LONGVIEW_BUILD
}  // namespace longview
