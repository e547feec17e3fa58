// Trains a byte-level language model on text files, with attention of your choice, and compares it with models that
// count.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <limits>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "longview/instruction_set.hpp"
#include "progress_bar.hpp"
#include "trainer.hpp"

namespace {

using longview::Index;
using Clock = std::chrono::steady_clock;

struct Arguments {
  std::vector<std::filesystem::path> files;
  std::string attention = "full";
  TransformerSizes sizes;
  TrainingPlan plan;
  double seconds = 150;  ///< unless plan.steps says how long
  int threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1U, 64U));
  std::filesystem::path checkpoint;
  bool resume = false, compare = false;
  std::optional<std::string> prompt;
};

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

volatile std::sig_atomic_t interrupted = 0;

AttentionKind kind_of(const std::string& name) {
  return static_cast<AttentionKind>(std::find(attention_names.begin(), attention_names.end(), name) -
                                    attention_names.begin());
}

/// Only what has a memory has a use for passages of several segments.
Index segments_of(AttentionKind kind) {
  return kind == AttentionKind::relative || kind == AttentionKind::compressive ? 8 : 1;
}

Index weight_count(const ByteTransformer& model) {
  Index count = 0;
  visit_weights(model, [&](const std::string&, const Matrix& matrix) { count += matrix.size(); });
  return count;
}

Checkpoint new_checkpoint(AttentionKind kind, const TransformerSizes& sizes, const TrainingPlan& plan) {
  ByteTransformer model = random_transformer(kind, sizes, static_cast<unsigned>(plan.seed));
  Adam adam(model, {.rate = plan.rate});
  return {std::move(model), plan, 0, std::move(adam)};
}

/// How many steps fit into the time, by trying some on a copy: whole passages.
Index steps_within(double seconds, const Checkpoint& checkpoint, std::span<const std::uint8_t> text,
                   const ThreadPool& pool) {
  const Clock::time_point start = Clock::now();
  Checkpoint copy = checkpoint;
  copy.plan.steps = std::numeric_limits<Index>::max();
  Trainer trainer(copy, text, pool);
  const Index segments = copy.plan.segments;
  for (Index step = 0; step < std::max<Index>(segments, 2); ++step) trainer.step();  // memory is touched, memories fill
  const Clock::time_point warm = Clock::now();
  Index steps = 0;
  do {
    trainer.step();
    ++steps;
  } while (steps % segments != 0 || seconds_since(warm) < 0.02 * seconds);
  const double left = seconds - seconds_since(start), per_step = seconds_since(warm) / static_cast<double>(steps);
  return std::max<Index>(1, static_cast<Index>(left / per_step / static_cast<double>(segments))) * segments;
}

struct Speed {
  double seconds = 0, tokens_per_second = 0;
};

/// Until the plan is fulfilled or somebody interrupts, and then to the end of the passages.
Speed train(Checkpoint& checkpoint, std::span<const std::uint8_t> text, const ThreadPool& pool) {
  Trainer trainer(checkpoint, text, pool);
  ProgressBar progress(5);
  const Clock::time_point start = Clock::now();
  const Index begin = checkpoint.step, steps = checkpoint.plan.steps;
  const Index tokens_per_step = checkpoint.plan.passages * checkpoint.model.sizes.segment;
  double recent = 0, weight = 0;
  Speed speed;
  while (!trainer.finished() && !(interrupted != 0 && trainer.between_passages())) {
    recent = 0.97 * recent + trainer.step(), weight = 0.97 * weight + 1;
    speed.seconds = seconds_since(start);
    const auto done = static_cast<double>(checkpoint.step - begin);
    speed.tokens_per_second = done * static_cast<double>(tokens_per_step) / speed.seconds;
    char text_of_step[160];
    std::snprintf(text_of_step, sizeof text_of_step, "step %td/%td  %.3f bits/byte  %.0f tokens/s  %.0f s left",
                  checkpoint.step, steps, recent / weight, speed.tokens_per_second,
                  speed.seconds / done * static_cast<double>(steps - checkpoint.step));
    progress.show(static_cast<double>(checkpoint.step) / static_cast<double>(steps), text_of_step);
  }
  return speed;
}

void print_sample(const ByteTransformer& model, const std::string& prompt, std::uint64_t seed, const ThreadPool& pool) {
  const std::vector<std::uint8_t> bytes(prompt.begin(), prompt.end());
  for (const std::uint8_t byte : generate(model, bytes, 400, seed, pool))
    if (byte == '\n' || byte == '\t' || (byte >= ' ' && byte != 127)) std::putchar(byte);
  std::putchar('\n');
}

