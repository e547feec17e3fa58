// SPDX-License-Identifier: Apache-2.0
/// \file
/// Works of one call, one after the other or beside each other, in the same scratch. A work has a number of tasks, says
/// what scratch a worker needs for any of them, and runs one.
#pragma once

#include "longview/detail/scratch.hpp"

namespace longview::inline v0::inline LONGVIEW_BUILD::detail {

/// What a work needs, or several of one call.
struct WorkSize {
  Index tasks = 0;
  ByteCount scratch{};  // for each worker

  template <typename Work>
  static WorkSize of(const Work& work) {
    return {work.tasks(), work.scratch()};
  }
  Index workers(const Run& run) const { return run.concurrency() < tasks ? run.concurrency() : tasks; }
  WorkSize beside(const WorkSize& other) const { return {tasks + other.tasks, detail::larger(scratch, other.scratch)}; }
  WorkSize then(const WorkSize& other) const {
    return {tasks < other.tasks ? other.tasks : tasks, detail::larger(scratch, other.scratch)};
  }
};

template <typename Work>
void run_work(const Run& run, const Scratch& scratch, const Work& work) {
  const Index tasks = work.tasks();
  run_tasks(run, run.concurrency() < tasks ? run.concurrency() : tasks, tasks,
            [&](Index task, Index worker) { work.run(task, scratch.of(worker)); });
}

/// Runs the tasks of two works beside each other.
template <typename First, typename Second>
void run_works(const Run& run, const Scratch& scratch, const First& first, const Second& second) {
  const Index firsts = first.tasks(), tasks = firsts + second.tasks();
  run_tasks(run, run.concurrency() < tasks ? run.concurrency() : tasks, tasks, [&](Index task, Index worker) {
    if (task < firsts)
      first.run(task, scratch.of(worker));
    else
      second.run(task - firsts, scratch.of(worker));
  });
}

}  // namespace longview
