// Operators of longview in the place of a transformer's attention.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "byte_transformer.hpp"
#include "longview/compressive_memory.hpp"
#include "longview/full_attention.hpp"
#include "longview/linformer_attention.hpp"
#include "longview/longformer_attention.hpp"
#include "longview/performer_attention.hpp"
#include "longview/random_features.hpp"
#include "longview/relative_attention.hpp"
#include "longview/sliding_window_attention.hpp"

class FullAttention final : public Attention {
 public:
  void attend(const AttentionCall& of, const ThreadPool& pool) override {
    run(pool, [&](longview::Run how) {
      longview::full_attention(of.query, of.key, of.value, of.out, {.causal = true}, how);
    });
  }
  void backward(const AttentionCall& of, const CallGradients& d, const ThreadPool& pool) override {
    run(pool, [&](longview::Run how) {
      longview::full_attention_backward(of.query, of.key, of.value, of.out,
                                        {.out = d.out, .query = d.query, .key = d.key, .value = d.value},
                                        {.causal = true}, how);
    });
  }
};

/// Windows that double from layer to layer; above the first, half of the heads see as many keys farther apart.
class GrowingWindows final : public Attention {
 public:
  void begin(const ByteTransformer& model, longview::Index, longview::Index, const ThreadPool&) override {
    windows_.clear();
    for (longview::Index layer = 0; layer < model.sizes.layers; ++layer) {
      std::vector<longview::Window> heads(static_cast<std::size_t>(model.sizes.heads),
                                          {.before = model.sizes.reach << layer});
      for (std::size_t head = heads.size() / 2; head < heads.size(); ++head) heads[head].dilation = 1 + layer;
      windows_.push_back(std::move(heads));
    }
  }
  void attend(const AttentionCall& of, const ThreadPool& pool) override {
    run(pool, [&](longview::Run how) {
      longview::sliding_window_attention(of.query, of.key, of.value, of.out, {.head_windows = windows_[of.layer]}, how);
    });
  }
  void backward(const AttentionCall& of, const CallGradients& d, const ThreadPool& pool) override {
    run(pool, [&](longview::Run how) {
      longview::sliding_window_attention_backward(of.query, of.key, of.value, of.out,
                                                  {.out = d.out, .query = d.query, .key = d.key, .value = d.value},
                                                  {.head_windows = windows_[of.layer]}, how);
    });
  }

 private:
  std::vector<std::vector<longview::Window>> windows_;
};

class RandomFeatureAttention final : public Attention {
 public:
  explicit RandomFeatureAttention(longview::Index features) : features_(features) {}
  void begin(const ByteTransformer& model, longview::Index, longview::Index, const ThreadPool&) override {
    projection_.resize(features_, model.sizes.width / model.sizes.heads);
    longview::random_features(longview::view(projection_), 1);
  }
  void attend(const AttentionCall& of, const ThreadPool& pool) override {
    run(pool, [&](longview::Run how) {
      longview::performer_attention(of.query, of.key, of.value, of.out.out,
                                    {.projection = longview::view(projection_), .causal = true}, how);
    });
  }
  void backward(const AttentionCall& of, const CallGradients& d, const ThreadPool& pool) override {
    run(pool, [&](longview::Run how) {
      longview::performer_attention_backward(of.query, of.key, of.value, of.out.out,
                                             {.out = d.out, .query = d.query, .key = d.key, .value = d.value},
                                             {.projection = longview::view(projection_), .causal = true}, how);
    });
  }

 private:
  std::size_t own_bytes() const override { return static_cast<std::size_t>(projection_.size()) * sizeof(float); }

  longview::Index features_;
  Matrix projection_;
};

/// Segment by segment: each row sees the past of its segment and the rows kept of the segments before, the oldest of
/// them compressed. With relative positions where the model has weights for them, otherwise by content alone. The past
/// is constant, but its keys and values depend on the weights; the compression learns from the attention-reconstruction
/// loss.
class RecurrentAttention final : public Attention {
 public:
  struct Lengths {
    longview::Index segment = 0;  ///< 0: all rows at once
    longview::Index memory = 0, compressed = 0, rate = 1;
  };
  explicit RecurrentAttention(const Lengths& lengths) : lengths_(lengths) {}

