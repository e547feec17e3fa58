// Linformer (Wang et al. 2020), section 4: softmax(scale Q (E K)^T) (F V).
#pragma once

#include <optional>

#include "reference/attention.hpp"
#include "reference/projection.hpp"

namespace reference {

template <typename Real>
struct LinformerOptions {
  Projection<Real> key_projection{};
  std::optional<Projection<Real>> value_projection{};  // absent: the keys' serves both
  Tensor<std::uint8_t> keep_keys{};                    // (batch, keys); 0: the row counts as zeros
  Scores<Real> scores{};                               // over the slots; key_lengths as keep_keys
};

template <typename Real>
AttentionResult<Real> linformer_attention(const Bounded<Real>& query, const Bounded<Real>& key,
                                          const Bounded<Real>& value, const LinformerOptions<Real>& options,
                                          const Precision& precision) {
  const std::vector<Index>& lengths = options.scores.key_lengths;
  const Projection<Real>& values = options.value_projection ? *options.value_projection : options.key_projection;
  const Bounded<Real> slots =
      project(without_padding(key, options.keep_keys, lengths), options.key_projection, precision);
  const Bounded<Real> mixed = project(without_padding(value, options.keep_keys, lengths), values, precision);
  Scores<Real> over_slots = options.scores;
  over_slots.key_lengths.clear();
  return attention(query, slots, mixed, over_slots, {}, precision);
}

}  // namespace reference
