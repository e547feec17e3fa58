// Operators that long_document puts into the place of the one that a model was trained with. They only encode.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "attention_operators.hpp"

class OnlyEncodes : public Attention {
 public:
  void backward(const AttentionCall&, const CallGradients&, const ThreadPool&) final {
    throw std::logic_error("this operator only encodes");
  }
};

class WindowAttention final : public OnlyEncodes {
 public:
  explicit WindowAttention(longview::Index reach) : reach_(reach) {}
  void attend(const AttentionCall& of, const ThreadPool& pool) override {
    run(pool, [&](longview::Run how) {
      longview::sliding_window_attention(of.query, of.key, of.value, of.out, {.window = {.before = reach_}}, how);
    });
  }

 private:
  longview::Index reach_;
};

/// A window, and global tokens at equal distances.
class WindowAndGlobals final : public OnlyEncodes {
 public:
  WindowAndGlobals(longview::Index reach, longview::Index globals) : reach_(reach), globals_(globals) {}
  void begin(const ByteTransformer&, longview::Index, longview::Index rows, const ThreadPool&) override {
    tokens_.clear();
    for (longview::Index at = 0; at < rows; at += std::max<longview::Index>(1, rows / globals_)) tokens_.push_back(at);
  }
  void attend(const AttentionCall& of, const ThreadPool& pool) override {
    run(pool, [&](longview::Run how) {
      longview::longformer_attention(of.query, of.key, of.value, of.out,
                                     {.window = {.before = reach_, .after = reach_},
                                      .global = {.tokens = {.indices = tokens_}},
                                      .scores = {.causal = true}},
                                     how);
    });
  }

 private:
  std::size_t own_bytes() const override { return tokens_.size() * sizeof(longview::Index); }

  longview::Index reach_, globals_;
  std::vector<longview::Index> tokens_;
};

/// Keys and values averaged over stretches of the document, those to come as well.
class PooledAttention final : public OnlyEncodes {
 public:
  explicit PooledAttention(longview::Index slots) : slots_(slots) {}
  void begin(const ByteTransformer&, longview::Index, longview::Index rows, const ThreadPool&) override {
    rate_ = std::max<longview::Index>(1, rows / slots_);
  }
  void attend(const AttentionCall& of, const ThreadPool& pool) override {
    run(pool, [&](longview::Run how) {
      longview::linformer_attention(of.query, of.key, of.value, of.out, {.key_projection = {.mean_pool = rate_}}, how);
    });
  }

 private:
  longview::Index slots_, rate_ = 1;
};
