// SPDX-License-Identifier: Apache-2.0
/// \file
/// The checks of queries, keys, values, output and scores that all softmax operators share.
#pragma once

#include <bit>
#include <string_view>

#include "longview/detail/band_pattern.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

/// By its bits, so that -ffast-math does not remove the question.
LONGVIEW_INLINE bool is_finite(double x) {
  return (std::bit_cast<std::uint64_t>(x) & 0x7ff0000000000000u) != 0x7ff0000000000000u;
}

inline constexpr Index most_channels = Index{1} << (sizeof(Index) == 8 ? 40 : 20);

template <typename T>
void check_query(Contract& contract, const TensorView<const T, 4>& query, Index value_dim) {
  contract.input("query", query);
  contract.at_least("query", "head_dim", query.extent(3), 1);
  // So that the sizes of scratch cannot wrap before they are checked.
  for (const Index dim : {query.extent(3), value_dim})
    if (dim > most_channels) contract.fail("run", "workspace byte count overflows", true);
}

template <typename T>
void check_rows(Contract& contract, const TensorView<const T, 4>& query, const Output<T>& out, Index value_dim) {
  check_query(contract, query, value_dim);
  contract.output("out", out.out);
  contract.shape("out", out.out, Shape<4>{query.extent(0), query.extent(1), query.extent(2), value_dim});
  if (out.lse) {
    contract.output("lse", out.lse);
    contract.shape("lse", out.lse, Shape<3>{query.extent(0), query.extent(1), query.extent(2)});
  }
}

template <typename T>
void check_keys(Contract& contract, const TensorView<const T, 4>& query, const KeyValue<T>& piece, Index value_dim,
                const char* key_name, const char* value_name) {
  const auto &key = piece.key, &value = piece.value;
  contract.input(key_name, key);
  contract.input(value_name, value);
  contract.equal(key_name, "batch", key.extent(0), query.extent(0), "query");
  if (query.extent(1) > 0) contract.at_least(key_name, "heads", key.extent(1), 1);
  if (key.extent(1) > 0 && query.extent(1) % key.extent(1) != 0)
    contract.fail(key_name, "heads " + std::to_string(key.extent(1)) + " do not divide query heads " +
                                std::to_string(query.extent(1)));
  contract.equal(key_name, "head_dim", key.extent(3), query.extent(3), "query");
  contract.equal(value_name, "batch", value.extent(0), query.extent(0), "query");
  contract.equal(value_name, "heads", value.extent(1), key.extent(1), "key");
  contract.equal(value_name, "length", value.extent(2), key.extent(2), "key");
  contract.equal(value_name, "value_dim", value.extent(3), value_dim, "the first value");
}

/// Names of a segment of a KeyValueView in messages.
struct SegmentNames {
  const char *key, *value;
};
inline SegmentNames segment_names(std::size_t segment, std::size_t count) {
  constexpr SegmentNames names[] = {
      {"keys[0].key", "keys[0].value"}, {"keys[1].key", "keys[1].value"}, {"keys[2].key", "keys[2].value"},
      {"keys[3].key", "keys[3].value"}};
  return count == 1 ? SegmentNames{"key", "value"} : names[segment];
}

/// Checks the keys and values of a call and finds the positions of their segments.
template <typename T>
void check_segments(Contract& contract, BandCall<T>& call) {
  const Index value_dim = call.keys[0].value.extent(3);
  for (std::size_t s = 0; s < call.keys.size(); ++s) {
    const SegmentNames names = segment_names(s, call.keys.size());
    check_keys(contract, call.query, call.keys[s], value_dim, names.key, names.value);
    contract.equal(names.key, "heads", call.keys[s].key.extent(1), call.keys[0].key.extent(1), "the first segment");
    const Index position = call.keys[s].position.value_or(call.positions);
    if (position < call.positions)
      contract.fail(names.key, "position: segments must not go back (got " + std::to_string(position) +
                                   ", expected at least " + std::to_string(call.positions) + ")");
    if (position >= kernel::unreachable / 4)
      contract.fail(names.key, "position too large (got " + std::to_string(position) + ")", true);
    call.segment_position[s] = position;
    call.positions = position + call.keys[s].key.extent(2);
  }
}

/// Checks the tensors of a call and finds the positions of its key segments.
template <typename T>
void check_tensors(Contract& contract, BandCall<T>& call) {
  check_rows(contract, call.query, call.out, call.keys[0].value.extent(3));
  check_segments(contract, call);
}

