// Every operator of longview in the place of a transformer's attention.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
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
  void begin(const ByteTransformer&, longview::Index, const ThreadPool&) override {}
  void attend(const AttentionInput& in, const ThreadPool& pool) override {
    run(pool, [&](longview::Run how) { longview::full_attention(in.query, in.key, in.value, in.out, {}, how); });
  }
};

class WindowAttention final : public Attention {
 public:
  explicit WindowAttention(longview::Index reach) : reach_(reach) {}
  void begin(const ByteTransformer&, longview::Index, const ThreadPool&) override {}
  void attend(const AttentionInput& in, const ThreadPool& pool) override {
    run(pool, [&](longview::Run how) {
      longview::sliding_window_attention(in.query, in.key, in.value, in.out,
                                         {.window = {.before = reach_, .after = reach_}}, how);
    });
  }

 private:
  longview::Index reach_;
};

/// A window, and global tokens at equal distances.
class WindowAndGlobals final : public Attention {
 public:
  WindowAndGlobals(longview::Index reach, longview::Index globals) : reach_(reach), globals_(globals) {}
  void begin(const ByteTransformer&, longview::Index length, const ThreadPool&) override {
    tokens_.clear();
    for (longview::Index at = 0; at < length; at += std::max<longview::Index>(1, length / globals_))
      tokens_.push_back(at);
  }
  void attend(const AttentionInput& in, const ThreadPool& pool) override {
    run(pool, [&](longview::Run how) {
      longview::longformer_attention(
          in.query, in.key, in.value, in.out,
          {.window = {.before = reach_, .after = reach_}, .global = {.tokens = {.indices = tokens_}}}, how);
    });
  }

 private:
  std::size_t own_bytes() const override { return tokens_.size() * sizeof(longview::Index); }

  longview::Index reach_, globals_;
  std::vector<longview::Index> tokens_;
};

/// Keys and values averaged over stretches of the document.
class PooledAttention final : public Attention {
 public:
  explicit PooledAttention(longview::Index slots) : slots_(slots) {}
  void begin(const ByteTransformer&, longview::Index length, const ThreadPool&) override {
    rate_ = std::max<longview::Index>(1, length / slots_);
  }
  void attend(const AttentionInput& in, const ThreadPool& pool) override {
    run(pool, [&](longview::Run how) {
      longview::linformer_attention(in.query, in.key, in.value, in.out, {.key_projection = {.mean_pool = rate_}}, how);
    });
  }

 private:
  longview::Index slots_, rate_ = 1;
};

class RandomFeatureAttention final : public Attention {
 public:
  explicit RandomFeatureAttention(longview::Index features) : features_(features) {}
  void begin(const ByteTransformer& model, longview::Index, const ThreadPool&) override {
    projection_.resize(features_, model.width() / model.heads);
    longview::random_features(longview::view(projection_), 1);
  }
  void attend(const AttentionInput& in, const ThreadPool& pool) override {
    run(pool, [&](longview::Run how) {
      longview::performer_attention(in.query, in.key, in.value, in.out, {.projection = longview::view(projection_)},
                                    how);
    });
  }

 private:
  std::size_t own_bytes() const override { return static_cast<std::size_t>(projection_.size()) * sizeof(float); }

  longview::Index features_;
  Matrix projection_;
};

/// What the relative operators share: a table of positions for each layer.
class RelativeOperator : public Attention {
 public:
  bool knows_positions() const override { return true; }

 protected:
  void make_tables(const ByteTransformer& model, longview::Index distances, const ThreadPool& pool) {
    heads_ = model.heads;
    const Matrix rows = sinusoids(distances, model.width());
    tables_.resize(model.layers.size());
    for (std::size_t layer = 0; layer < tables_.size(); ++layer)
      multiply(rows, model.layers[layer].position, tables_[layer], pool);
  }
  /// (heads, distances, dim)
  longview::TensorView<const float, 3> table(std::size_t layer) const {
    return heads_of(tables_[layer], heads_).select(0, 0);
  }
  std::size_t own_bytes() const override {
    std::size_t elements = 0;
    for (const Matrix& table : tables_) elements += static_cast<std::size_t>(table.size());
    return elements * sizeof(float);
  }

  longview::Index heads_ = 0;

 private:
  std::vector<Matrix> tables_;
};

class WholePast final : public RelativeOperator {
 public:
  void begin(const ByteTransformer& model, longview::Index length, const ThreadPool& pool) override {
    make_tables(model, length, pool);
  }
  void attend(const AttentionInput& in, const ThreadPool& pool) override {
    run(pool, [&](longview::Run how) {
      longview::relative_attention(in.query, in.key, in.value, in.out, {.position = table(in.layer)}, how);
    });
  }
};