TrainingText read_text(const Arguments& arguments) {
  const Clock::time_point start = Clock::now();
  TrainingText text = arguments.files.empty() ? read_headers_of_this_machine() : read_training_text(arguments.files);
  std::printf("text: %zu bytes of %zu file(s); held out: %zu bytes of %zu (%.1f s)\n", text.training.size(), text.files,
              text.held_out.size(), text.files_held_out, seconds_since(start));
  return text;
}

void print_model(const Checkpoint& checkpoint, const ThreadPool& pool) {
  const TransformerSizes& sizes = checkpoint.model.sizes;
  std::printf("model: %s attention, %td layers, width %td, %td heads, inner width %td, %td weights\n",
              name_of(checkpoint.model.kind), sizes.layers, sizes.width, sizes.heads, sizes.inner,
              weight_count(checkpoint.model));
  std::printf("runs on: %td thread(s), %s\n", pool.concurrency(), longview::name_of(longview::instruction_set()));
  std::fflush(stdout);
}

void print_plan(const TrainingPlan& plan, Index segment) {
  std::printf("training: --steps %td --seed %llu, each %td x %td bytes\n", plan.steps,
              static_cast<unsigned long long>(plan.seed), plan.passages, segment);
  std::fflush(stdout);
}

/// The models that count, and the transformer on the same bytes.
void print_comparison(const ByteTransformer& model, const TrainingText& text, const ThreadPool& pool) {
  Index length = 0;
  const Passages passages = held_out_passages(text.held_out, length);
  const auto counted = bits_per_byte(ByteCounts(text.training), passages, length);
  const double bits = bits_per_byte(model, passages, length, pool);
  std::printf("\nbits per byte of %td held-out bytes\n", passages.count() * length);
  for (std::size_t order = 0; order < counted.size(); ++order)
    std::printf("  order %zu      %.3f\n", order, counted[order]);
  std::printf("  transformer  %.3f, %s\n", bits,
              bits < counted.back() ? "better than all of them" : "not better than all of them");
}

void run_training(const Arguments& arguments, Checkpoint checkpoint, const ThreadPool& pool) {
  std::signal(SIGINT, [](int) { interrupted = 1; });
  const TrainingText text = read_text(arguments);
  const std::uint64_t hash = hash_of(text.training);
  if (arguments.resume && checkpoint.plan.text != hash)
    throw std::runtime_error(arguments.checkpoint.string() + ": was trained on another text");
  checkpoint.plan.text = hash;
  print_model(checkpoint, pool);
  if (checkpoint.plan.steps == 0)
    checkpoint.plan.steps = steps_within(arguments.seconds, checkpoint, text.training, pool);
  print_plan(checkpoint.plan, checkpoint.model.sizes.segment);
  if (arguments.resume) std::printf("goes on after step %td\n", checkpoint.step);
  const Speed speed = train(checkpoint, text.training, pool);
  std::signal(SIGINT, SIG_DFL);
  save_checkpoint(arguments.checkpoint, checkpoint);
  std::printf("trained for %.0f s, %.0f tokens/s; kept in %s\n", speed.seconds, speed.tokens_per_second,
              arguments.checkpoint.c_str());
  if (interrupted != 0) {
    std::printf("stopped after step %td of %td: the same command with --resume goes on\n", checkpoint.step,
                checkpoint.plan.steps);
    return;
  }
  print_comparison(checkpoint.model, text, pool);
  std::printf("\na sample:\n");
  print_sample(checkpoint.model, "#ifndef ", checkpoint.plan.seed, pool);
  std::printf("\nmore of it: --generate PROMPT\n");
}

/// Of the layers' inner width, as much as the weights of positions and compression take is left out.
TransformerSizes equally_many_weights(AttentionKind kind, TransformerSizes sizes) {
  const Index wanted = weight_count(zero_transformer(AttentionKind::full, sizes));
  const Index excess = weight_count(zero_transformer(kind, sizes)) - wanted;
  sizes.inner -= excess / (2 * sizes.width * sizes.layers);
  return sizes;
}

