// A small pre-norm transformer over bytes, in which the attention operator is exchangeable, forwards and backwards.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dense_layers.hpp"
#include "longview/eigen.hpp"
#include "longview/scores.hpp"
#include "longview/workspace.hpp"
#include "thread_pool.hpp"

enum class AttentionKind { full, window, performer, relative, compressive };

/// In what a model differs from another of the same kind of attention.
struct TransformerSizes {
  longview::Index layers = 2, width = 128, heads = 4, inner = 512;
  longview::Index history = 4;                 ///< bytes that a row embeds: its own and the ones before
  longview::Index segment = 256;               ///< rows that go through the layers at a time in training
  longview::Index reach = 32;                  ///< window: of the first layer, twice as much in each that follows
  longview::Index features = 64;               ///< performer
  longview::Index memory = 256;                ///< relative, compressive: rows of the past that are kept as they are
  longview::Index compressed = 128, rate = 4;  ///< compressive: rows kept compressed, and how many become one
};

/// Weights (outputs, inputs). Those that the kind of attention does not use are empty.
struct LayerWeights {
  Matrix qkv{};                              ///< (3 * width, width)
  Matrix mix{};                              ///< (width, width), of what attention gives
  Matrix up{}, down{};                       ///< (inner, width), (width, inner)
  Matrix position{};                         ///< (width, width), of relative positions
  Matrix content_bias{}, position_bias{};    ///< (heads, width / heads), likewise
  Matrix compression{}, compression_bias{};  ///< (width, width * rate), (1, width)
};

struct ByteTransformer {
  AttentionKind kind = AttentionKind::full;
  TransformerSizes sizes;
  Matrix embedding;  ///< (history * 256, width): a table for each distance
  Matrix output;     ///< (256, width)
  std::vector<LayerWeights> layers;
};

/// Calls visit(name, matrix) for all weights that there are.
template <typename Model, typename Visit>
void visit_weights(Model& model, const Visit& visit) {
  const auto present = [&](const std::string& name, auto& matrix) {
    if (matrix.size() > 0) visit(name, matrix);
  };
  present("embedding.weight", model.embedding);
  present("output.weight", model.output);
  for (std::size_t index = 0; index < model.layers.size(); ++index) {
    const std::string layer = "layers." + std::to_string(index) + ".";
    auto& weights = model.layers[index];
    present(layer + "qkv.weight", weights.qkv);
    present(layer + "mix.weight", weights.mix);
    present(layer + "up.weight", weights.up);
    present(layer + "down.weight", weights.down);
    present(layer + "position.weight", weights.position);
    present(layer + "position.content_bias", weights.content_bias);
    present(layer + "position.position_bias", weights.position_bias);
    present(layer + "compression.weight", weights.compression);
    present(layer + "compression.bias", weights.compression_bias);
  }
}

/// All weights zero.
inline ByteTransformer zero_transformer(AttentionKind kind, const TransformerSizes& sizes) {
  if (sizes.width % sizes.heads != 0)
    throw std::invalid_argument(std::to_string(sizes.heads) + " heads do not divide the width " +
                                std::to_string(sizes.width));
  const longview::Index width = sizes.width;
  ByteTransformer model{kind, sizes, Matrix::Zero(sizes.history * 256, width), Matrix::Zero(256, width), {}};
  for (longview::Index layer = 0; layer < sizes.layers; ++layer) {
    LayerWeights weights{.qkv = Matrix::Zero(3 * width, width),
                         .mix = Matrix::Zero(width, width),
                         .up = Matrix::Zero(sizes.inner, width),
                         .down = Matrix::Zero(width, sizes.inner)};
    if (kind == AttentionKind::relative || kind == AttentionKind::compressive) {
      weights.position = Matrix::Zero(width, width);
      weights.content_bias = weights.position_bias = Matrix::Zero(sizes.heads, width / sizes.heads);
    }
    if (kind == AttentionKind::compressive) {
      weights.compression = Matrix::Zero(width, width * sizes.rate);
      weights.compression_bias = Matrix::Zero(1, width);
    }
    model.layers.push_back(std::move(weights));
  }
  return model;
}

