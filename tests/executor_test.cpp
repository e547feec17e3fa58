// SPDX-License-Identifier: Apache-2.0
// The same bits on any executor, in any order; what happens where an executor fails; many callers, forks, small stacks.
#include "longview/executor.hpp"

#include <pthread.h>
#include <sys/wait.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>

#include "longview/openmp.hpp"
#include "performer_case.hpp"
#include "test_operators.hpp"

namespace {

using longview::Index;
using longview::Parallel;
using longview::Sequential;
using longview::TaskBody;
using test::Answer;
using test::Problem;
using test::Random;
using test::Sizes;

static_assert(longview::Executor<Sequential> && longview::Executor<test::Threads> && longview::Executor<longview::OpenMP>);
static_assert(!longview::Executor<int>);

template <typename Operator>
class ExecutorLaws : public ::testing::Test {
 public:
  static Problem<float> problem(Index length = 130) {
    Random random(1);
    return Problem<float>(Sizes{2, 4, 2, length, length, 9, 10}, random);
  }
  static Answer<float> answer_of(const Problem<float>& of, longview::Run how = {}) { return test::answer<Operator, float>(of, {}, how); }
  static void expect_same(const Problem<float>& of, const Answer<float>& expected, longview::Run how, const std::string& what) {
    EXPECT_TRUE(test::same_answer(of.sizes, expected, answer_of(of, how))) << what;
  }
};

TYPED_TEST_SUITE(ExecutorLaws, test::AllOperators<float>, test::TypeName);

TYPED_TEST(ExecutorLaws, T01_AnyNumberOfThreads) {
  const auto problem = this->problem();
  test::under_all_sets([&] {
    const auto expected = this->answer_of(problem);
    for (Index threads = 1; threads <= 16; ++threads)
      this->expect_same(problem, expected, test::Threads{threads}, std::to_string(threads) + " threads");
  });
}

TYPED_TEST(ExecutorLaws, T01_MoreThreadsThanRows) {
  for (const Index length : {1, 2, 5}) {
    const auto problem = this->problem(length);
    this->expect_same(problem, this->answer_of(problem), test::Threads{64}, std::to_string(length) + " rows");
  }
}

TYPED_TEST(ExecutorLaws, T02_AnyOrderOfTasks) {
  const auto problem = this->problem();
  test::under_all_sets([&] {
    const auto expected = this->answer_of(problem);
    for (const Index workers : {1, 2, 3, 7, 16}) {
      const std::string of = " of " + std::to_string(workers);
      this->expect_same(problem, expected, test::Reversed{workers}, "reversed" + of);
      this->expect_same(problem, expected, test::OtherThread{workers}, "on another thread" + of);
      this->expect_same(problem, expected, longview::OpenMP{workers}, "OpenMP" + of);
      for (std::uint64_t seed = 0; seed < 5; ++seed)
        this->expect_same(problem, expected, test::Shuffled{workers, seed}, "shuffled" + of);
    }
  });
}

TYPED_TEST(ExecutorLaws, T02_WorkersAreNumberedWithinConcurrency) {
  const auto problem = this->problem();
  for (const Index workers : {1, 4, 1000}) {
    Index asked = -1;
    std::vector<Index> seen;
    const Parallel counting{workers, [&](Index count, TaskBody body) {
                              asked = count;
                              for (Index task = 0; task < count; ++task) body(task);
                            }};
    this->answer_of(problem, counting);
    EXPECT_GE(asked, 1);
    EXPECT_LE(asked, workers);
  }
}

TYPED_TEST(ExecutorLaws, T03_ErrorsOfExecutorsPassThrough) {
  struct Mine {};
  const auto problem = this->problem();
  for (const Index at : {0, 1, 3}) {
    EXPECT_THROW(this->answer_of(problem, test::Throwing<Mine>{4, at}), Mine);
    EXPECT_THROW(this->answer_of(problem, test::Throwing<std::bad_alloc>{4, at}), std::bad_alloc);
  }
  this->expect_same(problem, this->answer_of(problem), test::Threads{4}, "after errors");
}

TYPED_TEST(ExecutorLaws, T03_BodiesThatRunTwice) {
  const auto problem = this->problem();
  for (const Index workers : {1, 3, 8})
    this->expect_same(problem, this->answer_of(problem), test::Twice{workers}, std::to_string(workers));
}

TYPED_TEST(ExecutorLaws, T04_ManyCallersShareInputs) {
  const auto problem = this->problem();
  const auto expected = this->answer_of(problem);
  std::vector<Answer<float>> answers(8, Answer<float>(problem.sizes));
  std::vector<std::thread> callers;
  for (std::size_t caller = 0; caller < answers.size(); ++caller)
    callers.emplace_back([&, caller] {
      for (int turn = 0; turn < 3; ++turn)
        TypeParam::run(problem.query_view(), problem.key_view(), problem.value_view(),
                       answers[caller].output(problem.sizes), {},
                       caller % 2 == 0 ? longview::Run() : longview::Run(test::Threads{2}));
    });
  for (std::thread& caller : callers) caller.join();
  for (const auto& got : answers) EXPECT_TRUE(test::same_answer(problem.sizes, expected, got));
}

/// A pool of the caller's own; whoever waits works.
class Pool {
 public:
  explicit Pool(Index workers) {
    for (Index at = 0; at < workers; ++at)
      threads_.emplace_back([this] {
        while (auto job = next(true)) job();
      });
  }
  ~Pool() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  Index concurrency() const { return static_cast<Index>(threads_.size()) + 1; }
  void operator()(Index count, TaskBody body) const {
    std::atomic<Index> open{count};
    {
      const std::lock_guard lock(mutex_);
      for (Index task = 0; task < count; ++task)
        jobs_.emplace_back([body, task, &open] {
          body(task);
          --open;
        });
    }
    changed_.notify_all();
    while (open > 0)
      if (auto job = next(false))
        job();
      else
        std::this_thread::yield();
  }