  longview::Index rows_at_once(longview::Index rows) const override {
    return lengths_.segment == 0 ? rows : std::min(rows, lengths_.segment);
  }
  bool has_memory() const override { return lengths_.memory + lengths_.compressed > 0; }
  void begin(const ByteTransformer& model, longview::Index passages, longview::Index rows, const ThreadPool&) override {
    const TransformerSizes& sizes = model.sizes;
    heads_ = sizes.heads;
    layers_.assign(
        model.layers.size(),
        Layer{.memory = {{passages, 1, sizes.width}, {.memory = lengths_.memory, .compressed = lengths_.compressed}}});
    // No farther than training has seen.
    const longview::Index reach = rows_at_once(rows) + lengths_.memory + lengths_.compressed + lengths_.rate;
    distances_.resize(std::min(reach, farthest(sizes)), sizes.width);
    longview::sinusoidal_positions(longview::view(distances_));
  }

  void attend(const AttentionCall& of, const ThreadPool& pool) override {
    Layer& layer = layers_[of.layer];
    gather_past(of, layer, pool);
    if (layer.table.size() == 0 && is_relative(of)) multiply(distances_, of.weights.position, layer.table, pool);
    const longview::KeyValueView<float> keys{past_of(layer, of), {of.key, of.value}};
    run(pool, [&](longview::Run how) {
      if (is_relative(of))
        longview::relative_attention(of.query, keys, of.out, options_of(of, layer), how);
      else
        longview::full_attention(of.query, keys, of.out, {.causal = true}, how);
    });
  }

  void backward(const AttentionCall& of, const CallGradients& d, const ThreadPool& pool) override {
    Layer& layer = layers_[of.layer];
    const longview::KeyValueView<float> keys{past_of(layer, of), {of.key, of.value}};
    layer.d_past.resize(layer.past.rows(), layer.past.cols());
    Matrix d_table(layer.table.rows(), layer.table.cols());
    const auto d_past = heads_of(layer.d_past, of.query.extent(0), 2 * heads_);
    const longview::SegmentGradients<float> segments{{d_past.slice(1, 0, heads_), d_past.slice(1, heads_, heads_)},
                                                     {d.key, d.value}};
    run(pool, [&](longview::Run how) {
      longview::relative_attention_backward(of.query, keys, of.out,
                                            {.out = d.out,
                                             .query = d.query,
                                             .segments = segments,
                                             .position = heads_of(d_table, 1, heads_).select(0, 0),
                                             .content_bias = longview::view(d.weights.content_bias),
                                             .position_bias = longview::view(d.weights.position_bias)},
                                            options_of(of, layer), how);
    });
    d.weights.position.setZero();
    add_weight_gradient(d_table, distances_, d.weights.position, pool);
    layer.table.resize(0, 0);  // the weights are about to change
  }

  void remember(const AttentionCall& of, LayerWeights* gradients, const ThreadPool& pool) override {
    Layer& layer = layers_[of.layer];
    if (gradients != nullptr) add_weight_gradient(layer.d_past, layer.past_rows, past_weights(*gradients), pool);
    if (!has_memory()) return;
    const longview::Projection<float> compression = compression_of(of.weights);
    const auto pushed = layer.memory.push(of.rows, compression, pool);
    if (gradients != nullptr && compression.convolution)
      train_compression(of, pushed.evicted, pushed.compressed, *gradients, pool);
  }

 private:
  struct Layer {
    longview::CompressiveMemory<float> memory;
    Matrix table{};              ///< (distances, width)
    Matrix past_rows{}, past{};  ///< (passages * rows kept, width), and their keys and values, (..., 2 * width)
    Matrix d_past{};
  };

  static longview::Index farthest(const TransformerSizes& sizes) {
    return sizes.segment + sizes.memory + sizes.compressed + sizes.rate;
  }
  static bool is_relative(const AttentionCall& of) { return of.weights.position.size() > 0; }
  /// Of keys and values.
  static Eigen::Ref<const Matrix> past_weights(const LayerWeights& weights) {
    return weights.qkv.bottomRows(2 * weights.mix.rows());
  }
  static Eigen::Ref<Matrix> past_weights(LayerWeights& weights) {
    return weights.qkv.bottomRows(2 * weights.mix.rows());
  }

  longview::RelativeOptions<float> options_of(const AttentionCall& of, const Layer& layer) const {
    return {.position = heads_of(layer.table, 1, heads_).select(0, 0),
            .content_bias = longview::view(of.weights.content_bias),
            .position_bias = longview::view(of.weights.position_bias),
            .clamp = layer.table.rows() - 1};
  }
  longview::Projection<float> compression_of(const LayerWeights& weights) const {
    if (weights.compression.size() == 0) return {.mean_pool = lengths_.rate};
    return {.convolution = longview::view(weights.compression).unflatten(1, weights.mix.cols()),
            .channel_bias = longview::view(weights.compression_bias)};
  }
  longview::KeyValue<float> past_of(const Layer& layer, const AttentionCall& of) const {
    const auto both = heads_of(layer.past, of.query.extent(0), 2 * heads_);
    return {.key = both.slice(1, 0, heads_), .value = both.slice(1, heads_, heads_)};
  }