/// Normal weights that keep the size of what they are applied to; what is added to the residual stream begins at zero.
inline ByteTransformer random_transformer(AttentionKind kind, const TransformerSizes& sizes, unsigned seed) {
  ByteTransformer model = zero_transformer(kind, sizes);
  std::mt19937 random(seed);
  const auto draw = [&](Matrix& matrix, float size) {
    std::normal_distribution<float> normal(0, size / std::sqrt(static_cast<float>(matrix.cols())));
    matrix = Matrix::NullaryExpr(matrix.rows(), matrix.cols(), [&] { return normal(random); });
  };
  draw(model.embedding, 1), draw(model.output, 0.5F);
  for (LayerWeights& weights : model.layers) {
    draw(weights.qkv, 1), draw(weights.up, 1);
    if (weights.position.size() > 0) draw(weights.position, 1);
    if (weights.compression.size() > 0) {
      // Nearly the mean of the rows.
      draw(weights.compression, 0.1F);
      for (longview::Index channel = 0; channel < sizes.width; ++channel)
        weights.compression.row(channel).segment(channel * sizes.rate, sizes.rate).array() +=
            1 / static_cast<float>(sizes.rate);
    }
  }
  return model;
}

/// Places in a text, each the first byte of a passage. What stands before the text counts as 0.
struct Passages {
  std::span<const std::uint8_t> text;
  std::vector<longview::Index> first;

  longview::Index count() const { return static_cast<longview::Index>(first.size()); }
  std::uint8_t operator()(longview::Index passage, longview::Index row) const {
    const longview::Index at = first[static_cast<std::size_t>(passage)] + row;
    return at < 0 ? std::uint8_t{0} : text[static_cast<std::size_t>(at)];
  }
};

/// (passages * rows, heads * dim) as (passages, heads, rows, dim).
template <typename M>
auto heads_of(M& rows, longview::Index passages, longview::Index heads) {
  return longview::split_heads(longview::view(rows).unflatten(0, passages), heads);
}

/// What a layer hands to its operator: some rows of all passages.
struct AttentionCall {
  std::size_t layer;
  const LayerWeights& weights;
  longview::TensorView<const float, 4> rows;               ///< (passages, 1, rows, width), which qkv is applied to
  longview::TensorView<const float, 4> query, key, value;  ///< (passages, heads, rows, dim)
  longview::Output<float> out;
};
/// `out` arrives, the others leave; so do gradients of those weights that only the operator uses.
struct CallGradients {
  longview::TensorView<const float, 4> out;
  longview::TensorView<float, 4> query, key, value;
  LayerWeights& weights;
};

/// An operator in the place of attention.
class Attention {
 public:
  virtual ~Attention() = default;

  /// Before the first rows of passages that will have so many.
  virtual void begin(const ByteTransformer&, longview::Index /*passages*/, longview::Index /*rows*/,
                     const ThreadPool&) {}
  virtual void attend(const AttentionCall& call, const ThreadPool& pool) = 0;
  virtual void backward(const AttentionCall& call, const CallGradients& gradients, const ThreadPool& pool) = 0;
  /// After attend, or after backward if there is one; then with weights to whose gradients the past adds its part.
  virtual void remember(const AttentionCall&, LayerWeights* /*gradients*/, const ThreadPool&) {}
  /// How many rows see one another in one call: all, unless the operator has a memory of the others.
  virtual longview::Index rows_at_once(longview::Index rows) const { return rows; }
  virtual bool has_memory() const { return false; }
  /// Beyond query, key, value and out: scratch, as a rehearsal of the call reports it, and the operator's own buffers.
  std::size_t extra_bytes() const { return scratch_.size() + own_bytes(); }

 protected:
  virtual std::size_t own_bytes() const { return 0; }
  /// Makes a call in scratch that is kept for the next one.
  template <typename Call>
  void run(const ThreadPool& pool, const Call& call) {
    longview::DryRun rehearsal;
    call(longview::Run(pool, rehearsal));
    if (!rehearsal.ok()) throw std::runtime_error(rehearsal.error());
    if (scratch_.size() < rehearsal.workspace_bytes()) scratch_.resize(rehearsal.workspace_bytes());
    call(longview::Run(pool, scratch_));
  }

 private:
  std::vector<std::byte> scratch_;
};

