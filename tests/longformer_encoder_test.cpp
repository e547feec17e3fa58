// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <ostream>
#include <span>
#include <string>
#include <vector>

#include "../examples/longformer_model.hpp"

namespace {

using longformer::Inputs;
using longformer::Model;
using longformer::Outputs;

const std::filesystem::path golden = std::filesystem::path(LONGVIEW_GOLDEN_DIR) / "longformer_tiny";

std::filesystem::path expected_file(int length) {
  return golden / ("expected_n" + std::to_string(length) + ".safetensors");
}

/// Within 1e-5 of the largest element, from the file or from a run in double of the same.
void expect_equal(const safetensors::File& file, const std::string& name, std::span<const float> got) {
  const std::vector<double> expected = file.read<double>(name);
  ASSERT_EQ(got.size(), expected.size()) << name;
  double largest = 0, difference = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    largest = std::max(largest, std::fabs(expected[i]));
    ASSERT_TRUE(std::isfinite(got[i])) << name << " at " << i;
    difference = std::max(difference, std::fabs(static_cast<double>(got[i]) - expected[i]));
  }
  EXPECT_LE(difference, 1e-5 * largest) << name;
}

std::span<const float> elements_of(const Matrix& matrix) {
  return {matrix.data(), static_cast<std::size_t>(matrix.size())};
}

class LongformerTiny : public ::testing::TestWithParam<int> {};

TEST_P(LongformerTiny, HiddenStatesAndLogitsOfTransformers) {
  const safetensors::File file(expected_file(GetParam()));
  const Model model(golden);
  EXPECT_TRUE(model.unused().empty());
  for (const longview::Index threads : {1, 3}) {
    const Outputs outputs = model.forward(longformer::read_inputs(file.path()), ThreadPool(threads));
    ASSERT_EQ(outputs.hidden.size(), 3U);
    for (std::size_t layer = 0; layer < 3; ++layer)
      expect_equal(file, "hidden_" + std::to_string(layer), elements_of(outputs.hidden[layer]));
    expect_equal(file, "logits", elements_of(outputs.logits));
  }
}
INSTANTIATE_TEST_SUITE_P(Length, LongformerTiny, ::testing::Values(37, 128, 333), ::testing::PrintToStringParamName());

/// A directory of its own with a copy of the checkpoint.
class LongformerCheckpoint : public ::testing::Test {
 protected:
  LongformerCheckpoint() {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    std::string name = std::string(test->test_suite_name()) + "." + test->name();
    std::replace(name.begin(), name.end(), '/', '.');
    directory_ = std::filesystem::path(::testing::TempDir()) / name;
    std::filesystem::create_directories(directory_);
    config_ = nlohmann::json::parse(std::ifstream(golden / "config.json"));
  }
  ~LongformerCheckpoint() override { std::filesystem::remove_all(directory_); }

  struct Tensor {
    safetensors::Extents shape;
    std::vector<float> elements;
  };
  static std::map<std::string, Tensor> tiny_weights() {
    const safetensors::File file(golden / "model.safetensors");
    std::map<std::string, Tensor> weights;
    for (const std::string& name : file.names()) weights[name] = {file.shape(name), file.read<float>(name)};
    return weights;
  }
  Model load(const std::map<std::string, Tensor>& weights) const {
    std::ofstream(directory_ / "config.json") << config_;
    std::vector<safetensors::FloatTensor> tensors;
    for (const auto& [name, tensor] : weights) tensors.push_back({name, tensor.shape, tensor.elements});
    safetensors::write(directory_ / "model.safetensors", tensors);
    return Model(directory_);
  }
  /// The error of loading, without the directory.
  std::string error_of_loading(const std::map<std::string, Tensor>& weights) const {
    try {
      load(weights);
    } catch (const std::exception& error) {
      const std::string text = error.what(), begin = (directory_ / "").string();
      EXPECT_EQ(text.substr(0, begin.size()), begin);
      return text.substr(std::min(text.size(), begin.size()));
    }
    return "no error";
  }
  static Inputs inputs_of(int length) { return longformer::read_inputs(expected_file(length)); }

  std::filesystem::path directory_;
  nlohmann::json config_;
};

