// Running a Longformer checkpoint, exactly as transformers writes it, in C++: attention from longview, the rest from
// Eigen.
#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string>
#include <thread>

#include "longformer_model.hpp"

namespace {

struct Arguments {
  std::filesystem::path model, inputs, outputs;
  int threads = static_cast<int>(std::thread::hardware_concurrency());
};

void encode(const Arguments& arguments) {
  const longformer::Model model(arguments.model);
  for (const std::string& name : model.unused())
    std::fprintf(stderr, "longformer_encoder: tensor '%s' of the checkpoint takes no part\n", name.c_str());
  const longformer::Inputs inputs = longformer::read_inputs(arguments.inputs);
  const ThreadPool pool(arguments.threads);
  const auto start = std::chrono::steady_clock::now();
  const longformer::Outputs outputs = model.forward(inputs, pool);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  longformer::write_outputs(arguments.outputs, inputs, outputs);
  std::printf("%td x %td tokens through %td layers in %.3f s, written to %s\n", inputs.batch, inputs.length,
              model.config().num_hidden_layers, seconds.count(), arguments.outputs.string().c_str());
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("Encodes token ids with a Longformer checkpoint.");
  app.add_option("MODEL_DIR", arguments.model, "directory with config.json and model.safetensors")->required();
  app.add_option("INPUTS", arguments.inputs,
                 "safetensors file: input_ids, attention_mask, global_attention_mask (batch, length); logit_positions "
                 "(count), if logits are wanted at some positions only")
      ->required();
  app.add_option("OUTPUT", arguments.outputs, "safetensors file to write: hidden_0 ... hidden_L, logits")->required();
  app.add_option("--threads", arguments.threads, "threads to run on")->check(CLI::Range(1, 1024));
  CLI11_PARSE(app, argc, argv);
  try {
    encode(arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "longformer_encoder: %s\n", error.what());
    return 1;
  }
  return 0;
}
