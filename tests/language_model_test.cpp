// SPDX-License-Identifier: Apache-2.0
// The transformer of the examples, its training and its checkpoints.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "../examples/trainer.hpp"

namespace {

using longview::Index;

/// Words in an order that a model has something to learn from.
std::vector<std::uint8_t> text_of(std::size_t bytes) {
  const std::vector<std::string> words{"int ", "main", "(",      ")",    " {\n", "  return ",
                                       "0;\n", "}\n",  "float ", "x = ", "y;\n"};
  std::string text;
  for (std::uint64_t word = 0; text.size() < bytes; ++word) text += words[random_number(7, word) % words.size()];
  return {text.begin(), text.begin() + static_cast<std::ptrdiff_t>(bytes)};
}

constexpr TransformerSizes small{.layers = 2,
                                 .width = 16,
                                 .heads = 2,
                                 .inner = 24,
                                 .history = 3,
                                 .segment = 12,
                                 .reach = 3,
                                 .features = 8,
                                 .memory = 12,
                                 .compressed = 6,
                                 .rate = 3};

Checkpoint checkpoint_of(AttentionKind kind, Index steps, const TransformerSizes& sizes = small, Index passages = 3) {
  const bool has_memory = kind == AttentionKind::relative || kind == AttentionKind::compressive;
  const TrainingPlan plan{
      .steps = steps, .passages = passages, .segments = has_memory ? 4 : 1, .seed = 5, .rate = 0.01};
  ByteTransformer model = random_transformer(kind, sizes, 3);
  Adam adam(model, {.rate = plan.rate});
  return {std::move(model), plan, 0, std::move(adam)};
}

std::vector<double> train(Checkpoint& checkpoint, Index steps, std::span<const std::uint8_t> text, Index threads) {
  const ThreadPool pool(threads);
  Trainer trainer(checkpoint, text, pool);
  std::vector<double> bits;
  for (Index step = 0; step < steps; ++step) bits.push_back(trainer.step());
  return bits;
}

std::map<std::string, Matrix> weights_of(const ByteTransformer& model) {
  std::map<std::string, Matrix> all;
  visit_weights(model, [&](const std::string& name, const Matrix& matrix) { all.emplace(name, matrix); });
  return all;
}
void expect_same_bits(const Checkpoint& one, const Checkpoint& other) {
  const auto expected = weights_of(one.model), got = weights_of(other.model);
  ASSERT_EQ(expected.size(), got.size());
  for (const auto& [name, matrix] : expected) EXPECT_TRUE(matrix == got.at(name)) << name;
}

/// A directory of the test's own, gone when it ends.
class Files {
 public:
  Files() {
    const auto* const test = ::testing::UnitTest::GetInstance()->current_test_info();
    std::string name = std::string("language_model.") + test->test_suite_name() + "." + test->name();
    std::replace(name.begin(), name.end(), '/', '.');
    path_ = std::filesystem::path(::testing::TempDir()) / name;
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  Files(const Files&) = delete;
  Files& operator=(const Files&) = delete;
  ~Files() { std::filesystem::remove_all(path_); }
  std::filesystem::path operator()(const std::string& name) const { return path_ / name; }
  std::filesystem::path write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
    return path_ / name;
  }

 private:
  std::filesystem::path path_;
};

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

class EveryAttention : public ::testing::TestWithParam<AttentionKind> {};
INSTANTIATE_TEST_SUITE_P(Kinds, EveryAttention,
                         ::testing::Values(AttentionKind::full, AttentionKind::window, AttentionKind::performer,
                                           AttentionKind::relative, AttentionKind::compressive),
                         [](const auto& kind) { return std::string(name_of(kind.param)); });

/// The loss of the second segment of some passages, after a step on the first that leaves its rows in the memory.
class SecondSegment {
 public:
  explicit SecondSegment(AttentionKind kind) : model_(random_transformer(kind, small, 3)) {
    // Projections that begin at zero would hide what comes before them.
    for (LayerWeights& layer : model_.layers)
      for (Matrix* matrix :
           {&layer.mix, &layer.down, &layer.content_bias, &layer.position_bias, &layer.compression_bias})
        for (Index at = 0; at < matrix->size(); ++at)
          matrix->data()[at] = 0.2F * std::sin(static_cast<float>(3 * at + matrix->cols()));
  }

  /// In nats, the mean over the rows; with weights moved after the first segment.
  double loss(const std::string& name, const Matrix& direction, float size) {
    ByteTransformer model = model_;
    Rows rows(*this, model);
    visit_weights(model, [&](const std::string& at, Matrix& matrix) {
      if (at == name) matrix += size * direction;
    });
    rows.transformer.forward(passages_, small.segment, small.segment, Transformer::Then::nothing);
    return std::log(2.0) * mean_of(rows.transformer.bits(passages_, small.segment));
  }
  ByteTransformer gradients() {
    Rows rows(*this, model_);
    rows.transformer.forward(passages_, small.segment, small.segment, Transformer::Then::backward);
    rows.transformer.bits(passages_, small.segment);
    ByteTransformer gradients = zero_transformer(model_.kind, small);
    rows.transformer.backward(passages_, small.segment, gradients);
    return gradients;
  }