 private:
  std::function<void()> next(bool wait) const {
    std::unique_lock lock(mutex_);
    if (wait) changed_.wait(lock, [this] { return stopped_ || !jobs_.empty(); });
    if (jobs_.empty()) return nullptr;
    auto job = std::move(jobs_.front());
    jobs_.pop_front();
    return job;
  }

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  mutable std::deque<std::function<void()>> jobs_;
  bool stopped_ = false;
  std::vector<std::thread> threads_;
};

TYPED_TEST(ExecutorLaws, T05_CallsFromInsideTheExecutorsWorkers) {
  const auto problem = this->problem();
  const auto expected = this->answer_of(problem);
  const Pool pool(2);
  std::vector<Answer<float>> answers(6, Answer<float>(problem.sizes));
  const auto inner = [&](Index at) {
    TypeParam::run(problem.query_view(), problem.key_view(), problem.value_view(),
                   answers[test::to_size(at)].output(problem.sizes), {}, pool);
  };
  pool(6, TaskBody(&inner, [](const void* self, Index at) { (*static_cast<decltype(&inner)>(self))(at); }));
  for (const auto& got : answers) EXPECT_TRUE(test::same_answer(problem.sizes, expected, got));
}

#if !defined(__SANITIZE_THREAD__)
TYPED_TEST(ExecutorLaws, T06_ForkAfterUse) {
  const auto problem = this->problem();
  const auto expected = this->answer_of(problem, test::Threads{3});
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const auto got = this->answer_of(problem, test::Threads{3});
    _exit(test::same_answer(problem.sizes, expected, got) ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}
#endif

/// Runs a body on a thread whose stack of this size was painted, and returns how much of the paint is gone.
template <typename Body>
std::size_t stack_used(std::size_t size, Body body) {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE)), guarded = size + page;
  void* const memory = mmap(nullptr, guarded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mprotect(memory, page, PROT_NONE);
  auto* const stack = static_cast<unsigned char*>(memory) + page;
  std::memset(stack, 0xa5, size);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstack(&attributes, stack, size);
  pthread_t thread;
  const auto start = [](void* given) -> void* {
    (*static_cast<Body*>(given))();
    return nullptr;
  };
  EXPECT_EQ(pthread_create(&thread, &attributes, start, &body), 0);
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
  std::size_t untouched = 0;
  while (untouched < size && stack[untouched] == 0xa5) ++untouched;
  munmap(memory, guarded);
  return size - untouched;
}

#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
TYPED_TEST(ExecutorLaws, T07_SmallStacks) {
  const auto problem = this->problem();
  test::under_all_sets([&] {
    const auto expected = this->answer_of(problem);
    Answer<float> got(problem.sizes);
    const std::size_t idle = stack_used(64 * 1024, [] {});
    const std::size_t used = stack_used(64 * 1024, [&] {
      TypeParam::run(problem.query_view(), problem.key_view(), problem.value_view(), got.output(problem.sizes));
    });
    EXPECT_TRUE(test::same_answer(problem.sizes, expected, got));
#if defined(__OPTIMIZE__)
    EXPECT_LE(used, idle + 32 * 1024);
#endif
    this->RecordProperty(longview::name_of(longview::instruction_set()), std::to_string(used - idle));
  });
}
#endif

/// Some maps look at all keys before the first query, with one head by several workers.
TEST(Executor, T01_EveryFeatureMap) {
  for (const bool causal : {false, true})
    for (performer::Case of : performer::bitwise_cases(causal)) {
      of.batch = of.heads = of.key_heads = 1, of.queries = of.keys = 700;
      performer::Data<float> data(of);
      const std::vector<float> expected = data.run();
      for (const Index threads : {2, 5})
        EXPECT_TRUE(performer::same_bits(expected, data.run(test::Threads{threads}))) << of << ", " << threads << " threads";
    }
}

TEST(Executor, RunsCountTheSameWhateverTheirType) {
  EXPECT_EQ(longview::Run().concurrency(), 1);
  EXPECT_EQ(longview::Run(Sequential{}).concurrency(), 1);
  EXPECT_EQ(longview::Run(test::Threads{5}).concurrency(), 5);
  const Parallel parallel{3, [](Index, TaskBody) {}};
  EXPECT_EQ(longview::Run(parallel).concurrency(), 3);
}

TEST(Executor, SequentialRunsEachBodyOnceInOrder) {
  std::vector<Index> seen;
  Sequential()(4, TaskBody(&seen, [](const void* list, Index task) {
                 const_cast<std::vector<Index>*>(static_cast<const std::vector<Index>*>(list))->push_back(task);
               }));
  EXPECT_EQ(seen, (std::vector<Index>{0, 1, 2, 3}));
}

}  // namespace