/// Runs passages through a transformer.
class Transformer {
 public:
  /// What follows a forward pass: the rows join the operator's memory, or nothing does, or backward().
  enum class Then { remember, nothing, backward };

  Transformer(const ByteTransformer& model, Attention& attention, const ThreadPool& pool)
      : model_(model), attention_(attention), pool_(pool) {}

  /// Before the first rows of passages that will have so many.
  void begin(longview::Index passages, longview::Index rows) {
    attention_.begin(model_, passages, rows, pool_);
    in_attention_ = {};
  }

  /// Rows first ... first + count - 1 of all passages, which follow those that were remembered.
  void forward(const Passages& passages, longview::Index first, longview::Index count, Then then) {
    passages_ = passages.count();
    runs_.resize(then == Then::backward ? model_.layers.size() : 1);  // layers without a backward pass share a buffer
    embed(passages, first, count);
    for (std::size_t layer = 0; layer < model_.layers.size(); ++layer) {
      LayerRun& buffers = runs_[then == Then::backward ? layer : 0];
      run(layer, buffers);
      if (then == Then::remember) attention_.remember(call_of(layer, buffers), nullptr, pool_);
    }
    last_norm_.forward(x_, pool_);
  }

  /// The last rows, (passages * rows, width).
  const Matrix& encoded() const { return last_norm_.rows; }
  /// Of the last rows, (passages * rows, 256).
  const Matrix& logits() {
    multiply(last_norm_.rows, model_.output, logits_, pool_);
    return logits_;
  }

  /// After forward of the same rows: what each takes to say the next byte, (passages, rows).
  const std::vector<double>& bits(const Passages& passages, longview::Index first) {
    logits();
    targets_.resize(static_cast<std::size_t>(logits_.rows()));
    const longview::Index count = logits_.rows() / passages_;
    for (longview::Index row = 0; row < logits_.rows(); ++row)
      targets_[static_cast<std::size_t>(row)] = passages(row / count, first + row % count + 1);
    cross_entropy_bits(logits_, targets_, bits_, pool_);
    return bits_;
  }

  /// After bits() of the same rows: the gradients of their mean, but for a factor ln 2. All are overwritten.
  void backward(const Passages& passages, longview::Index first, ByteTransformer& gradients) {
    cross_entropy_backward(logits_, targets_, pool_);
    multiply_backward(logits_, model_.output, d_rows_, pool_);
    gradients.output.setZero();
    add_weight_gradient(logits_, last_norm_.rows, gradients.output, pool_);
    d_x_ = Matrix::Zero(x_.rows(), x_.cols());
    last_norm_.backward(d_rows_, d_x_, pool_);
    for (std::size_t layer = model_.layers.size(); layer-- > 0;) {
      LayerWeights& d = gradients.layers[layer];
      run_backward(layer, d);
      attention_.remember(call_of(layer, runs_[layer]), &d, pool_);
    }
    embed_backward(passages, first, gradients.embedding);
  }

  double seconds_in_attention() const { return in_attention_.count(); }

 private:
  /// What a layer keeps for its backward pass.
  struct LayerRun {
    RmsNorm attention_norm, inner_norm;
    Matrix qkv, attended, up, inner;
    std::vector<float> lse;
  };
  using Clock = std::chrono::steady_clock;

  void embed(const Passages& passages, longview::Index first, longview::Index count) {
    x_.resize(passages_ * count, model_.sizes.width);
    for_row_blocks(pool_, x_.rows(), [&](longview::Index begin, longview::Index rows) {
      for (longview::Index row = begin; row < begin + rows; ++row)
        for (longview::Index back = 0; back < model_.sizes.history; ++back) {
          const auto from = model_.embedding.row(256 * back + passages(row / count, first + row % count - back));
          if (back == 0)
            x_.row(row) = from;
          else
            x_.row(row) += from;
        }
    });
  }
  void embed_backward(const Passages& passages, longview::Index first, Matrix& gradient) const {
    gradient.setZero();
    const longview::Index count = x_.rows() / passages_;
    for_blocks(pool_, model_.sizes.width, 16, [&](longview::Index channel, longview::Index channels) {
      for (longview::Index row = 0; row < x_.rows(); ++row)
        for (longview::Index back = 0; back < model_.sizes.history; ++back)
          gradient.row(256 * back + passages(row / count, first + row % count - back)).segment(channel, channels) +=
              d_x_.row(row).segment(channel, channels);
    });
  }

