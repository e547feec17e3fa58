// Compressive Transformer (Rae et al. 2019): the two memories 3.1, compression functions 3.1, attention-reconstruction
// and auto-encoding losses 3.2.
#pragma once

#include <cmath>
#include <optional>

#include "reference/attention.hpp"
#include "reference/projection.hpp"

namespace reference {

struct MemoryLengths {
  Index memory = 0, compressed = 0;
};

/// How many rows leave a memory that holds `rows`: whole groups only, so that nothing is lost. The remainder stays as
/// the memory's oldest rows, up to rate - 1 beyond its length.
inline Index rows_to_evict(Index rows, Index memory_length, Index rate) {
  return rows > memory_length ? (rows - memory_length) / rate * rate : 0;
}

/// A FIFO of rows and a FIFO of compressed rows, both (batch, heads, rows, width), oldest first, at first empty.
template <typename Real>
struct CompressiveMemory {
  MemoryLengths lengths;
  Tensor<Real> memory;
  Bounded<Real> compressed;

  struct Pushed {
    Tensor<Real> evicted;
    Bounded<Real> compressed;  // what became of them, as stored
  };

  CompressiveMemory(Index batch, Index heads, Index width, const MemoryLengths& of)
      : lengths(of), memory({batch, heads, 0, width}), compressed({batch, heads, 0, width}) {}

  Pushed push(const Tensor<Real>& segment, const Projection<Real>& compression, const Precision& precision) {
    const Tensor<Real> rows = join_rows(memory, segment);
    const Index evicted = rows_to_evict(rows.extent(2), lengths.memory, rate_of(compression));
    Pushed pushed{slice_rows(rows, 0, evicted), {}};
    pushed.compressed = stored(project(Bounded<Real>(pushed.evicted), compression, precision), precision);
    memory = slice_rows(rows, evicted, rows.extent(2) - evicted);
    const Bounded<Real> all = join_rows(compressed, pushed.compressed);
    const Index stays = std::min(lengths.compressed, all.extent(2));
    compressed = slice_rows(all, all.extent(2) - stays, stays);
    return pushed;
  }
};

/// Of (a - b)^2 over all elements: the mean, or the norm.
template <typename Real>
Estimate<Real> distance(const Bounded<Real>& a, const Bounded<Real>& b, bool mean_squared, const Precision& precision) {
  Sum<Real> squares;
  for (std::size_t at = 0; at < a.value.elements().size(); ++at) {
    const Estimate<Real> difference = plus(a.element(at), negated(b.element(at)), precision);
    squares.add(difference, difference);
  }
  const Estimate<Real> sum = squares.rounded(precision);
  if (mean_squared) return quotient(sum, Estimate<Real>{static_cast<Real>(squares.terms())}, precision);
  const Real norm = sqrt(sum.value), u = static_cast<Real>(precision.roundoff);
  const Real change = norm > Real(0) ? std::min(sum.radius / norm, sqrt(sum.radius)) : sqrt(sum.radius);
  return {norm, change + u * norm};
}

template <typename Real>
struct KeysAndValues {
  Bounded<Real> key, value;
};

/// Content attention of the same queries over the old rows and over their compression, without positions and masks.
template <typename Real>
Estimate<Real> attention_reconstruction_loss(const Bounded<Real>& query, const KeysAndValues<Real>& old,
                                             const KeysAndValues<Real>& fresh, std::optional<Real> scale,
                                             bool mean_squared, const Precision& precision) {
  Scores<Real> content;
  content.scale = scale;
  const Bounded<Real> target = attention(query, old.key, old.value, content, {}, precision).out;
  const Bounded<Real> result = attention(query, fresh.key, fresh.value, content, {}, precision).out;
  return distance(result, target, mean_squared, precision);
}

template <typename Real>
Estimate<Real> auto_encoding_loss(const Bounded<Real>& old, const Bounded<Real>& decoded, bool mean_squared,
                                  const Precision& precision) {
  return distance(old, decoded, mean_squared, precision);
}

}  // namespace reference
