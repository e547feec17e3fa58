// A small pre-norm transformer over bytes, in which the attention operator is exchangeable.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "dense_layers.hpp"
#include "longview/eigen.hpp"
#include "longview/relative_attention.hpp"
#include "safetensors.hpp"
#include "thread_pool.hpp"

/// Weights (outputs, inputs).
struct LayerWeights {
  Matrix qkv;       ///< (3 * width, width)
  Matrix mix;       ///< (width, width), of what attention gives
  Matrix position;  ///< (width, width), of relative positions
  Matrix up, down;  ///< (inner, width), (width, inner)
};

struct ByteTransformer {
  longview::Index heads = 0;
  Matrix embedding;  ///< (256, width)
  std::vector<LayerWeights> layers;

  longview::Index width() const { return embedding.cols(); }
};

/// Sizes of a transformer with random weights.
struct TransformerSizes {
  longview::Index layers = 2, width = 128, heads = 2, inner = 256;
};

inline ByteTransformer random_transformer(const TransformerSizes& sizes, unsigned seed) {
  if (sizes.width % sizes.heads != 0)
    throw std::invalid_argument(std::to_string(sizes.heads) + " heads do not divide the width " +
                                std::to_string(sizes.width));
  std::mt19937 random(seed);
  const auto matrix = [&](longview::Index rows, longview::Index columns, float size) {
    std::normal_distribution<float> normal(0, size / std::sqrt(static_cast<float>(columns)));
    return Matrix(Matrix::NullaryExpr(rows, columns, [&] { return normal(random); }));
  };
  ByteTransformer model{sizes.heads, matrix(256, sizes.width, std::sqrt(static_cast<float>(sizes.width))), {}};
  for (longview::Index layer = 0; layer < sizes.layers; ++layer) {
    LayerWeights weights{.qkv = matrix(3 * sizes.width, sizes.width, 1),
                         .mix = matrix(sizes.width, sizes.width, 1),
                         .position = matrix(sizes.width, sizes.width, 1),
                         .up = matrix(sizes.inner, sizes.width, 1),
                         .down = matrix(sizes.width, sizes.inner, 1)};
    // Tokens look for tokens like themselves, so that attention is neither uniform nor arbitrary.
    weights.qkv.middleRows(sizes.width, sizes.width) = weights.qkv.topRows(sizes.width);
    model.layers.push_back(std::move(weights));
  }
  return model;
}

/// Calls visit(name, matrix) for the weights of one layer.
template <typename Layer, typename Visit>
void visit_weights(Layer& layer, std::size_t index, const Visit& visit) {
  const std::string begin = "layers." + std::to_string(index) + ".";
  visit(begin + "qkv.weight", layer.qkv);
  visit(begin + "mix.weight", layer.mix);
  visit(begin + "position.weight", layer.position);
  visit(begin + "up.weight", layer.up);
  visit(begin + "down.weight", layer.down);
}

inline void save_transformer(const std::filesystem::path& path, const ByteTransformer& model) {
  std::vector<safetensors::FloatTensor> tensors;
  const auto add = [&](const std::string& name, const Matrix& matrix) {
    tensors.push_back({name, {matrix.rows(), matrix.cols()}, {matrix.data(), static_cast<std::size_t>(matrix.size())}});
  };
  add("embedding.weight", model.embedding);
  for (std::size_t layer = 0; layer < model.layers.size(); ++layer) visit_weights(model.layers[layer], layer, add);
  safetensors::write(path, tensors);
}

/// The sizes are those of the tensors; heads must divide the width.
inline ByteTransformer load_transformer(const std::filesystem::path& path, longview::Index heads) {
  const safetensors::File file(path);
  const auto matrix = [&](const std::string& name, std::int64_t rows, std::int64_t columns) {
    const std::vector<float> elements = file.read<float>(name, {rows, columns});
    return Matrix(
        Eigen::Map<const Matrix>(elements.data(), static_cast<Eigen::Index>(rows), static_cast<Eigen::Index>(columns)));
  };
  const auto extent = [&](const std::string& name, std::size_t axis) {
    if (file.shape(name).size() != 2)
      file.fail(name, "shape " + safetensors::text_of(file.shape(name)) + ", expected a matrix");
    return file.shape(name)[axis];
  };
  const std::int64_t width = extent("embedding.weight", 1);
  if (width < 2 || width % 2 != 0 || width % heads != 0)
    file.fail("embedding.weight",
              "width " + std::to_string(width) + ", expected an even multiple of the heads, " + std::to_string(heads));
  ByteTransformer model{heads, matrix("embedding.weight", 256, width), {}};
  for (std::size_t layer = 0; layer == 0 || file.contains("layers." + std::to_string(layer) + ".qkv.weight"); ++layer) {
    const std::int64_t inner = extent("layers." + std::to_string(layer) + ".up.weight", 0);
    LayerWeights& weights = model.layers.emplace_back();
    visit_weights(weights, layer, [&](const std::string& name, Matrix& weight) {
      const std::int64_t rows = &weight == &weights.qkv ? 3 * width : &weight == &weights.up ? inner : width;
      weight = matrix(name, rows, &weight == &weights.down ? inner : width);
    });
  }
  return model;
}