/// The name of a field in messages.
struct FieldName {
  const char *prefix, *field;
  operator std::string() const { return std::string(prefix) + field; }
};

template <typename T, typename Name>
void check_scale(Contract& contract, const Name& name, const std::optional<double>& scale) {
  if (scale && !is_finite(*scale)) contract.fail(name, "must be finite");
  if (scale && !(__builtin_fabs(*scale) <= static_cast<double>((std::numeric_limits<T>::max)())))
    contract.fail(name, "beyond the range of the elements");
}

/// Checks what is said about scores; `prefix` is where the aggregate stands, "options." or "options.scores.".
template <typename T>
void check_scores(Contract& contract, const BandCall<T>& call, const char* prefix, bool position_matters,
                  bool default_is_bottom_right) {
  const Scores<T>& scores = *call.scores;
  const auto name = [&](const char* field) { return FieldName{prefix, field}; };
  const bool nested = std::string_view(prefix) != "options.";
  const Index batch = call.query.extent(0), heads = call.query.extent(1), queries = call.query.extent(2);
  Index columns = 0;
  for (std::size_t s = 0; s < call.keys.size(); ++s) columns += call.keys[s].key.extent(2);
  check_scale<T>(contract, name("scale"), scores.scale);
  if (scores.softcap && !(is_finite(*scores.softcap) && *scores.softcap > 0))
    contract.fail(name("softcap"), "must be finite and > 0 (got " + std::to_string(*scores.softcap) + ")");
  if (!default_is_bottom_right && !scores.alignment && position_matters && queries != call.positions)
    contract.fail(name("alignment"), "must be named when lengths differ (got " + std::to_string(queries) + " queries, " +
                                         std::to_string(call.positions) + " keys)");
  if (scores.alignment) {
    const Index offset = scores.alignment->offset(0, 0);
    if (offset >= kernel::unreachable / 4 || offset <= -kernel::unreachable / 4)
      contract.fail(name("alignment"), "offset too large (got " + std::to_string(offset) + ")");
  }
  if (!scores.key_lengths.empty()) {
    contract.size(name("key_lengths"), scores.key_lengths, batch, "batch");
    for (std::size_t item = 0; contract.ok() && item < scores.key_lengths.size(); ++item)
      if (scores.key_lengths[item] < 0 || scores.key_lengths[item] > call.positions)
        contract.fail(std::string(name("key_lengths")) + "[" + std::to_string(item) + "]",
                      "out of range (got " + std::to_string(scores.key_lengths[item]) + ", expected 0 to " +
                          std::to_string(call.positions) + ")");
  }
  if (scores.keep_mask) {
    contract.input(nested ? "options.scores.keep_mask" : "options.keep_mask", scores.keep_mask);
    contract.broadcasts(name("keep_mask"), scores.keep_mask, Shape<4>{batch, heads, queries, columns});
  }
  if (scores.bias) {
    contract.input(nested ? "options.scores.bias" : "options.bias", scores.bias);
    contract.broadcasts(name("bias"), scores.bias, Shape<4>{batch, heads, queries, columns});
  }
  if (!scores.alibi_slopes.empty()) contract.size(name("alibi_slopes"), scores.alibi_slopes, heads, "query");
  if (!scores.sinks.empty()) contract.size(name("sinks"), scores.sinks, heads, "query");
  if (!(scores.dropout.probability >= 0 && scores.dropout.probability <= 1))
    contract.fail(name("dropout.probability"), "must be in [0, 1] (got " + std::to_string(scores.dropout.probability) + ")");
}

/// A field of the window of all heads, or of one.
struct WindowFieldName {
  Index head;  // -1: all
  const char* field;
  operator std::string() const {
    return head < 0 ? std::string("options.window.") + field
                    : "options.head_windows[" + std::to_string(head) + "]." + field;
  }
};
inline void check_window(Contract& contract, Index head, const Window& window) {
  contract.at_least(WindowFieldName{head, "before"}, "", window.before, 0);
  contract.at_least(WindowFieldName{head, "after"}, "", window.after, 0);
  contract.at_least(WindowFieldName{head, "dilation"}, "", window.dilation, 1);
}
inline void check_windows(Contract& contract, const Window& window, std::span<const Window> head_windows, Index heads) {
  check_window(contract, -1, window);
  if (head_windows.empty()) return;
  contract.size("options.head_windows", head_windows, heads, "query");
  for (std::size_t head = 0; contract.ok() && head < head_windows.size(); ++head)
    check_window(contract, static_cast<Index>(head), head_windows[head]);
}

}  // namespace longview
