// SPDX-License-Identifier: Apache-2.0
/// \file
/// The checks of what arrives with a backward call and of where its gradients go.
#pragma once

#include "longview/detail/backward_task.hpp"
#include "longview/detail/scores_check.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

/// The forward call's results and their gradients.
template <typename T>
void check_arrivals(Contract& contract, const BandCall<T>& call, const Output<const T>& out, const TensorView<const T, 4>& d_out,
                    const TensorView<const T, 3>& d_lse) {
  const auto& query = call.query;
  const Shape<4> rows{query.extent(0), query.extent(1), query.extent(2), call.keys[0].value.extent(3)};
  const Shape<3> row_numbers{rows[0], rows[1], rows[2]};
  contract.input("out", out.out);
  contract.shape("out", out.out, rows);
  contract.require(static_cast<bool>(out.lse), "lse", "is required");
  contract.input("lse", out.lse);
  contract.shape("lse", out.lse, row_numbers);
  contract.require(static_cast<bool>(d_out), "gradients.out", "is required");
  contract.input("gradients.out", d_out);
  contract.shape("gradients.out", d_out, rows);
  if (!d_lse) return;
  contract.input("gradients.lse", d_lse);
  contract.shape("gradients.lse", d_lse, row_numbers);
}

/// Checks the gradients of keys and values and places them in the call.
template <typename T>
void check_key_gradients(Contract& contract, BandCall<T>& call, const TensorView<T, 4>& d_key, const TensorView<T, 4>& d_value,
                         const SegmentGradients<T>& segments, bool in_pieces) {
  if (in_pieces) {
    if (d_key || d_value)
      contract.fail(d_key ? "gradients.key" : "gradients.value", "has no meaning for a KeyValueView: gradients.segments has");
    if (segments.size() != 0)
      contract.equal("gradients.segments", "number", static_cast<Index>(segments.size()), static_cast<Index>(call.keys.size()),
                     "keys");
    if (!contract.ok()) return;
    call.d_keys = segments;
  } else {
    contract.require(segments.size() == 0, "gradients.segments", "has meaning for a KeyValueView only");
    call.d_keys = {{d_key, d_value}};
  }
  constexpr SegmentNames names[] = {{"gradients.segments[0].key", "gradients.segments[0].value"},
                                    {"gradients.segments[1].key", "gradients.segments[1].value"},
                                    {"gradients.segments[2].key", "gradients.segments[2].value"},
                                    {"gradients.segments[3].key", "gradients.segments[3].value"}};
  for (std::size_t s = 0; s < call.keys.size(); ++s) {
    contract.gradient(in_pieces ? names[s].key : "gradients.key", call.d_keys[s].key, call.keys[s].key.shape());
    contract.gradient(in_pieces ? names[s].value : "gradients.value", call.d_keys[s].value, call.keys[s].value.shape());
  }
}

template <typename T>
void check_list_gradient(Contract& contract, const char* name, std::span<T> gradient, std::span<const T> of, Index heads) {
  if (gradient.empty()) return;
  contract.output(name, TensorView<T, 1>(gradient.data(), {static_cast<Index>(gradient.size())}));
  contract.require(!of.empty(), name, "is the gradient of something absent");
  contract.size(name, gradient, heads, "query");
}

template <typename T>
void check_score_gradients(Contract& contract, const BandCall<T>& call, const ScoreGradients<T>& gradients) {
  const Index heads = call.query.extent(1);
  if (gradients.bias) {
    Index columns = 0;
    for (std::size_t s = 0; s < call.keys.size(); ++s) columns += call.keys[s].key.extent(2);
    contract.output("gradients.scores.bias", gradients.bias);
    contract.require(static_cast<bool>(call.scores->bias), "gradients.scores.bias", "is the gradient of something absent");
    contract.broadcasts("gradients.scores.bias", gradients.bias,
                        Shape<4>{call.query.extent(0), heads, call.query.extent(2), columns});
  }
  check_list_gradient<T>(contract, "gradients.scores.alibi_slopes", gradients.alibi_slopes, call.scores->alibi_slopes, heads);
  check_list_gradient<T>(contract, "gradients.scores.sinks", gradients.sinks, call.scores->sinks, heads);
}

/// Checks all of a backward call but its options. Returns what arrives and what is wanted.
template <typename T, typename Gradients>
BackwardCall<T> check_backward(Contract& contract, BandCall<T>& call, const Output<const T>& out, const Gradients& gradients,
                               bool in_pieces) {
  check_query(contract, call.query, call.keys[0].value.extent(3));
  check_segments(contract, call);
  check_arrivals(contract, call, out, gradients.out, gradients.lse);
  contract.gradient("gradients.query", gradients.query, call.query.shape());
  if constexpr (requires { gradients.segments; })
    check_key_gradients(contract, call, gradients.key, gradients.value, gradients.segments, in_pieces);
  else
    check_key_gradients(contract, call, gradients.key, gradients.value, {}, in_pieces);
  check_score_gradients(contract, call, gradients.scores);
  return {.out = out, .d_out = gradients.out, .d_lse = gradients.lse, .d_query = gradients.query, .scores = gradients.scores};
}

}  // namespace longview
