// SPDX-License-Identifier: Apache-2.0
// Gradients on any executor, in any order: tasks that follow each other over the same keys, on threads of their own.
#include "test_gradients.hpp"

namespace test {

/// Rows of three residues, all of which add to the global tokens.
template <typename T>
struct DilatedLongformerAttention : OperatorDefaults<T> {
  static constexpr const char* name = "dilated_longformer_attention";
  static constexpr Index tokens[] = {1, 400};

  static longview::LongformerOptions<T> options(const Scores<T>& scores) {
    return {.window = {30, 30, 3}, .global = {.tokens = {.indices = tokens}}, .scores = scores};
  }
  static void run(TensorView<const T, 4> query, TensorView<const T, 4> key, TensorView<const T, 4> value,
                  const Output<T>& out, const Scores<T>& scores = {}, Run how = {}) {
    longview::longformer_attention(query, key, value, out, options(scores), how);
  }
};

template <typename T>
void run_backward(DilatedLongformerAttention<T>, In<T> query, In<T> key, In<T> value, const Output<const Value<T>>& out,
                  const AttentionGradients<Value<T>>& of, const Scores<Value<T>>& scores = {}, Run how = {}) {
  longview::longformer_attention_backward(
      query, key, value, out,
      {.out = of.out, .lse = of.lse, .query = of.query, .key = of.key, .value = of.value, .scores = of.scores},
      DilatedLongformerAttention<T>::options(scores), how);
}

}  // namespace test

namespace {

using longview::Index;
using test::Arrived;
using test::Gradients;
using test::Problem;
using test::Random;
using test::Scores;
using test::Sizes;

template <typename Operator>
class ExecutorGradients : public ::testing::Test {
 public:
  // One key head, so that all tasks of an item stand in one line, and many of them.
  static constexpr Sizes sizes{2, 2, 1, 700, 700, 8, 16};
  Random random{1};
  Problem<float> problem{sizes, random};
  Arrived<float> arrived{sizes, random, true};
  std::vector<float> sinks = random.values<float>(2), bias = random.values<float>(sizes.heads * sizes.keys);

  Scores<float> scores() const {
    Scores<float> all{.softcap = 3.0, .sinks = sinks, .dropout = {.probability = 0.1, .seed = 4}};
    all.bias = {bias.data(), {1, sizes.heads, 1, sizes.keys}};
    return all;
  }
  Gradients<float> run(const Scores<float>& options, longview::Run how = {}) {
    return test::gradients<Operator, float>(problem, arrived, options, how);
  }
};
using Operators = ::testing::Types<test::FullAttention<float>, test::SlidingWindowAttention<float>,
                                   test::LongformerAttention<float>, test::DilatedLongformerAttention<float>,
                                   test::RelativeAttention<float>>;
TYPED_TEST_SUITE(ExecutorGradients, Operators, test::TypeName);

TYPED_TEST(ExecutorGradients, T01_T02_AnyExecutorAndOrder) {
  for (const Scores<float>& options : {Scores<float>(), this->scores()}) {
    const Gradients<float> expected = this->run(options);
    for (const Index threads : {2, 3, 8, 16}) {
      EXPECT_TRUE(test::same_gradients(expected, this->run(options, test::Threads{threads}))) << threads << " threads";
      EXPECT_TRUE(test::same_gradients(expected, this->run(options, test::Reversed{threads}))) << threads << " reversed";
      EXPECT_TRUE(test::same_gradients(expected, this->run(options, test::Shuffled{threads, 7}))) << threads << " shuffled";
      EXPECT_TRUE(test::same_gradients(expected, this->run(options, test::Twice{threads}))) << threads << " twice";
    }
  }
}

/// Starts a body only when the one before has begun and waited a while, so that workers trail each other.
struct Staggered {
  Index workers;
  Index concurrency() const { return workers; }
  void operator()(Index count, longview::TaskBody body) const {
    std::vector<std::thread> threads;
    for (Index task = 0; task < count; ++task) {
      threads.emplace_back([=] { body(task); });
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    for (std::thread& thread : threads) thread.join();
  }
};

TYPED_TEST(ExecutorGradients, T02_WorkersThatComeLate) {
  const Scores<float> options = this->scores();
  const Gradients<float> expected = this->run(options);
  EXPECT_TRUE(test::same_gradients(expected, this->run(options, Staggered{4})));
}

TYPED_TEST(ExecutorGradients, T04_ManyCallersShareInputs) {
  const Scores<float> options = this->scores();
  const Gradients<float> expected = this->run(options);
  std::vector<Gradients<float>> results(4, expected);
  std::vector<std::thread> callers;
  for (auto& result : results) callers.emplace_back([&] { result = this->run(options, test::Threads{2}); });
  for (std::thread& caller : callers) caller.join();
  for (const auto& result : results) EXPECT_TRUE(test::same_gradients(expected, result));
}

}  // namespace