TEST_F(LongformerCheckpoint, WritesTheTensorsOfTheModel) {
  const Inputs inputs = inputs_of(37);
  const Outputs outputs = Model(golden).forward(inputs, ThreadPool(2));
  longformer::write_outputs(directory_ / "out.safetensors", inputs, outputs);
  const safetensors::File written(directory_ / "out.safetensors");
  EXPECT_EQ(written.names(), (std::vector<std::string>{"hidden_0", "hidden_1", "hidden_2", "logits"}));
  EXPECT_EQ(written.shape("hidden_2"), (safetensors::Extents{2, 37, 48}));
  EXPECT_EQ(written.shape("logits"), (safetensors::Extents{2, 37, 261}));
  expect_equal(written, "logits", elements_of(outputs.logits));
}

TEST_F(LongformerCheckpoint, LogitsAtAllPositionsUnlessSomeAreNamed) {
  Inputs inputs = inputs_of(128);
  const Model model(golden);
  const ThreadPool pool(2);
  const Matrix some = model.forward(inputs, pool).logits;
  inputs.has_logit_positions = false;
  const Matrix all = model.forward(inputs, pool).logits;
  ASSERT_EQ(all.rows(), 2 * 128);
  for (longview::Index item = 0; item < 2; ++item)
    for (longview::Index at = 0; at < 9; ++at) {
      const auto row = item * 128 + static_cast<longview::Index>(inputs.logit_positions[static_cast<std::size_t>(at)]);
      EXPECT_LE((some.row(item * 9 + at) - all.row(row)).cwiseAbs().maxCoeff(), 1e-5F * all.cwiseAbs().maxCoeff());
    }
}

TEST_F(LongformerCheckpoint, UntiedDecoderOfTheSameWeightsGivesTheSame) {
  auto weights = tiny_weights();
  weights["lm_head.decoder.weight"] = weights.at("longformer.embeddings.word_embeddings.weight");
  config_["tie_word_embeddings"] = false;
  const Matrix untied = load(weights).forward(inputs_of(37), ThreadPool(1)).logits;
  EXPECT_EQ(untied, Model(golden).forward(inputs_of(37), ThreadPool(1)).logits);
}

TEST_F(LongformerCheckpoint, OtherSizesLoad) {
  config_["num_hidden_layers"] = 1;
  config_["attention_window"] = 4;
  config_["num_attention_heads"] = 8;
  auto weights = tiny_weights();
  std::erase_if(weights, [](const auto& named) { return named.first.find("layer.1.") != std::string::npos; });
  weights["longformer.pooler.dense.bias"] = {{1}, {0}};
  const Model model = load(weights);
  EXPECT_EQ(model.unused(), std::vector<std::string>{"longformer.pooler.dense.bias"});
  EXPECT_EQ(model.config().attention_window, std::vector<longview::Index>{4});
  EXPECT_EQ(model.forward(inputs_of(37), ThreadPool(1)).hidden.size(), 2U);
}

TEST_F(LongformerCheckpoint, MissingAndMisshapenTensorsAreNamed) {
  const auto weights = tiny_weights();
  auto fewer = weights;
  fewer.erase("longformer.encoder.layer.1.attention.self.key_global.bias");
  EXPECT_EQ(error_of_loading(fewer),
            "model.safetensors: tensor 'longformer.encoder.layer.1.attention.self.key_global.bias': missing");
  auto other = weights;
  other["lm_head.dense.weight"].shape = {24, 96};
  EXPECT_EQ(error_of_loading(other),
            "model.safetensors: tensor 'lm_head.dense.weight': shape [24, 96], expected [48, 48]");
  config_["intermediate_size"] = 192;
  EXPECT_EQ(error_of_loading(weights),
            "model.safetensors: tensor 'longformer.encoder.layer.0.intermediate.dense.weight': shape [96, 48], "
            "expected [192, 48]");
  config_["intermediate_size"] = 96;
  config_["tie_word_embeddings"] = false;
  EXPECT_EQ(error_of_loading(weights), "model.safetensors: tensor 'lm_head.decoder.weight': missing");
}

struct BadConfig {
  std::string name, field, value, error;
  friend void PrintTo(const BadConfig& bad, std::ostream* os) { *os << bad.name; }
};
class LongformerConfig : public LongformerCheckpoint, public ::testing::WithParamInterface<BadConfig> {};