/// (rows, heads * dim) as (1, heads, rows, dim).
inline longview::TensorView<const float, 4> heads_of(const Matrix& rows, longview::Index heads) {
  return longview::split_heads(longview::view(rows), heads);
}

/// Row = distance: sinusoids.
inline Matrix sinusoids(longview::Index distances, longview::Index width) {
  Matrix rows(distances, width);
  longview::sinusoidal_positions(longview::view(rows));
  return rows;
}

/// What a layer hands to its operator, for some rows of the document.
struct AttentionInput {
  std::size_t layer;
  const LayerWeights& weights;
  const Matrix& rows;  ///< (rows, width), of which query, key and value are projections
  longview::TensorView<const float, 4> query, key, value;  ///< (1, heads, rows, dim)
  longview::TensorView<float, 4> out;
};

/// An operator in the place of attention.
class Attention {
 public:
  virtual ~Attention() = default;

  /// Before each document.
  virtual void begin(const ByteTransformer& model, longview::Index length, const ThreadPool& pool) = 0;
  virtual void attend(const AttentionInput& input, const ThreadPool& pool) = 0;
  /// How many rows go through the layers at a time: all, unless the operator has a memory of the others.
  virtual longview::Index rows_at_once(longview::Index length) const { return length; }
  /// Whether the operator itself knows where its rows stand.
  virtual bool knows_positions() const { return false; }
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

/// Runs documents through a transformer.
class Encoder {
 public:
  Encoder(const ByteTransformer& model, const ThreadPool& pool, longview::Index longest)
      : model_(model), pool_(pool), positions_(sinusoids(longest, model.width())) {}

  /// (bytes, width)
  Matrix encode(std::span<const std::uint8_t> bytes, Attention& attention) {
    const auto length = static_cast<longview::Index>(bytes.size());
    const longview::Index step = attention.rows_at_once(length);
    attention.begin(model_, length, pool_);
    const Clock::time_point start = Clock::now();
    in_attention_ = {}, extra_bytes_ = 0;
    Matrix encoded(length, model_.width());
    for (longview::Index first = 0; first < length; first += step) {
      const longview::Index count = std::min(step, length - first);
      embed(bytes, first, count, !attention.knows_positions());
      for (std::size_t layer = 0; layer < model_.layers.size(); ++layer) run(layer, attention);
      encoded.middleRows(first, count) = x_;
      extra_bytes_ = std::max(extra_bytes_, attention.extra_bytes());
    }
    total_ = Clock::now() - start;
    return encoded;
  }

  /// Of the last document.
  double seconds() const { return total_.count(); }
  double seconds_in_attention() const { return in_attention_.count(); }
  /// The most the operator held.
  std::size_t extra_bytes() const { return extra_bytes_; }

 private:
  using Clock = std::chrono::steady_clock;

  void embed(std::span<const std::uint8_t> bytes, longview::Index first, longview::Index count, bool with_positions) {
    x_.resize(count, model_.width());
    for (longview::Index row = 0; row < count; ++row) {
      x_.row(row) = model_.embedding.row(bytes[static_cast<std::size_t>(first + row)]);
      if (with_positions) x_.row(row) += positions_.row(first + row);
    }
  }

  void run(std::size_t index, Attention& attention) {
    const LayerWeights& layer = model_.layers[index];
    normalize();
    multiply(normed_, layer.qkv, qkv_, pool_);
    attended_.resize(x_.rows(), x_.cols());
    const auto all = heads_of(qkv_, 3 * model_.heads);
    const auto part = [&](longview::Index which) { return all.slice(1, which * model_.heads, model_.heads); };
    const Clock::time_point start = Clock::now();
    attention.attend({.layer = index,
                      .weights = layer,
                      .rows = normed_,
                      .query = part(0),
                      .key = part(1),
                      .value = part(2),
                      .out = longview::split_heads(longview::view(attended_), model_.heads)},
                     pool_);
    in_attention_ += Clock::now() - start;
    multiply(attended_, layer.mix, added_, pool_);
    x_ += added_;
    normalize();
    multiply(normed_, layer.up, inner_, pool_);
    inner_ = inner_.cwiseMax(0.0F);
    multiply(inner_, layer.down, added_, pool_);
    x_ += added_;
  }

  /// Rows of x to a mean square of 1.
  void normalize() {
    normed_.resize(x_.rows(), x_.cols());
    for_row_blocks(pool_, x_.rows(), [&](longview::Index first, longview::Index count) {
      for (longview::Index row = first; row < first + count; ++row)
        normed_.row(row) = x_.row(row) / std::sqrt(x_.row(row).squaredNorm() / static_cast<float>(x_.cols()) + 1e-6F);
    });
  }

  const ByteTransformer& model_;
  const ThreadPool& pool_;
  Matrix positions_;
  Matrix x_, normed_, qkv_, attended_, added_, inner_;
  std::chrono::duration<double> total_{}, in_attention_{};
  std::size_t extra_bytes_ = 0;
};