 private:
  struct Rows {
    Rows(SecondSegment& of, const ByteTransformer& model)
        : attention(attention_of(model)), transformer(model, *attention, of.pool_) {
      ByteTransformer ignored = zero_transformer(model.kind, small);
      transformer.begin(of.passages_.count(), 2 * small.segment);
      transformer.forward(of.passages_, 0, small.segment, Transformer::Then::backward);
      transformer.bits(of.passages_, 0);
      transformer.backward(of.passages_, 0, ignored);
    }
    std::unique_ptr<Attention> attention;
    Transformer transformer;
  };

  ByteTransformer model_;
  ThreadPool pool_{1};
  std::vector<std::uint8_t> text_ = text_of(200);
  Passages passages_{text_, {0, 50, 99}};
};

// Differences of fourth order in float, along the gradient and along a direction of its own, for each matrix of
// weights. Steps of 0.01 and 0.02 leave an error of about 1e-6 / step, from rounding.
TEST_P(EveryAttention, GradientsAreDerivatives) {
  SecondSegment segment(GetParam());
  for (const auto& [name, gradient] : weights_of(segment.gradients())) {
    if (name.find("compression") != std::string::npos) continue;  // learns from a loss of its own
    const float length = gradient.norm();
    ASSERT_GT(length, 1e-5F) << name;
    const Matrix other = Matrix::NullaryExpr(gradient.rows(), gradient.cols(), [](Index row, Index column) {
      return std::sin(static_cast<float>(1 + 7 * row + 13 * column));
    });
    for (const Matrix& along : {Matrix(gradient / length), Matrix(other / other.norm())}) {
      const auto difference = [&, &name = name](float step) {
        return segment.loss(name, along, step) - segment.loss(name, along, -step);
      };
      const double expected = gradient.cwiseProduct(along).cast<double>().sum();
      const double got = (8 * difference(0.01F) - difference(0.02F)) / (12 * 0.01);
      EXPECT_NEAR(got, expected, 2e-3 * static_cast<double>(length) + 1e-4) << name;
    }
  }
}

TEST_P(EveryAttention, LearnsText) {
  const std::vector<std::uint8_t> text = text_of(4000);
  Checkpoint checkpoint = checkpoint_of(GetParam(), 80);
  const std::vector<double> bits = train(checkpoint, 80, text, 2);
  EXPECT_GT(bits.front(), 7);
  EXPECT_LT(mean_of(std::span(bits).last(8)), 3);
}

TEST_P(EveryAttention, SameBitsForAnyThreads) {
  const std::vector<std::uint8_t> text = text_of(4000);
  TransformerSizes sizes = small;
  sizes.width = 32, sizes.inner = 80;  // more rows and more outputs than a block has
  Checkpoint one = checkpoint_of(GetParam(), 8, sizes, 25), two = one, three = one;
  const std::vector<double> bits = train(one, 8, text, 1);
  EXPECT_EQ(bits, train(two, 8, text, 2));
  EXPECT_EQ(bits, train(three, 8, text, 3));
  expect_same_bits(one, two);
  expect_same_bits(one, three);
}

TEST_P(EveryAttention, ResumedTrainingHasTheSameBits) {
  const Files files;
  const std::vector<std::uint8_t> text = text_of(4000);
  Checkpoint whole = checkpoint_of(GetParam(), 8), half = whole;
  const std::vector<double> bits = train(whole, 8, text, 2);
  train(half, 4, text, 2);
  save_checkpoint(files("half.safetensors"), half);
  Checkpoint resumed = load_checkpoint(files("half.safetensors"));
  EXPECT_EQ(resumed.step, 4);
  EXPECT_EQ(std::vector(bits.begin() + 4, bits.end()), train(resumed, 4, text, 1));
  expect_same_bits(whole, resumed);
}

TEST_P(EveryAttention, GeneratesTheSameAgain) {
  const ThreadPool one(1), two(2);
  const std::vector<std::uint8_t> prompt = text_of(20);
  Checkpoint checkpoint = checkpoint_of(GetParam(), 4);
  const std::vector<std::uint8_t> text = generate(checkpoint.model, prompt, 30, 1, one);
  EXPECT_EQ(text.size(), 50U);
  EXPECT_TRUE(std::equal(prompt.begin(), prompt.end(), text.begin()));
  EXPECT_EQ(text, generate(checkpoint.model, prompt, 30, 1, two));
  EXPECT_NE(text, generate(checkpoint.model, prompt, 30, 2, two));
}

// Of a segment of eight rows, a memory of four keeps the last; the others leave, and the compression learns from them.
TEST(Compression, LearnsFromTheReconstructionLoss) {
  TransformerSizes sizes = small;
  sizes.memory = sizes.compressed = 4, sizes.rate = 2;
  const Index width = sizes.width, heads = sizes.heads;
  const ThreadPool pool(1);
  ByteTransformer model = random_transformer(AttentionKind::compressive, sizes, 3);
  LayerWeights& weights = model.layers[0];
  const auto matrix = [&](Index columns, float frequency) {
    return Matrix(Matrix::NullaryExpr(8, columns, [=](Index row, Index column) {
      return std::sin(frequency * static_cast<float>(1 + row * columns + column));
    }));
  };
  const Matrix rows = matrix(width, 1.3F), qkv = matrix(3 * width, 0.7F);
  const auto query = heads_of(qkv, 1, 3 * heads).slice(1, 0, heads);
  Matrix unused(8, width);

  ByteTransformer gradients = zero_transformer(AttentionKind::compressive, sizes);
  RecurrentAttention attention({.segment = 8, .memory = 4, .compressed = 4, .rate = 2});
  attention.begin(model, 1, 8, pool);
  const AttentionCall call{.layer = 0,
                           .weights = weights,
                           .rows = heads_of(rows, 1, 1),
                           .query = query,
                           .key = query,
                           .value = query,
                           .out = {heads_of(unused, 1, heads)}};
  attention.attend(call, pool);
  attention.remember(call, &gradients.layers[0], pool);

  const auto loss = [&] {
    const Matrix old = rows.topRows(4) * weights.qkv.bottomRows(2 * width).transpose();
    Matrix compressed(2, width);
    for (Index row = 0; row < 2; ++row)
      for (Index out = 0; out < width; ++out) {
        double sum = weights.compression_bias(0, out);
        for (Index in = 0; in < width; ++in)
          for (Index back = 0; back < 2; ++back)
            sum += static_cast<double>(weights.compression(out, 2 * in + back) * rows(2 * row + back, in));
        compressed(row, out) = static_cast<float>(sum);
      }
    const Matrix fresh = compressed * weights.qkv.bottomRows(2 * width).transpose();
    const auto of_old = heads_of(old, 1, 2 * heads), of_fresh = heads_of(fresh, 1, 2 * heads);
    return longview::attention_reconstruction_loss(
        query, {.old = {of_old.slice(1, 0, heads), of_old.slice(1, heads, heads)},
                .fresh = {of_fresh.slice(1, 0, heads), of_fresh.slice(1, heads, heads)}});
  };
  LayerWeights& d = gradients.layers[0];
  for (const auto& [weight, gradient] :
       {std::pair(&weights.compression, &d.compression), std::pair(&weights.compression_bias, &d.compression_bias)}) {
    const float length = gradient->norm(), step = 0.01F;
    ASSERT_GT(length, 1e-4F);
    const Matrix before = *weight;
    *weight = before + step / length * *gradient;
    const double ahead = loss();
    *weight = before - step / length * *gradient;
    const double behind = loss();
    *weight = before;
    EXPECT_NEAR((ahead - behind) / (2 * static_cast<double>(step)), length, 1e-2 * static_cast<double>(length));
  }
}

TEST(ByteCounts, MixOrdersByWittenAndBell) {
  const std::string training = "abab";
  const std::vector<std::uint8_t> text(training.begin(), training.end());
  const ByteCounts counts(text);
  const std::vector<std::uint8_t> said{'a', 'b', 'a'};
  // Order 0: a and b twice each of four. Order 1: after a, always b, seen twice. Order 2: after ab, a, seen once.
  const double order_0 = (2 + 2 / 256.0) / 6, order_1_b = (2 + order_0) / 3, order_1_a = (1 + order_0) / 2;
  EXPECT_NEAR(counts.bits(said, 1)[0], -std::log2(order_0), 1e-12);
  EXPECT_NEAR(counts.bits(said, 1)[1], -std::log2(order_1_b), 1e-12);
  EXPECT_NEAR(counts.bits(said, 1)[2], -std::log2(order_1_b), 1e-12);  // there is no order 2 yet
  EXPECT_NEAR(counts.bits(said, 2)[2], -std::log2((1 + order_1_a) / 2), 1e-12);
}

TEST(ByteCounts, ProbabilitiesAddUpToOne) {
  const ByteCounts counts(text_of(500));
  std::array<double, ByteCounts::orders> sums{};
  for (int byte = 0; byte < 256; ++byte) {
    const auto bits = counts.bits(std::vector<std::uint8_t>{'i', 'n', static_cast<std::uint8_t>(byte)}, 2);
    for (std::size_t order = 0; order < bits.size(); ++order) sums[order] += std::exp2(-bits[order]);
  }
  for (const double sum : sums) EXPECT_NEAR(sum, 1, 1e-12);
}

// What overlaps in the segments of a model without memory is counted once, and what counts has the whole past of a
// segment.
TEST(HeldOut, BitsDoNotDependOnWhatComesLater) {
  const ThreadPool pool(1);
  Checkpoint checkpoint = checkpoint_of(AttentionKind::full, 4);
  std::vector<std::uint8_t> text = text_of(300);
  const double bits = bits_per_byte(checkpoint.model, {text, {20, 60}}, 30, pool);
  text[91] ^= 1;
  EXPECT_EQ(bits, bits_per_byte(checkpoint.model, {text, {20, 60}}, 30, pool));
  text[90] ^= 1;
  EXPECT_NE(bits, bits_per_byte(checkpoint.model, {text, {20, 60}}, 30, pool));
}

TEST(Text, EveryTenthFileIsHeldOut) {
  const Files files;
  std::vector<std::filesystem::path> paths;
  for (int file = 0; file < 20; ++file)
    paths.push_back(files.write(std::string(1, static_cast<char>('a' + 19 - file)),
                                std::string(1, static_cast<char>('A' + 19 - file))));
  const TrainingText text = read_training_text(paths);
  EXPECT_EQ(std::string(text.held_out.begin(), text.held_out.end()), "JT");
  EXPECT_EQ(std::string(text.training.begin(), text.training.end()), "ABCDEFGHIKLMNOPQRS");
  EXPECT_EQ(text.files_held_out, 2U);
}
TEST(Text, OfFewFilesTheLastTenthIsHeldOut) {
  const Files files;
  const TrainingText text = read_training_text({files.write("one", "0123456789abcdefghij")});
  EXPECT_EQ(std::string(text.held_out.begin(), text.held_out.end()), "ij");
  EXPECT_EQ(std::string(text.training.begin(), text.training.end()), "0123456789abcdefgh");
}

TEST(Errors, OfText) {
  const Files files;
  EXPECT_EQ(error_of([&] { read_training_text({files("none")}); }), files("none").string() + ": cannot be read");
  EXPECT_EQ(error_of([&] { read_training_text({files.write("empty", "")}); }), files("empty").string() + ": is empty");
  Checkpoint checkpoint = checkpoint_of(AttentionKind::relative, 4);
  EXPECT_EQ(error_of([&] { train(checkpoint, 1, text_of(48), 1); }),
            "the text to learn from has 48 bytes, a passage takes 49");
  EXPECT_NO_THROW(train(checkpoint, 1, text_of(49), 1));
  Index length = 0;
  EXPECT_EQ(error_of([&] { held_out_passages(text_of(1), length); }), "nothing is held out: the text is too short");
}

TEST(Errors, OfCheckpoints) {
  const Files files;
  const std::filesystem::path path = files("model.safetensors");
  const std::vector<float> elements(4);
  const auto with_config = [&](const nlohmann::json& config) {
    safetensors::write(path, std::vector<safetensors::FloatTensor>{{"x", {4}, elements}}, {{"config", config.dump()}});
    return error_of([&] { load_checkpoint(path); });
  };
  const std::string file = path.string() + ": ";
  safetensors::write(path, std::vector<safetensors::FloatTensor>{{"x", {4}, elements}});
  EXPECT_EQ(error_of([&] { load_checkpoint(path); }),
            file + "no config in its metadata: not written by train_language_model");
  EXPECT_EQ(with_config({{"layers", 1}}), file + "config: no width");
  nlohmann::json config{{"attention", "full"}};
  TransformerSizes sizes = small;
  visit_sizes(sizes, [&](const char* name, Index size) { config[name] = size; });
  EXPECT_EQ(with_config(config), file + "tensor 'embedding.weight': missing");
  config["heads"] = 3;
  EXPECT_EQ(with_config(config), file + "config: width 16, expected an even multiple of the heads, 3");
  config["heads"] = -1;
  EXPECT_EQ(with_config(config), file + "config: heads is -1, expected an integer from 1 to 65536");
  config["heads"] = 2, config["attention"] = "none";
  EXPECT_EQ(with_config(config),
            file + "config: attention is \"none\", expected full, window, performer, relative or compressive");

  // Weights of another shape than the configuration says.
  Checkpoint checkpoint = checkpoint_of(AttentionKind::full, 4);
  checkpoint.model.layers[1].up.conservativeResize(5, small.width);
  save_checkpoint(path, checkpoint);
  EXPECT_EQ(error_of([&] { load_checkpoint(path); }),
            file + "tensor 'layers.1.up.weight': shape [5, 16], expected [24, 16]");
}

}  // namespace