/// Segment by segment; each sees itself and the keys and values of the one before.
class SegmentMemory final : public RelativeOperator {
 public:
  explicit SegmentMemory(longview::Index segment) : segment_(segment) {}
  longview::Index rows_at_once(longview::Index) const override { return segment_; }
  void begin(const ByteTransformer& model, longview::Index, const ThreadPool& pool) override {
    make_tables(model, 2 * segment_, pool);
    kept_.assign(model.layers.size(), {Matrix(0, model.width()), Matrix(0, model.width())});
  }
  void attend(const AttentionInput& in, const ThreadPool& pool) override {
    auto& [keys, values] = kept_[in.layer];
    const longview::KeyValueView<float> all{{heads_of(keys, heads_), heads_of(values, heads_)}, {in.key, in.value}};
    run(pool, [&](longview::Run how) {
      longview::relative_attention(in.query, all, in.out, {.position = table(in.layer)}, how);
    });
    keep(in.key, keys), keep(in.value, values);
  }

 private:
  static void keep(longview::TensorView<const float, 4> from, Matrix& to) {
    to.resize(from.extent(2), from.extent(1) * from.extent(3));
    for (longview::Index head = 0; head < from.extent(1); ++head)
      for (longview::Index row = 0; row < from.extent(2); ++row)
        std::copy_n(&from(0, head, row, 0), from.extent(3), &to(row, head * from.extent(3)));
  }
  std::size_t own_bytes() const override {
    std::size_t elements = 0;
    for (const auto& [keys, values] : kept_) elements += static_cast<std::size_t>(keys.size() + values.size());
    return RelativeOperator::own_bytes() + elements * sizeof(float);
  }

  longview::Index segment_;
  std::vector<std::pair<Matrix, Matrix>> kept_;
};

/// Segment by segment; each sees itself, the rows before it, and older rows compressed.
class CompressedPast final : public RelativeOperator {
 public:
  CompressedPast(longview::Index segment, longview::Index compressed, longview::Index rate)
      : segment_(segment), compressed_(compressed), rate_(rate) {}
  longview::Index rows_at_once(longview::Index) const override { return segment_; }
  void begin(const ByteTransformer& model, longview::Index, const ThreadPool& pool) override {
    make_tables(model, compressed_ + 2 * segment_ + rate_, pool);
    memories_.assign(model.layers.size(), longview::CompressiveMemory<float>(
                                              {1, 1, model.width()}, {.memory = segment_, .compressed = compressed_}));
  }
  void attend(const AttentionInput& in, const ThreadPool& pool) override {
    longview::CompressiveMemory<float>& memory = memories_[in.layer];
    const longview::KeyValueView<float> all{project(memory.compressed(), in.weights, compressed_keys_, pool),
                                            project(memory.memory(), in.weights, recent_keys_, pool),
                                            {in.key, in.value}};
    run(pool, [&](longview::Run how) {
      longview::relative_attention(in.query, all, in.out, {.position = table(in.layer)}, how);
    });
    memory.push(longview::view(in.rows).unsqueeze(0).unsqueeze(0), {.mean_pool = rate_}, pool);
  }

 private:
  /// Keys and values of rows in a memory, (rows, 2 * width) in `to`.
  longview::KeyValue<float> project(longview::TensorView<const float, 4> rows, const LayerWeights& weights, Matrix& to,
                                    const ThreadPool& pool) const {
    const Eigen::Map<const Matrix> from(rows.data_handle(), rows.extent(2), rows.extent(3));
    multiply(from, weights.qkv.bottomRows(2 * rows.extent(3)), to, pool);
    const auto both = heads_of(to, 2 * heads_);
    return {.key = both.slice(1, 0, heads_), .value = both.slice(1, heads_, heads_)};
  }
  /// A memory holds its rows twice.
  std::size_t own_bytes() const override {
    longview::Index elements = compressed_keys_.size() + recent_keys_.size();
    for (const auto& memory : memories_)
      elements += 2 * (memory.compressed().extent(2) + memory.memory().extent(2)) * memory.memory().extent(3);
    return RelativeOperator::own_bytes() + static_cast<std::size_t>(elements) * sizeof(float);
  }

  longview::Index segment_, compressed_, rate_;
  std::vector<longview::CompressiveMemory<float>> memories_;
  Matrix compressed_keys_, recent_keys_;
};
