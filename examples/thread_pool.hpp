// Threads that wait for work: an executor for longview, and for the dense layers beside it.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "longview/executor.hpp"

/// One caller at a time, who works as well. Bodies must not throw.
class ThreadPool {
 public:
  explicit ThreadPool(longview::Index threads) {
    for (longview::Index worker = 1; worker < threads; ++worker)
      threads_.emplace_back([this, worker] { serve(worker); });
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;
  ~ThreadPool() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  longview::Index concurrency() const { return static_cast<longview::Index>(threads_.size()) + 1; }

  /// Runs body(0) ... body(count - 1), count <= concurrency(), and returns when all are done.
  template <typename Body>
  void operator()(longview::Index count, const Body& body) const {
    if (count > 1) {
      const std::lock_guard lock(mutex_);
      body_ = &body;
      call_ = [](const void* work, longview::Index task) { (*static_cast<const Body*>(work))(task); };
      count_ = count, running_ = count - 1;
      ++round_;
      work_.notify_all();
    }
    if (count > 0) body(0);
    if (count > 1) {
      std::unique_lock lock(mutex_);
      done_.wait(lock, [this] { return running_ == 0; });
    }
  }

 private:
  void serve(longview::Index worker) {
    std::unique_lock lock(mutex_);
    for (unsigned long seen = 0;;) {
      work_.wait(lock, [&] { return stopping_ || round_ != seen; });
      if (stopping_) return;
      seen = round_;
      if (worker >= count_) continue;
      const void* const body = body_;
      const auto call = call_;
      lock.unlock();
      call(body, worker);
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  mutable std::mutex mutex_;
  mutable std::condition_variable work_, done_;
  mutable const void* body_ = nullptr;
  mutable void (*call_)(const void*, longview::Index) = nullptr;
  mutable longview::Index count_ = 0, running_ = 0;
  mutable unsigned long round_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};
static_assert(longview::Executor<ThreadPool>);