  AttentionCall call_of(std::size_t layer, LayerRun& a) {
    const longview::Index heads = model_.sizes.heads, rows = x_.rows() / passages_;
    const auto all = heads_of(std::as_const(a.qkv), passages_, 3 * heads);
    return {.layer = layer,
            .weights = model_.layers[layer],
            .rows = heads_of(std::as_const(a.attention_norm.rows), passages_, 1),
            .query = all.slice(1, 0, heads),
            .key = all.slice(1, heads, heads),
            .value = all.slice(1, 2 * heads, heads),
            .out = {heads_of(a.attended, passages_, heads), longview::view_of(a.lse, {passages_, heads, rows})}};
  }

  void run(std::size_t layer, LayerRun& a) {
    const LayerWeights& weights = model_.layers[layer];
    a.attention_norm.forward(x_, pool_);
    multiply(a.attention_norm.rows, weights.qkv, a.qkv, pool_);
    a.attended.resize(x_.rows(), x_.cols());
    a.lse.resize(static_cast<std::size_t>(x_.rows() * model_.sizes.heads));
    const Clock::time_point start = Clock::now();
    attention_.attend(call_of(layer, a), pool_);
    in_attention_ += Clock::now() - start;
    multiply(a.attended, weights.mix, added_, pool_);
    x_ += added_;
    a.inner_norm.forward(x_, pool_);
    multiply(a.inner_norm.rows, weights.up, a.up, pool_);
    squared_relu(a.up, a.inner, pool_);
    multiply(a.inner, weights.down, added_, pool_);
    x_ += added_;
  }

  /// d_x, of what comes after the layer, becomes that of what comes before it.
  void run_backward(std::size_t layer, LayerWeights& d) {
    const LayerWeights& weights = model_.layers[layer];
    LayerRun& a = runs_[layer];
    multiply_backward(d_x_, weights.down, d_inner_, pool_);
    set_weight_gradient(d_x_, a.inner, d.down);
    squared_relu_backward(a.up, d_inner_, pool_);
    multiply_backward(d_inner_, weights.up, d_rows_, pool_);
    set_weight_gradient(d_inner_, a.inner_norm.rows, d.up);
    a.inner_norm.backward(d_rows_, d_x_, pool_);

    multiply_backward(d_x_, weights.mix, d_attended_, pool_);
    set_weight_gradient(d_x_, a.attended, d.mix);
    d_qkv_.resize(a.qkv.rows(), a.qkv.cols());
    const longview::Index heads = model_.sizes.heads;
    const auto all = heads_of(d_qkv_, passages_, 3 * heads);
    const Clock::time_point start = Clock::now();
    attention_.backward(call_of(layer, a),
                        {.out = heads_of(std::as_const(d_attended_), passages_, heads),
                         .query = all.slice(1, 0, heads),
                         .key = all.slice(1, heads, heads),
                         .value = all.slice(1, 2 * heads, heads),
                         .weights = d},
                        pool_);
    in_attention_ += Clock::now() - start;
    multiply_backward(d_qkv_, weights.qkv, d_rows_, pool_);
    set_weight_gradient(d_qkv_, a.attention_norm.rows, d.qkv);
    a.attention_norm.backward(d_rows_, d_x_, pool_);
  }
  void set_weight_gradient(const Matrix& d_to, const Matrix& from, Matrix& gradient) const {
    gradient.setZero();
    add_weight_gradient(d_to, from, gradient, pool_);
  }

  const ByteTransformer& model_;
  Attention& attention_;
  const ThreadPool& pool_;
  longview::Index passages_ = 0;
  Matrix x_, added_, logits_;
  RmsNorm last_norm_;
  std::vector<LayerRun> runs_;
  std::vector<std::uint8_t> targets_;
  std::vector<double> bits_;
  Matrix d_x_, d_rows_, d_inner_, d_attended_, d_qkv_;
  std::chrono::duration<double> in_attention_{};
};