  /// (passages, 1, rows, width) behind those that `to` has of the same passage, of which there is room for `all`.
  static void copy_rows(longview::TensorView<const float, 4> from, longview::Index behind, longview::Index all,
                        Matrix& to) {
    for (longview::Index passage = 0; passage < from.extent(0); ++passage)
      for (longview::Index row = 0; row < from.extent(2); ++row)
        std::copy_n(&from(passage, 0, row, 0), from.extent(3), to.row(passage * all + behind + row).data());
  }
  static void gather_past(const AttentionCall& of, Layer& layer, const ThreadPool& pool) {
    const auto compressed = layer.memory.compressed(), memory = layer.memory.memory();
    const longview::Index all = compressed.extent(2) + memory.extent(2);
    layer.past_rows.resize(of.rows.extent(0) * all, of.rows.extent(3));
    copy_rows(compressed, 0, all, layer.past_rows);
    copy_rows(memory, compressed.extent(2), all, layer.past_rows);
    multiply(layer.past_rows, past_weights(of.weights), layer.past, pool);
  }

  /// Attention over the rows that left the memory against attention over what became of them; only the compression
  /// learns.
  void train_compression(const AttentionCall& of, longview::TensorView<const float, 4> evicted,
                         longview::TensorView<const float, 4> compressed, LayerWeights& gradients,
                         const ThreadPool& pool) {
    gradients.compression.setZero(), gradients.compression_bias.setZero();
    if (evicted.extent(2) == 0) return;
    const longview::Index passages = evicted.extent(0), width = evicted.extent(3);
    const auto keys_and_values = [&](longview::TensorView<const float, 4> from, Matrix& to) {
      Matrix rows(passages * from.extent(2), width);
      copy_rows(from, 0, from.extent(2), rows);
      multiply(rows, past_weights(of.weights), to, pool);
    };
    const auto halves = [&](auto& both) {
      const auto all = heads_of(both, passages, 2 * heads_);
      return std::pair(all.slice(1, 0, heads_), all.slice(1, heads_, heads_));
    };
    Matrix old, fresh, d_rows;
    keys_and_values(evicted, old), keys_and_values(compressed, fresh);
    Matrix d_fresh(fresh.rows(), fresh.cols());
    const auto past = halves(std::as_const(old)), now = halves(std::as_const(fresh));
    const auto d_now = halves(d_fresh);
    run(pool, [&](longview::Run how) {
      longview::attention_reconstruction_loss(of.query,
                                              {.old = {past.first, past.second},
                                               .fresh = {now.first, now.second},
                                               .d_fresh = {d_now.first, d_now.second}},
                                              how);
    });
    multiply_backward(d_fresh, past_weights(of.weights), d_rows, pool);
    run(pool, [&](longview::Run how) {
      longview::project_backward(evicted,
                                 {.out = heads_of(std::as_const(d_rows), passages, 1),
                                  .convolution = longview::view(gradients.compression).unflatten(1, width),
                                  .channel_bias = longview::view(gradients.compression_bias)},
                                 compression_of(of.weights), how);
    });
  }

  /// A memory holds its rows twice.
  std::size_t own_bytes() const override {
    longview::Index elements = distances_.size();
    for (const Layer& layer : layers_) {
      const auto compressed = layer.memory.compressed(), memory = layer.memory.memory();
      elements += 2 * memory.extent(0) * (compressed.extent(2) + memory.extent(2)) * memory.extent(3);
      elements += layer.table.size() + layer.past_rows.size() + layer.past.size();
    }
    return static_cast<std::size_t>(elements) * sizeof(float);
  }

  Lengths lengths_;
  longview::Index heads_ = 0;
  Matrix distances_;
  std::vector<Layer> layers_;
};

/// The operator that a model is trained with.
inline std::unique_ptr<Attention> attention_of(const ByteTransformer& model) {
  const TransformerSizes& sizes = model.sizes;
  switch (model.kind) {
    case AttentionKind::full:
      return std::make_unique<FullAttention>();
    case AttentionKind::window:
      return std::make_unique<GrowingWindows>();
    case AttentionKind::performer:
      return std::make_unique<RandomFeatureAttention>(sizes.features);
    case AttentionKind::relative:
      return std::make_unique<RecurrentAttention>(
          RecurrentAttention::Lengths{.segment = sizes.segment, .memory = sizes.memory});
    case AttentionKind::compressive:
      break;
  }
  return std::make_unique<RecurrentAttention>(RecurrentAttention::Lengths{
      .segment = sizes.segment, .memory = sizes.memory, .compressed = sizes.compressed, .rate = sizes.rate});
}
