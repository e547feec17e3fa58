// Which key a query may see, one predicate per mask. Sources: Longformer (Beltagy et al. 2020), 3.1 and Appendix A for
// windows, dilation and global tokens; Transformer-XL (Dai et al. 2019), 3.3 for relative distances.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "reference/tensor.hpp"

namespace reference {

/// Neighbours besides the query itself, counted in steps of the dilation. Absent: unlimited.
struct Window {
  std::optional<Index> before, after;
  Index dilation = 1;
};

/// Query i stands at position i + offset among the keys.
inline bool causal_allows(Index query, Index key, Index offset) { return key <= query + offset; }

inline bool window_allows(Index query, Index key, Index offset, const Window& window) {
  const Index distance = key - (query + offset);
  if (distance % window.dilation != 0) return false;
  const Index steps = distance / window.dilation;
  if (steps < 0) return !window.before || -steps <= *window.before;
  return !window.after || steps <= *window.after;
}

inline bool length_allows(Index key, Index length) { return key < length; }

inline bool keep_mask_allows(std::uint8_t kept) { return kept != 0; }

template <typename Real>
bool bias_allows(Real bias) {
  return !(bias == -std::numeric_limits<Real>::infinity());
}

/// The row of a token that is neither global nor padding. `key_is_global` only of real tokens: padding beats global.
inline bool longformer_local_allows(Index query, Index key, const Window& window, bool causal, bool key_is_global,
                                    bool key_is_real) {
  if (!key_is_real) return false;
  if (causal && key > query) return false;
  return key_is_global || window_allows(query, key, 0, window);
}

/// The row of a global token.
inline bool longformer_global_row_allows(Index query, Index key, bool causal, bool key_is_real) {
  return key_is_real && (!causal || key <= query);
}

/// distance 0 is the query's own position; `before` absent: every earlier key.
inline bool relative_allows(Index distance, std::optional<Index> before) {
  return distance >= 0 && (!before || distance <= *before);
}

/// Absent lengths: all keys exist.
inline bool exists(const std::vector<Index>& lengths, Index batch, Index key) {
  return lengths.empty() || length_allows(key, lengths.at(to_size(batch)));
}

/// (batch, length); absent: all kept.
inline bool kept(const Tensor<std::uint8_t>& keep, Index batch, Index position) {
  return !keep.present() || keep_mask_allows(keep(batch, position));
}

}  // namespace reference