TEST_P(LongformerConfig, IsRefused) {
  const BadConfig& bad = GetParam();
  if (bad.value.empty())
    config_.erase(bad.field);
  else
    config_[bad.field] = nlohmann::json::parse(bad.value);
  EXPECT_EQ(error_of_loading({}), "config.json: " + bad.error);
}
INSTANTIATE_TEST_SUITE_P(
    Bad, LongformerConfig,
    ::testing::Values(
        BadConfig{"OtherModel", "model_type", R"("bert")", R"(model_type is "bert", expected "longformer")"},
        BadConfig{"NoModel", "model_type", "", "no model_type"},
        BadConfig{
            "Relu", "hidden_act", R"("relu")",
            R"(hidden_act is "relu", expected gelu, gelu_python, gelu_new, gelu_fast, gelu_accurate or gelu_pytorch_tanh)"},
        BadConfig{"RelativePositions", "position_embedding_type", R"("relative_key")",
                  R"(position_embedding_type is "relative_key", expected "absolute")"},
        BadConfig{"Layers", "num_hidden_layers", "10001",
                  "num_hidden_layers is 10001, expected an integer from 1 to 10000"},
        BadConfig{"NoSize", "hidden_size", "", "no hidden_size"},
        BadConfig{"ZeroSize", "vocab_size", "0", "vocab_size is 0, expected an integer from 1 to 2147483647"},
        BadConfig{"HugeSize", "vocab_size", "18446744073709551615",
                  "vocab_size is 18446744073709551615, expected an integer from 1 to 2147483647"},
        BadConfig{"FractionalSize", "hidden_size", "48.5",
                  "hidden_size is 48.5, expected an integer from 1 to 2147483647"},
        BadConfig{"Heads", "num_attention_heads", "5", "hidden_size 48 is no multiple of num_attention_heads 5"},
        BadConfig{"Padding", "pad_token_id", "261", "pad_token_id is not below vocab_size"},
        BadConfig{"NoPadding", "pad_token_id", "null",
                  "pad_token_id is null, expected an integer from 0 to 2147483647"},
        BadConfig{"OddWindow", "attention_window", "[8,7]", "attention_window is 7, expected even numbers"},
        BadConfig{"WindowCount", "attention_window", "[8]",
                  "attention_window is an array of 1, expected one number, or one for each of 2 layers"},
        BadConfig{"WindowKind", "attention_window", R"("all")",
                  R"(attention_window is "all", expected an integer from 2 to 2147483647)"},
        BadConfig{"Epsilon", "layer_norm_eps", "-1", "layer_norm_eps is -1, expected a number from 0 to 1"},
        BadConfig{"Tie", "tie_word_embeddings", "1", "tie_word_embeddings is 1, expected true or false"}),
    [](const auto& test) { return test.param.name; });

TEST_F(LongformerCheckpoint, ConfigMustBeThereAndBeJson) {
  const auto error = [&] {
    try {
      Model{directory_};
    } catch (const longformer::Error& caught) {
      return std::string(caught.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(error(), (directory_ / "config.json").string() + ": cannot be read");
  std::ofstream(directory_ / "config.json") << "{";
  EXPECT_NE(error().find("config.json: is not JSON: "), std::string::npos);
}

TEST_F(LongformerCheckpoint, InputsOutOfRangeAreRefused) {
  const Model model(golden);
  const ThreadPool pool(1);
  Inputs inputs = inputs_of(37);
  inputs.ids[3] = 261;
  EXPECT_THROW(model.forward(inputs, pool), longformer::Error);
  inputs.ids[3] = -1;
  EXPECT_THROW(model.forward(inputs, pool), longformer::Error);
  Inputs long_inputs{.batch = 1,
                     .length = 599,
                     .ids = std::vector<std::int64_t>(599, 5),
                     .attention_mask = std::vector<std::uint8_t>(599, 1),
                     .global_attention_mask = std::vector<std::uint8_t>(599, 0),
                     .logit_positions = {}};
  EXPECT_THROW(model.forward(long_inputs, pool),
               longformer::Error);  // 600 positions, of which pad_token_id + 1 are unused
  long_inputs.ids[0] = 1;
  EXPECT_NO_THROW(model.forward(long_inputs, pool));
}

}  // namespace
