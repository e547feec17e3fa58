// Training steps, the test on held-out text, and text made up by a model.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "adam.hpp"
#include "attention_operators.hpp"
#include "byte_counts.hpp"
#include "checkpoint.hpp"
#include "training_text.hpp"

inline double mean_of(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

/// Takes the steps of a checkpoint's plan one by one. Each one reads a segment of some passages; those of the next step
/// go on where they end, until the passages end.
class Trainer {
 public:
  Trainer(Checkpoint& checkpoint, std::span<const std::uint8_t> text, const ThreadPool& pool)
      : checkpoint_(checkpoint),
        text_(text),
        pool_(pool),
        gradients_(zero_transformer(checkpoint.model.kind, checkpoint.model.sizes)),
        attention_(attention_of(checkpoint.model)),
        transformer_(checkpoint.model, *attention_, pool) {
    const longview::Index length = checkpoint.plan.segments * checkpoint.model.sizes.segment;
    if (static_cast<longview::Index>(text.size()) <= length)
      throw std::runtime_error("the text to learn from has " + std::to_string(text.size()) +
                               " bytes, a passage takes " + std::to_string(length + 1));
  }

  bool finished() const { return checkpoint_.step >= checkpoint_.plan.steps; }
  /// Passages have just ended: only then can a training be saved, for memories are not.
  bool between_passages() const { return checkpoint_.step % checkpoint_.plan.segments == 0; }
  /// Returns the bits per byte before the step.
  double step() {
    const TrainingPlan& plan = checkpoint_.plan;
    const longview::Index segment = checkpoint_.model.sizes.segment, length = plan.segments * segment;
    if (between_passages()) {
      passages_ = random_passages(text_, plan.passages, length, plan.seed, checkpoint_.step / plan.segments);
      transformer_.begin(plan.passages, length);
    }
    const longview::Index first = checkpoint_.step % plan.segments * segment;
    transformer_.forward(passages_, first, segment, Transformer::Then::backward);
    const double bits = mean_of(transformer_.bits(passages_, first));
    transformer_.backward(passages_, first, gradients_);
    checkpoint_.adam.step(checkpoint_.model, gradients_, checkpoint_.step, plan.steps, pool_);
    ++checkpoint_.step;
    return bits;
  }

 private:
  Checkpoint& checkpoint_;
  std::span<const std::uint8_t> text_;
  const ThreadPool& pool_;
  ByteTransformer gradients_;
  std::unique_ptr<Attention> attention_;
  Transformer transformer_;
  Passages passages_;
};

/// Passages of 4096 bytes at equal distances, at most 64.
inline Passages held_out_passages(std::span<const std::uint8_t> text, longview::Index& length) {
  const auto size = static_cast<longview::Index>(text.size());
  if (size < 2) throw std::runtime_error("nothing is held out: the text is too short");
  length = std::min<longview::Index>(4096, size - 1);
  const longview::Index count = std::clamp<longview::Index>((size - 1) / length, 1, 64);
  Passages passages{text, {}};
  for (longview::Index at = 0; at < count; ++at) passages.first.push_back((size - 1 - length) * at / count);
  return passages;
}

/// Bits per byte of rows 0 ... length - 1 of the passages, of which each is said with at least half a segment before
/// it: by way of the memory if there is one, and otherwise by segments that overlap.
inline double bits_per_byte(const ByteTransformer& model, const Passages& passages, longview::Index length,
                            const ThreadPool& pool) {
  const std::unique_ptr<Attention> attention = attention_of(model);
  Transformer transformer(model, *attention, pool);
  const longview::Index segment = model.sizes.segment, fresh = attention->has_memory() ? segment : (segment + 1) / 2;
  double bits = 0;
  for (std::size_t begin = 0; begin < passages.first.size(); begin += 8) {
    Passages some{passages.text, {}};
    for (std::size_t at = begin; at < std::min(begin + 8, passages.first.size()); ++at)
      some.first.push_back(passages.first[at]);
    transformer.begin(some.count(), segment);
    if (attention->has_memory()) transformer.forward(some, -segment, segment, Transformer::Then::remember);
    for (longview::Index row = 0; row < length; row += fresh) {
      const longview::Index counted = std::min(fresh, length - row),
                            before = attention->has_memory() ? 0 : segment - fresh;
      transformer.forward(some, row - before, before + counted, Transformer::Then::remember);
      const std::vector<double>& all = transformer.bits(some, row - before);
      for (longview::Index at = 0; at < static_cast<longview::Index>(all.size()); ++at)
        if (at % (before + counted) >= before) bits += all[static_cast<std::size_t>(at)];
    }
  }
  return bits / static_cast<double>(passages.count() * length);
}

/// Of the same bytes, by the models that count.
inline std::array<double, ByteCounts::orders> bits_per_byte(const ByteCounts& counts, const Passages& passages,
                                                            longview::Index length) {
  std::array<double, ByteCounts::orders> sums{};
  for (const longview::Index first : passages.first)
    for (longview::Index row = 0; row < length; ++row) {
      const auto bits = counts.bits(passages.text, static_cast<std::size_t>(first + row + 1));
      for (std::size_t order = 0; order < bits.size(); ++order) sums[order] += bits[order];
    }
  for (double& sum : sums) sum /= static_cast<double>(passages.count() * length);
  return sums;
}

/// The text and `count` bytes that the model goes on with, drawn from its probabilities, the likely ones preferred.
inline std::vector<std::uint8_t> generate(const ByteTransformer& model, std::vector<std::uint8_t> text,
                                          longview::Index count, std::uint64_t seed, const ThreadPool& pool) {
  constexpr float temperature = 0.7F;
  if (text.empty()) throw std::runtime_error("the prompt is empty");
  const std::unique_ptr<Attention> attention = attention_of(model);
  Transformer transformer(model, *attention, pool);
  const longview::Index segment = model.sizes.segment;
  transformer.begin(1, segment);
  longview::Index first = 0;
  for (longview::Index made = 0; made < count; ++made) {
    const auto size = static_cast<longview::Index>(text.size());
    const Passages passage{text, {0}};
    for (; attention->has_memory() && size - first > segment; first += segment)
      transformer.forward(passage, first, segment, Transformer::Then::remember);
    first = std::max(first, size - segment);
    transformer.forward(passage, first, size - first, Transformer::Then::nothing);
    const Eigen::ArrayXf logits = transformer.logits().bottomRows(1).transpose().array();
    const Eigen::ArrayXf weights = ((logits - logits.maxCoeff()) / temperature).exp();
    const auto drawn = static_cast<float>(random_number(seed, static_cast<std::uint64_t>(made)) >> 40) * 0x1p-24F;
    float left = drawn * weights.sum();
    longview::Index next = 0;
    while (next < 255 && (left -= weights[next]) >= 0) ++next;
    text.insert(text.end(), static_cast<std::uint8_t>(next));
  }
  return text;
}
