// AdamW with a clipped gradient (Loshchilov, Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101).
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <vector>

#include "byte_transformer.hpp"

struct AdamOptions {
  double rate = 3e-3;  ///< at its highest
  double mean_decay = 0.9, square_decay = 0.98, epsilon = 1e-8;
  double weight_decay = 0.1;
  double most_norm = 1;  ///< of a gradient
};

/// The share of the highest rate: up to it over the first steps, then half a cosine down to a hundredth.
inline double rate_at(longview::Index step, longview::Index steps) {
  const double warm_up = std::min(50.0, 0.1 * static_cast<double>(steps));
  const double at = static_cast<double>(step) + 1;
  if (at < warm_up) return at / warm_up;
  const double progress = (at - warm_up) / std::max(1.0, static_cast<double>(steps) - warm_up);
  return 0.01 + 0.99 * 0.5 * (1 + std::cos(std::numbers::pi * std::min(1.0, progress)));
}

class Adam {
 public:
  Adam(const ByteTransformer& model, const AdamOptions& options)
      : options_(options),
        mean_(zero_transformer(model.kind, model.sizes)),
        square_(zero_transformer(model.kind, model.sizes)) {}

  /// Step 0, 1, ... of `steps`. Returns the norm of the gradient.
  double step(ByteTransformer& model, ByteTransformer& gradients, longview::Index step, longview::Index steps,
              const ThreadPool& pool) {
    const auto weights = matrices_of(model), gradient = matrices_of(gradients);
    const auto means = matrices_of(mean_), squares = matrices_of(square_);
    const double norm = norm_of(gradient);
    const auto clip = static_cast<float>(std::min(1.0, options_.most_norm / (norm + 1e-12)));
    const double count = static_cast<double>(step) + 1, rate = options_.rate * rate_at(step, steps);
    const auto b1 = static_cast<float>(options_.mean_decay), b2 = static_cast<float>(options_.square_decay);
    const auto size = static_cast<float>(rate / (1 - std::pow(options_.mean_decay, count)));
    const auto unbias = static_cast<float>(1 / (1 - std::pow(options_.square_decay, count)));
    const auto epsilon = static_cast<float>(options_.epsilon);
    const auto keep = static_cast<float>(1 - rate * options_.weight_decay);
    for (std::size_t at = 0; at < weights.size(); ++at)
      for_row_blocks(pool, weights[at]->rows(), [&](longview::Index first, longview::Index rows) {
        auto w = weights[at]->middleRows(first, rows).array();
        auto g = gradient[at]->middleRows(first, rows).array();
        auto mean = means[at]->middleRows(first, rows).array();
        auto square = squares[at]->middleRows(first, rows).array();
        mean = b1 * mean + (1 - b1) * clip * g;
        square = b2 * square + (1 - b2) * (clip * g).square();
        w = keep * w - size * mean / ((unbias * square).sqrt() + epsilon);
      });
    return norm;
  }

  ByteTransformer& mean() { return mean_; }
  ByteTransformer& square() { return square_; }

 private:
  static std::vector<Matrix*> matrices_of(ByteTransformer& model) {
    std::vector<Matrix*> all;
    visit_weights(model, [&](const std::string&, Matrix& matrix) { all.push_back(&matrix); });
    return all;
  }
  static double norm_of(const std::vector<Matrix*>& gradient) {
    double sum = 0;
    for (const Matrix* matrix : gradient) sum += static_cast<double>(matrix->squaredNorm());
    return std::sqrt(sum);
  }

  AdamOptions options_;
  ByteTransformer mean_, square_;
};