/// A table of all kinds of attention, each trained for the same time with equally many weights.
void run_comparison(const Arguments& arguments, const ThreadPool& pool) {
  const TrainingText text = read_text(arguments);
  Index length = 0;
  const Passages passages = held_out_passages(text.held_out, length);
  std::string table =
      "| attention | weights | steps | tokens/s in training | bits per held-out byte |\n|---|---|---|---|---|\n";
  const auto add_row = [&](const std::string& name, AttentionKind kind, const TransformerSizes& sizes) {
    std::printf("\n%s\n", name.c_str());
    TrainingPlan plan = arguments.plan;
    plan.segments = segments_of(kind);
    Checkpoint checkpoint = new_checkpoint(kind, sizes, plan);
    print_model(checkpoint, pool);
    if (plan.steps == 0) checkpoint.plan.steps = steps_within(arguments.seconds, checkpoint, text.training, pool);
    const Speed speed = train(checkpoint, text.training, pool);
    char row[200];
    std::snprintf(row, sizeof row, "| %s | %td | %td | %.0f | %.3f |\n", name.c_str(), weight_count(checkpoint.model),
                  checkpoint.plan.steps, speed.tokens_per_second,
                  bits_per_byte(checkpoint.model, passages, length, pool));
    table += row;
  };
  for (const char* name : attention_names)
    add_row(name, kind_of(name), equally_many_weights(kind_of(name), arguments.sizes));
  TransformerSizes forgetful = equally_many_weights(AttentionKind::compressive, arguments.sizes);
  forgetful.memory = forgetful.compressed = 0;
  add_row("compressive, its memories off", AttentionKind::compressive, forgetful);
  const auto counted = bits_per_byte(ByteCounts(text.training), passages, length);
  for (std::size_t order = 0; order < counted.size(); ++order) {
    char row[80];
    std::snprintf(row, sizeof row, "| order %zu, counted | | | | %.3f |\n", order, counted[order]);
    table += row;
  }
  std::printf("\n%s", table.c_str());
}

/// Sizes that were asked for must be those of the checkpoint.
void check_sizes(const CLI::App& app, Arguments& arguments, const ByteTransformer& model) {
  const auto refuse = [&](const std::string& name, const std::string& got, const std::string& asked) {
    throw std::runtime_error(arguments.checkpoint.string() + ": " + name + " is " + got + ", asked for " + asked);
  };
  if (app.count("--attention") > 0 && kind_of(arguments.attention) != model.kind)
    refuse("attention", name_of(model.kind), arguments.attention);
  TransformerSizes stored = model.sizes;
  std::vector<Index> asked;
  visit_sizes(arguments.sizes, [&](const char*, Index size) { asked.push_back(size); });
  std::size_t at = 0;
  visit_sizes(stored, [&](const char* name, Index size) {
    if (app.count(std::string("--") + name) > 0 && asked[at] != size)
      refuse(name, std::to_string(size), std::to_string(asked[at]));
    ++at;
  });
}

void run(const CLI::App& app, Arguments& arguments) {
  const ThreadPool pool(arguments.threads);
  if (arguments.compare) return run_comparison(arguments, pool);
  const AttentionKind kind = kind_of(arguments.attention);
  if (!arguments.resume && !arguments.prompt) {
    arguments.plan.segments = segments_of(kind);
    return run_training(arguments, new_checkpoint(kind, arguments.sizes, arguments.plan), pool);
  }
  Checkpoint checkpoint = load_checkpoint(arguments.checkpoint);
  check_sizes(app, arguments, checkpoint.model);
  if (arguments.prompt) return print_sample(checkpoint.model, *arguments.prompt, arguments.plan.seed, pool);
  run_training(arguments, std::move(checkpoint), pool);
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  arguments.checkpoint = std::filesystem::path(argv[0]).replace_filename("language_model.safetensors");
  CLI::App app("Trains a byte-level language model.");
  app.add_option("FILE", arguments.files, "text; by default C++ headers of this machine. Every tenth file is held out");
  app.add_option("--attention", arguments.attention, "full, window, performer, relative or compressive")
      ->check(CLI::IsMember(std::vector<std::string>(attention_names.begin(), attention_names.end())));
  auto* const seconds = app.add_option("--seconds", arguments.seconds, "how long to train: so many steps as should fit")
                            ->check(CLI::Range(0.1, 1e7));
  app.add_option("--steps", arguments.plan.steps, "how long to train; the same steps and seed give the same bits")
      ->check(CLI::Range(Index{1}, Index{1} << 40))
      ->excludes(seconds);
  app.add_option("--seed", arguments.plan.seed, "of weights, passages and samples");
  app.add_option("--passages", arguments.plan.passages, "read in each step")->check(CLI::Range(1, 4096));
  app.add_option("--rate-of-learning", arguments.plan.rate, "at its highest");
  visit_sizes(arguments.sizes, [&](const std::string& name, Index& size) {
    const Index least = name == "memory" || name == "compressed" ? 0 : 1;
    app.add_option("--" + name, size, "of the model")->check(CLI::Range(least, Index{1} << 16));
  });
  app.add_option("--threads", arguments.threads, "threads to run on")->check(CLI::Range(1, 1024));
  app.add_option("--checkpoint", arguments.checkpoint, "where the model is kept");
  app.add_flag("--resume", arguments.resume, "goes on with the training that the checkpoint is of");
  app.add_option("--generate", arguments.prompt, "goes on with a text, as the model of the checkpoint would");
  app.add_flag("--compare", arguments.compare, "trains all attentions one after the other and prints a table");
  CLI11_PARSE(app, argc, argv);
  try {
    run(app, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "train_language_model: %s\n", error.what());
    return 1;
  }
  return 0;
}
